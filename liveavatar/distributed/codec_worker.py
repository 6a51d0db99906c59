"""The worker process of the encoders and the VAE: the methods that its driver calls."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from ..codec import ExecConfig, LocalEncoders
from ..encoders.audio import AudioEncoder, AudioFeatures, Tail
from ..errors import Cancelled
from ..events import Event, ignore
from ..pose import Encode
from ..spool import Spool
from ..streams import Decoder
from ..vae.tile_grid import Tiles
from .wire import ModelSpec
from .worker import BaseWorker

T = TypeVar("T")
_log = logging.getLogger("liveavatar.worker")


class CodecWorker(BaseWorker):
    """Encoders and VAE of one model at a time, and the decoders that are open.

    Methods are called from several threads of Ray. Whatever computes does so alone, but for a prompt or an image that
    is encoded: a live talk goes on meanwhile. `audio_progress` and `close_audio` answer at any time.

    Args:
        log: the file that its output goes to.
    """

    def __init__(self, log: str) -> None:
        super().__init__(log)
        self._alone, self._encoding = threading.Lock(), threading.Lock()
        self._opened: tuple[ModelSpec, ExecConfig] | None = None
        self._codec: LocalEncoders | None = None
        self._decoders: dict[int, Decoder] = {}
        self._audio: dict[int, _AudioJob] = {}
        self._audio_encoders: dict[int, AudioEncoder] = {}
        self._clips: dict[int, Encode] = {}

    def open(self, model: ModelSpec, exec_config: ExecConfig) -> None:
        """Open a model for the calls that follow; nothing is loaded yet."""
        with self._alone:
            if self._opened != (model, exec_config):
                self._decoders.clear()
                self._audio_encoders.clear()
                self._clips.clear()
                self._codec = LocalEncoders(model.open(), exec_config)
                self._opened = (model, exec_config)

    def encode_prompts(self, prompts: tuple[str, ...]) -> list[torch.Tensor]:
        """See `Encoders.encode_prompts`."""
        with self._encoding:
            return self._the_codec.encode_prompts(prompts)

    def load_vae(self) -> int:
        """Have the VAE; its bytes."""
        self._compute(lambda codec: codec.load_vae())
        _log.info("the VAE is loaded")
        return self._the_codec.nbytes

    def encode_image(self, pixels: torch.Tensor, tiles: Tiles) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Encoders.encode_image`."""
        self._compute(lambda codec: codec.load_vae())
        with self._encoding:
            return self._the_codec.encode_image(pixels, tiles=tiles)

    def encode_motion(self, pixels: torch.Tensor, tiles: Tiles) -> torch.Tensor:
        """See `Encoders.encode_motion`."""
        return self._compute(lambda codec: codec.encode_motion(pixels, tiles=tiles))

    def latent_scale(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Encoders.latent_scale`."""
        return self._compute(lambda codec: codec.latent_scale())

    # -- audio, sent and fetched in pieces, because an hour of it is large --

    def begin_audio(self, number: int) -> None:
        """Begin an audio track."""
        self._audio[number] = _AudioJob()

    def add_audio(self, number: int, samples: np.ndarray) -> None:
        """Append 16 kHz samples [n]."""
        self._audio[number].samples.append(samples.reshape(-1, 1))

    def encode_audio(self, number: int, frames: int, tail: Tail) -> tuple[int, int]:
        """Encode audio for so many frames; layers and channels of what `audio_features` gives then."""
        audio = self._audio[number]
        wave = audio.samples.rows(flat=True)
        audio.features = self._compute(lambda codec: codec.encode_audio(wave, frames, tail, audio.on_event))
        return audio.features.layers, audio.features.channels

    def audio_progress(self, number: int) -> float:
        """How much of the audio is encoded, 0 to 1."""
        return self._audio[number].share

    def audio_features(self, number: int, block: int, count: int) -> np.ndarray:
        """Features of some blocks: [12 count, layers, channels]."""
        features = self._audio[number].features
        if features is None:
            raise RuntimeError("no audio is encoded")
        return torch.cat([features.block(b)[0].permute(2, 0, 1) for b in range(block, block + count)]).numpy()

    def close_audio(self, number: int) -> None:
        """End `encode_audio` before its next window, and free its features."""
        audio = self._audio.pop(number, None)
        if audio is not None:
            audio.stopped = True

    # -- audio encoders, by number --

    def open_audio_encoder(self, number: int) -> tuple[int, int]:
        """Load an audio encoder; the layers and channels of its states."""
        encoder = self._audio_encoders[number] = self._compute(lambda codec: codec.audio_encoder())
        return encoder.layers, encoder.channels

    def audio_states(self, number: int, samples: np.ndarray, first: int, stop: int) -> list[torch.Tensor]:
        """Rows `first` to `stop` of what an audio encoder makes of samples; see `AudioEncoder.states`."""
        encoder = self._audio_encoders[number]
        with self._alone, self._the_codec.exec_config.active():
            return [state.float().cpu() for state in encoder.states(samples, slice(first, stop))]

    def close_audio_encoder(self, number: int) -> None:
        """Let an audio encoder go."""
        self._audio_encoders.pop(number, None)

    # -- clips of pose videos, by number --

    def open_pose_clip(self, number: int, size: tuple[int, int], tiles: Tiles) -> None:
        """Begin a clip; see `Encoders.pose_encoder`."""
        self._clips[number] = self._compute(lambda codec: codec.pose_encoder(size, tiles)())

    def encode_pose(self, number: int, pictures: np.ndarray) -> torch.Tensor:
        """The latents of the next pictures of a clip."""
        return self._compute(lambda codec: self._clips[number](pictures, ignore)).cpu()

    def close_pose_clip(self, number: int) -> None:
        """Free what a clip's encoder remembers."""
        self._clips.pop(number, None)

    # -- decoders, by number --

    def open_decoder(self, number: int, motion: torch.Tensor, tiles: Tiles) -> None:
        """Open a decoder."""
        self._decoders[number] = self._compute(lambda codec: codec.decoder(motion, tiles=tiles))

    def decode(self, number: int, latents: torch.Tensor) -> np.ndarray:
        """The next images of a decoder: [3, 12, H, W]."""
        return self._compute(lambda codec: self._decoders[number](latents)).numpy()

    def close_decoder(self, number: int) -> None:
        """Free a decoder's state."""
        self._decoders.pop(number, None)

    def _compute(self, what: Callable[[LocalEncoders], T]) -> T:
        with self._alone:
            return what(self._the_codec)

    @property
    def _the_codec(self) -> LocalEncoders:
        if self._codec is None:
            raise RuntimeError("no model is open")
        return self._codec


@dataclasses.dataclass
class _AudioJob:
    """Audio being encoded; its memory goes with it.

    Attributes:
        samples: received so far.
        features: of the audio, when it is encoded.
        share: how much of it is encoded.
        stopped: whether it was closed.
    """

    samples: Spool = dataclasses.field(default_factory=lambda: Spool(1))
    features: AudioFeatures | None = None
    share: float = 0.0
    stopped: bool = False

    def on_event(self, event: Event) -> None:
        """The callback of its encoding: notes how far it is, and ends it when nobody waits for it."""
        self.share = event.share
        if self.stopped:
            raise Cancelled("Nobody waits for this audio any more.")
