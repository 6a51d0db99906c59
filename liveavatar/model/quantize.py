"""Quantized linear layers: their matrix in eight bits, in the place of `nn.Linear`.

W = weight * weight_scale. Where a device multiplies e4m3 itself (a small trial says so, once), rows of the input are
brought to e4m3 on the fly and the product is made in eight bits; elsewhere, and always for int8, the matrix is brought
back to the working dtype for the moment in which it is used. Scales by row follow Micikevicius et al. 2022, "FP8
Formats for Deep Learning"; the one by tensor is that of the published implementation, with its roundings.

Nothing in a forward pass waits for the device or depends on values, so that it can be compiled and captured; only the
trial waits, and `quantize_weight` has it done at loading, on the device the weights are loaded to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar, Self

import torch
from torch import nn

from ..errors import ModelError
from ..storage import FP8_CAPABILITY, WeightFormat
from .fused import FusedRows, linear

KEPT_IN_WORKING_DTYPE = (
    "text_embedding",
    "time_embedding",
    "time_projection",
    "head.head",
    "casual_audio_encoder.encoder.final_linear",
)
"""Linear layers that stay in the working dtype, as published: small, and computed in float32."""
_E4M3, _LARGEST = torch.float8_e4m3fn, 448.0
_SMALLEST = 1e-12
"""What counts as zero: rows of zeros get a scale too."""
_CHUNK = 2**16, 2**24
"""Numbers quantised at a time, on the CPU (they fit its cache, and leave no holes between what stays) and elsewhere."""
fp8_trials: dict[tuple[torch.device, bool, bool], str] = {}
"""Why a device does not multiply e4m3 matrices, "" where it does; tried once."""

QuantizedWeight = tuple[torch.Tensor, torch.Tensor]
"""Eight-bit numbers, and what to multiply them with."""


def is_quantized(path: str) -> bool:
    """Whether a Linear of the transformer, by its module path, is one of those that formats other than plain change."""
    return not any(kept in path for kept in KEPT_IN_WORKING_DTYPE)


def replace_linears(net: nn.Module, weights: WeightFormat) -> None:
    """Put layers of a format where a part of the transformer has `nn.Linear`; they have no values yet.

    Their own tensors lie where those of the replaced layers do: on the meta device until they are filled.
    """
    if weights == "plain":
        return
    kind = _LINEAR_CLASSES[weights]
    found = [(path, m) for path, m in net.named_modules() if isinstance(m, nn.Linear) and is_quantized(path)]
    for path, plain in found:
        with plain.weight.device:
            place = kind.like(plain)
        _replace(net, path, place)


def quantize_rows_fp8(x: torch.Tensor) -> QuantizedWeight:
    """x [..., n] -> e4m3 of the same shape and float32 [..., 1]: the largest of a row becomes 448.

    No number is off by more than 1/16 of itself or 1/2**18 of the largest of its row.
    """
    scale = _largest(x) / _LARGEST
    return (x / scale).to(_E4M3), scale


def quantize_rows_int8(x: torch.Tensor) -> QuantizedWeight:
    """x [rows, n] -> int8 of the same shape and float32 [rows, 1]: the largest of a row becomes 127 or -127."""
    scale = _largest(x) / 127
    return (x / scale).round_().to(torch.int8), scale


def fp8_tensor_scale(x: torch.Tensor) -> torch.Tensor:
    """What the published scheme multiplies a tensor with before the cast: 448 / max|x|, at most 448; float32 []."""
    return (_LARGEST / torch.linalg.vector_norm(x, torch.inf).float().clamp(min=_SMALLEST)).clamp(max=_LARGEST)


def cast_fp8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """e4m3 of x * scale; the product is rounded to x's dtype first, as published."""
    return (x * scale).clamp(-_LARGEST, _LARGEST).to(_E4M3)


def quantize_linears(net: nn.Module, weights: WeightFormat) -> None:
    """Bring the large matrices of a filled part of the transformer into a format, in place, one matrix at a time.

    The result is what `weights.fill` makes of the same matrices. Peak memory is the network and one matrix more.

    Args:
        net: with `nn.Linear` layers, on the device where they work.
        weights: format; "plain" changes nothing.
    """
    if weights == "plain":
        return
    for path, plain in [(path, m) for path, m in net.named_modules() if isinstance(m, nn.Linear)]:
        if not is_quantized(path):
            continue
        with torch.device("meta"):
            quantized = _LINEAR_CLASSES[weights].like(plain)
        parts = plain.weight.detach().chunk(len(quantized.fused_from) or 1)
        for slot, tensor in quantized.quantize_parts(parts).items():
            quantized._parameters[slot] = nn.Parameter(tensor, requires_grad=False)
        quantized.bias = plain.bias
        _replace(net, path, quantized.eval())


