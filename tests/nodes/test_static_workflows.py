"""The example graphs open and run wherever this pack is installed: nothing in them is foreign, broken or stale."""

import json
import re

import frozen
import pytest
import tomllib
from fake_comfy import PROJECT
from PIL import Image

from tools import workflow_drawing, workflow_graphs, workflow_kinds, workflows

FOLDER = PROJECT / "workflows"
EXPECTED = [
    *("01_quickstart", "02_speak_or_tts", "03_several_voices", "04_modular", "05_16gb_card", "06_24gb_card"),
    *("07_32gb_card", "08_80gb_card", "09_two_24gb_cards", "10_four_24gb_cards", "11_five_80gb_cards"),
    *("12_core_encoders", "13_live", "14_two_speakers"),
]
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
NODES = frozen.read()
NOTES = {"MarkdownNote"}


def graph(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def prompt(name: str) -> dict:
    """The API twin, which has no place in a list."""
    return json.loads((FOLDER / "api" / f"{name[3:]}.json").read_text(encoding="utf-8"))


def test_comfyui_finds_no_second_folder_of_templates():
    """Of folders by these names it serves only one, and lists the files of all."""
    names = ("example_workflows", "example", "examples", "workflow", "workflows")
    assert [name for name in names if (PROJECT / name).exists()] == ["workflows"]


def test_all_examples_are_there_each_with_its_api_twin_and_thumbnail():
    assert NAMES == EXPECTED
    assert sorted(p.stem for p in (FOLDER / "api").iterdir()) == sorted(name[3:] for name in EXPECTED)
    assert sorted(p.stem for p in FOLDER.glob("*.jpg")) == EXPECTED
    for name in NAMES:
        with Image.open(FOLDER / f"{name}.jpg") as picture:
            assert picture.width == picture.height >= 512, "ComfyUI cuts them to squares"
        assert (FOLDER / f"{name}.jpg").stat().st_size < 200_000


def test_each_is_told_from_the_others_by_a_sentence():
    sentences = [graph.sentence for graph in workflow_graphs.GRAPHS]
    assert len(set(sentences)) == len(EXPECTED) and all(20 < len(one) < 90 for one in sentences)


def test_the_files_are_what_their_descriptions_make():
    for name, text in workflows.files().items():
        written = (PROJECT / name).read_text(encoding="utf-8")
        assert written == text, f"{name} is stale: run `python -m tools.workflows`"


@pytest.mark.parametrize("name", NAMES)
def test_every_node_is_ours_or_cores_and_says_whose(name):
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    for node in graph(name)["nodes"]:
        if node["type"] in NOTES:
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
        assert start["type"] == kind and kind in end["type"].split(",")
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
        if node["type"] in NOTES:
            continue
        inputs = dict(zip(widget_names(node["type"]), node["widgets_values"], strict=True))
        inputs.pop("", None)
        inputs |= workflow_kinds.API_ONLY.get(node["type"], {})
        inputs |= {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        made[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": twin[str(node["id"])]["_meta"]}
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
    for text in ((FOLDER / f"{name}.json").read_text("utf-8"), json.dumps(prompt(name))):
        assert not re.search(r'"(?:/|~|[A-Za-z]:\\\\|\.\./|\\\\\\\\)', text), "an absolute path"
        assert "localhost" not in text and "127.0.0.1" not in text


def test_no_two_graphs_share_an_id():
    """What ComfyUI keeps by id does not meet when one is pasted beside another."""
    contents = [graph(name) for name in NAMES]
    for ids in (
        [node["id"] for content in contents for node in content["nodes"]],
        [link[0] for content in contents for link in content["links"]],
        [group["id"] for content in contents for group in content["groups"]],
    ):
        assert len(set(ids)) == len(ids)
    assert not any("id" in content for content in contents), "each copy that is opened gets an id of its own"


@pytest.mark.parametrize("name", NAMES)
def test_names_of_nodes_are_left_to_the_language_and_other_words_are_in_both(name):
    content = graph(name)
    assert [node["type"] for node in content["nodes"] if "title" in node] == ["MarkdownNote"]
    (note,) = (node for node in content["nodes"] if node["type"] in NOTES)
    words = [group["title"] for group in content["groups"]] + [note["title"], note["widgets_values"][0]]
    for one in words:
        assert re.search("[a-z]", one) and re.search("[\u4e00-\u9fff]", one), one


@pytest.mark.parametrize("name", NAMES)
def test_a_note_names_widgets_and_nodes_that_are_there(name):
    """What is set in bold or italics and is no template is a word of the graph or of ComfyUI."""
    (note,) = (node for node in graph(name)["nodes"] if node["type"] in NOTES)
    text = note["widgets_values"][0]
    assert len(text) > 200
    for template in re.findall(r"template \*(\w+)\*", text):
        assert any(other[3:] == template for other in NAMES), template


def test_what_app_mode_shows_is_there():
    content = graph("01_quickstart")
    data = content["extra"]["linearData"]
    nodes = {str(node["id"]): node for node in content["nodes"]}
    assert [widget for _, widget in data["inputs"]] == ["prompt", "seed", "seconds"]
    for number, widget in data["inputs"]:
        assert widget in widget_names(nodes[number]["type"])
    assert [nodes[number]["type"] for number in data["outputs"]] == ["SaveVideo"]
    assert "linearMode" not in content["extra"], "it opens as a graph"


def test_the_first_graphs_need_no_download_and_stay_small():
    for name in ("01_quickstart", "04_modular"):
        nodes = prompt(name)
        model = next(n for n in nodes.values() if n["class_type"] == "LiveAvatarLoadModel")
        assert model["inputs"]["model"] == workflow_graphs.MINIATURE
        sizes = {n["inputs"]["size"] for n in nodes.values() if "size" in n["inputs"]}
        assert sizes == {"128x128"}
        assert not {n["class_type"] for n in nodes.values()} & {"LoadImage", "LoadAudio"}, "a file to find"
    assert len(prompt("01_quickstart")) == 4
    assert len(prompt("04_modular")) == 8
    assert max(len(prompt(name)) for name in NAMES) <= 11
