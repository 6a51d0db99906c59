"""Models and files where ComfyUI users keep them. What comes in as a name is looked up, never used as a path."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import folder_paths

from ..liveavatar.components import MINI_FOLDER, Components, FolderComponents, load_tiny, load_vae, open_components
from ..liveavatar.errors import LiveAvatarError, MissingFilesError, StateError
from ..liveavatar.files import path_of
from ..liveavatar.video_state import VideoState, is_state
from ..liveavatar.weights.folder import find_model, inspect_model
from ..liveavatar.weights.lora import NO_LORA, ExtraLoRA
from ..liveavatar.weights.places import FULL_VAE, PLACES, TINY_VAE, is_named_like
from ..liveavatar.weights.source import GGUF, opening_files_once
from .words import refused_in_widgets

SAMPLES = Path(__file__).parents[1] / "liveavatar" / "mini" / "assets"
"""The pack's own portrait and voice."""
MINIATURE = "miniature (comes along)"
AUTOMATIC = "automatic"
VAE_WORDS = (TINY_VAE, FULL_VAE)
OWN_CATEGORY = "liveavatar"
NO_STATE = "none"
_STATE_SUFFIX = ".safetensors"
_FOLDER_CATEGORIES = (OWN_CATEGORY, "diffusion_models", "diffusers")
_WITH_GGUF = tuple(PLACES[part].category for part in ("transformer", "text_encoder"))


def register() -> None:
    """Make models/liveavatar known; extra_model_paths.yaml may name further places."""
    folder_paths.add_model_folder_path(OWN_CATEGORY, str(Path(folder_paths.models_dir) / OWN_CATEGORY))


def models() -> list[str]:
    """What Load Model offers: the miniature, folders in the official layout, then single files."""
    return [MINIATURE, *sorted(_folders()), *_single_files()]


def files(category: str) -> list[str]:
    """The files of a category, after the choices that need none."""
    return [AUTOMATIC, *([NO_LORA] if category == PLACES["lora"].category else []), *_names(category)]


def temporary_folder() -> Path:
    """Where ComfyUI keeps what need not stay."""
    return Path(folder_paths.get_temp_directory())


def state_folder() -> Path:
    """Where states of videos are saved and found."""
    return Path(folder_paths.get_output_directory()) / OWN_CATEGORY


def new_state(prefix: str) -> Path:
    """A name for a state that is not taken yet; its folder is made.

    Raises:
        OutputError: no file can be called so.
    """
    path_of(f"{prefix}{_STATE_SUFFIX}", "The state")
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, str(state_folder()))
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder) / f"{name}_{counter:05}_{_STATE_SUFFIX}"


def states() -> list[str]:
    """Names of the states that were saved, after the choice of none."""
    folder = state_folder()
    found = folder.rglob(f"*{_STATE_SUFFIX}") if folder.is_dir() else ()
    return [NO_STATE, *sorted(path.relative_to(folder).as_posix() for path in found if is_state(path))]


def open_state(name: str) -> VideoState | None:
    """The state of a name; nothing where none is wanted.

    Raises:
        StateError: no such state.
    """
    if name == NO_STATE:
        return None
    if fault := state_fault(name):
        raise StateError(fault, "Choose one of the list; press R to read it anew.")
    return VideoState(state_folder() / name)


def state_fault(name: str) -> str:
    """What is wrong with the name of a state; "" where nothing is."""
    known = name in states()
    return "" if known else f"There is no state {name} in the folder {OWN_CATEGORY} of the output folder."


def state_fingerprint(name: str) -> str:
    """Changes with the file of a state."""
    path = state_folder() / name
    return f"{path.stat().st_mtime_ns} {path.stat().st_size}" if name != NO_STATE and path.is_file() else ""


def lora_choices() -> list[str]:
    """What a further LoRA may be."""
    return [NO_LORA, *_names(PLACES["lora"].category)]


def lora_path(name: str) -> Path:
    """The file of a LoRA.

    Raises:
        MissingFilesError: no such file.
    """
    return _place(PLACES["lora"].category, name)


def lora_fault(name: str | None) -> bool | str:
    """True where a LoRA is here (or comes over a link, or is none), else what is missing."""
    try:
        return True if name in (None, NO_LORA) else bool(lora_path(name))
    except MissingFilesError as error:
        return str(error)


def lora_fingerprint(name: str | None) -> str:
    """Name, size and time of a LoRA's file."""
    if name is None or lora_fault(name) is not True or name == NO_LORA:
        return str(name)
    state = lora_path(name).stat()
    return f"{name}:{state.st_size}:{state.st_mtime_ns}"


def vaes() -> list[str]:
    """Those that decode: of the model or of files, full and tiny."""
    return [AUTOMATIC, *_names("vae"), *_tiny_vaes()]


def open_model(
    model: str,
    lora: str,
    text_encoder: str,
    audio_encoder: str,
    vae: str,
    extra_loras: Sequence[ExtraLoRA] = (),
    vae_path: Path | None = None,
) -> Components:
    """The chosen model, with all of its parts found and checked; no weights are read.

    Args:
        model, lora, text_encoder, audio_encoder, vae: as the widgets of Load Model say.
        extra_loras: merged too.
        vae_path: a VAE that is used instead of the one that `vae` says.

    Raises:
        LiveAvatarError: what is missing or does not fit, and how to get it.
    """
    if model == MINIATURE:
        return open_components("mini", extra_loras=extra_loras, vae=vae_path or (vae if vae in VAE_WORDS else None))
    chosen = {"lora": lora, "text_encoder": text_encoder, "audio_encoder": audio_encoder, "vae": vae}
    given = {part: _chosen(part, name) for part, name in chosen.items() if name != AUTOMATIC}
    if vae_path is not None:
        given["vae"] = vae_path
    place = _model_place(model)
    with opening_files_once():
        items = inspect_model(place, extra_loras=(), **given).items
        lacking = {item.name.replace(" ", "_").lower() for item in items if not item.usable}
        found = {part: path for part in lacking & (set(chosen) - set(given)) if (path := _likely(part))}
        return FolderComponents(find_model(place, extra_loras=extra_loras, **given, **found), name=model)


