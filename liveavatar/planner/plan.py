"""The plan: what every stage owns and holds, what that takes on every device, and laying stages out as asked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from ..attention_choice import AttentionUse
from ..config import BLOCK_FRAMES, BLOCK_LATENTS, CLIP_BLOCKS, FPS, MINI, WINDOW_BLOCKS, DecoderConfig, ModelConfig
from ..errors import PlanError
from ..request import ResolvedRequest
from ..storage import PLAIN, StorageConfig, weight_storage
from ..task_graph import Partition
from ..vae.tile_grid import WHOLE, Tiles, most_tiles, possible
from .hardware import CUDA_CONTEXT_BYTES
from .memory import DTYPE_BYTES, LayerSizes, aux_models, embedder_parameters
from .pace import Forecast, LiveForecast
from .packed import PackedSizes

MAX_THREADS = 256
"""CPU threads beyond which no work divides and some systems fail."""


def check_dtype_and_threads(dtype: str, threads: int) -> None:
    """Refuse a dtype that is not known and a thread count that is not possible.

    Raises:
        PlanError: with the nearest that works.
    """
    if dtype not in DTYPE_BYTES:
        raise PlanError(f"The dtype {dtype!r} is not known.", f"Use {', '.join(DTYPE_BYTES)}.")
    if not 1 <= threads <= MAX_THREADS:
        raise PlanError(f"{threads} CPU threads are not possible.", f"Use 1 to {MAX_THREADS}.")


def check_tiles(resolved: ResolvedRequest, tiles: Tiles) -> None:
    """Refuse more tiles of the VAE than an image can be cut into.

    Raises:
        PlanError: with the most that it can.
    """
    if not possible(*resolved.latent_size, tiles):
        most = most_tiles(*resolved.latent_size)
        raise PlanError(
            f"A picture of {resolved.width}x{resolved.height} cannot be cut into {tiles[0]}x{tiles[1]} tiles.",
            f"The most rows and columns of tiles are {most[0]}x{most[1]}.",
        )


SNAPSHOT_BYTES_PER_SECOND = 1e9
"""Assumed speed at which a stage writes a snapshot to disk."""
SNAPSHOT_SHARE = 0.05
"""Share of the time that may go into writing snapshots, when blocks are made in real time."""
LEAST_SNAPSHOT_BLOCKS = 8


def snapshot_interval(nbytes: int, blocks: int | None, clip_blocks: int = CLIP_BLOCKS) -> int:
    """Blocks from one snapshot to the next, so that writing takes little of the time; 0: the video has no snapshot.

    Args:
        nbytes: of the snapshot of the largest stage.
        blocks: of the video; None: nobody knows.
        clip_blocks: of a clip; there is no snapshot before the second clip is under way.
    """
    seconds = nbytes / SNAPSHOT_BYTES_PER_SECOND / SNAPSHOT_SHARE
    interval = max(LEAST_SNAPSHOT_BLOCKS, clip_blocks + 1, math.ceil(seconds / (BLOCK_FRAMES / FPS)))
    return interval if snapshot_due(interval, interval, blocks, clip_blocks) else 0


def snapshot_due(block: int, interval: int, blocks: int | None, clip_blocks: int = CLIP_BLOCKS) -> bool:
    """Whether a snapshot is kept of all that the blocks before `block` left.

    Not while the first version of the sink is in use, so that whoever goes on from a snapshot needs no prefill.
    """
    inside = clip_blocks < block and (blocks is None or block < blocks)
    return interval > 0 and block % interval == 0 and inside


THIS_MACHINE = "this machine"


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One stage: what it owns and the bytes it needs, on its device unless said otherwise.

    Attributes:
        device: where it runs.
        steps, layers: what it owns.
        weights: of its layers, and of the ends on the first and last part, as far as they are there at once: streamed
            layers take the two slots that they pass through.
        kv_cache: keys and values of its steps.
        sink: keys and values of the sink, twice, because two versions overlap at the refresh.
        text: keys and values of the prompt, and what modulates the layers.
        workspace: what one task needs besides (an upper estimate).
        storage: how all of that is kept.
        offload_slots: keys and values that lie on the host pass through these.
        host_weights, host_kv_cache: pinned on the host.
        hop_bytes: tokens of a block, on their way to another stage.
        snapshot_bytes: of one snapshot: what later blocks attend to, which cannot be computed again without those
            before.
    """

    device: str
    steps: range
    layers: range
    weights: int
    kv_cache: int
    sink: int
    text: int
    workspace: int
    storage: StorageConfig = PLAIN
    offload_slots: int = 0
    host_weights: int = 0
    host_kv_cache: int = 0
    hop_bytes: int = 0
    snapshot_bytes: int = 0

    @property
    def total(self) -> int:
        """Bytes of the stage on its device."""
        return self.weights + self.kv_cache + self.sink + self.text + self.workspace + self.offload_slots


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a video will be made.

    Attributes:
        model: name of the model.
        partition: groups of steps x parts of layers.
        stages: group by group, part by part.
        dtype: of weights, keys, values and tokens.
        vae_device: where the VAE and, while they are needed, the encoders are.
        embedders: bytes of the embeddings of text, timesteps and audio, which stay on the first device.
        threads: CPU threads a task may use; bits are equal only at equal counts.
        size: width and height it is for; smaller than what was asked only where that was allowed.
        vae: bytes of the VAE on its device: weights, decode caches and the activations of a decode.
        vae_tiles: rows and columns in which it decodes and encodes; (1, 1): the whole image at once.
        tiny_decoder: whether another decoder works in place of the VAE's own, which only encodes.
        vae_host: decode caches of tiles, pinned on the host of its device.
        encoders: bytes of the largest encoder, which works beside the VAE before the network is there.
        audio_encoder: bytes of the audio encoder beside the VAE, where it works while blocks are made; else 0.
        usable: bytes that may be used per device, where that was looked at.
        forecast: how fast it will probably be, where that was looked at.
        live: how a live talk will probably go, where it is one and that was looked at.
        notes: what else is worth knowing, one sentence each.
        snapshot_blocks: worker processes save what they hold every so many blocks, so that the video can go on from
            there when one of them is lost; 0: never.
        cap: bytes that the tensors of one process may take on a GPU; 0: as many as there are.
        processes: whether every stage, and the VAE, works in a process of its own; else all are in one.
        compiled: whether layers are compiled before the first block.
        compile_optional: whether they work as they are written where that fails, because the plan alone chose it.
        clip_blocks: blocks of a clip, and of every KV cache.
        attention: backend of self-attention that was asked for (see `liveavatar.attention_choice`).
        attention_uses: what that comes to on each device of the stages.
        speaker_count: how many speakers are heard in one picture.
    """

    model: str
    partition: Partition
    stages: tuple[StagePlan, ...]
    dtype: str
    vae_device: str
    embedders: int
    threads: int
    size: tuple[int, int] = (0, 0)
    vae: int = 0
    vae_tiles: Tiles = WHOLE
    vae_host: int = 0
    encoders: int = 0
    usable: tuple[tuple[str, int], ...] = ()
    forecast: Forecast | None = None
    notes: tuple[str, ...] = ()
    snapshot_blocks: int = 0
    cap: int = 0
    processes: bool = False
    compiled: bool = False
    clip_blocks: int = CLIP_BLOCKS
    tiny_decoder: bool = False
    attention: str = "auto"
    attention_uses: tuple[AttentionUse, ...] = ()
    audio_encoder: int = 0
    live: LiveForecast | None = None
    compile_optional: bool = False
    speaker_count: int = 1

    @property
    def _owners(self) -> list[StagePlan]:
        """Stages whose weights count: in one process those share that own the same layers on one device."""
        shared = {(stage.device, stage.layers, weight_storage(stage.storage)): stage for stage in self.stages}
        return list(self.stages if self.processes else shared.values())

    @property
    def weights_by_device(self) -> dict[str, int]:
        """Bytes of weights per device; stages of one process that own the same layers on one device share them."""
        held: dict[str, int] = {}
        for stage in self._owners:
            held[stage.device] = held.get(stage.device, 0) + stage.weights
        return held

    @property
    def weight_bytes(self) -> int:
        """Bytes of the network's weights, on devices and on hosts, about as many as are read."""
        return self.embedders + sum(stage.weights + stage.host_weights for stage in self._owners)

    @property
    def terms_by_device(self) -> dict[str, dict[str, int]]:
        """What takes how many bytes per device: the weights, every stage's memories, and the rest.

        In one process stages of a device work in turns: the largest workspace is enough, and a block may wait for each
        of the others. Each further process on a device has a context there.
        """
        weights, first = self.weights_by_device, self.stages[0].device
        terms: dict[str, dict[str, int]] = {}
        for device in dict.fromkeys([*weights, self.vae_device]):
            here = [s for s in self.stages if s.device == device]
            work, waiting = [s.workspace for s in here], sum(s.hop_bytes for s in here[1:])
            sharers = len(here) + (device == self.vae_device) if self.processes and is_gpu(device) else 1
            terms[device] = {
                "weights": weights.get(device, 0),
                "KV cache": sum(s.kv_cache for s in here),
                "sink": sum(s.sink for s in here),
                "text": sum(s.text for s in here),
                "slots": sum(s.offload_slots for s in here),
                "workspace": sum(work) if self.processes else max(work, default=0) + waiting,
                "conditions": self.embedders if device == first else 0,
                "VAE": self.vae if device == self.vae_device else 0,
                "audio encoder": self.audio_encoder if device == self.vae_device else 0,
                "contexts": (sharers - 1) * CUDA_CONTEXT_BYTES,
            }
        return terms

    @property
    def total_by_device(self) -> dict[str, int]:
        """Bytes per device while the video is made."""
        return {device: sum(terms.values()) for device, terms in self.terms_by_device.items()}

    @property
    def host_bytes_by_machine(self) -> dict[str, int]:
        """Bytes of pinned memory per machine; layers that stages keep alike are there once (processes: on Linux)."""
        totals: dict[str, int] = {}
        weights = {(machine_of(s.device), s.layers, weight_storage(s.storage)): s.host_weights for s in self.stages}
        held = [(machine, nbytes) for (machine, *_), nbytes in weights.items()]
        held += [(machine_of(s.device), s.host_kv_cache) for s in self.stages]
        for machine, nbytes in (*held, (machine_of(self.vae_device), self.vae_host)):
            totals[machine] = totals.get(machine, 0) + nbytes
        return totals


