"""Products of matrices that stay in a layout of ComfyUI, by the kernels of comfy-kitchen: inputs are rounded likewise.

comfy-kitchen is imported where such products are asked for ("packed-native"), and nowhere else. A device multiplies a
layout where comfy-kitchen says that its compute capability does, and a small product comes out right there; that is
tried once. Matrices of other formats, and those whose layer asks for full precision, are unpacked for their product.

Inputs get their scales from their own values: one per row of int8, one per 32 numbers of mxfp8, one per 16 numbers and
one of all for nvfp4.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ..errors import ModelError
from ..weights.block_types import PackedFormat
from ..weights.layouts import INPUT_FACTORS, SCALE, SCALE_2, STORED, LayoutFormat, layout_of
from .fused import linear

NativeProduct = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Of inputs [n, columns], the bytes of W [rows, columns] and a bias [rows]: x @ W^T + bias, in the dtype of x."""
Tensors = Mapping[str, torch.Tensor]
_MULTIPLES = 16, 32
"""What kernels need the rows and columns of matrices to be multiples of."""
_LARGEST_NVFP4 = 448.0 * 6.0
_SMALLEST = 1e-12
"""What counts as zero: inputs of zeros get a scale, too."""
native_trials: dict[tuple[torch.device, str], str] = {}
"""Why a device does not multiply a layout, "" where it does; tried once."""


def check_native() -> None:
    """Refuse products by a package that is not installed; it is not imported for that.

    Raises:
        ModelError: with the nearest that works.
    """
    if importlib.util.find_spec("comfy_kitchen") is None:
        raise ModelError(
            "Matrices are multiplied as they are packed (--weights packed-native) by comfy-kitchen, which is not "
            "installed.",
            "Install the package comfy-kitchen, or use --weights packed.",
        )


def multiplied_formats(device: torch.device, names: Iterable[str]) -> list[str]:
    """Those of some formats that a device multiplies as they are packed.

    Args:
        device: of the numbers.
        names: of the formats.

    Raises:
        ModelError: as `check_native`; it multiplies none, and why not.
    """
    check_native()
    reasons = {name: native_failure(device, name) for name in sorted(set(names))}
    if all(reasons.values()):
        listed = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        raise ModelError(
            f"{device} multiplies none of the file's matrices as they are packed ({listed}).", "Use --weights packed."
        )
    return [name for name, why in reasons.items() if not why]


def native_failure(device: torch.device, name: str) -> str:
    """Why a device does not multiply matrices of a format, one line; "" where it does. Tried once, with a wait.

    Args:
        device: of the numbers.
        name: of the format: "nvfp4".
    """
    if name not in _PRODUCTS:
        return "comfy-kitchen has no product for it here"
    if (device, name) not in native_trials:
        native_trials[device, name] = _trial(device, name)
    return native_trials[device, name]


def native_product(kind: PackedFormat, rows: int, columns: int) -> NativeProduct | None:
    """What multiplies matrices [rows, columns] of a format as they are packed; None where they are unpacked always.

    It unpacks them where a device does not multiply the format, and is one operation that compilers do not look into
    and that breaks no graph.
    """
    fits = rows % _MULTIPLES[0] == 0 and columns % _MULTIPLES[1] == 0
    if not isinstance(kind, LayoutFormat) or kind.layout.exact or kind.name not in _PRODUCTS or not fits:
        return None
    name, operation = repr(kind), _operation()
    _kinds[name] = kind
    return lambda x, packed, bias: operation(x, packed, bias, rows, name)


_kinds: dict[str, LayoutFormat] = {}
"""Formats by what stands for them in the operation."""


@functools.cache
def _operation() -> Callable[..., torch.Tensor]:
    """Made at the first use, once for each import of this file."""

    @torch.library.custom_op(f"liveavatar::packed_product_{zlib.crc32(__name__.encode()):08x}", mutates_args=())
    def run(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, rows: int, name: str) -> torch.Tensor:
        kind = _kinds[name]
        if native_failure(x.device, kind.name):
            return linear(x, kind.unpack(packed, x.new_empty(rows, x.shape[1])), bias)
        return _product(x, packed, bias, rows, kind)

    @run.register_fake
    def _(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, rows: int, name: str) -> torch.Tensor:
        return x.new_empty(x.shape[0], rows)

    return run


def _product(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, rows: int, kind: LayoutFormat
) -> torch.Tensor:
    stored = kind.views(packed, (rows, x.shape[1]))
    x = x * stored[INPUT_FACTORS].to(x.dtype) if kind.factors else x
    made: torch.Tensor = _PRODUCTS[kind.name](x.contiguous(), stored, bias, kind)
    return made


def _half(dtype: torch.dtype) -> torch.dtype:
    """What kernels write: 16 bits."""
    return dtype if dtype == torch.float16 else torch.bfloat16


