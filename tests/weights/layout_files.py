"""Parts of a model written as ComfyUI writes them quantised: int8, mxfp8, nvfp4 and fp8 matrices, with what belongs to
them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import save_file
from weights.core_files import as_bytes
from weights.gguf_files import write_gguf

LAYOUTS = ("int8", "int8 by rows", "int8 turned", "mxfp8", "nvfp4")
"""Of matrices in few bits; "fp8" and "nvfp4 with factors" are written, too."""
NAMES = {"int8": "int8_tensorwise", "fp8": "float8_e4m3fn"}
_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_GROUP = 64


def write_packed(path: Path, network: Mapping[str, np.ndarray], kind: str | Mapping[str, str]) -> Path:
    """A network in a GGUF type, or in a layout of ComfyUI: one for all of its matrices, or one for each."""
    if (kind if isinstance(kind, str) else next(iter(kind.values()))).partition(" ")[0] in (*NAMES, "mxfp8", "nvfp4"):
        return write_layouts(path.with_suffix(".safetensors"), network, kind)
    write_gguf(path.with_suffix(".gguf"), network, kind)
    return path.with_suffix(".gguf")


def write_layouts(
    path: Path,
    network: Mapping[str, np.ndarray],
    kind: str | Mapping[str, str],
    *,
    prefix: str = "",
    marked: str = "mark",
    further: Mapping[str, Any] | None = None,
) -> Path:
    """Write a safetensors file, its other tensors in bfloat16.

    Args:
        path: of the file.
        network: numbers by name.
        kind: layout of all matrices inside of blocks, or of each by its name; "" where it is none.
        prefix: before the names.
        marked: whether layers say their layout in a "mark" beside them, or the "header" does.
        further: what layers say beside their layout.
    """
    written, layers = {}, {}
    for name, value in network.items():
        numbers, layer = torch.from_numpy(np.ascontiguousarray(value)), name.removesuffix(".weight")
        own = kind.get(name, "") if isinstance(kind, Mapping) else kind if is_inside(name, numbers) else ""
        if not own:
            written[name] = numbers.bfloat16()
            continue
        stored, stated = quantised(numbers, own)
        written |= {f"{layer}.{last}": tensor for last, tensor in stored.items()}
        layers[f"{prefix}{layer}"] = stated = stated | dict(further or {})
        if marked == "mark":
            written[f"{layer}.comfy_quant"] = as_bytes(json.dumps(stated).encode())
    header = {"_quantization_metadata": json.dumps({"layers": layers})} if marked == "header" else None
    save_file({f"{prefix}{name}": tensor.contiguous() for name, tensor in written.items()}, path, header)
    return path


def is_inside(name: str, numbers: torch.Tensor) -> bool:
    """Whether it is a matrix of the blocks and injectors, as such files have in few bits."""
    inside = ("self_attn", "cross_attn", "ffn", "injector", "SelfAttention.", "DenseReluDense")
    named = name.endswith(".weight") and "norm" not in name and "bias" not in name and any(n in name for n in inside)
    return named and numbers.ndim == 2


def quantised(matrix: torch.Tensor, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a matrix by the last words of their names, and what its layer states."""
    layout, _, how = kind.partition(" ")
    stated = {"format": NAMES.get(layout, layout)}
    if layout == "fp8":
        scale = matrix.abs().max() / 448
        return {"weight": (matrix / scale).to(torch.float8_e4m3fn), "weight_scale": scale}, stated
    if layout == "mxfp8":
        return _mxfp8(matrix), stated
    if layout == "nvfp4":
        factors = torch.linspace(0.5, 2, matrix.shape[1]) if how else None
        tensors = _nvfp4(matrix if factors is None else matrix / factors)
        return tensors | ({} if factors is None else {"pre_quant_scale": factors}), stated
    if how == "turned":
        matrix = (matrix.unflatten(1, (-1, _GROUP)) @ hadamard(_GROUP)).flatten(1)
        stated |= {"convrot": True, "convrot_groupsize": _GROUP}
    scale = (matrix.abs().amax(1, keepdim=True) if how else matrix.abs().max()) / 127
    return {"weight": (matrix / scale).round().to(torch.int8), "weight_scale": scale}, stated


def hadamard(size: int) -> torch.Tensor:
    """Symmetric, its own inverse; of four by four of them."""
    four = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]) / 2
    return four if size == 4 else torch.kron(hadamard(size // 4), four)


def _mxfp8(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    blocks = matrix.unflatten(1, (-1, 32))
    exponents = (blocks.abs().amax(2) / 448).clamp(min=2.0**-127).log2().ceil()
    stored = (blocks / exponents.exp2().unsqueeze(2)).flatten(1).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale": _tiled((exponents + 127).byte())}


def _nvfp4(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    blocks, of_all = matrix.unflatten(1, (-1, 16)), matrix.abs().max() / (448 * 6)
    scales = (blocks.abs().amax(2) / 6 / of_all).to(torch.float8_e4m3fn)
    numbers = (blocks / (scales.float() * of_all).clamp(min=1e-30).unsqueeze(2)).flatten(1)
    codes = torch.bucketize(numbers.abs(), (_E2M1[1:] + _E2M1[:-1]) / 2) + 8 * (numbers < 0)
    first, second = codes.byte().unflatten(1, (-1, 2)).unbind(2)
    tiled = _tiled(scales.view(torch.uint8)).view(torch.float8_e4m3fn)
    return {"weight": first << 4 | second, "weight_scale": tiled, "weight_scale_2": of_all}


def _tiled(scales: torch.Tensor) -> torch.Tensor:
    rows, columns = scales.shape
    whole = torch.nn.functional.pad(scales, (0, -columns % 4, 0, -rows % 128))
    return rearrange(whole, "(R q r) (C c) -> (R C r q c)", q=4, r=32, c=4).view(whole.shape)