def machine_of(device: str) -> str:
    """The machine of a device: "node2" of "node2/cuda:0"."""
    return device.rpartition("/")[0] or THIS_MACHINE


def is_gpu(device: str) -> bool:
    """Whether a device, of any machine, is a GPU."""
    return device.rpartition("/")[2].startswith("cuda")


def make_plan(
    resolved: ResolvedRequest,
    config: ModelConfig,
    *,
    model: str,
    stages: str = "1x1",
    devices: Sequence[str] = ("cpu",),
    dtype: str = "float32",
    threads: int = 1,
    storage: StorageConfig = PLAIN,
    snapshot_blocks: int | None = None,
    processes: bool = False,
    vae_tiles: Tiles = WHOLE,
    tiny: DecoderConfig | None = None,
    packed: PackedSizes | None = None,
) -> Plan:
    """Lay the stages out as asked.

    Args:
        resolved: what will be made.
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
        tiny: the decoder that works in place of the VAE's own.
        packed: of the matrices that may stay packed.

    Raises:
        PlanError: an impossible cut, dtype, thread count, number of offloaded layers or interval; more
            tiles than the image can be cut into.
    """
    if snapshot_blocks is not None and snapshot_blocks < 0:
        raise PlanError(f"A snapshot every {snapshot_blocks} blocks is not possible.", "Use 0 for none, or more.")
    check_dtype_and_threads(dtype, threads)
    check_tiles(resolved, vae_tiles)
    partition = Partition.parse(stages, resolved.steps, config.num_layers)
    size, fewest = DTYPE_BYTES[dtype], min(map(len, partition.layer_shards))
    if not 0 <= storage.offload_layers <= fewest:
        raise PlanError(
            f"{storage.offload_layers} layers cannot be streamed in stages of {fewest}.",
            f"The most that works is {fewest}.",
        )
    plans = [
        stage_plan(
            config,
            resolved.frame_tokens,
            steps,
            layers,
            size,
            devices[i % len(devices)],
            storage,
            resolved.clip_blocks,
            resolved.shape.changes_prompt,
            packed,
            resolved.speaker_count,
        )
        for i, (steps, layers) in enumerate(
            (steps, layers) for steps in partition.step_groups for layers in partition.layer_shards
        )
    ]
    plan = assemble(resolved, config, model, partition, plans, dtype, devices[-1], threads, vae_tiles, tiny, packed)
    every = plan.snapshot_blocks if snapshot_blocks is None else snapshot_blocks
    return dataclasses.replace(plan, snapshot_blocks=every, processes=processes)


