"""Laying stages out over devices as told, and what surrounds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..config import BLOCK_LATENTS, WINDOW_BLOCKS, ModelConfig
from ..errors import PlanError
from ..pipeline import Cut
from ..request import Effective
from ..storage import PLAIN, Storage
from ..vae.tiling import WHOLE, Tiles
from .bytes import BYTES, Sizes, condition_parameters
from .checks import check_tiles, check_working
from .companions import companions_of
from .plan import Plan, StagePlan, is_card
from .snapshots import snapshot_interval


def make_plan(
    effective: Effective,
    config: ModelConfig,
    *,
    model: str,
    stages: str = "1x1",
    devices: Sequence[str] = ("cpu",),
    dtype: str = "float32",
    threads: int = 1,
    storage: Storage = PLAIN,
    snapshot_blocks: int | None = None,
    processes: bool = False,
    vae_tiles: Tiles = WHOLE,
) -> Plan:
    """Lay the stages out as told.

    Args:
        effective: what will be made.
        config: of the network.
        model: its name, for the reader.
        stages: "SxP", groups of steps x parts of layers.
        devices: stages take them in turn.
        dtype: "float32", "bfloat16" or "float16".
        threads: CPU threads per task, 1 to `MAX_THREADS`.
        storage: of every stage.
        snapshot_blocks: blocks from one snapshot to the next; 0: none; None: as `snapshot_interval` says.
        processes: whether every stage will work in a process of its own.
        vae_tiles: rows and columns in which the VAE works.

    Raises:
        PlanError: an impossible cut, dtype, thread count, number of streamed layers or interval; more
            tiles than the picture can be cut into.
    """
    if snapshot_blocks is not None and snapshot_blocks < 0:
        raise PlanError(f"A snapshot every {snapshot_blocks} blocks is not possible.", "Use 0 for none, or more.")
    check_working(dtype, threads)
    check_tiles(effective, vae_tiles)
    cut = Cut.parse(stages, effective.steps, config.num_layers)
    size, fewest = BYTES[dtype], min(map(len, cut.layers))
    if not 0 <= storage.streamed <= fewest:
        raise PlanError(
            f"{storage.streamed} layers cannot be streamed in stages of {fewest}.", f"The most that works is {fewest}."
        )
    plans = [
        stage_plan(
            config,
            effective.frame_tokens,
            steps,
            layers,
            size,
            devices[i % len(devices)],
            storage,
            effective.clip_blocks,
        )
        for i, (steps, layers) in enumerate((steps, layers) for steps in cut.steps for layers in cut.layers)
    ]
    plan = assemble(effective, config, model, cut, plans, dtype, devices[-1], threads, vae_tiles)
    every = plan.snapshot_blocks if snapshot_blocks is None else snapshot_blocks
    return dataclasses.replace(plan, snapshot_blocks=every, processes=processes)


def assemble(
    effective: Effective,
    config: ModelConfig,
    model: str,
    cut: Cut,
    stages: Sequence[StagePlan],
    dtype: str,
    vae_device: str,
    threads: int,
    vae_tiles: Tiles = WHOLE,
) -> Plan:
    """Stages and what surrounds them."""
    beside, size = companions_of(config), BYTES[dtype]
    vae = beside.vae_bytes(effective, size, vae_tiles, is_card(vae_device))
    return Plan(
        model=model,
        cut=cut,
        stages=tuple(stages),
        dtype=dtype,
        vae_device=vae_device,
        conditions=condition_parameters(config) * size,
        threads=threads,
        size=(effective.width, effective.height),
        vae=vae.device,
        vae_tiles=vae_tiles,
        vae_host=vae.host,
        encoders=beside.encoder_bytes(size),
        snapshot_blocks=snapshot_interval(
            max(stage.snapshot for stage in stages), effective.blocks, effective.clip_blocks
        ),
        clip_blocks=effective.clip_blocks,
    )


def stage_plan(
    config: ModelConfig,
    frame_tokens: int,
    steps: range,
    layers: range,
    size: int,
    device: str,
    storage: Storage = PLAIN,
    window_blocks: int = WINDOW_BLOCKS,
) -> StagePlan:
    """Bytes of one stage.

    Args:
        config: of the network.
        frame_tokens: tokens per latent frame, T.
        steps, layers: what the stage owns.
        size: bytes per number.
        device: where it runs.
        storage: how it keeps what it holds.
        window_blocks: blocks a KV ring holds: those of a clip.
    """
    sizes, count = Sizes(config, frame_tokens, size, storage, window_blocks), len(layers)
    weights, rings = sizes.weights(layers, storage), sizes.rings(count, len(steps))
    away = storage.keys_home == "host"
    return StagePlan(
        device=device,
        steps=steps,
        layers=layers,
        weights=weights.device,
        rings=0 if away else rings.device,
        sink=sizes.sink * count,
        text=sizes.text * count,
        workspace=sizes.workspace(count, len(steps)),
        storage=storage,
        slots=rings.device if away else 0,
        host_weights=weights.host,
        host_rings=rings.host,
        handed=BLOCK_LATENTS * frame_tokens * config.dim * size,
    )
