"""What the miniature is asked to do with two people in one picture, and what comes out in figures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from ..config import FPS
from .exam import SEED, WINDOW, Log, drawn, mask_of, plain, stop_of
from .figures import distance, lips
from .judge import Maker, VideoRequest
from .sheet import Row
from .world import measure
from .world.pair import Pair, pair
from .world.sample import Sample

TALK_SECONDS, LISTEN_SECONDS, SHEET_SECONDS = 6.0, 3.0, 5
_REBUILT = 60
"""Frames drawn and rebuilt for likeness, whole blocks; the first of them let the VAE forget that the picture stood."""
_OTHERS = 1_000
"""Added to the seed for pairs of which one listens."""

Pictures = tuple[np.ndarray, np.ndarray]
"""Of the left one and of the right one."""


class PairExam:
    """Everything one model is asked of two people.

    Args:
        engine: makes the videos.
        pairs: how many held-out pairs are judged.
        size: pixels of each person's square.
        log: hears of the progress.
    """

    def __init__(self, engine: Maker, pairs: int, size: int = 128, log: Log = lambda text: None):
        self.engine, self.pairs, self.size, self.log = engine, pairs, size, log

    @functools.cached_property
    def talkers(self) -> list[Pair]:
        """Pairs who talk at once, with prompts of all kinds."""
        return [self.example(i, TALK_SECONDS, "both", draw=True) for i in range(self.pairs)]

    @functools.cached_property
    def listeners(self) -> list[Pair]:
        """Pairs of whom one listens, with prompts that ask for nothing but what their reference shows."""
        return [_plain(self.example(_OTHERS + i, LISTEN_SECONDS, "one")) for i in range(self.pairs)]

    def example(self, index: int, seconds: float, manner: str, draw: bool = False) -> Pair:
        """A pair that talks in one manner."""
        return pair(SEED + index, seconds, held_out=True, size=self.size, manner=manner, draw=draw)

    def make(self, example: Pair) -> Pictures:
        """The whole video of a pair."""
        first, second = (one.sound.samples for one in example.people)
        masks = example.masks()
        request = VideoRequest(example.reference, first, example.prompt.text, further=(second,), masks=masks)
        return example.faces(np.concatenate(list(self.engine.frames(request))))

    def talking(self) -> dict[str, object]:
        """How the mouths of two who talk at once follow their own sound, and the other's; likewise the true video."""
        seen, true, other, off = [], [], [], []
        vae_seen, vae_true, vae_off = [], [], []
        for example in self._each("two talk", self.talkers):
            made, rebuilt = self.make(example), self.engine.rebuilt(example.reference, example.drawn)
            for k, (one, face, again) in enumerate(zip(example.people, made, example.faces(rebuilt), strict=True)):
                n = min(len(face), len(one.drawn))
                seen.append(measure.opening(face[:n], one.identity))
                true.append(one.track.opening[:n])
                other.append(example.people[1 - k].track.opening[:n])
                off.append(distance(face[2 * FPS : n], one.drawn[2 * FPS : n], mask_of(one)))
                vae_seen.append(measure.opening(again, one.identity))
                vae_true.append(one.track.opening[: len(again)])
                vae_off.append(distance(again[2 * FPS :], one.drawn[2 * FPS : len(again)], mask_of(one)))
        own = lips(seen, true)
        return {
            "own_lips": own.correlation,
            "best_lag_frames": own.lag,
            "own_lips_by_face": [lips([s], [t]).correlation for s, t in zip(seen, true, strict=True)],
            "others_lips": lips(seen, other).correlation,
            "others_lips_by_face": [lips([s], [o]).correlation for s, o in zip(seen, other, strict=True)],
            "sounds_correlation": lips(true, other).correlation,
            "opening_share": _share(seen, true),
            "opening_share_by_face": [_share([s], [t]) for s, t in zip(seen, true, strict=True)],
            "vae_opening_share": _share(vae_seen, vae_true),
            "vae_own_lips": lips(vae_seen, vae_true).correlation,
            "truth_ratio": round(float(np.mean(off) / max(np.mean(vae_off), 1e-6)), 3),
        }

    def listening(self) -> dict[str, object]:
        """How far the mouth of the one who listens is open, and the likeness of both at second 2 (see `Exam`)."""
        quiet, likeness, stop = [], [], stop_of(2)
        for example in self._each("one listens", self.listeners):
            truth = np.concatenate([drawn(one, range(stop - _REBUILT, stop)) for one in example.people], 2)
            rebuilt = example.faces(self.engine.rebuilt(example.reference, truth)[-WINDOW:])
            for one, face, again in zip(example.people, self.make(example), rebuilt, strict=True):
                if not one.sound.speech.any():
                    quiet.append(float(measure.opening(face, one.identity).mean()))
                own = distance(again, one.reference, mask_of(one))
                likeness.append(distance(face[stop - WINDOW : stop], one.reference, mask_of(one)) / own)
        return {
            "silent_opening": round(float(np.mean(quiet)), 4),
            "worst_silent_opening": round(max(quiet), 4),
            "identity_at_2_s": round(float(np.mean(likeness)), 3),
            "identity_at_2_s_by_face": [round(ratio, 3) for ratio in likeness],
        }

    def _each(self, what: str, examples: Sequence[Pair]) -> Iterator[Pair]:
        """All examples, telling the log."""
        for index, example in enumerate(examples):
            self.log(f"{what}: {index + 1} of {len(examples)}")
            yield example


def pair_sheet(exam: PairExam, pairs: int) -> list[Row]:
    """Two rows a pair that talks in turns: the reference, then frames at which one of them talks loudest."""
    rows = []
    for index in range(pairs):
        exam.log(f"sheet: pair {index + 1} of {pairs}")
        example = exam.example(index, SHEET_SECONDS + 0.2, "turns")
        made = np.concatenate(exam.make(example), 2)
        shown = _loudest(example, SHEET_SECONDS)
        captions = ["reference", *(f"{i / FPS:.1f} s, {_who(example, i)}" for i in shown)]
        asked = f'"{example.prompt.text}"' if example.prompt.text else "nothing"
        rows.append(Row([example.reference, *made[shown]], f"asked: {asked}", captions))
    return rows


def _share(seen: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> float:
    """How far mouths open, of how far they should: a correlation does not tell a mouth that hardly opens."""
    return round(float(np.concatenate(seen).mean() / max(np.concatenate(true).mean(), 1e-6)), 3)


def _loudest(example: Pair, count: int) -> list[int]:
    """In each of so many equal stretches, the frame at which a mouth should be open widest."""
    opening = np.maximum(*(one.track.opening for one in example.people))
    stretches = np.array_split(np.arange(len(opening)), count)
    return [int(stretch[opening[stretch].argmax()]) for stretch in stretches]


def _who(example: Pair, frame: int) -> str:
    """Whose mouth should be open."""
    left, right = (float(one.track.opening[frame]) for one in example.people)
    return "left talks" if left >= right else "right talks"


def _plain(example: Pair) -> Pair:
    """The same with a prompt that asks for nothing."""
    first, second = example.people
    asked = plain(first)
    both: tuple[Sample, Sample] = (asked, dataclasses.replace(second, prompt=asked.prompt, frames=None))
    return dataclasses.replace(example, people=both)
