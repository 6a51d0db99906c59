"""Two people side by side on one wall, each with a sound of their own: who of them talks, and where they are.

The picture is two square portraits next to each other. Wall, light and shoulders of a portrait end before its edges, so
that nothing tells where one ends but the quiet wall itself.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from ...config import AUDIO_SAMPLE_RATE
from .appearance import Prompt
from .canvas import View
from .face import MIDDLE, Geometry
from .identity import Identity
from .sample import Sample, acted, person
from .voices import Utterance, utterance

MANNERS = {"both": 0.35, "turns": 0.3, "one": 0.25, "nobody": 0.1}
"""How two people talk, and how often in training: at once, in turns, one while the other listens, not at all."""
MASKS = ("heads", "halves", "faces")
"""What a mask may show of a person: the head with its hair, a half of the picture, the face from brow to chin."""
_PAIRED = 0x2FACE
_TURN, _PAUSE = (0.8, 1.8), 0.12
"""Seconds of a turn, and of the silence before the other's."""
_FADE = 160
"""Samples over which a turn begins and ends: 10 ms."""
_HEAD = (256.0, 235.0, 142.0, 176.0)
"""Middle and radii of a head with its hair, in drawing units."""
_WORDLESS = 1_000_000
"""Added to the seed of a sound in which nobody speaks, to find another."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """An example of two people.

    Attributes:
        people: the left one and the right one, each as if alone; wall and prompt are the same.
        manner: one of MANNERS.
    """

    people: tuple[Sample, Sample]
    manner: str

    @property
    def prompt(self) -> Prompt:
        """What is asked of both."""
        return self.people[0].prompt

    @property
    def reference(self) -> np.ndarray:
        """Both, neutral, with their mouths shut: uint8 [H, 2 H, 3]."""
        return np.concatenate([one.reference for one in self.people], 1)

    @property
    def drawn(self) -> np.ndarray:
        """The true video, uint8 [n, H, 2 H, 3].

        Raises:
            ModelError: it was not drawn.
        """
        return np.concatenate([one.drawn for one in self.people], 2)

    def faces(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part of a picture or video [..., H, 2 H, 3] that belongs to each, [..., H, H, 3]."""
        middle = frames.shape[-2] // 2
        return frames[..., :middle, :], frames[..., middle:, :]

    def masks(self, kind: str = "heads") -> np.ndarray:
        """Where each of them is, bool [2, H, 2 H], in one of the ways of MASKS."""
        size = self.people[0].reference.shape[0]
        masks = np.zeros((2, size, 2 * size), bool)
        for k, one in enumerate(self.people):
            masks[k, :, k * size : (k + 1) * size] = _mask(one, kind)
        return masks


def pair(
    seed: int,
    seconds: float,
    *,
    held_out: bool = False,
    size: int = 128,
    manner: str | None = None,
    draw: bool = True,
) -> Pair:
    """The pair of a seed, the same on every machine with the same version of espeak-ng.

    Args:
        seconds: length of the sounds.
        held_out: people, voices and languages that training never sees.
        size: pixels of each person's square, a multiple of 64.
        manner: one of MANNERS; None: any.
        draw: whether to draw the video.

    Raises:
        MissingFilesError: no espeak-ng. SizeError: not a multiple of 64.
    """
    rng = np.random.default_rng([_PAIRED, seed, int(held_out)])
    drawn = str(rng.choice(list(MANNERS), p=list(MANNERS.values())))
    manner = manner or drawn
    left, right = on_one_wall(person(2 * seed, held_out), person(2 * seed + 1, held_out))
    prompt = Prompt.of(2 * seed + held_out, None)
    sounds = _sounds(rng, manner, [_talk(2 * seed + k, seconds, held_out) for k in range(2)])
    first, second = (acted(who, prompt, s, size, size, draw) for who, s in zip((left, right), sounds, strict=True))
    return Pair((first, second), manner)


def on_one_wall(left: Identity, right: Identity) -> tuple[Identity, Identity]:
    """Both, in front of the left one's wall."""
    return left, dataclasses.replace(right, background_word=left.background_word, background=left.background)


def _talk(seed: int, seconds: float, held_out: bool) -> Utterance:
    """The first of a seed's sounds in which somebody speaks."""
    tries = (utterance(seed + _WORDLESS * k, seconds, held_out) for k in itertools.count())
    return next(sound for sound in tries if sound.speech.any())


def _sounds(rng: np.random.Generator, manner: str, talk: list[Utterance]) -> list[Utterance]:
    """What is left of two people's talk where they do not both talk all the time."""
    if manner == "turns":
        return [_gated(sound, gate) for sound, gate in zip(talk, _turns(rng, len(talk[0].samples)), strict=True)]
    listener = int(rng.integers(2))
    silent = {"one": (listener,), "nobody": (0, 1)}.get(manner, ())
    nothing = np.zeros_like(talk[0].samples)
    return [Utterance(nothing, nothing, "silence") if k in silent else sound for k, sound in enumerate(talk)]


def _turns(rng: np.random.Generator, n: int) -> np.ndarray:
    """When each may talk: float32 [2, n], 0..1, never both at once."""
    gates, who, at = np.zeros((2, n), np.float32), int(rng.integers(2)), 0
    while at < n:
        length = round(rng.uniform(*_TURN) * AUDIO_SAMPLE_RATE)
        gates[who, at + round(_PAUSE * AUDIO_SAMPLE_RATE) : at + length - _FADE] = 1
        who, at = 1 - who, at + length
    fade = np.full(_FADE, 1 / _FADE, np.float32)
    return np.stack([np.convolve(gate, fade, "same") for gate in gates])


def _gated(sound: Utterance, gate: np.ndarray) -> Utterance:
    return Utterance(sound.samples * gate, sound.speech * gate, f"{sound.description}, in turns")


def _mask(one: Sample, kind: str) -> np.ndarray:
    """Where one person is in the own square, bool [H, H]."""
    size = one.reference.shape[0]
    if kind == "halves":
        return np.ones((size, size), bool)
    view, (y, x) = View(size, size), np.mgrid[:size, :size] + 0.5
    if kind == "heads":
        middle_x, middle_y, rx, ry = _HEAD
        ((cx, cy),) = view.to_pixels([(middle_x, middle_y)])
        return np.square((x - cx) / (rx * view.scale)) + np.square((y - cy) / (ry * view.scale)) <= 1
    where = Geometry.of(one.identity)
    side = min(px for px, _ in where.outline)
    (left, top), (right, bottom) = view.to_pixels([(side, where.outline[0][1]), (2 * MIDDLE - side, where.chin_y)])
    return (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
