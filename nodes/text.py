"""The prompt as conditioning."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from ..liveavatar.events import ENCODING_PROMPT
from . import convert, core_parts
from .host import NodeProgress
from .schema import CATEGORY, ModelSocket, clip_input, prompt_input, supported


class TextEncode(io.ComfyNode):
    """A prompt, read by the model's own text encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="LiveAvatarTextEncode",
            display_name="Text Encode (Live Avatar)",
            category=CATEGORY,
            description="Reads a prompt with the model's own T5 and lets the encoder go again. Core CLIP Text Encode "
            "with a CLIP of type wan gives the same kind of conditioning.",
            inputs=[
                ModelSocket.Input("model", tooltip="Whose text encoder reads."),
                prompt_input(),
                clip_input(),
            ],
            outputs=[io.Conditioning.Output(display_name="positive", tooltip="For the Sampler.")],
            **supported(search_aliases=["live avatar prompt", "umt5"]),
        )

    @classmethod
    def execute(cls, model: Any, prompt: str, clip: Any = None) -> io.NodeOutput:
        """CONDITIONING that knows its prompt."""
        with NodeProgress.current((ENCODING_PROMPT,)) as progress:
            return io.NodeOutput(convert.conditioning_of(prompt, core_parts.read_prompt(model, prompt, clip, progress)))