def assemble(
    resolved: ResolvedRequest,
    config: ModelConfig,
    model: str,
    partition: Partition,
    stages: Sequence[StagePlan],
    dtype: str,
    vae_device: str,
    threads: int,
    vae_tiles: Tiles = WHOLE,
    tiny: DecoderConfig | None = None,
    packed: PackedSizes | None = None,
) -> Plan:
    """Stages and what surrounds them."""
    beside, size, video = aux_models(config, tiny, resolved.pose), DTYPE_BYTES[dtype], resolved.shape
    vae = beside.vae_bytes(resolved.latent_size, size, vae_tiles, is_gpu(vae_device))
    return Plan(
        model=model,
        partition=partition,
        stages=tuple(stages),
        dtype=dtype,
        vae_device=vae_device,
        embedders=embedder_parameters(config) * size,
        threads=threads,
        size=(resolved.width, resolved.height),
        vae=vae.device,
        vae_tiles=vae_tiles,
        tiny_decoder=tiny is not None,
        vae_host=vae.host,
        encoders=beside.encoder_bytes(size, packed),
        audio_encoder=beside.audio_encoder_bytes(size, video.live) if video.keeps_audio_encoder else 0,
        snapshot_blocks=snapshot_interval(
            max(stage.snapshot_bytes for stage in stages), resolved.blocks or None, resolved.clip_blocks
        ),
        clip_blocks=resolved.clip_blocks,
        notes=tuple(_storage_notes(config, stages, dtype, packed)),
        speaker_count=resolved.speaker_count,
    )


