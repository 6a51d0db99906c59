"""The voice as features."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from ..liveavatar.errors import SpeakerError
from ..liveavatar.events import ENCODING_AUDIO
from ..liveavatar.media.audio import AudioClip
from . import convert
from .host import NodeProgress
from .schema import CATEGORY, AudioSocket, ModelSocket, seconds_input, spoken_input, supported


class AudioFeatures(io.ComfyNode):
    """A voice, encoded block by block in bounded memory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="LiveAvatarAudioFeatures",
            display_name="Audio Features (Live Avatar)",
            category=CATEGORY,
            description="Encodes a voice of any length, in pieces, into what the network needs of it. The sound itself "
            "goes along and is put into the video.",
            inputs=[
                ModelSocket.Input("model", tooltip="Whose audio encoder is used, unless another one is connected."),
                spoken_input("The voice: any rate, mono or stereo, any length from 0.025 s. Several: from Speakers."),
                seconds_input(),
                io.AudioEncoder.Input(
                    "audio_encoder",
                    optional=True,
                    tooltip="A wav2vec2 of core's Load Audio Encoder, to use instead of the model's own.",
                ),
                io.AudioEncoderOutput.Input(
                    "audio_encoder_output",
                    optional=True,
                    tooltip="Core's encoding of the same audio; then nothing is encoded here.",
                ),
            ],
            outputs=[AudioSocket.Output(display_name="audio", tooltip="For the Sampler.")],
            **supported(search_aliases=["live avatar voice", "wav2vec2", "speech"]),
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
        """The voice, with its sound; of several speakers each."""
        spoken = convert.spoken_by(audio)
        with NodeProgress.current((ENCODING_AUDIO,)) as progress:
            if audio_encoder_output is not None:
                if not isinstance(spoken, AudioClip):
                    raise SpeakerError(
                        "Several speakers are connected, and the encoding of one sound.",
                        "Leave audio_encoder_output out; an audio_encoder encodes each of them.",
                    )
                states = convert.audio_states(audio_encoder_output)
                return io.NodeOutput(model.from_audio_states(spoken, states, seconds or None))
            encoder = convert.core_audio_encoder(audio_encoder) if audio_encoder is not None else None
            return io.NodeOutput(model.encode_audio(spoken, seconds or None, progress, encoder))
