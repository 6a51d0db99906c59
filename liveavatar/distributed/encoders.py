"""The encoders and the VAE in a worker process of their own."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..codec import ExecConfig, LatentScale
from ..components import Components
from ..config import BLOCK_FRAMES
from ..encoders.audio import AudioEncoder, AudioFeatures, Tail
from ..errors import PlanError
from ..events import (
    ENCODING_AUDIO,
    ENCODING_IMAGE,
    ENCODING_PROMPT,
    GENERATING,
    LOADING_VAE,
    Callback,
    Event,
    ignore,
    notice_event,
    share_event,
)
from ..spool import Rows
from ..streams import Decoder
from ..vae.decoding import CONTEXT_LATENTS
from ..vae.tile_grid import WHOLE, Tiles
from .pool import LOAD_TIMEOUT_SECONDS, CodecWorkerHandle, Heartbeat, WorkerPool, no_heartbeat
from .wire import ModelSpec
from .worker_handle import Restarts, WorkerError, WorkerHandle

_log = logging.getLogger(__name__)
_numbers = itertools.count(1)
"""Of audio and decoders."""
_PIECE = 1 << 20
_BLOCKS_AT_ONCE = 8


def only_local(what: str) -> PlanError:
    """Something that worker processes cannot do yet."""
    return PlanError(
        f"{what} is not possible in worker processes yet.",
        "Run it in this process (engine local), on the same devices.",
    )


class RayEncoders:
    """The encoders and the VAE of a model, in a codec worker (see `liveavatar.codec.Encoders`).

    Raises:
        PlanError: the model exists in this process only.
    """

    def __init__(self, components: Components, exec_config: ExecConfig, pool: WorkerPool):
        self.components, self.exec_config = components, exec_config
        self._model, self._worker = ModelSpec.of(components), pool.codec_worker
        self._pool = pool  # its workers end with it

    def encode_prompt(self, prompt: str, callback: Callback = ignore) -> torch.Tensor:
        """See `Encoders`."""
        heartbeat = _Heartbeat(callback, ENCODING_PROMPT)
        context: torch.Tensor = self._call("read the prompt", heartbeat, "encode_prompt", prompt)
        return context

    def encode_audio(
        self, audio: np.ndarray | Rows, frames: int, tail: Tail, callback: Callback = ignore
    ) -> AudioFeatures:
        """See `Encoders`; samples travel to the worker and features come back, both in pieces."""
        number, heartbeat = next(_numbers), _Heartbeat(callback, ENCODING_AUDIO)
        self._call("encode the audio", heartbeat, "begin_audio", number)
        try:
            for start in range(0, len(audio), _PIECE):
                heartbeat()
                piece = np.ascontiguousarray(audio[start : start + _PIECE])
                self._call("encode the audio", heartbeat, "add_audio", number, piece)

            def read_share() -> None:
                share = self._worker.call(
                    self.exec_config, "encode the audio", LOAD_TIMEOUT_SECONDS, heartbeat, "audio_progress", number
                )
                heartbeat.set_share(share)

            layers, channels = self._call("encode the audio", read_share, "encode_audio", number, frames, tail)
            heartbeat.set_share(1.0)
            return self._fetch(number, AudioFeatures(layers, channels), frames // BLOCK_FRAMES, heartbeat)
        finally:
            self._worker.call_async("close_audio", number)

    def audio_encoder(self, callback: Callback = ignore) -> AudioEncoder:
        """Not to be had: it lives in the worker."""
        raise only_local("Live talk")

    def load_vae(self, callback: Callback = ignore) -> None:
        """See `Encoders`."""
        heartbeat = _Heartbeat(callback, LOADING_VAE)
        self._open(heartbeat)
        self._worker.load_vae(self.exec_config, heartbeat)

    def encode_image(
        self, pixels: torch.Tensor, callback: Callback = ignore, tiles: Tiles = WHOLE
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Encoders`."""
        heartbeat = _Heartbeat(callback, ENCODING_IMAGE)
        reference, motion = self._call("encode the image", heartbeat, "encode_image", pixels, tiles)
        heartbeat.set_share(1.0)
        return reference, motion

    def encode_motion(self, pixels: torch.Tensor, callback: Callback = ignore, tiles: Tiles = WHOLE) -> torch.Tensor:
        """See `Encoders`."""
        motion: torch.Tensor = self._call(
            "encode the video", _Heartbeat(callback, ENCODING_IMAGE), "encode_motion", pixels, tiles
        )
        return motion

    def decoder(self, motion: torch.Tensor, callback: Callback = ignore, tiles: Tiles = WHOLE) -> Decoder:
        """See `Encoders`; a worker that is lost is replaced, with the same frames."""
        return _RemoteDecoder(self._worker, self.exec_config, self._open, motion.cpu().clone(), tiles, callback)

    def latent_scale(self) -> LatentScale:
        """See `Encoders`."""
        mean, inverse_std = self._call("load the VAE", no_heartbeat, "latent_scale")
        return mean, inverse_std

    @property
    def nbytes(self) -> int:
        """See `Encoders`."""
        return self._worker.nbytes

    def release(self) -> None:
        """See `Encoders`."""
        self._worker.release()

    def _open(self, heartbeat: Heartbeat = no_heartbeat) -> None:
        self._worker.open(self._model, self.exec_config, heartbeat)

    def _call(self, doing: str, heartbeat: Heartbeat, name: str, *given: Any) -> Any:
        self._open(heartbeat)
        return self._worker.call(self.exec_config, doing, LOAD_TIMEOUT_SECONDS, heartbeat, name, *given)

    def _fetch(self, number: int, features: AudioFeatures, blocks: int, heartbeat: Heartbeat) -> AudioFeatures:
        try:
            for block in range(0, blocks, _BLOCKS_AT_ONCE):
                count = min(_BLOCKS_AT_ONCE, blocks - block)
                features.append(self._call("encode the audio", heartbeat, "audio_features", number, block, count))
        except BaseException:
            features.close()
            raise
        return features


