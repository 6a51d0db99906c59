"""What a model folder holds: finding the published files, and saying what is missing and how to fetch it."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import MissingFilesError, ModelError
from .source import SafetensorsSource, TorchSource

BASE_REPO = "Wan-AI/Wan2.2-S2V-14B"
LORA_REPO = "Quark-Vision/Live-Avatar"
LORA_FILE = "liveavatar.safetensors"
VAE_FILE = "Wan2.1_VAE.pth"
TEXT_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER_FOLDER = "google/umt5-xxl"
AUDIO_FOLDER = "wav2vec2-large-xlsr-53-english"
TRANSFORMER_FILE = "diffusion_pytorch_model.safetensors"


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """Where the parts of a model lie; all of them are there and none is cut off.

    Attributes:
        transformer: index of the shards, or one safetensors file.
        config: dimensions of the transformer; None where a single file came without one.
        lora: the distillation LoRA.
        vae: `Wan2.1_VAE.pth`, or a diffusers folder.
        text_encoder: `models_t5_umt5-xxl-enc-bf16.pth`, or a transformers folder.
        tokenizer, audio_encoder: transformers folders.
    """

    transformer: Path
    config: Path | None
    lora: Path
    vae: Path
    text_encoder: Path
    tokenizer: Path
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
    """

    name: str
    path: Path | None
    nbytes: int
    note: str
    usable: bool


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


def find_model(path: str | Path, **given: Path) -> ModelFiles:
    """The files of a model folder in the official layout, or of a single transformer file with the others beside it.

    Args:
        path: the folder, or one safetensors file in the official key names.
        given: places of single parts by their field of `ModelFiles`, where they are not beside the rest.

    Raises:
        MissingFilesError: no such path, or parts are missing; with the commands that fetch them.
        ModelError: a file is cut off or of another kind.
    """
    found = inspect_model(path, **given)
    wrong = [item for item in found.items if not item.usable]
    if wrong:
        kind = MissingFilesError if any(item.path is None for item in wrong) else ModelError
        listed = "; ".join(f"{item.name} ({item.note})" for item in wrong)
        raise kind(f"The model at {found.root} is not complete: {listed}.", _fetch_sentence(found.commands))
    places = {k.field: item.path for k, item in zip(_KINDS, found.items, strict=True)}
    return ModelFiles(**places)  # type: ignore[arg-type]  # every usable item but the config has a path


def inspect_model(path: str | Path, **given: Path) -> Inspection:
    """Look at a model folder or file without reading any weights; nothing is downloaded.

    Raises:
        MissingFilesError: there is no such path, or it is a file of another kind.
    """
    unknown = set(given) - {kind.field for kind in _KINDS}
    if unknown:
        raise TypeError(f"no such part of a model: {', '.join(sorted(unknown))}")
    root = Path(path).expanduser()
    single = root.is_file() and root.suffix == ".safetensors"
    folder = root.parent if single else root
    if not single and not root.is_dir():
        what = "is a file, not a model folder or a .safetensors file" if root.exists() else "does not exist"
        to = root.parent if root.exists() else root
        raise MissingFilesError(f"{root} {what}.", _fetch_sentence(_commands(_KINDS, to, whole=True)))
    if single:
        given = {"transformer": root, **given}
    items = tuple(_item(kind, folder, given.get(kind.field), single) for kind in _KINDS)
    wrong = [kind for kind, item in zip(_KINDS, items, strict=True) if not item.usable]
    return Inspection(root, items, _commands(wrong, folder, whole=all(i.path is None for i in items)))


def format_inspection(inspection: Inspection) -> str:
    """The inspection as lines for a terminal."""
    lines = [f"{inspection.root}"]
    for item in inspection.items:
        state = "ok" if item.usable else ("missing" if item.path is None else "damaged")
        size = _size(item.nbytes) if item.path else ""
        lines.append(f"  {state:<8} {item.name:<18} {size:>9}  {item.note}")
    if inspection.commands:
        lines += [
            "To fetch what is missing (nothing is downloaded by itself):",
            *(f"  {c}" for c in inspection.commands),
        ]
    else:
        lines.append("Complete.")
    return "\n".join(lines)


