"""The example graphs can be read when they open: large enough, nothing over another, no wire behind a node."""

import json

import pytest
from fake_comfy import PROJECT

from tools import workflow_layout
from tools.workflow_blueprint import Blueprint
from tools.workflow_drawing import Drawing
from tools.workflow_graphs import GRAPHS, NOTE
from tools.workflow_layout import CAPTION, GAP, INSET, TITLE

WINDOW, FITTED = (1500, 800), 0.75
"""A small window, and how much of it ComfyUI fills with a template; 10 pixels stay around the nodes."""
DRAWINGS = {graph.name: Drawing(graph) for graph in GRAPHS}
NAMES = list(DRAWINGS)


def rectangles(drawing: Drawing) -> dict[str, tuple[int, int, int, int]]:
    """Left, top, right and bottom of every node, with its title bar."""
    return {
        key: (box.left, box.top - TITLE, box.left + box.width, box.bottom) for key, box in drawing.layout.boxes.items()
    }


def scale(drawing: Drawing) -> float:
    """At which ComfyUI opens it."""
    lefts, tops, rights, bottoms = zip(*rectangles(drawing).values(), strict=True)
    width, height = max(rights) - min(lefts) + 20, max(bottoms) - min(tops) + 20
    return FITTED * min(WINDOW[0] / width, WINDOW[1] / height)


def behind(drawing: Drawing) -> list[tuple[str, str, str]]:
    """Wires that run behind nodes: from, to, behind. A wire may touch its own nodes only where their dots are."""
    keys = {number: key for key, number in drawing.ids.items()}
    boxes, found = drawing.layout.boxes, []
    for _, source, output, target, slot, _ in drawing.links:
        ends = (keys[source], keys[target])
        curve = workflow_layout.wire(boxes[ends[0]].output(output), boxes[ends[1]].input(slot))
        for key, (left, top, right, bottom) in rectangles(drawing).items():
            margin = INSET + 1 if key in ends else -4
            if any(left + margin < x < right - margin and top + margin < y < bottom - margin for x, y in curve):
                found.append((*ends, key))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_so_large_that_words_are_drawn(name):
    drawing = DRAWINGS[name]
    assert scale(drawing) >= (0.75 if name in ("quickstart", "speak_or_tts") else 0.6)
    assert drawing.workflow()["extra"]["ds"]["scale"] == round(scale(drawing), 4), "older frontends take the file's"


@pytest.mark.parametrize("name", NAMES)
def test_no_wire_runs_behind_a_node(name):
    assert behind(DRAWINGS[name]) == []


def test_a_wire_behind_a_node_would_be_found():
    """In the graph of 24 GB, a node moved under the wires to Live Avatar."""
    drawing = Drawing(next(graph for graph in GRAPHS if graph.name == "24gb_card"))
    box = drawing.layout.boxes["plan"]
    drawing.layout.boxes["plan"] = workflow_layout.Box(box.left, 150, box.width, box.height)
    assert {key for _, _, key in behind(drawing)} == {"plan"}


def test_nothing_is_over_another_in_the_blueprint_either():
    drawing = Blueprint()
    assert behind(drawing) == []
    distances(drawing)


@pytest.mark.parametrize("name", NAMES)
def test_nodes_keep_their_distance(name):
    distances(DRAWINGS[name])


def distances(drawing: Drawing) -> None:
    placed = list(rectangles(drawing).items())
    for number, (key, (left, top, right, bottom)) in enumerate(placed):
        for other, (a, b, c, d) in placed[number + 1 :]:
            apart = max(a - right, left - c, b - bottom, top - d)
            assert apart >= GAP, f"{key} and {other} are {apart} apart"


@pytest.mark.parametrize("name", NAMES)
def test_groups_hold_every_node_but_the_note_hug_them_and_do_not_meet(name):
    drawing = DRAWINGS[name]
    groups = [(title, b.left, b.top, b.left + b.width, b.bottom) for title, b in drawing.layout.groups]
    held = []
    for number, (title, left, top, right, bottom) in enumerate(groups):
        inside = {
            key: box
            for key, box in rectangles(drawing).items()
            if left < box[0] and top < box[1] and right > box[2] and bottom > box[3]
        }
        held += inside
        assert inside, f"{title} is empty"
        lefts, tops, rights, bottoms = zip(*inside.values(), strict=True)
        spare = (min(lefts) - left, min(tops) - top - CAPTION, right - max(rights), bottom - max(bottoms))
        assert all(0 <= one <= 20 for one in spare), (title, spare)
        for other, a, b, c, d in groups[number + 1 :]:
            assert max(a - right, left - c, b - bottom, top - d) > 0, (title, other)
    assert sorted(held) == sorted(drawing.layout.boxes.keys() - {NOTE})


@pytest.mark.parametrize("name", NAMES)
def test_a_caption_fits_its_group(name):
    """Chinese letters are twice as wide; at the right stands the badge of the first node."""
    for title, box in DRAWINGS[name].layout.groups:
        assert sum(20 if ord(letter) > 0x2E7F else 10 for letter in title) < box.width - 80, title


@pytest.mark.parametrize("name", NAMES)
def test_a_note_stands_first_in_the_file_and_is_read_without_scrolling(name):
    drawing = DRAWINGS[name]
    written = drawing.workflow()["nodes"][0]
    assert written["type"] == "MarkdownNote"
    assert written["size"][1] >= workflow_layout.note_height(drawing.graph.note, written["size"][0])


def test_the_blueprint_is_one_subgraph_with_both_ends_of_every_wire():
    (file,) = (PROJECT / "subgraphs").glob("*.json")
    content = json.loads(file.read_text(encoding="utf-8"))
    (node,), (inside,) = content["nodes"], content["definitions"]["subgraphs"]
    assert node["type"] == inside["id"] and node["title"] == inside["name"] == file.stem
    assert [one["name"] for one in node["inputs"]] == [one["name"] for one in inside["inputs"]]
    assert [one["name"] for one in node["outputs"]] == [one["name"] for one in inside["outputs"]]
    nodes = {one["id"]: one for one in inside["nodes"]}
    seen = set()
    for link in inside["links"]:
        seen.add(link["id"])
        if link["origin_id"] == -10:
            assert link["id"] in inside["inputs"][link["origin_slot"]]["linkIds"]
        else:
            assert link["id"] in nodes[link["origin_id"]]["outputs"][link["origin_slot"]]["links"]
        if link["target_id"] == -20:
            assert link["id"] in inside["outputs"][link["target_slot"]]["linkIds"]
        else:
            assert nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]
    assert len(seen) == len(inside["links"])
    used = {slot["link"] for one in nodes.values() for slot in one["inputs"]} - {None}
    assert used == {link["id"] for link in inside["links"] if link["target_id"] != -20}
    types = {"IMAGE", "AUDIO,LIVEAVATAR_SPEAKERS", "VIDEO", "LIVEAVATAR_MODEL"}
    assert {link["type"] for link in inside["links"]} >= types