def _by_blocks(multiply_blocks: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A product in 16 bits of as many rows as kernels take, brought back to what was given."""

    def product(x: torch.Tensor, stored: Tensors, bias: torch.Tensor | None, kind: LayoutFormat) -> torch.Tensor:
        made = multiply_blocks(x, stored, None if bias is None else bias.to(_half(x.dtype)), _half(x.dtype))
        return made[: x.shape[0]].to(x.dtype)

    return product


@_by_blocks
def _nvfp4(x: torch.Tensor, stored: Tensors, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    kitchen = _kitchen()
    of_all = (torch.linalg.vector_norm(x, torch.inf).float() / _LARGEST_NVFP4).clamp(min=_SMALLEST)
    numbers, scales = kitchen.quantize_nvfp4(x, of_all, pad_16x=True)
    theirs = stored[SCALE].view(torch.float8_e4m3fn)
    made: torch.Tensor = kitchen.scaled_mm_nvfp4(
        numbers, stored[STORED], of_all, stored[SCALE_2], scales, theirs, bias=bias, out_dtype=dtype
    )
    return made


@_by_blocks
def _mxfp8(x: torch.Tensor, stored: Tensors, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    kitchen = _kitchen()
    numbers, scales = kitchen.quantize_mxfp8(x, pad_32x=True)
    theirs = stored[SCALE].view(torch.float8_e8m0fnu)
    made: torch.Tensor = kitchen.scaled_mm_mxfp8(numbers, stored[STORED], scales, theirs, bias=bias, out_dtype=dtype)
    return made


def _int8(x: torch.Tensor, stored: Tensors, bias: torch.Tensor | None, kind: LayoutFormat) -> torch.Tensor:
    rotated = kind.layout.rotated
    made: torch.Tensor = _kitchen().int8_linear(
        x,
        stored[STORED],
        stored[SCALE].flatten(),
        bias,
        out_dtype=x.dtype,
        convrot=bool(rotated),
        convrot_groupsize=rotated or 256,
    )
    return made


_PRODUCTS: Mapping[str, Callable[..., torch.Tensor]] = {"int8": _int8, "mxfp8": _mxfp8, "nvfp4": _nvfp4}
"""By the names of layouts."""


def _kitchen() -> Any:
    return importlib.import_module("comfy_kitchen")


def _trial(device: torch.device, name: str) -> str:
    """Multiply a small matrix; why that failed, or ""."""
    try:
        least = _least_capability(name)
        if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < least:
            needed, has = (".".join(map(str, capability)) for capability in (least, found))
            return f"it has compute capability {has}, comfy-kitchen needs {needed}"
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            off = _trial_error(device, name)
        return "" if off < _LIMIT[name] else f"a product is off by {off:.0%}"
    except Exception as error:  # a package of others, on any device: whatever it says
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def _trial_error(device: torch.device, name: str) -> float:
    """How far a small product is off, of its length."""
    generator = torch.Generator().manual_seed(0)
    matrix, x = (torch.randn(rows, _COLUMNS, generator=generator).to(device) for rows in (_ROWS, _INPUTS))
    kind, packed = _packed_example(matrix, name)
    x = x.to(torch.bfloat16)
    wanted = x.float() @ kind.unpack(packed, torch.empty(_ROWS, _COLUMNS, device=device)).t()
    made = _product(x, packed, None, _ROWS, kind)
    return float((made.float() - wanted).norm() / wanted.norm())


_ROWS, _COLUMNS, _INPUTS = 64, 128, 40
_LIMIT = {"int8": 0.05, "mxfp8": 0.1, "nvfp4": 0.3}
"""The most that the rounding of inputs may change a trial, of its length."""


def _least_capability(name: str) -> tuple[int, int]:
    """The compute capability that comfy-kitchen says a layout needs."""
    known = {"int8": "TensorWiseINT8Layout", "mxfp8": "TensorCoreMXFP8Layout", "nvfp4": "TensorCoreNVFP4Layout"}
    needed: tuple[int, int] = getattr(_kitchen().tensor, known[name]).MIN_SM_VERSION or (0, 0)
    return needed


def _packed_example(matrix: torch.Tensor, name: str) -> tuple[LayoutFormat, torch.Tensor]:
    """A matrix as comfy-kitchen packs it."""
    kitchen = _kitchen()
    layout = layout_of({"int8": "int8_tensorwise"}.get(name, name))
    assert layout is not None
    if name == "int8":
        scale = matrix.abs().max() / 127
        tensors = {STORED: (matrix / scale).round().to(torch.int8), SCALE: scale}
    elif name == "mxfp8":
        tensors = dict(zip((STORED, SCALE), kitchen.quantize_mxfp8(matrix), strict=True))
    else:
        scale = matrix.abs().max() / _LARGEST_NVFP4
        tensors = dict(zip((STORED, SCALE), kitchen.quantize_nvfp4(matrix, scale), strict=True)) | {SCALE_2: scale}
    kind = LayoutFormat(layout, layout.stored[0])
    packed = torch.zeros(kind.bytes_of(matrix.shape), dtype=torch.uint8, device=matrix.device)
    kind.pack(tensors, packed, matrix.shape)
    return kind, packed
