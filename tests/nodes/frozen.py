"""What saved graphs rely on: the nodes' inputs and outputs in one small shape, from a schema or from /object_info.

`schema.json` beside this file holds that shape for every node. `tools/freeze_nodes.py` writes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("schema.json")
WIDGETS = {"BOOLEAN", "INT", "FLOAT", "STRING", "COMBO"}

Node = dict[str, list[dict[str, Any]]]
"""{"inputs": [{"id", "type", and where given "optional", "default", "options", "control_after_generate", "replaces"}],
"outputs": [{"name", "type"}]}"""


def read() -> dict[str, Node]:
    """The frozen nodes, by id."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def written(nodes: dict[str, Node]) -> str:
    """The text of schema.json."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {_written(node)}" for name, node in nodes.items()) + "\n}\n"


def _written(node: Node) -> str:
    """One slot a line, so that a change is one line of a diff."""
    return "{\n" + ",\n".join(f' "{side}": {_lines(node[side])}' for side in ("inputs", "outputs")) + "\n}"


def _lines(slots: list[dict[str, Any]]) -> str:
    lines = [f"  {json.dumps(slot, ensure_ascii=False)}" for slot in slots]
    return "[\n" + ",\n".join(lines) + "\n ]" if lines else "[]"


def of_schema(schema: Any) -> Node:
    """The shape of a recorded schema."""
    inputs = [_input(s.id, s.io_type, s.optional, s.options_given()) for s in schema.inputs]
    return {"inputs": inputs, "outputs": [{"name": s.display_name, "type": s.io_type} for s in schema.outputs]}


def of_object_info(info: dict[str, Any]) -> Node:
    """The shape of one node in a server's /object_info."""
    inputs = [
        _input(name, kind, group == "optional", options)
        for group in ("required", "optional")
        for given, (of, its) in info["input"].get(group, {}).items()
        for name, kind, options in _sockets(given, of, its)
    ]
    outputs = zip(info["output_name"], info["output"], strict=True)
    return {"inputs": inputs, "outputs": [{"name": name, "type": kind} for name, kind in outputs]}


def _sockets(name: str, kind: str, options: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """An input as name, type and options; one that grows as the sockets with which it begins."""
    if kind != "COMFY_AUTOGROW_V3":
        return [(name, kind, options)]
    template = options["template"]
    ((of, its),) = (one for group in template["input"].values() for one in group.values())
    return [(f"{name}.{socket}", of, its) for socket in template["names"][: template["min"] + 1]]


def _input(name: str, kind: str, optional: bool, given: dict[str, Any]) -> dict[str, Any]:
    keys = ("default", "options", "control_after_generate", "replaces")
    kept = {key: given[key] for key in keys if given.get(key) is not None}
    return {"id": name, "type": kind, **({"optional": True} if optional else {}), **kept}


def changes(frozen: dict[str, Node], now: dict[str, Node]) -> list[str]:
    """What would break saved graphs: everything but new nodes, optional inputs put last, outputs put last, new choices
    in a list, further types in a socket, and a choice in place of a switch whose positions it still understands
    ("replaces").

    Choices are held as a subset because lists of files differ between machines.
    """
    found = [f"{name} is gone" for name in frozen.keys() - now.keys()]
    for name in frozen.keys() & now.keys():
        found += [f"{name}: {text}" for text in _inputs_changed(frozen[name]["inputs"], now[name]["inputs"])]
        before, after = frozen[name]["outputs"], now[name]["outputs"]
        if after[: len(before)] != before:
            found.append(f"{name}: outputs {before} became {after}")
    return found


def _inputs_changed(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    found = []
    if [i["id"] for i in after[: len(before)]] != [i["id"] for i in before]:
        return [f"inputs {[i['id'] for i in before]} became {[i['id'] for i in after]}: only append"]
    for old, new in zip(before, after, strict=False):
        if old["type"] == "BOOLEAN" and new.get("replaces", {}).keys() == {"true", "false"}:
            default = new["replaces"][json.dumps(old["default"])]
            old = {**old, "type": "COMBO", "default": default, "replaces": new["replaces"]}
        if {*old["type"].split(",")} <= {*new["type"].split(",")}:
            old = {**old, "type": new["type"]}
        lost = [choice for choice in old.get("options", []) if choice not in new.get("options", [])]
        if lost:
            found.append(f"{old['id']} lost the choices {lost}")
        if {**old, "options": None} != {**new, "options": None}:
            found.append(f"{old['id']} was {old} and is {new}")
    found += [f"the new input {new['id']} is not optional" for new in after[len(before) :] if not new.get("optional")]
    return found


def widgets(node: Node) -> list[dict[str, Any]]:
    """Inputs with a widget, in the order of widgets_values (without the extra entry behind a seed)."""
    ordered = sorted(node["inputs"], key=lambda i: bool(i.get("optional")))
    return [i for i in ordered if i["type"] in WIDGETS]
