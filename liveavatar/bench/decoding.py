"""The VAE: alone, and beside the network."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from ..codec import vae_decoder
from ..engine.prefetch import all_on_accelerators
from ..session import Engine, VideoTask
from ..streams import Decoder
from ..vae.tile_grid import WHOLE, Tiles
from .figures import seconds_per_block
from .found import Decoding
from .random_model import RandomComponents
from .watched import Run, WatchedEngine

if TYPE_CHECKING:
    from ..vae.autoencoder import AutoencoderKLWan
    from ..vae.decoding import LatentDecoder

T = TypeVar("T")

_BLOCKS = 3
"""Decoded alone, after one that warms up."""


def decoding(
    components: RandomComponents,
    engine: WatchedEngine,
    job: VideoTask,
    run: Run,
    first_block: float,
    dtype: torch.dtype,
) -> Decoding:
    """Measure it.

    Args:
        components: whose VAE.
        engine, job: what works beside it on accelerators.
        run: made by them; its latents are decoded.
        first_block: seconds to the first finished latent.
        dtype: of the VAE.
    """
    vae = components.vae(engine.device, dtype)
    plan = engine.plan
    alone, warmup, _ = decode_alone(vae, job.conditioning.motion, run.latents, plan.threads, plan.vae_tiles)
    beside, meanwhile = None, None
    if all_on_accelerators(plan):
        decode = vae_decoder(vae, job.conditioning.motion, plan.threads, plan.vae_tiles)
        beside, meanwhile = side_by_side(engine.unwatched(), job, decode)
    return Decoding(alone, warmup, first_block + alone, beside, meanwhile)


def decode_alone(
    vae: AutoencoderKLWan | LatentDecoder,
    motion: torch.Tensor,
    latents: Sequence[torch.Tensor],
    threads: int,
    tiles: Tiles = WHOLE,
) -> tuple[float, float, torch.Tensor]:
    """Seconds per block with nothing beside it, seconds before the first one, and the images of the last one.

    Args:
        vae: on its device.
        motion: latents of what came before the video.
        latents: of blocks [16, 3, h, w]; the first four at most are decoded, and the first of them warms up.
        threads: CPU threads.
        tiles: rows and columns.
    """
    decode: Decoder
    decode, warmup = _timed(functools.partial(vae_decoder, vae, motion, threads, tiles), vae.device)
    frames, seconds = zip(
        *(_timed(functools.partial(decode, block), vae.device) for block in latents[: _BLOCKS + 1]), strict=True
    )
    return statistics.median(seconds[1:]), warmup, frames[-1]


def side_by_side(engine: Engine, job: VideoTask, decode: Decoder) -> tuple[float, float]:
    """Seconds per block of a video that is made and decoded, and of the decoder in it."""
    ends, times = [], []
    for latents in engine.run(job):
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
