"""Events: progress, notices and finished frames of a video, and the one callback that is called with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .task_graph import Task

if TYPE_CHECKING:
    import numpy as np

LOADING_VAE = "loading the VAE"
ENCODING_PROMPT = "encoding the prompt"
ENCODING_AUDIO = "encoding the voice"
ENCODING_IMAGE = "encoding the portrait"
LOADING_NETWORK = "loading the network"
GENERATING = "generating"
"""The phase from whose beginning on there may be a file."""

DECODING = (LOADING_VAE, ENCODING_IMAGE, LOADING_NETWORK, GENERATING)
"""The phases of a video whose prompt and voice are encoded already."""
WHOLE_RUN = (ENCODING_PROMPT, ENCODING_AUDIO, *DECODING)
_WEIGHTS = {LOADING_VAE: 2, ENCODING_PROMPT: 8, ENCODING_AUDIO: 4, ENCODING_IMAGE: 4, LOADING_NETWORK: 12}
_GENERATING_WEIGHT = 70
"""How wide each phase is on a bar that shows a whole run. What they really take differs with hardware and length."""


@dataclasses.dataclass(frozen=True)
class Event:
    """What is being done to a video, and how far that is.

    An event may come again unchanged while something takes long, so that the callback can cancel it.

    Attributes:
        phase: what is being done, in words; of a notice its text.
        done, total: in units of the phase: tasks while generating, hundredths before. When an engine goes on from an
            earlier block, `done` falls back to the tasks that still stand finished.
        frames: video frames that were handed to the writer, which is two blocks behind at most.
        seconds_left: estimate for the rest, or None while nothing is known.
        task, stage: the task that has just run (an accelerator may still be at it), and where; None outside of
            generating.
        notice: whether this is no progress, but something out of the ordinary in a run that goes on all the same, or
            what the run waits for, again and again meanwhile.
        images: the frames that have just been handed to the writer, uint8 [n, H, W, 3]; None in all other events.
    """

    phase: str
    done: int = 0
    total: int = 100
    frames: int = 0
    seconds_left: float | None = None
    task: Task | None = None
    stage: int | None = None
    notice: bool = False
    images: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def share(self) -> float:
        """The finished share of the phase, 0 to 1."""
        return self.done / max(1, self.total)


Callback = Callable[[Event], None]
"""Called with every event, in the thread that pulls the video; what it raises (`Cancelled`) stops the work."""


class RunProgress:
    """The finished share of a whole run, which never falls.

    Phases may come in any order, and some not at all: one that is past counts as finished, and generating begins where
    all others end.

    Args:
        phases: that the run may consist of.
    """

    def __init__(self, phases: Sequence[str] = WHOLE_RUN):
        weights = {phase: _WEIGHTS.get(phase, _GENERATING_WEIGHT) for phase in phases}
        self._widths = {phase: weight / sum(weights.values()) for phase, weight in weights.items()}
        self._past: dict[str, None] = {}
        self.share = 0.0

    def update(self, event: Event) -> float:
        """The share, 0 to 1, after one more event; notices and phases of other runs change nothing."""
        if event.notice or event.phase not in self._widths:
            return self.share
        self._past[event.phase] = None
        width = self._widths[event.phase]
        before = sum(self._widths[phase] for phase in self._past if phase != event.phase)
        if event.phase == GENERATING:
            before = 1 - width
        self.share = max(self.share, min(1.0, before + width * event.share))
        return self.share


def ignore(event: Event) -> None:
    """The callback of those who want no events."""


def share_event(phase: str, share: float) -> Event:
    """The event of a phase of which a share of 0 to 1 is finished."""
    return Event(phase, round(100 * share), 100)


def notice_event(text: str) -> Event:
    """The event of something out of the ordinary, in a readable sentence."""
    return Event(text, notice=True)
