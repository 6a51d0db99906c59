"""The way of frames from latents to the file, each part alone: CPU time per frame on one thread."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import BLOCK_FRAMES, BLOCK_LATENTS, SPATIAL_STRIDE, VAE_WARMUP_LATENTS
from ..media.video import VideoWriter
from ..session import cpu_threads
from ..streams import to_bytes
from ..vae.decoding import DecodeState, decode_block, open_decode
from ..vae.wan import build_vae, latent_scale, use_mkldnn

TURNS = 5
_BLOCKS = 4
_VAE_BASE, _VAE_SIDE = 16, 64
"""Base width and pixels of the VAE that is held against diffusers' own way."""


@dataclasses.dataclass(frozen=True)
class FrameCosts:
    """What was measured; medians.

    Attributes:
        size: width and height of the frames.
        to_bytes, hashing, writing: CPU milliseconds per frame: floats to bytes, where they are decoded; SHA-256; and
            colour conversion, x264 and the file together.
        decode, diffusers: of a VAE of `_VAE_BASE` at `_VAE_SIDE` pixels: ours, and diffusers' chunked decode.
        ratios: of those two, turn by turn.
    """

    size: tuple[int, int]
    to_bytes: float
    hashing: float
    writing: float
    decode: float
    diffusers: float
    ratios: tuple[float, ...]

    @property
    def frames_per_second(self) -> float:
        """What the slower of the two threads that convert and write can pass on."""
        return 1000 / max(self.to_bytes, self.hashing + self.writing)


def bench_frames(width: int, height: int, turns: int = TURNS) -> FrameCosts:
    """Measure every part so many times, the two decoders in turns."""
    with cpu_threads(1), torch.inference_mode():
        pixels = moving_pattern(width, height)
        frames = to_bytes(pixels)[0].permute(1, 2, 3, 0).numpy()
        count = pixels.shape[1]
        converting = _median_ms(functools.partial(to_bytes, pixels), count, turns)
        hashing = _median_ms(lambda: hashlib.sha256(frames.data), count, turns)
        with tempfile.TemporaryDirectory() as folder:
            writing = _median_ms(lambda: write(Path(folder) / "frames.mp4", frames), count, turns)
        ours, theirs = decoders()
        pairs = [(_cpu_ms(ours, 2 * BLOCK_FRAMES), _cpu_ms(theirs, 2 * BLOCK_FRAMES - 3)) for _ in range(turns)]
    decode, diffusers = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratios = tuple(b / a for a, b in pairs)
    # The writer hashes, too.
    return FrameCosts((width, height), converting, hashing, writing - hashing, decode, diffusers, ratios)


def moving_pattern(width: int, height: int) -> torch.Tensor:
    """Frames [3, n, height, width] in [-1, 1] that an encoder has to work for: waves that move, and a little noise."""
    generator = torch.Generator().manual_seed(1)
    t = torch.arange(_BLOCKS * BLOCK_FRAMES)[:, None, None] / 6
    y, x = torch.arange(height)[None, :, None] / 40, torch.arange(width)[None, None, :] / 40
    colours = torch.tensor([0.0, 1.0, 2.0])[:, None, None, None]
    waves = torch.sin(x + t + colours) * torch.cos(y - t / 2)
    return (0.8 * waves + 0.02 * torch.randn(waves.shape, generator=generator)).clamp(-1, 1)


def write(path: Path, frames: np.ndarray) -> None:
    """A silent video of the frames."""
    _, height, width, _ = frames.shape
    with VideoWriter(path, width, height, None, len(frames), {}) as writer:
        for start in range(0, len(frames), BLOCK_FRAMES):
            writer.write(frames[start : start + BLOCK_FRAMES])


def decoders() -> tuple[Callable[[], object], Callable[[], object]]:
    """Two blocks decoded by us, as a stream goes on, and by diffusers' own chunked decode, with equal weights."""
    from diffusers import AutoencoderKLWan

    side = _VAE_SIDE // SPATIAL_STRIDE
    torch.manual_seed(0)
    plain: Any = AutoencoderKLWan(base_dim=_VAE_BASE)
    plain.eval().requires_grad_(False)
    quick = build_vae(base_dim=_VAE_BASE)
    quick.load_state_dict(plain.state_dict())
    latents = torch.randn(16, 2 * BLOCK_LATENTS, side, side)
    mean, inverse_std = latent_scale(plain)
    given = latents[None] / inverse_std + mean
    state = open_decode(use_mkldnn(quick), torch.randn(1, 16, VAE_WARMUP_LATENTS, side, side))
    begun: DecodeState = state.snapshot()
    return lambda: decode_block(quick, begun.snapshot(), latents), lambda: plain.decode(given)


def _median_ms(work: Callable[[], object], frames: int, turns: int) -> float:
    return statistics.median(_cpu_ms(work, frames) for _ in range(turns))


def _cpu_ms(work: Callable[[], object], frames: int) -> float:
    begun = time.process_time()
    work()
    return (time.process_time() - begun) / frames * 1000
