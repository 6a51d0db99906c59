"""What the worker of the encoders and the VAE does for its caller. Only plain data goes in and comes out."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from ....codec import LocalCodec, Place
from ....encoders.audio import Tail
from ....encoders.features import AudioFeatures
from ....errors import Cancelled
from ....spool import Spool
from ....streams.frames import Decoder
from ....vae.tiling import Tiles
from ..plain import PlainModel, model_of
from .living import Living

T = TypeVar("T")
_log = logging.getLogger("liveavatar.worker")


class CodecWorker(Living):
    """Encoders and VAE of one model at a time, and the decoders that are open.

    Methods are called from several threads of Ray. Whatever computes does so alone; `share` and `forget_sound` answer
    meanwhile.

    Args:
        log: the file that gets all it says.
    """

    def __init__(self, log: str) -> None:
        super().__init__(log)
        self._alone = threading.Lock()
        self._opened: tuple[PlainModel, Place] | None = None
        self._codec: LocalCodec | None = None
        self._decoders: dict[int, Decoder] = {}
        self._sounds: dict[int, _Sound] = {}

    def open(self, model: PlainModel, device: str, dtype: str, threads: int, cap: int) -> None:
        """Work for this model at this place from now on; nothing is loaded."""
        place = Place(device, dtype, threads, cap)
        with self._alone:
            if self._opened != (model, place):
                self._decoders.clear()
                self._codec = LocalCodec(model_of(model), place)
                self._opened = (model, place)

    def read(self, prompt: str) -> torch.Tensor:
        """See `Codec.read`."""
        return self._compute(lambda codec: codec.read(prompt, _nothing))

    def load_vae(self) -> int:
        """Have the VAE; its bytes."""
        self._compute(lambda codec: codec.load_vae(_nothing))
        _log.info("the VAE is loaded")
        return self._the_codec.nbytes

    def look(self, pixels: torch.Tensor, tiles: Tiles) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Codec.look`."""
        return self._compute(lambda codec: codec.look(pixels, _nothing, tiles))

    def latent_scale(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Codec.latent_scale`."""
        return self._compute(lambda codec: codec.latent_scale())

    # -- sound, handed over and fetched in pieces, because an hour of it is large --

    def begin_sound(self, number: int) -> None:
        """A new one."""
        self._sounds[number] = _Sound()

    def add_sound(self, number: int, samples: np.ndarray) -> None:
        """More of it: 16 kHz samples [n]."""
        self._sounds[number].wave.append(samples.reshape(-1, 1))

    def hear(self, number: int, frames: int, tail: Tail) -> tuple[int, int]:
        """Encode a sound for so many frames; layers and channels of what `heard` gives then."""
        sound = self._sounds[number]
        wave = sound.wave.rows(flat=True)
        sound.features = self._compute(lambda codec: codec.hear(wave, frames, tail, sound.tell, sound.check))
        return sound.features.layers, sound.features.channels

    def share(self, number: int) -> float:
        """How much of the sound is encoded, 0 to 1."""
        return self._sounds[number].share

    def heard(self, number: int, block: int, count: int) -> np.ndarray:
        """Features of some blocks: [12 count, layers, channels]."""
        features = self._sounds[number].features
        if features is None:
            raise RuntimeError("nothing was heard")
        return torch.cat([features.block(b).permute(2, 0, 1) for b in range(block, block + count)]).numpy()

    def forget_sound(self, number: int) -> None:
        """End `hear` before its next window, and give back what was heard."""
        sound = self._sounds.pop(number, None)
        if sound is not None:
            sound.stopped = True

    # -- decoders, by number --

    def open_decoder(self, number: int, motion: torch.Tensor, tiles: Tiles) -> None:
        """A new one."""
        self._decoders[number] = self._compute(lambda codec: codec.decoder(motion, tiles=tiles))

    def decode(self, number: int, latents: torch.Tensor) -> np.ndarray:
        """The next pictures of a decoder: [3, 12, H, W]."""
        return self._compute(lambda codec: self._decoders[number](latents)).numpy()

    def close_decoder(self, number: int) -> None:
        """Give back its state."""
        self._decoders.pop(number, None)

    def _compute(self, what: Callable[[LocalCodec], T]) -> T:
        with self._alone:
            return what(self._the_codec)

    @property
    def _the_codec(self) -> LocalCodec:
        if self._codec is None:
            raise RuntimeError("no model is open")
        return self._codec


@dataclasses.dataclass
class _Sound:
    """One that is being heard; its memory goes with it.

    Attributes:
        wave: what has arrived of it.
        features: what was heard.
        share: how much of it is encoded.
        stopped: whether nobody waits for it any more.
    """

    wave: Spool = dataclasses.field(default_factory=lambda: Spool(1))
    features: AudioFeatures | None = None
    share: float = 0.0
    stopped: bool = False

    def tell(self, share: float) -> None:
        """How far it is."""
        self.share = share

    def check(self) -> None:
        """Asked before every window."""
        if self.stopped:
            raise Cancelled("Nobody listens any more.")


def _nothing() -> None:
    """Nobody looks up while this lasts."""
