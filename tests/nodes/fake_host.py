"""The slice of a running ComfyUI that the nodes touch: folders, progress, interrupt, memory, messages. Strict too.

The modules have only what stands here, so that a new contact with the host is noticed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

CATEGORIES = ("diffusion_models", "diffusers", "loras", "text_encoders", "audio_encoders", "vae")


class InterruptProcessingException(Exception):
    """A plain Exception in ComfyUI too."""


class ProgressBar:
    """Records its ticks; a tick is also a point where Cancel is noticed."""

    def __init__(self, host: Host, total: int) -> None:
        self.host, self.total = host, total

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        self.host.throw_if_interrupted()
        self.host.ticks.append((value, total or self.total, preview))

    def update(self, value: int) -> None:
        self.update_absolute((self.host.ticks[-1][0] if self.host.ticks else 0) + value)


class ModelPatcher:
    """What core's memory management calls."""

    def __init__(self, model: Any, load_device: Any, offload_device: Any, size: int = 0, **_: Any) -> None:
        self.model, self.load_device, self.offload_device, self.size = model, load_device, offload_device, size

    def model_size(self) -> int:
        return self.size


class Host:
    """One ComfyUI: its folders under `base`, and everything the nodes told it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.interrupted = False
        self.running: list[tuple[Any, ...]] = []
        """Prompts that are executed, as core's queue tells them."""
        self.ticks: list[tuple[int, int, Any]] = []
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self.texts: list[tuple[str, str]] = []
        self.routes: dict[str, Any] = {}
        self.loaded: list[Any] = []
        self.folders: dict[str, list[str]] = {}
        self.names_and_paths: dict[str, tuple[list[str], set[str]]] = {}
        for name in CATEGORIES:
            self.add_folder(name, str(base / "models" / name))
        for name in ("input", "output", "temp"):
            (base / name).mkdir(parents=True, exist_ok=True)
        self.modules = self._modules()
        for name, module in self.modules.items():
            if "." in name:
                parent, _, child = name.rpartition(".")
                setattr(self.modules[parent], child, module)
        sys.modules.update(self.modules)

    def remove(self) -> None:
        """Take the stand-ins away again."""
        for name in self.modules:
            sys.modules.pop(name, None)

    def interrupt(self, value: bool = True) -> None:
        self.interrupted = value

    def throw_if_interrupted(self) -> None:
        if self.interrupted:
            self.interrupted = False
            raise InterruptProcessingException

    def add_folder(self, name: str, path: str, is_default: bool = False) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)
        known = self.folders.setdefault(name, [])
        self.names_and_paths[name] = (known, {".safetensors"})
        if path not in known:
            known.insert(0 if is_default else len(known), path)

    def listed(self, name: str) -> list[str]:
        found = {
            p.relative_to(root).as_posix() for root in self.folders[name] for p in Path(root).rglob("*.safetensors")
        }
        return sorted(found)

    def full_path(self, name: str, file: str) -> str | None:
        return next((str(Path(root) / file) for root in self.folders[name] if (Path(root) / file).is_file()), None)

    def full_path_or_raise(self, name: str, file: str) -> str:
        path = self.full_path(name, file)
        if path is None:
            raise FileNotFoundError(f"Model in folder '{name}' with filename '{file}' not found.")
        return path

    def save_path(self, prefix: str, folder: str, width: int = 0, height: int = 0) -> tuple[str, str, int, str, str]:
        name = Path(prefix).name
        counter = 1 + sum(1 for p in Path(folder).glob(f"{name}_*"))
        return folder, name, counter, str(Path(prefix).parent).replace(".", ""), prefix

    def _modules(self) -> dict[str, ModuleType]:
        return {
            "comfy": _module("comfy"),
            "comfy.cli_args": _module("comfy.cli_args", args=SimpleNamespace()),
            "comfy.utils": _module("comfy.utils", ProgressBar=lambda total, **_: ProgressBar(self, total)),
            "comfy.model_patcher": _module("comfy.model_patcher", ModelPatcher=ModelPatcher),
            "comfy.model_management": _module(
                "comfy.model_management",
                InterruptProcessingException=InterruptProcessingException,
                processing_interrupted=lambda: self.interrupted,
                throw_exception_if_processing_interrupted=self.throw_if_interrupted,
                interrupt_current_processing=self.interrupt,
                get_torch_device=lambda: torch.device("cpu"),
                unet_offload_device=lambda: torch.device("cpu"),
                get_free_memory=lambda *_: 8 << 30,
                get_total_memory=lambda *_: 16 << 30,
                free_memory=lambda *_, **__: [],
                load_models_gpu=lambda models, *_, **__: self.loaded.extend(models),
                current_loaded_models=self.loaded,
                soft_empty_cache=lambda *_: None,
            ),
            "comfy_execution": _module("comfy_execution"),
            "comfy_execution.utils": _module(
                "comfy_execution.utils", get_executing_context=lambda: SimpleNamespace(node_id="1", prompt_id="prompt")
            ),
            "folder_paths": _module(
                "folder_paths",
                models_dir=str(self.base / "models"),
                folder_names_and_paths=self.names_and_paths,
                supported_pt_extensions={".safetensors"},
                add_model_folder_path=self.add_folder,
                get_folder_paths=lambda name: list(self.folders[name]),
                get_filename_list=self.listed,
                get_full_path=self.full_path,
                get_full_path_or_raise=self.full_path_or_raise,
                get_save_image_path=self.save_path,
                get_input_directory=lambda: str(self.base / "input"),
                get_output_directory=lambda: str(self.base / "output"),
                get_temp_directory=lambda: str(self.base / "temp"),
            ),
            "aiohttp": _module("aiohttp", web=SimpleNamespace(json_response=_json_response)),
            "server": _module("server", PromptServer=SimpleNamespace(instance=self._server())),
        }

    def _server(self) -> SimpleNamespace:
        return SimpleNamespace(
            client_id="browser",
            loop=SimpleNamespace(call_soon_threadsafe=lambda call, *given: call(*given)),
            routes=SimpleNamespace(get=lambda path: lambda handler: self.routes.update({path: handler})),
            prompt_queue=SimpleNamespace(
                get_current_queue=lambda: (list(self.running), []), wipe_queue=lambda: self.texts.append(("wiped", ""))
            ),
            send_sync=lambda event, data, sid=None: self.messages.append((event, data)),
            send_progress_text=lambda text, node_id, sid=None: self.texts.append((text, node_id)),
        )


def _json_response(data: Any) -> SimpleNamespace:
    return SimpleNamespace(text=json.dumps(data))


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module
