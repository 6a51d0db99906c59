"""The bytes of a plan for workers are those that workers hold, each its own."""

import dataclasses

from distributed.videos import Video

from liveavatar.distributed import RayBackend
from liveavatar.planner import Plan


def test_workers_hold_the_weights_of_their_plan(backend: RayBackend) -> None:
    """Two stages of the same layers on one device share them in one process, and cannot in two."""
    video = Video(2)
    plan = _two_groups(backend, video)
    assert plan.processes
    video.latents(backend, "2x1")
    worker_bytes = sum(worker.loaded_bytes["cpu"] for worker in backend.pool.workers)
    assert worker_bytes == plan.weights_by_device["cpu"] + plan.embedders
    assert plan.weights_by_device["cpu"] == 2 * plan.stages[0].weights


def _two_groups(backend: RayBackend, video: Video) -> Plan:
    placement = dataclasses.replace(backend.placement, stages="2x1", dtype="float32")
    return placement.make_plan(video.job.resolved, video.components.config, video.components.name)
