"""The search for a plan: topologies of devices, costs of layers, and the split that is fastest."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

from ..config import BLOCK_LATENTS, WINDOW_BLOCKS, DecoderConfig, ModelConfig
from ..request import VideoShape
from ..storage import NUM_SLOTS, StorageConfig
from ..task_graph import Partition
from ..vae.tile_grid import WHOLE, Tiles, possible, tilings
from .hardware import CUDA_CONTEXT_BYTES, DeviceSpec, DeviceSpeed, Hardware
from .levels import FIDELITY_LEVELS, PACKED_LEVELS, FidelityLevel, gentler_levels, levels_of
from .memory import DTYPE_BYTES, LayerSizes, aux_models, embedder_parameters
from .pace import Work, compute_seconds, decode_seconds, layer_traffic, layer_work, link_seconds, task_seconds
from .packed import PackedSizes
from .plan import is_gpu

Preference = Literal["quality", "speed"]


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What matters beside the video and the devices.

    Attributes:
        prefer: "quality" takes the highest fidelity level that fits; "speed" the fastest of those from fp8 weights on,
            or of all where a device does not compute in fp8.
        allow_smaller: whether a smaller video may be planned where nothing else fits.
        dtype: of weights, keys and tokens where they are not rounded further.
        threads: CPU threads per task.
        processes: whether every stage, and the VAE, will work in a process of its own.
        vae_tiles: in which the VAE works; None: whole, or the fewest that let a plan round less, or fit.
        compiled: whether layers are compiled.
        tiny: the decoder that works in place of the VAE's own, which then only encodes; None: none.
        packed: of the matrices of a network and a text encoder that may stay packed; None: none may.
    """

    prefer: Preference = "quality"
    allow_smaller: bool = False
    dtype: str = "bfloat16"
    threads: int = 1
    processes: bool = False
    vae_tiles: Tiles | None = None
    compiled: bool = False
    tiny: DecoderConfig | None = None
    packed: PackedSizes | None = None

    @property
    def packs_network(self) -> bool:
        """Whether the matrices of the network may stay packed."""
        return self.packed is not None and bool(self.packed.layers)


DEFAULT_OPTIONS = PlanOptions()
"""Nothing in particular."""


