"""Several speakers in worker processes: the same bits as in this process, on every cut."""

import pytest
from distributed.videos import Video
from engine.tiny import with_two_speakers

from liveavatar.distributed import RayBackend


@pytest.fixture(scope="module")
def video() -> Video:
    made = Video(5, steps=2)
    made.job = with_two_speakers(made.job)
    return made


@pytest.mark.parametrize("stages", ["1x2", "2x1"])
def test_workers_hear_all_speakers(backend: RayBackend, video: Video, stages: str) -> None:
    assert video.is_made_by(backend, stages)