class _Heartbeat:
    """A phase whose latest event is sent again at every call, so that the callback can cancel it."""

    def __init__(self, callback: Callback, phase: str):
        self._callback, self._event = callback, share_event(phase, 0.0)
        self()

    def __call__(self) -> None:
        self._callback(self._event)

    def set_share(self, share: float) -> None:
        """Send that a share of 0 to 1 is finished."""
        self._event = share_event(self._event.phase, share)
        self()


class _RemoteDecoder:
    """One video being decoded, with the latents that a new worker would need to go on."""

    def __init__(
        self,
        handle: CodecWorkerHandle,
        exec_config: ExecConfig,
        have_worker: Callable[[], None],
        motion: torch.Tensor,
        tiles: Tiles,
        callback: Callback,
    ):
        self._handle, self._place, self._have_worker = handle, exec_config, have_worker
        self._motion, self._tiles, self._callback = motion, tiles, callback
        self._recent: deque[torch.Tensor] = deque(maxlen=CONTEXT_LATENTS)
        self._number, self._restarts, self._decoded = next(_numbers), Restarts(handle.limits.restarts), 0
        self._worker: WorkerHandle | None = None
        self._begin()

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        while True:
            try:
                self._restore()
                pixels = torch.from_numpy(self._call("decode", latents))
            except WorkerError as error:
                if not self._restarts.allow(error, self._decoded):
                    raise
                _log.warning("%s It is replaced.", error)
                text = f"{error.what.rstrip('.')}; it was replaced, going on from block {self._decoded}."
                self._callback(notice_event(text))
                continue
            self._recent.append(latents)
            self._decoded += 1
            return pixels

    def __del__(self) -> None:
        self._handle.call_async("close_decoder", self._number)

    def _begin(self) -> None:
        self._have_worker()
        self._call("open_decoder", self._motion, self._tiles)
        self._worker = self._handle.worker

    def _restore(self) -> None:
        """Open the decoder in a worker that does not have it yet, and decode again what its state depends on."""
        if self._handle.worker is None or self._handle.worker is not self._worker:
            self._begin()
            for latents in self._recent:
                self._call("decode", latents)

    def _heartbeat(self) -> None:
        self._callback(Event(GENERATING))

    def _call(self, name: str, *given: Any) -> Any:
        return self._handle.call(
            self._place, "decode", self._handle.limits.deadline, self._heartbeat, name, self._number, *given
        )
