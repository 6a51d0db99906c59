"""Equally sized tensors in an unnamed file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from ..errors import OutputError


class BlockFile:
    """Equally sized blocks in an unnamed file. Not thread-safe: the stream's lock guards it."""

    def __init__(self, folder: Path | None):
        self.blocks = 0
        self._shape: tuple[int, ...] = ()
        self._dtype = torch.float32
        self._folder = folder
        try:
            # Unbuffered: a full disk shows at the write that meets it, not at some later one.
            self._file = tempfile.TemporaryFile(buffering=0, prefix="liveavatar-", dir=folder)  # noqa: SIM115
        except OSError as error:
            raise self._refusal("opened", error) from error

    def append(self, block: torch.Tensor) -> None:
        """Write one block at the end.

        Raises:
            OutputError: the disk is full or cannot be written.
            ValueError: the block has another shape or dtype than those before it.
        """
        if not self.blocks:
            self._shape, self._dtype = tuple(block.shape), block.dtype
        if (tuple(block.shape), block.dtype) != (self._shape, self._dtype):
            raise ValueError(f"Block {self.blocks} is {tuple(block.shape)} {block.dtype}, others {self._shape}.")
        data = _bytes_of(block.detach().cpu().contiguous()).data
        try:
            self._file.seek(self.blocks * len(data))
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise self._refusal("written", error) from error
        self.blocks += 1

    def read(self, index: int) -> torch.Tensor:
        """Block `index` as a new tensor.

        Raises:
            OutputError: the file cannot be read.
        """
        block = torch.empty(self._shape, dtype=self._dtype)
        data = _bytes_of(block).data
        try:
            self._file.seek(index * len(data))
            while data:
                count = self._file.readinto(data)
                if not count:
                    raise OSError("the file is shorter than it was")
                data = data[count:]
        except OSError as error:
            raise self._refusal("read", error) from error
        return block

    def close(self) -> None:
        """Remove the file. May be called again."""
        self._file.close()

    def _refusal(self, verb: str, error: OSError) -> OutputError:
        folder = self._folder or Path(tempfile.gettempdir())
        return OutputError(
            f"The temporary file for finished blocks in {folder} cannot be {verb} ({error.strerror or error}).",
            "Free some space there (6 GB per hour of video at 704x384) or choose another folder for temporary files.",
        )


def _bytes_of(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a contiguous CPU tensor, whatever its dtype (numpy has no bfloat16)."""
    return tensor.reshape(-1).view(torch.uint8).numpy()
