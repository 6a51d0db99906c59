"""What a model folder holds: finding the published files, and saying what is missing and how to fetch it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from ..config import ModelConfig
from ..errors import MissingFilesError, ModelError
from ..utils import format_bytes
from .formats import AnotherKind, DequantisedSource, Kind, open_file, open_transformer, refuse_another_kind
from .load import audio_settings, hugging_face_weights, text_settings, vae_weights
from .source import SafetensorsSource, TensorSource, TorchSource, opening_files_once
from .tokenizer import carries_tokenizer

BASE_REPO = "Wan-AI/Wan2.2-S2V-14B"
LORA_REPO = "Quark-Vision/Live-Avatar"
LORA_FILE = "liveavatar.safetensors"
VAE_FILE = "Wan2.1_VAE.pth"
TEXT_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER_FOLDER = "google/umt5-xxl"
AUDIO_FOLDER = "wav2vec2-large-xlsr-53-english"
TRANSFORMER_FILE = "diffusion_pytorch_model.safetensors"


_PUBLISHED = "Use the one that is published with the model."


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """Where the parts of a model lie; all of them are there and none is cut off.

    Attributes:
        transformer: index of the shards, or one safetensors file.
        config: dimensions of the transformer; None where a single file came without one.
        lora: the distillation LoRA.
        vae: `Wan2.1_VAE.pth`, the same as `.safetensors`, or a diffusers folder.
        text_encoder: `models_t5_umt5-xxl-enc-bf16.pth`, one safetensors file, or a transformers folder.
        tokenizer: transformers folder; None where the text encoder's file carries it.
        audio_encoder: transformers folder, or one safetensors file.
    """

    transformer: Path
    config: Path | None
    lora: Path
    vae: Path
    text_encoder: Path
    tokenizer: Path | None
    audio_encoder: Path


@dataclasses.dataclass(frozen=True)
class Item:
    """One part of a model.

    Attributes:
        name: for people.
        path: where it is; None if it is not.
        nbytes: what its files take on disk.
        note: what it is, or what is wrong with it.
        usable: there and whole.
        nearest: what to use in its place, where something else was given.
    """

    name: str
    path: Path | None
    nbytes: int
    note: str
    usable: bool
    nearest: str = ""


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What is at a path, part by part.

    Attributes:
        root: the folder, or the single file.
        items: the parts, in the order of `ModelFiles`.
        commands: shell commands that fetch what is missing or damaged.
    """

    root: Path
    items: tuple[Item, ...]
    commands: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Everything is there and whole."""
        return all(item.usable for item in self.items)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How one part is recognised.

    Attributes:
        field: its name in `ModelFiles`.
        name: for people.
        candidates: the paths to look at, best first.
        examine: a path -> a note; raises ModelError with what is wrong.
        repo, files: what to download.
    """

    field: str
    name: str
    candidates: Callable[[Path], Sequence[Path]]
    examine: Callable[[Path], str]
    repo: str
    files: str


def find_model(path: str | Path, **given: str | Path | None) -> ModelFiles:
    """The files of a model folder in the official layout, or of a single transformer file with the others beside it.

    Every part may also be one file as ComfyUI's own loaders take it (see `core_files`).

    Args:
        path: the folder, or one safetensors file.
        given: places of single parts by their field of `ModelFiles`, where they are not beside the rest; None is not
            given. Without a `tokenizer` the one that the text encoder's file carries is used, or the folder beside.

    Raises:
        MissingFilesError: no such path, or parts are missing; with the commands that fetch them.
        ModelError: a file is cut off or of another kind.
    """
    found = inspect_model(path, **given)
    wrong = [item for item in found.items if not item.usable]
    if wrong:
        kind = MissingFilesError if any(item.path is None for item in wrong) else ModelError
        listed = "; ".join(f"{item.name} ({item.note})" for item in wrong)
        nearest = " ".join([*(item.nearest for item in wrong if item.nearest), _fetch_sentence(found.commands)])
        raise kind(f"The model at {found.root} is not complete: {listed}.", nearest)
    places = {k.field: item.path for k, item in zip(_KINDS, found.items, strict=True)}
    # Every usable item has a path, but for a configuration that is not needed and a tokenizer that is transferred.
    return ModelFiles(**places)  # type: ignore[arg-type]


