"""GGUF files as sources of tensors: a transformer in its own names, or a text encoder in those of llama.cpp."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MissingFilesError, ModelError
from .block_types import FLOATS, PACKED, PackedFormat
from .gguf_header import Array, GGUFHeader, gguf_package, read_array, read_gguf_header
from .header import FETCH_AGAIN, AnotherKind, Entry, reason, shortened
from .kinds import Kind, kind_of
from .source import is_matrix, is_sample_zero, read_once

if TYPE_CHECKING:
    import torch

_WHOLE = {"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "F64": "float64"}
"""Types that are as PyTorch has them, beside the usual ones."""
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", **_WHOLE}
_FIRST_LAYER = "enc.blk.0.attn_q.weight"
_T5_TOP = {"token_embd.weight": "shared.weight", "enc.output_norm.weight": "encoder.final_layer_norm.weight"}
_T5_LAYER = {
    "attn_norm": "layer.0.layer_norm",
    **{f"attn_{p}": f"layer.0.SelfAttention.{p}" for p in "qkvo"},
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
}


class GGUFSource:
    """One GGUF file; packed tensors are read as float32, unpacked one by one.

    A text encoder in the names of llama.cpp has those of transformers here.

    Raises:
        MissingFilesError: no such file.
        ModelError: not a GGUF file, cut off, or its header lies; a tensor of a type that is not unpacked.
    """

    def __init__(self, path: Path):
        self.path = path
        self._header: GGUFHeader = read_once(("gguf", path.absolute()), lambda: read_gguf_header(path))
        t5 = _FIRST_LAYER in self._header.tensors
        self._entries = {umt5_key(name) if t5 else name: self._entry(name) for name in self._header.tensors}

    @property
    def architecture(self) -> str:
        """What the file calls its network: "wan", "t5"..., or "" where it does not say."""
        return shortened(str(self._header.values.get("general.architecture", "")), 40)

    def keys(self) -> frozenset[str]:
        return frozenset(self._entries)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._found(key).shape

    def kind(self, key: str) -> str:
        """GGML's name of a tensor's type: "Q4_K", "F16"..."""
        return self._found(key).dtype

    def dtype(self, key: str) -> str:
        kind = self.kind(key)
        return kind if kind in _DTYPES else "F32"

    def nbytes(self, key: str) -> int:
        """Bytes of a tensor as it lies in the file."""
        entry = self._found(key)
        return entry.end - entry.start

    def read(self, key: str) -> torch.Tensor:
        import torch

        from .dequantise import unpacked

        entry = self._found(key)
        stored = self._stored(key)
        if entry.dtype in PACKED:
            return unpacked(stored, entry.dtype, entry.shape)
        if entry.dtype in _DTYPES:
            return stored.view(getattr(torch, _DTYPES[entry.dtype])).view(entry.shape)
        return self._by_package(key, stored.numpy())

    def packed_format(self, key: str) -> PackedFormat | None:
        """Of a matrix of a type that is unpacked on devices, or in floats."""
        kind, shape = (PACKED | FLOATS).get(self.kind(key)), self.shape(key)
        return kind if kind and len(shape) == 2 and not shape[1] % kind.numbers else None

    def read_packed(self, key: str, place: torch.Tensor) -> None:
        place.copy_(self._stored(key))

    def _stored(self, key: str) -> torch.Tensor:
        """The bytes of a tensor as they lie in the file, uint8; mapped, in private pages."""
        import torch

        entry = self._found(key)
        if entry.start == entry.end:
            return torch.empty(0, dtype=torch.uint8)
        stored = torch.from_numpy(self._mapped(entry))
        return stored if stored.data_ptr() % 8 == 0 else stored.clone()

    def metadata(self) -> dict[str, str]:
        return {name: value for name, value in self._header.values.items() if isinstance(value, str)}

    def value(self, name: str) -> Any:
        """A free entry of the file, read whole where it is an array; None where there is none."""
        value = self._header.values.get(name)
        return read_array(self.path, value) if isinstance(value, Array) else value

    def zeros(self, keys: Iterable[str]) -> Iterator[str]:
        with self.path.open("rb") as file:
            suspects = [key for key in keys if is_matrix(self.shape(key)) and is_sample_zero(file, self._found(key))]
        return (key for key in sorted(suspects) if not self._mapped(self._found(key)).any())

    def describe(self) -> str:
        return f"{self.path} (GGUF of {self.architecture or 'an unnamed network'})"

    def kinds(self) -> str:
        """How many of its matrices are of which type: "240 Q4_K, 160 Q6_K"."""
        counted = Counter(entry.dtype for entry in self._entries.values() if len(entry.shape) > 1)
        return ", ".join(f"{count} {shortened(kind)}" for kind, count in counted.most_common())

    def _entry(self, name: str) -> Entry:
        """A tensor in the shape it had before a converter that knows four dimensions only."""
        entry = self._header.tensors[name]
        stated = self._header.values.get(f"comfy.gguf.orig_shape.{name}")
        if not isinstance(stated, Array) or stated.length > 8:
            return entry
        shape = tuple(int(n) for n in read_array(self.path, stated))
        if min(shape, default=1) < 0 or np.prod(shape, dtype=object) != np.prod(entry.shape, dtype=object):
            raise ModelError(f"{self.path} says another size of {shortened(name)} than it has.", FETCH_AGAIN)
        return entry._replace(shape=shape)

    def _found(self, key: str) -> Entry:
        if key not in self._entries:
            raise MissingFilesError(f"{self.path} holds no tensor {shortened(key)}.")
        return self._entries[key]

    def _mapped(self, entry: Entry) -> np.ndarray:
        try:
            return np.memmap(self.path, mode="c", offset=entry.start, shape=(entry.end - entry.start,))
        except (OSError, ValueError) as e:
            raise ModelError(f"{self.path} cannot be read any more ({reason(e)}).", FETCH_AGAIN) from e

    def _by_package(self, key: str, stored: np.ndarray) -> torch.Tensor:
        """A tensor of a rare type, as the gguf package unpacks it."""
        import torch

        gguf, entry = gguf_package(), self._found(key)
        kind = gguf.GGMLQuantizationType[entry.dtype]
        try:
            made = gguf.quants.dequantize(stored.reshape(-1, stored.size), kind)
        except (NotImplementedError, ValueError) as e:
            raise AnotherKind(
                f"{self.path} stores {shortened(key)} in {entry.dtype}, which cannot be read.",
                f"Use a file in {', '.join((*PACKED, *FLOATS))}.",
            ) from e
        return torch.from_numpy(made).view(entry.shape)


def refuse_another_architecture(source: object, wanted: Kind) -> None:
    """Make sure that a GGUF file whose tensors are not recognised does not call itself another network.

    Raises:
        AnotherKind: it does.
    """
    if not isinstance(source, GGUFSource) or kind_of(source.keys()) is wanted:
        return
    if not source.architecture.startswith(_ARCHITECTURES[wanted]) and source.architecture not in _NO_ARCHITECTURES:
        raise AnotherKind(f"{source.describe()} is not {wanted.words}.", wanted.nearest)


_ARCHITECTURES = {Kind.TRANSFORMER: ("wan",), Kind.TEXT: ("t5", "umt5")}
_NO_ARCHITECTURES = ("", "pig", "cow")
"""What converters write that know no networks."""


def umt5_key(name: str) -> str:
    """The name in transformers of a tensor of a text encoder in llama.cpp's names; others stay."""
    if name in _T5_TOP:
        return _T5_TOP[name]
    m = re.fullmatch(r"enc\.blk\.(\d+)\.(\w+)\.weight", name)
    return f"encoder.block.{m[1]}.{_T5_LAYER[m[2]]}.weight" if m and m[2] in _T5_LAYER else name
