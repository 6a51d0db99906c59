"""Graphs run in a real ComfyUI to correct videos, and only what depends on a change runs again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import graphs
import pytest
from live_client import PROGRESS, Client, Event, Refused
from live_server import PACK, Server
from outcome import assert_correct, receipt_of, saved, succeeded
from video_file import look_into

SHIPPED = sorted((PACK / "workflows" / "api").glob("*.json"))
MINIATURE = "miniature (comes along)"
NEEDS_A_PAGE = "LiveAvatarLive"
"""Hears a browser's microphone: `test_live.py` has one."""
WITH_MINIATURE = [file for file in SHIPPED if MINIATURE in file.read_text(encoding="utf-8")]
OTHERS = [file for file in SHIPPED if file not in WITH_MINIATURE]
WITHOUT_A_PAGE = [file for file in WITH_MINIATURE if NEEDS_A_PAGE not in file.read_text(encoding="utf-8")]
LOADERS = {"LiveAvatarLoadModel", "CLIPLoader", "VAELoader", "AudioEncoderLoader", "LoadImage", "LoadAudio"}


@pytest.mark.parametrize("graph", [graphs.modular, graphs.one_node])
def test_a_graph_makes_a_correct_video(server: Server, client: Client, graph: Any) -> None:
    run = succeeded(client.run(graph()))
    assert_correct(saved(server, run), graphs.SECONDS)
    receipt = receipt_of(run)
    assert receipt["status"] == "complete"
    assert receipt["effective"]["frames"] == graphs.frames_of(graphs.SECONDS)


def test_one_node_makes_what_the_parts_make(client: Client) -> None:
    hashes = {receipt_of(succeeded(client.run(g)))["frames_sha256"] for g in (graphs.modular(), graphs.one_node())}
    assert len(hashes) == 1
    assert None not in hashes


def test_a_timeline_changes_both_graphs_alike_and_a_new_one_runs_again(client: Client) -> None:
    timeline = "0.5: A person laughs.\n1: A sad person: alone"
    modular = graphs.changed(graphs.modular(), "text", timeline=timeline)
    one_node = graphs.changed(graphs.one_node(), "avatar", timeline=timeline)
    told = [receipt_of(succeeded(client.run(graph))) for graph in (modular, one_node, graphs.modular())]
    changes = [receipt["effective"]["prompt_changes"] for receipt in told]
    assert changes == [[[1, "A person laughs."], [2, "A sad person: alone"]]] * 2 + [[]]
    hashes = [receipt["frames_sha256"] for receipt in told]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_node_shows_its_video_without_save_video(client: Client) -> None:
    graph = graphs.changed(graphs.modular(), "decode", filename_prefix="shown/alone")
    del graph["save"]
    run = succeeded(client.run(graph))
    (shown,) = run.shown["decode"]["images"]
    assert shown["type"] == "temp"
    assert run.shown["decode"]["animated"] == [True]
    assert_correct(client.view(shown), graphs.SECONDS)


