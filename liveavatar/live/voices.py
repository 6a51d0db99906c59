"""A voice for typed words where one is installed: espeak-ng, as a process of its own."""

from __future__ import annotations

import re

import numpy as np

from ..errors import MissingFilesError, RequestError, shown
from ..mini.world import voices


def available() -> bool:
    """Whether words can be said."""
    try:
        voices.espeak_command()
    except MissingFilesError:
        return False
    return True


def speak(text: str, voice: str = "en-us") -> tuple[np.ndarray, int]:
    """Words as sound: float32 [n], and its samples per second.

    Raises:
        RequestError: no words.
        MissingFilesError: no espeak-ng, or not this voice.
    """
    if not re.fullmatch(r"[A-Za-z0-9-]{2,20}(\+[A-Za-z0-9]{1,20})?", voice):
        raise RequestError(f"The voice {shown(voice)} is no name of a voice.", "Use en-us, de, cmn or en-us+f3.")
    if not text.strip():
        raise RequestError("There is nothing to say.", "Give some words.")
    return voices.speak(text, voice), 16_000
