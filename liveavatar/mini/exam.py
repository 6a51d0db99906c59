"""What the miniature is asked to do, for people it never saw, and what comes out in figures."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..config import AUDIO_SAMPLE_RATE, FPS
from .figures import distance, hits, lips, table
from .judge import Maker, VideoRequest
from .world import measure
from .world.appearance import Prompt
from .world.artist import artist
from .world.palette import BACKGROUNDS
from .world.sample import Sample, person, sample

SEED = 7_000
"""The first person judged; the next ones follow."""
LIPS_SECONDS, LIKENESS_SECONDS, QUIET_SECONDS, OBEY_SECONDS = 6.0, 3.0, 3.0, 2.0
WINDOW = FPS
"""Frames over which likeness is averaged: one second."""
_REBUILT = 60
"""Frames drawn and rebuilt for it, whole blocks; the first of them let the VAE forget that the picture stood still."""
_OBEY_SEED = SEED + 500
_ASKED_MOODS = ("cheerful", "stern")
_SETTLED = 12
"""Frames after which a prompt's wall and mood should be there."""

Log = Callable[[str], None]


class Exam:
    """Everything one model is asked.

    Args:
        engine: makes the videos.
        people: how many held-out people are judged, the same ones in every part.
        size: pixels of the square pictures.
        log: hears of the progress.
    """

    def __init__(self, engine: Maker, people: int, size: int = 128, log: Log = lambda text: None):
        self.engine, self.people, self.size, self.log = engine, people, size, log

    @functools.cached_property
    def talkers(self) -> list[Sample]:
        """The people, with prompts of all kinds; one more lends the last one a wrong sound."""
        return [self.example(i, LIPS_SECONDS, draw=True) for i in range(self.people + 1)]

    @functools.cached_property
    def neutrals(self) -> list[Sample]:
        """The people, with prompts that ask for nothing but what their reference shows."""
        return [plain(self.example(i, LIKENESS_SECONDS)) for i in range(self.people)]

    def example(self, index: int, seconds: float, draw: bool = False) -> Sample:
        """A person, a prompt of any kind and a sound of this length."""
        return sample(SEED + index, seconds, held_out=True, height=self.size, width=self.size, draw=draw)

    def request(self, example: Sample, fault: str = "", index: int = 0) -> VideoRequest:
        """What is asked of the studio; the fault "other sound" takes that of the next person."""
        wave = example.sound.samples
        other = np.resize(self.talkers[index + 1].sound.samples, len(wave)) if fault == "other sound" else None
        return VideoRequest(example.reference, wave, example.prompt.text, fault=fault, other_wave=other)

    def make(self, example: Sample, fault: str = "", index: int = 0) -> np.ndarray:
        """The whole video of an example: uint8 [n, H, W, 3]."""
        return np.concatenate(list(self.engine.frames(self.request(example, fault, index))))

    def talking(self, fault: str = "") -> dict[str, object]:
        """Lips over all people, and the distance to the true video outside mouth and eyes against the VAE's own."""
        seen, true, off = [], [], []
        for index, example in self._each("talking", self.talkers[: self.people], fault):
            made, truth = self.make(example, fault, index), example.drawn
            n = min(len(made), len(truth))
            seen.append(measure.opening(made[:n], example.identity))
            true.append(example.track.opening[:n])
            off.append(distance(made[2 * FPS : n], truth[2 * FPS : n], mask_of(example)))
        found, (vae_lips, vae_off) = lips(seen, true), self._vae_alone
        return {
            "lip_correlation": found.correlation,
            "best_lag_frames": found.lag,
            "lip_correlation_by_person": [lips([s], [t]).correlation for s, t in zip(seen, true, strict=True)],
            "vae_lip_correlation": vae_lips,
            "truth_distance": round(float(np.mean(off)), 3),
            "vae_truth_distance": round(vae_off, 3),
            "truth_ratio": round(float(np.mean(off)) / max(vae_off, 1e-6), 3),
        }

    @functools.cached_property
    def _vae_alone(self) -> tuple[float, float]:
        """Lip correlation of the true videos when they only went through the VAE, and their distance to themselves."""
        seen, true, off = [], [], []
        for _, example in self._each("the VAE alone", self.talkers[: self.people]):
            rebuilt = self.engine.rebuilt(example.reference, example.drawn)
            n = len(rebuilt)
            seen.append(measure.opening(rebuilt, example.identity))
            true.append(example.track.opening[:n])
            off.append(distance(rebuilt[2 * FPS :], example.drawn[2 * FPS : n], mask_of(example)))
        return lips(seen, true).correlation, float(np.mean(off))

    def identity(self, fault: str = "") -> dict[str, object]:
        """Likeness to the reference at second 2, where the prompt asks for nothing that the reference does not show.

        Ratios of the distance outside mouth and eyes to that of the true video when it only went through the VAE. The
        head moves in both, so a person who is kept well scores 1. One who does not move at all scores less: whether
        the video is the right one is what `truth_ratio` of `talking` says.
        """
        stop, made = stop_of(2), []
        for index, example in self._each("identity", self.neutrals, fault):
            window = self.make(example, fault, index)[stop - WINDOW : stop]
            made.append(distance(window, example.reference, mask_of(example)))
        own = self._own_distances
        ratios = [m / o for m, o in zip(made, own, strict=True)]
        return {
            "at_2_s": round(float(np.mean(ratios)), 3),
            "at_2_s_by_person": [round(r, 3) for r in ratios],
            "distance": round(float(np.mean(made)), 3),
            "vae_distance": round(float(np.mean(own)), 3),
        }

    @functools.cached_property
    def _own_distances(self) -> list[float]:
        return [self.own_distance(example, stop_of(2)) for example in self.neutrals]

    def own_distance(self, example: Sample, stop: int) -> float:
        """Distance to the reference of the true second that ends before frame `stop`, when the VAE has rebuilt it."""
        truth = drawn(example, range(stop - _REBUILT, stop))
        window = self.engine.rebuilt(example.reference, truth)[-WINDOW:]
        return distance(window, example.reference, mask_of(example))

    def fault(self, name: str) -> dict[str, object]:
        """What talking and identity become when something is done wrong."""
        talking, identity = self.talking(name), self.identity(name)
        kept = {key: talking[key] for key in ("lip_correlation", "best_lag_frames", "truth_ratio")}
        return kept | {"identity_at_2_s": identity["at_2_s"]}

    def silence(self) -> dict[str, object]:
        """How far mouths are open while nothing is heard."""
        quiet = np.zeros(int(QUIET_SECONDS * AUDIO_SAMPLE_RATE), np.float32)
        openings = []
        for _, example in self._each("silence", self.talkers[: self.people]):
            blocks = self.engine.frames(VideoRequest(example.reference, quiet, example.prompt.text))
            openings.append(float(measure.opening(np.concatenate(list(blocks)), example.identity).mean()))
        return {"mean_opening": round(float(np.mean(openings)), 4), "worst_person": round(max(openings), 4)}

    def obedience(self, tries: int) -> dict[str, object]:
        """Share of prompts whose wall and whose mood are seen, and which word was taken for which."""
        walls, moods = [], []
        for _, asked in self._each("obedience", [command(i, self.size) for i in range(tries)]):
            made = self.make(asked)[_SETTLED:]
            walls.append((str(asked.prompt.background), measure.background_word(made)))
            moods.append((str(asked.prompt.mood), measure.mood(made, asked.identity)))
        shares = {"tries": tries, "wall": hits(walls), "mood": hits(moods)}
        return shares | {"wall_asked_and_seen": table(walls), "mood_asked_and_seen": table(moods)}

    def speed(self) -> dict[str, object]:
        """Seconds to the first frames, encoders read anew from their files, and frames per second from then on."""
        self.log("speed")
        example = self.talkers[0]
        wanted = self.request(example)
        list(self.engine.frames(dataclasses.replace(wanted, wave=wanted.wave[:AUDIO_SAMPLE_RATE])))
        start = time.perf_counter()
        stream = iter(self.engine.frames(wanted))
        next(stream)
        first = time.perf_counter()
        rest = sum(len(block) for block in stream)
        rate = rest / (time.perf_counter() - first)
        return {"first_frames_s": round(first - start, 3), "frames_per_second": round(rate, 2)}

    def _each(self, what: str, examples: Sequence[Sample], fault: str = "") -> Iterator[tuple[int, Sample]]:
        """All examples with their numbers, telling the log."""
        for index, example in enumerate(examples):
            self.log(f"{what}{f' with {fault}' if fault else ''}: {index + 1} of {len(examples)}")
            yield index, example


