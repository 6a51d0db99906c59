"""The VAE: alone, and beside the network."""

from __future__ import annotations

import functools
import queue
import statistics
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..session import Job
from ..vae.stream import decode_block, open_decode
from .figures import seconds_per_block
from .found import Decoding
from .random_model import RandomComponents
from .watched import Run, WatchedEngine

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

_BLOCKS = 3
"""Decoded alone, after one that warms up."""


def decoding(
    components: RandomComponents, engine: WatchedEngine, job: Job, run: Run, first_block: float, dtype: torch.dtype
) -> Decoding:
    """Measure it.

    Args:
        components: whose VAE.
        engine, job: what works beside it on CUDA.
        run: made by them; its latents are decoded.
        first_block: seconds to the first finished latent.
        dtype: of the VAE.
    """
    device = engine.device
    vae = components.vae(device, dtype)
    start = time.perf_counter()
    state = open_decode(vae, job.material.motion[None])
    _wait(device)
    warmup = time.perf_counter() - start
    times = [_timed(functools.partial(decode_block, vae, state, n), device) for n in run.latents[: _BLOCKS + 1]]
    alone = statistics.median(times[1:])
    beside, meanwhile = _side_by_side(vae, engine, job) if device.type == "cuda" else (None, None)
    return Decoding(alone, warmup, first_block + alone, beside, meanwhile)


def _side_by_side(vae: AutoencoderKLWan, engine: WatchedEngine, job: Job) -> tuple[float, float]:
    """Seconds per block of the network, and of the VAE that decodes its blocks in a stream of its own meanwhile."""
    waiting: queue.SimpleQueue[torch.Tensor | None] = queue.SimpleQueue()
    times: list[float] = []
    failed: list[BaseException] = []
    ready = threading.Event()
    stream = torch.cuda.Stream(engine.device)

    def decode() -> None:
        try:
            with torch.inference_mode(), torch.cuda.device(engine.device), torch.cuda.stream(stream):
                state = open_decode(vae, job.material.motion[None])  # its memory belongs to this stream
                stream.synchronize()
                ready.set()
                while (latents := waiting.get()) is not None:
                    start = time.perf_counter()
                    decode_block(vae, state, latents)
                    stream.synchronize()
                    times.append(time.perf_counter() - start)
        except BaseException as error:  # told by the thread that waits for this one
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=decode, name="liveavatar-bench-vae", daemon=True)
    thread.start()
    ready.wait()
    try:
        run = engine.watch(job, on_block=waiting.put)
    finally:
        waiting.put(None)
        thread.join()
    if failed:
        raise failed[0]
    return seconds_per_block(run), statistics.median(times)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
