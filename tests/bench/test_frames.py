"""The way of frames is measured part by part."""

from liveavatar.bench.frames import bench_frames


def test_every_part_is_measured():
    costs = bench_frames(64, 64, turns=1)
    assert min(costs.to_bytes, costs.hashing, costs.writing, costs.decode, costs.diffusers) > 0
    assert len(costs.ratios) == 1 and costs.frames_per_second > 0
