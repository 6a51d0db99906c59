"""The stand-in for comfy_api refuses what an old ComfyUI would refuse, and allows nothing a new one has dropped."""

import ast
import os
from pathlib import Path

import fake_comfy
import pytest


@pytest.fixture
def io():
    return fake_comfy.modules()["comfy_api.v0_0_2"].io


def test_unknown_types_and_keywords_are_refused(io):
    with pytest.raises(AttributeError, match="DynamicCombo"):
        _ = io.DynamicCombo
    with pytest.raises(TypeError, match="advanced"):
        io.Int.Input("steps", advanced=True)
    with pytest.raises(TypeError, match="extra_dict"):
        io.Int.Input("steps", extra_dict={})
    with pytest.raises(TypeError, match="default"):
        io.Image.Input("image", default=None)
    with pytest.raises(TypeError, match="optional"):
        io.Image.Output(optional=True)
    with pytest.raises(TypeError, match="search_aliases"):
        io.Schema(node_id="X", search_aliases=[])
    with pytest.raises(ValueError, match="two inputs"):
        io.Schema(node_id="X", inputs=[io.Int.Input("a"), io.Int.Input("a")])


def test_a_node_class_cannot_be_written_to(io):
    class Node(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="X")

        @classmethod
        def execute(cls):
            cls.seen = 1

    with pytest.raises(AttributeError, match="locked"):
        fake_comfy.run(Node)


def signatures(tree: ast.Module) -> dict[str, set[str]]:
    """Keywords of `Input` and `Output` in each class of core's io module, with those of their bases."""
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}

    def arguments(cls: ast.ClassDef) -> set[str]:
        init = next((f for f in cls.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
        if init:
            return {a.arg for a in [*init.args.args, *init.args.kwonlyargs]} - {"self", "id"}
        return arguments(classes[cls.bases[0].id]) if cls.bases and isinstance(cls.bases[0], ast.Name) else set()

    plain = {side: arguments(classes[side]) for side in ("Input", "Output")}
    found = {}
    for name, cls in classes.items():
        inner = {n.name: n for n in cls.body if isinstance(n, ast.ClassDef)}
        for side in plain:
            found[f"{name}.{side}"] = arguments(inner[side]) if side in inner else plain[side]
    return found


def test_a_real_core_takes_all_that_the_recorder_takes():
    root = os.environ.get("COMFYUI_PATH")
    if not root:
        pytest.skip("COMFYUI_PATH names no ComfyUI to compare with")
    tree = ast.parse((Path(root) / "comfy_api" / "latest" / "_io.py").read_text(encoding="utf-8"))
    real = signatures(tree)
    for name, (_, known) in fake_comfy.WIDGETS.items():
        assert known <= real[f"{name}.Input"], name
    for name in fake_comfy.SOCKETS:
        assert real[f"{name}.Input"] >= fake_comfy.EVERY_INPUT, name
        assert real[f"{name}.Output"] >= fake_comfy.EVERY_OUTPUT - {"id"}, name
    schema = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Schema")
    fields = {n.target.id for n in schema.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    assert fields >= set(fake_comfy.Schema.__dataclass_fields__)