def _replace(net: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, module)


def supports_fp8_matmul(device: torch.device, by_row: bool, aligned: bool = True) -> bool:
    """Whether a device multiplies e4m3 matrices (see `fp8_matmul_failure`)."""
    return not fp8_matmul_failure(device, by_row, aligned)


def fp8_matmul_failure(device: torch.device, by_row: bool, aligned: bool = True) -> str:
    """Why a device does not multiply e4m3 matrices, one line; "" where it does. Tried once, with a wait, and kept.

    Args:
        device: of the numbers.
        by_row: with a scale per row and column, or with one per matrix.
        aligned: both dimensions of the weight are multiples of 16; most devices need that.
    """
    key = (device, by_row, aligned)
    if key not in fp8_trials:
        fp8_trials[key] = _float8_trial(device, by_row, 32 if aligned else 23)
    return fp8_trials[key]


def check_fp8_matmul(device: torch.device, by_row: bool) -> None:
    """Refuse a device that should multiply e4m3 matrices by its capability and does not.

    Raises:
        ModelError: with the reason; measurements of fp8 would be those of widened matrices.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        return
    if why := fp8_matmul_failure(device, by_row):
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        raise ModelError(
            f"{device} has compute capability {capability} and does not multiply fp8 matrices "
            f"with a scale per {'row' if by_row else 'tensor'}: {why}.",
            "Update PyTorch; until then weights in fp8 save memory and no time.",
        )


class EightBitLinear(FusedRows):
    """A Linear whose matrix is weight * weight_scale; multiplied in the working dtype.

    Attributes:
        weight: eight-bit [out_features, in_features].
        weight_scale: float32, one per row [out_features, 1], or one for all [], or one per part [parts].
        bias: [out_features] in the working dtype, or None.
    """

    quantized_names: ClassVar[tuple[str, ...]] = ("weight", "weight_scale")
    """What `quantize_weight` makes of the plain weight (see `liveavatar.weights.load.WeightQuantizer`)."""
    stored: ClassVar[torch.dtype] = torch.int8
    by_row: ClassVar[bool] = True

    def __init__(self, in_features: int, out_features: int, bias: bool = True, fused_from: tuple[str, ...] = ()):
        super().__init__()
        self.in_features, self.out_features, self.fused_from = in_features, out_features, fused_from
        scales = torch.empty((out_features, 1) if self.by_row else (len(fused_from),) if fused_from else ())
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=self.stored), requires_grad=False)
        self.weight_scale = nn.Parameter(scales, requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    @classmethod
    def like(cls, linear: nn.Linear) -> Self:
        """In the place of a plain layer; without values."""
        fused_from = linear.fused_from if isinstance(linear, FusedRows) else ()
        return cls(linear.in_features, linear.out_features, linear.bias is not None, fused_from)

    def quantize_parts(self, weights: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
        """What stays of the weight, given in as many parts as it is fused from, one at a time; each by itself."""
        made = [self.quantize_weight(weight) for weight in weights]
        if not self.fused_from:
            return made[0]
        return {slot: torch.cat([torch.atleast_1d(part[slot]) for part in made]) for slot in self.quantized_names}

    def quantize_weight(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """What stays of a weight [out_features, in_features] of any floating dtype, on its device.

        It is worked through in parts of rows, so that the float32 in between is small.
        """
        return dict(
            zip(self.quantized_names, _quantize_in_chunks(weight, self.stored, quantize_rows_int8), strict=True)
        )

    def unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix in a floating dtype, rounded once."""
        return self.weight.to(dtype).mul_(self._row_scales())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] in the working dtype -> [..., out_features]"""
        return linear(x, self.unpacked(x.dtype), self.bias)

    def _row_scales(self) -> torch.Tensor:
        """What the rows of the matrix are multiplied with."""
        if self.by_row or not self.fused_from:
            return self.weight_scale
        rows = self.out_features // len(self.fused_from)
        return self.weight_scale.repeat_interleave(rows, output_size=self.out_features).unsqueeze(1)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.stored}"


class Float8Linear(EightBitLinear):
    """e4m3 with one scale per output row, and per row of the input; the product is rounded to bfloat16."""

    stored = _E4M3

    def quantize_weight(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        self._supports_fp8_matmul(weight.device)
        return dict(zip(self.quantized_names, _quantize_in_chunks(weight, _E4M3, quantize_rows_fp8), strict=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self._supports_fp8_matmul(x.device):
            return super().forward(x)
        product = self._product(x.reshape(-1, self.in_features))
        return product.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _supports_fp8_matmul(self, device: torch.device) -> bool:
        aligned = self.in_features % 16 == 0 and self.out_features % 16 == 0
        return supports_fp8_matmul(device, self.by_row, aligned)

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, in_features] -> bfloat16 [rows, out_features]; the kernels take a bias of no other dtype."""
        bias = None if self.bias is None else self.bias.to(torch.bfloat16)
        return _multiply(*quantize_rows_fp8(x), self.weight, self.weight_scale, bias)


