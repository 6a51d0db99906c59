"""One example to learn from or to be judged by: a person, a prompt, a reference picture, a sound and the true video."""

from __future__ import annotations

import dataclasses

import numpy as np

from ...errors import ModelError
from .appearance import Prompt
from .artist import Artist
from .identity import Identity
from .motion import track
from .pose import Pose, Track
from .speech import level, mouth
from .voices import Utterance, utterance


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """An example.

    Attributes:
        identity, prompt: who, and what is asked.
        reference: uint8 [H, W, 3], the person on the own wall, neutral, mouth shut.
        sound: what is heard, and the speech in it.
        track: true pose of every frame.
        frames: uint8 [n, H, W, 3], 25 a second, as the prompt asks; None where only the plan was wanted.
    """

    identity: Identity
    prompt: Prompt
    reference: np.ndarray
    sound: Utterance
    track: Track
    frames: np.ndarray | None

    @property
    def drawn(self) -> np.ndarray:
        """The frames.

        Raises:
            ModelError: only the plan was asked for.
        """
        if self.frames is None:
            raise ModelError("This example was not drawn.", "Ask for it with draw=True.")
        return self.frames


def sample(
    seed: int,
    seconds: float | None = None,
    *,
    held_out: bool = False,
    height: int = 128,
    width: int = 128,
    draw: bool = True,
) -> Sample:
    """The example of a seed, the same on every machine with the same version of espeak-ng.

    Args:
        seconds: length of the sound; None: 4 to 10 s.
        held_out: a person, a voice and a language that training never sees.
        height, width: pixels, multiples of 64.
        draw: whether to draw the video.

    Raises:
        MissingFilesError: no espeak-ng. SizeError: not multiples of 64.
    """
    identity = person(seed, held_out)
    prompt = Prompt.of(2 * seed + held_out, identity)
    return acted(identity, prompt, utterance(seed, seconds, held_out), height, width, draw)


def acted(identity: Identity, prompt: Prompt, sound: Utterance, height: int, width: int, draw: bool = True) -> Sample:
    """The example of a person who is asked for this and says that.

    Raises:
        SizeError: not multiples of 64.
    """
    poses = track_of(sound)
    reference = Artist(identity, None, height, width).frame(Pose())
    frames = Artist(identity, prompt.appearance(identity), height, width).clip(poses.poses()) if draw else None
    return Sample(identity, prompt, reference, sound, poses, frames)


def person(seed: int, held_out: bool = False) -> Identity:
    """The person of an example: even seeds of `Identity.of` for training, odd ones held out."""
    return Identity.of(2 * seed + held_out)


def track_of(sound: Utterance, frames: int | None = None) -> Track:
    """How a face moves to a sound: its speech, as loud as it stands out in what is heard."""
    return track(mouth(sound.speech, frames, reference=level(sound.samples)))
