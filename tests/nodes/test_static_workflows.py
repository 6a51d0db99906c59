"""The example graphs open and run wherever this pack is installed: nothing in them is foreign, broken or stale."""

import json
import re

import frozen
import pytest
import tomllib
from fake_comfy import PROJECT
from PIL import Image

from tools import workflow_drawing, workflow_kinds, workflow_layout, workflows

FOLDER = PROJECT / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
EXPECTED = [
    *("16gb_card", "24gb_card", "80gb_card", "core_encoders", "five_80gb_cards", "four_24gb_cards", "modular"),
    *("quickstart", "two_24gb_cards"),
]
NODES = frozen.read()
SERIALIZED_WITH_NOTES = {"MarkdownNote"}
GAP = 60


def graph(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def prompt(name: str) -> dict:
    return json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))


def rectangles(content: dict) -> list[tuple[str, float, float, float, float]]:
    """Type, left, top, right and bottom of every node, with its title bar."""
    found = []
    for node in content["nodes"]:
        (left, top), (width, height) = node["pos"], node["size"]
        found.append((node["type"], left, top - workflow_layout.TITLE, left + width, top + height))
    return found


def test_all_examples_are_there_each_with_its_api_twin_and_thumbnail():
    assert NAMES == EXPECTED
    assert sorted(p.stem for p in (FOLDER / "api").iterdir()) == EXPECTED
    for name in NAMES:
        with Image.open(FOLDER / f"{name}.jpg") as picture:
            assert picture.width >= 512 and 1.2 < picture.width / picture.height < 2
        assert (FOLDER / f"{name}.jpg").stat().st_size < 200_000


def test_the_files_are_what_their_descriptions_make():
    for name, text in workflows.files().items():
        written = (FOLDER / name).read_text(encoding="utf-8")
        assert written == text, f"workflows/{name} is stale: run `python -m tools.workflows`"


@pytest.mark.parametrize("name", NAMES)
def test_every_node_is_ours_or_cores_and_says_whose(name):
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    for node in graph(name)["nodes"]:
        if node["type"] in SERIALIZED_WITH_NOTES:
            continue
        properties = node["properties"]
        owner = ("live-avatar", version) if node["type"] in NODES else ("comfy-core", workflow_drawing.CORE_VERSION)
        assert node["type"] in NODES or node["type"] in workflow_kinds.CORE, f"{node['type']} is of another pack"
        assert (properties["cnr_id"], properties["ver"]) == owner
        assert properties["Node name for S&R"] == node["type"]


@pytest.mark.parametrize("name", NAMES)
def test_links_join_sockets_of_one_type_and_both_ends_know_them(name):
    content = graph(name)
    nodes = {node["id"]: node for node in content["nodes"]}
    assert len(nodes) == len(content["nodes"]) and max(nodes) == content["last_node_id"]
    known = {link[0] for link in content["links"]}
    assert len(known) == len(content["links"]) and content["last_link_id"] == max(known)
    for number, source, output, target, slot, kind in content["links"]:
        start, end = nodes[source]["outputs"][output], nodes[target]["inputs"][slot]
        assert number in start["links"] and end["link"] == number
        assert start["type"] == end["type"] == kind
    used = [number for node in nodes.values() for out in node["outputs"] for number in out["links"] or []]
    used_in = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None]
    assert sorted(used) == sorted(used_in) == sorted(known)


@pytest.mark.parametrize("name", NAMES)
def test_our_nodes_have_the_frozen_sockets_and_one_value_per_widget(name):
    for node in graph(name)["nodes"]:
        if node["type"] not in NODES:
            continue
        ours = NODES[node["type"]]
        widgets = frozen.widgets(ours)
        seeds = sum(1 for widget in widgets if widget.get("control_after_generate"))
        assert len(node["widgets_values"]) == len(widgets) + seeds
        sockets = [(i["id"], i["type"]) for i in ours["inputs"] if i["type"] not in frozen.WIDGETS]
        assert [(i["name"], i["type"]) for i in node["inputs"]] == sockets
        assert [(o["name"], o["type"]) for o in node["outputs"]] == [(o["name"], o["type"]) for o in ours["outputs"]]
        optional = {i["id"] for i in ours["inputs"] if i.get("optional")}
        assert {i["name"] for i in node["inputs"] if i["link"] is None} <= optional