def stop_of(second: float) -> int:
    """The frame after the one-second window in whose middle a second lies."""
    return int(second * FPS) + (WINDOW + 1) // 2


def plain(example: Sample) -> Sample:
    """The same with a prompt that asks for what the reference shows: the person's own wall, and no mood."""
    rng = np.random.default_rng([SEED, example.identity.seed])
    return dataclasses.replace(example, prompt=Prompt.asking(rng, example.identity, None, None), frames=None)


def command(number: int, size: int = 128) -> Sample:
    """A person of its own for every try, asked for a wall that is not the person's and for a mood, in equal shares."""
    words = list(BACKGROUNDS)
    wall, mood = words[number % len(words)], _ASKED_MOODS[(number + number // len(words)) % 2]
    seeds = itertools.count(_OBEY_SEED + number, 1_000)
    seed = next(seed for seed in seeds if person(seed, held_out=True).background_word != wall)
    example = sample(seed, OBEY_SECONDS, held_out=True, height=size, width=size, draw=False)
    prompt = Prompt.asking(np.random.default_rng([_OBEY_SEED, number]), example.identity, wall, mood)
    return dataclasses.replace(example, prompt=prompt)


def drawn(example: Sample, frames: Sequence[int]) -> np.ndarray:
    """The true pictures of some frames of an example: uint8 [n, H, W, 3]."""
    appearance = example.prompt.appearance(example.identity)
    height, width = example.reference.shape[:2]
    return artist(example.identity, appearance, height, width).clip(example.track[i] for i in frames)


def mask_of(example: Sample) -> np.ndarray:
    """bool [H, W]: outside mouth and eyes."""
    return measure.outside_mouth(example.identity, *example.reference.shape[:2])
