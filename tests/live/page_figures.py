"""How the page of `liveavatar live` does in a real browser with a recorded microphone: a table in Markdown.

    python tests/live/page_figures.py [--seconds 60] [--watch socket webrtc] [--python INTERPRETER OF THE SERVER]

Each delay is taken from the pixels that the video element showed: they are found again in the server's own recording,
and its sound in what the microphone gave the page. The time that a sound card or a screen needs is not in it.
Needs Chromium, playwright and espeak-ng (README.md beside this file); nothing else should be running.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT))

from shown_pictures import Microphone, best_lag, delays, places, shut_after  # noqa: E402

from liveavatar.config import AUDIO_SAMPLE_RATE  # noqa: E402
from liveavatar.live import voices  # noqa: E402
from liveavatar.media.audio import mono_16k  # noqa: E402
from liveavatar.media.audio_file import read_audio  # noqa: E402
from liveavatar.mini.world import measure  # noqa: E402
from liveavatar.mini.world.identity import Identity  # noqa: E402
from liveavatar.mini.world.portrait import DEMO  # noqa: E402

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
SIZE, BOX = 128, {"left": 32, "top": 56, "side": 64}
"""Of the video, and where in it the mouth is."""
OPEN = 0.2
"""A mouth that is open: it is read as up to 0.1 while nothing is said."""
STARTS, INTERRUPTS = 5, 8
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
PATIENCE = 60_000
"""Milliseconds."""
TEXT = (
    "Good morning. The train to the coast leaves at seven, and nobody wants to miss it. Bring a coat, for the wind is "
    "cold there, even in summer. My sister paints boats; red ones sell best. Last year a fisherman bought four of them "
    "and hung them in his kitchen. What would you like to see first? The lighthouse opens at ten. From above, the "
    "harbour looks like a small clock. Afterwards we could eat soup and bread by the window. Do you remember the dog "
    "that stole your shoe? It lives next door now, and it still barks at bicycles. In the evening there is music on "
    "the square: two violins, a drum, and somebody who sings too loud. Let us walk home slowly along the river."
)


@dataclasses.dataclass
class Figures:
    """What was measured in one way to watch; seconds."""

    first: list[float] = dataclasses.field(default_factory=list)
    moving: list[float] = dataclasses.field(default_factory=list)
    late: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    made: list[float] = dataclasses.field(default_factory=list)
    """What the server says of a sample: until its block was made."""
    meter: list[float] = dataclasses.field(default_factory=list)
    lag: tuple[float, float] = (0.0, 0.0)
    shut: list[float] = dataclasses.field(default_factory=list)
    silent: float = 0.0
    shown: float = 0.0
    """Pictures a second."""
    stalls: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    given = _parse(arguments)
    with tempfile.TemporaryDirectory(prefix="liveavatar-figures-") as folder:
        root = Path(folder)
        write_voice(root / "voice.wav")
        with served(given, root / "talk.mp4") as address, browser(root / "voice.wav") as chromium:
            bench = Bench(chromium, address, root)
            bench.warm()
            print("| what | watched over | measured |\n|---|---|---|", flush=True)
            for way in given.watch:
                figures = bench.measure(way, given.seconds)
                print("\n".join(lines(way, figures)), flush=True)
                if given.keep:
                    _keep(Path(given.keep), way, figures)
    return 0


def write_voice(path: Path) -> None:
    """What is said, with a pause at its end, because the browser begins anew there."""
    samples, rate = voices.speak(TEXT, "en-us+f3")
    whole = np.round(32_767 * np.concatenate((samples, np.zeros(round(0.6 * rate), np.float32)))).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(whole.tobytes())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of talk in which delays are measured")
    parser.add_argument("--watch", nargs="+", choices=["socket", "webrtc"], default=["socket", "webrtc"])
    parser.add_argument("--python", default=sys.executable, help="interpreter of the server (default: this one)")
    parser.add_argument("--all-instructions", action="store_true", help="let the server use more than AVX2")
    parser.add_argument("--keep", metavar="FOLDER", help="write each delay there, as JSON")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def served(given: argparse.Namespace, record: Path | None = None) -> Iterator[str]:
    """The address of a server; it may record its talks."""
    command = [given.python, "-m", "liveavatar", "live", "--vae", "tiny", "--size", f"{SIZE}x{SIZE}"]
    command += ["--port", "0", *([] if record is None else ["--record", str(record)])]
    environment = os.environ | ({} if given.all_instructions else AVX2)
    with subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield next(line.split()[1] for line in process.stdout if line.startswith("page "))
        finally:
            process.terminate()


@contextlib.contextmanager
def browser(voice: Path) -> Iterator[Any]:
    """Chromium, whose microphone is a file."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--use-fake-ui-for-media-stream"]
        arguments += ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={voice}"]
        arguments += ["--autoplay-policy=no-user-gesture-required"]
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield chromium
        finally:
            chromium.close()