@dataclasses.dataclass(frozen=True)
class TopologyDevice:
    """A device in a topology.

    Attributes:
        device: which.
        steps: how many denoising steps its stage owns.
        first: whether it also holds the conditions.
        decodes: whether the VAE works beside the stage.
    """

    device: DeviceSpec
    steps: int
    first: bool
    decodes: bool


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices arranged in columns, before layers are assigned to them.

    Attributes:
        steps: the groups.
        columns: for every part of the layers, one device per group.
        vae: the device that decodes.
        vae_alone: whether it does nothing else.
    """

    steps: tuple[range, ...]
    columns: tuple[tuple[TopologyDevice, ...], ...]
    vae: DeviceSpec
    vae_alone: bool

    @property
    def device_count(self) -> int:
        """How many work."""
        return len(self.steps) * len(self.columns) + self.vae_alone


def topologies(devices: tuple[DeviceSpec, ...], steps: int, layers: int, vae_bytes: int) -> Iterator[Topology]:
    """All that differ in more than names: large devices come first, and the smallest are left out.

    Cards of one part of the layers are neighbours by size, because they hold the same layers.

    Args:
        devices: at hand.
        steps, layers: of the video and the network.
        vae_bytes: what a device that decodes must hold.
    """
    ranked = sorted(devices, key=lambda device: -device.usable)
    decoders = [device for device in ranked if device.usable >= vae_bytes]
    spare = [device for device in ranked if device is not decoders[-1]] if decoders else []
    for groups in range(1, min(steps, len(ranked)) + 1):
        owned = Partition.even(groups, 1, steps, layers).step_groups
        for parts in range(1, min(layers, len(ranked) // groups) + 1):
            count = groups * parts
            if count <= len(spare):
                yield _columns_of(spare[:count], owned, parts, None, decoders[-1])
            yield from _shared(ranked[:count], owned, parts)


def _shared(devices: list[DeviceSpec], steps: tuple[range, ...], parts: int) -> Iterator[Topology]:
    """One for each different device the VAE could share."""
    known = set()
    for place, device in enumerate(devices):
        column, group = divmod(place, len(steps))
        kind = (device.usable, device.speed, len(steps[group]), column == 0, place == 0, column == parts - 1)
        if kind not in known:
            known.add(kind)
            yield _columns_of(devices, steps, parts, place, device)


def _columns_of(
    devices: list[DeviceSpec], steps: tuple[range, ...], parts: int, decoding: int | None, vae: DeviceSpec
) -> Topology:
    """Neighbours form a column."""
    slots = [
        TopologyDevice(device, len(steps[i % len(steps)]), first=i == 0, decodes=i == decoding)
        for i, device in enumerate(devices)
    ]
    columns = tuple(tuple(slots[i : i + len(steps)]) for i in range(0, parts * len(steps), len(steps)))
    return Topology(steps, columns, vae, decoding is None)


class CostTable:
    """The layers of a network on one level; agrees with `stage_plan` to the byte.

    Args:
        config: of the network.
        frame_tokens: tokens per latent frame.
        size: bytes per number.
        level: how things are kept.
        window_blocks: blocks a KV cache holds.
        compiled: whether the layers are.
        changes_prompt: whether another prompt is read while blocks are made.
        packed: of the matrices, where they stay packed.
        speakers: how many are heard in one picture.
    """

    def __init__(
        self,
        config: ModelConfig,
        frame_tokens: int,
        size: int,
        level: FidelityLevel,
        window_blocks: int = WINDOW_BLOCKS,
        compiled: bool = False,
        changes_prompt: bool = False,
        packed: PackedSizes | None = None,
        speakers: int = 1,
    ):
        self._level = level
        self._sizes = LayerSizes(
            config, frame_tokens, size, level.storage, window_blocks, changes_prompt, packed, speakers
        )
        self._resident_bytes: dict[tuple[int, int, int], int] = {}
        self._storages = [dataclasses.replace(level.storage, offload_layers=n) for n in range(config.num_layers + 1)]
        traffic = layer_traffic(level.storage, compiled)
        each = range(config.num_layers)
        work = (layer_work(config, frame_tokens, size, i, traffic, window_blocks, speakers) for i in each)
        self._work_before = list(itertools.accumulate(work, initial=Work()))
        """Of the layers before each."""

    def storage(self, offloaded: int) -> StorageConfig:
        """That of a stage with so many offloaded layers."""
        return self._storages[offloaded]

    def resident_bytes(self, layers: range, steps: int) -> int:
        """Bytes on the device of layers for so many steps, nothing offloaded."""
        key = (layers.start, layers.stop, steps)
        if key not in self._resident_bytes:
            self._resident_bytes[key] = self._counted_bytes(layers, steps)
        return self._resident_bytes[key]

    def _counted_bytes(self, layers: range, steps: int) -> int:
        sizes, count = self._sizes, len(layers)
        weights = sizes.weights_resident_bytes(layers, self._level.storage)
        kv_caches = sizes.kv_cache_resident_bytes(count, steps)
        conditions = count * sizes.sink + sizes.conditions(count, steps)
        return weights.device + kv_caches.device + conditions + sizes.workspace(count, steps)

    def fewest_offloaded(self, layers: range, need: int) -> int | None:
        """The fewest offloaded of these layers that free `need` bytes, their slots paid for; None where none does."""
        if need <= 0:
            return 0
        if not self._level.offloads_layers:
            return None
        first = NUM_SLOTS - (-need // self._sizes.layer_transfer_bytes)
        here = self._weights(layers, 0)
        return next((n for n in range(first, len(layers) + 1) if here - self._weights(layers, n) >= need), None)

    def _weights(self, layers: range, offloaded: int) -> int:
        """Bytes of weights on the device."""
        return self._sizes.weights_resident_bytes(layers, self.storage(offloaded)).device

    def pinned_weights(self, layers: range, offloaded: int) -> int:
        """Bytes of weights on the host, for all stages with these layers."""
        return self._sizes.weights_resident_bytes(layers, self.storage(offloaded)).host

    def pinned_kv_cache(self, layers: int, steps: int) -> int:
        """Bytes of keys and values on the host, for one stage with so many layers."""
        return self._sizes.kv_cache_resident_bytes(layers, steps).host

    def transfer_bytes(self, layers: range, offloaded: int) -> int:
        """Bytes that a task brings from the host."""
        return self._sizes.transfer_bytes(layers, self.storage(offloaded))

    def work(self, layers: range) -> Work:
        """What a task takes."""
        return self._work_before[layers.stop] - self._work_before[layers.start]


_PRECISION = 0.01
"""Share of a block's time to which the fastest split is looked for."""


