"""What a model folder holds: finding the published files, and saying what is missing and how to fetch it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..config import ModelConfig
from ..errors import LiveAvatarError, MissingFilesError, ModelError
from ..utils import check_path, format_bytes
from .formats import open_file, open_transformer
from .gguf import GGUFSource
from .header import FETCH_AGAIN, AnotherKind
from .kinds import Kind, kind_of
from .lora import NO_LORA, ExtraLoRA, check_lora
from .places import (
    BASE_REPO,
    FULL_VAE,
    LORA_FILE,
    LORA_REPO,
    PLACES,
    TINY_FILE,
    TINY_REPO,
    TINY_VAE,
    download,
    downloads_to_categories,
    files_in,
    models_folder,
    own_models_folder,
    places_of,
)
from .quantised import DequantisedSource
from .settings import (
    audio_settings,
    decoder_weights,
    hugging_face_weights,
    is_light,
    text_settings,
    vae_weights,
)
from .source import GGUF, PICKLED, SafetensorsSource, TensorSource, open_weights, opening_files_once, shards_of
from .tokenizer import carries_tokenizer

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
        lora: the distillation LoRA; None where the network is used as its file has it.
        vae: `Wan2.1_VAE.pth`, the same as `.safetensors`, or a diffusers folder.
        text_encoder: `models_t5_umt5-xxl-enc-bf16.pth`, one safetensors file, or a transformers folder.
        tokenizer: transformers folder; None where the text encoder's file carries it.
        audio_encoder: transformers folder, or one safetensors file.
        tiny_vae: of another decoder that works in place of the VAE's own: tiny or pruned; None where there is none.
        extra_loras: further LoRAs that are merged, with their strengths.
    """

    transformer: Path
    config: Path | None
    lora: Path | None
    vae: Path
    text_encoder: Path
    tokenizer: Path | None
    audio_encoder: Path
    tiny_vae: Path | None = None
    extra_loras: tuple[ExtraLoRA, ...] = ()

    def paths(self) -> dict[str, Path | None]:
        """Where the parts lie, by their fields; without further LoRAs."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra_loras"}


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
        items: the parts, in the order of `ModelFiles` (a tiny VAE only where one was asked for), and further LoRAs.
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
        kind: what its files are, where they are known by their tensors.
    """

    field: str
    name: str
    candidates: Callable[[Path], Sequence[Path]]
    examine: Callable[[Path], str]
    repo: str
    files: str
    kind: Kind | None = None


def find_model(path: str | Path, *, extra_loras: Sequence[ExtraLoRA] = (), **given: str | Path | None) -> ModelFiles:
    """The files of a model folder in the official layout, or of a single transformer file with the others beside it.

    Every part may also be one file as ComfyUI's own loaders take it (see `formats`), in the folder it has there.

    Args:
        path: the folder, or one safetensors or GGUF file; or the name of a file in ComfyUI's folders.
        extra_loras: further LoRAs; their paths may be names in ComfyUI's folders.
        given: places of single parts by their field of `ModelFiles`, or their names in ComfyUI's folders, where they
            are not beside the rest; None is not given. "none" for the LoRA stands for a network that needs none. For
            the VAE, the file of a tiny one, or "tiny" for the one beside the rest, decodes instead of the full one;
            "full" says that none does.
            Without a `tokenizer` the one that the text encoder's file carries is used, or the folder beside.

    Raises:
        MissingFilesError: no such path, or parts are missing; with the commands that fetch them.
        ModelError: a file is cut off or of another kind.
    """
    found = inspect_model(path, extra_loras=extra_loras, **given)
    wrong = [item for item in found.items if not item.usable]
    if wrong:
        kind = MissingFilesError if any(item.path is None for item in wrong) else ModelError
        listed = "; ".join(f"{item.name} ({item.note})" for item in wrong)
        nearest = " ".join([*(item.nearest for item in wrong if item.nearest), _fetch_sentence(found.commands)]).strip()
        raise kind(f"The model at {found.root} is not complete: {listed}.", nearest)
    parts = found.items[: len(found.items) - len(extra_loras)]
    places = {k.field: item.path for k, item in zip((*_KINDS, _TINY), parts, strict=False)}
    extra = tuple(
        dataclasses.replace(lora, path=item.path)
        for lora, item in zip(extra_loras, found.items[len(parts) :], strict=True)
        if item.path is not None
    )
    # Every usable item has a path, but for a LoRA or configuration not needed, and a tokenizer inside a file.
    return ModelFiles(**places, extra_loras=extra)  # type: ignore[arg-type]