class TensorFloat8Linear(Float8Linear):
    """e4m3 with one scale for the matrix and one for the input, to the bit as in the published implementation."""

    by_row = False

    def quantize_weight(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        self._supports_fp8_matmul(weight.device)
        scale = fp8_tensor_scale(weight)
        stored, _ = _quantize_in_chunks(weight, _E4M3, lambda rows: (cast_fp8(rows, scale), scale))
        return {"weight": stored, "weight_scale": 1 / scale}

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        scale = fp8_tensor_scale(x)
        inputs = cast_fp8(x, scale), 1 / scale
        if not self.fused_from:
            return _tensor_product(*inputs, self.weight, self.weight_scale, self.bias)
        # Kernels take one scale for a matrix: each part has its own, and its own product.
        parts = len(self.fused_from)
        biases = [None] * parts if self.bias is None else self.bias.chunk(parts)
        weights = zip(self.weight.chunk(parts), self.weight_scale.unbind(), biases, strict=True)
        return torch.cat([_tensor_product(*inputs, weight, scale, bias) for weight, scale, bias in weights], -1)


_LINEAR_CLASSES: dict[WeightFormat, type[EightBitLinear]] = {
    "fp8": Float8Linear,
    "fp8-tensor": TensorFloat8Linear,
    "int8": EightBitLinear,
}
"""Of the formats that are made of any weight; what stays packed is in packed.py."""


def _largest(x: torch.Tensor) -> torch.Tensor:
    """max|x| of each row, float32 [..., 1], never zero."""
    return torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True).float().clamp(min=_SMALLEST)


def _quantize_in_chunks(
    weight: torch.Tensor, stored: torch.dtype, quantize: Callable[[torch.Tensor], QuantizedWeight]
) -> QuantizedWeight:
    """Quantise a few rows at a time, each with a scale; what stays has its memory first, so that no holes are left."""
    whole = torch.empty(weight.shape, dtype=stored, device=weight.device)
    scales = torch.empty(weight.shape[0], 1, device=weight.device)
    height = max(1, _CHUNK[weight.device.type != "cpu"] // weight.shape[1])
    for rows, *places in zip(*(t.split(height) for t in (weight, whole, scales)), strict=True):
        for place, made in zip(places, quantize(rows), strict=True):
            place.copy_(made)
    return whole, scales


def _multiply(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """x [rows, in] @ weight [out, in]^T + bias of e4m3 numbers with their scales, by the device's own kernel."""
    return torch._scaled_mm(
        x.contiguous(), weight.t(), x_scale, weight_scale.t(), bias=bias, out_dtype=out, use_fast_accum=True
    )


def _tensor_product(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """As `_multiply`, to bfloat16; a bias of another dtype is added before the product is rounded, too."""
    if bias is None or bias.dtype == torch.bfloat16:
        return _multiply(x, x_scale, weight, weight_scale, bias)
    wide = _multiply(x, x_scale, weight, weight_scale, None, torch.float32)
    return (wide + bias).to(torch.bfloat16)


def _float8_trial(device: torch.device, by_row: bool, width: int) -> str:
    """Multiply a small matrix of ones; why that failed, or ""."""
    ones = torch.ones(width, width, device=device)
    scale = torch.ones((width, 1) if by_row else (), device=device)
    try:
        numbers = ones.to(_E4M3)
        product = _multiply(numbers, scale, numbers, scale, ones[0].to(torch.bfloat16))
        return "" if bool((product == width + 1).all()) else "a product came out wrong"
    except (RuntimeError, AttributeError) as error:  # also where the operation does not exist
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