def _storage_notes(
    config: ModelConfig, stages: Sequence[StagePlan], dtype: str, packed: PackedSizes | None
) -> Iterator[str]:
    """What is worth knowing of how stages are kept."""
    if config != MINI and any(stage.storage.kv_dtype == "int4" for stage in stages):
        yield "the KV cache is in int4: what that costs was measured with the miniature alone, not with this model"
    kept = {stage.storage.weights for stage in stages if stage.storage.packed}
    if kept and packed and packed.formats:
        listed = ", ".join(f"{count} in {name}" for name, count in packed.formats)
        native = ", where they are not multiplied as they are" if "packed-native" in kept else ""
        yield f"matrices stay as the file has them ({listed}) and are brought to {dtype} for each product{native}"


def stage_plan(
    config: ModelConfig,
    frame_tokens: int,
    steps: range,
    layers: range,
    size: int,
    device: str,
    storage: StorageConfig = PLAIN,
    window_blocks: int = WINDOW_BLOCKS,
    changes_prompt: bool = False,
    packed: PackedSizes | None = None,
    speakers: int = 1,
) -> StagePlan:
    """Bytes of one stage.

    Args:
        config: of the network.
        frame_tokens: tokens per latent frame, T.
        steps, layers: what the stage owns.
        size: bytes per number.
        device: where it runs.
        storage: how it keeps what it holds.
        window_blocks: blocks a KV cache holds: those of a clip.
        changes_prompt: whether another prompt is read while blocks are made.
        packed: of the matrices, where they stay packed.
        speakers: how many are heard in one picture.
    """
    sizes = LayerSizes(config, frame_tokens, size, storage, window_blocks, changes_prompt, packed, speakers)
    count = len(layers)
    weights, kv_caches = sizes.weights_resident_bytes(layers, storage), sizes.kv_cache_resident_bytes(count, len(steps))
    away = storage.kv_offload
    return StagePlan(
        device=device,
        steps=steps,
        layers=layers,
        weights=weights.device,
        kv_cache=0 if away else kv_caches.device,
        sink=sizes.sink * count,
        text=sizes.conditions(count, len(steps)),
        workspace=sizes.workspace(count, len(steps)),
        storage=storage,
        offload_slots=kv_caches.device if away else 0,
        host_weights=weights.host,
        host_kv_cache=kv_caches.host,
        hop_bytes=BLOCK_LATENTS * frame_tokens * config.dim * size,
        snapshot_bytes=sizes.snapshot_bytes(count, len(steps)),
    )
