"""Videos that workers make, encoders and VAE included, are those of this process, frame for frame."""

import contextlib
import functools
from pathlib import Path

import pytest
from cli.runs import write_inputs

from liveavatar.distributed import RayBackend
from liveavatar.pipeline import LiveAvatarPipeline
from liveavatar.receipt import Receipt

SECONDS = 2.6
"""Six blocks: the sink is refreshed and the KV caches wrap."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """A video by (stages, steps), in this process or by a backend."""
    inputs = write_inputs(tmp_path_factory.mktemp("inputs"), SECONDS)

    def make(stages: str, steps: int, out: Path, backend: RayBackend | None = None) -> Receipt:
        pipeline = LiveAvatarPipeline.from_pretrained(stages=stages, devices=("cpu",), threads=1, backend=backend)
        image, audio = inputs / "portrait.png", inputs / "voice.wav"
        with contextlib.closing(pipeline(image, audio, size="64x64", seed=11, steps=steps)) as job:
            return job.save(out)

    here = tmp_path_factory.mktemp("here")
    alone = functools.cache(lambda steps: make("1x1", steps, here / f"{steps}.mp4").frames_sha256)
    return make, alone


@pytest.mark.parametrize(
    ("stages", "steps"),
    [
        ("1x3", 3),
        *(
            pytest.param(stages, steps, marks=pytest.mark.slow)
            for stages, steps in (
                ("1x1", 4),
                ("2x2", 4),
                ("4x1", 4),
                ("1x4", 4),
                ("1x5", 4),
                ("3x1", 3),
                ("1x2", 5),
                ("2x2", 5),
            )
        ),
    ],
)
def test_any_cut_at_any_number_of_steps_gives_equal_frames(
    backend: RayBackend, made, tmp_path: Path, stages: str, steps: int
) -> None:
    make, alone = made
    receipt = make(stages, steps, tmp_path / "a.mp4", backend)
    assert receipt.frames_sha256 == alone(steps) is not None
    assert receipt.effective.blocks == 6 and not receipt.notices
    assert len({*backend.worker_pids, backend.codec_pid}) == receipt.plan.partition.stages + 1, "the VAE has its own"
