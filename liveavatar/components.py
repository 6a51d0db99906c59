"""From a model's name to its modules.

A model is "mini" (the embedded, untrained one), a folder in the official layout, or one safetensors file of the
transformer with the other parts beside it. Modules are built without memory and filled with exactly what they own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import nn

from .config import PRESETS, WAN2_2_S2V_14B, ModelConfig
from .errors import MissingFilesError, ModelError
from .weights.fill import DType, fill
from .weights.folder import ModelFiles, find_model
from .weights.keymaps import umt5_to_transformers, vae_to_diffusers
from .weights.lora import LoRASource, lora_targets, open_lora
from .weights.source import RenamedSource, SafetensorsSource, TensorSource, TorchSource

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    from .model.transformer import CausalS2VTransformer, Part

M = TypeVar("M", bound=nn.Module)

Device = torch.device | str


class Components(Protocol):
    """The parts of one model, made when asked for.

    Attributes:
        name: as the user gave it.
        config: dimensions of the transformer.
        trained: whether the weights mean anything.
    """

    name: str
    config: ModelConfig
    trained: bool

    def transformer(self, part: Part, device: Device, dtype: DType) -> CausalS2VTransformer:
        """A part of the network, with the distillation LoRA merged; reads only what the part owns."""

    def vae(self, device: Device, dtype: torch.dtype) -> AutoencoderKLWan: ...

    def text_encoder(self, device: Device, dtype: torch.dtype) -> tuple[Any, Any]:
        """`transformers.UMT5EncoderModel` with eager attention, and its tokenizer."""

    def audio_encoder(self, device: Device, dtype: torch.dtype) -> Any:
        """`transformers.Wav2Vec2Model`."""

    def describe(self) -> str:
        """Where the weights come from, one line per part."""


def open_components(model: str | Path) -> Components:
    """The components of "mini", of a model folder, or of a single transformer file.

    Raises:
        MissingFilesError: no such model, or parts of it are missing; with the commands that fetch them.
        ModelError: a file is cut off or of another kind.
    """
    if str(model) == "mini":
        from .mini.components import MiniComponents

        return MiniComponents()
    if str(model) in PRESETS and not Path(model).exists():
        raise MissingFilesError(
            f"{model!r} is the name of a model whose weights are not part of this project.",
            "Give the folder you downloaded it to, or 'mini'; `liveavatar inspect DIR` shows what to download.",
        )
    return FolderComponents(find_model(model), name=str(model))


class FolderComponents:
    """A model whose weights lie in files.

    Raises:
        ModelError: the configuration is not of this network, or a single file came without one and is no 14B model.
        LoRAError: the LoRA does not fit the network.
    """

    trained = True

    def __init__(self, files: ModelFiles, name: str = ""):
        self.files = files
        self.name = name or str(files.transformer)
        base = SafetensorsSource(files.transformer)
        self.config = ModelConfig.from_file(files.config) if files.config else _config_of_single_file(base)
        self._weights: LoRASource = open_lora(base, files.lora, lora_targets(self.config))

    def transformer(self, part: Part, device: Device, dtype: DType) -> CausalS2VTransformer:
        from .model.transformer import CausalS2VTransformer

        return _filled(lambda: CausalS2VTransformer(self.config, part), self._weights, device, dtype)

    def vae(self, device: Device, dtype: torch.dtype) -> AutoencoderKLWan:
        from .vae.cpu import quicken
        from .vae.wan import build_vae

        path = self.files.vae
        if path.is_dir():
            settings = _json_of(path / "config.json")
            source: TensorSource = SafetensorsSource(path)
        else:
            source = RenamedSource(_any_file(path), vae_to_diffusers)
            settings = {"base_dim": source.shape("encoder.conv_in.weight")[0]}
        return quicken(_filled(lambda: build_vae(**settings), source, device, dtype))

    def text_encoder(self, device: Device, dtype: torch.dtype) -> tuple[Any, Any]:
        from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

        path = self.files.text_encoder
        if path.is_dir():
            config = UMT5Config.from_pretrained(path, local_files_only=True)
            source = _hugging_face_weights(path)
        else:
            original = _any_file(path)
            config = UMT5Config(**_umt5_dimensions(original))
            source = RenamedSource(original, umt5_to_transformers)
        config._attn_implementation = "eager"
        encoder = _filled(lambda: UMT5EncoderModel(config), source, device, dtype)
        return encoder, AutoTokenizer.from_pretrained(self.files.tokenizer, local_files_only=True)

    def audio_encoder(self, device: Device, dtype: torch.dtype) -> Any:
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        path = self.files.audio_encoder
        # Masking is for training; without it the model has no masking embedding to fill.
        config = Wav2Vec2Config.from_pretrained(path, local_files_only=True, mask_time_prob=0.0, mask_feature_prob=0.0)
        return _filled(
            lambda: Wav2Vec2Model(config), RenamedSource(_hugging_face_weights(path), wav2vec2_key), device, dtype
        )

    def describe(self) -> str:
        f = self.files
        lines = [f"transformer: {self._weights.describe()}", f"VAE: {f.vae}", f"text encoder: {f.text_encoder}"]
        return "\n".join([*lines, f"tokenizer: {f.tokenizer}", f"audio encoder: {f.audio_encoder}"])


def wav2vec2_key(key: str) -> str | None:
    """Name in `transformers.Wav2Vec2Model` of a tensor of a wav2vec2 checkpoint, with or without its CTC head.

    The normalised weight of the positional convolution has an old and a new pair of names for the same tensors.
    """
    key = key.removeprefix("wav2vec2.")
    if key.startswith(("lm_head.", "masked_spec_embed")):
        return None
    old = re.fullmatch(r"(encoder\.pos_conv_embed\.conv)\.weight_([gv])", key)
    return f"{old[1]}.parametrizations.weight.original{'gv'.index(old[2])}" if old else key


def _filled(build: Callable[[], M], source: TensorSource, device: Device, dtype: DType) -> M:
    """A module built without memory, then filled."""
    with torch.device("meta"):
        module = build()
    fill(module, source, dtype=dtype, device=device)
    return module


def _any_file(path: Path) -> TensorSource:
    return SafetensorsSource(path) if path.suffix == ".safetensors" else TorchSource(path)


def _hugging_face_weights(folder: Path) -> TensorSource:
    """The weights of a transformers folder; safetensors where both kinds are there."""
    pickled = folder / "pytorch_model.bin"
    return (
        TorchSource(pickled)
        if pickled.is_file() and not any(folder.glob("*.safetensors"))
        else SafetensorsSource(folder)
    )


def _json_of(path: Path) -> dict[str, Any]:
    """The settings in a diffusers config.json, without its own bookkeeping."""
    import json

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {k: v for k, v in values.items() if not k.startswith("_")}
    except (OSError, ValueError, AttributeError) as e:
        raise ModelError(f"{path} cannot be read as settings ({e}).", "Restore the published config.json.") from e


def _umt5_dimensions(source: TensorSource) -> dict[str, Any]:
    """Arguments of UMT5Config, read off the shapes of an original checkpoint; the rest is fixed by the architecture."""
    first = "blocks.0."
    try:
        vocabulary, width = source.shape("token_embedding.weight")
        buckets, heads = source.shape(first + "pos_embedding.embedding.weight")
        inner = source.shape(first + "attn.q.weight")[0]
        feed_forward = source.shape(first + "ffn.gate.0.weight")[0]
    except (KeyError, ModelError) as e:
        raise ModelError(f"{source.describe()} is no UMT5 encoder.", "Use the published text encoder.") from e
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": feed_forward,
        "num_heads": heads,
        "num_layers": _layers(source.keys()),
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "dropout_rate": 0.0,
    }


def _config_of_single_file(source: SafetensorsSource) -> ModelConfig:
    """Only the published size is recognised without a config.json, since shapes do not tell the number of heads."""
    keys = source.keys()
    dim = source.shape("patch_embedding.weight")[0] if "patch_embedding.weight" in keys else 0
    layers = _layers(keys)
    if (dim, layers) != (WAN2_2_S2V_14B.dim, WAN2_2_S2V_14B.num_layers):
        raise MissingFilesError(
            f"{source.describe()} has {layers} layers of width {dim}, which is not the published 14B model.",
            "Put its config.json beside it.",
        )
    return WAN2_2_S2V_14B


def _layers(keys: frozenset[str]) -> int:
    return len({key.split(".")[1] for key in keys if key.startswith("blocks.")})
