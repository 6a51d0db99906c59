"""Live Avatar: a portrait, a voice and a prompt become a talking video, block by block, on the cards you own.

    from liveavatar import LiveAvatarPipeline

    pipeline = LiveAvatarPipeline.from_pretrained("mini")
    video = pipeline("face.png", "voice.wav", prompt="A friendly host", size="128x128")
    print(video.spec.plan.total_by_device)  # nothing is loaded yet
    video.save("talk.mp4")

This package is the library under the ComfyUI nodes; it never imports ComfyUI. Heavy libraries are imported where they
are used, so importing `liveavatar` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import Cancelled, LiveAvatarError
    from .events import Event
    from .pipeline import LiveAvatarPipeline
    from .request import Request
    from .speakers import Speaker

__version__ = "0.1.0"
__all__ = ["Cancelled", "Event", "LiveAvatarError", "LiveAvatarPipeline", "Request", "Speaker"]
_HOMES = {
    "LiveAvatarPipeline": "pipeline",
    "Request": "request",
    "Speaker": "speakers",
    "Event": "events",
    "LiveAvatarError": "errors",
    "Cancelled": "errors",
}


def __getattr__(name: str) -> Any:
    """Public names, imported when they are first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
