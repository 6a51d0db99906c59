"""One denoising step of one block on our network and on another: how far the velocities are apart, and the times."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from typing import Any, Protocol, cast

import torch

from ..config import WINDOW_BLOCKS
from ..doctor.devices import median_seconds
from ..engine.local import LocalEngine
from ..model.transformer import CausalS2VTransformer
from ..noise_schedule import block_noise
from ..session import VideoTask
from ..stage import Stage, StageInput
from ..task_graph import Denoise, Prefill

MEASURED_BLOCK = WINDOW_BLOCKS
"""The first block that overwrites the oldest in its window: every later one takes as long."""


class StepNetwork(Protocol):
    """A network that is driven step by step (`liveavatar.bench.original.OriginalNetwork`, `StepEngine`)."""

    device: torch.device
    dtype: torch.dtype

    def begin(self, job: VideoTask) -> None:
        """An empty KV cache and a sink of the job's reference."""

    def renew_sink(self, reference: torch.Tensor) -> None:
        """A sink of another reference latent [16, 1, h, w]."""

    def denoise(self, block: int, latent: torch.Tensor) -> torch.Tensor:
        """The first step of a block: latent -> velocity, [16, 3, h, w] each on the device."""


@dataclasses.dataclass(frozen=True)
class StepComparison:
    """A step of a block with a full window and a renewed sink.

    Attributes:
        difference: largest difference of the velocities, as a share of the other's largest.
        seconds, other_seconds: of ours and of the other, medians of the rounds.
        ratio: other_seconds / seconds, median of the rounds; above 1 ours is faster.
        ratios: of each round.
    """

    difference: float
    seconds: float
    other_seconds: float
    ratio: float
    ratios: tuple[float, ...]


class StepEngine(LocalEngine):
    """Our network, driven step by step: the stage that `LocalEngine` runs for the plan, with its storage and compiled
    layers. Prompt, timesteps and audio are embedded once and not in every step, as in use.

    The plan has one stage; a plan and job of one step keep the KV cache of that step alone.
    """

    device: torch.device
    dtype: torch.dtype
    _running: Stage
    _tapped: _Tapped

    def begin(self, job: VideoTask) -> None:
        vars(self).pop("_running", None)  # the KV cache of another job
        self.load()
        with self._inference():
            (stage,) = self._stages(job)
        self.device, self.dtype = stage.device, stage.dtype
        self._running, self._tapped = stage, _Tapped(stage.net)
        stage.net = cast(CausalS2VTransformer, self._tapped)
        self._prefill(0, job.conditioning.reference)

    def renew_sink(self, reference: torch.Tensor) -> None:
        self._prefill(1, reference)

    def denoise(self, block: int, latent: torch.Tensor) -> torch.Tensor:
        with self._inference():
            self._running.run(Denoise(block, 0, 0), StageInput(latent))
        return self._tapped.latest

    def nets(self) -> list[CausalS2VTransformer]:
        """Every loaded part, once."""
        return list(dict.fromkeys(self._network(*where) for where in self._slices()))

    def _prefill(self, version: int, reference: torch.Tensor) -> None:
        with self._inference():
            self._running.run(Prefill(version, 0, 0), StageInput(reference))


class _Tapped:
    """Stands in for a network and keeps its latest velocity."""

    latest: torch.Tensor

    def __init__(self, net: Any):
        self._net = net

    def __getattr__(self, name: str) -> Any:
        return getattr(self._net, name)

    def velocity(self, *given: Any) -> torch.Tensor:
        self.latest = self._net.velocity(*given)
        return self.latest


def fill_window(network: StepNetwork, job: VideoTask) -> torch.Tensor:
    """Blocks 0 to 3 and a renewed sink, so that `MEASURED_BLOCK` comes next; the velocity of block 0.

    Args:
        network: whose KV cache is filled.
        job: of more blocks than that; every block is of its noise.
    """
    network.begin(job)
    velocities = [network.denoise(block, _noise(network, job, block)) for block in range(WINDOW_BLOCKS)]
    network.renew_sink(_noise(network, job, 0)[:, :1])
    return velocities[0]


def compare_steps(
    ours: StepNetwork, other: StepNetwork, job: VideoTask, rounds: int = 3, seconds: float = 1.0
) -> StepComparison:
    """Both on `MEASURED_BLOCK`, in turns; what has to be compiled is compiled before.

    Args:
        ours, other: each with its window filled by `fill_window`.
        job: the same.
        rounds: at least 1.
        seconds: of steps for each of both in each round, about; one step where that takes much longer.
    """
    latent, device = _noise(ours, job, MEASURED_BLOCK), ours.device.type
    steps = [functools.partial(network.denoise, MEASURED_BLOCK, latent) for network in (ours, other)]
    difference = relative_difference(*(step() for step in steps))
    taken = [[median_seconds(step, device, seconds) for step in steps] for _ in range(rounds)]
    ratios = tuple(theirs / own for own, theirs in taken)
    own, theirs = (statistics.median(column) for column in zip(*taken, strict=True))
    return StepComparison(difference, own, theirs, statistics.median(ratios), ratios)


def relative_difference(ours: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of two tensors, as a share of the other's largest number."""
    expected = other.double()
    return float((ours.double() - expected).abs().max() / expected.abs().max())


def _noise(network: StepNetwork, job: VideoTask, block: int) -> torch.Tensor:
    channels, resolved = job.conditioning.reference.shape[0], job.resolved
    noise = block_noise(resolved.seed, block, channels, *resolved.latent_size)
    return noise.to(network.device, network.dtype)
