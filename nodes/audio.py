"""The voice as features."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from . import bridge
from .host import Watch
from .schema import CATEGORY, AudioSocket, ModelSocket, newer, seconds_input


class AudioFeatures(io.ComfyNode):
    """A voice, heard block by block in bounded memory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="LiveAvatarAudioFeatures",
            display_name="Audio Features (Live Avatar)",
            category=CATEGORY,
            description="Listens to a voice of any length, in pieces, and keeps what the network hears of it. The "
            "sound itself goes along and is put into the video.",
            inputs=[
                ModelSocket.Input("model", tooltip="Whose audio encoder listens, unless another one is connected."),
                io.Audio.Input("audio", tooltip="The voice: any rate, mono or stereo, any length from 0.025 s."),
                seconds_input(),
                io.AudioEncoder.Input(
                    "audio_encoder",
                    optional=True,
                    tooltip="A wav2vec2 of core's Load Audio Encoder, to listen instead of the model's own.",
                ),
                io.AudioEncoderOutput.Input(
                    "audio_encoder_output",
                    optional=True,
                    tooltip="Core's encoding of the same audio; then nothing is encoded here.",
                ),
            ],
            outputs=[AudioSocket.Output(display_name="audio", tooltip="For the Sampler.")],
            **newer(search_aliases=["live avatar voice", "wav2vec2", "speech"]),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        audio: Any,
        seconds: float,
        audio_encoder: Any = None,
        audio_encoder_output: Any = None,
    ) -> io.NodeOutput:
        """The voice, with its sound."""
        sound = bridge.sound_of(audio)
        with Watch.now() as watch:
            if audio_encoder_output is not None:
                states = bridge.states_of(audio_encoder_output)
                return io.NodeOutput(model.heard(sound, states, seconds or None))
            listener = bridge.listener_of(audio_encoder) if audio_encoder is not None else None
            return io.NodeOutput(model.listen(sound, seconds or None, watch.phase, listener))
