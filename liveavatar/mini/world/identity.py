"""A person of the drawn world: everything about a face that stays while it talks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from .palette import BACKGROUNDS, CLOTHES, HAIR, IRISES, RGB, SKINS, SkinTones, darker, mix

STYLES = ("bob", "long", "short", "curly", "bun", "crop")
"""Of the hair."""
COLLARS = ("round", "crew", "shirt", "roll")
GLASSES = ("none", "round", "square")
_DRAWN = 0x1DE27

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who is drawn. Lengths are factors around 1 of the average face unless noted; colours are RGB, 0..255.

    Attributes:
        seed: of `Identity.of`, for captions.
        face_width, jaw: 0.92..1.1; -1 (pointed) to 1 (square).
        chin: 0..1, short to long face.
        skin: base colour.
        hair_style, hair_word, hair: cut, word in a prompt, colour.
        iris, eye_size, eye_spacing: colour, factors.
        brow_weight, brow_arch: thickness factor, -1 (flat) to 1 (arched).
        nose, mouth_width: factors.
        clothes, collar: colour and cut.
        background_word, background: word in a prompt and the colour behind the person.
        glasses: one of GLASSES.
        freckles, beard, earrings, lashes: whether there are any.
    """

    seed: int
    face_width: float
    jaw: float
    chin: float
    skin: RGB
    hair_style: str
    hair_word: str
    hair: RGB
    iris: RGB
    eye_size: float
    eye_spacing: float
    brow_weight: float
    brow_arch: float
    nose: float
    mouth_width: float
    clothes: RGB
    collar: str
    background_word: str
    background: RGB
    glasses: str
    freckles: bool
    beard: bool
    earrings: bool
    lashes: bool

    @property
    def tones(self) -> SkinTones:
        """The tints of the skin."""
        return SkinTones.of(self.skin)

    @property
    def brow(self) -> RGB:
        """Colour of the brows: hair, but always darker than the skin."""
        if sum(self.hair) < sum(self.skin) - 120:
            return darker(self.hair, 0.3)
        return darker(mix(self.hair, self.skin, 0.5), 0.5)

    @classmethod
    def of(cls, seed: int) -> Identity:
        """The person of a seed >= 0: the same on every machine. Odd seeds are kept out of training."""
        rng = np.random.default_rng([_DRAWN, seed])
        style = _pick(rng, STYLES)
        hair_word = _pick(rng, tuple(HAIR), (0.28, 0.2, 0.17, 0.17, 0.11, 0.07))
        background_word = _pick(rng, tuple(BACKGROUNDS))
        manly = style in ("short", "crop")
        return cls(
            seed=seed,
            face_width=float(rng.uniform(0.93, 1.09)),
            jaw=float(rng.uniform(-0.7, 0.5) + 0.5 * manly),
            chin=float(rng.uniform(0, 1)),
            skin=_jitter(rng, _pick(rng, SKINS), 5),
            hair_style=style,
            hair_word=hair_word,
            hair=_jitter(rng, HAIR[hair_word], 9),
            iris=_jitter(rng, _pick(rng, tuple(IRISES.values())), 10),
            eye_size=float(rng.uniform(0.92, 1.18)),
            eye_spacing=float(rng.uniform(0.94, 1.08)),
            brow_weight=float(rng.uniform(0.7, 1.35) + 0.2 * manly),
            brow_arch=float(rng.uniform(-0.6, 1)),
            nose=float(rng.uniform(0.82, 1.3)),
            mouth_width=float(rng.uniform(0.9, 1.12)),
            clothes=_jitter(rng, _pick(rng, tuple(CLOTHES.values())), 10),
            collar=_pick(rng, COLLARS),
            background_word=background_word,
            background=_jitter(rng, BACKGROUNDS[background_word], 7),
            glasses=_pick(rng, GLASSES, (0.74, 0.14, 0.12)),
            freckles=bool(rng.random() < 0.22),
            beard=bool(rng.random() < 0.4) and manly,
            earrings=bool(rng.random() < 0.3) and not manly,
            lashes=not manly,
        )


def describe(identity: Identity) -> str:
    """A caption of what stays, such as "red long hair, round glasses, freckles, in front of a teal background"."""
    extras = [f"{identity.glasses} glasses"] if identity.glasses != "none" else []
    extras += [word for word in ("freckles", "beard", "earrings") if getattr(identity, word)]
    words = [f"{identity.hair_word} {identity.hair_style} hair", *extras]
    return ", ".join(words) + f", in front of a {identity.background_word} background"


def _pick(rng: np.random.Generator, choices: Sequence[T], chances: Sequence[float] | None = None) -> T:
    return choices[int(rng.choice(len(choices), p=chances))]


def _jitter(rng: np.random.Generator, colour: RGB, by: int) -> RGB:
    """A colour near by, each channel within `by`."""
    moved = [int(np.clip(c + rng.integers(-by, by + 1), 0, 255)) for c in colour]
    return (moved[0], moved[1], moved[2])
