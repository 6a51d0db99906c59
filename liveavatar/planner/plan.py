"""The plan: what every stage owns and holds; and the plain layer-out of stages over devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..config import ModelConfig
from ..errors import PlanError
from ..pipeline import Cut
from ..request import Effective
from ..storage import PLAIN, Storage, streamed_layers
from .bytes import (
    BYTES,
    SINK_VERSIONS,
    condition_parameters,
    embed_parameters,
    head_parameters,
    layer_bytes,
    prompt_bytes,
    ring_bytes,
    sink_bytes,
    slot_bytes,
    text_bytes,
    workspace_bytes,
)
from .companions import companions_of
from .snapshots import snapshot_interval
from .speed import Forecast

MAX_THREADS = 256
"""CPU threads beyond which no work divides and some systems fail."""
THIS_MACHINE = "this machine"


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One stage: what it owns and the bytes it needs, on its device unless said otherwise.

    Attributes:
        device: where it runs.
        steps, layers: what it owns.
        weights: of its layers, and of the ends on the first and last part, as far as they stay.
        rings: keys and values of its steps.
        sink: keys and values of the sink, twice, because two versions overlap at the refresh.
        text: keys and values of the prompt.
        workspace: what one task needs besides (an upper estimate).
        storage: how all of that is kept.
        slots: what passes from the host and back passes through these.
        host_weights, host_rings: pinned on the host.
    """

    device: str
    steps: range
    layers: range
    weights: int
    rings: int
    sink: int
    text: int
    workspace: int
    storage: Storage = PLAIN
    slots: int = 0
    host_weights: int = 0
    host_rings: int = 0

    @property
    def total(self) -> int:
        """Bytes of the stage on its device."""
        return self.weights + self.rings + self.sink + self.text + self.workspace + self.slots

    @property
    def snapshot(self) -> int:
        """Bytes of one snapshot: what cannot be computed again without the blocks before."""
        return self.rings + self.host_rings + self.sink // SINK_VERSIONS


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
        size: width and height it is for; smaller than what was asked only where that was allowed.
        vae: bytes of the VAE on its device: weights, decode caches and the activations of a decode.
        encoders: bytes of the largest encoder, which works beside the VAE before the network is there.
        usable: bytes that may be used per device, where that was looked at.
        forecast: how fast it will probably be, where that was looked at.
        notes: what else is worth knowing, one sentence each.
        snapshot_blocks: worker processes save what they hold every so many blocks, so that the video can go on from
            there when one of them is lost; 0: never.
        cap: bytes that the tensors of one process may take on a GPU; 0: as many as there are.
    """

    model: str
    cut: Cut
    stages: tuple[StagePlan, ...]
    dtype: str
    vae_device: str
    conditions: int
    threads: int
    size: tuple[int, int] = (0, 0)
    vae: int = 0
    encoders: int = 0
    usable: tuple[tuple[str, int], ...] = ()
    forecast: Forecast | None = None
    notes: tuple[str, ...] = ()
    snapshot_blocks: int = 0
    cap: int = 0

    @property
    def weights_by_device(self) -> dict[str, int]:
        """Bytes of weights per device; stages that own the same layers on one device share them."""
        owned: dict[str, dict[range, int]] = {}
        for stage in self.stages:
            owned.setdefault(stage.device, {})[stage.layers] = stage.weights
        return {device: sum(parts.values()) for device, parts in owned.items()}

    @property
    def terms_by_device(self) -> dict[str, dict[str, int]]:
        """What takes how many bytes per device: shared weights, every stage's memories, the largest workspace."""
        weights, first = self.weights_by_device, self.stages[0].device
        terms: dict[str, dict[str, int]] = {}
        for device in dict.fromkeys([*weights, self.vae_device]):
            here = [s for s in self.stages if s.device == device]
            terms[device] = {
                "weights": weights.get(device, 0),
                "KV rings": sum(s.rings for s in here),
                "sink": sum(s.sink for s in here),
                "text": sum(s.text for s in here),
                "slots": sum(s.slots for s in here),
                "workspace": max((s.workspace for s in here), default=0),
                "conditions": self.conditions if device == first else 0,
                "VAE": self.vae if device == self.vae_device else 0,
            }
        return terms

    @property
    def total_by_device(self) -> dict[str, int]:
        """Bytes per device while the video is made."""
        return {device: sum(terms.values()) for device, terms in self.terms_by_device.items()}

    @property
    def host_bytes_by_machine(self) -> dict[str, int]:
        """Bytes of pinned memory per machine; stages that own the same layers share one copy of them."""
        weights: dict[tuple[str, range], int] = {}
        totals: dict[str, int] = {}
        for s in self.stages:
            machine = machine_of(s.device)
            weights[machine, s.layers] = max(s.host_weights, weights.get((machine, s.layers), 0))
            totals[machine] = totals.get(machine, 0) + s.host_rings
        for (machine, _), held in weights.items():
            totals[machine] += held
        return totals


