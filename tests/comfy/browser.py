"""A real browser at a running ComfyUI: opens the pack's templates, presses Run, and tells what is to be seen.

    COMFYUI_PATH=... python tests/comfy/browser.py --out FOLDER      runs the miniature's templates, saves screenshots
    python tests/comfy/browser.py --url http://127.0.0.1:8188 ...    at a ComfyUI that is running already

Needs the Python package playwright and a Chromium (CHROMIUM names it; else the first one on the path).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from live_server import FOLDER, Absent, serve

MODES = {"classic": False, "nodes2": True}
MINIATURE = ("quickstart", "modular")
WIDTH, HEIGHT = 1720, 1000
_TOOLS = Path(__file__).parent / "browser.js"
_FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--mute-audio"]
_FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
_FLAGS += ["--autoplay-policy=no-user-gesture-required"]
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclasses.dataclass
class Look:
    """One page with ComfyUI in it.

    Attributes:
        page: playwright's.
        url: ComfyUI's.
        errors: what the console warned of and uncaught exceptions, with the address they came from.
        out: folder of the screenshots.
        mode: "classic" or "nodes2"; begins the screenshots' names.
        runs: how many were begun.
    """

    page: Any
    url: str
    out: Path
    mode: str
    errors: list[str] = dataclasses.field(default_factory=list)
    runs: int = 0

    @property
    def ours(self) -> list[str]:
        """What comes from this pack's script, and media that did not load: what a node of ours showed in vain."""
        marks = (f"/extensions/{FOLDER}/", "LiveAvatar.Panel", "liveavatar", "Uncaught error in", "Loading media")
        hub = "huggingface.co"  # where the frontend asks for the sizes of a template's models
        return [one for one in self.errors if any(mark in one for mark in marks) and hub not in one]

    def templates(self) -> list[str]:
        """What the template browser lists for this pack."""
        with urllib.request.urlopen(f"{self.url}/api/workflow_templates", timeout=60) as answer:
            return sorted(json.load(answer).get(FOLDER, []))

    def open(self, template: str) -> dict[str, Any]:
        """Load a template as the template browser does, with or without its place in the list; the graph."""
        name = next(one for one in self.templates() if template in (one, one[3:]))
        with urllib.request.urlopen(f"{self.url}/api/workflow_templates/{FOLDER}/{name}.json", timeout=60) as answer:
            graph = json.load(answer)
        self._load(graph, name, {"openSource": "template"})
        return graph

    def show(self, graph: dict[str, Any], name: str) -> None:
        """Load a graph and bring all of it into view."""
        self._load(graph, name, {})
        if not graph["nodes"]:
            return
        self.page.evaluate("() => look.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(1500)

    def _load(self, graph: dict[str, Any], name: str, options: dict[str, Any]) -> None:
        """Until all of its nodes are there and drawn."""
        load = "([graph, name, options]) => look.app.loadGraphData(graph, true, true, name, options)"
        self.page.evaluate(load, [graph, name, options])
        self.page.wait_for_function(f"() => look.root().nodes.length === {len(graph['nodes'])}", timeout=60_000)
        self.page.wait_for_timeout(1500)

    @contextlib.contextmanager
    def sized(self, width: int, height: int) -> Iterator[None]:
        """A window of another size."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.wait_for_timeout(700)
        try:
            yield
        finally:
            self.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
            self.page.wait_for_timeout(700)

    def view(self) -> dict[str, Any]:
        """{"scale", "wordless"}: how large the graph is shown, and whether the classic canvas leaves words out."""
        return self.page.evaluate("() => look.view()")

    def sizes(self) -> dict[int, tuple[float, float]]:
        """Width and height of every node as drawn, with its title bar, in the graph's own measure."""
        scale = self.view()["scale"] if self.mode == "nodes2" else 1.0
        boxes = self.page.evaluate("() => look.boxes()")
        return {int(box["id"]): (box["width"] / scale, box["height"] / scale) for box in boxes}

    def has_command(self, name: str) -> bool:
        """Whether this frontend knows a command."""
        return self.page.evaluate(
            "(name) => look.app.extensionManager.command.commands.some((one) => one.id === name)", name
        )

    def unknown(self) -> list[str]:
        """Node types that this ComfyUI does not have, and the frontend's own word that some are missing."""
        return self.page.evaluate("() => look.unknown()")

    def overlaps(self) -> list[tuple[str, str]]:
        """Pairs of nodes that are drawn over each other."""
        boxes = self.page.evaluate("() => look.boxes()")
        pairs = [(a, b) for index, a in enumerate(boxes) for b in boxes[index + 1 :]]
        return [(a["id"], b["id"]) for a, b in pairs if _apart(a, b) < 0]

    def panels(self) -> list[dict[str, Any]]:
        """What the pack's widgets show now: {"id", "type", "text", "live"} (live: whether with a picture)."""
        return self.page.evaluate("() => look.panels()")

    def heard(self) -> list[dict[str, Any]]:
        """All different things that the widgets showed since the last call."""
        return self.page.evaluate("() => look.heard()")

    def press_run(self) -> None:
        """The Run button."""
        self.heard()
        self.runs += 1
        self.page.click("[data-testid=queue-button]")

    def reload(self) -> None:
        """The page anew, with the workflow that was open."""
        self.page.reload()
        _wait_until_ready(self.page)
        self.runs = 0

    def wait_for_panel(self, words: str, seconds: float = 240) -> None:
        """Until a widget of ours matches a regular expression (of JavaScript)."""
        self._wait(f"() => look.panels().some((panel) => /{words}/.test(panel.text))", seconds)

    def wait_for_picture(self, seconds: float = 240, alone: bool = False) -> None:
        """Until a widget of ours shows a frame of the running video; `alone`: and no node an earlier video."""
        others = "&& look.shown(look.videos()).length === 0" if alone else ""
        self._wait(f"() => look.panels().some((panel) => panel.live) {others}", seconds)

    def wait_for_end(self, seconds: float = 300) -> None:
        """Until every run that was begun here has ended, well or not."""
        self._wait(f"() => look.ends() >= {self.runs}", seconds)

    def play(self, seconds: float = 60) -> list[str]:
        """Play what core shows of our temporary files; the addresses of the videos that really move."""
        self._wait("() => look.videos().some((video) => video.readyState >= 2)", seconds)
        self.page.evaluate(
            "() => look.videos().forEach((video) => { video.muted = true; video.loop = true; video.play(); })"
        )
        self._wait("() => look.videos().some((video) => !video.paused && video.currentTime > 0.3)", seconds)
        return self.page.evaluate(
            "() => look.videos().filter((video) => video.currentTime > 0.3).map((video) => video.currentSrc)"
        )

    def focus(self, *types: str) -> None:
        """Bring the nodes of some types near."""
        self.page.evaluate("(types) => look.focus(types)", types)
        self.page.wait_for_timeout(700)

    def picture(self, name: str) -> Path:
        """A screenshot."""
        path = self.out / f"{self.mode}_{name}.png"
        self.page.screenshot(path=str(path))
        return path

    @contextlib.contextmanager
    def speaking(self, locale: str) -> Iterator[Look]:
        """A second page, with ComfyUI in another language."""
        _set(self.url, "Comfy.Locale", locale)
        other = _page(self.page.context.browser, self.url, self.mode, self.out)
        try:
            yield other
        finally:
            other.page.context.close()
            _set(self.url, "Comfy.Locale", "en")

    def _wait(self, condition: str, seconds: float) -> None:
        try:
            self.page.wait_for_function(condition, timeout=seconds * 1000, polling=100)
        except Exception as failure:
            path = self.picture("waited_in_vain")
            raise AssertionError(f"{failure}\nwidgets: {self.panels()}\nerrors: {self.errors}\nsee {path}") from None


@contextlib.contextmanager
def browse(url: str, mode: str, out: Path, *flags: str) -> Iterator[Look]:
    """A browser at a running ComfyUI, in one of MODES, with further flags of Chromium.

    Raises:
        Absent: playwright or Chromium is missing.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise Absent("pip install playwright to test in a browser (Chromium itself comes from the system)") from None
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if not chromium:
        raise Absent(f"no Chromium is on the path ({', '.join(_NAMES)}); CHROMIUM may name one")
    out.mkdir(parents=True, exist_ok=True)
    for name, value in (
        ("Comfy.VueNodes.Enabled", MODES[mode]),
        ("Comfy.TutorialCompleted", True),
        ("Comfy.Minimap.Visible", False),
        ("Comfy.Locale", "en"),
    ):
        _set(url, name, value)
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium, args=[*_FLAGS, *flags])
        try:
            yield _page(chrome, url, mode, out)
        finally:
            chrome.close()


def _page(chrome: Any, url: str, mode: str, out: Path) -> Look:
    page = chrome.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    look = Look(page, url, out, mode)

    def local(route: Any) -> None:
        inside = route.request.url.startswith((url, "data:", "blob:"))
        route.continue_() if inside else route.abort()

    def say(message: Any) -> None:
        if message.type in ("error", "warning"):  # the frontend turns what a listener throws into a warning
            look.errors.append(f"{message.text} ({message.location.get('url', '')})")

    page.route("**/*", local)
    page.on("console", say)
    page.on("pageerror", lambda error: look.errors.append(f"uncaught: {error} {error.stack}"))
    page.goto(url)
    _wait_until_ready(page)
    return look


def _wait_until_ready(page: Any) -> None:
    """ComfyUI stands, and this script's tools are in its page."""
    page.wait_for_selector("[data-testid=queue-button]", timeout=120_000)
    page.wait_for_function("() => !!window.comfyAPI?.app?.app?.extensionManager", timeout=60_000)
    page.wait_for_timeout(2000)
    page.evaluate(_TOOLS.read_text(encoding="utf-8"))


def _set(url: str, name: str, value: Any) -> None:
    body, kind = json.dumps(value).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/api/settings/{name}", body, kind, method="POST")
    urllib.request.urlopen(request, timeout=60).close()


def _apart(a: dict[str, float], b: dict[str, float]) -> float:
    """The gap between two boxes; negative where they overlap."""
    across = max(a["x"], b["x"]) - min(a["x"] + a["width"], b["x"] + b["width"])
    down = max(a["y"], b["y"]) - min(a["y"] + a["height"], b["y"] + b["height"])
    return max(across, down)


def main() -> int:
    """Run the miniature's templates in both modes and say what was seen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", help="a running ComfyUI; without it, one is started from COMFYUI_PATH")
    parser.add_argument("--out", type=Path, help="folder of the screenshots")
    parser.add_argument("--mode", choices=MODES, action="append")
    parser.add_argument("--template", action="append")
    given = parser.parse_args()
    out = given.out or Path(tempfile.mkdtemp(prefix="liveavatar-screenshots-"))
    with contextlib.ExitStack() as stack:
        url = given.url or stack.enter_context(serve(Path(stack.enter_context(tempfile.TemporaryDirectory())))).url
        for mode in given.mode or MODES:
            with browse(url, mode, out) as look:
                for template in given.template or MINIATURE:
                    look.open(template)
                    look.press_run()
                    look.wait_for_panel(r"\d s in ")
                    look.wait_for_end()
                    print(mode, template, "plays", look.play(), "errors", look.ours, look.picture(template))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Absent as reason:
        sys.exit(str(reason))
