"""The example workflows pass `comfy workflow validate` against the nodes as they are frozen; no server is needed.

tests/comfy asks it again with what a running ComfyUI says of its nodes.
"""

import json
from pathlib import Path

import frozen
import pytest
from comfy_command import workflow_errors
from fake_comfy import PROJECT

from tools import workflow_kinds

WORKFLOWS = sorted((PROJECT / "workflows").rglob("*.json"))
WORDS = {"none", "full", "tiny"}
"""Choices of lists of files that are no files, besides "automatic"."""
TYPES = {bool: "BOOLEAN", int: "INT", float: "FLOAT", str: "STRING"}


def name_of(path: Path) -> str:
    return path.relative_to(PROJECT / "workflows").as_posix()


def values(path: Path) -> dict[str, set[str]]:
    """Texts that the workflows give, by the input they are given to: lists of files differ between machines."""
    found: dict[str, set[str]] = {}
    for twin in (path / "api").glob("*.json"):
        for node in json.loads(twin.read_text(encoding="utf-8")).values():
            for name, value in node["inputs"].items():
                if isinstance(value, str):
                    found.setdefault(f"{node['class_type']}.{name}", set()).add(value)
    return found


def info(name: str, inputs: dict[str, dict], outputs: list[tuple[str, str]]) -> dict:
    """A node as /object_info has it."""
    return {
        "name": name,
        "input": inputs,
        "input_order": {group: list(slots) for group, slots in inputs.items()},
        "output": [kind for _, kind in outputs],
        "output_name": [name for name, _ in outputs],
        "output_is_list": [False] * len(outputs),
        "output_node": not outputs,
        "category": "",
        "python_module": "",
    }


def ours(name: str, node: frozen.Node, given: dict[str, set[str]]) -> dict:
    inputs: dict[str, dict] = {"required": {}, "optional": {}}
    for slot in node["inputs"]:
        options = {key: slot[key] for key in ("default", "control_after_generate") if key in slot}
        if slot["type"] == "COMBO":
            known = slot["options"]
            files = given.get(f"{name}.{slot['id']}", set()) if len({*known} - WORDS) == 1 else set()
            options["options"] = [*known, *sorted(files - set(known))]
        inputs["optional" if slot.get("optional") else "required"][slot["id"]] = [slot["type"], options]
    return info(name, inputs, [(output["name"], output["type"]) for output in node["outputs"]])


def cores(name: str, kind: workflow_kinds.Kind, given: dict[str, set[str]]) -> dict:
    slots = {socket: [of, {}] for socket, of, _ in kind.sockets}
    for widget, default in kind.widgets:
        choices = sorted(given.get(f"{name}.{widget}", ()))
        slots[widget] = ["COMBO", {"options": choices}] if choices else [TYPES[type(default)], {}]
    return info(name, {"required": slots}, list(kind.outputs))


@pytest.fixture(scope="module")
def object_info(tmp_path_factory) -> Path:
    """A saved /object_info of the frozen nodes and the core nodes that the workflows use."""
    given = values(PROJECT / "workflows")
    nodes = {name: ours(name, node, given) for name, node in frozen.read().items()}
    nodes |= {name: cores(name, kind, given) for name, kind in workflow_kinds.CORE.items()}
    file = tmp_path_factory.mktemp("info") / "object_info.json"
    file.write_text(json.dumps(nodes), encoding="utf-8")
    return file


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=name_of)
def test_workflows_validate(workflow, object_info, tmp_path):
    assert not workflow_errors(workflow, object_info, tmp_path)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda node: node.update(class_type="LiveAvatarGone"), "unknown_class_type"),
        (lambda node: node["inputs"].update(model=["101", 0]), "edge_type_mismatch"),
        (lambda node: node["inputs"].pop("image"), "required_input_missing"),
    ],
    ids=["class", "link", "input"],
)
def test_the_command_sees_what_is_wrong(damage, code, object_info, tmp_path):
    prompt = json.loads((PROJECT / "workflows" / "api" / "quickstart.json").read_text(encoding="utf-8"))
    damage(next(node for node in prompt.values() if node["class_type"] == "LiveAvatarGenerate"))
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(prompt), encoding="utf-8")
    assert [error["code"] for error in workflow_errors(broken, object_info, tmp_path)] == [code]
