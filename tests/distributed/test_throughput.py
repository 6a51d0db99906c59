"""Workers side by side are as much faster as there are of them."""

import pytest

from liveavatar.bench.pipeline import bench_pipeline
from liveavatar.distributed import RayBackend


def test_two_workers_work_side_by_side(backend: RayBackend) -> None:
    one, two = bench_pipeline(backend, ["1x2"], 17, 0.05).cuts
    assert two.multiple >= 1.3, "0.9 of 2 on a machine that does nothing else, see below"
    assert two.predicted.period < 0.6 * one.predicted.period


@pytest.mark.slow
def test_every_cut_reaches_nine_tenths_of_what_its_stages_could(backend: RayBackend) -> None:
    """Needs a machine that does nothing else."""
    found = bench_pipeline(backend, ["1x2", "1x4", "4x1", "2x2"], 40, 0.05)
    print([(cut.cut, round(cut.multiple, 2), cut.busy) for cut in found.cuts])
    assert min(cut.efficiency for cut in found.cuts) >= 0.9
