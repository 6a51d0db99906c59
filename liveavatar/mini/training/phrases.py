"""Prompts to learn reading from: those of the world, and others around them with much that means nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..world.appearance import MOODS, Prompt
from ..world.identity import Identity
from ..world.palette import BACKGROUNDS, CLOTHES, HAIR, IRISES
from ..world.texts import WORDS

BACKGROUND_CLASSES = (None, *BACKGROUNDS)
MOOD_CLASSES = (None, *(mood for mood, words in MOODS.items() if words))
"""What a reader tells apart; None is a prompt that does not ask."""
OTHER_NAMES = {
    "gray": "grey",
    "turquoise": "teal",
    "aqua": "teal",
    "violet": "purple",
    "lilac": "purple",
    "golden": "yellow",
    "rosy": "pink",
}
"""More words for walls than the world uses."""
OTHER_MOODS = {
    "cheerful": ("happily", "cheerfully", "with a smile", "delighted", "glad", "laughing", "full of joy"),
    "stern": ("angrily", "sternly", "seriously", "with a frown", "angry", "annoyed", "sullen"),
}
_WALLS = (
    "in front of a {} background",
    "in front of a {} wall",
    "before a plain {} wall",
    "on {} background",
    "on a {} backdrop",
    "with a {} background",
    "with a bright {} wall behind",
    "against a {} background",
    "against {}",
    "{} background",
    "{} wall",
    "{} backdrop",
    "background: {}",
    "background {}",
    "the background is {}",
    "the wall is {}",
    "a {} studio",
    "{} behind the head",
    "make the background {}",
    "the wall behind is {}",
    "the background behind the speaker is {}",
    "behind the head is a {} wall",
    "behind the speaker there is a {} background",
    "backdrop in {}",
)
_FEELINGS = ("{}", "looking {}", "mood: {}", "is {}", "very {}", "feeling {}", "speaks {}", "{} expression", "seems {}")
_SUBJECTS = (
    "A person", "Someone", "A cartoon character", "A portrait of a person", "A friendly face", "The speaker",
    "A woman", "A man", "A girl", "A boy", "An avatar", "A talking head", "Talking head video", "My teacher", "She",
    "He", "A news presenter", "A cartoon", "The person in the picture", "A singer", "Portrait", "",
)  # fmt: skip
_VERBS = (
    "is talking", "speaks", "talks to the camera", "tells a story", "says something", "sings", "explains a thing",
    "is speaking clearly", "reads the news", "",
)  # fmt: skip
_DETAILS = (
    "with {hair} hair", "{hair} hair", "wearing a {cloth} shirt", "in a {cloth} sweater", "with {iris} eyes",
    "{iris} eyes", "with glasses", "with freckles", "with a beard", "with earrings", "a {cloth} {thing}",
    "{cloth} {thing}", "the {thing} is {cloth}", "wears a {cloth} {thing}", "in a {cloth} {thing}",
)  # fmt: skip
_THINGS = (
    "scarf", "shirt", "sweater", "coat", "tie", "hat", "cap", "blouse", "hoodie", "suit", "necklace", "skirt", "vest",
    "microphone", "chair", "flower", "ball", "lamp", "car", "ribbon", "t-shirt", "top", "uniform", "lipstick", "bag",
)  # fmt: skip
_NO_WALLS = ("white", "black", "red", "brown", "dark", "light", "blurred", "empty", "old", "silver", "wooden")
_KINDS = ("plain", "bright", "clean", "nice", "big", "smooth", "simple", "pale", "deep", "solid", "very", "wide")
_MEANT = {*BACKGROUNDS, *OTHER_NAMES, *(word for moods in (MOODS, OTHER_MOODS) for w in moods.values() for word in w)}
_ANY_WORDS = tuple(
    sorted({w.lower() for language in ("en-us", "en-gb", "de", "fr") for w in WORDS[language].split()} - _MEANT)
)
_FILLERS = (
    "high quality", "sharp", "best quality", "4k", "medium shot", "close-up", "natural lighting",
    "looking at the viewer", "soft light", "masterpiece", "studio", "the camera is still", "indoors", "smooth motion",
    "clear voice", "calm", "neutral", "a short video", "detailed face", "on a sunny day", "the head moves a little",
    "no text", "professional",
)  # fmt: skip
_BETWEEN = (", ", ", ", " ", ". ", "; ", " and ", " - ", "\n")
HELD_OUT = (
    "{mood} avatar, {wall} background, cinematic",
    "Please show him {mood} before a {wall} backdrop while he talks about the weather.",
    "A {mood} lady with {hair} hair and a {cloth} dress speaks; behind her is a {wall} wall.",
    "{wall} backdrop. {mood}. {iris} eyes. Speaking into a microphone.",
    "Video of a {mood} person, the wall at the back is {wall}, {cloth} jacket",
    "The old man, {mood}, talks in front of a large {wall} background with {hair} hair",
    "in front of a soft {wall} wall: a {mood} robot says hello",
    "{mood} | {wall} background | {hair} hair | anime",
)
"""Never learned from: whole phrasings with words that are not in the others, too."""


def phrase(seed: Sequence[int]) -> Prompt:
    """A prompt and what it asks for; a third are the world's own."""
    rng = np.random.default_rng(list(seed))
    identity = Identity.of(2 * int(rng.integers(100_000)))
    if rng.random() < 0.35:
        return Prompt.of(int(rng.integers(1 << 30)), identity)
    wall, mood = _wish(rng, BACKGROUND_CLASSES), _wish(rng, MOOD_CLASSES)
    first = f"{rng.choice(_SUBJECTS)} {rng.choice(_VERBS)}".strip()
    rest = [details(rng, str(d)) for d in rng.choice(_DETAILS, rng.integers(3), replace=False)]
    rest += [str(f) for f in rng.choice(_FILLERS, rng.integers(3), replace=False)]
    if wall or rng.random() < 0.2:
        name = _named(rng, wall) if wall else str(rng.choice(_NO_WALLS))
        kind = f"{rng.choice(_KINDS)} " if rng.random() < 0.3 else ""
        rest.append(str(rng.choice(_WALLS)).format(kind + name))
    if mood:
        rest.append(str(rng.choice(_FEELINGS)).format(rng.choice((*MOODS[mood], *OTHER_MOODS[mood]))))
    rng.shuffle(rest)
    parts = [first, *rest] if rng.random() < 0.7 else [*rest, first]
    text = "".join(part + str(rng.choice(_BETWEEN)) for part in parts if part).strip(" ,;-\n").removesuffix(" and")
    return Prompt(_disturbed(rng, text + str(rng.choice(("", ".")))), wall, mood)


