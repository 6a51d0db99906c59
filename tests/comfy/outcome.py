"""What tests ask of a run that has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import graphs
import pytest
from live_client import Run
from live_server import Server
from video_file import look_into


def succeeded(run: Run) -> Run:
    """The run, unless it failed."""
    assert run.outcome == "success", run.error.get("exception_message", run.outcome)
    return run


def receipt_of(run: Run, node: str = "receipt") -> dict[str, Any]:
    """What was really made."""
    return json.loads(run.shown[node]["text"][0])


def saved(server: Server, run: Run, node: str = "save") -> Path:
    """The file that Save Video wrote."""
    (shown,) = run.shown[node]["images"]
    assert shown["type"] == "output"
    return server.base / "output" / shown["subfolder"] / shown["filename"]


def assert_correct(file: Path | bytes, seconds: float, size: tuple[int, int] = (128, 128)) -> str:
    """All frames, at 25 per second, moving, with sound from the first picture to the last; the hash of the pictures."""
    held = look_into(file)
    assert (held.width, held.height, held.rate) == (*size, "25")
    assert held.frames == graphs.frames_of(seconds)
    assert held.steady
    assert held.moves > 0.2
    assert abs(held.sound_start) < 0.03
    assert held.sound == pytest.approx(seconds, abs=0.1)
    return held.pictures