def _item(kind: _Kind, folder: Path, given: Path | None, single: bool) -> Item:
    candidates = [Path(given)] if given else kind.candidates(folder)
    path = next((c for c in candidates if c.exists()), None)
    if path is None:
        if kind.field == "config" and single:
            return Item(kind.name, None, 0, "none beside the file: dimensions of the 14B model, if they fit", True)
        return Item(kind.name, None, 0, f"no {given or kind.files.split(' ')[0]}", False)
    try:
        return Item(kind.name, path, _bytes_of(path), kind.examine(path), True)
    except ModelError as e:
        return Item(kind.name, path, _bytes_of(path), e.what.rstrip("."), False)


def _safetensors(path: Path) -> str:
    """Header of every shard, and each name of the index."""
    source = SafetensorsSource(path)
    keys = source.keys()
    for key in keys:
        source.shape(key)
    shards = len(source.shards())
    return f"{path.name}, {len(keys)} tensors" + (f" in {shards} shards" if shards > 1 else "")


def _pickle_or_folder(path: Path) -> str:
    """A `.pth` archive (its directory stands at the end, so a cut one shows), or a folder with config and weights.

    Opening an archive maps the tensors and reads none.
    """
    if path.is_dir():
        return _folder_with_weights(path)
    if path.suffix == ".safetensors":
        return _safetensors(path)
    with path.open("rb") as f:
        start = f.read(2)
    if not start or (start == b"PK" and not zipfile.is_zipfile(path)) or start[:1] not in (b"P", b"\x80"):
        raise ModelError(f"{path.name} is cut off or no PyTorch file")
    if start == b"PK":
        return f"{path.name}, {len(TorchSource(path).keys())} tensors"
    return path.name


def _folder_with_weights(path: Path) -> str:
    if not (path / "config.json").is_file():
        raise ModelError(f"{path.name} lacks config.json")
    if (path / "pytorch_model.bin").is_file() and not any(path.glob("*.safetensors")):
        return f"{path.name}, {_pickle_or_folder(path / 'pytorch_model.bin')}"
    return f"{path.name}, {_safetensors(path)}"


def _tokenizer(path: Path) -> str:
    if not (path / "tokenizer_config.json").is_file():
        raise ModelError(f"{path.name} lacks tokenizer_config.json")
    return str(Path(*path.parts[-2:]))


def _config(path: Path) -> str:
    from ..config import ModelConfig

    config = ModelConfig.from_file(path)
    return f"{path.name}, {config.num_layers} layers of width {config.dim}"


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
    _Kind("transformer", "transformer", _transformer_in, _safetensors, BASE_REPO, "diffusion_pytorch_model*"),
    _Kind("config", "configuration", _beside("config.json"), _config, BASE_REPO, "config.json"),
    _Kind("lora", "LoRA", _lora_near, _safetensors, LORA_REPO, LORA_FILE),
    _Kind("vae", "VAE", _beside(VAE_FILE, "vae"), _pickle_or_folder, BASE_REPO, VAE_FILE),
    _Kind("text_encoder", "text encoder", _beside(TEXT_FILE, "text_encoder"), _pickle_or_folder, BASE_REPO, TEXT_FILE),
    _Kind("tokenizer", "tokenizer", _beside(TOKENIZER_FOLDER, "tokenizer"), _tokenizer, BASE_REPO, "google/*"),
    _Kind(
        "audio_encoder", "audio encoder", _beside(AUDIO_FOLDER), _folder_with_weights, BASE_REPO, f"{AUDIO_FOLDER}/*"
    ),
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


def _bytes_of(path: Path) -> int:
    """Size on disk of a file, of a folder, or of an index with its shards."""
    if path.is_dir():
        return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    if path.name.endswith(".index.json"):
        stem = path.name.removesuffix(".safetensors.index.json")
        return sum(f.stat().st_size for f in path.parent.glob(f"{stem}*.safetensors"))
    return path.stat().st_size


def _size(nbytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes} B"