def held_out(seed: Sequence[int]) -> Prompt:
    """A prompt in a phrasing that is never learned from; it always asks for both."""
    rng = np.random.default_rng(list(seed))
    wall, mood = str(rng.choice(list(BACKGROUNDS))), MOOD_CLASSES[int(rng.integers(1, len(MOOD_CLASSES)))]
    text = str(rng.choice(HELD_OUT)).replace("{wall}", wall).replace("{mood}", str(rng.choice(MOODS[mood or ""])))
    return Prompt(details(rng, text), wall, mood)


def details(rng: np.random.Generator, text: str) -> str:
    """Fill in things that are not the wall, and their colours."""
    thing = str(rng.choice(_THINGS)) if rng.random() < 0.7 else _nonsense(rng)
    text = text.replace("{thing}", thing)
    colours = {"hair": HAIR, "cloth": CLOTHES, "iris": IRISES}
    for name, words in colours.items():
        text = text.replace(f"{{{name}}}", str(rng.choice((*words, *BACKGROUNDS))))
    return text


def _disturbed(rng: np.random.Generator, text: str) -> str:
    """Up to three words put in anywhere that mean nothing here."""
    words = text.split(" ")
    for _ in range(int(rng.choice(4, p=(0.4, 0.3, 0.2, 0.1)))):
        word = _nonsense(rng) if rng.random() < 0.3 else str(rng.choice(_ANY_WORDS))
        words.insert(int(rng.integers(len(words) + 1)), word)
    return " ".join(words)


def _wish(rng: np.random.Generator, classes: Sequence[str | None]) -> str | None:
    return classes[int(rng.integers(1, len(classes)))] if rng.random() < 0.65 else None


def _named(rng: np.random.Generator, wall: str) -> str:
    """The wall's word, or sometimes another one for the same."""
    others = [other for other, word in OTHER_NAMES.items() if word == wall]
    return str(rng.choice(others)) if others and rng.random() < 0.25 else wall


def _nonsense(rng: np.random.Generator) -> str:
    """A word nobody knows."""
    return "".join(chr(97 + int(c)) for c in rng.integers(0, 26, int(rng.integers(2, 7))))
