"""Judge the miniature: `python -m liveavatar.mini.evaluate [--model DIR] [--people N] [--long SECONDS]`.

People, voices and languages are held out. Lips, faces, walls and moods are read from pixels. Every figure is also
taken with something done wrong (no LoRA, no sink, the sound of somebody else), to see that it can fail.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np

from ..components import FolderComponents, open_components
from ..config import FPS
from ..errors import ModelError
from .judge import FAULTS, Studio, Take
from .world import measure
from .world.artist import Artist
from .world.looks import Prompt
from .world.palette import BACKGROUNDS
from .world.pose import Pose
from .world.sample import Sample, person, sample

_SEED = 7_000
_SECONDS = 6.0
_MOST_LAG = 5


@dataclasses.dataclass(frozen=True)
class Lips:
    """How the mouth follows the sound.

    Attributes:
        correlation: of the opening in the pixels with the true one, over all frames of all people.
        lag: frames by which shifting the video correlates best; positive when the picture is late.
    """

    correlation: float
    lag: int


def lips(seen: list[np.ndarray], true: list[np.ndarray]) -> Lips:
    """Compare mouth openings, one pair of arrays [n] per video."""

    def at(lag: int) -> float:
        pairs = [
            (s[max(0, lag) :][: len(t) - abs(lag)], t[max(0, -lag) :][: len(t) - abs(lag)])
            for s, t in zip(seen, true, strict=True)
        ]
        a, b = (np.concatenate(x) for x in zip(*pairs, strict=True))
        return float(np.corrcoef(a, b)[0, 1]) if a.std() > 1e-6 else 0.0

    lags = {lag: at(lag) for lag in range(-_MOST_LAG, _MOST_LAG + 1)}
    return Lips(round(lags[0], 4), max(lags, key=lambda k: lags[k]))


def distance(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute difference of pictures uint8 [..., H, W, 3] where `mask` [H, W] is set, 0..255."""
    return float(np.abs(a.astype(np.float32) - b.astype(np.float32))[..., mask, :].mean())


class Evaluation:
    """All figures of one model.

    Args:
        studio: makes the videos.
        people: how many held-out people are judged.
        size: pixels of the square pictures.
    """

    def __init__(self, studio: Studio, people: int, size: int = 128):
        self.studio, self.size = studio, size
        self.examples = [sample(_SEED + i, _SECONDS, held_out=True, height=size, width=size) for i in range(people)]

    def take(self, example: Sample, fault: str = "", index: int = 0) -> np.ndarray:
        """The video of an example: uint8 [n, H, W, 3]."""
        other = self.examples[(index + 1) % len(self.examples)].sound.heard
        wanted = Take(example.reference, example.sound.heard, example.prompt.text, fault=fault, other_wave=other)
        return np.concatenate(list(self.studio.frames(wanted)))

    def talking(self, fault: str = "") -> dict[str, object]:
        """Lip sync and likeness over all examples."""
        seen, true, off, own = [], [], [], []
        for index, example in enumerate(self.examples):
            frames, truth = self.take(example, fault, index), example.drawn
            n = min(len(frames), len(truth))
            seen.append(measure.opening(frames[:n], example.identity))
            true.append(example.track.opening[:n])
            mask = measure.outside_mouth(example.identity, self.size, self.size)
            off.append(distance(frames[FPS * 2 : n], truth[FPS * 2 : n], mask))
            rebuilt = self.studio.rebuilt(example.reference, truth)
            own.append(distance(rebuilt[FPS * 2 :], truth[FPS * 2 : len(rebuilt)], mask))
        found = lips(seen, true)
        return {
            "lip_correlation": found.correlation,
            "best_lag_frames": found.lag,
            "outside_distance": round(float(np.mean(off)), 3),
            "vae_distance": round(float(np.mean(own)), 3),
            "outside_ratio": round(float(np.mean(off) / np.mean(own)), 3),
        }

    def silence(self) -> float:
        """Mean opening of the mouth while nothing is heard."""
        quiet = np.zeros(3 * 16_000, np.float32)
        openings = []
        for example in self.examples:
            frames = np.concatenate(list(self.studio.frames(Take(example.reference, quiet, example.prompt.text))))
            openings.append(measure.opening(frames, example.identity).mean())
        return round(float(np.mean(openings)), 4)

    def obedience(self, tries: int) -> dict[str, float]:
        """Share of prompts whose wall and whose mood are to be seen."""
        right: dict[str, list[bool]] = {"wall": [], "mood": []}
        for i in range(tries):
            rng = np.random.default_rng([_SEED, i])
            who = person(_SEED + 500 + i, held_out=True)
            others = [w for w, colour in BACKGROUNDS.items() if colour != who.background]
            wall, mood = str(rng.choice(others)), str(rng.choice(["cheerful", "stern"]))
            prompt = Prompt.asking(rng, who, wall, mood)
            wave = self.examples[i % len(self.examples)].sound.heard[: 2 * 16_000]
            reference = Artist(who, None, self.size, self.size).frame(Pose())
            frames = np.concatenate(list(self.studio.frames(Take(reference, wave, prompt.text))))
            right["wall"].append(measure.background_word(frames[12:]) == wall)
            right["mood"].append(measure.mood(frames[12:], who) == mood)
        return {name: round(float(np.mean(hits)), 3) for name, hits in right.items()}

    def endurance(self, seconds: float) -> dict[str, float]:
        """Distance to the reference outside the mouth, against the VAE's own, at second 2 and at the end."""
        example = self.examples[0]
        wave = np.resize(example.sound.heard, int(seconds * 16_000))
        wanted = Take(example.reference, wave, "A person is talking.")
        mask = measure.outside_mouth(example.identity, self.size, self.size)
        still = np.repeat(example.reference[None], 48, 0)
        own = distance(self.studio.rebuilt(example.reference, still)[-12:], still[-12:], mask)
        kept, made = {}, 0
        for block in self.studio.frames(wanted):
            for second in (2.0, seconds - 1.0):
                if made <= second * FPS < made + len(block):
                    kept[second] = distance(block, np.repeat(example.reference[None], len(block), 0), mask)
            made += len(block)
        return {f"ratio_at_{second:g}_s": round(value / own, 3) for second, value in kept.items()}

    def speed(self) -> dict[str, float]:
        """Seconds to the first frames after loading, and frames per second end to end of the stream."""
        example = self.examples[0]
        wanted = Take(example.reference, example.sound.heard, example.prompt.text)
        list(self.studio.frames(dataclasses.replace(wanted, wave=wanted.wave[:16_000])))
        start = time.perf_counter()
        stream = self.studio.frames(wanted)
        count = len(next(stream))
        first = time.perf_counter()
        count += sum(len(b) for b in stream)
        return {
            "first_frames_s": round(first - start, 3),
            "frames_per_second": round((count - 12) / (time.perf_counter() - first), 2),
        }


def main() -> int:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m liveavatar.mini.evaluate", description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--long", type=float, help="also judge the likeness after so many seconds")
    parser.add_argument("--out", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    components = open_components(arguments.model)
    if not isinstance(components, FolderComponents):
        raise ModelError("The untrained miniature cannot be judged.", "Give a trained model's folder.")
    evaluation = Evaluation(Studio(components), arguments.people)
    figures: dict[str, object] = {"speed": evaluation.speed()}
    figures |= {f"talking, {fault}" if fault else "talking": evaluation.talking(fault) for fault in FAULTS}
    figures |= {"silent_opening": evaluation.silence(), "obedience": evaluation.obedience(arguments.tries)}
    if arguments.long:
        figures["endurance"] = evaluation.endurance(arguments.long)
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
