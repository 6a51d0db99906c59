"""What the network hears of a sound, handed out block by block."""

from __future__ import annotations

import numpy as np
import torch

from ..config import BLOCK_FRAMES
from ..spool import MEMORY_BYTES, Spool


class AudioFeatures:
    """Hidden states per video frame, handed out by block. Blocks may be read in any order and from several threads.

    float32 takes 4 x layers x channels bytes per frame: 102 kB (2.6 MB a second) for 25 x 1024. Beyond `memory_bytes`
    they lie in a temporary file that disappears with the object.

    Attributes:
        frames: video frames, a multiple of 12.
        layers, channels: hidden states per frame and their width.
    """

    def __init__(self, layers: int, channels: int, memory_bytes: int = MEMORY_BYTES):
        self.layers, self.channels = layers, channels
        self._spool = Spool(layers * channels, memory_bytes)

    @property
    def frames(self) -> int:
        """Video frames held."""
        return len(self._spool)

    @property
    def blocks(self) -> int:
        """Blocks of 12 frames held."""
        return self.frames // BLOCK_FRAMES

    @property
    def on_disk(self) -> bool:
        """Whether they lie in a temporary file."""
        return self._spool.on_disk

    def append(self, rows: np.ndarray) -> None:
        """Add frames: [n, layers, channels]."""
        self._spool.append(rows.reshape(len(rows), -1))

    def block(self, b: int) -> torch.Tensor:
        """Block b as float32 [layers, channels, 12] on the CPU.

        Raises:
            IndexError: no such block.
        """
        if not 0 <= b < self.blocks:
            raise IndexError(f"block {b} of {self.blocks}")
        rows = torch.from_numpy(self._spool.read(b * BLOCK_FRAMES, (b + 1) * BLOCK_FRAMES))
        return rows.reshape(BLOCK_FRAMES, self.layers, self.channels).permute(1, 2, 0).contiguous()

    def close(self) -> None:
        """Let memory and file go now instead of with the object."""
        self._spool.close()
