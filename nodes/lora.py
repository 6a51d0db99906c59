"""A further LoRA for the network."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from ..liveavatar.weights.lora import NO_LORA, ExtraLoRA
from . import paths
from .schema import CATEGORY, LoRAsSocket, supported


class LoRA(io.ComfyNode):
    """A LoRA and its strength, behind those that are connected."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="LiveAvatarLoRA",
            display_name="LoRA (Live Avatar)",
            category=CATEGORY,
            description="A further LoRA, such as one of a style, for the loras input of Load Model; several in a row "
            "are merged together. The distillation LoRA that four steps need is chosen in Load Model itself.",
            inputs=[
                io.Combo.Input(
                    "lora",
                    options=paths.lora_choices(),
                    default=NO_LORA,
                    tooltip="A LoRA for the 14B models of Wan 2.1 or 2.2, in models/loras. What it names and this "
                    "network lacks is left out and told by the plan and the receipt. none: this node adds nothing.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much of it: 1 is what it was trained for, 0 nothing.",
                ),
                LoRAsSocket.Input("loras", optional=True, tooltip="Of another node like this one, to be merged too."),
            ],
            outputs=[LoRAsSocket.Output(display_name="loras", tooltip="For Load Model, or another node like this.")],
            **supported(search_aliases=["live avatar lora", "lora loader", "lora stack", "style"]),
        )

    @classmethod
    def validate_inputs(cls, lora: str | None = None) -> bool | str:
        """Whether the file is here, said before anything runs."""
        return paths.lora_fault(lora)

    @classmethod
    def fingerprint_inputs(cls, lora: str | None = None, **given: Any) -> str:
        """Changes with the file, so that a replaced one is read anew."""
        return paths.lora_fingerprint(lora)

    @classmethod
    def execute(cls, lora: str, strength: float, loras: tuple[ExtraLoRA, ...] = ()) -> io.NodeOutput:
        """The stack; whether it fits the network is for Load Model to say."""
        own = () if lora == NO_LORA else (ExtraLoRA(paths.lora_path(lora), strength),)
        return io.NodeOutput((*loras, *own))
