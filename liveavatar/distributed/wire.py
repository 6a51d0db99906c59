"""What crosses between the caller and a worker: specs, events and faults, and their forms as plain data."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__
from ..compiler import missing_requirements
from ..components import Components, FolderComponents
from ..errors import LiveAvatarError, PlanError
from ..task_graph import Denoise, Partition, Prefill, Task
from ..weights.folder import ModelFiles

if TYPE_CHECKING:
    from ..mini.untrained import UntrainedComponents


_log = logging.getLogger("liveavatar")

WireTask = tuple[str, int, int, int]
WireModel = tuple[str, tuple[tuple[str, str | None], ...], tuple[float, ...]]
"""Name, and files or, for a model that is made in code, the numbers it is made with."""
WirePartition = tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]


OUT_OF_MEMORY_NEAREST = "Use more stages or a smaller size, or end other programs that hold memory of its device."


@dataclasses.dataclass(frozen=True)
class Handshake:
    """The handshake of a worker that has started.

    Attributes:
        pid: of its process.
        version, torch: of this library and of PyTorch, as it has them.
        nccl: whether its PyTorch has NCCL and sees a device.
        lacks: what is missing there to compile for "cpu" or "cuda", in words; "" for nothing.
    """

    pid: int
    version: str
    torch: str
    nccl: bool
    lacks: dict[str, str]

    @classmethod
    def local(cls) -> Handshake:
        """Of this process."""
        import torch.distributed as dist

        nccl = dist.is_available() and dist.is_nccl_available() and torch.cuda.is_available()
        lacks = {kind: ", ".join(missing_requirements(kind)) for kind in ("cpu", "cuda")}
        return cls(os.getpid(), __version__, torch.__version__, nccl, lacks)

    def incompatibility(self) -> str:
        """What keeps whoever said this from working for this process, as a sentence's end; "" for nothing."""
        if self.version != __version__:
            return f"has version {self.version} of this library, this process {__version__}"
        if self.torch != torch.__version__:
            _log.warning("A worker has PyTorch %s, this process %s.", self.torch, torch.__version__)
        return ""


@dataclasses.dataclass(frozen=True)
class LoadSpec:
    """The spec of the weights a worker holds.

    Attributes:
        model: see `model_to_wire`.
        layers: first and end.
        device: of its machine.
        dtype, threads: as in the plan.
        embedders: whether it embeds text, timesteps and audio for the others.
        storage: fields of the stage's `StorageConfig`.
        cap: as in the plan.
    """

    model: WireModel
    layers: tuple[int, int]
    device: str
    dtype: str
    threads: int
    embedders: bool
    storage: tuple[Any, ...]
    cap: int


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """One video for one stage: the spec of a run.

    Attributes:
        run: number of the run; what is sent for another run is ignored.
        stage: its own number.
        partition: of all stages.
        blocks, clip_blocks, seed: of the video.
        first: the block to begin with: 0, or one of which all stages have kept a snapshot.
        snapshot_blocks: as in the plan.
        folder: where all stages keep their snapshots.
        timesteps, sigmas: of its schedule.
        size: height and width of a latent.
        distance: the fields of a `SinkDistance`.
        reference, motion: latents of the image, [16, 1, h, w] and [16, 19, h, w].
        compiler: what layers were compiled with; "" where they work as they are written.
    """

    run: int
    stage: int
    partition: WirePartition
    blocks: int
    clip_blocks: int
    first: int
    snapshot_blocks: int
    folder: str
    seed: int
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    size: tuple[int, int]
    distance: tuple[str, int, tuple[tuple[int, ...], ...]]
    reference: torch.Tensor
    motion: torch.Tensor
    compiler: str


@dataclasses.dataclass(frozen=True)
class WorkerEvents:
    """The events of a worker since it was asked last.

    Attributes:
        state: "idle", "running", "done" or "stopped".
        tasks: run since.
        latents: blocks that ended since, [16, 3, h, w] float32 on the CPU, in order.
        seconds: the stage was busy in this run.
        busy: seconds that the present task has taken; 0 between tasks.
        fault: None, or a `WorkerFault` as plain data.
    """

    state: str
    tasks: tuple[WireTask, ...]
    latents: tuple[torch.Tensor, ...]
    seconds: float
    busy: float
    fault: tuple[Any, ...] | None


