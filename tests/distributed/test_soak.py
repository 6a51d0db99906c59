"""Many short videos, most of them broken off in one way or another, leave nothing behind.

15 videos by default; LIVEAVATAR_SOAK=200 for a long one, which also shows its numbers (with -s).
"""

import dataclasses
import os
import random
import signal
import statistics
import sys
from pathlib import Path

import pytest
from distributed.videos import Video

from liveavatar.distributed import RayBackend, WorkerError, cluster
from liveavatar.errors import Cancelled
from liveavatar.events import Event

pytest.importorskip("ray", reason="Ray is not installed (the extra 'ray')")
psutil = pytest.importorskip("psutil")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="counts what Linux shows of processes"),
    pytest.mark.timeout(3600),
]
SESSIONS = max(15, int(os.environ.get("LIVEAVATAR_SOAK", "15")))
SEED = 7
CUTS = ("1x2", "1x2", "2x1", "2x1", "1x1", "1x3")
ENDINGS = ("whole", "cancel", "cancel", "close", "close", "kill")
WARM_VIDEOS = 3
"""After which a worker's memory should stay as it is."""
WORKER_MEGABYTES = 25
"""What a worker may grow by after that: another cut gives it more or fewer layers."""
MEGABYTE = 2**20


@dataclasses.dataclass(frozen=True)
class Held:
    """What there is between two videos; each number may rise by its tolerance from one half of the soak to the other.

    Beside the driver's own and its workers' things stand those of Ray's processes, which are its descendants too.
    """

    descriptors: int
    sockets: int
    threads: int
    children: int
    shared_memory: int
    folders: int
    driver_megabytes: float


TOLERANCE = Held(4, 4, 3, 2, 0, 0, driver_megabytes=12)


class Soak:
    """One backend and what was seen of it."""

    def __init__(self, backend: RayBackend, seed: int):
        self.backend, self.chance = backend, random.Random(seed)
        self.video = Video(6)
        self._stages = ""
        self._endings: list[str] = []
        """Those to come, in an order of their own every time."""
        self.seen: list[Held] = []
        self.megabytes: dict[int, list[float]] = {}
        """Of each worker, after each of its videos once it has had the parts that are most unlike: only then all that
        PyTorch loads for the first of a kind is there."""
        self._parts: dict[int, set[str]] = {}

    def session(self) -> str:
        """One video with a random cut and end; what it was."""
        self._endings = self._endings or self.chance.sample(ENDINGS, len(ENDINGS))
        stages, ending = self.chance.choice(CUTS), self._endings.pop()
        self._stages = stages
        engine = self.video.engine(self.backend, stages)
        engine.load()
        there = self.backend.worker_pids
        if ending == "whole":
            assert self.video.is_made_by(self.backend, stages)
        elif ending == "close":
            running = engine.run(self.video.job)
            next(running)
            running.close()
        else:
            self._break_off(engine, ending, self.chance.choice(there))
        self._check_processes()
        return f"{stages} {ending}"

    def _break_off(self, engine, ending: str, victim: int) -> None:
        at = self.chance.randint(1, 12)  # while a worker may not have been allowed the last block

        def act(report: Event) -> None:
            if report.done == at and ending == "cancel":
                raise Cancelled("stop")
            if report.done == at:
                os.kill(victim, signal.SIGKILL)

        with pytest.raises(Cancelled if ending == "cancel" else WorkerError):
            list(engine.run(self.video.job, act))

    def _check_processes(self) -> None:
        """All workers there are belong to the backend; one that was ended may take a moment."""
        own = set(self.backend.worker_pids)
        others = [p for p in psutil.Process().children(recursive=True) if is_worker(p) and p.pid not in own]
        _, alive = psutil.wait_procs(others, timeout=10)
        assert not alive, f"{len(alive)} workers that nobody knows"
        assert all(psutil.pid_exists(pid) for pid in own)

    def note(self) -> None:
        """Write down what there is now."""
        me = psutil.Process()
        for pid in self.backend.worker_pids:
            parts = self._parts.setdefault(pid, set())
            parts.add(self._stages)
            if parts >= {"1x2", "2x1"}:
                self.megabytes.setdefault(pid, []).append(psutil.Process(pid).memory_info().rss / MEGABYTE)
        self.seen.append(
            Held(
                descriptors=me.num_fds(),
                sockets=len(me.net_connections("all")),
                threads=me.num_threads(),
                children=len(me.children(recursive=True)) - len(self.backend.worker_pids),
                shared_memory=len(list(Path("/dev/shm").iterdir())),
                folders=len(list(cluster.short_folder().glob(f"la-{os.getpid()}-*"))),
                driver_megabytes=me.memory_info().rss / MEGABYTE,
            )
        )

    def grown(self) -> dict[int, float]:
        """Megabytes that each worker grew by, once it was warm, from the first half of its videos to the second."""
        warm = {pid: seen[WARM_VIDEOS:] for pid, seen in self.megabytes.items() if len(seen) >= WARM_VIDEOS + 2}
        return {pid: rise(seen) for pid, seen in warm.items()}


def rise(numbers: list[float]) -> float:
    """Median of the second half less median of the first."""
    half = len(numbers) // 2
    return statistics.median(numbers[half:]) - statistics.median(numbers[:half])


def is_worker(process) -> bool:
    try:
        return "RemoteWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


@pytest.mark.slow
def test_many_broken_off_videos_leave_nothing_behind(backend: RayBackend) -> None:
    soak, kinds = Soak(backend, SEED), []
    for number in range(SESSIONS):
        kinds.append(soak.session())
        soak.note()
        if number % 20 == 0:
            print(f"{number} {kinds[-1]}: {soak.seen[-1]}", flush=True)
    assert soak.video.is_made_by(backend, "1x2")
    assert {kind.split()[1] for kind in kinds} == set(ENDINGS)
    for field in dataclasses.fields(Held):
        numbers = [getattr(held, field.name) for held in soak.seen]
        risen = rise(numbers)
        print(f"{field.name}: {min(numbers):.6g} to {max(numbers):.6g}, rose by {risen:.3g}")
        assert risen <= getattr(TOLERANCE, field.name), f"{field.name} rose by {risen:g}"
    grown = soak.grown()
    print(f"{len(soak.megabytes)} workers; those that were warm grew by {[round(g, 1) for g in grown.values()]} MB")
    assert grown and max(grown.values()) <= WORKER_MEGABYTES
