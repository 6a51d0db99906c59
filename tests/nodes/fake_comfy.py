"""The slice of comfy_api.v0_0_2 that the nodes use, recorded instead of rendered, and strict.

What is not here raises: a type or a keyword that ComfyUI 0.3.64, the floor in pyproject.toml, may not have. So the
schemas are held against the oldest core without having one. `test_static_recorder.py` holds this file against a newer
core where one is at hand.
"""

from __future__ import annotations

import enum
import importlib.util
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOCKETS = {
    "Audio": "AUDIO",
    "AudioEncoder": "AUDIO_ENCODER",
    "AudioEncoderOutput": "AUDIO_ENCODER_OUTPUT",
    "Clip": "CLIP",
    "Conditioning": "CONDITIONING",
    "Image": "IMAGE",
    "Latent": "LATENT",
    "Mask": "MASK",
    "Model": "MODEL",
    "Vae": "VAE",
    "Video": "VIDEO",
}
EVERY_INPUT = frozenset({"display_name", "optional", "tooltip", "lazy"})
EVERY_WIDGET = EVERY_INPUT | {"default", "socketless"}
WIDGETS = {
    "Boolean": ("BOOLEAN", EVERY_WIDGET | {"label_on", "label_off", "force_input"}),
    "Int": ("INT", EVERY_WIDGET | {"min", "max", "step", "control_after_generate", "display_mode", "force_input"}),
    "Float": ("FLOAT", EVERY_WIDGET | {"min", "max", "step", "round", "display_mode", "force_input"}),
    "String": ("STRING", EVERY_WIDGET | {"multiline", "placeholder", "dynamic_prompts", "force_input"}),
    "Combo": ("COMBO", EVERY_WIDGET | {"options", "control_after_generate", "upload", "image_folder"}),
}
EVERY_OUTPUT = frozenset({"id", "display_name", "tooltip", "is_output_list"})


class Slot:
    """One input or output, as it was declared."""

    def __init__(self, io_type: str, known: frozenset[str], id: str | None, given: dict[str, Any]) -> None:
        unknown = sorted(set(given) - known)
        if unknown:
            raise TypeError(f"{io_type} {id!r}: ComfyUI 0.3.64 takes no {', '.join(unknown)} here")
        self.io_type, self.id, self.given = io_type, id, given
        self.extra_dict: dict[str, Any] = {}

    @property
    def optional(self) -> bool:
        return bool(self.given.get("optional"))

    @property
    def tooltip(self) -> str | None:
        return self.given.get("tooltip")

    @property
    def display_name(self) -> str | None:
        return self.given.get("display_name")

    def options_given(self) -> dict[str, Any]:
        """The second half of an entry in /object_info."""
        told = {name: value for name, value in self.given.items() if name != "optional" and value is not None}
        return {**told, **self.extra_dict}


class Kind:
    """io.Int, io.Image and their like."""

    def __init__(self, io_type: str, known: frozenset[str] = EVERY_INPUT) -> None:
        self.io_type, self.known = io_type, known

    def Input(self, id: str, **given: Any) -> Slot:
        return Slot(self.io_type, self.known, id, given)

    def Output(self, id: str | None = None, **given: Any) -> Slot:
        return Slot(self.io_type, EVERY_OUTPUT, id, given)


class Hidden(enum.Enum):
    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"
    dynprompt = "DYNPROMPT"


class FolderType(str, enum.Enum):
    input = "input"
    output = "output"
    temp = "temp"


@dataclass
class Schema:
    """The fields of 0.3.64: `supported()` must leave out all others."""

    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Slot] = field(default_factory=list)
    outputs: list[Slot] = field(default_factory=list)
    hidden: list[Hidden] = field(default_factory=list)
    description: str = ""
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    is_api_node: bool = False
    not_idempotent: bool = False
    enable_expand: bool = False

    def __post_init__(self) -> None:
        ids = [slot.id for slot in self.inputs]
        if len(set(ids)) != len(ids):
            raise ValueError(f"{self.node_id}: two inputs have one id among {ids}")


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None, expand: Any = None, block_execution: str | None = None) -> None:
        self.args, self.ui, self.expand, self.block_execution = args, ui, expand, block_execution

    @property
    def result(self) -> tuple | None:
        return self.args or None

    def __getitem__(self, index: int) -> Any:
        return self.args[index]


class _Locked(type):
    """A node class cannot be written to while it runs, as in ComfyUI."""

    def __setattr__(cls, name: str, value: Any) -> None:
        if not name.startswith("__") and "define_schema" in vars(cls):
            raise AttributeError(f"{cls.__name__}.{name}: node classes are locked")
        super().__setattr__(name, value)


