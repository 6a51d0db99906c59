"""The nodes as saved graphs, search and tooltips see them."""

import copy
import re

import fake_comfy
import frozen
import pytest


@pytest.fixture
def schemas(nodes):
    return {name: node.define_schema() for name, node in nodes.items()}


def test_saved_graphs_keep_working(schemas):
    now = {name: frozen.of_schema(schema) for name, schema in schemas.items()}
    assert not frozen.changes(frozen.read(), now)
    assert now == frozen.read(), "an addition: write it down with `python -m tools.freeze_nodes`"


def test_optional_inputs_stand_last(schemas):
    """/object_info lists required inputs first, and so do graphs: in another order the two would differ."""
    for name, schema in schemas.items():
        optional = [slot.optional for slot in schema.inputs]
        assert optional == sorted(optional), name


def test_everything_says_what_it_is_for(schemas):
    for name, schema in schemas.items():
        assert schema.category == "Live Avatar" and schema.display_name, name
        assert len(schema.description) > 60 and schema.description.endswith("."), name
        for slot in [*schema.inputs, *schema.outputs]:
            assert slot.tooltip and slot.tooltip.endswith("."), f"{name}.{slot.id or slot.display_name}"
        assert all(slot.display_name for slot in schema.outputs), f"{name}: an output without a name"


def test_ids_speak_one_language(schemas):
    for name, schema in schemas.items():
        assert re.fullmatch(r"LiveAvatar[A-Z][A-Za-z]+", name)
        assert all(re.fullmatch(r"[a-z][a-z_]*", slot.id) for slot in schema.inputs), name


def test_execute_takes_exactly_the_declared_inputs(nodes):
    for name, node in nodes.items():
        code = node.execute.__func__.__code__
        taken = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
        assert list(taken) == [slot.id for slot in node.define_schema().inputs], name


def test_numbers_start_within_their_range_and_choices_in_their_list(schemas):
    for name, schema in schemas.items():
        for slot in schema.inputs:
            given = slot.given
            if slot.io_type in ("INT", "FLOAT"):
                assert given["min"] <= given["default"] <= given["max"], f"{name}.{slot.id}"
            elif slot.io_type == "COMBO":
                assert given["default"] == given["options"][0], f"{name}.{slot.id}: the first choice is the usual one"


def test_only_reports_and_what_is_saved_run_for_their_own_sake(schemas):
    outputs = {name for name, schema in schemas.items() if schema.is_output_node}
    assert outputs == {"LiveAvatarPlan", "LiveAvatarSaveState", "LiveAvatarMeter"}


def frozen_pair():
    before = {"A": {"inputs": [{"id": "x", "type": "INT", "default": 1}], "outputs": [{"name": "o", "type": "IMAGE"}]}}
    return before, copy.deepcopy(before)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda n: n.pop("A"),
        lambda n: n["A"]["inputs"].insert(0, {"id": "new", "type": "INT", "optional": True}),
        lambda n: n["A"]["inputs"].append({"id": "new", "type": "INT"}),
        lambda n: n["A"]["inputs"][0].update(type="FLOAT"),
        lambda n: n["A"]["inputs"][0].update(default=2),
        lambda n: n["A"]["inputs"][0].update(id="y"),
        lambda n: n["A"]["inputs"].clear(),
        lambda n: n["A"]["outputs"].insert(0, {"name": "p", "type": "MASK"}),
        lambda n: n["A"]["outputs"].clear(),
    ],
)
def test_the_freeze_sees_what_breaks_graphs(break_it):
    before, now = frozen_pair()
    break_it(now)
    assert frozen.changes(before, now)


def test_the_freeze_allows_what_does_not():
    before, now = frozen_pair()
    now["A"]["inputs"].append({"id": "new", "type": "INT", "optional": True, "default": 0})
    now["A"]["outputs"].append({"name": "p", "type": "MASK"})
    now["B"] = {"inputs": [], "outputs": []}
    assert not frozen.changes(before, now)


def test_a_switch_may_become_a_choice_that_understands_it():
    before, now = ({"A": {"inputs": [{"id": "x", **slot}], "outputs": []}} for slot in (SWITCH, CHOICE))
    assert not frozen.changes(before, now)
    for broken in ({"replaces": {"true": "on"}}, {"default": "on"}, {"optional": False}):
        changed = {"A": {"inputs": [{"id": "x", **CHOICE, **broken}], "outputs": []}}
        assert frozen.changes(before, changed), broken


SWITCH = {"type": "BOOLEAN", "optional": True, "default": False}
CHOICE = {
    "type": "COMBO",
    "optional": True,
    "default": "off",
    "options": ["off", "on"],
    "replaces": {"true": "on", "false": "off"},
}


def test_object_info_has_the_same_shape(schemas):
    """A server's answer is read into what the recorder records."""
    schema = schemas["LiveAvatarLoadModel"]
    groups = {"required": {}, "optional": {}}
    for slot in schema.inputs:
        groups["optional" if slot.optional else "required"][slot.id] = [slot.io_type, slot.options_given()]
    info = {
        "input": groups,
        "output": [slot.io_type for slot in schema.outputs],
        "output_name": [slot.display_name for slot in schema.outputs],
    }
    assert frozen.of_object_info(info) == frozen.of_schema(schema)


def test_a_node_runs_with_its_declared_inputs_only(nodes):
    with pytest.raises(TypeError, match="unknown"):
        fake_comfy.run(nodes["LiveAvatarBackend"], nonsense=1)
