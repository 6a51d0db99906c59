"""From a model's name to its modules.

A model is "mini" (the trained miniature that comes along), "untrained" (random weights), a folder in the official
layout, or one safetensors file of the transformer with the other parts beside it or given one by one. Modules are built
without memory and filled with exactly what they own.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from .config import PRESETS, DecoderConfig, LightConfig, ModelConfig
from .errors import LiveAvatarError, LoRAError, MissingFilesError, ModelError
from .planner.packed import PackedBytes, PackedSizes, packed_linears, packed_sizes
from .storage import WeightFormat
from .utils import check_path, without_memory
from .weights.block_types import PackedMatrices
from .weights.folder import ModelFiles, check_encoders, find_model
from .weights.formats import open_file, open_packed, open_transformer
from .weights.header import reason
from .weights.lora import ExtraLoRA, LoRAReport, LoRASource, lora_targets, open_extra_lora, open_lora, refuse_merged
from .weights.packed import PackedWeights
from .weights.places import FULL_VAE
from .weights.settings import (
    audio_settings,
    audio_weights,
    check_layers,
    config_of_single_file,
    decoder_weights,
    text_settings,
    text_weights,
    vae_weights,
)
from .weights.shapes import check_shapes, transformer_shapes
from .weights.source import GGUF, SafetensorsSource, TensorSource, opening_files_once
from .weights.tokenizer import JsonTokenizer, read_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .encoders.umt5 import UMT5EncoderModel
    from .encoders.wav2vec2 import Wav2Vec2Model
    from .model.transformer import CausalS2VTransformer, ModelSlice
    from .vae.autoencoder import AutoencoderKLWan
    from .vae.tiny import TinyDecoder
    from .weights.load import DType, TensorDevice

M = TypeVar("M", bound="nn.Module")

MINI_FOLDER = Path(__file__).parent / "mini" / "model"
"""The miniature, in the official layout like any other model."""

SPEAKERS_LORA = "liveavatar_speakers.safetensors"
"""In a model's folder: a LoRA that its network needs where several speak in one picture."""

_MINI_DECODER = FULL_VAE
"""What decodes where nothing is said."""

Device: TypeAlias = "torch.device | str"


_PIECE = 1 << 16
_FETCH_FOLDER = "Fetch the published folder again."


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

    def transformer(
        self, model_slice: ModelSlice, device: TensorDevice, dtype: DType, weights: WeightFormat = "plain"
    ) -> CausalS2VTransformer:
        """A part of the network, with the distillation LoRA merged; reads only what the part owns.

        Each tensor is read to the device that `device` is, or says by its name. Large matrices are kept in the format
        `weights`, everything else in `dtype`.
        """

    def vae(self, device: Device, dtype: torch.dtype) -> AutoencoderKLWan: ...

    def text_encoder(self, device: Device, dtype: torch.dtype) -> tuple[UMT5EncoderModel, Any]:
        """The encoder, and a tokenizer that is called as those of transformers are."""

    def tokenizer(self) -> Any:
        """The tokenizer of the text encoder, called as those of transformers are; without its weights."""

    def audio_encoder(self, device: Device, dtype: torch.dtype) -> Wav2Vec2Model: ...

    def describe(self) -> str:
        """Where the weights come from, one line per part."""


def open_components(
    model: str | Path, *, extra_loras: Sequence[ExtraLoRA] = (), **given: str | Path | None
) -> Components:
    """The components of "mini", of "untrained", of a model folder, or of a single transformer file.

    Args:
        model: its name or place.
        extra_loras: merged into the network beside its distillation LoRA.
        given: parts that are not beside the rest, as of `find_model`: lora ("none" for no LoRA), vae (also "tiny" and
            "full", which the miniature has both), text_encoder, tokenizer, audio_encoder.

    Raises:
        MissingFilesError: no such model, or parts of it are missing; with the commands that fetch them.
        ModelError: a file is cut off or of another kind.
    """
    given = {part: place for part, place in given.items() if place is not None}
    for part, place in {"model": model, **given}.items():
        if place is not None:
            check_path(place, part.replace("_", " "), MissingFilesError)
    if str(model) == "mini" and set(given) == {"vae"}:
        return _open_mini(given["vae"], extra_loras)
    if str(model) in ("mini", "untrained") and given:
        raise _all_there(str(model), given)
    if str(model) == "untrained":
        if extra_loras:
            raise LoRAError("The untrained model takes no LoRA.", "Use mini, or a model in files.")
        from .mini.untrained import UntrainedComponents

        return UntrainedComponents()
    if str(model) == "mini":
        return _open_mini(_MINI_DECODER, extra_loras)
    if str(model) in PRESETS and not Path(model).exists():
        raise MissingFilesError(
            f"{model!r} is the name of a model whose weights are not part of this project.",
            "Give the folder you downloaded it to, or 'mini'; `liveavatar inspect DIR` shows what to download.",
        )
    if not Path(model).expanduser().exists() and (near := difflib.get_close_matches(str(model), PRESETS, 1)):
        raise MissingFilesError(f"There is no model at {model}.", f"Did you mean {near[0]}?")
    return _open_folder(model, str(model), given, extra_loras)


