"""Core's own bars move from 0 to 100 over the whole run, once; what is known is not encoded again."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import graphs
import pytest
from live_client import PROGRESS, Client, Event, Run
from outcome import receipt_of, succeeded

GRAPHS = [graphs.one_node, graphs.modular]
WHOLE = [
    "encoding the prompt",
    "encoding the voice",
    "loading the VAE",
    "encoding the portrait",
    "loading the network",
    "generating",
    "done",
]
TEXT_AND_SOUND = ("UMT5EncoderModel", "Wav2Vec2FeatureEncoder")


def bars(run: Run) -> dict[str, list[tuple[float, float]]]:
    """Value and maximum of every message of core's about a node's bar, in order."""
    found: dict[str, list[tuple[float, float]]] = {}
    for data in run.of("progress"):
        found.setdefault(data["node"], []).append((data["value"], data["max"]))
    return found


def states(run: Run) -> dict[str, list[Mapping[str, Any]]]:
    """The same of the newer messages, which tell of all nodes at once."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for data in run.of("progress_state"):
        for node, state in data["nodes"].items():
            found.setdefault(node, []).append(state)
    return found


def longest_silence(run: Run) -> tuple[float, str]:
    """Seconds between two messages of any kind while the run lasts, and after which."""
    pairs = itertools.pairwise(event for event in run.events if event.kind != "status")
    return max((later.at - before.at, words(before)) for before, later in pairs)


def words(event: Event) -> str:
    return f"{event.data['node']}: {event.data['phase']}" if event.kind == PROGRESS else event.kind


@pytest.mark.parametrize("graph", GRAPHS)
def test_cores_bars_only_grow_and_are_full_once(client: Client, graph: Any) -> None:
    client.free()
    run = succeeded(client.run(graph(seed=600)))
    seconds, after = longest_silence(run)
    print(f"longest silence {seconds:.1f} s, after {after}")
    puller = "avatar" if graph is graphs.one_node else "decode"
    assert puller in bars(run)
    for node, bar in bars(run).items():
        values = [value / most for value, most in bar]
        assert values == sorted(set(values)), node
        assert values.count(1.0) == 1 and values[-1] == 1.0, node
    assert len(bars(run)[puller]) > 8 and bars(run)[puller][0][0] < 0.2 * bars(run)[puller][0][1]
    for node, told in states(run).items():
        shares = [state["value"] / state["max"] for state in told]
        assert shares == sorted(shares) and told[-1]["state"] == "finished", node


@pytest.mark.parametrize("graph", GRAPHS)
def test_phases_come_once_each_and_in_order(client: Client, graph: Any) -> None:
    client.free()
    told = succeeded(client.run(graph(seed=601))).progress
    phases = [phase for phase, _ in itertools.groupby(data["phase"] for data in told)]
    if graph is graphs.one_node:
        assert phases == WHOLE
    assert set(phases) == set(WHOLE)
    for node in {data["node"] for data in told}:
        shares = [data["share"] for data in told if data["node"] == node]
        assert shares == sorted(shares) and shares[-1] == 1.0, node


def counted(graph: graphs.Graph) -> graphs.Graph:
    """The graph, and a count of the calls of each encoder when its video is there."""
    puller = "avatar" if "avatar" in graph else "decode"
    return {**graph, "calls": graphs.node("OddCalls", after=[puller, 1])}


def encoder_calls(run: Run) -> dict[str, int]:
    """How often the server has called each encoder, by class, since it began."""
    return json.loads(succeeded(run).shown["calls"]["text"][0])


def queued(client: Client, prompts: list[graphs.Graph]) -> list[Run]:
    """All of them in the queue at once; their runs."""
    with ThreadPoolExecutor(len(prompts)) as threads:
        return list(threads.map(client.run, prompts))


@pytest.mark.parametrize("graph", GRAPHS)
def test_three_queued_seeds_encode_once(client: Client, graph: Any) -> None:
    client.free()
    before = encoder_calls(client.run(counted(graph(seed=609, prompt="Another one.", seconds=1.0))))
    runs = queued(client, [counted(graph(seed=seed)) for seed in (610, 611, 612)])
    assert len({receipt_of(run)["frames_sha256"] for run in runs}) == 3
    calls = sorted((encoder_calls(run) for run in runs), key=lambda calls: calls["UMT5EncoderModel"])
    assert calls[0] == calls[1] == calls[2]
    assert {name: calls[0][name] - before[name] for name in TEXT_AND_SOUND} == dict.fromkeys(TEXT_AND_SOUND, 1)
    assert calls[0]["WanEncoder3d"] == before["WanEncoder3d"], "the portrait is the same"