class Bench:
    """Talks of one page after the other.

    Args:
        chromium: playwright's.
        address: of the server.
        folder: of recordings and the voice.
    """

    def __init__(self, chromium: Any, address: str, folder: Path):
        self.chromium, self.address, self.folder = chromium, address, folder
        self.identity = Identity.of(DEMO)

    def warm(self) -> None:
        """Load everything once."""
        with self.page(start=True) as page:
            self.until(page, "pageTap.shown.length > 20")

    def measure(self, way: str, seconds: float) -> Figures:
        """All figures of one way to watch."""
        figures = Figures()
        for _ in range(STARTS):
            self._start(figures)
        self._talk(figures, way, seconds)
        self._interrupt(figures, way)
        return figures

    def _start(self, figures: Figures) -> None:
        with self.page(start=True) as page:
            self.until(page, "pageTap.shown.length > 12")
            shown, pictures = self.shown(page)
        figures.first.append(float(shown[0]))
        moved = np.abs(pictures.astype(int) - pictures[0]).mean((1, 2, 3)) > 0.25
        figures.moving.append(float(shown[int(np.argmax(moved))]) if moved.any() else float("inf"))

    def _talk(self, figures: Figures, way: str, seconds: float) -> None:
        with self.page(start=True) as page:
            self._watch(page, way)
            page.click("#microphone")
            page.wait_for_timeout(6000)  # the browser's own buffers have found their size
            page.evaluate("pageTap.forget()")
            stalls = self.stalls(page)
            page.wait_for_timeout(1000 * seconds)
            figures.stalls = self.stalls(page) - stalls
            shown, pictures = self.shown(page)
            figures.meter = page.evaluate("pageTap.delays")
            figures.made = [one["lag_ms"] / 1000 for one in page.evaluate("pageTap.told")]
            rate, heard = page.evaluate("[pageTap.rate, pageTap.heard]")
            sound = np.frombuffer(base64.b64decode(page.evaluate("pageTap.bytes('sound')")), np.int16)
        arrivals = np.array(heard, float) * [1, 0.001]
        microphone = Microphone.of(sound.astype(np.float32) / 32_767, rate, arrivals)
        frames, spoken = self.recording()
        top, left, side = BOX["top"], BOX["left"], BOX["side"]
        found = places(pictures, shown, frames[:, top : top + side, left : left + side])
        figures.late, _ = delays(microphone, shown, found, spoken)
        figures.lag = best_lag(shown, self.openings(pictures), microphone)
        figures.shown = (len(shown) - 1) / (shown[-1] - shown[0])

    def _interrupt(self, figures: Figures, way: str) -> None:
        with self.page(start=True) as page:
            self._watch(page, way)
            seen = []
            for number in range(INTERRUPTS):
                page.evaluate("pageTap.forget()")
                page.set_input_files("#sound", self.folder / "voice.wav")
                page.wait_for_timeout(4000 + 130 * number)
                when = page.evaluate("pageTap.press('interrupt')") / 1000
                page.wait_for_timeout(3000)
                seen.append((when, *self.shown(page)))
        for when, shown, pictures in seen:
            openings = self.openings(pictures)
            figures.shut.append(shut_after(when, shown, openings, 3.0, OPEN))
            figures.silent = max(figures.silent, float(openings[shown > when + 2].max(initial=0.0)))

    def _watch(self, page: Any, way: str) -> None:
        self.until(page, "pageTap.shown.length > 20")
        if way == "webrtc":
            page.check("#webrtc")
            self.until(page, "document.getElementById('video').srcObject?.getTracks().length === 2")
            page.wait_for_timeout(1000)

    @contextlib.contextmanager
    def page(self, start: bool) -> Iterator[Any]:
        """A page of its own; its talk is ended properly."""
        page = self.chromium.new_page(locale="en-US", viewport={"width": 1000, "height": 560})
        page.add_init_script(f"window.mouthBox = {json.dumps(BOX)}; window.startAtOnce = {json.dumps(start)};")
        page.add_init_script(path=Path(__file__).with_name("page_tap.js"))
        try:
            page.goto(self.address)
            page.wait_for_selector("#microphone:not([disabled])", timeout=PATIENCE)
            yield page
            page.click("#start")
            page.wait_for_selector("#download:not([hidden])", timeout=PATIENCE)
        finally:
            page.close()

    def until(self, page: Any, condition: str) -> None:
        """Wait."""
        page.wait_for_function(condition, timeout=PATIENCE)

    def shown(self, page: Any) -> tuple[np.ndarray, np.ndarray]:
        """Second at which each picture was shown, and its mouth: uint8 [n, side, side, 3]."""
        times, pixels = page.evaluate("pageTap.bytes('pictures').then((all) => [pageTap.shown, all])")
        side = BOX["side"]
        pictures = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(-1, side, side, 4)[..., :3]
        return np.array(times[: len(pictures)]) / 1000, pictures[: len(times)]

    def stalls(self, page: Any) -> int:
        """How often the picture has stood still for want of data."""
        return int(page.evaluate("pageTap.stalls"))

    def openings(self, pictures: np.ndarray) -> np.ndarray:
        """How far the mouth is open in each picture, 0..1."""
        top, left, side = BOX["top"], BOX["left"], BOX["side"]
        whole = np.full((len(pictures), SIZE, SIZE, 3), 128, np.uint8)
        whole[:, top : top + side, left : left + side] = pictures
        return measure.opening(whole, self.identity)

    def recording(self) -> tuple[np.ndarray, np.ndarray]:
        """The latest talk: its pictures, uint8 [n, H, W, 3], and its sound at 16 kHz."""
        import av

        until = time.monotonic() + 20
        latest = max(self.folder.glob("talk*.mp4"), key=lambda path: path.stat().st_mtime)
        while time.monotonic() < until and not latest.with_suffix(".json").exists():
            time.sleep(0.2)
        time.sleep(1.0)
        with av.open(str(latest)) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        sound = np.asarray(mono_16k(read_audio(latest))[:])
        assert abs(len(sound) / AUDIO_SAMPLE_RATE - len(frames) / 25) < 0.1
        return frames, sound


