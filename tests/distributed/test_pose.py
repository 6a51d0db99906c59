"""A pose is followed in worker processes as in one process, also when the worker that encodes it is lost."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.runs import write_inputs
from pipeline.test_pose import PICTURES

from liveavatar import LiveAvatarPipeline, Request
from liveavatar.distributed import RayBackend
from liveavatar.distributed.pool import CodecWorkerHandle
from liveavatar.errors import Cancelled
from liveavatar.events import Callback, Event, ignore
from liveavatar.task_graph import Denoise

REQUEST = Request(size="64x64", steps=2, seed=9, keep_state=True)
Inputs = tuple[Path, Path]


@pytest.fixture
def backend(backend: RayBackend) -> Iterator[RayBackend]:
    backend.restarts = 2
    yield backend
    backend.restarts = 0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A portrait, and a voice of seven blocks."""
    folder = write_inputs(tmp_path_factory.mktemp("inputs"), 3.3)
    return folder / "portrait.png", folder / "voice.wav"


def pipeline(backend: RayBackend | None = None, stages: str = "1x1") -> LiveAvatarPipeline:
    return LiveAvatarPipeline.from_pretrained("untrained", stages=stages, devices=("cpu",), threads=1, backend=backend)


def latents(made: LiveAvatarPipeline, inputs: Inputs, pose: np.ndarray | None, callback: Callback = ignore):
    with contextlib.closing(made(*inputs, request=REQUEST, pose=pose)) as video:
        return video.latents(callback)


@pytest.fixture(scope="module")
def expected(inputs: Inputs) -> torch.Tensor:
    return latents(pipeline(), inputs, PICTURES)


@pytest.mark.parametrize("stages", ["1x1", "1x2", "2x1", "2x2"])
def test_every_cut_follows_alike(backend: RayBackend, inputs: Inputs, expected: torch.Tensor, stages: str) -> None:
    assert torch.equal(latents(pipeline(backend, stages), inputs, PICTURES), expected)


def test_without_a_pose_it_is_another_video(backend: RayBackend, inputs: Inputs, expected: torch.Tensor) -> None:
    assert not torch.equal(latents(pipeline(backend, "1x2"), inputs, None), expected)


@pytest.mark.parametrize("which", ["codec", "stage"])
def test_a_worker_that_is_lost_on_the_way_is_replaced(
    backend: RayBackend, inputs: Inputs, expected: torch.Tensor, which: str
) -> None:
    killed = []

    def kill(event: Event) -> None:
        if event.task == Denoise(1, 0, 0) and not killed:
            killed.append(backend.codec_pid if which == "codec" else backend.worker_pids[0])
            os.kill(killed[0], signal.SIGKILL)

    assert torch.equal(latents(pipeline(backend, "1x2"), inputs, PICTURES, kill), expected)
    assert killed and backend.codec_pid and killed[0] not in (backend.codec_pid, *backend.worker_pids)


def test_cancel_ends_a_video_while_its_pose_is_encoded(backend: RayBackend, inputs: Inputs, monkeypatch) -> None:
    wait, waits = CodecWorkerHandle.call, []

    def call(handle, place, doing, seconds, heartbeat, name, *given):
        if name == "encode_pose":
            waits.append(name)
            heartbeat()  # as while the worker is slow
        return wait(handle, place, doing, seconds, heartbeat, name, *given)

    def cancel(event: Event) -> None:
        if waits:
            raise Cancelled("Enough.")

    monkeypatch.setattr(CodecWorkerHandle, "call", call)
    video = pipeline(backend)(*inputs, request=REQUEST, pose=PICTURES)
    with contextlib.closing(video), pytest.raises(Cancelled):
        video.latents(cancel)
    assert waits == ["encode_pose"]


def test_a_video_goes_on_with_its_pose_in_workers(backend: RayBackend, inputs: Inputs, tmp_path: Path) -> None:
    states = []
    for made in (pipeline(), pipeline(backend, "1x2")):
        with contextlib.closing(made(*inputs, request=REQUEST, pose=PICTURES)) as video:
            states.append(tmp_path / f"{len(states)}.state")
            video.save(tmp_path / "a.mp4", state=states[-1])
    assert states[0].read_bytes() == states[1].read_bytes()
    rest = []
    for made in (pipeline(), pipeline(backend, "2x1")):
        with contextlib.closing(
            made(None, inputs[1], request=REQUEST, continue_from=states[1], pose=PICTURES)
        ) as video:
            rest.append(video.latents())
    assert torch.equal(*rest)
