"""Choosing a model."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from ..liveavatar.weights.lora import ExtraLoRA
from . import core_parts, paths
from .host import open_pipeline
from .schema import CATEGORY, BackendSocket, LoRAsSocket, ModelSocket, advanced, supported
from .words import refused_in_widgets

PRECISIONS = ("automatic", "bfloat16", "float16", "float32")
_UNLINKED = object()
"""In place of a socket that nothing is connected to; of a connected one nothing is known before the run."""


class LoadModel(io.ComfyNode):
    """A model, by name; its weights are read when they are needed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="LiveAvatarLoadModel",
            display_name="Load Model (Live Avatar)",
            category=CATEGORY,
            description="Finds a Live Avatar model and checks that all of its files are there and fit together. Its "
            "weights are read when the video is pulled, and only the layers a device owns.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=paths.models(),
                    default=paths.MINIATURE,
                    tooltip="The miniature (a cartoon demonstrator that comes along), a folder in the official layout "
                    "(models/liveavatar, diffusion_models or diffusers), or a file (also GGUF) in diffusion_models.",
                ),
                io.Combo.Input(
                    "lora",
                    options=paths.files("loras"),
                    default=paths.AUTOMATIC,
                    tooltip="The distillation LoRA that the four steps need. automatic: the one beside the model, or "
                    "liveavatar.safetensors in loras. none: for a network that has it merged. It must fit to the "
                    "last tensor.",
                ),
                advanced(
                    io.Combo.Input(
                        "text_encoder",
                        options=paths.files("text_encoders"),
                        default=paths.AUTOMATIC,
                        tooltip="UMT5-XXL. automatic: the one beside the model, or umt5_xxl* in text_encoders.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "audio_encoder",
                        options=paths.files("audio_encoders"),
                        default=paths.AUTOMATIC,
                        tooltip="wav2vec2-large, English. automatic: the one beside the model, or wav2vec2* in "
                        "audio_encoders.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "vae",
                        options=[*paths.vaes(), *paths.VAE_WORDS],
                        default=paths.AUTOMATIC,
                        tooltip="The VAE of Wan 2.1. automatic: the one beside the model, or wan_2.1_vae* in vae. A "
                        "tiny one (taew2_1*, lighttaew2_1* in vae_approx) or a pruned one (lightvaew2_1* in vae) "
                        "decodes in its place: faster, in less memory, a little softer. tiny: the first tiny one; "
                        "full: none.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "precision",
                        options=list(PRECISIONS),
                        default=PRECISIONS[0],
                        tooltip="Of weights and keys. automatic: bfloat16 on a GPU, float32 on the CPU.",
                    )
                ),
                BackendSocket.Input(
                    "backend", optional=True, tooltip="Where the network runs; without it, in this process."
                ),
                LoRAsSocket.Input(
                    "loras",
                    optional=True,
                    tooltip="Further LoRAs, such as one of a style, from LoRA (Live Avatar); merged with the other.",
                ),
                io.Vae.Input(
                    "core_vae",
                    optional=True,
                    tooltip="A VAE of Wan 2.1 from core's Load VAE, used instead of the file that vae names. Its "
                    "weights are taken over; blocks are decoded by this pack.",
                ),
            ],
            outputs=[ModelSocket.Output(display_name="model", tooltip="For all other nodes of this pack.")],
            **supported(search_aliases=["live avatar loader", "wan s2v", "talking head model"]),
        )

    @classmethod
    def validate_inputs(
        cls,
        model: str | None = None,
        lora: str | None = None,
        text_encoder: str | None = None,
        audio_encoder: str | None = None,
        vae: str | None = None,
        core_vae: Any = _UNLINKED,
    ) -> bool | str:
        """Whether everything that is named is here, said before anything runs; what comes over a link is not known."""
        if model is None:
            return True
        linked = core_vae is not _UNLINKED
        own_lora, text, audio, own_vae = (part or paths.AUTOMATIC for part in (lora, text_encoder, audio_encoder, vae))
        return paths.model_fault(model, own_lora, text, audio, own_vae, linked)

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> str:
        """Changes with the chosen files, so that a replaced file is loaded anew."""
        return paths.fingerprint(given)

    @classmethod
    def execute(
        cls,
        model: str,
        lora: str,
        text_encoder: str,
        audio_encoder: str,
        vae: str,
        precision: str,
        backend: Any = None,
        loras: tuple[ExtraLoRA, ...] = (),
        core_vae: Any = None,
    ) -> io.NodeOutput:
        """The model, checked but not loaded."""
        with refused_in_widgets():
            vae_path = None if core_vae is None else core_parts.vae_file(core_vae)
            components = paths.open_model(model, lora, text_encoder, audio_encoder, vae, loras, vae_path)
        return io.NodeOutput(open_pipeline(components, backend, None if precision == PRECISIONS[0] else precision))