def inspect_model(path: str | Path, *, extra_loras: Sequence[ExtraLoRA] = (), **given: str | Path | None) -> Inspection:
    """What a model folder or file holds: its parts are opened as they are for loading, and no weights are read; nothing
    is downloaded.

    Arguments are those of `find_model`; further LoRAs are the last items.

    Raises:
        MissingFilesError: there is no such path, or it is a file of another kind.
    """
    if unknown := set(given) - {kind.field for kind in _KINDS}:
        raise TypeError(f"no such part of a model: {', '.join(sorted(unknown))}")
    given = {field: place for field, place in given.items() if place is not None}
    for part, place in {"model": path, **given}.items():
        if place is not None:
            check_path(place, part.replace("_", " "), MissingFilesError)
    root = _root(path)
    single = root.is_file()
    if single:
        given = {"transformer": root, **given}
    look = _Look(root, root.parent if single else root, single, models_folder(root))
    with opening_files_once():
        given = _decoder_apart(given, look)
        kinds = (*_KINDS, _TINY) if "tiny_vae" in given else _KINDS
        items = {kind.field: _item(kind, look, given.get(kind.field)) for kind in kinds}
        if "tokenizer" not in given:
            items["tokenizer"] = _tokenizer(items["text_encoder"], items["tokenizer"])
        extra = tuple(_extra_lora(look, lora) for lora in extra_loras)
    wrong = [kind for kind in kinds if not items[kind.field].usable]
    whole = all(item.path is None for item in items.values())
    return Inspection(root, (*items.values(), *extra), look.commands(wrong, whole))


@dataclasses.dataclass(frozen=True)
class _Look:
    """Where the parts of one model are looked for.

    Attributes:
        root: the model's folder or single file.
        folder: where the other parts may lie beside it.
        single: it is a file.
        models: ComfyUI's folder of models that it lies in, if it does.
    """

    root: Path
    folder: Path
    single: bool
    models: Path | None

    def candidates(self, kind: _Kind, given: str | Path | None) -> list[Path]:
        """Paths where a part may be, best first."""
        if given and given != TINY_VAE:
            return list(places_of(kind.field, given, (self.models, own_models_folder())))
        elsewhere = files_in(self.models, kind.field) if kind.field in PLACES and kind.field != "transformer" else []
        return [*kind.candidates(self.folder), *elsewhere, *(_neighbours(self.folder) if kind.field == "lora" else [])]

    def commands(self, wrong: Sequence[_Kind], whole: bool) -> tuple[str, ...]:
        """What fetches parts: each to the folder it has in ComfyUI, beside the rest elsewhere, or all at once."""
        fields = [kind.field for kind in wrong]
        if self.models and self.single:
            config = [download(BASE_REPO, "config.json", self.folder)] if "config" in fields and not whole else []
            return (*downloads_to_categories(fields, self.models), *config)
        commands = [f"hf download {BASE_REPO} --local-dir {shlex.quote(str(self.folder))}"] if whole else []
        for kind in wrong:
            if kind.repo != BASE_REPO:
                there = self.models / PLACES[kind.field].category if self.models else self.folder
                commands.append(download(kind.repo, kind.files, there))
            elif not whole:
                commands.append(download(BASE_REPO, kind.files, self.folder))
        return tuple(commands)


def _decoder_apart(given: Mapping[str, str | Path | None], look: _Look) -> dict[str, str | Path | None]:
    """Parts with a small VAE told apart from a full one, which is then found as if none had been named.

    A pruned one is whole: where no other is there, it encodes, too.
    """
    name = given.get("vae")
    if name is None:
        return dict(given)
    rest = {part: place for part, place in given.items() if part != "vae"}
    if str(name) in (FULL_VAE, TINY_VAE):
        return rest if str(name) == FULL_VAE else {**rest, "tiny_vae": TINY_VAE}
    full = next((p for p in look.candidates(_VAE, name) if p.exists()), None)
    small = full is None and any(p.exists() for p in look.candidates(_TINY, name))
    if full is not None and full.is_file():
        light = any(p.exists() for p in look.candidates(_VAE, None)) and is_light(full)
        small = light or kind_of(open_file(full).keys()) is Kind.TINY_VAE
    return {**rest, "tiny_vae": name if full is None else full} if small else dict(given)


def _root(path: str | Path) -> Path:
    """The folder or file that is meant.

    Raises:
        MissingFilesError: there is none, or it is a file of another kind.
    """
    given = Path(path).expanduser()
    root = next((p for p in places_of("transformer", given, (own_models_folder(),)) if p.exists()), given)
    named_file = root.suffix in _SINGLE or root.name.endswith(".safetensors.index.json")
    if root.is_dir() or (root.is_file() and named_file):
        return root
    what = "is a file, not a model folder or a .safetensors or .gguf file" if root.exists() else "does not exist"
    folder = root.parent if root.exists() or named_file else root
    look = _Look(root, folder, named_file, models_folder(root))
    raise MissingFilesError(f"{root} {what}.", _fetch_sentence(look.commands(_KINDS, whole=True)))


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
    width, count = audio.get("hidden_size"), audio.get("num_hidden_layers")
    layers = count + 1 if isinstance(count, int) else count
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