class ComfyNode(metaclass=_Locked):
    hidden = types.SimpleNamespace(unique_id="1", prompt=None, extra_pnginfo=None, dynprompt=None)


class ComfyExtension:
    async def on_load(self) -> None: ...


def run(node: type[ComfyNode], **inputs: Any) -> NodeOutput:
    """Execute a node as ComfyUI does: only inputs it declares, none of the required ones missing, no gradients."""
    import torch

    schema = node.define_schema()
    known = {slot.id for slot in schema.inputs}
    missing = {slot.id for slot in schema.inputs if not slot.optional and slot.id not in inputs}
    if set(inputs) - known or missing:
        raise TypeError(f"{schema.node_id}: unknown {sorted(set(inputs) - known)}, missing {sorted(missing)}")
    with torch.inference_mode():
        output = node.execute(**inputs)
    assert isinstance(output, NodeOutput), f"{schema.node_id} returned {type(output).__name__}"
    assert len(output.args) in (0, len(schema.outputs)), f"{schema.node_id} returned {len(output.args)} outputs"
    return output


class _Io(types.ModuleType):
    Schema, NodeOutput, ComfyNode, Hidden, FolderType = Schema, NodeOutput, ComfyNode, Hidden, FolderType

    @staticmethod
    def Custom(io_type: str) -> Kind:
        return Kind(io_type)

    class MultiType:
        """An input of several types, which is said with a comma between them."""

        @staticmethod
        def Input(id: str, types: list[Kind], **given: Any) -> Slot:
            return Slot(",".join(kind.io_type for kind in types), EVERY_INPUT, id, given)

    def __getattr__(self, name: str) -> Any:
        if name in SOCKETS:
            return Kind(SOCKETS[name])
        if name in WIDGETS:
            return Kind(*WIDGETS[name])
        raise AttributeError(f"io.{name} is not in the recorder; add it if ComfyUI 0.3.64 has it")


class SavedResult(dict):
    def __init__(self, filename: str, subfolder: str, type: FolderType) -> None:
        super().__init__(filename=filename, subfolder=subfolder, type=FolderType(type).value)


class PreviewText:
    def __init__(self, value: str, **_: Any) -> None:
        self.value = value

    def as_dict(self) -> dict[str, Any]:
        return {"text": (self.value,)}


class PreviewVideo:
    def __init__(self, values: list[SavedResult], **_: Any) -> None:
        self.values = values

    def as_dict(self) -> dict[str, Any]:
        return {"images": self.values, "animated": (True,)}


class VideoFromFile:
    """A VIDEO that lies in a file."""

    def __init__(self, file: str) -> None:
        self.file = file

    def get_stream_source(self) -> str:
        return self.file


def modules() -> dict[str, types.ModuleType]:
    """The stand-in modules by name."""
    package, api = types.ModuleType("comfy_api"), types.ModuleType("comfy_api.v0_0_2")
    io, ui = _Io("comfy_api.v0_0_2.io"), types.ModuleType("comfy_api.v0_0_2.ui")
    ui.SavedResult, ui.PreviewText, ui.PreviewVideo = SavedResult, PreviewText, PreviewVideo  # type: ignore
    api.io, api.ui, api.ComfyExtension = io, ui, ComfyExtension  # type: ignore
    api.Input = types.SimpleNamespace()  # type: ignore
    api.InputImpl = types.SimpleNamespace(VideoFromFile=VideoFromFile)  # type: ignore
    api.Types = types.SimpleNamespace()  # type: ignore
    package.v0_0_2 = api  # type: ignore
    return {"comfy_api": package, "comfy_api.v0_0_2": api}


PACK = "live_avatar_pack"
PROJECT = Path(__file__).parents[2]


def load_pack() -> types.ModuleType:
    """The pack as one package, named by its folder and not by an import path, as ComfyUI loads it.

    Its modules are copies: `live_avatar_pack.liveavatar` shares nothing with `liveavatar`.
    """
    sys.modules.update(modules())
    spec = importlib.util.spec_from_file_location(
        PACK, PROJECT / "__init__.py", submodule_search_locations=[str(PROJECT)]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    return module


def forget_pack() -> None:
    """Take the pack and the stand-ins away again."""
    mine = [name for name in sys.modules if name.split(".")[0] in (PACK, "comfy_api")]
    for name in mine:
        sys.modules.pop(name)