@dataclasses.dataclass(frozen=True)
class LayerShard:
    """A shard of the layers, and the storage of its stages.

    Attributes:
        layers: owned.
        storage: of its stages.
        seconds: of one task, per group.
        host: pinned bytes.
        load: seconds per block of its busiest device.
    """

    layers: range
    storage: StorageConfig
    seconds: tuple[float, ...]
    host: int
    load: float


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A candidate plan: a topology with all layers assigned.

    Attributes:
        topology: of the devices.
        shards: one per part of the layers.
        level: index into `PlanSearch.levels`.
        tiles: in which the VAE works.
        seconds: per block in a full pipeline, at least.
        decode_seconds: seconds per block of the VAE.
    """

    topology: Topology
    shards: tuple[LayerShard, ...]
    level: int
    tiles: Tiles
    seconds: float
    decode_seconds: float

    @property
    def rank(self) -> tuple[float, int]:
        """Orders candidates of a level: the fastest, and of equally fast ones that with the fewest devices."""
        return round(self.seconds, _SECONDS_DIGITS), self.topology.device_count


_SECONDS_DIGITS = 4
"""Candidates whose seconds differ by less are equally fast."""


@dataclasses.dataclass(frozen=True)
class StageRoom:
    """What a device of a column has for its stage.

    Attributes:
        available: bytes.
        speed: of the device.
        steps: that the stage owns.
        decode_seconds: seconds per block that the VAE works beside it.
    """

    available: int
    speed: DeviceSpeed
    steps: int
    decode_seconds: float


@dataclasses.dataclass(frozen=True)
class DeviceColumn:
    """The devices of one column of a topology, as far as its shards depend on them: columns of equal devices are equal.

    Attributes:
        rooms: one per group of steps.
        device_count: at work in the whole topology.
        shards: those that were tried, by level, first layer and the one after the last; None does not fit.
    """

    rooms: tuple[StageRoom, ...]
    device_count: int
    shards: dict[tuple[int, int, int], LayerShard | None] = dataclasses.field(default_factory=dict, compare=False)


class PlanSearch:
    """What fits a video on some hardware, with the VAE in some tiles.

    Args:
        video: what will be made.
        config: of the network.
        hardware: at hand.
        options: what matters; what is preferred is for others to heed.
        tiles: in which the VAE works.

    Attributes:
        levels: of the model, best first.
    """

    def __init__(
        self,
        video: VideoShape,
        config: ModelConfig,
        hardware: Hardware,
        options: PlanOptions,
        tiles: Tiles = WHOLE,
    ):
        self.video, self.config, self.hardware, self.options = video, config, hardware, options
        self.size, self.tiles = DTYPE_BYTES[options.dtype], tiles
        self.aux_models = aux_models(config, options.tiny, video.pose)
        held = self.aux_models.vae_bytes(
            video.latent_size, self.size, tiles, all(is_gpu(device.name) for device in hardware.devices)
        )
        listening = self.aux_models.audio_encoder_bytes(self.size, video.live) if video.keeps_audio_encoder else 0
        self.vae, self.vae_host = held.device + listening, held.host
        self.embedders = embedder_parameters(config) * self.size
        self.encoders = self.aux_models.encoder_bytes(self.size, options.packed)
        self._decode_work = self.aux_models.decode_work(video.latent_size, BLOCK_LATENTS, tiles)
        self._host = hardware.usable_host - self.vae_host
        self.levels = levels_of(options.packs_network)
        self._gentler = [gentler_levels(self.levels, level) for level in range(len(self.levels))]
        self._cost_tables: dict[FidelityLevel, CostTable] = {}
        self._known_columns: dict[DeviceColumn, DeviceColumn] = {}

    def candidates(self, level: int, bound: float | None = None) -> Iterator[Candidate]:
        """One of every topology that fits on a level: the first split that does, or the fastest within `bound` seconds
        per block."""
        for topology, columns in self._arrangements:
            if found := self._candidate(topology, columns, level, bound):
                yield found

    def fits(self, level: int) -> bool:
        """Whether anything fits on a level."""
        return any(self.candidates(level))

    def fastest(self, level: int, bound: float = math.inf) -> Candidate | None:
        """The fastest that fits on a level; of equally fast ones that with the fewest devices.

        Args:
            level: index into `levels`.
            bound: seconds per block beyond which none is wanted.
        """
        best: Candidate | None = None
        for topology, columns in self._arrangements:
            found = self._candidate(topology, columns, level, bound)
            if found and (best is None or found.rank < best.rank):
                best, bound = found, min(bound, found.seconds + 10**-_SECONDS_DIGITS)
        return best

    @property
    def thinnest(self) -> FidelityLevel:
        """The level that takes least."""
        return (PACKED_LEVELS if self.options.packs_network else FIDELITY_LEVELS)[-1]

    @functools.cached_property
    def _arrangements(self) -> list[tuple[Topology, list[DeviceColumn]]]:
        """The topologies whose VAE's device has room for the encoders, which are there before it."""
        found = topologies(self.hardware.devices, self.video.steps, self.config.num_layers, self.vae)
        before = self.encoders + self.aux_models.vae * self.size
        return [(topology, self._columns(topology)) for topology in found if before <= topology.vae.usable]

    def _columns(self, topology: Topology) -> list[DeviceColumn]:
        """The columns of a topology; equal ones are one object, so that each shard is costed once."""
        decode = self._decode_seconds(topology)
        columns = (
            DeviceColumn(tuple(self._room(slot, decode) for slot in devices), topology.device_count)
            for devices in topology.columns
        )
        return [self._known_columns.setdefault(column, column) for column in columns]

    def _room(self, slot: TopologyDevice, decode_seconds: float) -> StageRoom:
        """What is left of a device beside the VAE and the embedders, where they are there."""
        decoding = self.vae + (CUDA_CONTEXT_BYTES if self.options.processes else 0)
        available = slot.device.usable - (decoding if slot.decodes else 0) - (self.embedders if slot.first else 0)
        return StageRoom(available, slot.device.speed, slot.steps, decode_seconds if slot.decodes else 0.0)

    def _decode_seconds(self, topology: Topology) -> float:
        return decode_seconds(*self._decode_work, topology.vae.speed, self.vae_host)

    def _candidate(
        self, topology: Topology, columns: list[DeviceColumn], level: int, bound: float | None
    ) -> Candidate | None:
        """The split whose busiest device has least to do, of those whose host bytes fit.

        Args:
            topology, columns, level: what is split.
            bound: seconds per block beyond which none is wanted; None: the first split that fits is enough.
        """
        decode = self._decode_seconds(topology)
        least = decode if topology.vae_alone else 0.0
        if bound is not None and (least > bound or self._split(columns, level, bound) is None):
            return None
        best = self._bisect(columns, level, fastest=bound is not None)
        if best is None:
            return None
        return Candidate(topology, tuple(best), level, self.tiles, max(_busiest_seconds(best), least), decode)

    def _bisect(self, columns: list[DeviceColumn], level: int, *, fastest: bool) -> list[LayerShard] | None:
        """The fastest split whose host bytes fit, or the first."""
        full = self._split(columns, level, math.inf)
        if full is None:
            return None
        best = full if _pinned_bytes(full) <= self._host else None
        low, high = 0.0, _busiest_seconds(full)
        while (fastest or best is None) and high - low > _PRECISION * high:
            middle = (low + high) / 2
            found = self._split(columns, level, middle)
            if found is None:
                low = middle
                continue
            high = _busiest_seconds(found)
            if _pinned_bytes(found) <= self._host:
                best = found
        return best

    def _split(self, columns: list[DeviceColumn], level: int, limit: float) -> list[LayerShard] | None:
        """Every part takes as many layers as fit and can be worked within `limit` seconds per block."""
        last, first = self.config.num_layers, 0
        shards: list[LayerShard] = []
        for after, column in zip(range(len(columns) - 1, -1, -1), columns, strict=True):
            shard = self._longest(column, level, first, last - after, limit)
            if shard is None:
                return None
            shards.append(shard)
            first = shard.layers.stop
        return shards if first == last else None

    def _longest(self, column: DeviceColumn, level: int, first: int, most: int, limit: float) -> LayerShard | None:
        """The longest share from layer `first` on, at most to `most`."""
        best, low, high, middle = None, first + 1, most, most
        while low <= high:
            key = (level, first, middle)
            if key not in column.shards:
                column.shards[key] = self._cheapest_storage(column, *key)
            shard = column.shards[key]
            if shard and shard.load <= limit:
                best, low = shard, middle + 1
            else:
                high = middle - 1
            middle = (low + high) // 2
        return best

    def _cheapest_storage(self, column: DeviceColumn, level: int, first: int, stop: int) -> LayerShard | None:
        """The least offloading storage of a level that fits all devices of a column."""
        layers = range(first, stop)
        for gentler in self._gentler[level]:
            costs = self._cost_table(gentler)
            need = max(costs.resident_bytes(layers, room.steps) - room.available for room in column.rooms)
            count = costs.fewest_offloaded(layers, need)
            if count is not None:
                return self._with_costs(costs, column, layers, count)
        return None

    def _cost_table(self, level: FidelityLevel) -> CostTable:
        if level not in self._cost_tables:
            v, o = self.video, self.options
            self._cost_tables[level] = CostTable(
                self.config,
                v.frame_tokens,
                self.size,
                level,
                v.clip_blocks,
                o.compiled,
                v.changes_prompt,
                o.packed,
                v.speaker_count,
            )
        return self._cost_tables[level]

    def _with_costs(self, costs: CostTable, column: DeviceColumn, layers: range, count: int) -> LayerShard:
        """A share with its seconds and its bytes on the host."""
        work, storage = costs.work(layers), costs.storage(count)
        transferred = costs.transfer_bytes(layers, count)
        hop = link_seconds(self.config, self.video.frame_tokens, self.size, column.device_count)
        # The devices are of one machine: all devices of a column have their layers from one copy.
        seconds, loads, host = [], [], costs.pinned_weights(layers, count)
        for room in column.rooms:
            compute = compute_seconds(work, storage, room.speed)
            task = task_seconds(compute, transferred, len(layers), room.speed, column.device_count) + hop
            seconds.append(task)
            # Network and VAE work side by side, but what a device computes they share: together they take no longer
            # than one after the other.
            loads.append(task * room.steps + room.decode_seconds)
            host += costs.pinned_kv_cache(len(layers), room.steps)
        return LayerShard(layers, storage, tuple(seconds), host, max(loads))


