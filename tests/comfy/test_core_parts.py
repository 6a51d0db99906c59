"""Core's own loaders and lists in front of the pack's nodes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fakes
import graphs
import pytest
from live_client import Client, Run
from live_server import Server
from outcome import receipt_of, saved, succeeded
from test_refusals import complaint
from video_file import look_into

NAMED = "liveavatar/small"
QUICK = {"size": "64x64", "steps": 1, "seconds": 0.5}


@pytest.fixture(scope="module")
def small(server: Server) -> Path:
    """A small model with a VAE of the published form, and that VAE where core's Load VAE finds it."""
    folder = fakes.write_official_folder(server.base / "models" / NAMED)
    (server.base / "models" / "vae").mkdir(exist_ok=True)
    shutil.copy(folder / "Wan2.1_VAE.pth", server.base / "models" / "vae" / "odd.pth")
    return folder


@pytest.fixture(scope="module")
def core_vae(client: Client, small: Path) -> graphs.Graph:
    """Core's loader of that VAE."""
    loader = {"vae": graphs.node("VAELoader", vae_name="odd.pth")}
    run = client.run(loader | {"shown": graphs.node("PreviewAny", source=["vae", 0])})
    if run.outcome == "error" and "size mismatch" in run.error["exception_message"]:
        pytest.skip("this ComfyUI loads VAEs of Wan in their published width only")
    return loader


def of_small(**given: str) -> graphs.Graph:
    return graphs.changed(graphs.modular(**QUICK, **given), "model", model=NAMED)


def test_a_vae_of_core_makes_the_video_that_its_file_makes(
    server: Server, client: Client, small: Path, core_vae: graphs.Graph
) -> None:
    from_file = receipt_of(succeeded(client.run(of_small())))
    graph = graphs.changed(of_small() | core_vae, "model", core_vae=["vae", 0])
    (small / "Wan2.1_VAE.pth").rename(small / "away")  # nobody needs it now
    try:
        run = succeeded(client.run(graph))
        node, said = complaint(client, of_small(prompt="Without it."))
    finally:
        (small / "away").rename(small / "Wan2.1_VAE.pth")
    assert receipt_of(run)["frames_sha256"] == from_file["frames_sha256"]
    assert node == "model" and "VAE" in said


def test_a_vae_of_core_is_none_for_the_miniature(client: Client, core_vae: graphs.Graph) -> None:
    node, said = complaint(client, graphs.changed(graphs.modular() | core_vae, "model", core_vae=["vae", 0]))
    assert node == "model" and "comes with all of its parts" in said


def test_a_clip_of_core_reads_the_prompt_of_both_graphs(server: Server, client: Client) -> None:
    told = []
    for whole, name in ((graphs.modular(**QUICK, seed=601), "text"), (graphs.one_node(**QUICK, seed=601), "avatar")):
        whole["clip"] = graphs.node("OddClip", width=64)
        run = succeeded(client.run(graphs.changed(whole, name, clip=["clip", 0])))
        assert look_into(saved(server, run)).frames == graphs.frames_of(QUICK["seconds"])
        told.append(receipt_of(run))
    assert told[0]["frames_sha256"] == told[1]["frames_sha256"]
    assert told[0]["effective"]["prompt"] == whole["avatar"]["inputs"]["prompt"]
    assert (
        told[0]["frames_sha256"]
        != receipt_of(succeeded(client.run(graphs.modular(**QUICK, seed=601))))["frames_sha256"]
    )


def test_a_clip_of_core_is_what_clip_text_encode_makes_of_it(client: Client) -> None:
    graph = graphs.modular(**QUICK, seed=602)
    graph["clip"] = graphs.node("OddClip", width=64)
    ours = receipt_of(succeeded(client.run(graphs.changed(graph, "text", clip=["clip", 0]))))
    prompt = graph["text"]["inputs"]["prompt"]
    graph["core"] = graphs.node("CLIPTextEncode", clip=["clip", 0], text=prompt)
    theirs = receipt_of(succeeded(client.run(graphs.changed(graph, "sampler", positive=["core", 0]))))
    assert ours["frames_sha256"] == theirs["frames_sha256"]
    assert (ours["effective"]["prompt"], theirs["effective"]["prompt"]) == (prompt, None)


def test_a_clip_of_another_width_is_refused(client: Client) -> None:
    graph = graphs.modular()
    graph["clip"] = graphs.node("OddClip", width=32)
    node, said = complaint(client, graphs.changed(graph, "text", clip=["clip", 0]))
    assert node == "sampler" and "32" in said


def several(client: Client, graph: graphs.Graph, consumer: str) -> Run:
    """A run whose voice is a list of three."""
    graph["batch"] = graphs.node("OddAudioBatch", audio=["voice", 0], count=3)
    graph["list"] = graphs.node("LiveAvatarAudioList", audio=["batch", 0])
    return succeeded(client.run(graphs.changed(graph, consumer, audio=["list", 0]), timeout=800.0))


@pytest.mark.parametrize("kind", ["modular", "one node"])
def test_a_list_of_voices_makes_a_video_of_each_with_one_load(server: Server, client: Client, kind: str) -> None:
    client.post("/free", {"unload_models": True, "free_memory": True})
    succeeded(client.run(graphs.plan(seconds=1.0 if kind == "modular" else 1.2)))  # the server frees before a run
    if kind == "modular":
        run = several(client, graphs.modular(**QUICK, seed=603), "audio")
    else:
        run = several(client, graphs.one_node(**QUICK, seed=603), "avatar")
    shown = run.shown["save"]["images"]
    files = [server.base / "output" / s["subfolder"] / s["filename"] for s in shown]
    assert len({look_into(file).pictures for file in files}) == 3
    assert all(look_into(file).frames == graphs.frames_of(QUICK["seconds"]) for file in files)
    told = [json.loads(text) for text in run.shown["receipt"]["text"]]
    assert ["load network" in receipt["seconds"] for receipt in told] == [True, False, False]
    phases = [message["phase"] for message in run.progress]
    assert phases.count("done") >= 3 and not {"failed", "cancelled"} & set(phases)


def test_a_batch_of_voices_is_refused_with_the_node_that_splits_it(client: Client) -> None:
    graph = graphs.modular()
    graph["batch"] = graphs.node("OddAudioBatch", audio=["voice", 0], count=3)
    node, said = complaint(client, graphs.changed(graph, "audio", audio=["batch", 0]))
    assert node == "audio" and "3 sounds" in said and "Audio Batch to List (Live Avatar)" in said