def format_inspection(inspection: Inspection, refusal: LiveAvatarError | None = None) -> str:
    """The inspection as lines for a terminal.

    Args:
        inspection: of all parts.
        refusal: why parts that are all there do not make a model together.
    """
    lines = [f"{inspection.root}"]
    for item in inspection.items:
        wrong = "another" if item.nearest else "damaged"
        state = "ok" if item.usable else ("missing" if item.path is None else wrong)
        note = item.note if item.usable or not item.nearest else f"{item.note}. {item.nearest}"
        size = format_bytes(item.nbytes, unit="largest") if item.path else ""
        lines.append(f"  {state:<8} {item.name:<18} {size:>9}  {note}")
    if refusal:
        lines.append(str(refusal))
    elif inspection.commands:
        lines += [
            "To fetch what is missing (nothing is downloaded by itself):",
            *(f"  {c}" for c in inspection.commands),
        ]
    else:
        lines.append("Complete.")
    return "\n".join(lines)


def _item(kind: _Kind, look: _Look, given: str | Path | None) -> Item:
    if kind.field == "lora" and given == NO_LORA:
        return Item(kind.name, None, 0, "none: the network is used as its file has it", True)
    candidates = look.candidates(kind, given)
    path = next((c for c in candidates if c.exists()), None)
    if path is None:
        if kind.field == "config" and look.single:
            return Item(kind.name, None, 0, "none beside the file: dimensions of the 14B model, if they fit", True)
        named = kind.files.split(" ")[0] if given in (None, TINY_VAE) else given
        return Item(kind.name, None, 0, f"no {named}", False)
    if kind.field == "lora" and not given and (rivals := _rivals(path, look.folder)):
        return Item(kind.name, None, 0, f"several beside the model: {', '.join(map(str, rivals))}", False, _NAME_ONE)
    try:
        return Item(kind.name, path, _bytes_of(path), kind.examine(path), True)
    except AnotherKind as e:
        nearest = kind.kind.nearest if kind.kind and e.nearest == FETCH_AGAIN else e.nearest
        return Item(kind.name, path, _bytes_of(path), e.what.rstrip("."), False, nearest)
    except ModelError as e:
        return Item(kind.name, path, _bytes_of(path), e.what.rstrip("."), False)


def _extra_lora(look: _Look, lora: ExtraLoRA) -> Item:
    """A further LoRA, where it was named; what it changes is known when the network is opened."""
    check_path(lora.path, "extra LoRA", MissingFilesError)
    places = places_of("lora", lora.path, (look.models, own_models_folder()))
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return Item(_EXTRA_LORA, None, 0, f"no {lora.path}", False, "Give its place, or its name in models/loras.")
    try:
        source = open_weights(path)
        check_lora(source, extra=True)
        return Item(_EXTRA_LORA, path, _bytes_of(path), f"{_note(path, source)}, strength {lora.strength:g}", True)
    except ModelError as e:
        nearest = e.nearest if isinstance(e, AnotherKind) else ""
        return Item(_EXTRA_LORA, path, _bytes_of(path), e.what.rstrip("."), False, nearest)


_EXTRA_LORA = "extra LoRA"
_NAME_ONE = "Name the one that is meant: --lora FILE, or in Load Model."


def _rivals(path: Path, folder: Path) -> list[Path]:
    """All LoRAs in the folders beside the model's, where one of several would be taken from there."""
    near = sorted({p.resolve() for p in _neighbours(folder) if p.is_file()})
    return near if len(near) > 1 and path.resolve() in near else []


def _tokenizer(text: Item, beside: Item) -> Item:
    """The tokenizer in the text encoder's file, or the one beside the rest."""
    if text.path is None or not text.usable:
        return beside
    try:
        if carries_tokenizer(text.path):
            return Item(beside.name, None, 0, f"in {text.path.name}", True)
    except ModelError as e:
        return Item(beside.name, text.path, 0, e.what.rstrip("."), False)
    if beside.path is None and text.path.suffix in (".safetensors", GGUF):
        return dataclasses.replace(beside, note=f"{beside.note}, and {text.path.name} carries none")
    return beside


def _transformer(path: Path) -> str:
    return _note(path, open_transformer(path))


def _lora(path: Path) -> str:
    source = open_weights(path)
    check_lora(source)
    return _note(path, source)


def _vae(path: Path) -> str:
    vae_weights(path)
    return _note(path, open_file(path))


def _tiny_vae(path: Path) -> str:
    source, _ = decoder_weights(path)
    return _note(path, source)


def _text_encoder(path: Path) -> str:
    text_settings(path)
    return _note(path, hugging_face_weights(path) if path.is_dir() else open_file(path))


