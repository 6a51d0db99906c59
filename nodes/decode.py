"""From latents to a video file that grows."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from ..liveavatar.events import DECODING
from . import paths
from .host import NodeProgress, save, seconds_of
from .schema import CATEGORY, LatentsSocket, advanced, supported


class Decode(io.ComfyNode):
    """Pulls the stream and writes it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="LiveAvatarDecode",
            display_name="Streaming VAE Decode (Live Avatar)",
            category=CATEGORY,
            description="Pulls the stream: decodes blocks as they are finished and writes them, with the voice in "
            "sync, to an MP4 that plays while it grows. Memory does not grow with the length.",
            inputs=[
                LatentsSocket.Input("latents", tooltip="From the Sampler; the work happens while this node runs."),
                advanced(
                    io.Combo.Input(
                        "vae",
                        options=paths.vaes(),
                        default=paths.AUTOMATIC,
                        tooltip="automatic: the model's own. Another file must be a VAE of Wan 2.1, or a tiny one.",
                    )
                ),
                io.String.Input(
                    "filename_prefix",
                    default="LiveAvatar",
                    tooltip="Name of the temporary file; connect core Save Video to keep it.",
                ),
            ],
            outputs=[
                io.Video.Output(
                    display_name="video",
                    tooltip="For core Save Video. Get Video Components gives frames (3 MB each in memory).",
                ),
                io.String.Output(display_name="receipt", tooltip="What was really made and what it cost, as JSON."),
            ],
            **supported(search_aliases=["live avatar video", "vae decode"]),
        )

    @classmethod
    def execute(cls, latents: Any, vae: str, filename_prefix: str) -> io.NodeOutput:
        """The file and its receipt."""
        with NodeProgress.current(DECODING, seconds_of(latents)) as progress:
            return save(progress, latents, filename_prefix, vae)
