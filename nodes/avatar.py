"""Everything in one node."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from ..liveavatar.request import Request
from ..liveavatar.timed_changes import parse_timeline
from . import convert, core_parts, paths
from .host import NodeProgress, save
from .schema import (
    CATEGORY,
    ModelSocket,
    clip_input,
    mask_input,
    pose_input,
    prompt_input,
    seconds_input,
    seed_input,
    size_fault,
    size_input,
    spoken_input,
    steps_input,
    supported,
    timeline_fault,
    timeline_input,
)
from .words import refused_in_widgets


class Avatar(io.ComfyNode):
    """Portrait, voice and prompt to a talking video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="LiveAvatarGenerate",
            display_name="Live Avatar",
            category=CATEGORY,
            description="Turns a portrait, a voice and a prompt into a talking video of any length, written while it "
            "is made. The other nodes of this pack are its parts.",
            inputs=[
                ModelSocket.Input("model", tooltip="From Load Model."),
                io.Image.Input("image", tooltip="The portrait. Of a batch the first picture is taken."),
                spoken_input("The voice: any rate, mono or stereo, any length from 0.025 s. Several: from Speakers."),
                prompt_input(),
                size_input(),
                steps_input(),
                seed_input(),
                seconds_input(),
                io.String.Input(
                    "filename_prefix",
                    default="LiveAvatar",
                    tooltip="Name of the temporary file; connect core Save Video to keep it.",
                ),
                mask_input(),
                clip_input(),
                timeline_input(),
                pose_input(),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="For core Save Video."),
                io.String.Output(display_name="receipt", tooltip="What was really made and what it cost, as JSON."),
            ],
            **supported(search_aliases=["talking head", "lip sync", "s2v", "talking avatar"]),
        )

    @classmethod
    def validate_inputs(cls, size: str | None = None, timeline: str | None = None) -> bool | str:
        """Whether size and timeline can be read, said before anything runs."""
        fault = size_fault(size)
        return timeline_fault(timeline) if fault is True else fault

    @classmethod
    def execute(
        cls,
        model: Any,
        image: Any,
        audio: Any,
        prompt: str,
        size: str,
        steps: int,
        seed: int,
        seconds: float,
        filename_prefix: str,
        mask: Any = None,
        clip: Any = None,
        timeline: str = "",
        pose: Any = None,
    ) -> io.NodeOutput:
        """The same as the modular graph."""
        changes = parse_timeline(timeline)
        request = Request(size, prompt, steps, seed, seconds or None, timeline=changes)
        pixels, spoken = convert.image_array(image, mask), convert.spoken_by(audio, request.seconds)
        with refused_in_widgets():
            followed = convert.pose_source(pose)
            spec = model.describe(pixels, spoken, request, pose=followed)
        with NodeProgress.current(seconds=model.foreseen_seconds(spec.resolved, spec.plan)) as progress:
            contexts = core_parts.read_prompts(model, [prompt, *convert.prompts_of(changes)], clip, progress)
            voice = model.encode_audio(spoken, request.seconds, progress)
            notes = convert.image_notes(image)
            take = model.prepare(request, pixels, voice, contexts[prompt], notes, contexts=contexts, pose=followed)
            return save(progress, take, filename_prefix, paths.AUTOMATIC)
