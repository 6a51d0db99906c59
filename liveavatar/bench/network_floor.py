"""A step of a small network on the CPU: beside the published network, and beside the products and attention it is made
of, which no way to write the rest of it can be faster than."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..config import BLOCK_LATENTS, ModelConfig
from ..planner import make_plan
from ..session import cpu_threads
from .material import noise_job
from .random_model import RandomComponents
from .step_comparison import MEASURED_BLOCK, StepEngine, fill_window

SIZES = ("256x128", "128x64")
"""Of the image: 384 and 96 tokens in a block."""
_CONFIG = ModelConfig(
    dim=1024,
    ffn_dim=2816,
    freq_dim=64,
    num_heads=8,
    num_layers=3,
    text_dim=64,
    text_len=64,
    audio_dim=64,
    audio_layers=3,
    audio_inject_layers=(0, 2),
)
_FLOOR = ("mm", "addmm", "bmm", "baddbmm", "linear", "_linear_pointwise")


@dataclasses.dataclass(frozen=True)
class NetworkFloor:
    """CPU seconds of a step with a full window: medians, and the ratios of each round.

    Attributes:
        tokens: of a block.
        seconds: of ours.
        to_floor: ours / its own products and attention.
        to_original: the published network / ours; empty where that was not measured.
    """

    tokens: int
    seconds: float
    to_floor: tuple[float, ...]
    to_original: tuple[float, ...]

    def __str__(self) -> str:
        parts = [f"{self.tokens} tokens, dim {_CONFIG.dim}, {_CONFIG.num_layers} layers: {1000 * self.seconds:.1f} ms"]
        if self.to_original:
            parts.append(f"original / ours {_spread(self.to_original)}")
        return ", ".join([*parts, f"ours / products and attention {_spread(self.to_floor)}"])


class _RecordedFloor(TorchDispatchMode):
    """Keeps the matrix products and attention that run, with what they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.rpartition("::")[2]
        if name in _FLOOR or "attention" in name:
            alone = (*args[:3], "none", [], "") if name == "_linear_pointwise" else args  # without what follows it
            self.calls.append(functools.partial(function, *alone, **(kwargs or {})))
        return function(*args, **(kwargs or {}))

    def run(self) -> None:
        """All of them again."""
        for call in self.calls:
            call()


class _Components(RandomComponents):
    """A network whose layers are wide enough for their products to take most of the time."""

    def __init__(self) -> None:
        self.name, self.config, self.maker = f"dim {_CONFIG.dim}", _CONFIG, torch.device("cpu")


def measure_network(size: str, original: Path | None, threads: int, rounds: int) -> NetworkFloor:
    """Alternated rounds of ours, of its floor, and of the published network where its checkout is given.

    Args:
        size: of `SIZES`.
        original: folder of the published repository.
        threads: CPU threads.
        rounds: at least 1.

    Raises:
        ModelError: the folder is no checkout, or it imports a module that is missing.
    """
    job = noise_job(_CONFIG, MEASURED_BLOCK + 2, 1, size)
    plan = make_plan(job.resolved, _CONFIG, model=f"dim {_CONFIG.dim}", threads=threads)
    ours = StepEngine(_Components(), plan)
    ours.load()
    height, width = job.resolved.latent_size
    latent = torch.randn(_CONFIG.in_dim, BLOCK_LATENTS, height, width, generator=torch.Generator().manual_seed(1))
    with cpu_threads(threads), torch.inference_mode():
        fill_window(ours, job)
        steps: list[Callable[[], Any]] = [functools.partial(ours.denoise, MEASURED_BLOCK, latent)]
        with _RecordedFloor() as floor:
            steps[0]()
        steps.append(floor.run)
        if original is not None:
            from .original import OriginalNetwork

            published = OriginalNetwork(original, ours.nets())
            fill_window(published, job)
            steps.append(functools.partial(published.denoise, MEASURED_BLOCK, latent))
        taken = [[_cpu_seconds(step) for step in steps] for _ in range(rounds + 1)][1:]
    return NetworkFloor(
        tokens=BLOCK_LATENTS * height * width // 4,
        seconds=statistics.median(row[0] for row in taken),
        to_floor=tuple(row[0] / row[1] for row in taken),
        to_original=tuple(row[2] / row[0] for row in taken) if original is not None else (),
    )


def _cpu_seconds(step: Callable[[], Any]) -> float:
    """Of all threads: programs beside this one count little."""
    begun = time.process_time()
    step()
    return time.process_time() - begun


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
