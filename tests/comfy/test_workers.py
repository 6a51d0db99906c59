"""A graph whose Backend asks for worker processes: the same video, Cancel while they compute, and a killed worker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import graphs
import pytest
from live_client import PROGRESS, Client, Event
from live_server import Server
from outcome import receipt_of, succeeded
from test_cancel import LATE_TASKS, PATIENCE, cancelled, in_block

STAGES = 3
WORKERS = STAGES + 1
"""And one of encoders and VAE."""


@pytest.fixture(autouse=True)
def _needs_ray(server: Server) -> None:
    python = server.process.args[0]
    if subprocess.run([python, "-c", "import ray"], capture_output=True, check=False).returncode:
        pytest.skip("the Python that runs ComfyUI has no Ray (the extra 'ray' of this package)")


def worked(engine: str, stages: str, restarts: int = 2, **given: object) -> graphs.Graph:
    """The modular graph, on one CPU thread per task, in this process or in workers."""
    graph = graphs.modular(**given)
    where = {"devices": "cpu", "stages": stages, "memory": "keep loaded", "threads": 1, "restarts": restarts}
    graph["backend"] = graphs.node("LiveAvatarBackend", engine=engine, **where)
    graph["model"]["inputs"]["backend"] = ["backend", 0]
    return graph


def by_workers(restarts: int = 2, **given: object) -> graphs.Graph:
    """A part of the layers in each of three processes."""
    return worked("worker processes", f"1x{STAGES}", restarts, **given)


def workers_of(server: Server) -> list[int]:
    """Worker processes that descend from the server."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"RemoteWorker" in (folder / "cmdline").read_bytes() and server.process.pid in _ancestors(folder):
                found.append(int(folder.name))
    return found


def _ancestors(folder: Path) -> set[int]:
    seen: set[int] = set()
    pid = int(folder.name)
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[1])
        seen.add(pid)
    return seen


def worker_of_stage(server: Server, stage: int) -> int:
    """Its process, as the server's workers are listed."""
    folders = Path("/tmp").glob(f"la-{server.process.pid}-*")
    pages = [
        json.loads(page.read_text(encoding="utf-8")) for folder in folders for page in folder.glob("workers-*.json")
    ]
    (pid,) = [worker["pid"] for page in pages for worker in page["workers"] if worker["stage"] == stage]
    return int(pid)


class Killer:
    """Kills the worker of a stage in the middle of a video."""

    def __init__(self, server: Server, stage: int):
        self.server, self.stage, self.killed = server, stage, 0

    def __call__(self, event: Event) -> None:
        if (
            event.kind == PROGRESS
            and event.data["phase"] == "generating"
            and event.data["block"] >= 4
            and not self.killed
        ):
            self.killed = worker_of_stage(self.server, self.stage)
            os.kill(self.killed, signal.SIGKILL)


def test_workers_make_the_video_that_this_process_makes(server: Server, client: Client) -> None:
    asked = {"seed": 300, "voice": graphs.LONG_VOICE, "seconds": 3.0}
    own = succeeded(client.run(worked("this process", "1x1", **asked)))
    theirs = succeeded(client.run(by_workers(**asked)))
    assert receipt_of(theirs)["frames_sha256"] == receipt_of(own)["frames_sha256"]
    assert receipt_of(theirs)["plan"]["cut"]["layers"][-1]["stop"] == 6
    assert len(workers_of(server)) == WORKERS


def test_cancel_while_workers_compute(server: Server, client: Client) -> None:
    graph = by_workers(seed=301, voice=graphs.LONG_VOICE)
    run, button = cancelled(client, graph, in_block(4))
    assert run.outcome == "interrupted"
    assert len(button.tasks) <= LATE_TASKS + STAGES
    assert button.seconds < PATIENCE
    before = sorted(workers_of(server))
    short = by_workers(seed=302)
    succeeded(client.run(short))
    assert sorted(workers_of(server)) == before, "warm workers are used again"


def test_a_killed_worker_is_replaced_and_named_in_the_receipt(server: Server, client: Client) -> None:
    asked, killer = {"seed": 303, "voice": graphs.LONG_VOICE}, Killer(server, 1)
    theirs = receipt_of(succeeded(client.run(by_workers(**asked), killer)))
    notice = theirs["notices"][0]
    assert "Stage 2 of 3" in notice and "was lost" in notice and "it was replaced, going on from block" in notice
    assert killer.killed and killer.killed not in workers_of(server)
    own = receipt_of(succeeded(client.run(worked("this process", "1x1", **asked))))
    assert theirs["frames_sha256"] == own["frames_sha256"]


def test_a_killed_worker_shows_an_error_on_the_node_where_none_is_replaced(server: Server, client: Client) -> None:
    killer = Killer(server, 2)
    run = client.run(by_workers(restarts=0, seed=304, voice=graphs.LONG_VOICE), killer)
    assert run.outcome == "error"
    said = run.error["exception_message"]
    assert "Stage 3 of 3" in said and "was lost" in said and "last log lines" in said
    succeeded(client.run(by_workers(restarts=0, seed=306)))
    assert killer.killed not in workers_of(server) and len(workers_of(server)) == WORKERS


def test_unloading_models_ends_the_workers(server: Server, client: Client) -> None:
    succeeded(client.run(by_workers(seed=305)))
    assert workers_of(server)
    client.free()
    until = time.monotonic() + PATIENCE
    while workers_of(server) and time.monotonic() < until:  # ComfyUI gives back after it has told of the end
        time.sleep(0.05)
    assert not workers_of(server)
