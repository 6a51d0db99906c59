"""The subgraph blueprint: the modular graph in one node, for ComfyUI's node library.

Cores that know blueprints (0.3.67 and newer) list what lies in subgraphs/ by the name of its file.
"""

from __future__ import annotations

import uuid
from typing import Any

from .workflow_drawing import Drawing, version
from .workflow_graphs import DECODE, ENCODE, LATENTS, MODEL, Graph, Item
from .workflow_layout import INSET, SLOT

NAME = "Talking Avatar (Live Avatar)"
_DESCRIPTION = (
    "Turns a portrait and a voice into a talking video: Load Model, Text Encode, Audio Features, Sampler and Streaming "
    "VAE Decode of Live Avatar in one node. Open it to change what is inside."
)
_ALIASES = ["talking head", "lip sync", "avatar", "speech to video", "S2V"]
OUTSIDE = "outside"
SOCKETS = ("image", "audio", "mask", "backend")
"""Inputs of the blueprint; nodes inside are wired to "outside.<name>"."""
PROMOTED = (
    *(("model", "model"), ("words", "prompt"), ("sampler", "size"), ("sampler", "steps"), ("sampler", "seed")),
    ("audio", "seconds"),
)
"""Widgets that stand on it: a node inside, the widget."""
OUTPUTS = (("decode", "video", "VIDEO"), ("decode", "receipt", "STRING"))
FIRST = 2000
"""Where its ids begin; those of the templates are below."""
NODE, INPUTS, RESULTS = FIRST, -10, -20
_MODEL = {"model": "model.model"}
_SAMPLED = {"positive": "words.positive", "audio": "audio.audio"}
_SAMPLED |= {name: f"{OUTSIDE}.{name}" for name in ("image", "mask")}
_LOAD = Item("model", "LiveAvatarLoadModel", {"backend": f"{OUTSIDE}.backend"})
_WORDS = Item("words", "LiveAvatarTextEncode", _MODEL, under=("model",))
_AUDIO = Item("audio", "LiveAvatarAudioFeatures", _MODEL | {"audio": f"{OUTSIDE}.audio"})
_SAMPLER = Item("sampler", "LiveAvatarSampler", _MODEL | _SAMPLED)
_DECODE = Item("decode", "LiveAvatarDecode", {"latents": "sampler.latents"})
INSIDE = Graph(
    "blueprint",
    _DESCRIPTION,
    (),
    (((MODEL, (_LOAD,)),), ((ENCODE, (_WORDS, _AUDIO)),), ((LATENTS, (_SAMPLER,)),), ((DECODE, (_DECODE,)),)),
)


def _id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"live-avatar/blueprint/{name}"))


