"""The prompt as conditioning."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from ..liveavatar.events import ENCODING_PROMPT
from ..liveavatar.timed_changes import parse_timeline
from . import convert, core_parts
from .host import NodeProgress
from .schema import CATEGORY, ModelSocket, clip_input, prompt_input, supported, timeline_fault, timeline_input


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
                timeline_input(),
            ],
            outputs=[io.Conditioning.Output(display_name="positive", tooltip="For the Sampler.")],
            **supported(search_aliases=["live avatar prompt", "umt5"]),
        )

    @classmethod
    def validate_inputs(cls, timeline: str | None = None) -> bool | str:
        """Whether the timeline can be read, said before anything runs."""
        return timeline_fault(timeline)

    @classmethod
    def execute(cls, model: Any, prompt: str, clip: Any = None, timeline: str = "") -> io.NodeOutput:
        """CONDITIONING that knows its prompt, and those that follow."""
        changes = parse_timeline(timeline)
        with NodeProgress.current((ENCODING_PROMPT,)) as progress:
            contexts = core_parts.read_prompts(model, [prompt, *convert.prompts_of(changes)], clip, progress)
        return io.NodeOutput(convert.conditioning_of(prompt, contexts, changes))
