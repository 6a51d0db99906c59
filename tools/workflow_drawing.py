"""An example graph with ids, links and places: as the browser saves it, and as the API takes it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tomllib

from .workflow_graphs import GRAPHS, NOTE, READ_ME, Graph, Item
from .workflow_kinds import API_ONLY, CORE, Kind, kinds
from .workflow_layout import Box, Layout, lay_out, view

PROJECT = Path(__file__).parents[1]
ENGLISH = PROJECT / "locales" / "en" / "nodeDefs.json"
CORE_VERSION = "0.3.64"
"""The oldest ComfyUI the graphs are for, as pyproject.toml says."""


def version() -> str:
    """The pack's own version."""
    return tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def display_name(kind: str) -> str:
    """What a node is called in English, without the pack's name behind it; core's by the words of their type."""
    ours = json.loads(ENGLISH.read_text(encoding="utf-8")).get(kind)
    return ours["display_name"].split(" (")[0] if ours else re.sub("(?<=[a-z])(?=[A-Z])", " ", kind)


class Drawing:
    """One description with ids, links and places.

    Ids of nodes and links begin at another hundred in each graph, so that two of them in one workflow do not meet in
    what ComfyUI keeps by id.
    """

    def __init__(self, graph: Graph, first: int | None = None, outside: str = "") -> None:
        """
        Args:
            graph: the description.
            first: where the ids begin; left out, at the hundred that is the graph's own.
            outside: a key that no node has; what is wired to it comes from outside of the graph.
        """
        self.graph = graph
        self.kinds = kinds()
        self.items = graph.items
        self.first = 100 * (1 + GRAPHS.index(graph)) if first is None else first
        self.ids = {item.key: number for number, item in enumerate(self.items, self.first + 1)}
        self.by_key = {item.key: item for item in self.items}
        self.layout: Layout = lay_out(graph, self.kinds)
        self.links: list[list[Any]] = []
        for item in self.items:
            self._check(item)
            for slot, (name, kind, _) in enumerate(self.kinds[item.type].sockets):
                if name in item.wires and item.wires[name].split(".")[0] != outside:
                    source, output, of = self._source(item, name, kind)
                    number = self.first + len(self.links) + 1
                    self.links.append([number, self.ids[source], output, self.ids[item.key], slot, of])

    def _check(self, item: Item) -> None:
        kind = self.kinds[item.type]
        strangers = (item.wires.keys() - {s[0] for s in kind.sockets}) | (
            item.values.keys() - dict(kind.widgets).keys()
        )
        unwired = {name for name, _, optional in kind.sockets if not optional} - item.wires.keys()
        if strangers or unwired:
            raise ValueError(f"{self.graph.name}: {item.key} has no {sorted(strangers)} and lacks {sorted(unwired)}")

    def _source(self, item: Item, name: str, kind: str) -> tuple[str, int, str]:
        """Key, output number and type of what feeds an input, which may take several types."""
        key, _, output = item.wires[name].partition(".")
        for number, (one, of) in enumerate(self.kinds[self.by_key[key].type].outputs):
            if one == output and of in kind.split(","):
                return key, number, of
        raise ValueError(f"{self.graph.name}: {key} has no output {output} of type {kind} for {item.key}.{name}")

    def values(self, item: Item) -> dict[str, Any]:
        """All widgets of a node with their values."""
        return {name: item.values.get(name, default) for name, default in self.kinds[item.type].widgets}

    def prompt(self) -> dict[str, Any]:
        """The graph as the API takes it."""
        nodes = {}
        for item in self.items:
            inputs: dict[str, Any] = self.values(item) | API_ONLY.get(item.type, {})
            for link in self.links:
                if link[3] == self.ids[item.key]:
                    inputs[self.kinds[item.type].sockets[link[4]][0]] = [str(link[1]), link[2]]
            nodes[str(self.ids[item.key])] = {
                "class_type": item.type,
                "inputs": inputs,
                "_meta": {"title": item.title or display_name(item.type)},
            }
        return nodes

    def workflow(self) -> dict[str, Any]:
        """The graph as the browser saves it, but without an id: each copy that is opened gets one of its own there, and
        shows no results of another."""
        note = self._note(self.first)
        scale, offset = view(self.layout.boxes.values())
        return {
            "revision": 0,
            "last_node_id": max(self.ids.values()),
            "last_link_id": self.first + len(self.links),
            "nodes": [note, *(self._node(item) for item in self.items)],
            "links": self.links,
            "groups": self.groups(),
            "config": {},
            "extra": {"ds": {"scale": scale, "offset": offset}, **self._app()},
            "version": 0.4,
        }

    def groups(self) -> list[dict[str, Any]]:
        """The frames."""
        look = {"color": "#3f789e", "font_size": 20, "flags": {}}
        return [
            {"id": number, "title": title, "bounding": box.bounding(), **look}
            for number, (title, box) in enumerate(self.layout.groups, self.first + 1)
        ]

    def _node(self, item: Item) -> dict[str, Any]:
        kind, number = self.kinds[item.type], self.ids[item.key]
        into = {link[4]: link[0] for link in self.links if link[3] == number}
        inputs = [
            {"name": name, "type": type_, "link": into.get(slot), **({"shape": 7} if optional else {})}
            for slot, (name, type_, optional) in enumerate(kind.sockets)
        ]
        outputs = []
        for slot, (name, type_) in enumerate(kind.outputs):
            feeds = [link[0] for link in self.links if (link[1], link[2]) == (number, slot)]
            outputs.append({"name": name, "type": type_, "links": feeds or None})
        ours = item.type not in CORE
        properties: dict[str, Any] = {
            "cnr_id": "live-avatar" if ours else "comfy-core",
            "ver": version() if ours else CORE_VERSION,
            "Node name for S&R": item.type,
        }
        if item.models:
            properties["models"] = list(item.models)
        box = self.layout.boxes[item.key]
        return {
            **_frame(number, item.type, box, order=number - self.first),
            **({"title": item.title} if item.title else {}),
            "inputs": inputs,
            "outputs": outputs,
            "properties": properties,
            "widgets_values": self._widget_values(item, kind),
        }

    def _widget_values(self, item: Item, kind: Kind) -> list[Any]:
        placed: list[Any] = []
        for name, value in self.values(item).items():
            placed += [value, "fixed"] if name == kind.seed else [value]
        return [*placed, *kind.extra]

    def _app(self) -> dict[str, Any]:
        """What ComfyUI's app mode shows; cores without it read past this."""
        given, made = self.graph.app
        if not made:
            return {}
        inputs = [[str(self.ids[key]), widget] for key, _, widget in (name.partition(".") for name in given)]
        return {"linearData": {"inputs": inputs, "outputs": [str(self.ids[key]) for key in made]}}

    def _note(self, number: int) -> dict[str, Any]:
        return {
            **_frame(number, "MarkdownNote", self.layout.boxes[NOTE], order=0),
            "title": READ_ME[1][0].title,
            "inputs": [],
            "outputs": [],
            "properties": {},
            "widgets_values": [self.graph.note],
            "color": "#222",
            "bgcolor": "#000",
        }


def _frame(number: int, kind: str, box: Box, order: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": kind,
        "pos": [box.left, box.top],
        "size": [box.width, box.height],
        "flags": {},
        "order": order,
        "mode": 0,
    }
