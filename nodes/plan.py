"""What would happen, before anything is loaded."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io, ui

from ..liveavatar.request import Request
from .report import make_report
from .schema import CATEGORY, ModelSocket, seconds_input, size_fault, size_input, spoken_input, steps_input, supported


class Plan(io.ComfyNode):
    """Says what will really happen, or why not and what is nearest."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="LiveAvatarPlan",
            display_name="Plan (Live Avatar)",
            category=CATEGORY,
            description="Says what will really happen before anything is loaded: size, frames, seconds, stages on "
            "devices, memory per device and the time, where it is known; or why it cannot be, and the nearest that "
            "works.",
            is_output_node=True,
            inputs=[
                ModelSocket.Input("model", tooltip="From Load Model."),
                size_input(),
                steps_input(),
                seconds_input(),
                io.Image.Input("image", optional=True, tooltip="The portrait; without it, one of the asked aspect."),
                spoken_input("The voice, or Speakers; without it, as long as seconds, or 10 s.", optional=True),
                io.String.Input(
                    "cards",
                    default="",
                    optional=True,
                    tooltip="Plan for other cards than those of the backend, by their GB: 1x80, 4x24 or 2x24,1x48. "
                    "Empty: the backend's own.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="The plan in words."),
                io.Image.Output(display_name="bars", tooltip="Memory per device as a small picture."),
            ],
            **supported(search_aliases=["live avatar memory", "vram"]),
        )

    @classmethod
    def validate_inputs(cls, size: str | None = None) -> bool | str:
        """Whether the size can be read, said before anything runs."""
        return size_fault(size)

    @classmethod
    def execute(
        cls,
        model: Any,
        size: str,
        steps: int,
        seconds: float,
        image: Any = None,
        audio: Any = None,
        cards: str = "",
    ) -> io.NodeOutput:
        """The report and the bars; a refusal is a report too."""
        request = Request(size=size, steps=steps, seconds=seconds or None)
        report = make_report(model, request, image, audio, cards)
        shown = {**ui.PreviewText(report.text).as_dict(), "liveavatar_plan": [report.data]}
        return io.NodeOutput(report.text, report.bars, ui=shown)
