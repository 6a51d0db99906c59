"""Workers work at the same time, not in turns; how much faster that makes a video, `bench pipeline` says."""

import pytest

from liveavatar.bench.pipeline import bench_pipeline
from liveavatar.distributed import RayBackend


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["1x2", "2x1"])
def test_two_workers_have_worked_longer_than_the_video_took(backend: RayBackend, cut: str) -> None:
    _, two = bench_pipeline(backend, [cut], 17, 0.05).cuts
    assert two.stages == 2 and sum(two.busy) > 1
