"""From an effective request to a plan: which stage runs where, in what, and the memory it will take.

All arithmetic: nothing is loaded and no device is touched. The formulas count what the network's configuration says;
`tests/planner` holds them against real modules and buffers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from .config import BLOCK_FRAMES, BLOCK_LATENTS, CLIP_BLOCKS, FPS, WINDOW_BLOCKS, ModelConfig
from .errors import PlanError
from .pipeline import Cut
from .request import Effective

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per number of the dtypes a stage can work in."""
MAX_THREADS = 256
"""CPU threads beyond which no work divides and some systems fail."""
_SINK_FRAMES = 2.5
_SINK_VERSIONS = 2
SNAPSHOT_BYTES_PER_SECOND = 1e9
"""Assumed speed at which a stage writes a snapshot to disk."""
SNAPSHOT_SHARE = 0.05
"""Share of the time that may go into writing snapshots, when blocks are made in real time."""
LEAST_SNAPSHOT_BLOCKS = 8
_WIDE_BUFFERS = 6
"""Float32 copies of the residual stream that are alive at once in a layer (residual, norm, modulated, result...)."""


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One stage: what it owns and the bytes it needs.

    Attributes:
        device: where it runs; "MACHINE/DEVICE" on another machine.
        steps, layers: what it owns.
        weights: of its layers, and of the ends on the first and last part.
        rings: keys and values of its steps.
        sink: keys and values of the sink, twice, because two versions overlap at the refresh.
        text: keys and values of the prompt.
        workspace: what one task needs besides (an upper estimate).
    """

    device: str
    steps: range
    layers: range
    weights: int
    rings: int
    sink: int
    text: int
    workspace: int

    @property
    def total(self) -> int:
        """Bytes of the stage."""
        return self.weights + self.rings + self.sink + self.text + self.workspace

    @property
    def snapshot(self) -> int:
        """Bytes of one snapshot: what cannot be computed again without the blocks before."""
        return self.rings + self.sink // _SINK_VERSIONS


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a video will be made.

    Attributes:
        model: name of the model.
        cut: groups of steps x parts of layers.
        stages: group by group, part by part.
        dtype: of weights, keys, values and tokens.
        vae_device: where the VAE and, while they are needed, the encoders are.
        conditions: bytes of the embeddings of text, time and sound, which stay on the first device.
        threads: CPU threads a task may use; bits are equal only at equal counts.
        snapshot_blocks: worker processes save what they hold every so many blocks, so that the video can go on from
            there when one of them is lost; 0: never.
    """

    model: str
    cut: Cut
    stages: tuple[StagePlan, ...]
    dtype: str
    vae_device: str
    conditions: int
    threads: int
    snapshot_blocks: int = 0

    @property
    def weights_by_device(self) -> dict[str, int]:
        """Bytes of weights per device; stages that own the same layers on one device share them."""
        owned: dict[str, dict[range, int]] = {}
        for stage in self.stages:
            owned.setdefault(stage.device, {})[stage.layers] = stage.weights
        return {device: sum(parts.values()) for device, parts in owned.items()}

    @property
    def total_by_device(self) -> dict[str, int]:
        """Bytes per device: shared weights, every stage's memories, and the largest workspace."""
        totals = self.weights_by_device
        for device in totals:
            here = [s for s in self.stages if s.device == device]
            totals[device] += sum(s.rings + s.sink + s.text for s in here) + max(s.workspace for s in here)
        totals[self.stages[0].device] += self.conditions
        return totals


def make_plan(
    effective: Effective,
    config: ModelConfig,
    *,
    model: str,
    stages: str = "1x1",
    devices: Sequence[str] = ("cpu",),
    dtype: str = "float32",
    threads: int = 1,
    snapshot_blocks: int | None = None,
) -> Plan:
    """Lay the stages out.

    Args:
        effective: what will be made.
        config: of the network.
        model: its name, for the reader.
        stages: "SxP", groups of steps x parts of layers.
        devices: stages take them in turn.
        dtype: "float32", "bfloat16" or "float16".
        threads: CPU threads per task, 1 to `MAX_THREADS`.
        snapshot_blocks: blocks from one snapshot to the next; 0: none; None: as `snapshot_interval` says.

    Raises:
        PlanError: an impossible cut, dtype, thread count or interval.
    """
    if snapshot_blocks is not None and snapshot_blocks < 0:
        raise PlanError(f"A snapshot every {snapshot_blocks} blocks is not possible.", "Use 0 for none, or more.")
    if dtype not in BYTES:
        raise PlanError(f"The dtype {dtype!r} is not known.", f"Use {', '.join(BYTES)}.")
    if not 1 <= threads <= MAX_THREADS:
        raise PlanError(f"{threads} CPU threads are not possible.", f"Use 1 to {MAX_THREADS}.")
    cut = Cut.parse(stages, effective.steps, config.num_layers)
    size = BYTES[dtype]
    plans = [
        stage_plan(config, effective.frame_tokens, steps, layers, size, devices[i % len(devices)])
        for i, (steps, layers) in enumerate((steps, layers) for steps in cut.steps for layers in cut.layers)
    ]
    conditions = condition_parameters(config) * size
    if snapshot_blocks is None:
        snapshot_blocks = snapshot_interval(max(stage.snapshot for stage in plans), effective.blocks)
    return Plan(model, cut, tuple(plans), dtype, devices[-1], conditions, threads, snapshot_blocks)


