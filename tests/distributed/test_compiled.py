"""Workers compile before they work, once; what they make then is the same."""

import dataclasses

import pytest
import torch
from distributed.videos import Video, notices

from liveavatar import compiler
from liveavatar.distributed import RayBackend
from liveavatar.distributed.worker_handle import WorkerError
from liveavatar.engine.compile import forms
from liveavatar.engine.local import LocalEngine
from liveavatar.errors import Cancelled

BLOCKS = 5


@pytest.mark.slow
def test_compiled_workers_make_the_same_video(backend: RayBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "COMPILER", "aot_eager")
    video, said = Video(BLOCKS, clip_blocks=3), []
    plan = dataclasses.replace(video.engine(backend, "1x2").plan, compiled=True)
    engine = backend.engine(video.components, plan)

    def break_off(text: str) -> None:
        raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        engine.load(notices(break_off))
    pids = backend.worker_pids
    assert not engine.loaded
    engine.load(notices(said.append))
    assert engine.loaded and len(said) == forms(3) + 1 and "compiled" in said[-1]
    said.clear()
    latents = torch.cat(list(engine.run(video.job, notices(said.append))), 1)
    local = LocalEngine(video.components, dataclasses.replace(video.plan("1x2"), compiled=True))
    assert torch.equal(latents, torch.cat(list(local.run(video.job)), 1)), "compiled likewise"
    assert (latents - video.expected).abs().max() < 1e-3 * video.expected.abs().max(), "as written: other kernels"
    assert said == [] and backend.worker_pids == pids
    assert video.is_made_by(backend, "1x2"), "workers as they are written, on the same weights"
    assert backend.worker_pids == pids


def test_workers_that_cannot_compile_work_without_where_nobody_asked(
    backend: RayBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "COMPILER", "absent")
    video, said = Video(BLOCKS), []
    plan = dataclasses.replace(video.engine(backend, "1x1").plan, compiled=True)
    with pytest.raises(WorkerError, match=r"Stage 1 of 1 .* cannot be compiled here.*absent") as refused:
        backend.engine(video.components, plan).load()
    assert "--compile off" in refused.value.nearest
    pids, engine = (
        backend.worker_pids,
        backend.engine(video.components, dataclasses.replace(plan, compile_optional=True)),
    )
    made = torch.cat(list(engine.run(video.job, notices(said.append))), 1)
    assert torch.equal(made, video.expected) and backend.worker_pids == pids
    assert "without compiled layers" in said[-1] and "absent" in said[-1]
    assert not engine.plan.compiled and engine.loaded


def test_workers_without_a_compiler_are_refused_before_they_load(backend: RayBackend) -> None:
    video = Video(BLOCKS)
    plain = video.engine(backend, "1x1").plan
    backend.engine(video.components, plain).load()
    (member,) = backend.pool.workers
    greeting = member.handshake
    member.handshake = dataclasses.replace(greeting, lacks={"cpu": "a C++ compiler"})
    other = dataclasses.replace(plain, compiled=True, threads=2)
    try:
        with pytest.raises(WorkerError, match="C\\+\\+ compiler missing") as refused:
            backend.engine(video.components, other).load()
    finally:
        member.handshake = greeting
    assert "--compile off" in refused.value.nearest
    assert member.load_spec.threads == plain.threads, "it had begun to load"
