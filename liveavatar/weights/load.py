"""From files to modules: what each part of a model is, read off its files, and filling modules built without memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ..config import WAN2_2_S2V_14B, ModelConfig
from ..errors import MissingFilesError, ModelError
from .formats import open_file, umt5_to_transformers, vae_to_diffusers, wav2vec2_key
from .header import FETCH_AGAIN, read_settings, shortened
from .kinds import Kind, count_layers, in_diffusers_names, refuse_another_kind
from .quantised import SPIECE, DequantisedSource
from .source import RenamedSource, TensorSource

DType = torch.dtype | Callable[[str], torch.dtype]
"""One dtype for all tensors, or one per name."""
TensorDevice = torch.device | str | Callable[[str], torch.device | str]
"""One device for all tensors, or one per name; what is for the meta device is not read."""


@runtime_checkable
class WeightQuantizer(Protocol):
    """A module that keeps its `weight` in a form of its own, such as fewer bits.

    Attributes:
        quantized_names: names of the tensors it keeps instead, "weight" among them; sources have none of the others.
    """

    quantized_names: tuple[str, ...]

    def quantize_parts(self, weights: Iterable[torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The weight as the source has it, on the module's device -> each of `quantized_names`.

        It comes in parts of its rows, one at a time, where the module is fused from several (see `FusedModule`).
        """


@runtime_checkable
class FusedModule(Protocol):
    """A module whose tensors hold the rows of several modules of the source (see `liveavatar.model.fused`).

    Attributes:
        fused_from: names of those modules, beside it; empty where it is one of the source's itself.
    """

    fused_from: tuple[str, ...]


def fill(module: nn.Module, source: TensorSource, *, dtype: DType, device: TensorDevice) -> None:
    """Give a module built under `torch.device("meta")` its tensors, in place, one at a time.

    Exactly what the module owns is read; names are those of its state dict, and a tensor it knows under several names
    is read once, from the first name the source has. One that is fused from several is read part by part (see
    `FusedModule`). Afterwards everything is real, on `device`, in `dtype` (whole
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
    for owner in module.modules():
        packed: Mapping[str, torch.Tensor] = {}
        if isinstance(owner, WeightQuantizer):
            keys = chosen[owner.get_parameter("weight")]
            if (there := _place(keys[0], device)).type == "meta":
                packed = {name: getattr(owner, name).detach() for name in owner.quantized_names}
            else:
                packed = owner.quantize_parts(_checked(source, keys, there))
        tables: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers)
        for slots in tables:
            for slot, old in slots.items():
                if old is None:
                    continue
                if slot in packed:
                    ready[old] = nn.Parameter(packed[slot], requires_grad=False)
                if old not in ready:
                    ready[old] = _read(source, chosen[old], old, dtype, device)
                slots[slot] = ready[old]
    module.eval()


def check(module: nn.Module, source: TensorSource) -> dict[torch.Tensor, tuple[str, ...]]:
    """Make sure, without reading a tensor, that `fill` would find everything in its shape.

    Returns:
        Each tensor of the module -> the name under which the source has it, or the names of the parts of its rows.

    Raises:
        MissingFilesError, ModelError: as `fill`.
    """
    fused, names = _fused_names(module), _names(module)
    _refuse_computed_buffers(module, names)
    keys = source.keys()
    chosen = fused | {tensor: (next((n for n in ns if n in keys), ns[0]),) for tensor, ns in names.items()}
    _refuse_missing([key for ns in chosen.values() for key in ns if key not in keys], source)
    for tensor, parts in chosen.items():
        needed = [tensor.shape[0] // len(parts), *tensor.shape[1:]] if tensor in fused else list(tensor.shape)
        for key in parts:
            if (shape := source.shape(key)) != tuple(needed):
                raise ModelError(
                    f"{key} in {source.describe()} has shape {list(shape)}; this model needs {needed}.",
                    "The weights and the config.json belong to different models.",
                )
    return chosen


def _fused_names(module: nn.Module) -> dict[torch.Tensor, tuple[str, ...]]:
    """Each tensor whose rows are several of a source's -> the names of those."""
    names: dict[torch.Tensor, tuple[str, ...]] = {}
    for path, owner in module.named_modules():
        parts = owner.fused_from if isinstance(owner, FusedModule) else ()
        beside = path[: path.rfind(".") + 1]
        for slot in ("weight", "bias") if parts else ():
            if (tensor := owner._parameters.get(slot)) is not None:
                names[tensor] = tuple(f"{beside}{part}.{slot}" for part in parts)
    return names


def _names(module: nn.Module) -> dict[torch.Tensor, list[str]]:
    """Each other tensor a source must have (they hash by identity) -> its names in the state dict, the shortest first.

    What a state dict shows of a fused tensor are new views: they are no tensors of the module's.
    """
    owned = {*module.parameters(), *module.buffers()} - _fused_names(module).keys()
    made = {
        owner.get_parameter(slot)
        for owner in module.modules()
        if isinstance(owner, WeightQuantizer)
        for slot in owner.quantized_names
        if slot != "weight"
    }
    names: dict[torch.Tensor, list[str]] = {}
    for key, tensor in module.state_dict(keep_vars=True).items():
        if tensor in owned and tensor not in made:
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


def _read(
    source: TensorSource, keys: tuple[str, ...], old: torch.Tensor, dtype: DType, device: TensorDevice
) -> torch.Tensor:
    """A copy of one tensor where it is wanted, never the file's own memory; a parameter where `old` is one."""
    there = _place(keys[0], device)
    if there.type == "meta":
        return old
    wanted = dtype if isinstance(dtype, torch.dtype) else dtype(keys[0])
    if len(keys) > 1:
        kept = torch.empty(old.shape, dtype=wanted, device=there)
        for key, rows in zip(keys, kept.chunk(len(keys)), strict=True):
            value = source.read(key).detach()
            _check_values(rows.copy_(value) if value.is_floating_point() else value, key, source, there)
        return nn.Parameter(kept, requires_grad=False)
    value = source.read(keys[0])
    kept = value.detach().to(device=there, dtype=wanted if value.is_floating_point() else value.dtype, copy=True)
    if old.is_floating_point():
        _check_values(kept, keys[0], source, there)
    return nn.Parameter(kept, requires_grad=False) if isinstance(old, nn.Parameter) else kept


def _checked(source: TensorSource, keys: Iterable[str], there: torch.device) -> Iterator[torch.Tensor]:
    """Tensors of the source, one at a time."""
    for key in keys:
        tensor = source.read(key).detach().to(there)
        _check_values(tensor, key, source, there)
        yield tensor


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