class Blueprint(Drawing):
    """The graph inside with the wires that lead out of it."""

    def __init__(self) -> None:
        super().__init__(INSIDE, FIRST, outside=OUTSIDE)
        self.nodes = {key: self._node(self.by_key[key]) for key in self.ids}
        self.crossing: list[dict[str, Any]] = []
        self.inputs = [self._socket(name) for name in SOCKETS] + [self._widget(*one) for one in PROMOTED]
        self.outputs = [self._output(*one) for one in OUTPUTS]

    def definition(self) -> dict[str, Any]:
        """The subgraph."""
        boxes = self.layout.boxes.values()
        right = max(box.left + box.width for box in boxes)
        return {
            "id": _id("subgraph"),
            "name": NAME,
            "description": _DESCRIPTION,
            "category": "Live Avatar",
            "version": 1,
            "revision": 0,
            "config": {},
            "widgets": [],
            "state": {
                "lastNodeId": max(self.ids.values()),
                "lastLinkId": self.first + len(self.links) + len(self.crossing),
                "lastGroupId": self.first + len(self.layout.groups),
                "lastRerouteId": 0,
            },
            "inputNode": {"id": INPUTS, "bounding": [-260, 0, 140, 20 + SLOT * len(self.inputs)]},
            "outputNode": {"id": RESULTS, "bounding": [right + 80, 0, 120, 20 + SLOT * len(self.outputs)]},
            "inputs": self.inputs,
            "outputs": self.outputs,
            "nodes": list(self.nodes.values()),
            "groups": self.groups(),
            "links": [*(self._link(*link) for link in self.links), *self.crossing],
            "extra": {},
        }

    def node(self) -> dict[str, Any]:
        """The one node that stands for it."""
        inputs = [
            {
                "name": one["name"],
                "type": one["type"],
                **({"widget": {"name": one["name"]}} if n >= len(SOCKETS) else {}),
                **({"shape": 7} if one["name"] in ("mask", "backend") else {}),
                "link": None,
            }
            for n, one in enumerate(self.inputs)
        ]
        return {
            "id": NODE,
            "type": _id("subgraph"),
            "title": NAME,
            "pos": [0, 0],
            "size": [360, 420],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": inputs,
            "outputs": [{"name": name, "type": kind, "links": None} for _, name, kind in OUTPUTS],
            "properties": {
                "cnr_id": "live-avatar",
                "ver": version(),
                "proxyWidgets": [[str(self.ids[key]), name] for key, name in PROMOTED],
            },
            "widgets_values": [],
        }

    def _socket(self, name: str) -> dict[str, Any]:
        """An input for all sockets inside that are wired to it."""
        made = []
        for item in self.items:
            for number, (slot, kind, _) in enumerate(self.kinds[item.type].sockets):
                if item.wires.get(slot) == f"{OUTSIDE}.{name}":
                    made.append((self._enter(item.key, number, kind, SOCKETS.index(name)), kind))
        return self._input(name, made[0][1], [link for link, _ in made], SOCKETS.index(name))

    def _widget(self, key: str, name: str) -> dict[str, Any]:
        """An input for a widget inside."""
        node, number = self.nodes[key], len(self.nodes[key]["inputs"])
        kind = next(kind for widget, kind in self.kinds[node["type"]].types if widget == name)
        row = len(SOCKETS) + PROMOTED.index((key, name))
        node["inputs"].append({"name": name, "type": kind, "widget": {"name": name}, "link": None})
        return self._input(name, kind, [self._enter(key, number, kind, row)], row)

    def _output(self, key: str, name: str, kind: str) -> dict[str, Any]:
        slot = self.kinds[self.by_key[key].type].outputs.index((name, kind))
        row = OUTPUTS.index((key, name, kind))
        link = self._cross(self.ids[key], slot, RESULTS, row, kind)
        self.nodes[key]["outputs"][slot]["links"] = [link]
        return {"id": _id(f"out/{name}"), "name": name, "type": kind, "linkIds": [link], "pos": [INSET, SLOT * row]}

    def _input(self, name: str, kind: str, links: list[int], row: int) -> dict[str, Any]:
        return {"id": _id(f"in/{name}"), "name": name, "type": kind, "linkIds": links, "pos": [-140, SLOT * (row + 1)]}

    def _enter(self, key: str, slot: int, kind: str, row: int) -> int:
        link = self._cross(INPUTS, row, self.ids[key], slot, kind)
        self.nodes[key]["inputs"][slot]["link"] = link
        return link

    def _cross(self, *ends: Any) -> int:
        number = self.first + len(self.links) + len(self.crossing) + 1
        self.crossing.append(self._link(number, *ends))
        return number

    @staticmethod
    def _link(number: int, source: int, output: int, target: int, slot: int, kind: str) -> dict[str, Any]:
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        return dict(zip(names, (number, source, output, target, slot, kind), strict=True))


def blueprint() -> dict[str, Any]:
    """What lies in subgraphs/."""
    made = Blueprint()
    definition = made.definition()
    return {
        "id": _id("workflow"),
        "revision": 0,
        "last_node_id": NODE,
        "last_link_id": 0,
        "nodes": [made.node()],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [definition]},
        "config": {},
        "extra": {"BlueprintDescription": _DESCRIPTION, "BlueprintSearchAliases": _ALIASES},
        "version": 0.4,
    }
