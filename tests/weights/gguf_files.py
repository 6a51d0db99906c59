"""Parts of a model written as GGUF files, by the gguf package, as converters write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from liveavatar.components import MINI_FOLDER
from liveavatar.weights.formats import open_transformer
from liveavatar.weights.settings import text_weights

WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "TQ1_0", "TQ2_0", "MXFP4")
"""Types that the package can write."""
_T5 = {
    "layer.0.layer_norm": "attn_norm",
    **{f"layer.0.SelfAttention.{p}": f"attn_{p}" for p in "qkvo"},
    "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer.1.layer_norm": "ffn_norm",
    "layer.1.DenseReluDense.wi_0": "ffn_gate",
    "layer.1.DenseReluDense.wi_1": "ffn_up",
    "layer.1.DenseReluDense.wo": "ffn_down",
}


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().numpy()


def is_packed(name: str, value: np.ndarray, kind: str) -> bool:
    """Large matrices in blocks are packed; all else is float32, as converters have it."""
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return value.ndim == 2 and value.shape[-1] % block == 0 and "norm" not in name and "attn_rel_b" not in name


def write_gguf(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    kind: str | Mapping[str, str],
    arch: str = "wan",
    entries: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Write a file in one type, or in one per tensor; the numbers that the package reads of it."""
    writer = gguf.GGUFWriter(None, arch)
    for name, value in (entries or {}).items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}.get(type(value), writer.add_array)
        add(name, value)
    for name, value in tensors.items():
        own = kind if isinstance(kind, str) else kind.get(name, "F32")
        own = own if is_packed(name, value, own) else "F32"
        qtype = gguf.GGMLQuantizationType[own]
        writer.add_tensor(name, gguf.quants.quantize(value, qtype), raw_dtype=qtype)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_by_package(path)


def read_by_package(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file, as the gguf package unpacks them."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        data = np.array(tensor.data)
        block = shape[-1:] and gguf.GGML_QUANT_SIZES[tensor.tensor_type][0]
        assert not block or shape[-1] % block == 0
        found[tensor.name] = gguf.quants.dequantize(data, tensor.tensor_type).reshape(shape)
    return found


def mini_transformer(folder: Path = MINI_FOLDER) -> dict[str, np.ndarray]:
    """The network of a folder, without its LoRA."""
    source = open_transformer(next(folder.glob("*.index.json")))
    return {key: numbers(source.read(key)) for key in sorted(source.keys())}


def mini_text_encoder(folder: Path = MINI_FOLDER) -> dict[str, np.ndarray]:
    """The text encoder of a folder in llama.cpp's names."""
    source = text_weights(folder / "text_encoder")
    return {llama_name(key): numbers(source.read(key)) for key in sorted(source.keys()) if "embed_tokens" not in key}


def llama_name(key: str) -> str:
    if key == "shared.weight":
        return "token_embd.weight"
    if key == "encoder.final_layer_norm.weight":
        return "enc.output_norm.weight"
    _, _, number, rest = key.split(".", 3)
    return f"enc.blk.{number}.{_T5[rest.removesuffix('.weight')]}.weight"
