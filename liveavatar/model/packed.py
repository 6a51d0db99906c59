"""Packed linear layers: their matrix stays as its file has it, and is unpacked for the moment of its product.

What is unpacked is rounded once, to the dtype in which the layer works. LoRAs stand beside the matrix as two thin
factors. Layers of `NativeLinear` multiply some matrices as they are packed (see native.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import ModelError
from ..storage import NOT_PACKED
from ..weights.block_types import PackedMatrices, PackedMatrix, packed_parts
from ..weights.header import FETCH_AGAIN, shortened
from ..weights.packed import PackedSource
from .fused import FusedRows, checkpoint_paths, linear
from .native import native_product
from .pointwise import is_traced
from .quantize import is_quantized


class PackedLinear(FusedRows):
    """A Linear whose matrix is packed; it may stand for several of the same input, each in a format of its own.

    Args:
        like: the layer whose place it takes.
        parts: how the matrices are kept whose rows it has, in their order; all have as many rows.

    Attributes:
        weight: uint8, all parts one after the other.
        lora_a, lora_b: factors beside each part in the working dtype, [parts, rank, in_features] and
            [parts, rows of a part, rank]; None where there are none.
        bias: [out_features] in the working dtype, or None.
    """

    packed_names: ClassVar[tuple[str, ...]] = ("weight", "lora_a", "lora_b")

    def __init__(self, like: nn.Linear, parts: Sequence[PackedMatrix]):
        super().__init__()
        self.in_features, self.out_features = like.in_features, like.out_features
        self.fused_from = like.fused_from if isinstance(like, FusedRows) else ()
        self.parts = tuple(parts)
        rows, rank = self.rows, max(part.rank for part in parts)
        nbytes = sum(part.kind.bytes_of((rows, self.in_features)) for part in parts)
        self.weight = _constant(torch.empty(nbytes, dtype=torch.uint8))
        self.lora_a = _constant(torch.empty(len(parts), rank, self.in_features)) if rank else None
        self.lora_b = _constant(torch.empty(len(parts), rows, rank)) if rank else None
        self.bias = _constant(torch.empty(self.out_features)) if like.bias is not None else None

    @property
    def rows(self) -> int:
        """Of each part."""
        return self.out_features // len(self.parts)

    def read_packed(
        self, source: PackedSource, keys: Sequence[str], device: torch.device, dtype: torch.dtype
    ) -> dict[str, torch.Tensor]:
        """The layer's tensors but the bias, from the matrices of its parts, read one by one to the device.

        Raises:
            ModelError: numbers that are not finite.
            LoRAError: likewise, of a LoRA.
        """
        made = {"weight": torch.empty(self.weight.shape, dtype=torch.uint8, device=device)}
        for key, part, place in zip(keys, self.parts, self._split(made["weight"]), strict=True):
            source.read_packed(key, place)
            if not part.kind.is_finite(place, (self.rows, self.in_features)):
                raise ModelError(
                    f"{shortened(key)} in {source.describe()} holds values that are not finite.", FETCH_AGAIN
                )
        if self.lora_a is not None and self.lora_b is not None:
            made["lora_a"], made["lora_b"] = (
                torch.zeros(t.shape, dtype=dtype, device=device) for t in (self.lora_a, self.lora_b)
            )
            for number, key in enumerate(keys):
                at = 0
                for b, a in source.factors(key):
                    made["lora_a"][number, at : at + len(a)] = a.to(device)
                    made["lora_b"][number, :, at : at + len(a)] = b.to(device)
                    at += len(a)
        return made

    def unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix without its LoRAs, in a floating dtype."""
        whole = torch.empty(self.out_features, self.in_features, dtype=dtype, device=self.weight.device)
        traced = is_traced(self.weight)
        for part, packed, rows in zip(self.parts, self._split(self.weight), whole.split(self.rows), strict=True):
            part.kind.unpack(packed, rows, traced)
        return whole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] in the working dtype -> [..., out_features]"""
        made = self._product(x)
        if self.lora_a is None or self.lora_b is None:
            return made
        thin = linear(x, self.lora_a.flatten(0, 1), None).flatten(0, -2).chunk(len(self.parts), -1)
        places = made.view(-1, self.out_features).split(self.rows, -1)
        for place, low, b in zip(places, thin, self.lora_b.unbind(), strict=True):
            place.addmm_(low, b.t())
        return made

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        """Without LoRAs."""
        return linear(x, self.unpacked(x.dtype), self.bias)

    def _split(self, packed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The bytes of each part."""
        return packed.split([part.kind.bytes_of((self.rows, self.in_features)) for part in self.parts])

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Under its own name: rows of different types are no views of one tensor."""
        nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)

    def extra_repr(self) -> str:
        kinds = ", ".join(part.kind.name for part in self.parts)
        return f"{self.in_features}, {self.out_features}, {kinds}"


class NativeLinear(PackedLinear):
    """Packed, and multiplied as it is where its device can; each part by itself.

    Attributes:
        products: what multiplies each part as it is packed; None where it is unpacked.
    """

    def __init__(self, like: nn.Linear, parts: Sequence[PackedMatrix]):
        super().__init__(like, parts)
        self.products = tuple(native_product(part.kind, self.rows, self.in_features) for part in parts)

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        inputs, made = x.reshape(-1, self.in_features), []
        biases = [None] * len(self.parts) if self.bias is None else self.bias.chunk(len(self.parts))
        for part, product, packed, bias in zip(
            self.parts, self.products, self._split(self.weight), biases, strict=True
        ):
            if product:
                made.append(product(inputs, packed, bias))
            else:
                rows = x.new_empty(self.rows, self.in_features)
                made.append(linear(inputs, part.kind.unpack(packed, rows, is_traced(packed)), bias))
        return torch.cat(made, -1).reshape(*x.shape[:-1], self.out_features)


def pack_linears(net: nn.Module, matrices: PackedMatrices | None, native: bool = False) -> None:
    """Put packed layers where a network has `nn.Linear` whose matrices are packed; they have no values yet.

    Args:
        net: the network.
        matrices: how its file has them.
        native: whether they are multiplied as they are packed, where that can be.

    Raises:
        ModelError: there are no packed matrices at all.
    """
    if matrices is None:
        raise ModelError(*NOT_PACKED)
    kind = NativeLinear if native else PackedLinear
    for path, plain in [(path, m) for path, m in net.named_modules() if isinstance(m, nn.Linear)]:
        if is_quantized(path) and (parts := packed_parts(checkpoint_paths(path, plain), matrices)):
            parent, _, name = path.rpartition(".")
            with plain.weight.device:
                setattr(net.get_submodule(parent), name, kind(plain, parts))


def _constant(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
