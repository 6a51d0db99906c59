"""How long work takes: operations and copies from the configuration, seconds from the speed of the cards."""

from __future__ import annotations

import dataclasses

from ..config import BLOCK_FRAMES, BLOCK_LATENTS, WINDOW_BLOCKS, ModelConfig
from ..storage import Storage
from .bytes import SINK_FRAMES
from .hardware import Speed

_HOST_COPY = 80.0
"""GB/s that all cards together get from the host's memory, assumed."""
_LINK = 10.0
"""GB/s between two stages, assumed: PCIe through the host."""
_TASK_SECONDS = 0.002
"""To launch a task, assumed."""
_VAE_SHARE = 0.2
"""Of the speed of matrices that the VAE's convolutions reach, assumed: narrow layers, bound by memory."""


@dataclasses.dataclass(frozen=True)
class Forecast:
    """How fast a plan will probably be, with its stages side by side.

    Attributes:
        seconds_per_block: of 12 frames, once the pipeline is full.
        fps: frames per second then.
        first_frames_seconds: from the first task to the first finished block; loading and encoding come before.
        source: whose speeds it rests on: "measured", or "assumed" where any was not measured.
    """

    seconds_per_block: float
    first_frames_seconds: float
    source: str

    @property
    def fps(self) -> float:
        """Frames per second in the full pipeline."""
        return BLOCK_FRAMES / self.seconds_per_block


def layer_tflop(
    config: ModelConfig, frame_tokens: int, layer: int, window_blocks: int = WINDOW_BLOCKS
) -> tuple[float, float]:
    """10^12 operations of one block at one step in one layer: in matrices, and in attention.

    The prompt's keys and values, and the conditions, are made once per video and do not count.
    """
    d, tokens = config.dim, BLOCK_LATENTS * frame_tokens
    seen = (window_blocks * BLOCK_LATENTS + SINK_FRAMES) * frame_tokens + config.text_len
    matrices = 2 * tokens * (6 * d * d + 2 * d * config.ffn_dim)
    if layer in config.audio_inject_layers:
        matrices += 4 * tokens * d * d
    return matrices / 1e12, 4 * tokens * seen * d / 1e12


def compute_seconds(matrices: float, attention: float, storage: Storage, speed: Speed) -> float:
    """Of so many 10^12 operations; fp8 is worked as fp8 only where the card can."""
    fast = storage.weights in ("fp8", "fp8-tensor") and speed.computes_fp8
    return matrices / (speed.fp8 if fast else speed.plain) + attention / speed.attention


def task_seconds(compute: float, copied: int, layers: int, speed: Speed, cards: int) -> float:
    """Of one task: copies hide behind the work of the layers before, but for the first layer's.

    Args:
        compute: seconds of the layers.
        copied: bytes from the host.
        layers: of the stage.
        speed: of its card.
        cards: that copy at the same time, at most.
    """
    copies = copied / 1e9 / min(speed.copy, _HOST_COPY / cards)
    return max(compute, copies) + copies / layers + _TASK_SECONDS


def link_seconds(config: ModelConfig, frame_tokens: int, size: int, stages: int) -> float:
    """Of sending a block's tokens to the next stage; nothing where there is none."""
    return BLOCK_LATENTS * frame_tokens * config.dim * size / 1e9 / _LINK if stages > 1 else 0.0


def decode_seconds(tflop: float, speed: Speed, resting: int = 0) -> float:
    """Of decoding a block.

    Args:
        tflop: 10^12 operations.
        speed: of the card.
        resting: bytes on the host, which come to the card and go back once a block.
    """
    return tflop / (speed.plain * _VAE_SHARE) + 2 * resting / 1e9 / min(speed.copy, _HOST_COPY)
