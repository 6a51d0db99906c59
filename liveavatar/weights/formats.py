"""Files as ComfyUI's own loaders take them: one file per part of a model, and what such files do in their own way.

- The transformer has the published names, perhaps behind a prefix.
- The text encoder has the names of transformers and may carry its sentencepiece model as bytes (`SPIECE`).
- The audio encoder is a wav2vec2 checkpoint without its config.json.
- The VAE has the published names.
- Any of them may hold matrices in fp8: W = stored * scale, where the scale is one number or a column with one per row.
  In the older form the file has a tensor `scaled_fp8`, and layers have `scale_weight` and perhaps `scale_input`; in the
  newer one layers have `weight_scale` and perhaps `input_scale`, and their format is said in JSON, in a tensor
  `comfy_quant` of each or in the header's `_quantization_metadata`. Scales of inputs serve products in fp8, and none
  happen here. fp8 tensors without a scale mean what they say.
"""

from __future__ import annotations

import enum
import json
import re
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelError
from .source import SafetensorsSource, TensorSource, TorchSource

SPIECE = "spiece_model"
"""The tensor (uint8) in which a text encoder carries its sentencepiece model."""
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.")
"""What may stand before the transformer's names."""
_FP8_FORMATS = ("float8_e4m3fn", "float8_e5m2")
"""As a layer states it."""
_FP8, _FLOATS = ("F8_E4M3", "F8_E5M2"), ("F32", "F16", "BF16")
"""Types as the file states them."""
_SCALES = ("scale_weight", "weight_scale")
_BOOKKEEPING = re.compile(r"(?:.+\.)?(?:scaled_fp8|scale_weight|weight_scale|scale_input|input_scale|comfy_quant)")
_OTHER_FORMAT = re.compile(r".+\.(?:weight_scale_2|pre_quant_scale|weight_s_rel|weight_s_channel|weight_codebook)")
_NEAREST = "Use the bf16, fp16 or fp8_scaled file of this model."


class Kind(enum.Enum):
    """What a file of weights is: in words, and the files to use where one of this kind is wanted."""

    TRANSFORMER = "a sound-to-video transformer of Wan 2.2", "wan2.2_s2v_14B_bf16 or wan2.2_s2v_14B_fp8_scaled"
    OTHER_WAN = "a Wan transformer of another kind than sound-to-video", ""
    LORA = "a LoRA", "liveavatar.safetensors of Quark-Vision/Live-Avatar"
    VAE = "a VAE of Wan 2.1", "wan_2.1_vae.safetensors or Wan2.1_VAE.pth"
    VAE_2_2 = "a VAE of Wan 2.2", ""
    TEXT = "a UMT5 text encoder", "umt5_xxl_fp16, umt5_xxl_fp8_e4m3fn_scaled or models_t5_umt5-xxl-enc-bf16.pth"
    T5 = "a T5 text encoder, which is older than UMT5", ""
    CLIP = "a CLIP text encoder", ""
    AUDIO = "a wav2vec2 audio encoder", "wav2vec2_large_english_fp16.safetensors"
    WHISPER = "a Whisper audio encoder", ""

    @property
    def words(self) -> str:
        return self.value[0]

    @property
    def nearest(self) -> str:
        """The sentence that names the right files."""
        return f"Use {self.value[1]}."


class AnotherKind(ModelError):
    """A file may be whole, but is not what it was given as, or not in a form that can be read."""


def kind_of(keys: frozenset[str]) -> Kind | None:
    """What a file is by the names of its tensors; None for one never seen."""
    if any(re.search(r"\.lora_(A|B|up|down)\b", key) for key in keys):
        return Kind.LORA
    prefix = transformer_prefix(keys)
    biases = [key for key in keys if re.fullmatch(r"encoder\.block\.\d+\..+\.relative_attention_bias\.weight", key)]
    for kind, recognised in (
        (Kind.TRANSFORMER, f"{prefix}casual_audio_encoder.encoder.final_linear.weight" in keys),
        (Kind.OTHER_WAN, f"{prefix}head.modulation" in keys),
        (Kind.VAE_2_2, "decoder.upsamples.0.upsamples.0.residual.2.weight" in keys),
        (Kind.VAE, "decoder.middle.0.residual.0.gamma" in keys),
        (Kind.TEXT, "token_embedding.weight" in keys and "blocks.0.pos_embedding.embedding.weight" in keys),
        (Kind.TEXT, bool(biases) and len(biases) >= count_layers(keys, "encoder.block.")),
        (Kind.T5, bool(biases)),
        (Kind.CLIP, any(key.startswith("text_model.encoder.layers.") for key in keys)),
        (Kind.AUDIO, any(".pos_conv_embed.conv." in key for key in keys)),
        (Kind.WHISPER, "model.encoder.embed_positions.weight" in keys),
    ):
        if recognised:
            return kind
    return None


def refuse_another_kind(source: TensorSource, wanted: Kind) -> None:
    """Make sure that a file is not recognised as something else.

    Raises:
        AnotherKind: it is; with what it is and what to use.
    """
    kind = kind_of(source.keys())
    if kind and kind is not wanted:
        raise AnotherKind(f"{source.describe()} is {kind.words}, not {wanted.words}.", wanted.nearest)


def count_layers(keys: frozenset[str], stem: str) -> int:
    """How many numbers follow `stem` in names."""
    return len({key[len(stem) :].split(".")[0] for key in keys if key.startswith(stem)})


def transformer_prefix(keys: frozenset[str]) -> str:
    """What stands before the names of the transformer in this file."""
    return next((p for p in PREFIXES if f"{p}head.modulation" in keys), "")


