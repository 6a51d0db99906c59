"""What the pack holds is given back when ComfyUI asks, comes back by itself, and does not grow."""

from __future__ import annotations

import itertools
import json
import time

import graphs
import pytest
from live_client import Client, Run
from live_server import Server
from outcome import receipt_of, succeeded

MB = 1_000_000
NOTHING: tuple[int, list[str]] = (0, [])
_asked = itertools.count()


def resident(server: Server) -> int:
    """Resident memory, once the server is at rest."""
    time.sleep(1.0)
    now = server.resident()
    if now is None:
        pytest.skip("this system does not tell the memory of a process")
    return now


def tallied(graph: graphs.Graph) -> graphs.Graph:
    """The graph, and a count of the weights that are alive when its video is there."""
    after = {"after": ["decode", 1]} if "decode" in graph else {}
    return {**graph, "tally": graphs.node("OddTally", when=str(next(_asked)), **after)}


def told(run: Run) -> tuple[int, list[str]]:
    """Bytes of weights alive in the process, and in which parts of the library their networks stand."""
    tally = json.loads(succeeded(run).shown["tally"]["text"][0])
    return tally["bytes"], tally["owners"]


def held(client: Client) -> tuple[int, list[str]]:
    """The same, now."""
    return told(client.run(tallied({})))


def test_encoders_go_at_once_and_the_rest_when_asked(client: Client) -> None:
    client.free()
    assert held(client) == NOTHING
    first = client.run(tallied(graphs.modular(seed=300)))
    warm = told(first)
    print(f"weights alive: {warm[0] / MB:.0f} MB of {', '.join(warm[1])}")
    assert warm[1] == ["model", "vae"]
    client.free()
    assert held(client) == NOTHING
    again = client.run(tallied(graphs.modular(seed=300)))
    assert told(again) == warm
    assert receipt_of(again)["frames_sha256"] == receipt_of(first)["frames_sha256"]


def test_unloading_models_gives_back_the_weights_and_keeps_the_results(client: Client) -> None:
    graph = graphs.modular(seed=302)
    first = client.run(tallied(graph))
    client.post("/free", {"unload_models": True})
    succeeded(client.run(tallied(graph)))  # only after this one has the wish been taken up for certain
    again = client.run(tallied(graph))
    assert {"model", "sampler", "decode"} <= again.cached
    assert receipt_of(again) == receipt_of(first)
    assert told(again) == NOTHING
    changed = client.run(tallied(graphs.modular(seed=303)))
    assert {"model", "text", "audio"} <= changed.cached
    assert told(changed) == told(first)


def test_a_video_is_replayed_without_the_network(client: Client) -> None:
    graph = graphs.modular(seed=308)
    first = succeeded(client.run(graph))
    client.post("/free", {"unload_models": True})
    succeeded(client.run(graph))
    again = client.run(tallied(graphs.changed(graph, "decode", filename_prefix="replayed")))
    assert told(again)[1] == ["vae"]
    assert "sampler" in again.cached
    assert receipt_of(again)["frames_sha256"] == receipt_of(first)["frames_sha256"]


def test_many_runs_share_one_set_of_weights(client: Client) -> None:
    client.free()
    succeeded(client.run(graphs.modular(seed=304)))
    warm = held(client)
    succeeded(client.run(graphs.modular(seed=305)))
    succeeded(client.run(graphs.one_node(seed=306)))
    assert held(client) == warm


def test_free_after_each_run_leaves_nothing_loaded(client: Client) -> None:
    client.free()
    graph = graphs.modular(seed=307)
    settings = {"engine": "this process", "devices": "cpu", "stages": "auto", "threads": 0}
    graph["backend"] = graphs.node("LiveAvatarBackend", memory="free after each run", **settings)
    succeeded(client.run(graphs.changed(graph, "model", backend=["backend", 0])))
    assert held(client) == NOTHING


def test_runs_with_new_seeds_do_not_grow(server: Server, client: Client) -> None:
    seen = []
    for seed in range(310, 318):
        succeeded(client.run(graphs.modular(seed=seed)))
        seen.append(resident(server))
    print("RSS in MB: " + ", ".join(f"{now / MB:.0f}" for now in seen))
    assert min(seen[-3:]) - min(seen[2:5]) < 40 * MB  # the first two fill caches, and the allocator swings by 20 MB


def test_a_longer_video_takes_no_more_memory(server: Server, client: Client) -> None:
    succeeded(client.run(graphs.modular(seed=320)))
    before = resident(server)
    peak = [before]
    succeeded(
        client.run(graphs.modular(seed=321, voice=graphs.LONG_VOICE), lambda event: peak.append(server.resident() or 0))
    )
    print(f"RSS {before / MB:.0f} MB before, at most {max(peak) / MB:.0f} MB during {graphs.LONG_SECONDS:.0f} s")
    assert max(peak) - before < 100 * MB
