"""A portrait and a voice to begin with."""

from __future__ import annotations

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
        pixels = read_image(SAMPLES / "portrait.png")
        clip = read_audio(SAMPLES / "voice.wav")
        waveform = torch.from_numpy(np.array(clip.samples[:]).T.copy())[None]
        image = torch.from_numpy(pixels.astype(np.float32) / 255)[None]
        return io.NodeOutput(image, {"waveform": waveform, "sample_rate": clip.rate})
