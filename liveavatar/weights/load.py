"""From files to modules: what each part of a model is, read off its files, and filling modules built without memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ..config import WAN2_2_S2V_14B, WAN_LATENT_SCALE, ModelConfig, TinyConfig
from ..errors import MissingFilesError, ModelError
from .formats import open_file, umt5_to_transformers, vae_to_diffusers, wav2vec2_key
from .header import FETCH_AGAIN, AnotherKind, read_settings, shortened
from .kinds import Kind, count_layers, in_diffusers_names, refuse_another_kind
from .quantised import SPIECE, DequantisedSource
from .source import RenamedSource, TensorSource

DType = torch.dtype | Callable[[str], torch.dtype]
"""One dtype for all tensors, or one per name."""
TensorDevice = torch.device | str | Callable[[str], torch.device | str]
"""One device for all tensors, or one per name; what is for the meta device is not read."""
OnRead = Callable[[int, float], None]
"""Called with the bytes of a tensor that was read, as it stays, and with the share of its module that is there now."""

_on_read: ContextVar[OnRead | None] = ContextVar("on_read", default=None)


@contextlib.contextmanager
def watched_reads(on_read: OnRead) -> Iterator[None]:
    """Inside, `fill` calls `on_read` after every tensor, in this thread; what it raises ends the reading."""
    token = _on_read.set(on_read)
    try:
        yield
    finally:
        _on_read.reset(token)


@runtime_checkable
class WeightQuantizer(Protocol):
    """A module that keeps its `weight` in a form of its own, such as fewer bits.

    Attributes:
        quantized_names: names of the tensors it keeps instead, "weight" among them; sources have none of the others.
    """

    quantized_names: tuple[str, ...]

    def quantize_weight(self, weight: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The weight as the source has it, on the module's device -> each of `quantized_names`."""


def fill(module: nn.Module, source: TensorSource, *, dtype: DType, device: TensorDevice) -> None:
    """Give a module built under `torch.device("meta")` its tensors, in place, one at a time.

    Exactly what the module owns is read; names are those of its state dict, and a tensor it knows under several names
    is read once, from the first name the source has. Afterwards everything is real, on `device`, in `dtype` (whole
    numbers keep theirs), needs no gradient, and the module is in evaluation mode. What modules pack (see
    `WeightQuantizer`) is packed on `device`, tensor by tensor. Peak host memory is what stays plus the tensor in hand.
    What is for the meta
    device is there to be given its values by somebody else: it is not read, and stays as it was built.

    Modules with buffers outside their state dict (computed ones) are refused, because nothing could give those values;
    those of this library and the encoder and VAE classes it uses have none.

    Raises:
        MissingFilesError: the source lacks tensors; the first few are named.
        ModelError: a tensor has another shape than the module's, or the module has computed buffers; while reading: a
            tensor holds values that are not finite, or whole numbers where the module has others.
    """
    chosen = check(module, source)
    ready: dict[torch.Tensor, torch.Tensor] = {}
    progress = _ReadProgress(chosen, device)
    for owner in module.modules():
        packed: Mapping[str, torch.Tensor] = {}
        if isinstance(owner, WeightQuantizer):
            key = chosen[owner.get_parameter("weight")]
            if (there := _place(key, device)).type == "meta":
                packed = {name: getattr(owner, name).detach() for name in owner.quantized_names}
            else:
                weight = source.read(key).detach().to(there)
                _check_values(weight, key, source, there)
                packed = owner.quantize_weight(weight)
                progress.count(owner.get_parameter("weight"), sum(part.nbytes for part in packed.values()))
        tables: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers)
        for slots in tables:
            for slot, old in slots.items():
                if old is None:
                    continue
                if slot in packed:
                    ready[old] = nn.Parameter(packed[slot], requires_grad=False)
                if old not in ready:
                    ready[old] = _read(source, chosen[old], old, dtype, device)
                    progress.count(old, ready[old].nbytes)
                slots[slot] = ready[old]
    module.eval()


class _ReadProgress:
    """How much of a module is there; tells who watches (see `watched_reads`).

    Args:
        chosen: the module's tensors, and their names.
        device: those for the meta device are not read.
    """

    def __init__(self, chosen: Mapping[torch.Tensor, str], device: TensorDevice):
        self._on_read, self._done = _on_read.get(), 0
        self._sizes: dict[torch.Tensor, int] = {}
        if self._on_read is not None:
            self._sizes = {t: t.numel() for t, key in chosen.items() if _place(key, device).type != "meta"}
        self._total = max(1, sum(self._sizes.values()))

    def count(self, tensor: torch.Tensor, nbytes: int) -> None:
        """A tensor of the module was read and takes so many bytes."""
        if self._on_read is not None and (size := self._sizes.get(tensor)) is not None:
            self._done += size
            self._on_read(nbytes, self._done / self._total)


