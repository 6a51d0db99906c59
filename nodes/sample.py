"""Portraits and voices to begin with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from comfy_api.v0_0_2 import io

from ..liveavatar.media.audio_file import read_audio
from ..liveavatar.media.image import read_image
from .paths import SAMPLES
from .schema import CATEGORY, supported


class Sample(io.ComfyNode):
    """The pack's own drawn portrait and spoken sentence."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets."""
        return io.Schema(
            node_id="LiveAvatarSample",
            display_name="Sample Portrait and Voice (Live Avatar)",
            category=CATEGORY,
            description="A drawn portrait and a spoken sentence that come with the pack, so that a graph runs at once. "
            "Put core Load Image and Load Audio in its place for your own.",
            inputs=[],
            outputs=[
                io.Image.Output(display_name="image", tooltip="A cartoon portrait, 512x512."),
                io.Audio.Output(display_name="audio", tooltip="A few seconds of speech."),
            ],
            **supported(search_aliases=["live avatar example", "demo portrait"]),
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """IMAGE [1, H, W, 3] and AUDIO."""
        return io.NodeOutput(_picture("portrait.png"), _sound("voice.wav"))


class SamplePair(io.ComfyNode):
    """The pack's own drawing of two people, and what each of them says."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets."""
        return io.Schema(
            node_id="LiveAvatarSamplePair",
            display_name="Sample Two People (Live Avatar)",
            category=CATEGORY,
            description="A drawing of two people and what each of them says, which come with the pack, so that a graph "
            "of two speakers runs at once. Put core Load Image and Load Audio in its place for your own.",
            inputs=[],
            outputs=[
                io.Image.Output(display_name="image", tooltip="Two cartoon people side by side, 512x256."),
                io.Audio.Output(display_name="left", tooltip="What the left one says."),
                io.Audio.Output(display_name="right", tooltip="What the right one answers, after a while of silence."),
            ],
            **supported(search_aliases=["live avatar example", "two speakers example"]),
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """IMAGE [1, H, W, 3], and AUDIO of each."""
        return io.NodeOutput(_picture("pair.png"), _sound("pair_left.wav"), _sound("pair_right.wav"))


def _picture(name: str) -> torch.Tensor:
    """IMAGE of a file of the pack."""
    return torch.from_numpy(read_image(SAMPLES / name).astype(np.float32) / 255)[None]


def _sound(name: str) -> dict[str, Any]:
    """AUDIO of a file of the pack."""
    clip = read_audio(SAMPLES / name)
    return {"waveform": torch.from_numpy(np.array(clip.samples[:]).T.copy())[None], "sample_rate": clip.rate}
