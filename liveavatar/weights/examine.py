"""Looking at one file or folder of a model: what it is, whether it is whole, how large. Weights are not read."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ..config import ModelConfig
from ..errors import ModelError
from .formats import DequantisedSource, Kind, open_transformer, refuse_another_kind
from .source import SafetensorsSource, TorchSource


def transformer(path: Path) -> str:
    """One file, or an index with the header of every shard and each name."""
    return f"{_safetensors(path)}{_scaled(open_transformer(path))}"


def lora(path: Path) -> str:
    """One file of pairs."""
    note = _safetensors(path)
    refuse_another_kind(SafetensorsSource(path), Kind.LORA)
    return note


def vae(path: Path) -> str:
    """A file, or a folder with config.json and weights."""
    return _folder(path) if path.is_dir() else _file(path, Kind.VAE)


def text_encoder(path: Path) -> str:
    """A file, or a folder with config.json and weights."""
    return _folder(path) if path.is_dir() else _file(path, Kind.TEXT)


def audio_encoder(path: Path) -> str:
    """A file, or a folder with config.json and weights."""
    return _folder(path) if path.is_dir() else _file(path, Kind.AUDIO)


def tokenizer(path: Path) -> str:
    """A folder of transformers."""
    if not (path / "tokenizer_config.json").is_file():
        raise ModelError(f"{path.name} lacks tokenizer_config.json")
    return str(Path(*path.parts[-2:]))


def config(path: Path) -> str:
    """The dimensions of a transformer."""
    found = ModelConfig.from_file(path)
    return f"{path.name}, {found.num_layers} layers of width {found.dim}"


def bytes_of(path: Path) -> int:
    """Size on disk of a file, of a folder, or of an index with its shards."""
    if path.is_dir():
        return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    if path.name.endswith(".index.json"):
        stem = path.name.removesuffix(".safetensors.index.json")
        return sum(f.stat().st_size for f in path.parent.glob(f"{stem}*.safetensors"))
    return path.stat().st_size


def size_in_words(nbytes: int) -> str:
    """Bytes with one decimal, in the largest unit that fits."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes} B"


def _file(path: Path, kind: Kind) -> str:
    if path.suffix != ".safetensors":
        return _pickle(path, kind)
    note, source = _safetensors(path), SafetensorsSource(path)
    refuse_another_kind(source, kind)
    return note + _scaled(DequantisedSource(source))


def _safetensors(path: Path) -> str:
    source = SafetensorsSource(path)
    keys = source.keys()
    for key in keys:
        source.shape(key)
    shards = len(source.shards())
    return f"{path.name}, {len(keys)} tensors" + (f" in {shards} shards" if shards > 1 else "")


def _scaled(source: DequantisedSource) -> str:
    return f", {source.scaled} matrices in fp8" if source.scaled else ""


def _pickle(path: Path, kind: Kind | None = None) -> str:
    """A `.pth` archive: its directory stands at the end, so a cut one shows; opening maps the tensors, reading none."""
    with path.open("rb") as f:
        start = f.read(2)
    if not start or (start == b"PK" and not zipfile.is_zipfile(path)) or start[:1] not in (b"P", b"\x80"):
        raise ModelError(f"{path.name} is cut off or no PyTorch file")
    if start != b"PK":
        return path.name
    source = TorchSource(path)
    if kind:
        refuse_another_kind(source, kind)
    return f"{path.name}, {len(source.keys())} tensors"


def _folder(path: Path) -> str:
    if not (path / "config.json").is_file():
        raise ModelError(f"{path.name} lacks config.json")
    if (path / "pytorch_model.bin").is_file() and not any(path.glob("*.safetensors")):
        return f"{path.name}, {_pickle(path / 'pytorch_model.bin')}"
    return f"{path.name}, {_safetensors(path)}"
