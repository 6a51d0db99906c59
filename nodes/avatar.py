"""Everything in one node."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from ..liveavatar.request import Request
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
    steps_input,
    supported,
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
                io.Audio.Input("audio", tooltip="The voice: any rate, mono or stereo, any length from 0.025 s."),
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
                pose_input(),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="For core Save Video."),
                io.String.Output(display_name="receipt", tooltip="What was really made and what it cost, as JSON."),
            ],
            **supported(search_aliases=["talking head", "lip sync", "s2v", "talking avatar"]),
        )

    @classmethod
    def validate_inputs(cls, size: str | None = None) -> bool | str:
        """Whether the size can be read, said before anything runs."""
        return size_fault(size)

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
        pose: Any = None,
    ) -> io.NodeOutput:
        """The same as the modular graph."""
        request = Request(size=size, prompt=prompt, steps=steps, seed=seed, seconds=seconds or None)
        pixels, used = convert.image_array(image, mask), convert.audio_clip(audio)
        with refused_in_widgets():
            followed = convert.pose_source(pose)
            planned = model.plan(
                request, (pixels.shape[1], pixels.shape[0]), len(used.samples), used.rate, pose=followed
            )
        with NodeProgress.current(seconds=model.foreseen_seconds(*planned)) as progress:
            context = core_parts.read_prompt(model, prompt, clip, progress)
            voice = model.encode_audio(used, request.seconds, progress)
            take = model.prepare(request, pixels, voice, context, convert.image_notes(image), pose=followed)
            return save(progress, take, filename_prefix, paths.AUTOMATIC)
