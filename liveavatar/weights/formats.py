"""The names that tensors have in the files of each part, and in the libraries that build its network.

Every part may be a file as ComfyUI's own loaders take it, one file per part:

- The transformer has the published names, perhaps behind a prefix.
- The text encoder has the names of transformers and may carry its sentencepiece model as bytes (`SPIECE`), or those it
  was published under; a GGUF file has those of llama.cpp (see gguf.py) and its vocabulary.
- The audio encoder is a wav2vec2 checkpoint without its config.json.
- The VAE has the published names, or those of diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError
from .gguf import refuse_another_architecture
from .kinds import Kind, refuse_another_kind, transformer_prefix
from .layouts import FLOAT8
from .packed import PackedWeights
from .quantised import DequantisedSource
from .source import GGUF, TensorSource, open_weights, read_once

if TYPE_CHECKING:
    from .lora import LoRA


def open_transformer(path: Path) -> DequantisedSource:
    """The transformer's tensors under their published names, from the index of shards, its shards, or one file.

    Raises:
        MissingFilesError, ModelError: not there, damaged, or of another kind.
    """

    def opened() -> DequantisedSource:
        source = open_weights(path)
        refuse_another_kind(source, Kind.TRANSFORMER)
        refuse_another_architecture(source, Kind.TRANSFORMER)
        return DequantisedSource(source, transformer_prefix(source.keys()))

    return read_once(("transformer", path.absolute()), opened)


def open_packed(
    path: Path, file: DequantisedSource, merged: TensorSource, loras: Sequence[LoRA] = ()
) -> PackedWeights | None:
    """A network with its matrices as its file has them; None where that is no GGUF file and in no few bits.

    A file in fp8 alone counts among the others: what is rounded to fp8 again has as many bits.

    Args:
        path: of the file.
        file: its tensors.
        merged: the same in the network's names, with the LoRAs.
        loras: that are merged.
    """
    packed = PackedWeights(merged, file, loras)
    rounded = {matrix.kind.name for matrix in packed.matrices.values() if matrix.kind.is_rounded}
    return packed if path.suffix == GGUF or rounded - {FLOAT8.name} else None


def open_file(path: Path) -> DequantisedSource:
    """The tensors of a file of any kind, an index of shards, or a folder with one of them, as numbers."""
    return read_once(("numbers", path.absolute()), lambda: DequantisedSource(open_weights(path)))


_VAE_RESIDUAL = {"0.gamma": "norm1.gamma", "2": "conv1", "3.gamma": "norm2.gamma", "6": "conv2"}
_VAE_UP_STRIDE = 4
"""Modules per resolution level of the VAE's decoder: three residual blocks, then one upsampler."""

_T5_TOP = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
_T5_BLOCK = {
    "norm1.weight": "layer.0.layer_norm.weight",
    "attn.q.weight": "layer.0.SelfAttention.q.weight",
    "attn.k.weight": "layer.0.SelfAttention.k.weight",
    "attn.v.weight": "layer.0.SelfAttention.v.weight",
    "attn.o.weight": "layer.0.SelfAttention.o.weight",
    "pos_embedding.embedding.weight": "layer.0.SelfAttention.relative_attention_bias.weight",
    "norm2.weight": "layer.1.layer_norm.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}


def vae_to_diffusers(key: str) -> str:
    """Name in `diffusers.AutoencoderKLWan` of a tensor of `Wan2.1_VAE.pth`.

    Raises:
        ModelError: no such tensor in that checkpoint.
    """
    if m := re.fullmatch(r"conv([12])\.(weight|bias)", key):
        return ("quant_conv." if m[1] == "1" else "post_quant_conv.") + m[2]
    if m := re.fullmatch(r"(encoder|decoder)\.(.+)", key):
        inner = _vae_half(m[2], "down" if m[1] == "encoder" else "up")
        if inner is not None:
            return f"{m[1]}.{inner}"
    raise ModelError(f"{key!r} is not a tensor of the Wan 2.1 VAE.", "Use the published Wan2.1_VAE.pth.")


def umt5_to_transformers(key: str) -> str:
    """Name in `transformers.UMT5EncoderModel` of a tensor of `models_t5_umt5-xxl-enc-bf16.pth`.

    Raises:
        ModelError: no such tensor in that checkpoint.
    """
    if key in _T5_TOP:
        return _T5_TOP[key]
    m = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
    if m and m[2] in _T5_BLOCK:
        return f"encoder.block.{m[1]}.{_T5_BLOCK[m[2]]}"
    raise ModelError(
        f"{key!r} is not a tensor of the UMT5 encoder.", "Use the published models_t5_umt5-xxl-enc-bf16.pth."
    )


def wav2vec2_key(key: str) -> str | None:
    """Name in `transformers.Wav2Vec2Model` of a tensor of a wav2vec2 checkpoint, with or without its CTC head.

    The normalised weight of the positional convolution has an old and a new pair of names for the same tensors.
    """
    key = key.removeprefix("wav2vec2.")
    if key.startswith(("lm_head.", "masked_spec_embed")):
        return None
    old = re.fullmatch(r"(encoder\.pos_conv_embed\.conv)\.weight_([gv])", key)
    return f"{old[1]}.parametrizations.weight.original{'gv'.index(old[2])}" if old else key


def _vae_half(key: str, direction: str) -> str | None:
    """The part of a VAE name behind `encoder.` or `decoder.`; None where nothing answers to it."""
    if m := re.fullmatch(r"(conv1|head\.2)\.(weight|bias)", key):
        return f"{'conv_in' if m[1] == 'conv1' else 'conv_out'}.{m[2]}"
    if key == "head.0.gamma":
        return "norm_out.gamma"
    if m := re.fullmatch(r"middle\.1\.(norm\.gamma|(?:to_qkv|proj)\.(?:weight|bias))", key):
        return f"mid_block.attentions.0.{m[1]}"
    if m := re.fullmatch(r"middle\.([02])\.(.+)", key):
        return _under(f"mid_block.resnets.{int(m[1]) // 2}", _vae_module(m[2]))
    if m := re.fullmatch(rf"{direction}samples\.(\d+)\.(.+)", key):
        return _under(_vae_place(direction, int(m[1])), _vae_module(m[2]))
    return None


def _vae_place(direction: str, n: int) -> str:
    """Where the n-th module of a half lies in diffusers: flat on the way down, in levels on the way up."""
    if direction == "down":
        return f"down_blocks.{n}"
    level, k = divmod(n, _VAE_UP_STRIDE)
    inside = "upsamplers.0" if k == _VAE_UP_STRIDE - 1 else f"resnets.{k}"
    return f"up_blocks.{level}.{inside}"


def _vae_module(key: str) -> str | None:
    """A tensor inside one residual block or resampler."""
    if m := re.fullmatch(r"residual\.(?:([03]\.gamma)|([26])\.(weight|bias))", key):
        return _VAE_RESIDUAL[m[1]] if m[1] else f"{_VAE_RESIDUAL[m[2]]}.{m[3]}"
    if m := re.fullmatch(r"shortcut\.(weight|bias)", key):
        return f"conv_shortcut.{m[1]}"
    if re.fullmatch(r"(resample\.1|time_conv)\.(weight|bias)", key):
        return key
    return None


def _under(prefix: str, inner: str | None) -> str | None:
    return None if inner is None else f"{prefix}.{inner}"
