"""The tensors of the whole transformer by name and shape, as the checkpoint has them; and whether a source has them.

The network's modules (`liveavatar.model`) say the same, but need PyTorch to be built, which takes longer than a look at
the headers of all files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..config import ModelConfig
from ..errors import MissingFilesError, ModelError
from .source import TensorSource

Shape = tuple[int, ...]
Tensors = Iterator[tuple[str, Shape]]


def transformer_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every tensor of the whole network."""
    d = config.dim
    return dict(
        (
            *_embedders(config),
            *_conv("patch_embedding", d, config.in_dim, 1, 2, 2),
            *_conv("cond_encoder", d, config.cond_dim, 1, 2, 2),
            ("trainable_cond_mask.weight", (3, d)),
            *_conv("frame_packer.proj", d, config.in_dim, 1, 2, 2),
            *_conv("frame_packer.proj_2x", d, config.in_dim, 2, 4, 4),
            *_conv("frame_packer.proj_4x", d, config.in_dim, 4, 8, 8),
            *(tensor for i in range(config.num_layers) for tensor in _layer(f"blocks.{i}", config)),
            *(tensor for j in range(len(config.audio_inject_layers)) for tensor in _injector(j, d)),
            ("head.modulation", (1, 2, d)),
            *_linear("head.head", 4 * config.out_dim, d),
        )
    )


def _embedders(config: ModelConfig) -> Tensors:
    """Embeddings of text, timesteps and audio."""
    d, audio = config.dim, "casual_audio_encoder"
    yield from _linear("text_embedding.0", d, config.text_dim)
    yield from _linear("text_embedding.2", d, d)
    yield from _linear("time_embedding.0", d, config.freq_dim)
    yield from _linear("time_embedding.2", d, d)
    yield from _linear("time_projection.1", 6 * d, d)
    yield f"{audio}.weights", (1, config.audio_layers, 1, 1)
    yield f"{audio}.encoder.padding_tokens", (1, 1, 1, d)
    yield from _conv(f"{audio}.encoder.conv1_local.conv", d // 4 * config.num_audio_token, config.audio_dim, 3)
    yield from _conv(f"{audio}.encoder.conv1_global.conv", d // 4, config.audio_dim, 3)
    yield from _conv(f"{audio}.encoder.conv2.conv", d // 2, d // 4, 3)
    yield from _conv(f"{audio}.encoder.conv3.conv", d, d // 2, 3)
    yield from _linear(f"{audio}.encoder.final_linear", d, d)


def _layer(name: str, config: ModelConfig) -> Tensors:
    d = config.dim
    yield f"{name}.modulation", (1, 6, d)
    yield from _attention(f"{name}.self_attn", d)
    yield f"{name}.norm3.weight", (d,)
    yield f"{name}.norm3.bias", (d,)
    yield from _attention(f"{name}.cross_attn", d)
    yield from _linear(f"{name}.ffn.0", config.ffn_dim, d)
    yield from _linear(f"{name}.ffn.2", d, config.ffn_dim)


def _injector(number: int, d: int) -> Tensors:
    yield from _attention(f"audio_injector.injector.{number}", d)
    yield from _linear(f"audio_injector.injector_adain_layers.{number}.linear", 2 * d, d)


def _attention(name: str, d: int) -> Tensors:
    for projection in "qkvo":
        yield from _linear(f"{name}.{projection}", d, d)
    yield f"{name}.norm_q.weight", (d,)
    yield f"{name}.norm_k.weight", (d,)


def _linear(name: str, out: int, width: int) -> Tensors:
    yield f"{name}.weight", (out, width)
    yield f"{name}.bias", (out,)


def _conv(name: str, out: int, channels: int, *kernel: int) -> Tensors:
    yield f"{name}.weight", (out, channels, *kernel)
    yield f"{name}.bias", (out,)


def check_shapes(shapes: Mapping[str, Shape], source: TensorSource) -> None:
    """Make sure, without reading a tensor, that a source has all of these.

    Raises:
        MissingFilesError: it lacks tensors; the first few are named.
        ModelError: a tensor has another shape.
    """
    keys = source.keys()
    refuse_missing([name for name in shapes if name not in keys], source)
    for name, shape in shapes.items():
        refuse_another_shape(name, shape, source)


def refuse_missing(missing: Sequence[str], source: TensorSource) -> None:
    """Refuse a source that lacks some tensors.

    Raises:
        MissingFilesError: there are some.
    """
    if missing:
        listed = ", ".join(sorted(missing)[:5]) + (", ..." if len(missing) > 5 else "")
        raise MissingFilesError(
            f"{source.describe()} lacks {len(missing)} of the tensors this model needs: {listed}.",
            "Use the complete published files, and the config.json that belongs to them.",
        )


def refuse_another_shape(key: str, needed: Shape, source: TensorSource) -> None:
    """Refuse a source that has a tensor in another shape.

    Raises:
        ModelError: it has.
    """
    if (shape := source.shape(key)) != needed:
        raise ModelError(
            f"{key} in {source.describe()} has shape {list(shape)}; this model needs {list(needed)}.",
            "The weights and the config.json belong to different models.",
        )
