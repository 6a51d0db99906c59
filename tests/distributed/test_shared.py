"""Workers of one machine have one copy of the layers that live in its memory."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from distributed.videos import Video
from weights.gguf_files import mini_transformer
from weights.layout_files import write_packed

from liveavatar.components import MINI_FOLDER, packed_of
from liveavatar.distributed import RayBackend, RayEngine
from liveavatar.engine.local import LocalEngine
from liveavatar.offload.host_weights import supports_shared_memory
from liveavatar.planner import make_plan
from liveavatar.storage import PLAIN, StorageConfig

pytestmark = pytest.mark.skipif(
    not supports_shared_memory(), reason="this system has no memory without a name to share"
)
KEPT = StorageConfig(offload_layers=2, offload_text_kv=True)


@pytest.fixture(scope="module")
def video() -> Video:
    return Video(5)


def engine(backend: RayBackend, video: Video, stages: str, storage: StorageConfig = KEPT) -> RayEngine:
    config, name = video.components.config, video.components.name
    plan = make_plan(
        video.job.resolved, config, model=name, stages=stages, storage=storage, snapshot_blocks=0, processes=True
    )
    return backend.engine(video.components, plan)


def memories(pid: int) -> set[tuple[int, str]]:
    """Shared memory that a process has mapped: inodes and names."""
    lines = (line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
    return {(int(f[4]), f[5]) for f in lines if len(f) > 5 and f[5].startswith("/memfd:liveavatar-")}


@pytest.mark.parametrize(("stages", "parts"), [pytest.param("2x1", 1, marks=pytest.mark.slow), ("2x2", 2)])
def test_stages_of_the_same_layers_share_them_and_make_the_same_numbers(
    backend: RayBackend, video: Video, stages: str, parts: int
) -> None:
    made = engine(backend, video, stages)
    assert torch.equal(torch.cat(list(made.run(video.job)), 1), video.expected)
    held = [memories(pid) for pid in backend.worker_pids]
    assert all(len(mapped) == 1 for mapped in held)
    assert held[:parts] == held[parts:] and len(set.union(*held)) == parts
    shared = [worker.shared for worker in backend.status().workers]
    assert shared[:parts] == shared[parts:] and min(shared) > 0
    (planned,) = made.plan.host_bytes_by_machine.values()
    assert planned == pytest.approx(sum(shared[:parts]), rel=0.02)
    resident = sum(made.plan.weights_by_device.values()) + made.plan.embedders
    assert backend.bytes_by_device()["cpu"] == pytest.approx(resident + planned, rel=0.02)


def test_a_new_worker_finds_what_the_others_have(backend: RayBackend, video: Video) -> None:
    engine(backend, video, "2x1").load()
    before, (one, other) = memories(backend.worker_pids[0]), backend.worker_pids
    os.kill(one, signal.SIGKILL)
    made = engine(backend, video, "2x1")
    made.load()
    assert backend.worker_pids[0] != one and backend.worker_pids[1] == other
    assert memories(backend.worker_pids[0]) == memories(other) == before
    assert torch.equal(torch.cat(list(made.run(video.job)), 1), video.expected)


def test_packed_layers_are_shared_as_they_are_and_make_the_same_numbers(backend: RayBackend, tmp_path: Path) -> None:
    """Matrices in nvfp4, some of them on the host, against all of them in this process."""
    shutil.copytree(MINI_FOLDER, tmp_path / "mini")
    video = Video(2, str(write_packed(tmp_path / "mini" / "mini", mini_transformer(), "nvfp4")), steps=2)
    config, packed, resolved = video.components.config, packed_of(video.components), video.job.resolved
    here = make_plan(resolved, config, model="mini", storage=StorageConfig(weights="packed"), packed=packed)
    wanted = torch.cat(list(LocalEngine(video.components, here).run(video.job)), 1)
    storage = StorageConfig(weights="packed", offload_layers=2)
    plan = make_plan(
        resolved, config, model="mini", stages="2x1", storage=storage, packed=packed, snapshot_blocks=0, processes=True
    )
    made = backend.engine(video.components, plan)
    assert torch.equal(torch.cat(list(made.run(video.job)), 1), wanted)
    (planned,) = plan.host_bytes_by_machine.values()
    one, other = (worker.shared for worker in backend.status().workers)
    assert one == other == pytest.approx(planned, rel=0.02)


def test_nothing_stays_when_other_weights_are_loaded(backend: RayBackend, video: Video) -> None:
    engine(backend, video, "2x1").load()
    ((_, held),) = set.union(*map(memories, backend.worker_pids))
    name = held.removeprefix("/memfd:").split()[0]
    # Of memory that was let go by workers that were killed, a notice stays until the folder goes.
    (notice,) = (path for path in (backend.pool.resources.folder / "weights").iterdir() if name in path.read_text())
    engine(backend, video, "2x1", PLAIN).load()
    assert not any(map(memories, backend.worker_pids)) and not notice.exists()
    assert {worker.shared for worker in backend.status().workers} == {0}