def machine_of(device: str) -> str:
    """The machine of a device: "node2" of "node2/cuda:0"."""
    return device.rpartition("/")[0] or THIS_MACHINE


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

    Raises:
        PlanError: an impossible cut, dtype, thread count, number of streamed layers or interval.
    """
    if snapshot_blocks is not None and snapshot_blocks < 0:
        raise PlanError(f"A snapshot every {snapshot_blocks} blocks is not possible.", "Use 0 for none, or more.")
    check_working(dtype, threads)
    cut = Cut.parse(stages, effective.steps, config.num_layers)
    size, fewest = BYTES[dtype], min(map(len, cut.layers))
    if not 0 <= storage.streamed <= fewest:
        raise PlanError(
            f"{storage.streamed} layers cannot be streamed in stages of {fewest}.", f"The most that works is {fewest}."
        )
    plans = [
        stage_plan(config, effective.frame_tokens, steps, layers, size, devices[i % len(devices)], storage)
        for i, (steps, layers) in enumerate((steps, layers) for steps in cut.steps for layers in cut.layers)
    ]
    plan = assemble(effective, config, model, cut, plans, dtype, devices[-1], threads)
    return plan if snapshot_blocks is None else dataclasses.replace(plan, snapshot_blocks=snapshot_blocks)


def check_working(dtype: str, threads: int) -> None:
    """Refuse a dtype that is not known and a thread count that is not possible.

    Raises:
        PlanError: with the nearest that works.
    """
    if dtype not in BYTES:
        raise PlanError(f"The dtype {dtype!r} is not known.", f"Use {', '.join(BYTES)}.")
    if not 1 <= threads <= MAX_THREADS:
        raise PlanError(f"{threads} CPU threads are not possible.", f"Use 1 to {MAX_THREADS}.")


def assemble(
    effective: Effective,
    config: ModelConfig,
    model: str,
    cut: Cut,
    stages: Sequence[StagePlan],
    dtype: str,
    vae_device: str,
    threads: int,
) -> Plan:
    """Stages and what surrounds them."""
    beside, size = companions_of(config), BYTES[dtype]
    return Plan(
        model=model,
        cut=cut,
        stages=tuple(stages),
        dtype=dtype,
        vae_device=vae_device,
        conditions=condition_parameters(config) * size,
        threads=threads,
        size=(effective.width, effective.height),
        vae=beside.vae_bytes(effective, size),
        encoders=beside.encoder_bytes(size),
        snapshot_blocks=snapshot_interval(max(stage.snapshot for stage in stages), effective.blocks),
    )


def stage_plan(
    config: ModelConfig,
    frame_tokens: int,
    steps: range,
    layers: range,
    size: int,
    device: str,
    storage: Storage = PLAIN,
) -> StagePlan:
    """Bytes of one stage.

    Args:
        config: of the network.
        frame_tokens: tokens per latent frame, T.
        steps, layers: what the stage owns.
        size: bytes per number.
        device: where it runs.
        storage: how it keeps what it holds.
    """
    each = {i: layer_bytes(config, i, size, storage) for i in layers}
    streamed = [each[i] for i in streamed_layers(layers, storage.streamed)]
    ends = (embed_parameters(config) if layers.start == 0 else 0) + (
        head_parameters(config) if layers.stop == config.num_layers else 0
    )
    rings = ring_bytes(config, frame_tokens, size, storage.keys) * len(layers) * len(steps)
    away = prompt_bytes(config, size, storage.weights) if storage.prompt_weights == "leave" else 0
    return StagePlan(
        device=device,
        steps=steps,
        layers=layers,
        weights=sum(each.values()) - sum(streamed) + ends * size,
        rings=0 if storage.keys_home == "host" else rings,
        sink=sink_bytes(config, frame_tokens, size) * len(layers),
        text=text_bytes(config, size) * len(layers),
        workspace=workspace_bytes(config, frame_tokens, size, storage),
        storage=storage,
        slots=slot_bytes(config, frame_tokens, size, storage, max(each.values())),
        host_weights=sum(streamed) + away * len(layers),
        host_rings=rings if storage.keys_home == "host" else 0,
    )
