"""The demo of two: a picture of two people whom training never sees, their masks, and a voice for each.

python -m liveavatar.mini.world.pair_demo FOLDER
"""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import numpy as np
from PIL import Image

from ...config import AUDIO_SAMPLE_RATE
from .appearance import Prompt
from .identity import Identity
from .pair import Pair, on_one_wall
from .portrait import DEMO
from .sample import acted
from .voices import Utterance, speak

SIZE = 256
"""Pixels of each person's square."""
NEIGHBOUR = 9
"""Seed of the one beside the demo's person; odd seeds are held out."""
LINES = (
    ("en-us+f3", 178, 45, "Hello! Who are you, here beside me?"),
    ("en-gb+m5", 165, 40, "I am your neighbour. There is room for two!"),
)
"""Voice, speed, pitch and words of the left one, and then of the right one, who waits until the left one has spoken."""
_GAP = 0.25
_PEAK = 10 ** (-3 / 20)


def demo_people() -> tuple[Identity, Identity]:
    """The demo's person, and who stands at the right of it."""
    return on_one_wall(Identity.of(DEMO), Identity.of(NEIGHBOUR))


def demo_pair() -> Pair:
    """Both, and what they say."""
    left, right = demo_people()
    first, second = (_spoken(*line) for line in LINES)
    waits = np.zeros(len(first) + round(_GAP * AUDIO_SAMPLE_RATE), np.float32)
    sounds = (Utterance(s, s, line[3]) for s, line in zip((first, np.concatenate([waits, second])), LINES, strict=True))
    one, other = (
        acted(who, Prompt(""), s, SIZE, SIZE, draw=False) for who, s in zip((left, right), sounds, strict=True)
    )
    return Pair((one, other), "turns")


def write_demo(folder: Path) -> list[Path]:
    """Write `pair.png`, and `pair_left` and `pair_right` as WAV and as mask; returns the files."""
    shown = demo_pair()
    files = [folder / "pair.png"]
    picture = Image.fromarray(shown.reference).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    picture.save(files[0], optimize=True)
    for side, one, mask in zip(("left", "right"), shown.people, shown.masks(), strict=True):
        files += [folder / f"pair_{side}_mask.png", folder / f"pair_{side}.wav"]
        Image.fromarray(mask).save(files[-2], optimize=True)
        with wave.open(str(files[-1]), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(AUDIO_SAMPLE_RATE)
            sound.writeframes(np.rint(one.sound.samples * 32767).astype("<i2").tobytes())
    return files


def _spoken(voice: str, speed: int, pitch: int, words: str) -> np.ndarray:
    """With a peak of -3 dB, float32 [n] at 16 kHz."""
    samples = speak(words, voice, speed, pitch)
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    samples = samples[loud[0] : loud[-1] + round(0.06 * AUDIO_SAMPLE_RATE)]
    return np.asarray(samples * (_PEAK / np.abs(samples).max()), np.float32)


def main() -> None:
    """Write into the folder named first."""
    for file in write_demo(Path(sys.argv[1])):
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
