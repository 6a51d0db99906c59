"""How fast the network itself is and what memory it takes, with random weights of the real shapes.

The engine of this process makes a video of noise; nothing is read from files. What is measured on a GPU is measured by
the GPU (events, its allocator), on the CPU by the wall clock and by counting every tensor.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch

from ..config import WINDOW_BLOCKS
from ..doctor.devices import compute, copies
from ..doctor.host import host
from ..doctor.report import Compute, Copies
from ..engine.compile import cache_folder
from ..engine.local import ModelCache
from ..errors import PlanError, RequestError
from ..events import Event
from ..planner import CUDA_CONTEXT_BYTES, Plan, make_plan
from ..session import VideoTask
from ..storage import PLAIN
from ..utils import format_bytes
from .decoding import decoding
from .figures import bytes_needed, free_bytes, pace_of, seconds_per_block, work_of
from .found import Compared, Decoding, Launching, ModelBench, Moved, Work
from .launching import launching
from .ledger import Ledger
from .material import noise_job
from .random_model import RandomComponents
from .watched import Run, WatchedEngine

FEWEST_BLOCKS, MOST_BLOCKS = WINDOW_BLOCKS + 2, 1000
"""Of a video: two are made with a full window, and all latents are kept."""
_WARMUP_BLOCKS = WINDOW_BLOCKS + 1
"""Every form a task can have comes up in so many."""
_ROUNDS = 2
"""Of ours and the naive path, in turns."""

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What besides the plan is measured.

    Attributes:
        blocks: of the video, `FEWEST_BLOCKS` to `MOST_BLOCKS`.
        vae: whether the VAE is measured, too.
        baseline: whether the naive path is.
        most: bytes that may be used on the device; None: all that are free.
        warm: whether a short video is made before the measured one. Without, the first block's figures are those of a
            cold start; pace is measured from the fifth block on and is the same.
        launch: whether it is measured on a GPU what the host spends on launching.
        resident: whether the same with nothing on the host is measured, where copies are made.
    """

    blocks: int = 8
    vae: bool = False
    baseline: bool = False
    most: int | None = None
    warm: bool = True
    launch: bool = True
    resident: bool = True


@dataclasses.dataclass(frozen=True)
class DeviceSpeeds:
    """What a device was measured to reach.

    Attributes:
        compute: TFLOP/s of matrix products and attention.
        copies: GB/s of copies.
    """

    compute: Compute
    copies: Copies

    @property
    def copy_gb(self) -> float:
        """GB/s to the device from page-locked memory; on the CPU, of a memcpy."""
        return self.copies.memory if self.copies.pinned_in is None else self.copies.pinned_in

    @property
    def memory_gb(self) -> float:
        """GB/s of its own memory, read and written together."""
        return 2 * self.copies.memory


def bench_model(model: str, plan: Plan, asked: Asked, say: Say = lambda line: None) -> ModelBench:
    """Measure a plan.

    Args:
        model: name of the preset whose shapes are taken.
        plan: of one device.
        asked: what else.
        say: called with what is being done.

    Raises:
        RequestError: too few or too many blocks, or a naive path beside what it cannot do.
        PlanError: it does not fit the device or the host.
        ModelError: no such preset; the layers cannot be compiled.
        HostMemoryError: the host cannot hold or lock what was to lie there.
    """
    components = RandomComponents(model, plan.stages[0].device)
    return ModelMeasurement(components, plan, asked, say).measured()


def check_asked(plan: Plan, asked: Asked) -> None:
    """Refuse what cannot be measured, before anything is made.

    Raises:
        RequestError, PlanError: as `bench_model`.
    """
    if asked.blocks < FEWEST_BLOCKS:
        raise RequestError(
            f"{asked.blocks} blocks are too few to see a full window at work.", f"Give at least {FEWEST_BLOCKS}."
        )
    if asked.blocks > MOST_BLOCKS:
        raise RequestError(f"{asked.blocks} blocks tell no more than fewer.", f"Give at most {MOST_BLOCKS}.")
    if len({stage.device for stage in plan.stages}) > 1:
        raise RequestError("One device is measured at a time.", "Give one, such as cuda:0.")
    plain = all(dataclasses.replace(s.storage, weights=PLAIN.weights) == PLAIN for s in plan.stages)
    if asked.baseline and not plain:
        raise RequestError(
            "The naive path keeps all keys, values and weights on the device, and keys and values plain.",
            "Leave --baseline out, or the other storage.",
        )
    check_fit(plan, asked)