def snapshot_interval(nbytes: int, blocks: int) -> int:
    """Blocks from one snapshot to the next, so that writing takes little of the time; 0: the video has no snapshot.

    Args:
        nbytes: of the snapshot of the largest stage.
        blocks: of the video.
    """
    seconds = nbytes / SNAPSHOT_BYTES_PER_SECOND / SNAPSHOT_SHARE
    interval = max(LEAST_SNAPSHOT_BLOCKS, math.ceil(seconds / (BLOCK_FRAMES / FPS)))
    return interval if snapshot_due(interval, interval, blocks) else 0


def snapshot_due(block: int, interval: int, blocks: int) -> bool:
    """Whether a snapshot is kept of all that the blocks before `block` left.

    Not while the first version of the sink is in use, so that whoever goes on from a snapshot needs no prefill.
    """
    return interval > 0 and block % interval == 0 and CLIP_BLOCKS < block < blocks


def stage_plan(
    config: ModelConfig, frame_tokens: int, steps: range, layers: range, size: int, device: str
) -> StagePlan:
    """Bytes of one stage.

    Args:
        config: of the network.
        frame_tokens: tokens per latent frame, T.
        steps, layers: what the stage owns.
        size: bytes per number.
        device: where it runs.
    """
    row = 2 * config.dim * size * len(layers)
    """Keys and values of one token in all layers of the stage."""
    window = WINDOW_BLOCKS * BLOCK_LATENTS * frame_tokens
    sink = int(_SINK_FRAMES * frame_tokens)
    ends = (embed_parameters(config) if layers.start == 0 else 0) + (
        head_parameters(config) if layers.stop == config.num_layers else 0
    )
    return StagePlan(
        device=device,
        steps=steps,
        layers=layers,
        weights=(sum(layer_parameters(config, i) for i in layers) + ends) * size,
        rings=window * row * len(steps),
        sink=sink * row * _SINK_VERSIONS,
        text=config.text_len * row,
        workspace=workspace_bytes(config, frame_tokens, size),
    )


def workspace_bytes(config: ModelConfig, frame_tokens: int, size: int) -> int:
    """What one task needs besides weights and memories, at most: the keys and values of one layer side by side, the
    residual stream and its float32 copies, and the widest activation (the feed-forward or q, k and v)."""
    tokens = BLOCK_LATENTS * frame_tokens
    keys = int((WINDOW_BLOCKS * BLOCK_LATENTS + _SINK_FRAMES) * frame_tokens)
    widest = max(config.ffn_dim, 4 * config.dim)
    return 2 * keys * config.dim * size + tokens * (_WIDE_BUFFERS * config.dim * 4 + 2 * widest * size)


def layer_parameters(config: ModelConfig, layer: int) -> int:
    """Numbers in one layer, with its injector if it has one."""
    d = config.dim
    attention = 4 * (d * d + d) + 2 * d
    plain = 2 * attention + 2 * d * config.ffn_dim + config.ffn_dim + d + 6 * d + 2 * d
    hears = layer in config.audio_inject_layers
    return plain + (attention + 2 * d * d + 2 * d if hears else 0)


def embed_parameters(config: ModelConfig) -> int:
    """Numbers in the latent, pose, kind and motion embeddings."""
    d = config.dim
    patch = lambda channels, kernel: channels * kernel * d + d  # noqa: E731
    packer = patch(config.in_dim, 4) + patch(config.in_dim, 32) + patch(config.in_dim, 256)
    return patch(config.in_dim, 4) + patch(config.cond_dim, 4) + 3 * d + packer


def head_parameters(config: ModelConfig) -> int:
    """Numbers in the head."""
    return 2 * config.dim + (config.dim + 1) * config.out_dim * 4


def condition_parameters(config: ModelConfig) -> int:
    """Numbers in the embeddings of text, time and sound."""
    d, c = config.dim, config.audio_dim
    text = (config.text_dim + 1) * d + (d + 1) * d
    time = (config.freq_dim + 1) * d + (d + 1) * d + (d + 1) * 6 * d
    first = (3 * c + 1) * (d // 4)
    shared = (3 * (d // 4) + 1) * (d // 2) + (3 * (d // 2) + 1) * d
    sound = config.audio_layers + d + first * config.num_audio_token + first + shared + (d + 1) * d
    return text + time + sound