def _open_mini(vae: str | Path | None, extra_loras: Sequence[ExtraLoRA]) -> FolderComponents:
    """The miniature with one of its decoders, or with a tiny one in a file.

    Raises:
        ModelError: the file is no tiny VAE.
    """
    found = _open_folder(MINI_FOLDER, "mini", {"vae": vae}, extra_loras)
    if found.files.vae != MINI_FOLDER / "vae":
        raise _all_there("mini", ["vae"])
    return found


def _all_there(model: str, given: Iterable[str]) -> ModelError:
    return ModelError(
        f"The model {model!r} comes with all of its parts; another {' or '.join(sorted(given))} does not fit.",
        "Give the model's folder or file, or leave that out.",
    )


def _open_folder(
    model: str | Path, name: str, given: Mapping[str, str | Path | None], extra_loras: Sequence[ExtraLoRA]
) -> FolderComponents:
    with opening_files_once():
        return FolderComponents(find_model(model, extra_loras=extra_loras, **given), name=name)


def for_speakers(components: Components, count: int) -> Components:
    """A model as so many speakers in one picture need it: with the LoRA for several, where its folder has one."""
    return components.for_speakers(count) if isinstance(components, FolderComponents) else components


def notes_of(components: Components) -> tuple[str, ...]:
    """What is worth knowing of a model's files before anything is made of them, one sentence each."""
    return components.notes if isinstance(components, FolderComponents) else ()


def loras_of(components: Components) -> tuple[LoRAReport, ...]:
    """What each LoRA that is merged into a model changes."""
    return components.loras if isinstance(components, FolderComponents) else ()


def files_of(components: Components) -> tuple[Path, ...]:
    """The files that a model is read from, which nothing may replace; of one that comes along, its files, too."""
    files: ModelFiles | None = getattr(components, "files", None)
    found: list[Path] = []
    for path in (*files.paths().values(), *(lora.path for lora in files.extra_loras)) if files else ():
        if path is not None and path.is_dir():
            found += (inside for inside in path.iterdir() if inside.is_file())
        elif path is not None:
            sharded = path.suffix == ".json" or "-of-" in path.name
            shards = path.parent.glob("*.safetensors") if sharded else ()
            found += (path, *shards)
    return tuple(dict.fromkeys(found))


