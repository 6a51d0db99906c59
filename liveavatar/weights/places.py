"""Where ComfyUI keeps the parts of a model, how their files are named there, and what fetches them."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

BASE_REPO = "Wan-AI/Wan2.2-S2V-14B"
LORA_REPO = "Quark-Vision/Live-Avatar"
LORA_FILE = "liveavatar.safetensors"
TINY_REPO, TINY_FILE = "lightx2v/Autoencoders", "lighttaew2_1.safetensors"
TINY_VAE, FULL_VAE = "tiny", "full"
"""Words in place of a VAE's file: the tiny decoder that lies beside the model, or none."""
_WAN_2_1, _WAN_2_2 = "Comfy-Org/Wan_2.1_ComfyUI_repackaged", "Comfy-Org/Wan_2.2_ComfyUI_Repackaged"
_WITH_FILES = ("diffusion_models", "unet", "checkpoints")
_WITH_FOLDERS = ("liveavatar", "diffusers")
"""Categories of whole models, in folders of their own."""
_READABLE = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".gguf")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where ComfyUI keeps one part.

    Attributes:
        category: the folder in `models/`.
        beginnings: how the names of its files begin, in lower case.
        repo, file: what is downloaded for it, as one file.
    """

    category: str
    beginnings: tuple[str, ...]
    repo: str
    file: str


PLACES = {
    "transformer": Place(
        "diffusion_models",
        ("wan2.2_s2v",),
        _WAN_2_2,
        "split_files/diffusion_models/wan2.2_s2v_14B_bf16.safetensors",
    ),
    "lora": Place("loras", ("liveavatar", "live-avatar", "live_avatar"), LORA_REPO, LORA_FILE),
    "vae": Place(
        "vae", ("wan_2.1_vae", "wan2.1_vae", "wan2_1_vae"), _WAN_2_2, "split_files/vae/wan_2.1_vae.safetensors"
    ),
    "tiny_vae": Place("vae_approx", ("taew2_1", "lighttaew2_1"), TINY_REPO, TINY_FILE),
    "text_encoder": Place(
        "text_encoders",
        ("umt5_xxl", "umt5-xxl", "models_t5_umt5"),
        _WAN_2_1,
        "split_files/text_encoders/umt5_xxl_fp16.safetensors",
    ),
    "audio_encoder": Place(
        "audio_encoders",
        ("wav2vec2",),
        _WAN_2_2,
        "split_files/audio_encoders/wav2vec2_large_english_fp16.safetensors",
    ),
}
"""By their fields of `ModelFiles`; a tokenizer comes inside the text encoder's file."""


def models_folder(path: Path) -> Path | None:
    """ComfyUI's folder of models that a model lies in; None where it lies elsewhere.

    Args:
        path: a file in diffusion_models/ (or unet/, checkpoints/), perhaps deeper, or a folder in one of those of
            whole models; it need not exist.
    """
    path = path.absolute()
    for folder in (path, *path.parents):
        if folder.name in _WITH_FILES[:2] or (
            folder.name in (*_WITH_FILES, *_WITH_FOLDERS) and folder.parent.name == "models"
        ):
            return folder.parent
    return None


def own_models_folder() -> Path | None:
    """The folder of models of the ComfyUI that this pack is installed in; None where it is installed otherwise."""
    pack = Path(__file__).parents[2]
    models = pack.parent.with_name("models")
    return models if pack.parent.name == "custom_nodes" and models.is_dir() else None


def files_in(models: Path | None, part: str) -> list[Path]:
    """The files of a part's category that are named like this part, those on top first, and GGUF files last."""
    if models is None:
        return []
    place = PLACES[part]
    folder = models / place.category
    found = (f for f in sorted(folder.rglob("*")) if f.suffix in _READABLE and is_named_like(part, f.name))
    return sorted(found, key=lambda f: (f.suffix == ".gguf", len(f.relative_to(folder).parts)))


def is_named_like(part: str, name: str) -> bool:
    """Whether a file of the part's category is probably one of this model."""
    return Path(name).name.lower().startswith(PLACES[part].beginnings)


def places_of(part: str, name: str | Path, folders: Iterable[Path | None]) -> Iterator[Path]:
    """Where the file may be that a user named: a path, or a name as ComfyUI lists it.

    Args:
        part: its field of `ModelFiles`.
        name: as it was given.
        folders: of models, the nearest first.
    """
    path = Path(name).expanduser()
    yield path
    if part in PLACES and not path.is_absolute():
        for models in folders:
            if models is not None:
                yield models / PLACES[part].category / path
                if part == "transformer":
                    yield from (models / category / path for category in (*_WITH_FILES[1:], *_WITH_FOLDERS))


def download(repo: str, file: str, to: Path) -> str:
    """The shell command that fetches one file, or what a pattern names."""
    what = f"--include '{file}'" if repo == BASE_REPO else file
    return f"hf download {repo} {what} --local-dir {shlex.quote(str(to))}"


def downloads_to_categories(parts: Sequence[str], models: Path) -> tuple[str, ...]:
    """The commands that fetch parts as single files, each into its own folder; a tokenizer is in its encoder's file."""
    named = dict.fromkeys("text_encoder" if part == "tokenizer" else part for part in parts)
    return tuple(download(PLACES[p].repo, PLACES[p].file, models / PLACES[p].category) for p in named if p in PLACES)
