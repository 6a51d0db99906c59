"""Encoded prompts, audio and images of the latest videos, so that a new seed encodes nothing again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch

from .codec import Encoders, ExecConfig, LatentScale
from .encoders.audio import AudioEncoder, AudioFeatures, Tail
from .events import ENCODING_AUDIO, ENCODING_IMAGE, ENCODING_PROMPT, Callback, ignore, share_event
from .pose import OpenClip
from .spool import Rows
from .streams import Decoder
from .vae.tile_grid import WHOLE, Tiles

PROMPTS, AUDIOS, IMAGES = 64, 4, 8
"""How many are kept. A prompt takes up to 8 MB, one of 30 words half a MB; audio features up to 32 MB of memory, beyond
that a temporary file; the latents of an image 5 MB at 704x384."""
_PIECE = 1 << 20

T = TypeVar("T")


class LatestResults(Generic[T]):
    """The latest results of one encoder, by what they were made of.

    Args:
        limit: how many are kept.
        dismiss: called with a result that is kept no longer.
    """

    def __init__(self, limit: int, dismiss: Callable[[T], None] = lambda result: None):
        self._limit, self._dismiss = limit, dismiss
        self._results: OrderedDict[tuple[object, ...], T] = OrderedDict()

    def get(self, key: tuple[object, ...]) -> T | None:
        """The result for this key, from now on the latest; None where there is none."""
        if key in self._results:
            self._results.move_to_end(key)
        return self._results.get(key)

    def put(self, key: tuple[object, ...], result: T) -> None:
        """Keep a result, and forget the oldest beyond the limit."""
        self._results[key] = result
        while len(self._results) > self._limit:
            self._dismiss(self._results.popitem(last=False)[1])

    def clear(self) -> None:
        """Forget all."""
        while self._results:
            self._dismiss(self._results.popitem()[1])


class ConditioningCache:
    """What was encoded for the latest videos of one model, by content, device and dtype."""

    def __init__(self) -> None:
        self.prompts: LatestResults[torch.Tensor] = LatestResults(PROMPTS)
        self.audio: LatestResults[AudioFeatures] = LatestResults(AUDIOS, AudioFeatures.close)
        self.images: LatestResults[tuple[torch.Tensor, torch.Tensor]] = LatestResults(IMAGES)

    def clear(self) -> None:
        """Forget all; features that a video still reads stay until it has closed them."""
        for results in (self.prompts, self.audio, self.images):
            results.clear()


class CachedEncoders:
    """Encoders that encode nothing twice (see `liveavatar.codec.Encoders`).

    Args:
        encoders: of the model; asked for whatever is not known yet.
        exec_config: where they work; what was encoded elsewhere may differ in its last bits, and is not used.
        cache: what is known.
    """

    def __init__(self, encoders: Encoders, exec_config: ExecConfig, cache: ConditioningCache):
        self.encoders, self.exec_config, self.cache = encoders, exec_config, cache

    def encode_prompts(self, prompts: Sequence[str], callback: Callback = ignore) -> list[torch.Tensor]:
        """See `Encoders`; those that are not known are encoded together."""
        known = {prompt: self.cache.prompts.get((self._place, prompt)) for prompt in prompts}
        found = {prompt: context for prompt, context in known.items() if context is not None}
        unknown = [prompt for prompt in known if prompt not in found]
        if unknown:
            found |= zip(unknown, self.encoders.encode_prompts(unknown, callback), strict=True)
        for prompt in known:
            self.cache.prompts.put((self._place, prompt), found[prompt])
        callback(share_event(ENCODING_PROMPT, 1.0))
        return [found[prompt] for prompt in prompts]

    def encode_audio(
        self, audio: np.ndarray | Rows, frames: int, tail: Tail, callback: Callback = ignore
    ) -> AudioFeatures:
        """See `Encoders`; every caller closes what it got."""
        key = (self._place, digest(audio), frames, tail)
        found = self.cache.audio.get(key)
        if found is None:
            found = self.encoders.encode_audio(audio, frames, tail, callback)
            self.cache.audio.put(key, found)
        callback(share_event(ENCODING_AUDIO, 1.0))
        return found.share()

    def audio_encoder(self, callback: Callback = ignore) -> AudioEncoder:
        """See `Encoders`."""
        return self.encoders.audio_encoder(callback)

    def load_vae(self, callback: Callback = ignore) -> None:
        """See `Encoders`."""
        self.encoders.load_vae(callback)

    def encode_image(
        self, pixels: torch.Tensor, callback: Callback = ignore, tiles: Tiles = WHOLE
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Encoders`."""
        key = (self._place, digest(pixels.numpy()), tuple(pixels.shape), tiles)
        found = self.cache.images.get(key)
        if found is None:
            found = self.encoders.encode_image(pixels, callback, tiles)
            self.cache.images.put(key, found)
        callback(share_event(ENCODING_IMAGE, 1.0))
        return found

    def encode_motion(self, pixels: torch.Tensor, callback: Callback = ignore, tiles: Tiles = WHOLE) -> torch.Tensor:
        """See `Encoders`."""
        return self.encoders.encode_motion(pixels, callback, tiles)

    def pose_encoder(self, size: tuple[int, int], tiles: Tiles = WHOLE) -> OpenClip:
        """See `Encoders`; nothing of it is kept."""
        return self.encoders.pose_encoder(size, tiles)

    def decoder(self, motion: torch.Tensor, callback: Callback = ignore, tiles: Tiles = WHOLE) -> Decoder:
        """See `Encoders`."""
        return self.encoders.decoder(motion, callback, tiles)

    def latent_scale(self) -> LatentScale:
        """See `Encoders`."""
        return self.encoders.latent_scale()

    @property
    def nbytes(self) -> int:
        """See `Encoders`."""
        return self.encoders.nbytes

    def release(self) -> None:
        """See `Encoders`."""
        self.encoders.release()

    @property
    def _place(self) -> tuple[str, str, int]:
        return self.exec_config.device, self.exec_config.dtype, self.exec_config.threads


def digest(values: np.ndarray | Rows) -> str:
    """A hash of the numbers of an array, or of rows that lie in a file, read in pieces."""
    found = hashlib.blake2b(digest_size=16)
    for start in range(0, len(values), _PIECE):
        found.update(np.ascontiguousarray(values[start : start + _PIECE]).data)
    return found.hexdigest()