def lines(way: str, figures: Figures) -> list[str]:
    """The rows of the table."""
    if not len(figures.late):
        raise SystemExit("No picture was found again in the recording: nothing was measured.")
    median, high, most = np.quantile(figures.late, [0.5, 0.95, 1.0])
    shut = sorted(figures.shut)
    return [
        f"| page opened to the first picture, {len(figures.first)} times | socket | {_range(figures.first)} |",
        f"| page opened to the first picture that moves | socket | {_range(figures.moving)} |",
        f"| sample to its picture: median, 95 %, most, of {len(figures.late)} pictures | {way} | "
        f"{median:.2f}, {high:.2f}, {most:.2f} s |",
        f"| of it, until the block is made: median | {way} | {np.median(figures.made):.2f} s |",
        f"| what the page's meter says of it: median | {way} | {np.nanmedian(figures.meter):.2f} s |",
        f"| delay at which mouth and loudness fit best, and their correlation | {way} | "
        f"{figures.lag[0]:.2f} s, {figures.lag[1]:.2f} |",
        f"| interruption to the mouth shut, {len(shut)} times | {way} | {_range(shut)}, median {np.median(shut):.2f} |",
        f"| mouth at most open 2 s after it | {way} | {figures.silent:.2f} |",
        f"| pictures shown a second; stalls | {way} | {figures.shown:.1f}; {figures.stalls} |",
    ]


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f} s"


def _keep(folder: Path, way: str, figures: Figures) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plain = dataclasses.asdict(figures) | {"late": figures.late.tolist()}
    (folder / f"page-{way}.json").write_text(json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