def inspect_model(path: str | Path, **given: str | Path | None) -> Inspection:
    """What a model folder or file holds: its parts are opened as they are for loading, and no weights are read; nothing
    is downloaded.

    Raises:
        MissingFilesError: there is no such path, or it is a file of another kind.
    """
    if unknown := set(given) - {kind.field for kind in _KINDS}:
        raise TypeError(f"no such part of a model: {', '.join(sorted(unknown))}")
    given = {field: place for field, place in given.items() if place is not None}
    root = Path(path).expanduser()
    single = root.is_file() and root.suffix == ".safetensors"
    folder = root.parent if single else root
    if not single and not root.is_dir():
        what = "is a file, not a model folder or a .safetensors file" if root.exists() else "does not exist"
        to = root.parent if root.exists() else root
        raise MissingFilesError(f"{root} {what}.", _fetch_sentence(_commands(_KINDS, to, whole=True)))
    if single:
        given = {"transformer": root, **given}
    with opening_files_once():
        items = {kind.field: _item(kind, folder, given.get(kind.field), single) for kind in _KINDS}
        if "tokenizer" not in given:
            items["tokenizer"] = _tokenizer(items["text_encoder"], items["tokenizer"])
    wrong = [kind for kind in _KINDS if not items[kind.field].usable]
    whole = all(item.path is None for item in items.values())
    return Inspection(root, tuple(items.values()), _commands(wrong, folder, whole))


def check_encoders(files: ModelFiles, config: ModelConfig) -> None:
    """Make sure that VAE and encoders are what this network was trained with; a look at names and sizes.

    Raises:
        MissingFilesError, ModelError: which one is not, and why.
    """
    vae_weights(files.vae)
    if files.tokenizer is None and not carries_tokenizer(files.text_encoder):
        raise MissingFilesError(f"{files.text_encoder} carries no tokenizer.", "Give the folder google/umt5-xxl.")
    text = text_settings(files.text_encoder)
    audio = audio_settings(files.audio_encoder)
    width, layers = audio.get("hidden_size"), (audio.get("num_hidden_layers") or 0) + 1
    for part, path, found, needed in (
        ("text encoder", files.text_encoder, text.get("d_model"), config.text_dim),
        ("audio encoder", files.audio_encoder, width, config.audio_dim),
    ):
        if found != needed:
            raise ModelError(f"The {part} {path} makes features of {found} numbers, not of {needed}.", _PUBLISHED)
    if layers != config.audio_layers:
        raise ModelError(
            f"The audio encoder {files.audio_encoder} has {layers} hidden states, not {config.audio_layers}.",
            _PUBLISHED,
        )


def format_inspection(inspection: Inspection) -> str:
    """The inspection as lines for a terminal."""
    lines = [f"{inspection.root}"]
    for item in inspection.items:
        wrong = "another" if item.nearest else "damaged"
        state = "ok" if item.usable else ("missing" if item.path is None else wrong)
        size = format_bytes(item.nbytes, unit="largest") if item.path else ""
        lines.append(f"  {state:<8} {item.name:<18} {size:>9}  {item.note}")
    if inspection.commands:
        lines += [
            "To fetch what is missing (nothing is downloaded by itself):",
            *(f"  {c}" for c in inspection.commands),
        ]
    else:
        lines.append("Complete.")
    return "\n".join(lines)


def _item(kind: _Kind, folder: Path, given: str | Path | None, single: bool) -> Item:
    candidates = [Path(given).expanduser()] if given else kind.candidates(folder)
    path = next((c for c in candidates if c.exists()), None)
    if path is None:
        if kind.field == "config" and single:
            return Item(kind.name, None, 0, "none beside the file: dimensions of the 14B model, if they fit", True)
        return Item(kind.name, None, 0, f"no {given or kind.files.split(' ')[0]}", False)
    try:
        return Item(kind.name, path, _bytes_of(path), kind.examine(path), True)
    except AnotherKind as e:
        return Item(kind.name, path, _bytes_of(path), e.what.rstrip("."), False, e.nearest)
    except ModelError as e:
        return Item(kind.name, path, _bytes_of(path), e.what.rstrip("."), False)


def _tokenizer(text: Item, beside: Item) -> Item:
    """The tokenizer in the text encoder's file, or the one beside the rest."""
    if text.path is None or not text.usable:
        return beside
    try:
        if carries_tokenizer(text.path):
            return Item(beside.name, None, 0, f"in {text.path.name}", True)
    except ModelError as e:
        return Item(beside.name, text.path, 0, e.what.rstrip("."), False)
    if beside.path is None and text.path.suffix == ".safetensors":
        return dataclasses.replace(beside, note=f"{beside.note}, and {text.path.name} carries none")
    return beside


def _transformer(path: Path) -> str:
    return _note(path, open_transformer(path).scaled)