def check_fit(plan: Plan, asked: Asked) -> None:
    """Refuse a plan that its device, or the host, has no room for now.

    Raises:
        PlanError: with the bytes that are needed and those that are free.
    """
    name, needed = plan.stages[0].device, bytes_needed(plan, asked.vae)
    if name == "cpu":
        free, needed = host().ram_free, needed + sum(plan.host_bytes_by_machine.values())
        if free is not None and needed > free:
            raise PlanError(
                f"This takes {format_bytes(needed)} of host memory, and {format_bytes(free)} are free.",
                "Measure mini or untrained on the CPU, or a smaller size.",
            )
        return
    room = free_bytes(torch.device(name), asked.most)
    if needed > room:
        raise PlanError(
            f"This takes {format_bytes(needed)} of {name}, and {format_bytes(room)} may be used.",
            "Keep keys and values in eight bits (--keys fp8) or on the host (--keys-home host), weights in fp8 "
            "(--weights fp8), or let --plan auto choose.",
        )


class ModelMeasurement:
    """One measurement, from empty memory to numbers.

    Args:
        components: whose networks are measured.
        plan: of one device.
        asked: what is measured.
        say: called with what is being done.
        nets: loaded weights, shared with other measurements of the same components; None: its own.
        speeds: of the device, where they are known; None: they are measured briefly.

    Attributes:
        latents: of every block of the measured video, once it was made.

    Raises:
        As `bench_model`.
    """

    def __init__(
        self,
        components: RandomComponents,
        plan: Plan,
        asked: Asked,
        say: Say = lambda line: None,
        nets: ModelCache | None = None,
        speeds: DeviceSpeeds | None = None,
    ):
        check_asked(plan, asked)
        self.components, self.plan, self.asked, self.say = components, plan, asked, say
        self.device = torch.device(plan.stages[0].device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.nets = nets or ModelCache()
        self.engine = WatchedEngine(components, plan, self.nets)
        self.job = self._job(asked.blocks)
        self.ledger = Ledger(plan, self.device, asked.vae)
        self.latents: tuple[torch.Tensor, ...] = ()
        self._known = speeds

    def measured(self) -> ModelBench:
        """All figures.

        Raises:
            As `bench_model`.
        """
        try:
            with torch.inference_mode():
                return self._measured()
        except torch.cuda.OutOfMemoryError as error:
            needed = bytes_needed(self.plan, self.asked.vae)
            raise PlanError(
                f"The memory of {self.device} ran out; the plan sets {format_bytes(needed)} aside.",
                "Keep more on the host or in eight bits, or let --plan auto choose.",
            ) from error

    def _measured(self) -> ModelBench:
        plan, e = self.plan, self.job.resolved
        can, copy_gb = self._speeds()
        self.say("making weights")
        load = self._load()
        warmup, compiling, cache = self._warm_up()
        self.say(f"{e.blocks} blocks")
        run = self.engine.watch(self.job, self._note)
        self.latents = run.latents
        pace = pace_of(run, plan)
        vae = self._decode(pace.first_block_seconds, run) if self.asked.vae else None
        memory = self.ledger.memory()
        sending = self._launching(pace.seconds_per_block)
        compared = self._compare() if self.asked.baseline else None
        moved = self._moved(run, pace.seconds_per_block, copy_gb)
        return ModelBench(
            model=self.components.name,
            device=str(self.device),
            device_name=device_name(self.device),
            dtype=plan.dtype,
            size=(e.width, e.height),
            steps=e.steps,
            blocks=e.blocks,
            stages=str(plan.partition),
            storages=tuple(stage.storage for stage in plan.stages),
            threads=plan.threads,
            load_seconds=load,
            warmup_seconds=warmup,
            compile_seconds=compiling,
            compile_cache=cache,
            finite=all(bool(latents.isfinite().all()) for latents in run.latents),
            pace=pace,
            work=self._work(can, pace.seconds_per_block),
            moved=moved,
            memory=memory,
            launching=sending,
            decoding=vae,
            compared=compared,
        )

    def _job(self, blocks: int) -> VideoTask:
        width, height = self.plan.size
        steps = self.plan.partition.last_step + 1
        return noise_job(self.components.config, blocks, steps, f"{width}x{height}")

    def _load(self) -> float:
        """Seconds to make the weights; where no allocator counts, they are used once to count tensors."""
        start = time.perf_counter()
        as_written = WatchedEngine(self.components, dataclasses.replace(self.plan, compiled=False), self.nets)
        with self.ledger.loading():
            as_written.load()
            self._settle()
        seconds = time.perf_counter() - start
        self.ledger.note_weights(as_written)
        if self.device.type != "cuda":
            with self.ledger.working():
                as_written.watch(self._job(_WARMUP_BLOCKS), lambda event: self.ledger.note(as_written))
        return seconds

    def _note(self, event: Event) -> None:
        """Count what stays between tasks, where the timed run is the one that is counted."""
        if self.device.type == "cuda":
            self.ledger.note(self.engine)

    def _warm_up(self) -> tuple[float, float | None, str | None]:
        """Seconds of a warm run, and of compiling where that was asked, with the cache."""
        if self.plan.compiled:
            self.say("compiling")
        start = time.perf_counter()
        self.engine.load()
        compiled = time.perf_counter()
        if self.asked.warm:
            self.say("warming up")
            self.engine.watch(self._job(_WARMUP_BLOCKS))
        self._settle()
        warm = time.perf_counter() - compiled
        return (warm, compiled - start, cache_folder()) if self.plan.compiled else (warm, None, None)

    def _decode(self, first_block: float, run: Run) -> Decoding:
        self.say("the VAE")
        return decoding(self.components, self.engine, self.job, run, first_block, getattr(torch, self.plan.dtype))

    def _launching(self, seconds: float) -> Launching | None:
        if self.device.type == "cpu" or not self.asked.launch:
            return None
        self.say("what the host spends on launching")
        return launching(self.engine, self._job(_WARMUP_BLOCKS), seconds)

    def _work(self, can: Compute, seconds: float) -> Work:
        return work_of(self.components.config, self.plan, can, self.device, seconds)

    def _speeds(self) -> tuple[Compute, float]:
        """What the device computes, and GB/s to it."""
        if self._known is None:
            self.say("what the device can")
            self._known = device_speeds(self.device)
        return self._known.compute, self._known.copy_gb

    def _moved(self, run: Run, seconds: float, copy_gb: float) -> Moved:
        blocks = len(run.ends) - WINDOW_BLOCKS
        to_device, to_host = (
            (counts[-1] - counts[WINDOW_BLOCKS - 1]) // blocks for counts in (run.to_device, run.to_host)
        )
        resident = self._resident() if to_device and self.asked.resident else None
        return Moved(
            to_device=to_device,
            to_host=to_host,
            copy_gb=copy_gb,
            copy_seconds=to_device / 1e9 / copy_gb,
            resident_seconds_per_block=resident,
            exposed_seconds=None if resident is None else seconds - resident,
        )

    def _resident(self) -> float | None:
        """Seconds per block with nothing on the host; None where that does not fit."""
        plan = self.plan
        storages = {dataclasses.replace(s.storage, kv_offload=False, offload_layers=0) for s in plan.stages}
        if len(storages) > 1:
            return None
        near = make_plan(
            self.job.resolved,
            self.components.config,
            model=plan.model,
            stages=str(plan.partition),
            devices=(str(self.device),),
            dtype=plan.dtype,
            threads=plan.threads,
            storage=storages.pop(),
        )
        near = dataclasses.replace(near, compiled=plan.compiled)
        self.nets.release()
        try:
            check_fit(near, dataclasses.replace(self.asked, vae=False))
        except PlanError:
            return None
        self.say("the same with nothing on the host")
        engine = WatchedEngine(self.components, near, self.nets)
        engine.load()
        engine.watch(self._job(_WARMUP_BLOCKS))
        return seconds_per_block(engine.watch(self.job).ends)

    def _compare(self) -> Compared:
        self.say("the naive path, in turns with ours")
        naive = WatchedEngine(self.components, self.plan, self.nets, naive=True)
        naive.watch(self._job(_WARMUP_BLOCKS))
        ours, theirs, apart = [], [], 0.0
        for _ in range(_ROUNDS):
            a, b = self.engine.watch(self.job), naive.watch(self.job)
            ours.append(seconds_per_block(a.ends))
            theirs.append(seconds_per_block(b.ends))
            largest = max(float(latents.abs().max()) for latents in a.latents)
            off = max(float((x - y).abs().max()) for x, y in zip(a.latents, b.latents, strict=True))
            apart = max(apart, off / largest)
        return Compared(tuple(ours), tuple(theirs), sum(theirs) / sum(ours), apart)

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def device_speeds(device: torch.device, quick: bool = True) -> DeviceSpeeds:
    """Measure what a device reaches, for a second or two.

    Raises:
        PlanError: it has no memory free for that.
    """
    try:
        return DeviceSpeeds(compute(str(device), quick), copies(str(device), quick))
    except MemoryError as error:
        raise PlanError(f"The speed of {device} cannot be measured: {error}.", "Free its memory.") from error


def cap_device(name: str, most: int | None) -> None:
    """Let this process allocate at most so many bytes of a GPU, the driver's context among them; None: all of it."""
    device = torch.device(name)
    total = torch.cuda.get_device_properties(device).total_memory
    share = 1.0 if most is None else min(1.0, (most - CUDA_CONTEXT_BYTES) / total)
    torch.cuda.set_per_process_memory_fraction(share, device)


def device_name(device: torch.device) -> str:
    """Of the device or processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else host().cpu
