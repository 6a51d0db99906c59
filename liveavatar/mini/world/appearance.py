"""What a prompt can change: the wall behind the person and the mood, and the many ways to ask for them."""

from __future__ import annotations

import dataclasses

import numpy as np

from .identity import Identity
from .palette import BACKGROUNDS, RGB

MOODS: dict[str, tuple[str, ...]] = {
    "neutral": (),
    "cheerful": ("cheerful", "happy", "joyful", "in a good mood", "smiling"),
    "stern": ("stern", "serious", "grumpy", "in a bad mood", "frowning"),
}
"""Moods, with the words that ask for them; neutral is what nobody asks for."""
_PROMPTED = 0x9207


@dataclasses.dataclass(frozen=True)
class Appearance:
    """How a person is shown.

    Attributes:
        background: colour of the wall.
        mood: one of MOODS.
    """

    background: RGB
    mood: str = "neutral"

    @classmethod
    def own(cls, identity: Identity) -> Appearance:
        """As on the reference picture: the person's own wall, neutral."""
        return cls(identity.background)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt and what it asks for.

    Attributes:
        text: as the text encoder gets it; may be empty.
        background: word of BACKGROUNDS, or None where the wall stays.
        mood: word of MOODS, or None for neutral.
    """

    text: str
    background: str | None = None
    mood: str | None = None

    def appearance(self, identity: Identity) -> Appearance:
        """How the video shows the person of the reference picture."""
        wall = identity.background if self.background is None else BACKGROUNDS[self.background]
        return Appearance(wall, self.mood or "neutral")

    @classmethod
    def of(cls, seed: int, identity: Identity | None) -> Prompt:
        """A prompt for a person, or for several (None): asks for a wall in half of all cases, for a mood in half, for
        neither in a quarter."""
        rng = np.random.default_rng([_PROMPTED, seed])
        if rng.random() < 0.15:
            return cls(str(rng.choice(_NOTHING)))
        background = str(rng.choice(list(BACKGROUNDS))) if rng.random() < 0.6 else None
        mood = str(rng.choice(["cheerful", "stern"])) if rng.random() < 0.6 else None
        return cls.asking(rng, identity, background, mood)

    @classmethod
    def asking(
        cls, rng: np.random.Generator, identity: Identity | None, background: str | None, mood: str | None
    ) -> Prompt:
        """One of many ways to ask for just this; hair and such, where named, are the person's own. None: several."""
        subject = _subject(rng, identity)
        wall = _say(rng, _WALLS, background) if background else ""
        feeling = str(rng.choice(MOODS[mood])) if mood else ""
        text = _compose(rng, subject, wall, feeling)
        if rng.random() < 0.2:
            text = text.lower() if rng.random() < 0.5 else text.rstrip(".")
        return cls(text, background, mood)


_NOTHING = (
    "",
    "A person is talking.",
    "A talking head.",
    "Someone speaks to the camera.",
    "A cartoon portrait of a speaking person.",
    "A portrait, talking, high quality.",
    "The person in the picture speaks clearly.",
)
_SUBJECTS = ("A person", "Someone", "A cartoon character", "A portrait of a person", "A friendly face", "The speaker")
_SEVERAL = ("A pair of people", "A couple", "A picture of two people", "A portrait of two people", "A pair of friends")
_WALLS = (
    "in front of a {} background",
    "in front of a {} wall",
    "on a {} background",
    "with a {} background",
    "against a {} backdrop",
    "before a {} wall",
)
_SHORT_WALLS = ("{} background", "background: {}", "{} wall", "{} backdrop")
_VERBS = ("is talking", "speaks", "talks to the camera", "tells a story", "says something")


def _say(rng: np.random.Generator, ways: tuple[str, ...], word: str) -> str:
    return str(rng.choice(ways)).format(word)


def _subject(rng: np.random.Generator, identity: Identity | None) -> str:
    if identity is None:
        return str(rng.choice(_SEVERAL))
    subject = str(rng.choice(_SUBJECTS))
    roll = rng.random()
    if roll < 0.4:
        return f"{subject} with {identity.hair_word} hair"
    if roll < 0.5 and identity.glasses != "none":
        return f"{subject} with glasses"
    return subject


def _compose(rng: np.random.Generator, subject: str, wall: str, feeling: str) -> str:
    """Subject, wall and feeling in one of four orders; the last is a list of words."""
    verb = str(rng.choice(_VERBS))
    way = rng.integers(4)
    if way == 0:
        return ", ".join(part for part in (f"{subject} {wall}".strip(), feeling) if part) + "."
    if way == 1:
        return ", ".join(part for part in (f"{subject} {verb} {wall}".strip(), feeling) if part) + "."
    if way == 2:
        return f"{feeling.capitalize()}: {subject.lower()} {verb} {wall}".strip(": ") + "."
    words = [subject.lower().removeprefix("a "), feeling, wall]
    rng.shuffle(words)
    return ", ".join(word for word in words if word)
