"""Moving pictures for the README, filmed from real runs in a real browser: the page of live talk, and the node.

    python tests/live/moving_pictures.py page docs/live-page.webp [--python INTERPRETER OF THE SERVER]
    COMFYUI_PATH=... python tests/live/moving_pictures.py node docs/live-node.webp

Needs what the browser tests need (README.md beside this file, and that of tests/comfy). Nothing else should be running, or
it talks slower than it could.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "comfy"), str(TESTS / "live")]

VOICE = TESTS.parent / "liveavatar" / "mini" / "assets" / "voice.wav"
SECONDS, PER_SECOND = 5.0, 12.5
SETTLED = 6_000
"""Milliseconds of talk before it is filmed."""
MOST_BYTES = 1_500_000
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


class Film:
    """What a page shows for some seconds.

    Args:
        page: playwright's.
    """

    def __init__(self, page: Any):
        self._session = page.context.new_cdp_session(page)
        self._page = page
        self._pictures: list[tuple[float, bytes]] = []
        self._session.on("Page.screencastFrame", self._take)

    def _take(self, event: dict[str, Any]) -> None:
        self._pictures.append((time.monotonic(), base64.b64decode(event["data"])))
        self._session.send("Page.screencastFrameAck", {"sessionId": event["sessionId"]})

    def shoot(self, seconds: float) -> None:
        """Film."""
        self._session.send("Page.startScreencast", {"format": "png", "everyNthFrame": 1})
        self._page.wait_for_timeout(1000 * seconds)
        self._session.send("Page.stopScreencast")

    def cut(self, box: Box, width: int) -> list[Image.Image]:
        """Its pictures at an even pace, cut to a box and made so wide."""
        begun, steps = self._pictures[0][0], round(SECONDS * PER_SECOND)
        taken, found = list[Image.Image](), 0
        for step in range(steps):
            due = begun + step / PER_SECOND
            while found + 1 < len(self._pictures) and self._pictures[found + 1][0] <= due:
                found += 1
            whole = Image.open(io.BytesIO(self._pictures[found][1])).convert("RGB").crop(tuple(map(round, box)))
            taken.append(whole.resize((width, round(whole.height * width / whole.width)), Image.Resampling.LANCZOS))
        return taken


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
    from page_figures import PATIENCE, browser, served

    with tempfile.TemporaryDirectory() as folder, served(given, Path(folder) / "talk.mp4") as address:
        with browser(VOICE) as chromium:
            page = chromium.new_page(locale="en-US", viewport={"width": 880, "height": 500})
            page.goto(address)
            page.click("#start:not([disabled])", timeout=PATIENCE)
            page.click("#microphone:not([disabled])", timeout=PATIENCE)
            page.wait_for_function("document.getElementById('video').currentTime > 1", timeout=PATIENCE)
            page.wait_for_timeout(SETTLED)
            film = Film(page)
            film.shoot(SECONDS)
            page.click("#start")
            page.wait_for_selector("#download:not([hidden])", timeout=PATIENCE)
            return film.cut((0, 0, 880, 500), 720)


def film_node(given: argparse.Namespace) -> list[Image.Image]:
    """The node in ComfyUI while it talks."""
    import test_live
    from browser import browse

    with _comfyui() as (url, out), browse(url, "nodes2", out, *test_live.MICROPHONE) as look:
        test_live.begin(look)
        look.page.wait_for_timeout(SETTLED)
        box = _node_box(look)
        film = Film(look.page)
        film.shoot(SECONDS)
        test_live.press(look, "Stop")
        look.wait_for_end()
        return film.cut(box, 560)


@contextlib.contextmanager
def _comfyui() -> Iterator[tuple[str, Path]]:
    import graphs
    from live_server import serve

    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), streams=True) as running:
        graphs.write_inputs(running.base / "input")
        yield running.url, Path(folder) / "screenshots"


def _node_box(look: Any) -> Box:
    """Where the node is on the page, with a little around it."""
    (number,) = (panel["id"] for panel in look.panels() if panel["type"] == "LiveAvatarLive")
    node = next(box for box in look.page.evaluate("() => look.boxes()") if box["id"] == number)
    return node["x"] - 8, node["y"] - 8, node["x"] + node["width"] + 8, node["y"] + node["height"] + 8


def main() -> None:
    """Film one of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["page", "node"])
    parser.add_argument("out", type=Path, metavar="FILE.webp")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the page's server")
    given = parser.parse_args()
    given.all_cores = False
    write({"page": film_page, "node": film_node}[given.what](given), given.out)


if __name__ == "__main__":
    main()
