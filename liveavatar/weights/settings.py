"""What each part of a model is, read off its files: settings of its network, and its tensors in the names it has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config import WAN2_2_S2V_14B, WAN_LATENT_SCALE, DecoderConfig, LightConfig, ModelConfig, TinyConfig
from ..errors import MissingFilesError, ModelError
from .formats import open_file, umt5_to_transformers, vae_to_diffusers, wav2vec2_key
from .gguf import refuse_another_architecture
from .header import AnotherKind, read_settings, shortened
from .kinds import Kind, count_layers, in_diffusers_names, kind_of, refuse_another_kind
from .quantised import SPIECE, DequantisedSource
from .source import RenamedSource, TensorSource, open_weights

_CONV_KERNELS = (10, 3, 3, 3, 3, 2, 2)
_HEAD_WIDTH, _WIDEST = 64, 1024
"""Of published wav2vec2 encoders; the wider ones have wider heads."""


def config_of_single_file(source: TensorSource) -> ModelConfig:
    """Only the published size is recognised without a config.json, since shapes do not tell the number of heads.

    Raises:
        MissingFilesError: another size.
    """
    keys = source.keys()
    dim = source.shape("patch_embedding.weight")[0] if "patch_embedding.weight" in keys else 0
    layers = count_layers(keys, "blocks.")
    if (dim, layers) != (WAN2_2_S2V_14B.dim, WAN2_2_S2V_14B.num_layers):
        raise MissingFilesError(
            f"{source.describe()} has {layers} layers of width {dim}, which is not the published 14B model.",
            "Put its config.json beside it.",
        )
    return WAN2_2_S2V_14B


def check_layers(config: ModelConfig, source: TensorSource) -> None:
    """Make sure that a configuration has as many layers as the weights, before a network is laid out by it.

    Raises:
        ModelError: it has not.
    """
    layers = count_layers(source.keys(), "blocks.")
    if layers not in (0, config.num_layers):
        raise ModelError(
            f"{source.describe()} has {layers} layers; its config.json says {config.num_layers}.",
            "The weights and the config.json belong to different models.",
        )


def vae_weights(path: Path) -> tuple[TensorSource, dict[str, Any]]:
    """Tensors in diffusers' names, and the arguments of `build_vae`.

    Raises:
        ModelError: another network, or damaged.
    """
    if path.is_dir():
        return open_file(path), settings_of(path)
    return vae_tensors(open_file(path))


def vae_tensors(tensors: TensorSource) -> tuple[TensorSource, dict[str, Any]]:
    """What `vae_weights` gives of a file with these tensors, in published names or those of diffusers.

    Raises:
        ModelError: another network.
    """
    there = in_diffusers_names(tensors.keys())
    source = _renamed(tensors, str if there else vae_to_diffusers, Kind.VAE)
    shape = source.shape(first) if (first := "encoder.conv_in.weight") in source.keys() else ()  # noqa: SIM118
    if len(shape) != 5:
        raise ModelError(f"{tensors.describe()} is no VAE of Wan 2.1.", Kind.VAE.nearest)
    return source, {"base_dim": shape[0]}


def is_light(path: Path) -> bool:
    """Whether a file is the published pruned VAE: by its width, as it has the names of the VAE it stands for.

    Raises:
        ModelError: damaged.
    """
    source = open_file(path)
    if kind_of(source.keys()) is not Kind.VAE:
        return False
    first = next((key for key in ("encoder.conv1.weight", "encoder.conv_in.weight") if key in source.keys()), None)  # noqa: SIM118
    return first is not None and source.shape(first)[:1] == (LightConfig().base_dim,)


def decoder_weights(path: Path) -> tuple[TensorSource, DecoderConfig]:
    """Tensors of a decoder that works in place of the VAE's own, a tiny or a pruned one, and its dimensions.

    Raises:
        ModelError: another network, one of another model's latents, or damaged.
    """
    return (vae_weights(path)[0], LightConfig()) if is_light(path) else tiny_weights(path)


_TINY_LAYERS = (1, 8, 14, 20, 22)
"""Where the plain convolutions stand in the published sequence: into each of the four widths, and to colours."""
_LATENT_CHANNELS = 16
_TINY_VAE_OF = {24: "MiniMax H3", 32: "HunyuanVideo 1.5", 48: "Wan 2.2", 128: "LTX 2"}
"""Channels of latents, and whose they are."""


def tiny_weights(path: Path) -> tuple[TensorSource, TinyConfig]:
    """Tensors of a tiny decoder, and its dimensions, read off its shapes.

    Raises:
        ModelError: another network, one of another model's latents, or damaged.
    """
    source = open_file(path)
    refuse_another_kind(source, Kind.TINY_VAE)
    try:
        first, *others = (source.shape(f"decoder.{layer}.weight") for layer in _TINY_LAYERS)
        a, b, c, d = (first[0], *(shape[0] for shape in others[:-1]))
        channels, colours = first[1], others[-1][0]
    except (KeyError, IndexError, ModelError) as e:
        raise ModelError(f"{path} is no tiny VAE.", Kind.TINY_VAE.nearest) from e
    name = path.name.lower()
    model = "HunyuanVideo" if name.startswith("taehv") else _TINY_VAE_OF.get(channels, "another model")
    if (channels, colours) != (_LATENT_CHANNELS, 3) or name.startswith("taehv"):
        raise AnotherKind(f"{path} is a tiny VAE of {model}, not of Wan 2.1.", Kind.TINY_VAE.nearest)
    # The two published ones are alike but for what they read, which only their names tell.
    return source, TinyConfig((a, b, c, d), WAN_LATENT_SCALE if name.startswith("lighttae") else None)


def text_weights(path: Path) -> TensorSource:
    """Tensors of the text encoder in the names of transformers.

    Raises:
        ModelError: another network, or damaged.
    """
    if path.is_dir():
        return hugging_face_weights(path)
    refuse_another_architecture(open_weights(path), Kind.TEXT)
    source = open_file(path)
    original = "token_embedding.weight" in source.keys()  # noqa: SIM118 (not a mapping)
    return _renamed(source, umt5_to_transformers if original else _but_the_tokenizer, Kind.TEXT)


def text_settings(path: Path) -> dict[str, Any]:
    """Arguments of UMT5Config: of a folder its config.json, of a file read off its shapes (the rest is fixed by the
    architecture).

    Raises:
        ModelError: another network, or damaged.
    """
    if path.is_dir():
        return settings_of(path)
    source = text_weights(path)
    attention, feed_forward = (f"encoder.block.0.layer.{i}." for i in (0, 1))
    try:
        vocabulary, width = source.shape("shared.weight")
        buckets, heads = source.shape(attention + "SelfAttention.relative_attention_bias.weight")
        inner = source.shape(attention + "SelfAttention.q.weight")[0]
        wide = source.shape(feed_forward + "DenseReluDense.wi_0.weight")[0]
        per_head = inner // heads
    except (KeyError, ValueError, ZeroDivisionError, IndexError, ModelError) as e:
        raise ModelError(f"{source.describe()} is no UMT5 encoder.", Kind.TEXT.nearest) from e
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": per_head,
        "d_ff": wide,
        "num_heads": heads,
        "num_layers": count_layers(source.keys(), "encoder.block."),
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "dropout_rate": 0.0,
    }


def audio_weights(path: Path) -> TensorSource:
    """Tensors of the audio encoder in the names of `transformers.Wav2Vec2Model`.

    Raises:
        ModelError: another network, or damaged.
    """
    if path.is_dir():
        return RenamedSource(hugging_face_weights(path), wav2vec2_key)
    return _renamed(open_file(path), wav2vec2_key, Kind.AUDIO)


def audio_settings(path: Path) -> dict[str, Any]:
    """Arguments of Wav2Vec2Config: of a folder its config.json, of a file read off its shapes.

    Shapes do not tell two things, which are those of every published encoder up to 1024 wide: heads have 64 numbers,
    and layers are normalised before what they do exactly where all convolutions are normalised.

    Raises:
        ModelError: another network, or damaged.
    """
    if path.is_dir():
        return settings_of(path)
    source = audio_weights(path)
    keys, conv = source.keys(), "feature_extractor.conv_layers."
    count = count_layers(keys, conv)
    try:
        width, _ = source.shape("feature_projection.projection.weight")
        wide, _ = source.shape("encoder.layers.0.feed_forward.intermediate_dense.weight")
        _, per_group, positions = source.shape("encoder.pos_conv_embed.conv.parametrizations.weight.original1")
        shapes = [source.shape(f"{conv}{i}.conv.weight") for i in range(count)]
        kernels, groups = tuple(shape[-1] for shape in shapes), width // per_group
    except (KeyError, ValueError, ZeroDivisionError, IndexError, ModelError) as e:
        raise ModelError(f"{source.describe()} is no wav2vec2 encoder.", Kind.AUDIO.nearest) from e
    norms, biases = ([f"{conv}{i}.{name}" in keys for i in range(count)] for name in ("layer_norm.weight", "conv.bias"))
    plain = norms == [True, *[False] * (count - 1)]
    known = kernels == _CONV_KERNELS and (all(norms) or plain) and len(set(biases)) == 1
    if not known or width % _HEAD_WIDTH or width > _WIDEST:
        raise ModelError(
            f"{source.describe()} is a wav2vec2 encoder of an unknown form ({width} wide, convolutions {kernels}).",
            "Give the folder with its config.json.",
        )
    return {
        "hidden_size": width,
        "num_hidden_layers": count_layers(keys, "encoder.layers."),
        "num_attention_heads": width // _HEAD_WIDTH,
        "intermediate_size": wide,
        "conv_dim": [shape[0] for shape in shapes],
        "conv_bias": biases[0],
        "feat_extract_norm": "layer" if all(norms) else "group",
        "do_stable_layer_norm": all(norms),
        "num_conv_pos_embeddings": positions,
        "num_conv_pos_embedding_groups": groups,
    }


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings in a folder's config.json, without its own bookkeeping.

    Raises:
        ModelError: not readable, or with numbers that no network of these has.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder.name} lacks config.json.", "Restore the published config.json.")
    settings = {k: v for k, v in read_settings(path).items() if not k.startswith("_")}
    for name, value in settings.items():
        if _absurd(name, value):
            raise ModelError(
                f"{path} says {shortened(name)} = {shortened(str(value), 40)}, which no network of this kind has.",
                "Restore the published config.json.",
            )
    return settings


_LARGEST_SETTING, _MOST_LAYERS = 1 << 24, 200
"""Published networks have vocabularies of 256,384 pieces and 48 layers."""


def _absurd(name: str, value: Any) -> bool:
    """Whether building a network by a setting would take all time or memory."""
    most = _MOST_LAYERS if "layers" in name or "blocks" in name else _LARGEST_SETTING
    if isinstance(value, list):
        return len(value) > _MOST_LAYERS or any(_absurd(name, each) for each in value)
    return isinstance(value, int | float) and not abs(value) <= most


def hugging_face_weights(folder: Path) -> DequantisedSource:
    """The weights of a transformers folder; safetensors where both kinds are there."""
    pickled = folder / "pytorch_model.bin"
    return open_file(pickled if pickled.is_file() and not any(folder.glob("*.safetensors")) else folder)


def _but_the_tokenizer(key: str) -> str | None:
    return None if key == SPIECE else key


def _renamed(source: TensorSource, rename: Callable[[str], str | None], wanted: Kind) -> TensorSource:
    """Tensors under other names.

    Raises:
        ModelError: they are of another kind; with its name.
    """
    refuse_another_kind(source, wanted)
    try:
        return RenamedSource(source, rename)
    except ModelError as e:
        raise ModelError(f"{source.describe()} is not {wanted.words}: {e.what}", wanted.nearest) from e
