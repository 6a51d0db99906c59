"""On a GPU: the demo from end to end, in this process and in workers; and nothing of it is left."""
# ruff: noqa: E402  (what is imported below needs the libraries that are asked for first)

import contextlib
import gc
from pathlib import Path

import pytest
import torch
from gpu.device import DEVICE, ON_GPU, held, on_the_device

for library in ("av", "soxr", "ftfy"):
    pytest.importorskip(library, reason=f"whole videos need {library}, which is not installed")

from liveavatar.engine.backend import Backend
from liveavatar.pipeline import LiveAvatarPipeline
from liveavatar.receipt import Receipt

pytestmark = on_the_device
ASSETS = Path(__file__).parents[2] / "liveavatar/mini/assets"
SECONDS = 2.6
"""Six blocks: the sink is refreshed and the rings wrap."""


def demo(out: Path, stages: str = "1x1", backend: Backend | None = None) -> Receipt:
    dtype = "bfloat16" if ON_GPU else "float32"
    pipeline = LiveAvatarPipeline.from_pretrained(
        stages=stages, devices=(DEVICE,), dtype=dtype, threads=1, backend=backend
    )
    inputs = ASSETS / "portrait.png", ASSETS / "voice.wav"
    with contextlib.closing(pipeline(*inputs, size="128x128", seed=11, seconds=SECONDS)) as job:
        return job.save(out)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Receipt:
    return demo(tmp_path_factory.mktemp("one") / "a.mp4")


def test_the_demo_is_made_and_leaves_nothing_on_the_device(made: Receipt, tmp_path: Path) -> None:
    assert made.status == "complete" and made.frames_sha256
    gc.collect()
    before = held()
    assert demo(tmp_path / "a.mp4").frames_sha256 == made.frames_sha256
    gc.collect()
    assert held() == before


@pytest.mark.parametrize("stages", ["1x2", "2x2"])
def test_stages_on_one_card_make_the_same_frames(made: Receipt, tmp_path: Path, stages: str) -> None:
    assert demo(tmp_path / "a.mp4", stages).frames_sha256 == made.frames_sha256


@pytest.mark.parametrize("stages", ["1x1", "1x2"])
def test_workers_make_the_same_frames(made: Receipt, tmp_path: Path, stages: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (the extra 'ray')")
    from liveavatar.distributed import RayBackend
    from liveavatar.placement import Placement

    backend = RayBackend(Placement((DEVICE,), stages, threads=1))
    try:
        assert demo(tmp_path / "a.mp4", stages, backend).frames_sha256 == made.frames_sha256
    finally:
        backend.release()
    if ON_GPU:
        free, total = torch.cuda.mem_get_info(DEVICE)
        assert total - free < 4e9, "the workers' memory is given back"