def network_fingerprint(components: Components) -> str:
    """What tells the network of a model from another one: of its files, LoRAs included, the lengths and some pieces."""
    found = hashlib.blake2b(digest_size=16)
    files: ModelFiles | None = getattr(components, "files", None)
    if files is None:
        found.update(f"{components.name} {components.config}".encode())
        return found.hexdigest()
    whole = files.transformer
    shards = SafetensorsSource(whole).shards() if whole.suffix == ".json" or "-of-" in whole.name else [whole]
    several = [path] if (path := whole.parent / SPEAKERS_LORA).is_file() else []
    extra = dict.fromkeys([*(lora.path for lora in files.extra_loras), *several])
    for path in (*shards, *filter(None, (files.config, files.lora)), *extra):
        size = path.stat().st_size
        found.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            for place in (0, size // 2, max(0, size - _PIECE)):
                file.seek(place)
                found.update(file.read(_PIECE))
    found.update(str([lora.strength for lora in files.extra_loras]).encode())
    return found.hexdigest()


def tiny_config(components: Components) -> DecoderConfig | None:
    """Dimensions of the decoder that works in place of the VAE's own; None where there is none."""
    return components.tiny_config if isinstance(components, FolderComponents) else None


def packed_of(components: Components) -> PackedSizes | None:
    """Bytes of the matrices of a network and a text encoder that may stay packed as their files have them; None where
    none may."""
    if not isinstance(components, FolderComponents):
        return None
    text_encoder = components.packed_text_encoder
    if components.packed is not None:
        return packed_sizes(components.config, components.packed, text_encoder)
    return PackedSizes(text_encoder=text_encoder) if text_encoder.stored else None


def load_decoder(components: Components, device: Device, dtype: torch.dtype) -> TinyDecoder | AutoencoderKLWan | None:
    """The decoder that works in place of the VAE's own; None where there is none."""
    return components.tiny_vae(device, dtype) if isinstance(components, FolderComponents) else None


def load_vae(path: Path, device: Device, dtype: torch.dtype) -> AutoencoderKLWan:
    """The VAE in a file or folder.

    Raises:
        MissingFilesError, ModelError: it is not there, damaged, or another network.
    """
    from .vae.wan import build_vae, optimize_layout

    source, settings = vae_weights(path)
    return optimize_layout(_filled(lambda: build_vae(**settings), source, device, dtype))


def load_tiny(path: Path, device: Device, dtype: torch.dtype) -> TinyDecoder | AutoencoderKLWan:
    """The tiny decoder, or the pruned VAE, in a file.

    Raises:
        MissingFilesError, ModelError: it is not there, damaged, or another network.
    """
    from .vae.tiny import TinyDecoder, fold_upsampling

    source, config = decoder_weights(path)
    if isinstance(config, LightConfig):
        return load_vae(path, device, dtype)
    return fold_upsampling(_filled(lambda: TinyDecoder(config), source, device, dtype))


class FolderComponents:
    """A model whose weights lie in files.

    Raises:
        MissingFilesError, ModelError: the transformer lacks tensors, or has them in other shapes than its configuration
            says; the configuration is of another network; a single file came without one and is no 14B model; the VAE
            or an encoder is another one; a file is quantised in a way that cannot be read.
        LoRAError: a LoRA does not fit the network, or is named twice.

    Attributes:
        loras: what each LoRA changes, the distillation LoRA first.
    """

    trained = True

    def __init__(self, files: ModelFiles, name: str = ""):
        self.files = files
        self.name = name or str(files.transformer)
        with opening_files_once():
            base = open_transformer(files.transformer)
            self.config = ModelConfig.from_file(files.config) if files.config else config_of_single_file(base)
            check_layers(self.config, base)
            check_shapes(transformer_shapes(self.config), base)
            check_encoders(files, self.config)
            if files.lora:
                refuse_merged(base)
            _refuse_twice(files)
            loras = [open_lora(base, files.lora, lora_targets(self.config))] if files.lora else []
            loras += [open_extra_lora(base, extra) for extra in files.extra_loras]
            self._weights: TensorSource = LoRASource(base, loras) if loras else base
            self._packed = open_packed(files.transformer, base, self._weights, loras)
            self.loras: tuple[LoRAReport, ...] = tuple(lora.report for lora in loras)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing of the files before anything is made of them."""
        lora, folder = self.files.lora, self.files.transformer.parent
        extra = tuple(str(report) for report in self.loras[1 if lora else 0 :])
        if lora is None:
            return (_WITHOUT_LORA, *extra)
        beside = folder.resolve() in lora.resolve().parents
        named = f"the LoRA is {lora}; --lora names another, or none where the network needs none"
        return extra if beside else (named, *extra)

    def for_speakers(self, count: int) -> FolderComponents:
        """The same model for so many speakers in one picture: with `SPEAKERS_LORA` for several, where it is there."""
        return self._for_several if count > 1 else self

    @functools.cached_property
    def _for_several(self) -> FolderComponents:
        lora = ExtraLoRA(self.files.transformer.parent / SPEAKERS_LORA)
        if not lora.path.is_file() or lora.path in (extra.path for extra in self.files.extra_loras):
            return self
        return self.with_files(dataclasses.replace(self.files, extra_loras=(*self.files.extra_loras, lora)))

    def with_files(self, files: ModelFiles) -> FolderComponents:
        """The same model with other files."""
        return FolderComponents(files, self.name)

    def transformer(
        self, model_slice: ModelSlice, device: TensorDevice, dtype: DType, weights: WeightFormat = "plain"
    ) -> CausalS2VTransformer:
        from .model.transformer import empty_transformer
        from .weights.load import fill

        net = empty_transformer(self.config, model_slice, weights, self.packed)
        fill(net, self._packed or self._weights, dtype=dtype, device=device)
        return net

    @property
    def packed(self) -> PackedMatrices | None:
        """How the file has the network's matrices, where they may stay so; None where they may not."""
        return self._packed.matrices if self._packed else None

    def vae(self, device: Device, dtype: torch.dtype) -> AutoencoderKLWan:
        return load_vae(self.files.vae, device, dtype)

    @property
    def tiny_config(self) -> DecoderConfig | None:
        """Dimensions of the decoder in place of the VAE's own, where one is to work."""
        return None if self.files.tiny_vae is None else decoder_weights(self.files.tiny_vae)[1]

    def tiny_vae(self, device: Device, dtype: torch.dtype) -> TinyDecoder | AutoencoderKLWan | None:
        """The decoder in place of the VAE's own, where one is to work."""
        return None if self.files.tiny_vae is None else load_tiny(self.files.tiny_vae, device, dtype)

    def text_encoder(self, device: Device, dtype: torch.dtype) -> tuple[UMT5EncoderModel, Any]:
        from .encoders.umt5 import UMT5Config, UMT5EncoderModel

        settings, source = text_settings(self.files.text_encoder), self._text_weights

        def build() -> UMT5EncoderModel:
            model = UMT5EncoderModel(UMT5Config.of(settings))
            if isinstance(source, PackedWeights):
                from .model.packed import pack_linears

                pack_linears(model, source.matrices)
            return model

        return _filled(build, source, device, dtype), self.tokenizer()

    @property
    def _text_weights(self) -> TensorSource:
        """Of the text encoder; one whose file is packed stays so, which gives the same features."""
        path = self.files.text_encoder
        if path.is_dir() or path.suffix not in _PACKED_FILES:
            return text_weights(path)
        with opening_files_once():
            source = text_weights(path)
            return open_packed(path, open_file(path), source) or source

    @functools.cached_property
    def packed_text_encoder(self) -> PackedBytes:
        """What the text encoder's matrices take that stay packed; a file that can have none is not opened for it."""
        if self.files.text_encoder.suffix not in _PACKED_FILES:
            return PackedBytes()
        source = self._text_weights
        return packed_linears(source, source.matrices) if isinstance(source, PackedWeights) else PackedBytes()

    def tokenizer(self) -> Any:
        if self.files.tokenizer is None:
            return read_tokenizer(self.files.text_encoder, text_settings(self.files.text_encoder)["vocab_size"])
        folder = self.files.tokenizer
        plain = (folder / "tokenizer.json").is_file()
        tokenizer = JsonTokenizer(folder) if plain else _other_tokenizer(folder)
        _check_tokenizer(tokenizer, folder)
        return tokenizer

    def audio_encoder(self, device: Device, dtype: torch.dtype) -> Wav2Vec2Model:
        from .encoders.wav2vec2 import Wav2Vec2Config, Wav2Vec2Model

        path, settings = self.files.audio_encoder, audio_settings(self.files.audio_encoder)
        build = lambda: Wav2Vec2Model(Wav2Vec2Config.of(settings))  # noqa: E731
        return _filled(build, audio_weights(path), device, dtype)

    def describe(self) -> str:
        f = self.files
        lines = [f"transformer: {self._weights.describe()}", f"VAE: {f.vae}"]
        lines += [f"decoder: {f.tiny_vae}"] if f.tiny_vae else []
        lines.append(f"text encoder: {f.text_encoder}")
        tokenizer = f.tokenizer or "in the text encoder's file"
        return "\n".join([*lines, f"tokenizer: {tokenizer}", f"audio encoder: {f.audio_encoder}"])


_PACKED_FILES = (".safetensors", GGUF)
"""What the names of files end in whose matrices may be packed."""
_WITHOUT_LORA = (
    "no Live Avatar LoRA is merged: the network is used as its file has it, and unless the LoRA is in that file "
    "already, 4 steps are not what it was made for"
)


def _refuse_twice(files: ModelFiles) -> None:
    """Make sure that a further LoRA is not the distillation LoRA over again.

    Raises:
        LoRAError: it is; merged twice it would count twice.
    """
    for extra in files.extra_loras:
        if files.lora and extra.path.resolve() == files.lora.resolve():
            raise LoRAError(
                f"{extra.path} is merged as the Live Avatar LoRA already.",
                "Leave it out of the further LoRAs, or use none as the LoRA: --lora none.",
            )


def _filled(build: Callable[[], M], source: TensorSource, device: TensorDevice, dtype: DType) -> M:
    """A module built without memory, then filled.

    Raises:
        ModelError: settings of which no such network can be built, or what `fill` raises.
    """
    from .weights.load import fill

    try:
        with without_memory():
            module = build()
    except LiveAvatarError:
        raise
    except Exception as e:  # what settings of strangers make the networks' classes raise has no common base
        raise ModelError(
            f"No network can be built by the settings beside {source.describe()} ({reason(e)}).",
            "Restore the published config.json.",
        ) from e
    fill(module, source, dtype=dtype, device=device)
    return module


def _check_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Make sure that a tokenizer pads and masks, as encoding a prompt needs it.

    Raises:
        ModelError: it does not.
    """
    try:
        made = tokenizer(["a"], padding="max_length", truncation=True, max_length=8, return_tensors="pt")
        shapes = {tuple(made[name].shape) for name in ("input_ids", "attention_mask")}
        if shapes != {(1, 8)}:
            raise ValueError(f"it makes {shapes}")
    except Exception as e:  # odd settings make it raise errors of many kinds
        raise ModelError(f"The tokenizer in {folder} is damaged ({reason(e)}).", _FETCH_FOLDER) from e


def _other_tokenizer(folder: Path) -> Any:
    """A tokenizer of another kind, as transformers reads it: never from the network, and code beside it is not run."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as e:  # damaged files make it raise errors of many kinds
        raise ModelError(f"{folder} cannot be read by transformers ({reason(e)}).", _FETCH_FOLDER) from e