def open_transformer(path: Path) -> DequantisedSource:
    """The transformer's tensors under their published names, from the index of shards or one file.

    Raises:
        MissingFilesError, ModelError: not there, damaged, or of another kind.
    """
    source = SafetensorsSource(path)
    refuse_another_kind(source, Kind.TRANSFORMER)
    return DequantisedSource(source, transformer_prefix(source.keys()))


def open_file(path: Path) -> TensorSource:
    """A file of tensors of either kind, `.safetensors` or `.pth`."""
    return DequantisedSource(SafetensorsSource(path)) if path.suffix == ".safetensors" else TorchSource(path)


class DequantisedSource:
    """A safetensors file whose fp8 matrices are read as numbers; every other tensor is read as it is stored.

    With a scale they are multiplied in float32 and stay float32, so that whoever rounds does so once; without one they
    become bfloat16, which holds every fp8 number. Scales and marks are not among the keys.

    Args:
        source: the file.
        prefix: what to take off the names; tensors without it belong to other models and are left out.

    Raises:
        ModelError: quantised in another way than fp8, or a scale and its matrix do not fit; while reading: a scale is
            not finite, or a layer states another format.
    """

    def __init__(self, source: SafetensorsSource, prefix: str = ""):
        self._source = source
        self._stored = {key.removeprefix(prefix): key for key in source.keys() if key.startswith(prefix)}  # noqa: SIM118
        if strange := sorted(key for key in self._stored if _OTHER_FORMAT.fullmatch(key)):
            raise self._refusal(strange[0].rpartition(".")[0], "another way than fp8")
        self._scale: dict[str, str] = {}
        for key in sorted(self._stored):
            layer, _, last = key.rpartition(".")
            if last in _SCALES:
                self._add_scale(layer, key)
        self._check_formats(prefix)
        self._keys = frozenset(key for key in self._stored if not _BOOKKEEPING.fullmatch(key))

    @property
    def scaled(self) -> int:
        """How many matrices have a scale."""
        return len(self._scale)

    def keys(self) -> frozenset[str]:
        return self._keys

    def shape(self, key: str) -> tuple[int, ...]:
        return self._source.shape(self._stored.get(key, key))

    def read(self, key: str) -> torch.Tensor:
        tensor = self._source.read(self._stored.get(key, key))
        if key not in self._scale:
            return tensor.bfloat16() if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) else tensor
        layer = key.removesuffix(".weight")
        if (mark := f"{layer}.comfy_quant") in self._stored:
            self._check_format(layer, _json(self._source.read(self._stored[mark]).numpy().tobytes()))
        scale = self._source.read(self._stored[self._scale[key]]).float()
        if not torch.isfinite(scale).all():
            raise ModelError(f"{self.describe()} holds a scale for {key} that is not finite.", _NEAREST)
        return tensor.to(torch.float32, copy=True).mul_(scale.reshape(-1, *[1] * (tensor.ndim - 1)))

    def describe(self) -> str:
        return self._source.describe() + (f" ({self.scaled} matrices in fp8)" if self.scaled else "")

    def _add_scale(self, layer: str, key: str) -> None:
        weight = f"{layer}.weight"
        if weight not in self._stored or weight in self._scale:
            what = "two scales" if weight in self._scale else "a scale but no matrix"
            raise ModelError(f"{self._source.describe()} holds {what} for {layer}.", _NEAREST)
        shape, scale = self.shape(weight), self.shape(key)
        stored = self._source.dtype(self._stored[weight])
        if stored not in (*_FP8, *_FLOATS) or self._source.dtype(self._stored[key]) not in _FLOATS:
            raise self._refusal(layer, f"{stored} with scales of {self._source.dtype(self._stored[key])}")
        if scale not in ((), (1,), (1,) * len(shape), (*shape[:1], *[1] * (len(shape) - 1))):
            raise self._refusal(layer, f"parts (scales {list(scale)} for {list(shape)})")
        self._scale[weight] = key

    def _check_formats(self, prefix: str) -> None:
        """That layers said to be quantised have a scale, and those of the header are in fp8."""
        header = self._source.metadata().get("_quantization_metadata")
        stated = _json(header).get("layers") if header else {}
        if not isinstance(stated, dict):
            raise ModelError(f"The header of {self._source.describe()} is damaged (_quantization_metadata).", _NEAREST)
        stated = {str(layer).removeprefix(prefix): how for layer, how in stated.items()}
        marked = {key.removesuffix(".comfy_quant") for key in self._stored if key.endswith(".comfy_quant")}
        for layer, how in stated.items():
            if f"{layer}.weight" in self._stored:
                self._check_format(layer, how)
        for layer in sorted(marked):
            if (found := self._source.dtype(self._stored[f"{layer}.comfy_quant"])) != "U8":
                raise self._refusal(layer, f"a format that is not said in bytes but in {found}")
        for layer in sorted(marked | set(stated)):
            if (weight := f"{layer}.weight") in self._stored and weight not in self._scale:
                raise ModelError(f"{self._source.describe()} lacks the scale of {layer}.", _NEAREST)

    def _check_format(self, layer: str, how: Any) -> None:
        name = how.get("format") if isinstance(how, dict) else how
        if name not in _FP8_FORMATS:
            raise self._refusal(layer, str(name))

    def _refusal(self, layer: str, how: str) -> ModelError:
        return AnotherKind(f"{self._source.describe()} stores {layer} in {how}, which cannot be read.", _NEAREST)


def _json(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


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
