"""Cancel ends a run at the next task, leaves nothing broken, and the next run is as if nothing had been."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import graphs
import pytest
from live_client import PROGRESS, Client, Event, Run
from live_server import Absent, Server, serve
from outcome import receipt_of, saved, succeeded
from video_file import look_into

PATIENCE = 20.0
"""Seconds until a cancelled run has ended. Below 2 on an idle machine; the bound that counts is in tasks."""
LATE_TASKS = 2
"""Tasks that may still be told: the one under way, and one already told while the button was on its way."""


class Button:
    """Presses Cancel when a condition first holds, and remembers what was told afterwards."""

    def __init__(self, client: Client, when: Any) -> None:
        self.client, self.when = client, when
        self.pressed = 0.0
        self.later: list[Event] = []

    def __call__(self, event: Event) -> None:
        if self.pressed:
            self.later.append(event)
        elif event.kind == PROGRESS and self.when(event.data):
            self.client.interrupt()
            self.pressed = time.monotonic()

    @property
    def tasks(self) -> set[tuple[int, int]]:
        """Tasks told after the button was pressed."""
        told = [e.data for e in self.later if e.kind == PROGRESS and e.data["phase"] == "generating"]
        return {(data["block"], data["step"]) for data in told}

    @property
    def seconds(self) -> float:
        """From the button to the end of the run."""
        return self.later[-1].at - self.pressed


def cancelled(client: Client, graph: graphs.Graph, when: Any) -> tuple[Run, Button]:
    """Run a graph and cancel it."""
    button = Button(client, when)
    run = client.run(graph, button)
    assert button.pressed, "the run ended before it could be cancelled"
    print(f"ended {button.seconds:.2f} s after Cancel, {len(button.tasks)} tasks later")
    return run, button


def in_block(number: int) -> Any:
    """While block `number` is made."""
    return lambda told: told["phase"] == "generating" and told["block"] >= number


@pytest.mark.parametrize("graph", [graphs.modular, graphs.one_node])
def test_cancel_ends_the_run_within_a_task(client: Client, graph: Any) -> None:
    run, button = cancelled(client, graph(voice=graphs.LONG_VOICE, seed=200), in_block(2))
    assert run.outcome == "interrupted"
    assert len(button.tasks) <= LATE_TASKS
    assert button.seconds < PATIENCE
    assert run.progress[-1]["phase"] == "cancelled"


def test_after_a_cancel_the_same_graph_gives_the_same_frames(server: Server, client: Client) -> None:
    graph = graphs.modular(seed=201, seconds=3.0, voice=graphs.LONG_VOICE)
    run, _ = cancelled(client, graph, in_block(3))
    assert run.outcome == "interrupted"
    again = succeeded(client.run(graph))
    assert "sampler" in again.cached  # its stream is reopened at block 0
    client.free()
    fresh = succeeded(client.run(graph))
    assert not fresh.cached
    assert receipt_of(again)["frames_sha256"] == receipt_of(fresh)["frames_sha256"]
    assert look_into(saved(server, again)).pictures == look_into(saved(server, fresh)).pictures


@pytest.mark.parametrize("phase", ["loading", "encoding the portrait", "encoding the voice", "encoding the prompt"])
def test_cancel_before_the_first_block_ends_the_run_too(client: Client, phase: str) -> None:
    client.free()
    run, button = cancelled(
        client, graphs.modular(voice=graphs.LONG_VOICE, seed=202), lambda told: told["phase"].startswith(phase)
    )
    assert run.outcome == "interrupted"
    assert not button.tasks
    assert button.seconds < PATIENCE
    succeeded(client.run(graphs.modular(seed=203)))


def test_cancel_at_any_moment_is_a_cancel_and_no_error(client: Client) -> None:
    for seed, block in enumerate([1, 2, 1, 3, 1, 2, 1], 204):
        run, _ = cancelled(client, graphs.modular(voice=graphs.LONG_VOICE, seed=seed), in_block(block))
        assert run.outcome == "interrupted", run.error
    succeeded(client.run(graphs.modular(seed=204)))


@pytest.mark.parametrize("phase", ["encoding the prompt", "generating"])
def test_ctrl_c_ends_the_server_without_an_abort(tmp_path: Path, phase: str) -> None:
    """Python breaks the thread of a prompt off where it is, which aborts the process in the midst of a computation."""
    try:
        with serve(tmp_path) as server:
            graphs.write_inputs(tmp_path / "input")
            pressed = threading.Event()

            def press(event: Event) -> None:
                if event.kind == PROGRESS and event.data["phase"] == phase and not pressed.is_set():
                    pressed.set()
                    server.process.send_signal(signal.SIGINT)

            with pytest.raises(Exception):  # noqa: B017  the connection ends, in one of many ways
                server.client.run(graphs.modular(voice=graphs.LONG_VOICE, seed=202), press)
            assert pressed.is_set() and server.process.wait(timeout=60) == 0
            assert "cannot be written" not in server.written()
    except Absent as reason:
        pytest.skip(str(reason))
