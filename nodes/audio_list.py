"""Several sounds in one AUDIO, one by one."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from . import convert
from .schema import CATEGORY, supported


class AudioList(io.ComfyNode):
    """A batch of sounds as a list: whatever follows runs once for each of them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets."""
        return io.Schema(
            node_id="LiveAvatarAudioList",
            display_name="Audio Batch to List (Live Avatar)",
            category=CATEGORY,
            description="Splits several sounds that came as one batch into a list. Every node behind it runs once for "
            "each of them, so that a video is made for each; the model is loaded once.",
            inputs=[io.Audio.Input("audio", tooltip="One sound, or a batch of sounds.")],
            outputs=[
                io.Audio.Output(
                    display_name="audio", is_output_list=True, tooltip="The sounds, for Live Avatar or Audio Features."
                )
            ],
            **supported(search_aliases=["split audio batch", "unbatch audio", "list of voices"]),
        )

    @classmethod
    def execute(cls, audio: Any) -> io.NodeOutput:
        """A list of AUDIO."""
        return io.NodeOutput(convert.split_audio(audio))