@dataclasses.dataclass(frozen=True)
class WorkerStats:
    """Statistics of a worker; reading them changes nothing.

    Attributes:
        state: as in `WorkerEvents`.
        tasks, seconds: run so far, and busy with them, in the present run; 0 without one.
        allocated, reserved: bytes of its device's memory; 0 on the CPU.
    """

    state: str
    tasks: int
    seconds: float
    allocated: int
    reserved: int


@dataclasses.dataclass(frozen=True)
class WorkerFault:
    """What went wrong in a worker.

    Attributes:
        kind: "refused" (a refusal of the library), "failed" (any other exception) or "link" (a neighbour fell silent,
            so that the cause is elsewhere).
        what, nearest: as in `LiveAvatarError`.
    """

    kind: str
    what: str
    nearest: str


def to_wire(data: Any) -> tuple[Any, ...]:
    """The fields of a dataclass whose values are plain."""
    return tuple(getattr(data, field.name) for field in dataclasses.fields(data))


def task_to_wire(task: Task) -> WireTask:
    """A task as a tuple."""
    if isinstance(task, Prefill):
        return ("prefill", task.version, task.group, task.shard)
    return ("denoise", task.block, task.step, task.shard)


def task_from_wire(data: WireTask) -> Task:
    """A task from its tuple."""
    kind, first, second, part = data
    return Prefill(first, second, part) if kind == "prefill" else Denoise(first, second, part)


def partition_to_wire(partition: Partition) -> WirePartition:
    """A cut as the edges of its ranges."""
    steps, layers = (
        tuple((r.start, r.stop) for r in ranges) for ranges in (partition.step_groups, partition.layer_shards)
    )
    return steps, layers


def partition_from_wire(data: WirePartition) -> Partition:
    """A cut from its edges."""
    steps, layers = (tuple(range(*edges) for edges in ranges) for ranges in data)
    return Partition(steps, layers)


def model_to_wire(components: Components) -> WireModel:
    """What a worker needs to open the same model.

    Raises:
        PlanError: the model exists in this process only.
    """
    if isinstance(components, FolderComponents):
        files = components.files
        named = ((f.name, getattr(files, f.name)) for f in dataclasses.fields(files))
        paths = tuple((name, None if path is None else str(path.absolute())) for name, path in named)
        return components.name, paths, ()
    made = _models_in_code().get(components.name)
    if made is not None and isinstance(components, made):
        return components.name, (), components.numbers
    raise PlanError(
        f"The model {components.name!r} exists in this process only; workers cannot open it.",
        "Give a model folder or file, or run it in this process.",
    )


def model_from_wire(data: WireModel) -> Components:
    """The same model, opened here.

    Raises:
        ModelError: its files are not here, or not whole.
    """
    name, files, numbers = data
    if not files:
        return _models_in_code()[name](*numbers)
    paths: dict[str, Any] = {key: None if path is None else Path(path) for key, path in files}
    return FolderComponents(ModelFiles(**paths), name)


def _models_in_code() -> dict[str, type[UntrainedComponents]]:
    """Models without files, by name."""
    from ..mini.slow import SlowComponents
    from ..mini.untrained import UntrainedComponents

    return {made.name: made for made in (UntrainedComponents, SlowComponents)}


_OUT_OF_MEMORY = ("outofmemory", "out of memory", "allocate memory", "bad_alloc", "alloc_failed")
"""How libraries say it that have no class for it: CUDA, the CPU's allocator, C++, cuBLAS."""


def fault_from(error: BaseException) -> WorkerFault:
    """The fault that an exception is."""
    lacking = is_out_of_memory(error)
    if lacking is not None:
        return WorkerFault("failed", f"out of memory ({_message_of(lacking)})", OUT_OF_MEMORY_NEAREST)
    if isinstance(error, LiveAvatarError):
        return WorkerFault("refused", error.what, error.nearest)
    return WorkerFault("failed", _message_of(error), "Run it again; if it repeats, look at its log.")


def is_out_of_memory(error: BaseException) -> BaseException | None:
    """What says that memory of the machine or of a device was asked for and not there: the error, or what caused it."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return error
    if not isinstance(error, LiveAvatarError):  # whose words may speak of memory for other reasons
        said = f"{type(error).__name__} {error}".lower()
        if any(words in said for words in _OUT_OF_MEMORY):
            return error
    return None if error.__cause__ is None else is_out_of_memory(error.__cause__)


def first_line(error: BaseException) -> str:
    """Of what it says, at most 300 letters."""
    return (str(error).strip().splitlines() or [""])[0][:300]


def _message_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}".rstrip(". ")
