"""A stock of spoken sentences, made once per training and kept in its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..world.texts import HELD_OUT_LANGUAGES, WORDS, text
from ..world.voices import HELD_OUT_VARIANTS, VARIANTS, speak

TRAINING, HELD_OUT = 480, 72
"""Sentences to learn from, and to be judged by."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sentences:
    """Sentences as 16 kHz samples, float32 [n] each, of equal loudness.

    Attributes:
        training: in the voices and languages of the training.
        held_out: in voices and languages that training never hears.
    """

    training: tuple[np.ndarray, ...]
    held_out: tuple[np.ndarray, ...]


def spoken_sentences(
    path: Path, seed: int, log: Callable[[str], None], training: int = TRAINING, held_out: int = HELD_OUT
) -> Sentences:
    """The stock in a file; where there is none, it is spoken and written.

    Raises:
        MissingFilesError: nothing is there and espeak-ng is not on this machine.
    """
    if not path.is_file():
        log(f"sound: {training + held_out} sentences are spoken")
        parts = [_sentence(seed, i, i >= training) for i in range(training + held_out)]
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".tmp.npz")
        np.savez(beside, samples=np.concatenate(parts), lengths=[len(p) for p in parts], training=training)
        beside.replace(path)
    with np.load(path) as stock:
        ends = np.cumsum(stock["lengths"])[:-1]
        spoken = [_even(part) for part in np.split(stock["samples"], ends)]
        count = int(stock["training"])
    return Sentences(tuple(spoken[:count]), tuple(spoken[count:]))


def _sentence(seed: int, i: int, held_out: bool) -> np.ndarray:
    """int16 [n]: some words in one voice."""
    rng = np.random.default_rng([seed, i])
    languages = HELD_OUT_LANGUAGES if held_out else tuple(w for w in WORDS if w not in HELD_OUT_LANGUAGES)
    language = str(rng.choice(languages))
    voice = f"{language}+{rng.choice(HELD_OUT_VARIANTS if held_out else VARIANTS)}"
    words = text(rng, language, int(rng.integers(2, 12)))
    wave = speak(words, voice, int(rng.integers(110, 200)), int(rng.integers(15, 85)))
    return np.round(np.clip(wave, -1, 1) * 32767).astype(np.int16)


def _even(samples: np.ndarray) -> np.ndarray:
    """With a root mean square of 0.08."""
    wave = samples.astype(np.float32) / 32768
    return np.asarray(wave * (0.08 / max(1e-6, float(np.sqrt(np.mean(wave**2))))), np.float32)