def _audio_encoder(path: Path) -> str:
    audio_settings(path)
    return _note(path, hugging_face_weights(path) if path.is_dir() else open_file(path))


def _tokenizer_folder(path: Path) -> str:
    if not (path / "tokenizer_config.json").is_file():
        raise ModelError(f"{path.name} lacks tokenizer_config.json")
    return str(Path(*path.parts[-2:]))


def _config(path: Path) -> str:
    found = ModelConfig.from_file(path)
    return f"{path.name}, {found.num_layers} layers of width {found.dim}"


def _note(path: Path, opened: TensorSource) -> str:
    """What a file of tensors, an index with its shards, or a folder stores; every tensor's entry is there."""
    keys = opened.keys()
    for key in keys:
        opened.shape(key)
    shards = len(SafetensorsSource(path).shards()) if path.suffix in (".safetensors", ".json") else 1
    note = f"{path.name}, {len(keys)} tensors" + (f" in {shards} shards" if shards > 1 else "")
    if path.suffix == GGUF:
        note += f", {GGUFSource(path).kinds()}"
    layouts = opened.layouts() if isinstance(opened, DequantisedSource) else ""
    return note + (f", {layouts}" if layouts else "")


def _bytes_of(path: Path) -> int:
    """Size on disk of a file, of a folder, or of an index with its shards."""
    if path.is_dir():
        return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    if path.name.endswith(".index.json"):
        stem = path.name.removesuffix(".safetensors.index.json")
        return sum(f.stat().st_size for f in path.parent.glob(f"{stem}*.safetensors"))
    return sum(shard.stat().st_size for shard in shards_of(path) if shard.is_file())


def _beside(*names: str) -> Callable[[Path], Sequence[Path]]:
    return lambda folder: [folder / name for name in names]


def _transformer_in(folder: Path) -> Sequence[Path]:
    """By the index of its shards, as one file, by its shards alone, or one folder deeper as diffusers has it."""
    found: list[Path] = []
    for place in (folder, folder / "transformer"):
        shards = sorted(place.glob("diffusion_pytorch_model*-00001-of-*.safetensors"))
        found += sorted(place.glob("diffusion_pytorch_model*.safetensors.index.json"))
        found += [place / TRANSFORMER_FILE, *shards]
    return found


def _lora_in(folder: Path) -> Sequence[Path]:
    """In the folder, or below it."""
    return [folder / LORA_FILE, *sorted(folder.glob(f"*/{LORA_FILE}"))]


def _neighbours(folder: Path) -> list[Path]:
    """LoRAs beside the folder, or in a folder beside it (`Live-Avatar/` next to the base model)."""
    own = folder.resolve()
    return [own.parent / LORA_FILE, *sorted(p for p in own.parent.glob(f"*/{LORA_FILE}") if p.parent != own)]


_SINGLE = (".safetensors", GGUF, *PICKLED)
"""What the names of files end in that a transformer may be given as."""
_CONFIGS = ("config.json", "transformer/config.json")
_TINY_FILES = ("taew2_1.safetensors", "taew2_1.pth", "lighttaew2_1.safetensors", "lighttaew2_1.pth")
_VAE = _Kind("vae", "VAE", _beside(VAE_FILE, "vae"), _vae, BASE_REPO, VAE_FILE, Kind.VAE)
_TINY = _Kind("tiny_vae", "tiny VAE", _beside(*_TINY_FILES), _tiny_vae, TINY_REPO, TINY_FILE, Kind.TINY_VAE)
_KINDS = (
    _Kind(
        "transformer",
        "transformer",
        _transformer_in,
        _transformer,
        BASE_REPO,
        "diffusion_pytorch_model*",
        Kind.TRANSFORMER,
    ),
    _Kind("config", "configuration", _beside(*_CONFIGS), _config, BASE_REPO, "config.json"),
    _Kind("lora", "LoRA", _lora_in, _lora, LORA_REPO, LORA_FILE, Kind.LORA),
    _VAE,
    _Kind(
        "text_encoder",
        "text encoder",
        _beside(TEXT_FILE, "text_encoder"),
        _text_encoder,
        BASE_REPO,
        TEXT_FILE,
        Kind.TEXT,
    ),
    _Kind("tokenizer", "tokenizer", _beside(TOKENIZER_FOLDER, "tokenizer"), _tokenizer_folder, BASE_REPO, "google/*"),
    _Kind(
        "audio_encoder",
        "audio encoder",
        _beside(AUDIO_FOLDER),
        _audio_encoder,
        BASE_REPO,
        f"{AUDIO_FOLDER}/*",
        Kind.AUDIO,
    ),
)


def _fetch_sentence(commands: Sequence[str]) -> str:
    return "To fetch it: " + " && ".join(commands) if commands else ""
