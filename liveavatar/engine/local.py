"""All stages in this process: the embedded default, with no service beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch

from .. import compiler
from ..attention_choice import AttentionUse
from ..components import Components
from ..events import (
    GENERATING,
    HEARTBEAT_SECONDS,
    LOADING_NETWORK,
    Callback,
    Event,
    PhaseProgress,
    ignore,
    notice_event,
)
from ..model.attention_backends import ChosenAttention, choose_attention
from ..model.layer import EAGER, AudioTokens, LayerOps
from ..model.transformer import EMBEDDERS, CausalS2VTransformer, ModelSlice
from ..noise_schedule import NoiseSchedule
from ..offload.host_weights import HostWeightCache, HostWeights
from ..offload.layers import host_weights_of, load_offloaded, resident_bytes
from ..offload.pinned_memory import PinnedPool
from ..offload.streams import AsyncHostTensor, limit_device_memory
from ..planner import Plan, StagePlan
from ..session import EngineState, VideoTask, cpu_threads
from ..stage import Changes, InitialInputs, Stage, StageConditioning, StageInput
from ..stage_state import SavedTensors, restore_stage, stage_state
from ..storage import PLAIN, StorageConfig, embedder_storage, weight_storage
from ..task_graph import (
    BlockGate,
    Denoise,
    Partition,
    Prefill,
    Task,
    ends_block,
    followers,
    is_first,
    paced_order,
    task_count,
)
from ..weights.load import TensorDevice, watched_reads
from ..weights.writing import LazyTensor
from .compile import CompiledLayers, compiled_notice, compiling_notice, without_compiling
from .prefetch import PrefetchThread, all_on_accelerators


class StageTimer:
    """Adds up what each stage of a plan spends on its tasks.

    On CUDA devices a task is bracketed by events and read after the run; elsewhere the wall clock tells. It may be read
    in one thread while another one works.
    """

    def __init__(self, plan: Plan):
        self._devices = [torch.device(s.device) for s in plan.stages]
        self._wall = [0.0] * len(self._devices)
        self._events: list[list[tuple[Any, Any]]] = [[] for _ in self._devices]
        self._folding = threading.Lock()
        self._finished = 0

    @contextlib.contextmanager
    def time(self, stage: int) -> Iterator[None]:
        """Count what happens inside as work of `stage`."""
        device = self._devices[stage]
        if device.type == "cuda":
            with torch.cuda.device(device):
                before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                before.record()
                yield
                after.record()
            self._events[stage].append((before, after))
            self._fold(stage, wait=False)
        else:
            start = time.perf_counter()
            yield
            self._wall[stage] += time.perf_counter() - start
            self._finished += 1

    @property
    def finished(self) -> int:
        """Tasks that devices have finished; an accelerator may have been given some more."""
        for stage in range(len(self._devices)):
            self._fold(stage, wait=False)
        return self._finished

    def seconds(self) -> tuple[float, ...]:
        """Busy seconds of each stage so far."""
        for stage in range(len(self._devices)):
            self._fold(stage, wait=True)
        return tuple(self._wall)

    def _fold(self, stage: int, wait: bool) -> None:
        """Turn finished event pairs into seconds, so that an endless run keeps only a few of them."""
        waiting = self._events[stage]
        with self._folding:
            while waiting and (wait or waiting[0][1].query()):
                before, after = waiting.pop(0)
                after.synchronize()
                self._wall[stage] += before.elapsed_time(after) / 1000
                self._finished += 1


_POLL_SECONDS = 0.002
"""Between two looks at a latent that is being made; a block plays for 0.48 s."""

_Key = tuple[str, ModelSlice, torch.dtype, StorageConfig]


class ModelCache:
    """A cache of loaded slices of one network, by device, slice, dtype and storage.

    Args:
        host_weights: of that network, for what lives on the host; parts that differ only in their device share it.
    """

    def __init__(self, host_weights: HostWeightCache | None = None) -> None:
        self._host_weights = host_weights or HostWeightCache()
        self._components: Components | None = None
        self._loaded: dict[_Key, CausalS2VTransformer] = {}
        self._compiled: dict[tuple[str, tuple[int, int], int, str, int, int], CompiledLayers] = {}

    def get(
        self,
        components: Components,
        device: str,
        model_slice: ModelSlice,
        dtype: torch.dtype,
        storage: StorageConfig = PLAIN,
    ) -> CausalS2VTransformer:
        """A part, from memory or from its files. Another model, dtype or format takes the place of the old."""
        kept = ((key[2], key[3].weights) for key in self._loaded)
        if components is not self._components or any(form != (dtype, storage.weights) for form in kept):
            self.unload()
            self._components = components
        key = _key(device, model_slice, dtype, storage)
        if key not in self._loaded:

            def read(where: TensorDevice) -> CausalS2VTransformer:
                return components.transformer(model_slice, where, dtype, storage.weights)

            name = f"{dtype} {storage.weights}"
            self._loaded[key] = load_offloaded(
                read, model_slice.layers, torch.device(device), storage, self._host_weights, name
            )
        return self._loaded[key]

    def is_loaded(
        self,
        components: Components,
        device: str,
        model_slice: ModelSlice,
        dtype: torch.dtype,
        storage: StorageConfig = PLAIN,
    ) -> bool:
        """Whether a part is loaded."""
        return components is self._components and _key(device, model_slice, dtype, storage) in self._loaded

    def compiled(
        self, device: str, size: tuple[int, int], threads: int, compiler: str, window_blocks: int, speakers: int = 1
    ) -> CompiledLayers:
        """What is compiled for them on a device; nothing at first.

        Args:
            device: by name.
            size: width and height of the image.
            threads: on the CPU; other code is made for another number.
            compiler, window_blocks, speakers: see `CompiledLayers`.
        """
        key = (device, size, threads, compiler, window_blocks, speakers)
        if key not in self._compiled:
            self._compiled[key] = CompiledLayers(torch.device(device), size, compiler, window_blocks, speakers)
        return self._compiled[key]

    @property
    def pinned(self) -> PinnedPool:
        """Page-locked memory of the host, for weights and KV caches of one video after the other."""
        return self._host_weights.pinned

    @property
    def bytes_by_device(self) -> dict[str, int]:
        """Bytes of the loaded weights; those that live on the host count as the CPU's, once for all that share them."""
        by_device: dict[str, int] = {}
        for (device, *_), net in self._loaded.items():
            by_device[device] = by_device.get(device, 0) + resident_bytes(net).device
        for copy in self.shared_host_weights:
            by_device["cpu"] = by_device.get("cpu", 0) + copy.nbytes
        return {device: nbytes for device, nbytes in by_device.items() if nbytes}

    @property
    def shared_bytes(self) -> dict[str, int]:
        """Bytes of what lives on the host and can be shared with other processes, by names that it has there."""
        return {copy.name: copy.nbytes for copy in self.shared_host_weights if copy.name}

    @property
    def shared_host_weights(self) -> list[HostWeights]:
        """Each once."""
        found = (host_weights_of(net) for net in self._loaded.values())
        return list(dict.fromkeys(copy for copy in found if copy))

    def release(self) -> None:
        """Give all of it back."""
        self.unload()
        self.pinned.clear()

    def unload(self) -> None:
        """Give back what is loaded; memory of the host stays page-locked for what is loaded next."""
        devices = {device for device, *_ in self._loaded}
        self._loaded.clear()
        self._compiled.clear()
        self._host_weights.clear()
        self._components = None
        if any(torch.device(device).type == "cuda" for device in devices):
            torch.cuda.empty_cache()


