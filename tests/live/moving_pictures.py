"""Moving pictures for the README, filmed from real runs in a real browser: the page of live talk, and the node.

    python tests/live/moving_pictures.py page docs/live-page.webp [--python INTERPRETER OF THE SERVER]
    COMFYUI_PATH=... python tests/live/moving_pictures.py node docs/live-node.webp

When it has talked for a while the page is held, and the latest seconds of what it has received are gone through picture
by picture: so a slow machine films as smoothly as a fast one. Needs what the browser tests need (README.md beside this
file, and that of tests/comfy).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "comfy"), str(TESTS / "live")]

VOICE = TESTS.parent / "liveavatar" / "mini" / "assets" / "voice.wav"
SECONDS, PER_SECOND = 5.0, 12.5
SETTLED = 9_000
"""Milliseconds of talk before it is held."""
PATIENCE = 60_000
MOST_BYTES = 1_500_000
KEEP_SOCKETS = """
  window.sockets = [];
  window.WebSocket = class extends WebSocket {
    constructor(...given) {
      super(...given);
      if (/\\/live(\\/|$)/.test(new URL(this.url).pathname)) window.sockets.push(this);
    }
  };
"""
"""Before the page's own scripts."""
HOLD = """(video) => {
  for (const socket of window.sockets) socket.onmessage = null;
  const { get, set } = Object.getOwnPropertyDescriptor(HTMLMediaElement.prototype, "currentTime");
  video.pause();
  video.play = async () => {};
  Object.defineProperty(video, "currentTime", { get: () => get.call(video), set() {} });
  window.seek = (time) => new Promise((done) => {
    video.addEventListener("seeked", () => requestAnimationFrame(() => requestAnimationFrame(done)), { once: true });
    set.call(video, time);
  });
  return video.buffered.end(video.buffered.length - 1);
}"""
"""No more is told or played from now on; second at which what it has received ends."""


def film(page: Any, video: str, clip: dict[str, float]) -> list[Image.Image]:
    """The latest seconds of a page's talk, cut to a part of the page.

    Args:
        page: playwright's.
        video: selector of the element that plays.
        clip: x, y, width, height.
    """
    page.wait_for_timeout(SETTLED)
    end = page.eval_on_selector(video, HOLD) - 0.1
    pictures, steps = list[Image.Image](), round(SECONDS * PER_SECOND)
    for step in range(steps):
        page.evaluate("(time) => seek(time)", end - SECONDS + step / PER_SECOND)
        pictures.append(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB"))
    return pictures


def write(pictures: list[Image.Image], path: Path) -> None:
    """An animated WebP, of the highest quality that is small enough."""
    for quality in (85, 75, 65, 50, 35):
        pictures[0].save(
            path,
            save_all=True,
            append_images=pictures[1:],
            duration=round(1000 / PER_SECOND),
            loop=0,
            quality=quality,
            method=6,
        )
        if path.stat().st_size <= MOST_BYTES:
            break
    print(f"{path}: {len(pictures)} pictures, {path.stat().st_size / 1000:.0f} kB, quality {quality}")


def film_page(given: argparse.Namespace) -> list[Image.Image]:
    """The page while it talks to a recorded microphone."""
    from page_figures import browser, served

    with served(given) as address, browser(VOICE) as chromium:
        page = chromium.new_page(locale="en-US", viewport={"width": 940, "height": 470})
        page.add_init_script(KEEP_SOCKETS)
        page.goto(address)
        page.click("#start:not([disabled])", timeout=PATIENCE)
        page.click("#microphone:not([disabled])", timeout=PATIENCE)
        page.wait_for_function("document.getElementById('video').currentTime > 1", timeout=PATIENCE)
        return film(page, "#video", {"x": 0, "y": 0, "width": 940, "height": 470})


def film_node(_: argparse.Namespace) -> list[Image.Image]:
    """The node in ComfyUI while it talks."""
    import test_live
    from browser import browse

    with _comfyui() as (url, out), browse(url, "nodes2", out, *test_live.MICROPHONE) as look:
        look.page.add_init_script(KEEP_SOCKETS)
        look.reload()
        test_live.begin(look)
        try:
            return film(look.page, ".liveavatar .live video", _node_box(look))
        finally:
            look.page.evaluate("() => window.comfyAPI.api.api.interrupt(null)")


@contextlib.contextmanager
def _comfyui() -> Iterator[tuple[str, Path]]:
    import graphs
    from live_server import serve

    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), streams=True) as running:
        graphs.write_inputs(running.base / "input")
        yield running.url, Path(folder) / "screenshots"


def _node_box(look: Any) -> dict[str, float]:
    """Where the node is on the page, with a little around it."""
    (number,) = (panel["id"] for panel in look.panels() if panel["type"] == "LiveAvatarLive")
    box = next(box for box in look.page.evaluate("() => look.boxes()") if box["id"] == number)
    return {"x": box["x"] - 8, "y": box["y"] - 8, "width": box["width"] + 16, "height": box["height"] + 16}


def main() -> None:
    """Film one of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["page", "node"])
    parser.add_argument("out", type=Path, metavar="FILE.webp")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the page's server")
    given = parser.parse_args()
    given.all_instructions = True
    write({"page": film_page, "node": film_node}[given.what](given), given.out)


if __name__ == "__main__":
    main()
