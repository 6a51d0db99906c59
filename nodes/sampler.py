"""The video as latents, made while it is watched."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from ..liveavatar.request import Fit, PoseEnd, Request, SinkDistance
from . import convert
from .schema import (
    CATEGORY,
    SINKS,
    AudioSocket,
    LatentsSocket,
    ModelSocket,
    StateSocket,
    advanced,
    mask_input,
    pose_input,
    seed_input,
    size_fault,
    size_input,
    steps_input,
    supported,
)
from .state import state_of
from .words import refused_in_widgets


class Sampler(io.ComfyNode):
    """A stream of latent blocks: nothing is computed before the next node pulls."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="LiveAvatarSampler",
            display_name="Sampler (Live Avatar)",
            category=CATEGORY,
            description="Makes the latents of a talking video of any length, block by block, on all devices of the "
            "backend. It answers at once: the work is done while Streaming VAE Decode pulls, and can be replayed.",
            inputs=[
                ModelSocket.Input("model", tooltip="From Load Model."),
                io.Conditioning.Input(
                    "positive", tooltip="From Text Encode of this pack, or core CLIP Text Encode with a wan CLIP."
                ),
                AudioSocket.Input("audio", tooltip="From Audio Features."),
                io.Image.Input("image", tooltip="The portrait. Of a batch the first picture is taken."),
                size_input(),
                steps_input(),
                seed_input(),
                advanced(
                    io.Combo.Input(
                        "fit",
                        options=["cover", "pad"],
                        default="cover",
                        tooltip="cover fills the frame and crops; pad adds black bars as the original does.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "sink",
                        options=list(SINKS),
                        default=SINKS[0],
                        tooltip="How far ahead of a block the portrait stands: drawn anew for every block as the "
                        "model was trained, or always sink_distance.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "sink_distance",
                        default=30,
                        min=4,
                        max=30,
                        tooltip="Latent frames ahead, where the sink is fixed.",
                    )
                ),
                mask_input(),
                advanced(
                    io.Boolean.Input(
                        "keep_state",
                        default=False,
                        optional=True,
                        tooltip="Keep what another Sampler needs to continue this video. It ends with a whole block "
                        "then, up to 0.48 s after the sound. Of a video that is cancelled it is saved in the output "
                        "folder, for Load State.",
                    )
                ),
                StateSocket.Input(
                    "state",
                    optional=True,
                    tooltip="Of another Sampler whose keep_state is on, or from Load State: this video continues that "
                    "one, with its portrait and seed, as if it had never ended.",
                ),
                pose_input(),
                advanced(
                    io.Combo.Input(
                        "pose_end",
                        options=["hold", "loop", "black"],
                        default="hold",
                        optional=True,
                        tooltip="When the pose ends before the sound: hold its last picture, loop it, or black as "
                        "published.",
                    )
                ),
            ],
            outputs=[
                LatentsSocket.Output(
                    display_name="latents", tooltip="A stream for Streaming VAE Decode, or for Latents to LATENT."
                ),
                StateSocket.Output(
                    display_name="state", tooltip="With keep_state, for a Sampler that continues it, or for Save State."
                ),
            ],
            **supported(search_aliases=["talking head", "lip sync", "s2v", "avatar", "live avatar sampler"]),
        )

    @classmethod
    def validate_inputs(cls, size: str | None = None) -> bool | str:
        """Whether the size can be read, said before anything runs."""
        return size_fault(size)

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        audio: Any,
        image: Any,
        size: str,
        steps: int,
        seed: int,
        fit: Fit,
        sink: str,
        sink_distance: int,
        mask: Any = None,
        keep_state: bool = False,
        state: Any = None,
        pose: Any = None,
        pose_end: PoseEnd = "hold",
    ) -> io.NodeOutput:
        """The stream, refused now where it could not be made."""
        distance = SinkDistance() if sink == SINKS[0] else SinkDistance("fixed", sink_distance)
        context, prompt = convert.prompt_embedding(positive, model.config), convert.prompt_of(positive)
        timeline, contexts = convert.timeline_of(positive)
        request = Request(
            size=size,
            prompt=prompt,
            steps=steps,
            seed=seed,
            fit=fit,
            sink_distance=distance,
            keep_state=keep_state,
            timeline=timeline,
            pose_end=pose_end,
        )
        pixels = convert.image_array(image, mask)
        notes = (*convert.image_notes(image), *convert.prompt_notes(positive, model.config))
        with refused_in_widgets():
            followed = convert.pose_source(pose)
            job = model.prepare(request, pixels, audio, context, notes, state_of(state), contexts, followed)
            return io.NodeOutput(job, job)
