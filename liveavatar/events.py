"""Events: progress, notices and finished frames of a video, and the one callback that is called with them."""

from __future__ import annotations

import dataclasses
import time
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
"""How wide each phase is on a bar that shows a whole run: about its seconds with the 14B model, and the least that
generating has beside them."""


@dataclasses.dataclass(frozen=True)
class Event:
    """What is being done to a video, and how far that is.

    An event may come again, without its task, while something takes long, so that the callback can cancel it.

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


HEARTBEAT_SECONDS = 0.2
"""How often an event is sent again while something takes long."""

Callback = Callable[[Event], None]
"""Called with every event, in the thread that pulls the video; what it raises (`Cancelled`) stops the work."""


class RunProgress:
    """The finished share of a whole run, which never falls.

    Phases may come in any order, and some not at all: one that is past counts as finished, and generating begins where
    all others end.

    Args:
        phases: that the run may consist of.
        generating_seconds: what generating will take, where that is known; of a long video it is most of the bar.
    """

    def __init__(self, phases: Sequence[str] = WHOLE_RUN, generating_seconds: float | None = None):
        generating = max(_GENERATING_WEIGHT, generating_seconds or 0)
        weights = {phase: _WEIGHTS.get(phase, generating) for phase in phases}
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


class PhaseProgress:
    """The events of a phase, not more often than a callback wants them.

    Args:
        callback: called with them.
        phase: which.
    """

    def __init__(self, callback: Callback, phase: str):
        self._callback, self._phase, self._sent = callback, phase, time.monotonic()

    def __call__(self, share: float) -> None:
        """A share of 0 to 1 is finished."""
        if time.monotonic() - self._sent > HEARTBEAT_SECONDS:
            self._sent = time.monotonic()
            self._callback(share_event(self._phase, min(1.0, share)))


def ignore(event: Event) -> None:
    """The callback of those who want no events."""


def share_event(phase: str, share: float) -> Event:
    """The event of a phase of which a share of 0 to 1 is finished."""
    return Event(phase, round(100 * share), 100)


def notice_event(text: str) -> Event:
    """The event of something out of the ordinary, in a readable sentence."""
    return Event(text, notice=True)
