"""The scene of a talk: a portrait and who speaks in it, as the server has it and as a client wants it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import RequestError
from ..media.masks import HALVES, Half
from ..speakers import MAX_SPEAKERS, OpenedMask, counted_speakers, open_masks


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """A portrait, and who speaks in it.

    Attributes:
        image: uint8 [H, W, 3].
        masks: where in it each of several speakers is; none: there is one.
    """

    image: np.ndarray
    masks: tuple[OpenedMask, ...] = ()

    @property
    def speaker_count(self) -> int:
        """How many speak."""
        return len(self.masks) or 1


@dataclasses.dataclass(frozen=True, eq=False)
class WantedScene:
    """What a client has sent and asked for; what it leaves out is the server's.

    Attributes:
        portrait: uint8 [H, W, 3].
        masks: by the number of the speaker, from 1.
        speakers: how many speak.
        areas: halves of the portrait, in place of masks.
    """

    portrait: np.ndarray | None = None
    masks: Mapping[int, OpenedMask] = dataclasses.field(default_factory=dict)
    speakers: int | None = None
    areas: Sequence[Half] | None = None

    def over(self, own: Scene) -> Scene:
        """The scene, where the server has one of its own. Its masks are those of its own portrait only.

        Raises:
            RequestError: numbers that do not fit together, or a mask that is missing.
            SpeakerError: one speaker and a mask.
        """
        count = self.speakers
        if count is not None and not 1 <= count <= MAX_SPEAKERS:
            raise RequestError(f"start.speakers is {count}.", f"Use 1 to {MAX_SPEAKERS}.")
        image = own.image if self.portrait is None else self.portrait
        if self.areas is not None:
            return Scene(image, self._of_areas(self.areas))
        if count == 1:
            return Scene(image)
        if self.masks:
            return Scene(image, self._of_masks(count or max(self.masks)))
        if self.portrait is None and count in (None, own.speaker_count):
            return own
        return Scene(image) if count is None else Scene(image, self._of_masks(count))

    def _of_areas(self, areas: Sequence[Half]) -> tuple[OpenedMask, ...]:
        named = len(areas) or 1
        if self.speakers not in (None, named):
            raise RequestError(
                f"start.speakers is {self.speakers}, and start.areas is of {counted_speakers(named)}.",
                "Leave one of them out, or name an area for each.",
            )
        return open_masks(areas)

    def _of_masks(self, count: int) -> tuple[OpenedMask, ...]:
        missing = next((number for number in range(1, count + 1) if number not in self.masks), None)
        if missing is not None:
            raise RequestError(
                f"Speaker {missing} of {count} has no mask.",
                f"Send a mask of each before start, or name areas: {' and '.join(HALVES)}.",
            )
        return open_masks([self.masks[number] for number in range(1, count + 1)])