def test_progress_belongs_to_the_node_that_pulls_and_only_grows(client: Client) -> None:
    run = succeeded(client.run(graphs.modular(seed=100)))
    told = run.progress
    assert {data["node"] for data in told if data["phase"] == "generating"} == {"decode"}
    generating = [data for data in told if data["phase"] == "generating" and data["node"] == "decode"]
    tasks = [(data["block"], data["step"]) for data in generating]
    assert tasks == sorted(tasks)
    for key in ("frames", "seconds_ready"):
        values = [data[key] for data in generating]
        assert values == sorted(values), key
    assert all(0 <= data["share"] <= 1 for data in told)
    assert [data for data in told if data["node"] == "decode"][-1]["phase"] == "done"
    assert generating[0]["blocks"] == -(-graphs.frames_of(graphs.SECONDS) // 12)
    assert generating[0]["total_frames"] == graphs.frames_of(graphs.SECONDS)


@pytest.mark.parametrize("graph", [graphs.modular, graphs.one_node])
def test_every_node_is_done_once_and_says_nothing_after(client: Client, graph: Any) -> None:
    client.free()
    told = succeeded(client.run(graph(seed=109))).progress
    for node in {data["node"] for data in told}:
        phases = [data["phase"] for data in told if data["node"] == node]
        assert phases.index("done") == len(phases) - 1, (node, phases)


def test_previews_arrive_while_it_runs(client: Client) -> None:
    seen: list[bytes] = []

    def look(event: Event) -> None:
        if event.kind == PROGRESS and "preview" in event.data and not seen:
            seen.append(client.view(event.data["preview"]))

    succeeded(client.run(graphs.modular(seed=101, voice=graphs.LONG_VOICE, seconds=4.0), look))
    assert seen[0][:2] == b"\xff\xd8", "a JPEG"


def test_the_file_plays_while_it_grows(client: Client) -> None:
    seen: list[int] = []

    def look(event: Event) -> None:
        if event.kind == PROGRESS and event.data.get("frames", 0) >= 36 and not seen:
            seen.append(look_into(client.view(event.data["file"])).frames)

    run = succeeded(client.run(graphs.modular(seed=110, voice=graphs.LONG_VOICE, seconds=4.0), look))
    assert 12 <= seen[0] < receipt_of(run)["effective"]["frames"]


def test_the_second_run_comes_from_the_cache(client: Client) -> None:
    graph = graphs.modular(seed=102)
    first, second = succeeded(client.run(graph)), succeeded(client.run(graph))
    assert {"sampler", "decode"} <= first.executed
    assert {"model", "text", "audio", "sampler", "decode"} <= second.cached
    assert not {"sampler", "decode"} & second.executed
    assert receipt_of(second) == receipt_of(first)


def test_another_seed_runs_only_sampler_and_decode_again(client: Client) -> None:
    first = succeeded(client.run(graphs.modular(seed=103)))
    run = succeeded(client.run(graphs.modular(seed=104)))
    assert run.executed >= {"sampler", "decode"}
    assert run.cached >= {"picture", "voice", "model", "text", "audio"}
    assert receipt_of(run)["frames_sha256"] != receipt_of(first)["frames_sha256"]


def test_another_picture_does_not_listen_again(client: Client) -> None:
    first = succeeded(client.run(graphs.modular(seed=105)))
    run = succeeded(client.run(graphs.modular(seed=105, picture=graphs.OTHER_PORTRAIT)))
    assert run.executed >= {"picture", "sampler", "decode"}
    assert run.cached >= {"voice", "model", "text", "audio"}
    assert receipt_of(run)["frames_sha256"] != receipt_of(first)["frames_sha256"]


def test_the_same_seed_gives_the_same_frames_after_others(client: Client) -> None:
    first = succeeded(client.run(graphs.modular(seed=106)))
    succeeded(client.run(graphs.modular(seed=107)))
    again = succeeded(client.run(graphs.changed(graphs.modular(seed=106), "decode", filename_prefix="again")))
    assert receipt_of(again)["frames_sha256"] == receipt_of(first)["frames_sha256"]


def test_two_decodes_share_one_stream(client: Client) -> None:
    graph = graphs.modular(seed=108)
    graph["second"] = graphs.changed(graph, "decode", filename_prefix="second")["decode"]
    graph["second receipt"] = graphs.changed(graph, "receipt", source=["second", 1])["receipt"]
    run = succeeded(client.run(graph))
    hashes = [receipt_of(run, node)["frames_sha256"] for node in ("receipt", "second receipt")]
    assert hashes[0] == hashes[1]
    pulled = {data["node"] for data in run.progress if data["phase"] == "generating" and data["step"] > 0}
    assert len(pulled & {"decode", "second"}) >= 1


def _all(info: dict[str, Any]) -> set[str]:
    return {name for group in ("required", "optional") for name in info.get(group, {})}


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_graph_is_understood(client: Client, file: Path) -> None:
    known = client.get("/object_info")
    for node in json.loads(file.read_text(encoding="utf-8")).values():
        info = known[node["class_type"]]["input"]
        every = _all(info)  # slots that grow have one entry; in an old core each has its own
        given = {name if name in every else name.split(".")[0] for name in node["inputs"]}
        assert info.get("required", {}).keys() <= given <= every, node


@pytest.mark.parametrize("file", OTHERS, ids=lambda file: file.stem)
def test_a_shipped_graph_whose_files_are_not_here_lacks_nothing_else(client: Client, file: Path) -> None:
    graph = json.loads(file.read_text(encoding="utf-8"))
    with pytest.raises(Refused) as refusal:
        client.run(graph)
    assert {graph[node]["class_type"] for node in refusal.value.nodes} <= LOADERS
    told = [error for node in refusal.value.nodes.values() for error in node["errors"]]
    assert {error["type"] for error in told} <= {"value_not_in_list", "custom_validation_failed"}


@pytest.mark.parametrize("file", WITHOUT_A_PAGE, ids=lambda file: file.stem)
def test_every_shipped_graph_that_needs_no_page_makes_its_video(server: Server, client: Client, file: Path) -> None:
    """Where a voice is to be chosen, a short one is."""
    graph = json.loads(file.read_text(encoding="utf-8"))
    chosen = [node for node in graph.values() if node["class_type"] in ("LoadAudio", "RecordAudio")]
    for node in chosen:
        node["inputs"]["audio"] = graphs.VOICE
    run = succeeded(client.run(graph))
    pair = any(node["class_type"] == "LiveAvatarSamplePair" for node in graph.values())
    own = graphs.seconds_of(graphs.ASSETS / ("pair_right.wav" if pair else "voice.wav"))
    for save in [name for name, node in graph.items() if node["class_type"] == "SaveVideo"]:
        assert_correct(saved(server, run, save), graphs.SECONDS if chosen else own, (256, 128) if pair else (128, 128))
