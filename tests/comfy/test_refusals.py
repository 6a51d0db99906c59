"""What cannot be done is said on the node it is about, in our words, and nothing is left behind."""

from __future__ import annotations

from typing import Any

import graphs
import pytest
from live_client import Client, Refused
from outcome import succeeded


def complaint(client: Client, graph: graphs.Graph) -> tuple[str, str]:
    """The node that complains and what it says, before or while it runs."""
    try:
        run = client.run(graph)
    except Refused as refusal:
        ((node, told),) = refusal.nodes.items()
        return node, " ".join(f"{error['message']} {error['details']}" for error in told["errors"])
    assert run.outcome == "error"
    return run.error["node_id"], run.error["exception_message"]


REFUSED: list[tuple[str, dict[str, Any], set[str], list[str]]] = [
    ("a click instead of a voice", {"voice": graphs.CLICK}, {"audio", "sampler", "decode"}, ["0.01", "0.025"]),
    ("words instead of a size", {"size": "banana"}, {"sampler"}, ["banana", "704x384"]),
    ("half a size", {"size": "128x"}, {"sampler"}, ["128x"]),
    ("no steps", {"steps": 0}, {"sampler"}, ["steps"]),
    ("a negative seed", {"seed": -5}, {"sampler"}, ["seed"]),
    ("next to no seconds", {"seconds": 0.001}, {"audio", "sampler"}, ["0.001"]),
]


@pytest.mark.parametrize(("given", "nodes", "words"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_the_node_says_what_is_wrong(client: Client, given: dict[str, Any], nodes: set[str], words: list[str]) -> None:
    node, said = complaint(client, graphs.modular(**given))
    print(f"{node}: {said}")
    assert node in nodes
    assert all(word in said for word in words), said
    assert "Traceback" not in said


@pytest.mark.parametrize(("given", "words"), [(r[1], r[3]) for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_the_one_node_says_the_same(client: Client, given: dict[str, Any], words: list[str]) -> None:
    node, said = complaint(client, graphs.one_node(**given))
    assert node == "avatar"
    assert all(word in said for word in words), said


@pytest.mark.parametrize(("graph", "name"), [(graphs.modular, "text"), (graphs.one_node, "avatar")])
@pytest.mark.parametrize(
    ("timeline", "words"), [("5: a\nlater", "Line 2 of the timeline"), ("5: image: /etc/passwd", "command line")]
)
def test_a_timeline_is_refused_by_its_line(client: Client, graph: Any, name: str, timeline: str, words: str) -> None:
    node, said = complaint(client, graphs.changed(graph(), name, timeline=timeline))
    assert node == name
    assert words in said, said


@pytest.mark.parametrize("compile", ["auto", False], ids=["a word", "the switch of older graphs"])
def test_the_backend_takes_what_older_graphs_say_of_compiling(client: Client, compile: str | bool) -> None:
    graph = graphs.plan()
    where = {"engine": "this process", "devices": "cpu", "stages": "auto", "memory": "keep loaded", "threads": 1}
    graph["backend"] = graphs.node("LiveAvatarBackend", **where, compile=compile)
    run = succeeded(client.run(graphs.changed(graph, "model", backend=["backend", 0])))
    assert "layers compiled" not in run.shown["plan"]["text"][0]


def test_another_word_for_compiling_is_refused(client: Client) -> None:
    graph = graphs.plan()
    where = {"engine": "this process", "devices": "cpu", "stages": "auto", "memory": "keep loaded", "threads": 1}
    graph["backend"] = graphs.node("LiveAvatarBackend", **where, compile="maybe")
    node, said = complaint(client, graphs.changed(graph, "model", backend=["backend", 0]))
    assert node == "backend" and "'maybe' is not known. Use auto, off, on." in said


def test_conditioning_of_another_width_is_refused_by_the_sampler(client: Client) -> None:
    graph = graphs.modular()
    graph["other"] = graphs.node("OddConditioning", width=77)
    node, said = complaint(client, graphs.changed(graph, "sampler", positive=["other", 0]))
    assert node == "sampler"
    assert "77" in said


def test_after_a_refusal_the_next_run_works(client: Client) -> None:
    complaint(client, graphs.modular(size="banana"))
    succeeded(client.run(graphs.modular(seed=400)))


def test_a_refusal_loads_nothing(client: Client) -> None:
    told: list[str] = []
    with pytest.raises(Refused):
        client.run(graphs.modular(steps=0), lambda event: told.append(event.kind))
    assert "executing" not in told


def test_the_plan_says_why_not_instead_of_failing(client: Client) -> None:
    run = succeeded(client.run(graphs.plan(voice=graphs.CLICK)))
    assert "0.01" in run.shown["plan"]["text"][0]
    (shown,) = run.shown["plan"]["liveavatar_plan"]
    assert shown["refused"]


def test_the_plan_names_what_will_be_made_and_loads_nothing(client: Client) -> None:
    run = succeeded(client.run(graphs.plan()))
    (report,) = run.shown["plan"]["text"]
    assert "128x128" in report
    assert str(graphs.frames_of(graphs.SECONDS)) in report
    (shown,) = run.shown["plan"]["liveavatar_plan"]
    assert shown["refused"] is None
    for device in shown["devices"]:
        assert device["total"] == sum(part["bytes"] for part in device["parts"])
    assert not run.progress
