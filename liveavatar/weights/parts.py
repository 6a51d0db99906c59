"""What each part of a model is, read off its files without loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config import WAN2_2_S2V_14B, ModelConfig
from ..errors import MissingFilesError, ModelError
from .folder import ModelFiles
from .keymaps import umt5_to_transformers, vae_to_diffusers
from .source import RenamedSource, SafetensorsSource, TensorSource, TorchSource

_PUBLISHED = "Use the one that is published with the model."


def check_encoders(files: ModelFiles, config: ModelConfig) -> None:
    """Make sure that VAE and encoders are what this network was trained with; a look at names and sizes.

    Raises:
        MissingFilesError, ModelError: which one is not, and why.
    """
    vae_weights(files.vae)
    text = text_settings(files.text_encoder)
    audio = settings_of(files.audio_encoder)
    hears = audio.get("hidden_size"), (audio.get("num_hidden_layers") or 0) + 1
    for part, path, found, needed in (
        ("text encoder", files.text_encoder, text.get("d_model"), config.text_dim),
        ("audio encoder", files.audio_encoder, hears[0], config.audio_dim),
    ):
        if found != needed:
            raise ModelError(f"The {part} {path} makes features of {found} numbers, not of {needed}.", _PUBLISHED)
    if hears[1] != config.audio_layers:
        raise ModelError(
            f"The audio encoder {files.audio_encoder} has {hears[1]} hidden states, not {config.audio_layers}.",
            _PUBLISHED,
        )


def config_of_single_file(source: TensorSource) -> ModelConfig:
    """Only the published size is recognised without a config.json, since shapes do not tell the number of heads.

    Raises:
        MissingFilesError: another size.
    """
    keys = source.keys()
    dim = source.shape("patch_embedding.weight")[0] if "patch_embedding.weight" in keys else 0
    layers = _layers(keys)
    if (dim, layers) != (WAN2_2_S2V_14B.dim, WAN2_2_S2V_14B.num_layers):
        raise MissingFilesError(
            f"{source.describe()} has {layers} layers of width {dim}, which is not the published 14B model.",
            "Put its config.json beside it.",
        )
    return WAN2_2_S2V_14B


def vae_weights(path: Path) -> tuple[TensorSource, dict[str, Any]]:
    """Tensors in diffusers' names, and the arguments of `build_vae`.

    Raises:
        ModelError: another network, or damaged.
    """
    if path.is_dir():
        return SafetensorsSource(path), settings_of(path)
    source = RenamedSource(any_file(path), vae_to_diffusers)
    if (first := "encoder.conv_in.weight") not in source.keys():  # noqa: SIM118 (not a mapping)
        raise ModelError(f"{path} is no VAE of Wan 2.1.", _PUBLISHED)
    return source, {"base_dim": source.shape(first)[0]}


def text_weights(path: Path) -> TensorSource:
    """Tensors of the text encoder in the names of transformers."""
    return hugging_face_weights(path) if path.is_dir() else RenamedSource(any_file(path), umt5_to_transformers)


def text_settings(path: Path) -> dict[str, Any]:
    """Arguments of UMT5Config: of a folder its config.json, of an original checkpoint read off its shapes (the rest is
    fixed by the architecture).

    Raises:
        ModelError: another network, or damaged.
    """
    if path.is_dir():
        return settings_of(path)
    source = any_file(path)
    first = "blocks.0."
    try:
        vocabulary, width = source.shape("token_embedding.weight")
        buckets, heads = source.shape(first + "pos_embedding.embedding.weight")
        inner = source.shape(first + "attn.q.weight")[0]
        feed_forward = source.shape(first + "ffn.gate.0.weight")[0]
    except (KeyError, ValueError, ModelError) as e:
        raise ModelError(f"{source.describe()} is no UMT5 encoder.", _PUBLISHED) from e
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


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings in a folder's config.json, without its own bookkeeping.

    Raises:
        ModelError: not readable.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {k: v for k, v in values.items() if not k.startswith("_")}
    except (OSError, ValueError, AttributeError) as e:
        raise ModelError(f"{path} cannot be read as settings ({e}).", "Restore the published config.json.") from e


def any_file(path: Path) -> TensorSource:
    """A file of tensors of either kind."""
    return SafetensorsSource(path) if path.suffix == ".safetensors" else TorchSource(path)


def hugging_face_weights(folder: Path) -> TensorSource:
    """The weights of a transformers folder; safetensors where both kinds are there."""
    pickled = folder / "pytorch_model.bin"
    return (
        TorchSource(pickled)
        if pickled.is_file() and not any(folder.glob("*.safetensors"))
        else SafetensorsSource(folder)
    )


def _layers(keys: frozenset[str]) -> int:
    return len({key.split(".")[1] for key in keys if key.startswith("blocks.")})
