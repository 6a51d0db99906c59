"""Audio features by block, wherever they come from: of one speaker, of several side by side, counted from another
block."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from .audio import AudioEncoder


class BlockFeatures(Protocol):
    """Where the audio features of blocks come from.

    Attributes:
        layers, channels: hidden states per frame and their width.
    """

    @property
    def layers(self) -> int: ...

    @property
    def channels(self) -> int: ...

    def block(self, b: int) -> torch.Tensor:
        """Block b as float32 [speakers, layers, channels, 12] on the CPU; one audio track is one speaker."""
        ...

    def close(self) -> None:
        """Let memory and files go."""
        ...


class KnownFeatures(BlockFeatures, Protocol):
    """Features of a known number of blocks."""

    @property
    def blocks(self) -> int:
        """Blocks of 12 frames held."""
        ...


class StackedFeatures:
    """Features of several speakers, in their order.

    Args:
        features: of each, of equal layers and channels; where two say the same, they may be the same object.
    """

    def __init__(self, features: Sequence[BlockFeatures]):
        self._features = tuple(features)
        self.layers, self.channels = features[0].layers, features[0].channels

    def block(self, b: int) -> torch.Tensor:
        """See `BlockFeatures`."""
        made = {id(one): one.block(b) for one in self._features}
        return torch.cat([made[id(one)] for one in self._features])

    def close(self) -> None:
        """See `BlockFeatures`."""
        for features in self._features:
            features.close()


class StackedKnownFeatures(StackedFeatures):
    """The same, of a known number of blocks (see `KnownFeatures`)."""

    def __init__(self, features: Sequence[KnownFeatures]):
        super().__init__(features)
        self.blocks = min(one.blocks for one in features)


class ShiftedFeatures:
    """Features of a video that continues another one: its blocks are counted from the other's.

    Args:
        features: of its own sound.
        first_block: the number of its first block.
    """

    def __init__(self, features: BlockFeatures, first_block: int):
        self._features, self._first_block = features, first_block
        self.layers, self.channels = features.layers, features.channels

    def block(self, b: int) -> torch.Tensor:
        """See `BlockFeatures`."""
        return self._features.block(b - self._first_block)

    def close(self) -> None:
        """See `BlockFeatures`."""
        self._features.close()


class SharedAudioEncoder:
    """One audio encoder for several tracks that are encoded while blocks are made: it is there as long as any holds it.

    Args:
        open_encoder: loads it.
    """

    def __init__(self, open_encoder: Callable[[], AudioEncoder]):
        self._open, self._lock = open_encoder, threading.Lock()
        self._held: Callable[[], AudioEncoder | None] = lambda: None

    def open(self) -> AudioEncoder:
        """The one that is there, or a new one."""
        with self._lock:
            encoder = self._held()
            if encoder is None:
                encoder = self._open()
                self._held = weakref.ref(encoder)
            return encoder