def model_fault(
    model: str, lora: str, text_encoder: str, audio_encoder: str, vae: str, vae_linked: bool = False
) -> bool | str:
    """True where a model is here with all of its parts, else what is missing and how to get it.

    A linked VAE is not known yet: that of the miniature stands in for it.
    """
    instead = MINI_FOLDER / "vae" if vae_linked and model != MINIATURE else None
    try:
        with refused_in_widgets():
            open_model(model, lora, text_encoder, audio_encoder, AUTOMATIC if vae_linked else vae, vae_path=instead)
    except LiveAvatarError as error:
        return f"{error} Then press R to refresh." if isinstance(error, MissingFilesError) else str(error)
    return True


def open_vae(name: str, device: Any, dtype: Any) -> Any:
    """A VAE of the category vae, or a tiny one of vae_approx, loaded.

    Raises:
        LiveAvatarError: no such file, or no VAE of Wan 2.1.
    """
    if name in _tiny_vaes():
        return load_tiny(_place(PLACES["tiny_vae"].category, name), device, dtype)
    return load_vae(_place("vae", name), device, dtype)


def fingerprint(given: Mapping[str, Any]) -> str:
    """Names, sizes and times of the chosen files."""
    seen = []
    for name in (v for v in given.values() if isinstance(v, str)):
        with contextlib.suppress(MissingFilesError, OSError):
            place = _model_place(name)
            stats = [f.stat() for f in ([place] if place.is_file() else sorted(place.glob("*")))]
            seen.append(f"{name}:{[(s.st_size, s.st_mtime_ns) for s in stats]}")
    return ";".join(seen)


def _model_place(name: str) -> Path:
    folders = _folders()
    if name in folders:
        return folders[name]
    if name in _names("diffusion_models"):
        return _place("diffusion_models", name)
    return _expected_place(name)


def _expected_place(name: str) -> Path:
    """Where a model would lie that is not here, or not whole; what reads it says what is missing.

    Raises:
        MissingFilesError: no model can have that name.
    """
    category, slash, rest = name.partition("/")
    if category not in _FOLDER_CATEGORIES or not slash:
        category, rest = "diffusion_models", name
    roots = _roots(category) or [Path(folder_paths.models_dir) / category]
    if not rest or Path(rest).is_absolute() or {"..", "~"} & set(Path(rest).parts):
        raise MissingFilesError(
            f"There is no model {name!r}.",
            f"There are: {', '.join(models())}. Put others into models/{OWN_CATEGORY}/ and press R to refresh.",
        )
    return next((root / rest for root in roots if (root / rest).exists()), roots[0] / rest)


def _place(category: str, name: str) -> Path:
    path = folder_paths.get_full_path(category, name) if name in _names(category) else None
    if path is None:
        raise MissingFilesError(
            f"There is no file {name!r} in models/{category}.", f"There are: {', '.join(_names(category)) or 'none'}."
        )
    return Path(path)


def _chosen(part: str, name: str) -> str | Path:
    """A part that was chosen by name; a LoRA may be chosen not to be, and for a VAE a word may stand."""
    if (part, name) == ("lora", NO_LORA) or (part == "vae" and name in VAE_WORDS):
        return name
    tiny = part == "vae" and name in _tiny_vaes()
    return _place(PLACES["tiny_vae" if tiny else part].category, name)


def _tiny_vaes() -> list[str]:
    return [name for name in _names(PLACES["tiny_vae"].category) if is_named_like("tiny_vae", name)]


def _likely(part: str) -> Path | None:
    """The first file that is named like this part."""
    category = PLACES[part].category
    return next((_place(category, name) for name in _names(category) if is_named_like(part, name)), None)


def _folders() -> dict[str, Path]:
    """Folders with a sharded or single transformer in the official layout, by "category/name"."""
    found: dict[str, Path] = {}
    for category in _FOLDER_CATEGORIES:
        for root in _roots(category):
            for config in sorted(root.glob("*/config.json")):
                folder = config.parent
                if any(folder.glob("diffusion_pytorch_model*.safetensors*")):
                    found.setdefault(f"{category}/{folder.name}", folder)
    return found


def _single_files() -> list[str]:
    """Single files, those of S2V first; shards of a folder are no models of their own."""
    names = [n for n in _names("diffusion_models") if n.endswith((".safetensors", GGUF)) and "-of-0" not in n]
    return sorted(names, key=lambda n: ("s2v" not in n.lower(), n))


def _roots(category: str) -> list[Path]:
    if category not in folder_paths.folder_names_and_paths:
        return []
    return [Path(p) for p in folder_paths.get_folder_paths(category) if Path(p).is_dir()]


def _names(category: str) -> list[str]:
    if category not in folder_paths.folder_names_and_paths:  # an older core
        return []
    return [*folder_paths.get_filename_list(category), *(_gguf_files(category) if category in _WITH_GGUF else ())]


def _gguf_files(category: str) -> list[str]:
    """GGUF files, which ComfyUI does not list by itself, by the names it would give them."""
    found = {
        str((Path(folder) / file).relative_to(root))
        for root in _roots(category)
        for folder, _, files in os.walk(root, followlinks=True)
        for file in files
        if file.endswith(GGUF)
    }
    return sorted(found - set(folder_paths.get_filename_list(category)))
