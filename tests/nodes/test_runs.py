"""What nodes told last is kept by workflow, bounded, for a browser that comes late."""

import asyncio
import json
from types import SimpleNamespace

import fake_comfy
import pytest


@pytest.fixture
def runs(pack):
    return pack.nodes.runs


def told(phase: str, node: str = "7", **numbers) -> dict:
    return {"node": node, "phase": phase, **numbers}


def test_the_last_message_keeps_the_numbers_of_its_run_and_of_no_other(runs):
    latest = runs.LatestMessages()
    latest.put("a", told("generating", fps=12, block=3, preview={"filename": "x.jpg"}))
    latest.put("a", told("generating", block=4))
    assert latest.of("a") == [told("generating", fps=12, block=4, preview={"filename": "x.jpg"})]
    latest.put("a", told("done", seconds=4))
    assert latest.of("a") == [told("done", fps=12, block=4, seconds=4)]
    latest.put("a", told("encoding the prompt"))
    assert latest.of("a") == [told("encoding the prompt")]
    assert latest.of("b") == []


def test_it_is_bounded_and_the_oldest_goes_first(runs):
    latest = runs.LatestMessages()
    for number in range(200):
        latest.put(f"workflow {number}", told("done"))
        latest.put("busy", told("done", node=str(number)))
    assert latest.of("workflow 0") == [] and latest.of("workflow 199")
    assert len(latest.of("busy")) < 100 and latest.of("busy")[-1]["node"] == "199"


@pytest.mark.parametrize(
    ("extra", "found"),
    [
        ({"extra_pnginfo": {"workflow": {"id": "w"}}}, "w"),
        ({"extra_pnginfo": {"workflow": {}}}, None),
        ({"extra_pnginfo": None}, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_workflow_is_known_where_a_browser_queued_it(runs, extra, found):
    running = [(0, "other", {}, {"extra_pnginfo": {"workflow": {"id": "no"}}}, []), (1, "prompt", {}, extra, [])]
    assert runs.workflow_of(running, "prompt") == found
    assert runs.workflow_of(running, "gone") is None
    assert runs.workflow_of([(0, "prompt", {})], "prompt") is None


def test_a_browser_can_ask_for_what_a_run_told(pack, host, nodes):
    asyncio.run(pack.nodes.comfy_entrypoint())
    host.running.append((0, "prompt", {}, {"extra_pnginfo": {"workflow": {"id": "w"}}}, []))
    with pytest.raises(Exception, match="No sound"):
        fake_comfy.run(nodes["LiveAvatarAudioFeatures"], model=SimpleNamespace(), audio=None, seconds=0.0)
    with pack.nodes.host.NodeProgress.current(("encoding the voice",)):
        pass
    answer = asyncio.run(host.routes[pack.nodes.runs.ROUTE](SimpleNamespace(query={"workflow": "w"})))
    assert [message["phase"] for message in json.loads(answer.text)] == ["done"]
    nobody = asyncio.run(host.routes[pack.nodes.runs.ROUTE](SimpleNamespace(query={})))
    assert json.loads(nobody.text) == []