def widget_names(kind: str) -> list[str]:
    """Names along widgets_values; "" for entries that are no inputs."""
    if kind not in NODES:
        return [*dict(workflow_kinds.CORE[kind].widgets), *[""] * len(workflow_kinds.CORE[kind].extra)]
    names = []
    for widget in frozen.widgets(NODES[kind]):
        names += [widget["id"], ""] if widget.get("control_after_generate") else [widget["id"]]
    return names


@pytest.mark.parametrize("name", NAMES)
def test_graph_and_api_twin_are_one_prompt(name):
    content, twin = graph(name), prompt(name)
    sources = {link[0]: [str(link[1]), link[2]] for link in content["links"]}
    made = {}
    for node in content["nodes"]:
        if node["type"] in SERIALIZED_WITH_NOTES:
            continue
        inputs = dict(zip(widget_names(node["type"]), node["widgets_values"], strict=True))
        inputs.pop("", None)
        inputs |= workflow_kinds.API_ONLY.get(node["type"], {})
        inputs |= {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        made[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": node["title"]}}
    assert twin == made


@pytest.mark.parametrize("name", NAMES)
def test_choices_in_our_lists_exist(name):
    """Lists without files in them: who runs, what memory does, precision, fit, sink."""
    for node in prompt(name).values():
        for given in NODES.get(node["class_type"], {"inputs": []})["inputs"]:
            if len({*given.get("options", [])} - {"none", "tiny", "full"}) > 1:
                assert node["inputs"][given["id"]] in given["options"]


@pytest.mark.parametrize("name", NAMES)
def test_downloads_name_file_address_and_folder(name):
    for node in graph(name)["nodes"]:
        for model in node["properties"].get("models", []):
            assert set(model) == {"name", "url", "directory"}
            assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(f"/{model['name']}")
            assert model["name"].endswith(".safetensors") and "/" not in model["directory"]
            assert any(model["name"] in str(value) for value in node["widgets_values"]), "an unused download is offered"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_points_to_one_machine(name):
    for text in ((FOLDER / f"{name}.json").read_text("utf-8"), (FOLDER / "api" / f"{name}.json").read_text("utf-8")):
        assert not re.search(r'"(?:/|~|[A-Za-z]:\\\\|\.\./|\\\\\\\\)', text), "an absolute path"
        assert "localhost" not in text and "127.0.0.1" not in text


@pytest.mark.parametrize("name", NAMES)
def test_nodes_keep_their_distance(name):
    """Nodes 2.0 draws them larger."""
    placed = rectangles(graph(name))
    for number, (kind, left, top, right, bottom) in enumerate(placed):
        for other, a, b, c, d in placed[number + 1 :]:
            apart = max(a - right, left - c, b - bottom, top - d)
            assert apart >= GAP, f"{kind} and {other} are {apart} apart"


@pytest.mark.parametrize("name", NAMES)
def test_a_note_explains_and_groups_hold_every_other_node_once(name):
    content = graph(name)
    notes = [node for node in content["nodes"] if node["type"] in SERIALIZED_WITH_NOTES]
    assert len(notes) == 1 and len(notes[0]["widgets_values"][0]) > 200
    frames = [group["bounding"] for group in content["groups"]]
    for kind, left, top, right, bottom in rectangles(content):
        holding = [f for f in frames if f[0] < left and f[1] < top and f[0] + f[2] > right and f[1] + f[3] > bottom]
        assert len(holding) == (kind not in SERIALIZED_WITH_NOTES), kind


def test_the_first_graphs_need_no_download_and_stay_small():
    for name in ("quickstart", "modular"):
        nodes = prompt(name)
        model = next(n for n in nodes.values() if n["class_type"] == "LiveAvatarLoadModel")
        assert model["inputs"]["model"] == "miniature (comes along)"
        sizes = {n["inputs"]["size"] for n in nodes.values() if "size" in n["inputs"]}
        assert sizes == {"128x128"}
        assert not {n["class_type"] for n in nodes.values()} & {"LoadImage", "LoadAudio"}, "a file to find"
    assert len(prompt("quickstart")) == 4
    assert len(prompt("modular")) == 9
    assert max(len(prompt(name)) for name in NAMES) <= 11