def _lora(path: Path) -> str:
    refuse_another_kind(SafetensorsSource(path), Kind.LORA)
    return _note(path)


def _vae(path: Path) -> str:
    vae_weights(path)
    return _note(path)


def _text_encoder(path: Path) -> str:
    text_settings(path)
    return _note(path)


def _audio_encoder(path: Path) -> str:
    audio_settings(path)
    return _note(path)


def _tokenizer_folder(path: Path) -> str:
    if not (path / "tokenizer_config.json").is_file():
        raise ModelError(f"{path.name} lacks tokenizer_config.json")
    return str(Path(*path.parts[-2:]))


def _config(path: Path) -> str:
    found = ModelConfig.from_file(path)
    return f"{path.name}, {found.num_layers} layers of width {found.dim}"


def _note(path: Path, scaled: int | None = None) -> str:
    """What a file of tensors, an index with its shards, or a folder stores; every tensor's entry is there.

    Args:
        path: opened by the loader before.
        scaled: matrices in fp8; None: counted here.
    """
    source: TensorSource
    if path.is_dir():
        source = hugging_face_weights(path)
    else:
        source = SafetensorsSource(path) if path.suffix in (".safetensors", ".json") else TorchSource(path)
    keys = source.keys()
    for key in keys:
        source.shape(key)
    shards = len(source.shards()) if isinstance(source, SafetensorsSource) else 1
    if scaled is None:
        opened = open_file(path) if path.is_file() else source
        scaled = opened.scaled if isinstance(opened, DequantisedSource) else 0
    note = f"{path.name}, {len(keys)} tensors" + (f" in {shards} shards" if shards > 1 else "")
    return note + (f", {scaled} matrices in fp8" if scaled else "")


def _bytes_of(path: Path) -> int:
    """Size on disk of a file, of a folder, or of an index with its shards."""
    if path.is_dir():
        return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    if path.name.endswith(".index.json"):
        stem = path.name.removesuffix(".safetensors.index.json")
        return sum(f.stat().st_size for f in path.parent.glob(f"{stem}*.safetensors"))
    return path.stat().st_size


def _beside(*names: str) -> Callable[[Path], Sequence[Path]]:
    return lambda folder: [folder / name for name in names]


def _transformer_in(folder: Path) -> Sequence[Path]:
    return [*sorted(folder.glob("diffusion_pytorch_model*.safetensors.index.json")), folder / TRANSFORMER_FILE]


def _lora_near(folder: Path) -> Sequence[Path]:
    """In the folder, below it, beside it, or in a folder beside it (`Live-Avatar/` next to the base model)."""
    up = folder.resolve().parent
    below = sorted(folder.glob(f"*/{LORA_FILE}"))
    return [folder / LORA_FILE, *below, up / LORA_FILE, *sorted(up.glob(f"*/{LORA_FILE}"))]


_KINDS = (
    _Kind("transformer", "transformer", _transformer_in, _transformer, BASE_REPO, "diffusion_pytorch_model*"),
    _Kind("config", "configuration", _beside("config.json"), _config, BASE_REPO, "config.json"),
    _Kind("lora", "LoRA", _lora_near, _lora, LORA_REPO, LORA_FILE),
    _Kind("vae", "VAE", _beside(VAE_FILE, "vae"), _vae, BASE_REPO, VAE_FILE),
    _Kind("text_encoder", "text encoder", _beside(TEXT_FILE, "text_encoder"), _text_encoder, BASE_REPO, TEXT_FILE),
    _Kind("tokenizer", "tokenizer", _beside(TOKENIZER_FOLDER, "tokenizer"), _tokenizer_folder, BASE_REPO, "google/*"),
    _Kind("audio_encoder", "audio encoder", _beside(AUDIO_FOLDER), _audio_encoder, BASE_REPO, f"{AUDIO_FOLDER}/*"),
)


def _commands(wrong: Sequence[_Kind], folder: Path, whole: bool) -> tuple[str, ...]:
    """One command per part, or the whole repository where nothing is there yet."""
    to = f"'{folder}'" if " " in str(folder) else str(folder)
    commands = [f"hf download {BASE_REPO} --local-dir {to}"] if whole else []
    for kind in wrong:
        if kind.repo == LORA_REPO:
            commands.append(f"hf download {LORA_REPO} {LORA_FILE} --local-dir {to}")
        elif not whole:
            commands.append(f"hf download {BASE_REPO} --include '{kind.files}' --local-dir {to}")
    return tuple(commands)


def _fetch_sentence(commands: Sequence[str]) -> str:
    return "To fetch it: " + " && ".join(commands)
