"""The encoders and the VAE in a worker process of their own."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ....codec import Check, LatentScale, Place
from ....components import Components
from ....config import BLOCK_FRAMES
from ....encoders.audio import Tail
from ....encoders.features import AudioFeatures
from ....session import OnNotice, unnoticed
from ....spool import Rows
from ....streams.frames import Decoder
from ....vae.stream import MEMORY_BLOCKS
from ....vae.tiling import WHOLE, Tiles
from ..plain import plain_model
from .desk import LOAD_SECONDS, Desk, nothing
from .faults import Restarts, WorkerError
from .member import Member

_log = logging.getLogger(__name__)
_numbers = itertools.count(1)
"""Of sounds and decoders."""
_PIECE = 1 << 20
_BLOCKS_AT_ONCE = 8


class RayCodec:
    """The encoders and the VAE of a model, in the worker of a desk (see `liveavatar.codec.Codec`).

    Raises:
        PlanError: the model exists in this process only.
    """

    def __init__(self, components: Components, place: Place, desk: Desk):
        self.components, self.place = components, place
        self._model, self._desk = plain_model(components), desk

    def read(self, prompt: str, check: Check) -> torch.Tensor:
        """See `Codec`."""
        context: torch.Tensor = self._ask("read the prompt", check, "read", prompt)
        return context

    def hear(
        self, wave: np.ndarray | Rows, frames: int, tail: Tail, progress: Callable[[float], None], check: Check
    ) -> AudioFeatures:
        """See `Codec`; the sound travels to the worker and what it hears comes back, both in pieces."""
        number = next(_numbers)
        self._ask("listen", check, "begin_sound", number)
        try:
            for start in range(0, len(wave), _PIECE):
                check()
                piece = np.ascontiguousarray(wave[start : start + _PIECE])
                self._ask("listen", check, "add_sound", number, piece)
            watch = self._watching(number, progress, check)
            layers, channels = self._ask("listen", watch, "hear", number, frames, tail)
            progress(1.0)
            return self._fetch(number, AudioFeatures(layers, channels), frames // BLOCK_FRAMES, check)
        finally:
            self._desk.tell("forget_sound", number)

    def load_vae(self, check: Check) -> None:
        """See `Codec`."""
        self._desk.nbytes = self._ask("load the VAE", check, "load_vae")

    def look(self, pixels: torch.Tensor, check: Check, tiles: Tiles = WHOLE) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Codec`."""
        reference, motion = self._ask("encode the picture", check, "look", pixels, tiles)
        return reference, motion

    def decoder(self, motion: torch.Tensor, on_notice: OnNotice = unnoticed, tiles: Tiles = WHOLE) -> Decoder:
        """See `Codec`; a worker that is lost is replaced, and the pictures are the same."""
        return _Decoding(self._desk, self.place, self._open, motion.cpu().clone(), tiles, on_notice)

    def latent_scale(self) -> LatentScale:
        """See `Codec`."""
        mean, inverse_std = self._ask("load the VAE", nothing, "latent_scale")
        return mean, inverse_std

    @property
    def nbytes(self) -> int:
        """See `Codec`."""
        return self._desk.nbytes

    def release(self) -> None:
        """See `Codec`."""
        self._desk.release()

    def _open(self, check: Check = nothing) -> None:
        self._desk.open(self._model, self.place, check)

    def _ask(self, doing: str, check: Check, name: str, *given: Any) -> Any:
        self._open(check)
        return self._desk.ask(self.place, doing, LOAD_SECONDS, check, name, *given)

    def _watching(self, number: int, progress: Callable[[float], None], check: Check) -> Check:
        """A check that also tells how far the worker is."""

        def look() -> None:
            check()
            progress(self._desk.ask(self.place, "listen", LOAD_SECONDS, check, "share", number))

        return look

    def _fetch(self, number: int, features: AudioFeatures, blocks: int, check: Check) -> AudioFeatures:
        try:
            for block in range(0, blocks, _BLOCKS_AT_ONCE):
                count = min(_BLOCKS_AT_ONCE, blocks - block)
                features.append(self._ask("listen", check, "heard", number, block, count))
        except BaseException:
            features.close()
            raise
        return features


class _Decoding:
    """One video being decoded, with the latents that a new worker would need to go on."""

    def __init__(
        self,
        desk: Desk,
        place: Place,
        have_worker: Callable[[], None],
        motion: torch.Tensor,
        tiles: Tiles,
        on_notice: OnNotice,
    ):
        self._desk, self._place, self._have_worker = desk, place, have_worker
        self._motion, self._tiles, self._on_notice = motion, tiles, on_notice
        self._recent: deque[torch.Tensor] = deque(maxlen=MEMORY_BLOCKS)
        self._number, self._restarts, self._decoded = next(_numbers), Restarts(desk.limits.restarts), 0
        self._worker: Member | None = None
        self._begin()

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        while True:
            try:
                self._go_on()
                pixels = torch.from_numpy(self._ask("decode", latents).copy())
            except WorkerError as error:
                if not self._restarts.allow(error, self._decoded):
                    raise
                _log.warning("%s It is replaced.", error)
                self._on_notice(f"{error.what.rstrip('.')}; it was replaced, going on from block {self._decoded}.")
                continue
            self._recent.append(latents)
            self._decoded += 1
            return pixels

    def __del__(self) -> None:
        self._desk.tell("close_decoder", self._number)

    def _begin(self) -> None:
        self._have_worker()
        self._ask("open_decoder", self._motion, self._tiles)
        self._worker = self._desk.member

    def _go_on(self) -> None:
        """Bring a worker that is new to this video to where the old one was."""
        if self._desk.member is None or self._desk.member is not self._worker:
            self._begin()
            for latents in self._recent:
                self._ask("decode", latents)

    def _ask(self, name: str, *given: Any) -> Any:
        return self._desk.ask(self._place, "decode", self._desk.limits.deadline, nothing, name, self._number, *given)
