"""The encoders and the VAE in a worker process of their own."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..codec import ExecConfig, LatentScale
from ..components import Components
from ..config import BLOCK_FRAMES, BLOCK_LATENTS
from ..encoders.audio import ALL_ROWS, AudioEncoder, AudioFeatures, Tail, feature_count
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
from ..pose import ClipLost, Encode, OpenClip
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


class RayEncoders:
    """The encoders and the VAE of a model, in a codec worker (see `liveavatar.codec.Encoders`).

    Raises:
        PlanError: the model exists in this process only.
    """

    def __init__(self, components: Components, exec_config: ExecConfig, pool: WorkerPool):
        self.components, self.exec_config = components, exec_config
        self._model, self._worker = ModelSpec.of(components), pool.codec_worker
        self._pool = pool  # its workers end with it

    def encode_prompts(self, prompts: Sequence[str], callback: Callback = ignore) -> list[torch.Tensor]:
        """See `Encoders`."""
        heartbeat = _Heartbeat(callback, ENCODING_PROMPT)
        contexts: list[torch.Tensor] = self._call("read the prompt", heartbeat, "encode_prompts", tuple(prompts))
        return contexts

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
        """See `Encoders`; it stays in the worker. A worker that is lost is replaced, with the same numbers."""
        _Heartbeat(callback, ENCODING_AUDIO)
        return _RemoteAudioEncoder(self._worker, self.exec_config, self._open, callback)

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

    def pose_encoder(self, size: tuple[int, int], tiles: Tiles = WHOLE) -> OpenClip:
        """See `Encoders`; pictures travel block by block. A clip whose worker is lost is encoded again in another one,
        with the same latents."""
        return _RemotePoseEncoder(self._worker, self.exec_config, self._open, size, tiles)

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


class _RemotePart:
    """A part of the model in the codec worker; one that is lost is replaced, as often as workers may be.

    Args:
        handle: of the worker.
        exec_config: where it works.
        have_worker: has one that has opened the model.
        callback: called with a notice of every worker that was replaced, and again and again while one works.
    """

    def __init__(
        self, handle: CodecWorkerHandle, exec_config: ExecConfig, have_worker: Callable[[], None], callback: Callback
    ):
        self._handle, self._place, self._have_worker, self._callback = handle, exec_config, have_worker, callback
        self._number, self._restarts, self._done = next(_numbers), Restarts(handle.limits.restarts), 0
        """Of the part in the worker; how often that may be replaced; blocks that are done."""
        self._worker: WorkerHandle | None = None

    def _begin(self) -> None:
        """Have the part in a worker that does not have it yet."""
        self._have_worker()
        self._open()
        self._worker = self._handle.worker

    def _open(self) -> None:
        raise NotImplementedError

    def _next(self, doing: str, name: str, *given: Any) -> Any:
        """What the worker makes of the next block."""
        while True:
            try:
                if self._handle.worker is None or self._handle.worker is not self._worker:
                    self._begin()
                result = self._call(doing, name, *given)
            except WorkerError as error:
                if not self._restarts.allow(error, self._done):
                    raise
                _log.warning("%s It is replaced.", error)
                text = f"{error.what.rstrip('.')}; it was replaced, going on from block {self._done}."
                self._callback(notice_event(text))
                continue
            self._done += 1
            return result

    def _heartbeat(self) -> None:
        self._callback(Event(GENERATING))

    def _call(self, doing: str, name: str, *given: Any) -> Any:
        return self._handle.call(
            self._place, doing, self._handle.limits.deadline, self._heartbeat, name, self._number, *given
        )


class _RemoteDecoder(_RemotePart):
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
        super().__init__(handle, exec_config, have_worker, callback)
        self._motion, self._tiles = motion, tiles
        self._recent: deque[torch.Tensor] = deque()
        self._begin()

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        pixels = torch.from_numpy(self._next("decode", "decode", latents))
        self._recent.append(latents)
        while sum(one.shape[1] for one in self._recent) - self._recent[0].shape[1] >= CONTEXT_LATENTS * BLOCK_LATENTS:
            self._recent.popleft()
        return pixels

    def __del__(self) -> None:
        self._handle.call_async("close_decoder", self._number)

    def _open(self) -> None:
        """Open the decoder, and decode again what its state depends on."""
        self._call("decode", "open_decoder", self._motion, self._tiles)
        for latents in self._recent:
            self._call("decode", "decode", latents)


class _RemoteAudioEncoder(_RemotePart):
    """The audio encoder in the codec worker (see `liveavatar.encoders.audio.AudioEncoder`); it has no state."""

    layers = channels = 0

    def __init__(
        self, handle: CodecWorkerHandle, exec_config: ExecConfig, have_worker: Callable[[], None], callback: Callback
    ):
        super().__init__(handle, exec_config, have_worker, callback)
        self._begin()

    def states(self, samples: np.ndarray, rows: slice = ALL_ROWS) -> list[torch.Tensor]:
        """See `AudioEncoder`; only the rows that are wanted travel."""
        first, stop, _ = rows.indices(feature_count(len(samples)))
        states: list[torch.Tensor] = self._next("encode the audio", "audio_states", samples, first, stop)
        return states

    def __del__(self) -> None:
        self._handle.call_async("close_audio_encoder", self._number)

    def _open(self) -> None:
        self.layers, self.channels = self._call("encode the audio", "open_audio_encoder")


class _RemotePoseEncoder:
    """Encodes one pose video in the codec worker, clip by clip. A worker that is lost is replaced, as often as workers
    may be.

    Args:
        handle, exec_config, have_worker: as of `_RemotePart`.
        size, tiles: as of `Encoders.pose_encoder`.
    """

    def __init__(
        self,
        handle: CodecWorkerHandle,
        exec_config: ExecConfig,
        have_worker: Callable[[], None],
        size: tuple[int, int],
        tiles: Tiles,
    ):
        self._handle, self._place, self._have_worker = handle, exec_config, have_worker
        self._size, self._tiles = size, tiles
        self._restarts, self._done = Restarts(handle.limits.restarts), 0

    def __call__(self) -> Encode:
        """Begin a clip."""
        return _RemoteClip(self, next(_numbers))

    def open(self, number: int) -> WorkerHandle | None:
        """Begin a clip in the worker that there is then."""
        with self._replacing():
            self._have_worker()
            self._call(no_heartbeat, "open_pose_clip", number, self._size, self._tiles)
        return self._handle.worker

    def encode(
        self, worker: WorkerHandle | None, number: int, pictures: np.ndarray, callback: Callback
    ) -> torch.Tensor:
        """The latents of the next pictures of a clip that was begun in a worker.

        Raises:
            ClipLost: that worker is there no more.
            WorkerError: it was lost and may not be replaced, or failed.
        """
        if worker is None or self._handle.worker is not worker:
            raise ClipLost
        with self._replacing():
            at_work = functools.partial(callback, Event(GENERATING))
            latents: torch.Tensor = self._call(at_work, "encode_pose", number, pictures)
        self._done += 1
        return latents

    def close(self, number: int) -> None:
        """Let a clip go."""
        self._handle.call_async("close_pose_clip", number)

    def _call(self, heartbeat: Heartbeat, name: str, *given: Any) -> Any:
        return self._handle.call(self._place, "encode the pose", self._handle.limits.deadline, heartbeat, name, *given)

    @contextlib.contextmanager
    def _replacing(self) -> Iterator[None]:
        """Where the worker is lost inside, the clip is."""
        try:
            yield
        except WorkerError as error:
            if not self._restarts.allow(error, self._done):
                raise
            _log.warning("%s It is replaced.", error)
            raise ClipLost from error


class _RemoteClip:
    """One clip of a pose video, begun with its first pictures."""

    def __init__(self, encoder: _RemotePoseEncoder, number: int):
        self._encoder, self._number = encoder, number
        self._worker = encoder.open(number)

    def __call__(self, pictures: np.ndarray, callback: Callback) -> torch.Tensor:
        return self._encoder.encode(self._worker, self._number, pictures, callback)

    def __del__(self) -> None:
        self._encoder.close(self._number)
