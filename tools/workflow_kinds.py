"""The types of nodes that the example graphs are made of.

Inputs of the pack's own nodes come from tests/nodes/schema.json, so that values always stand at their widget's place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).parents[1] / "tests" / "nodes" / "schema.json"
WIDGETS = {"BOOLEAN", "INT", "FLOAT", "STRING", "COMBO"}
Slots = list[tuple[str, str]]


@dataclass(frozen=True)
class Kind:
    """What a node of one type has: sockets (name, type, optional), widgets (name, default), outputs (name, type)."""

    sockets: tuple[tuple[str, str, bool], ...]
    widgets: tuple[tuple[str, Any], ...]
    outputs: tuple[tuple[str, str], ...]
    extra: tuple[Any, ...] = ()
    """Entries of widgets_values behind the widgets that are no inputs: upload buttons, a player."""
    seed: str = ""
    """The widget that has "fixed", "randomize"... behind it."""
    types: tuple[tuple[str, str], ...] = ()
    """Types of the widgets of our own nodes."""


def _core(sockets: Slots, widgets: list[tuple[str, Any]], outputs: Slots, extra: tuple[Any, ...] = ()) -> Kind:
    return Kind(tuple((name, kind, False) for name, kind in sockets), tuple(widgets), tuple(outputs), extra)


CORE = {
    "LoadImage": _core([], [("image", "")], [("IMAGE", "IMAGE"), ("MASK", "MASK")], ("image",)),
    "LoadAudio": _core([], [("audio", "")], [("AUDIO", "AUDIO")], (None, None)),
    "RecordAudio": _core([], [("audio", "")], [("AUDIO", "AUDIO")]),
    "SaveVideo": _core(
        [("video", "VIDEO")], [("filename_prefix", "video/ComfyUI"), ("format", "auto"), ("codec", "auto")], []
    ),
    "SolidMask": _core([], [("value", 1.0), ("width", 512), ("height", 512)], [("MASK", "MASK")]),
    "MaskComposite": _core(
        [("destination", "MASK"), ("source", "MASK")],
        [("x", 0), ("y", 0), ("operation", "multiply")],
        [("MASK", "MASK")],
    ),
    "CLIPLoader": _core([], [("clip_name", ""), ("type", ""), ("device", "default")], [("CLIP", "CLIP")]),
    "CLIPTextEncode": _core([("clip", "CLIP")], [("text", "")], [("CONDITIONING", "CONDITIONING")]),
    "AudioEncoderLoader": _core([], [("audio_encoder_name", "")], [("AUDIO_ENCODER", "AUDIO_ENCODER")]),
    "AudioEncoderEncode": _core(
        [("audio_encoder", "AUDIO_ENCODER"), ("audio", "AUDIO")],
        [],
        [("AUDIO_ENCODER_OUTPUT", "AUDIO_ENCODER_OUTPUT")],
    ),
}
"""Core nodes that the graphs may use, as ComfyUI 0.3.64 to 0.33 has them."""
API_ONLY = {"SaveVideo": {"format.codec": "auto"}}
"""Inputs that newer cores nest into another; the browser makes them, older cores ignore them."""


def kinds() -> dict[str, Kind]:
    """All types of nodes: core's from above, ours from the frozen schema."""
    found = dict(CORE)
    for name, node in json.loads(SCHEMA.read_text(encoding="utf-8")).items():
        sockets = [(i["id"], i["type"], i.get("optional", False)) for i in node["inputs"] if i["type"] not in WIDGETS]
        widgets = [(i["id"], i.get("default")) for i in node["inputs"] if i["type"] in WIDGETS]
        seed = next((i["id"] for i in node["inputs"] if i.get("control_after_generate")), "")
        outputs = [(o["name"], o["type"]) for o in node["outputs"]]
        types = tuple((i["id"], i["type"]) for i in node["inputs"] if i["type"] in WIDGETS)
        found[name] = Kind(tuple(sockets), tuple(widgets), tuple(outputs), seed=seed, types=types)
    return found
