"""A worker without memory says so, by name and with what to do; the others stay, and the next video is whole."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from distributed.videos import Video

from liveavatar.distributed import RayBackend, WorkerError
from liveavatar.distributed.wire import fault_from
from liveavatar.errors import LiveAvatarError, ModelError

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="limits another process's memory")
LARGE = "768x768"
"""Its keys and values take 118 MB per stage of 1x2."""


@contextmanager
def limited(pid: int, megabytes: int) -> Iterator[None]:
    """A process that can get so much memory beyond what it has."""
    import resource

    process = Path(f"/proc/{pid}")
    pages = int((process / "statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + megabytes * 2**20
    before = resource.prlimit(pid, resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        if process.exists():  # it is ended with its fault
            resource.prlimit(pid, resource.RLIMIT_AS, before)


@on_linux
@pytest.mark.parametrize("stage", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_video_too_large_for_one_worker(backend: RayBackend, stage: int) -> None:
    video, large = Video(2), Video(1, size=LARGE)
    assert video.is_made_by(backend, "1x2")
    before = backend.worker_pids
    with (
        limited(before[stage], 48),
        pytest.raises(WorkerError, match=rf"Stage {stage + 1} of 2 .* failed: out of memory \(") as caught,
    ):
        large.latents(backend, "1x2")
    assert caught.value.stage == stage
    assert "Use more stages or a smaller size" in caught.value.nearest
    assert video.is_made_by(backend, "1x2")
    after = backend.worker_pids
    assert after[stage] != before[stage] and after[1 - stage] == before[1 - stage]


@on_linux
@pytest.mark.slow
def test_weights_too_large_for_one_worker(backend: RayBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.release()  # new workers hold no memory that others have given back,
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")  # and reserve no address space for threads
    video, mini = Video(2), Video(2, "mini", steps=2)
    assert video.is_made_by(backend, "1x2"), "so that loading needs no memory for anything else"
    before = backend.worker_pids
    with (
        limited(before[1], 4),
        # Where its libraries get none either, the worker cannot say it any more.
        pytest.raises(WorkerError, match=r"Stage 2 of 2 .*(weights: out of memory|out of host memory)"),
    ):
        mini.engine(backend, "1x2").load()
    assert mini.is_made_by(backend, "1x2")
    after = backend.worker_pids
    assert after[0] == before[0] and after[1] != before[1]


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        caused(ModelError("The file is cut off.", "Fetch it again."), MemoryError("no room")),
    ],
    ids=repr,
)
def test_a_lack_of_memory_is_recognised(error: Exception) -> None:
    fault = fault_from(error)
    assert fault.kind == "failed"
    assert fault.what.startswith("out of memory (") and "cut off" not in fault.what
    assert "smaller size" in fault.nearest


def test_other_trouble_is_not_blamed_on_memory() -> None:
    refusal = LiveAvatarError("Out of memory is what this would be.", "Use less.")
    assert fault_from(refusal).kind == "refused" and fault_from(refusal).nearest == "Use less."
    fault = fault_from(caused(RuntimeError("shapes differ.\nmore"), ValueError("x")))
    assert (fault.kind, fault.what) == ("failed", "RuntimeError: shapes differ")
    assert "log" in fault.nearest
