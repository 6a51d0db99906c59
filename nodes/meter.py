"""How well a finished video keeps lips and sound together, and the face of its portrait."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comfy_api.v0_0_2 import io, ui

from ..liveavatar.errors import MeterError
from ..liveavatar.meter.measure import WATCHING, measure
from ..liveavatar.meter.report import report_lines, verdict
from ..liveavatar.meter.video_file import VideoFile
from . import convert, paths
from .host import NodeProgress
from .schema import CATEGORY, supported


class Meter(io.ComfyNode):
    """Measures a VIDEO."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets."""
        return io.Schema(
            node_id="LiveAvatarMeter",
            display_name="Meter (Live Avatar)",
            category=CATEGORY,
            description="Measures a finished video by the minute: by how much the picture is late or early against the "
            "voice, how closely the mouth follows it, and how far the face has drifted from the portrait. Reads faces "
            "from the front, and needs the extra `meter` of this package.",
            is_output_node=True,
            inputs=[
                io.Video.Input("video", tooltip="With its sound. It is read in a stream, however long it is."),
                io.Image.Input(
                    "image", optional=True, tooltip="The portrait; without it, the face of the first second."
                ),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="A row per minute, and what follows from them."),
                io.String.Output(display_name="figures", tooltip="All figures as JSON."),
            ],
            **supported(search_aliases=["live avatar lip sync", "sync offset", "identity drift", "quality"]),
        )

    @classmethod
    def execute(cls, video: Any, image: Any = None) -> io.NodeOutput:
        """Report and figures."""
        with NodeProgress.current((WATCHING,)) as progress, file_of(video) as file:
            portrait = None if image is None else convert.image_array(image)
            found = measure(file, portrait, callback=progress)
        text = "\n".join(report_lines(found))
        figures = json.dumps(dataclasses.asdict(found) | {"verdict": verdict(found)}, indent=2)
        return io.NodeOutput(text, figures, ui=ui.PreviewText(text))


@contextlib.contextmanager
def file_of(video: Any) -> Iterator[VideoFile]:
    """VIDEO -> the part of a file that it was trimmed to; one that is in memory is written down meanwhile.

    Raises:
        MeterError: no video.
    """
    if (found := convert.video_source(video)) is None:
        given = type(video).__name__
        raise MeterError(f"The video is of type {given}.", "Connect a VIDEO, as core Load Video gives it.")
    source, start, length = found
    if isinstance(source, str):
        yield VideoFile(source, start, length)
        return
    paths.temporary_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.temporary_folder()) as folder:
        file = Path(folder, "video.mp4")
        file.write_bytes(source.getbuffer())
        yield VideoFile(file, start, length)