def plan_searches(
    video: VideoShape, config: ModelConfig, hardware: Hardware, options: PlanOptions
) -> tuple[PlanSearch, ...]:
    """A search for each way the VAE may work: the whole, then more and more tiles.

    Where the tiles are given there is one, or none for an image that cannot be cut into them.
    """
    size, tiles = video.latent_size, options.vae_tiles
    ways = tilings(*size) if tiles is None else (tiles,) if possible(*size, tiles) else ()
    return tuple(PlanSearch(video, config, hardware, options, way) for way in ways)


def highest_level(searches: Sequence[PlanSearch]) -> tuple[int, PlanSearch] | None:
    """The highest fidelity level that anything fits on, and there the first way of the VAE that lets it.

    Tiles change the frames, though by less than their rounding to 8 bits does; what is moved to the host changes
    nothing, and what is rounded more changes the network. So tiles are tried on the last level of each rounding, after
    all that only moves and before the next that rounds. Stages that then have room stand higher by themselves.
    """
    for number, level in enumerate(searches[0].levels if searches else ()):
        found = next((way for way in (searches if level.offloads_layers else searches[:1]) if way.fits(number)), None)
        if found is not None:
            return number, found
    return None


def _busiest_seconds(shards: list[LayerShard]) -> float:
    """Seconds per block of the busiest device that holds layers."""
    return max(shard.load for shard in shards)


def _pinned_bytes(shards: list[LayerShard]) -> int:
    """Pinned bytes."""
    return sum(shard.host for shard in shards)
