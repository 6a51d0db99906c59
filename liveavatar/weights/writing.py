"""Safetensors files that are written tensor by tensor: what is written may be larger than memory."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import BinaryIO

import torch

from ..files import write_all

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.uint8: "U8",
    torch.int8: "I8",
}
"""The format's own names of the numbers."""
_ALIGNMENT = 8
"""Bytes at a multiple of which the numbers begin."""


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor that is made when it is written.

    Attributes:
        shape, dtype: known before.
        read: makes it, on any device.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> LazyTensor:
        """One that is there already."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(file: BinaryIO, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]) -> None:
    """Write a whole file; of the tensors one is there at a time.

    Args:
        file: unbuffered, at its beginning.
        tensors: by name, in the order in which they are written.
        metadata: free text entries of the header.

    Raises:
        OSError: it cannot be written.
        ValueError: a tensor is not what was said of it.
    """
    write_all(file, _header(tensors, metadata))
    for name, lazy in tensors.items():
        tensor = lazy.read()
        if (tuple(tensor.shape), tensor.dtype) != (lazy.shape, lazy.dtype):
            raise ValueError(f"{name} is {list(tensor.shape)} {tensor.dtype}, not {list(lazy.shape)} {lazy.dtype}.")
        if tensor.numel():
            write_all(file, tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _header(tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]) -> bytes:
    """The length of the header, and the header."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, lazy in tensors.items():
        start, end = end, end + lazy.nbytes
        entries[name] = {"dtype": DTYPE_NAMES[lazy.dtype], "shape": list(lazy.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
