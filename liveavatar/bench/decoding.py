"""The VAE: alone, and beside the network."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from ..codec import vae_decoder
from ..engines.ahead import on_accelerators
from ..session import Engine, Job
from ..streams.frames import Decoder
from .figures import seconds_per_block
from .found import Decoding
from .random_model import RandomComponents
from .watched import Run, WatchedEngine

T = TypeVar("T")

_BLOCKS = 3
"""Decoded alone, after one that warms up."""


def decoding(
    components: RandomComponents, engine: WatchedEngine, job: Job, run: Run, first_block: float, dtype: torch.dtype
) -> Decoding:
    """Measure it.

    Args:
        components: whose VAE.
        engine, job: what works beside it on accelerators.
        run: made by them; its latents are decoded.
        first_block: seconds to the first finished latent.
        dtype: of the VAE.
    """
    device = engine.device
    vae = components.vae(device, dtype)
    open_decoder = functools.partial(vae_decoder, vae, job.material.motion, engine.plan.threads, engine.plan.vae_tiles)
    decode: Decoder
    decode, warmup = _timed(open_decoder, device)
    alone = statistics.median([_timed(functools.partial(decode, n), device)[1] for n in run.latents[: _BLOCKS + 1]][1:])
    del decode  # what it remembers makes room for the next one
    beside, meanwhile = None, None
    if on_accelerators(engine.plan):
        beside, meanwhile = side_by_side(engine.unwatched(), job, open_decoder())
    return Decoding(alone, warmup, first_block + alone, beside, meanwhile)


def side_by_side(engine: Engine, job: Job, decode: Decoder) -> tuple[float, float]:
    """Seconds per block of a video that is made and decoded, and of the decoder in it."""
    ends, times = [], []
    for latents in engine.run(job, lambda report: None):
        start = time.perf_counter()
        decode(latents)
        ends.append(time.perf_counter())
        times.append(ends[-1] - start)
    return seconds_per_block(ends), statistics.median(times)


def _timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """What it gives, and its seconds."""
    _wait(device)
    start = time.perf_counter()
    result = work()
    _wait(device)
    return result, time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