def _key(device: str, model_slice: ModelSlice, dtype: torch.dtype, storage: StorageConfig) -> _Key:
    """Keys and values are the stages' business: nets that differ in them alone are one."""
    return device, model_slice, dtype, weight_storage(storage)


class LocalEngine:
    """Runs a plan in this process.

    Weights are loaded at the first run and kept for the next ones, and so is what was compiled for them; everything
    else lives as long as its run.

    Args:
        components: where weights come from.
        plan: what runs where; without compiled layers once they could not be compiled and need not be.
        models: loaded weights, shared with other engines. Engines that compile and others do not disturb each other.
        prefetch: whether a thread of its own makes the blocks, up to one ahead; by default where all stages are
            on accelerators. The bits are the same.
    """

    def __init__(
        self, components: Components, plan: Plan, models: ModelCache | None = None, prefetch: bool | None = None
    ):
        self.components, self.plan = components, plan
        self._prefetch = all_on_accelerators(plan) if prefetch is None else prefetch
        self._dtype: torch.dtype = getattr(torch, plan.dtype)
        self.models = models or ModelCache()
        self._timer = StageTimer(plan)
        self._attention_uses: tuple[AttentionUse, ...] = ()
        self._kept: _LocalRun | None = None
        """The latest run, where its job wants what it leaves."""

    @property
    def loaded(self) -> bool:
        """Whether all weights of the plan are there, and compiled for if it says so."""
        all_loaded = all(
            self.models.is_loaded(self.components, device, model_slice, self._dtype, storage)
            for device, model_slice, storage in self._slices()
        )
        return all_loaded and not (self.plan.compiled and self._uncompiled())

    def load(self, callback: Callback = ignore) -> None:
        """Load the weights now, and compile for them; stages that own the same layers on the same device share them.

        Args:
            callback: called with the progress, with notices between the forms that are compiled, and with what it took.

        Raises:
            ModelError: the layers must be compiled and cannot be, or the attention that was asked for is not installed.
        """
        for stage in self.plan.stages:
            limit_device_memory(stage.device, self.plan.cap)
        progress, read = PhaseProgress(callback, LOADING_NETWORK), 0

        def on_read(nbytes: int, _: float) -> None:
            nonlocal read
            read += nbytes
            progress(read / max(1, self.plan.weight_bytes))

        with watched_reads(on_read):
            for where in self._slices():
                self._network(*where)
        chosen = {stage.device: self._attention(stage) for stage in self.plan.stages}
        self._attention_uses = tuple(kernel.use(device) for device, kernel in chosen.items())
        for notice in dict.fromkeys(kernel.notice for kernel in chosen.values()):
            if notice:
                callback(notice_event(notice))
        if self.plan.compiled and (uncompiled := self._uncompiled()):
            try:
                self._compile(uncompiled, callback)
            except compiler.CompileError as error:
                self.plan = without_compiling(self.plan, error, callback)

    def _compile(self, stages: list[StagePlan], callback: Callback) -> None:
        begun = time.perf_counter()
        for stage in stages:
            for form in range(self._compiled(stage).forms):
                callback(notice_event(compiling_notice()))
                with self._inference():
                    kernel = self._attention(stage).kernel
                    self._compiled(stage).warm_up(self._network_of(stage), form, self._dtype, kernel)
        callback(notice_event(compiled_notice(time.perf_counter() - begun)))

    def _uncompiled(self) -> list[StagePlan]:
        """Stages whose layers nothing was compiled for yet."""
        return [
            stage
            for stage in self.plan.stages
            if not self._compiled(stage).is_compiled_for(self._network_of(stage), self._attention(stage).kernel)
        ]

    def _compiled(self, stage: StagePlan) -> CompiledLayers:
        plan = self.plan
        what = plan.size, plan.threads, compiler.COMPILER, plan.clip_blocks, plan.speaker_count
        return self.models.compiled(stage.device, *what)

    def _slices(self) -> Iterator[tuple[str, ModelSlice, StorageConfig]]:
        """What is loaded where, and how it is kept."""
        for stage in self.plan.stages:
            yield stage.device, self._slice(stage.layers), stage.storage
        yield self.plan.stages[0].device, EMBEDDERS, embedder_storage(self.plan.stages[0].storage)

    def release(self) -> None:
        """Give back the weights."""
        self.models.release()

    def stage_seconds(self) -> tuple[float, ...]:
        """Busy seconds of each stage in the latest run."""
        return self._timer.seconds()

    def attention(self) -> tuple[AttentionUse, ...]:
        """What self-attention was done with on each device, once the weights were loaded."""
        return self._attention_uses

    def run(self, job: VideoTask, callback: Callback = ignore) -> Iterator[torch.Tensor]:
        """The finished latents [16, 3, h, w] of each block, in order, on the CPU. Notices are those of `load`.

        Weights are loaded, and the callback is called, by whoever pulls.
        """
        self._kept = None
        self.load(callback)
        self._timer = StageTimer(self.plan)
        make = functools.partial(self._latents, job)
        devices = (torch.device(stage.device) for stage in self.plan.stages)
        wait = _PatientWait(self._timer, callback)
        blocks = PrefetchThread(make, wait.on_event, devices) if self._prefetch else make(wait.on_event)
        try:
            with contextlib.closing(blocks):
                for latent in blocks:
                    yield wait.until_there(latent)
        finally:
            if self._kept is not None and self._kept.boundary is None:
                self._kept = None

    def take_state(self) -> EngineState | None:
        """See `Engine`."""
        run, self._kept = self._kept, None
        if run is None or run.boundary is None:
            return None
        with self._inference():
            return EngineState(run.boundary, run.state(run.boundary))

    def _latents(self, job: VideoTask, callback: Callback) -> Generator[AsyncHostTensor, None, None]:
        """The finished latents, on their way to the CPU."""
        partition, clip_blocks, first = self.plan.partition, job.resolved.clip_blocks, job.resolved.first_block
        portraits = job.conditioning.changes.portraits.starts
        total = 0 if job.blocks is None else task_count(partition, job.blocks, first, clip_blocks, portraits)
        at_work = lambda _: callback(Event(GENERATING, self._timer.finished, total))  # noqa: E731
        with self._inference():
            run = _LocalRun(partition, job, self._stages(job, at_work), self._dtype)
        if job.keep_state:
            self._kept = run
        gate = job.gate if job.stop is None else _until_set(job.stop)
        for start in paced_order(partition, job.blocks, None, first, clip_blocks, gate, portraits):
            with self._inference():
                with self._timer.time(start.stage):
                    finished = run.run(start.task)
                latent = None if finished is None else AsyncHostTensor.copy_of(finished.float())
            callback(Event(GENERATING, self._timer.finished, total, task=start.task, stage=start.stage))
            if latent is not None:
                yield latent  # whoever takes it waits for it: the one wait of a block

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """Entered anew for every task, because between two of them the thread may be the caller's."""
        # Where nothing is summed on the CPU, the number of threads is left to the decoder, which may work meanwhile.
        threads = contextlib.nullcontext() if all_on_accelerators(self.plan) else cpu_threads(self.plan.threads)
        with torch.inference_mode(), threads:
            yield

    def _stages(self, job: VideoTask, at_work: Callback = ignore) -> list[Stage]:
        conditioning = self._conditioning(job, at_work)
        return [self._stage(planned, conditioning) for planned in self.plan.stages]

    def _stage(self, planned: StagePlan, conditioning: StageConditioning) -> Stage:
        """One stage of a run."""
        there, net = torch.device(planned.device), self._network_of(planned)
        pinned = self.models.pinned
        return Stage(net, planned.steps, conditioning, there, self._dtype, planned.storage, self._ops(planned), pinned)

    def _ops(self, stage: StagePlan) -> LayerOps:
        """How the layers of a stage do what they do."""
        ops = self._compiled(stage).ops if self.plan.compiled else EAGER
        return ops.attending(self._attention(stage).kernel)

    def _attention(self, stage: StagePlan) -> ChosenAttention:
        """What a stage attends with; tried on its device when it is asked for first."""
        head_dim = self.components.config.head_dim
        return choose_attention(self.plan.attention, torch.device(stage.device), self._dtype, head_dim)

    def _conditioning(self, job: VideoTask, at_work: Callback) -> StageConditioning:
        embedders, resolved, changes = self._embedders(), job.resolved, job.conditioning.changes
        schedule = NoiseSchedule.flow_matching(resolved.steps)
        rows, columns = (n // 2 for n in resolved.latent_size)
        return StageConditioning(
            rows=rows,
            columns=columns,
            schedule=schedule,
            seed=resolved.seed,
            distance=job.distance,
            prompt=embedders.embed_text(job.conditioning.prompt),
            time=embedders.embed_timesteps([*schedule.timesteps, 0.0]),
            motion=job.conditioning.motion,
            audio=self._audio_tokens(embedders, job),
            clip_blocks=resolved.clip_blocks,
            changes=Changes(changes.prompts.map(embedders.embed_text), changes.portraits),
            pose=self._pose_latents(job, at_work),
            speaker_mask=job.conditioning.speaker_mask,
        )

    def _pose_latents(self, job: VideoTask, at_work: Callback) -> Callable[[int], torch.Tensor | None]:
        """The pose latents of each block, encoded when first asked for, and kept for the blocks that are open: going
        back would encode a clip again. What is called while they are encoded may end the run."""
        pose, kept = job.conditioning.pose, dict[int, torch.Tensor]()

        def latents(block: int) -> torch.Tensor | None:
            if pose is None:
                return None
            if block not in kept:
                kept[block] = pose.block(block, at_work)
                kept.pop(block - self.plan.partition.stages - 1, None)
            return kept[block]

        return latents

    def _audio_tokens(self, embedders: CausalS2VTransformer, job: VideoTask) -> Callable[[int], AudioTokens]:
        """The audio features of each block, kept for the blocks that are open."""

        @functools.lru_cache(maxsize=self.plan.partition.stages + 1)
        def audio(block: int) -> AudioTokens:
            return embedders.embed_audio(job.conditioning.audio.block(block))

        return audio

    def _slice(self, layers: range) -> ModelSlice:
        return ModelSlice.of(layers, self.components.config)

    def _embedders(self) -> CausalS2VTransformer:
        return self._network(self.plan.stages[0].device, EMBEDDERS, embedder_storage(self.plan.stages[0].storage))

    def _network_of(self, stage: StagePlan) -> CausalS2VTransformer:
        return self._network(stage.device, self._slice(stage.layers), stage.storage)

    def _network(self, device: str, model_slice: ModelSlice, storage: StorageConfig) -> CausalS2VTransformer:
        return self.models.get(self.components, device, model_slice, self._dtype, storage)


def _until_set(stop: threading.Event) -> BlockGate:
    """A gate that is open until then."""
    return lambda block, wait: not stop.is_set()


class _PatientWait:
    """Waits for latents that an accelerator still makes, and calls back meanwhile with the tasks it has finished.

    Args:
        timer: knows them.
        callback: called with the events of the tasks, and while it waits.
    """

    def __init__(self, timer: StageTimer, callback: Callback):
        self._timer, self._callback = timer, callback
        self._latest = Event(GENERATING)

    def on_event(self, event: Event) -> None:
        """The callback of the tasks."""
        self._latest = event
        self._callback(event)

    def until_there(self, latent: AsyncHostTensor) -> torch.Tensor:
        """The latent, once it is there."""
        called = time.monotonic()
        while not latent.arrived:
            time.sleep(_POLL_SECONDS)
            if time.monotonic() - called > HEARTBEAT_SECONDS:
                called = time.monotonic()
                self._call_again()
        if self._latest.done < self._timer.finished:
            self._call_again()
        return latent.wait()

    def _call_again(self) -> None:
        self.on_event(dataclasses.replace(self._latest, task=None, done=self._timer.finished))


class _LocalRun:
    """The inputs of tasks of one run, by the task that they wait for."""

    def __init__(self, partition: Partition, job: VideoTask, stages: list[Stage], dtype: torch.dtype):
        e = job.resolved
        self.partition, self.blocks, self.clip_blocks, self.stages = partition, job.blocks, e.clip_blocks, stages
        reference, portraits = job.conditioning.reference, job.conditioning.changes.portraits
        self.initial = InitialInputs(reference, e.seed, e.latent_size, dtype, e.clip_blocks, portraits)
        self.inputs: dict[Task, StageInput] = {}
        self.begun = self.ended = e.first_block
        """One more than the number of the latest block."""
        if job.start is not None:
            self._restore(job.start, e.first_block)

    @property
    def boundary(self) -> int | None:
        """The number of the next block, where all that have begun are finished; None where some are not, or none has
        been made."""
        return self.begun if self.begun == self.ended > 0 else None

    def state(self, boundary: int) -> dict[str, LazyTensor]:
        """What all stages hold at a boundary."""
        parts = (stage_state(stage, boundary) for stage in self.stages)
        return {name: tensor for part in parts for name, tensor in part.items()}

    def _restore(self, saved: SavedTensors, boundary: int) -> None:
        for stage in self.stages:
            restore_stage(stage, boundary, saved)
        if boundary <= self.clip_blocks:  # the sink is renewed again, if it was, from what block 0 left
            first_frame = StageInput(self.initial.reference.to(self.initial.dtype))
            self.inputs |= {Prefill(1, group, 0): first_frame for group in range(len(self.partition.step_groups))}

    def run(self, task: Task) -> torch.Tensor | None:
        """Run one task; the latent when it ends its block."""
        stage_input = self.initial.stage_input(task) if is_first(task) else self.inputs.pop(task)
        if isinstance(task, Denoise):
            self.begun = max(self.begun, task.block + 1)
        left = self.stages[self.partition.stage_of(task)].run(task, stage_input)
        for follower in followers(self.partition, self.blocks, task, self.clip_blocks, self.initial.portraits.starts):
            self.inputs[follower] = left.for_follower(task, follower)
        if not ends_block(self.partition, task):
            return None
        self.ended += 1
        return left.latent
