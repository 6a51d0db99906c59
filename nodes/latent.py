"""The stream as a core LATENT."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from ..liveavatar.events import DECODING
from .host import NodeProgress, keeping_cancelled, seconds_of
from .schema import CATEGORY, LatentsSocket, supported


class Latent(io.ComfyNode):
    """Runs the stream to its end and holds it all."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="LiveAvatarLatent",
            display_name="Latents to LATENT (Live Avatar)",
            category=CATEGORY,
            description="Runs the stream to its end and gives all latents as one core LATENT of a Wan 2.1 video, for "
            "those who decode or process them with other nodes. Core decodes 4 n - 3 frames of n latents.",
            inputs=[LatentsSocket.Input("latents", tooltip="From the Sampler.")],
            outputs=[io.Latent.Output(display_name="latent", tooltip="samples [1, 16, n, H/8, W/8].")],
            **supported(search_aliases=["live avatar latent"]),
        )

    @classmethod
    def execute(cls, latents: Any) -> io.NodeOutput:
        """{"samples": [1, 16, n, h, w]}, not normalised, as core keeps them."""
        with NodeProgress.current(DECODING, seconds_of(latents)) as progress:
            progress.job = latents
            with keeping_cancelled(progress, latents) as state:
                return io.NodeOutput({"samples": latents.latents(progress, state)})