def check(module: nn.Module, source: TensorSource) -> dict[torch.Tensor, str]:
    """Make sure, without reading a tensor, that `fill` would find everything in its shape.

    Returns:
        Each tensor of the module -> the name under which the source has it.

    Raises:
        MissingFilesError, ModelError: as `fill`.
    """
    names = _names(module)
    _refuse_computed_buffers(module, names)
    keys = source.keys()
    chosen = {tensor: next((n for n in ns if n in keys), "") for tensor, ns in names.items()}
    _refuse_missing([names[t][0] for t, n in chosen.items() if not n], source)
    for tensor, key in chosen.items():
        if (shape := source.shape(key)) != tuple(tensor.shape):
            raise ModelError(
                f"{key} in {source.describe()} has shape {list(shape)}; this model needs {list(tensor.shape)}.",
                "The weights and the config.json belong to different models.",
            )
    return chosen


def _names(module: nn.Module) -> dict[torch.Tensor, list[str]]:
    """Each tensor a source must have (tensors hash by identity) -> its names in the state dict, the shortest first."""
    made = {
        owner.get_parameter(slot)
        for owner in module.modules()
        if isinstance(owner, WeightQuantizer)
        for slot in owner.quantized_names
        if slot != "weight"
    }
    names: dict[torch.Tensor, list[str]] = {}
    for key, tensor in module.state_dict(keep_vars=True).items():
        if tensor not in made:
            names.setdefault(tensor, []).append(key)
    return {t: sorted(ns, key=lambda n: (len(n), n)) for t, ns in names.items()}


def _refuse_computed_buffers(module: nn.Module, names: dict[torch.Tensor, list[str]]) -> None:
    computed = [n for n, b in module.named_buffers() if b not in names]
    if computed:
        raise ModelError(f"{type(module).__name__} computes {computed[0]} itself and cannot be built without memory.")


def _refuse_missing(missing: list[str], source: TensorSource) -> None:
    if missing:
        listed = ", ".join(sorted(missing)[:5]) + (", ..." if len(missing) > 5 else "")
        raise MissingFilesError(
            f"{source.describe()} lacks {len(missing)} of the tensors this model needs: {listed}.",
            "Use the complete published files, and the config.json that belongs to them.",
        )


def _read(source: TensorSource, key: str, old: torch.Tensor, dtype: DType, device: TensorDevice) -> torch.Tensor:
    """A copy of one tensor where it is wanted, never the file's own memory; a parameter where `old` is one."""
    there = _place(key, device)
    if there.type == "meta":
        return old
    value = source.read(key)
    wanted = dtype if isinstance(dtype, torch.dtype) else dtype(key)
    kept = value.detach().to(device=there, dtype=wanted if value.is_floating_point() else value.dtype, copy=True)
    if old.is_floating_point():
        _check_values(kept, key, source, there)
    return nn.Parameter(kept, requires_grad=False) if isinstance(old, nn.Parameter) else kept


def _check_values(tensor: torch.Tensor, key: str, source: TensorSource, there: torch.device) -> None:
    """Refuse numbers that no network works with, by name; where they lie, in one pass that costs less than the copy.

    The smallest and the largest number of a tensor with NaN are NaN.
    """
    if not tensor.is_floating_point():
        raise ModelError(
            f"{source.describe()} stores {shortened(key)} in whole numbers ({tensor.dtype}), without a scale.",
            "Use the bf16, fp16 or fp8_scaled file of this model.",
        )
    if not tensor.numel():
        return
    least, most = tensor.aminmax()
    if bool(torch.isfinite(most - least if tensor.dtype == torch.float64 else most.float() - least.float())):
        return
    if not source.read(key).isfinite().all():
        raise ModelError(f"{shortened(key)} in {source.describe()} holds values that are not finite.", FETCH_AGAIN)
    dtype = str(tensor.dtype).removeprefix("torch.")
    raise ModelError(
        f"{shortened(key)} in {source.describe()} holds values that are too large for {dtype} on {there}.",
        "Use bfloat16 or float32.",
    )


def _place(key: str, device: TensorDevice) -> torch.device:
    return torch.device(device(key) if callable(device) else device)


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
    there = in_diffusers_names(open_file(path).keys())
    source = _renamed(path, str if there else vae_to_diffusers, Kind.VAE)
    shape = source.shape(first) if (first := "encoder.conv_in.weight") in source.keys() else ()  # noqa: SIM118
    if len(shape) != 5:
        raise ModelError(f"{path} is no VAE of Wan 2.1.", Kind.VAE.nearest)
    return source, {"base_dim": shape[0]}


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
    original = "token_embedding.weight" in open_file(path).keys()  # noqa: SIM118 (not a mapping)
    return _renamed(path, umt5_to_transformers if original else _but_the_tokenizer, Kind.TEXT)


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
    return _renamed(path, wav2vec2_key, Kind.AUDIO)


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


def _renamed(path: Path, rename: Callable[[str], str | None], wanted: Kind) -> TensorSource:
    """A file's tensors under other names.

    Raises:
        ModelError: it is of another kind; with its name.
    """
    source = open_file(path)
    refuse_another_kind(source, wanted)
    try:
        return RenamedSource(source, rename)
    except ModelError as e:
        raise ModelError(f"{path} is not {wanted.words}: {e.what}", wanted.nearest) from e
