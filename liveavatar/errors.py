"""Every refusal of the library is one of these.

A message says what was given, what is wrong with it and the nearest thing that works, in words a user who never
read the code understands. Nothing heavy has been loaded, and nothing half-written is left, when one is raised.
"""

import re

_ENDLESS = re.compile(r"\S{1000,}")
"""A word without end."""
_QUOTED = 80
"""Letters of a value that a message quotes."""


class LiveAvatarError(Exception):
    """Base of all errors this library raises on purpose.

    Args:
        what: what was given and what is wrong with it, one sentence.
        nearest: the nearest thing that works, one sentence; empty only where nothing does.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__module__ = _within_the_library(cls.__module__)

    def __init__(self, what: str, nearest: str = ""):
        self.what = _readable(what)
        self.nearest = _readable(nearest)
        super().__init__(f"{self.what} {self.nearest}".strip())


def _within_the_library(module: str) -> str:
    """Where an error is defined, as it is shown beside its name: ComfyUI imports the library under the path of the
    pack."""
    _, library, rest = module.rpartition("liveavatar.")
    return f"{library}{rest}"


LiveAvatarError.__module__ = _within_the_library(LiveAvatarError.__module__)


def shown(value: object) -> str:
    """A value that was given, as a message quotes it: on one line, also a number of 5000 digits."""
    try:
        text = repr(value)
    except Exception:  # Python itself shows no whole number of more than 4300 digits
        text = f"a {type(value).__name__} that is too long to be shown"
    return text if len(text) <= _QUOTED else f"{text[: _QUOTED - 23]}...{text[-20:]}"


def _readable(text: str) -> str:
    """A sentence in which nothing that was given, such as a number of 5000 digits, is longer than people read."""
    return _ENDLESS.sub(lambda found: f"{found[0][:60]}...{found[0][-20:]}", text)


class RequestError(LiveAvatarError):
    """The request cannot be understood or cannot be served as asked."""


class SizeError(RequestError):
    """The requested or resulting picture size is not usable."""


class ImageError(RequestError):
    """The reference image cannot be read or used."""


class AudioError(RequestError):
    """The sound cannot be read or used."""


class SpeakerError(RequestError):
    """Several speakers cannot be told apart, or one of them cannot be used."""


class StateError(RequestError):
    """The state of a video cannot be read, or the video that is asked for cannot go on from it."""


class PoseError(RequestError):
    """The pose video cannot be read or used."""


class MeterError(RequestError):
    """A finished video cannot be measured."""


class PlanError(RequestError):
    """The stages cannot be laid out as asked on the devices at hand."""


class ModelError(LiveAvatarError):
    """A model folder, checkpoint or configuration is incomplete, damaged or of another kind."""


class MissingFilesError(ModelError):
    """Files or tensors that the model needs are not there."""


class HostMemoryError(LiveAvatarError):
    """The host's memory cannot hold what was to lie in it, or may not be locked for the devices."""


class LoRAError(ModelError):
    """A LoRA file does not fit the network."""


class OutputError(LiveAvatarError):
    """The video or its receipt cannot be written."""


class Cancelled(LiveAvatarError):
    """The run was cancelled by the user; what was written until then is kept and playable."""
