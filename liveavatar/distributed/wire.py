"""The messages between a process and its workers: specs, events and faults, and their encoding.

An encoded message is a pickle that names no class and no function, so that reading one can run nothing: types of this
library are written by their names in a table here, tensors and arrays as their bytes. Module names would not do: as a
custom node, this library is imported under the path of its folder, which no other process knows.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import logging
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import __version__
from ..attention_choice import AttentionUse
from ..codec import ExecConfig
from ..compiler import missing_requirements
from ..components import Components, FolderComponents
from ..errors import LiveAvatarError, PlanError
from ..noise_schedule import NoiseSchedule
from ..request import SinkDistance
from ..stage import Portrait
from ..storage import StorageConfig
from ..task_graph import Denoise, Partition, Prefill, Task
from ..utils import OUT_OF_FILES_NEAREST, is_out_of_files
from ..weights.folder import ModelFiles
from ..weights.lora import ExtraLoRA
from .topology import LinkSpec

if TYPE_CHECKING:
    from ..mini.untrained import UntrainedComponents


_log = logging.getLogger("liveavatar")

OUT_OF_MEMORY_NEAREST = "Use more stages or a smaller size, or end other programs that hold memory of its device."


@dataclasses.dataclass(frozen=True)
class Handshake:
    """The first answer of a worker process.

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
        return cls(os.getpid(), __version__, str(torch.__version__), nccl, lacks)

    def incompatibility(self) -> str:
        """Why a worker with this handshake cannot be used, as a sentence's end; "" if it can."""
        if self.version != __version__:
            return f"has version {self.version} of this library, this process {__version__}"
        if self.torch != torch.__version__:
            _log.warning("A worker has PyTorch %s, this process %s.", self.torch, torch.__version__)
        return ""


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A model that another process can open.

    Attributes:
        name: of the model.
        files: fields of its `ModelFiles` and their absolute paths; empty for a model that is made in code.
        numbers: what a model that is made in code is made with.
        extra_loras: absolute paths of further LoRAs, and their strengths.
    """

    name: str
    files: tuple[tuple[str, str | None], ...]
    numbers: tuple[float, ...]
    extra_loras: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(cls, components: Components) -> ModelSpec:
        """The spec of a model.

        Raises:
            PlanError: the model exists in this process only.
        """
        if isinstance(components, FolderComponents):
            files = components.files
            named = files.paths().items()
            paths = tuple((name, None if path is None else str(path.absolute())) for name, path in named)
            extra = tuple((str(lora.path.absolute()), lora.strength) for lora in files.extra_loras)
            return cls(components.name, paths, (), extra)
        made = _models_in_code().get(components.name)
        if made is not None and isinstance(components, made):
            return cls(components.name, (), components.numbers)
        raise PlanError(
            f"The model {components.name!r} exists in this process only; workers cannot open it.",
            "Give a model folder or file, or run it in this process.",
        )

    def open(self) -> Components:
        """The model, opened in this process.

        Raises:
            ModelError: its files are not here, or not whole.
        """
        if not self.files:
            return _models_in_code()[self.name](*self.numbers)
        paths: dict[str, Any] = {key: None if path is None else Path(path) for key, path in self.files}
        extra = tuple(ExtraLoRA(Path(path), strength) for path, strength in self.extra_loras)
        return FolderComponents(ModelFiles(**paths, extra_loras=extra), self.name)


def _models_in_code() -> dict[str, type[UntrainedComponents]]:
    """Models without files, by name."""
    from ..mini.slow import SlowComponents
    from ..mini.untrained import UntrainedComponents

    return {made.name: made for made in (UntrainedComponents, SlowComponents)}


@dataclasses.dataclass(frozen=True)
class LoadSpec:
    """The spec of the weights a worker holds.

    Attributes:
        model: where the weights come from.
        layers: which layers.
        device: of its machine.
        dtype, threads: as in the plan.
        embedders: whether it embeds text, timesteps and audio for the others.
        storage: of the stage.
        cap: as in the plan.
    """

    model: ModelSpec
    layers: range
    device: str
    dtype: str
    threads: int
    embedders: bool
    storage: StorageConfig
    cap: int


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """One video for one stage: the spec of a run.

    Attributes:
        run: number of the run; what is sent for another run is ignored.
        stage: its own number.
        partition: of all stages.
        blocks: of the video; None where nobody knows how many there will be: it ends when it is stopped.
        portraits: blocks at which another portrait begins, as far as they are known beforehand.
        prompt_start: the block from which the second embedded prompt holds; 0: there is the first one alone.
        clip_blocks, seed: of the video.
        first: the block to begin with: 0, or one of which all stages have kept a snapshot or are sent a state.
        from_state: whether they are sent a state.
        keep_state: whether what the stage holds at the end is kept until it is stopped.
        snapshot_blocks: as in the plan.
        folder: where all stages keep their snapshots.
        schedule: of its noise.
        size: height and width of a latent.
        distance: of the sink.
        reference, motion: latents of the image, [16, 1, h, w] and [16, 19, h, w].
        compiler: what layers were compiled with; "" where they work as they are written.
        attention: backend of self-attention.
        speaker_mask: who is heard in which token, as of `StageConditioning`.
    """

    run: int
    stage: int
    partition: Partition
    blocks: int | None
    portraits: tuple[int, ...]
    prompt_start: int
    clip_blocks: int
    first: int
    from_state: bool
    keep_state: bool
    snapshot_blocks: int
    folder: str
    seed: int
    schedule: NoiseSchedule
    size: tuple[int, int]
    distance: SinkDistance
    reference: torch.Tensor
    motion: torch.Tensor
    compiler: str
    attention: str = "auto"
    speaker_mask: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True)
class RunBegun:
    """A worker's answer when a run has begun.

    Attributes:
        attention: what its self-attention is done with.
        notice: why that is not what was asked for; "" where it is.
    """

    attention: AttentionUse
    notice: str


@dataclasses.dataclass(frozen=True)
class WorkerEvents:
    """The events of a worker since it was asked last.

    Attributes:
        state: "idle", "running", "done" or "stopped".
        tasks: run since.
        latents: blocks that ended since, [16, 3, h, w] float32 on the CPU, in order.
        seconds: the stage was busy in this run.
        busy: seconds that the present task has taken; 0 between tasks.
        fault: what ended the run; None for nothing.
        snapshots: boundaries of its complete snapshots, ascending.
    """

    state: str
    tasks: tuple[Task, ...]
    latents: tuple[torch.Tensor, ...]
    seconds: float
    busy: float
    fault: WorkerFault | None
    snapshots: tuple[int, ...] = ()


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


class WireError(LiveAvatarError):
    """A message between processes cannot be written or read."""


_TYPES = {
    kind.__name__: kind
    for kind in (
        *(Handshake, ModelSpec, LoadSpec, RunSpec, RunBegun, WorkerEvents, WorkerStats, WorkerFault),
        AttentionUse,
        *(Denoise, Prefill, Partition, LinkSpec, Portrait, NoiseSchedule, SinkDistance, StorageConfig, ExecConfig),
    )
}
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)
_TENSORS = (*_FLOATS, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool)
_DTYPES = {str(dtype): dtype for dtype in _TENSORS}
_ARRAYS = "biuf"
"""Kinds of arrays: bool, integers and floats."""

Encoded = tuple[bytes, Any]
"""The pickle, and the bytes of its tensors and arrays, which Ray hands on without a copy."""


class _Pickler(pickle.Pickler):
    """Writes tensors, arrays, ranges and the types above by name, plain data as it is, and nothing else."""

    def persistent_id(self, item: Any) -> tuple[Any, ...] | None:
        kind = type(item)
        if isinstance(item, torch.Tensor):
            tensor = item.detach().cpu().contiguous()
            data = tensor.reshape(-1).view(torch.uint8).numpy().data
            return "Tensor", str(tensor.dtype), tuple(tensor.shape), pickle.PickleBuffer(data)
        if kind is np.ndarray and item.dtype.kind in _ARRAYS:
            return "ndarray", item.dtype.str, item.shape, pickle.PickleBuffer(np.ascontiguousarray(item).data)
        if kind is range:
            return "range", item.start, item.stop, item.step
        if _TYPES.get(kind.__name__) is kind:
            return kind.__name__, *(getattr(item, field.name) for field in dataclasses.fields(item))
        return None

    def reducer_override(self, item: Any) -> Any:
        raise WireError(f"A {type(item).__name__} cannot be sent to another process.", "Send plain data.")


class _Unpickler(pickle.Unpickler):
    """Reads what `_Pickler` writes."""

    def persistent_load(self, pid: Any) -> Any:
        kind, *fields = pid
        if kind not in ("Tensor", "ndarray"):
            return range(*fields) if kind == "range" else _TYPES[kind](*fields)
        name, shape, data = fields
        own = bytearray(data)  # the given bytes may lie in memory of Ray's, which cannot be written
        if kind == "Tensor":
            dtype = _DTYPES[name]
            return (torch.frombuffer(own, dtype=dtype) if own else torch.empty(0, dtype=dtype)).reshape(shape)
        if np.dtype(name).kind not in _ARRAYS:
            raise ValueError(f"arrays of {name} are not read")
        return np.frombuffer(own, name).reshape(shape)

    def find_class(self, module: str, name: str) -> Any:
        raise WireError(f"A message names {module}.{name}, and none may name code.", _SAME_VERSION)


_SAME_VERSION = "Use the same version of this library on all machines."


def encode(message: Any) -> Encoded:
    """A message for another process.

    Args:
        message: plain data, tensors, arrays of numbers, ranges and the specs, events and faults of this module, in
            containers of Python.

    Raises:
        WireError: there is something else in it.
    """
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    _Pickler(file, 5, buffer_callback=buffers.append).dump(message)
    return file.getvalue(), buffers


def decode(encoded: Encoded) -> Any:
    """The message that `encode` was given; tensors are on the CPU, in memory of their own.

    Raises:
        WireError: it names code, or is damaged.
    """
    try:
        data, buffers = encoded
        return _Unpickler(io.BytesIO(data), buffers=buffers).load()
    except (MemoryError, WireError):
        raise
    except Exception as error:
        raise WireError(f"A message cannot be read ({_message_of(error)}).", _SAME_VERSION) from None


_OUT_OF_MEMORY = ("outofmemory", "out of memory", "allocate memory", "bad_alloc", "alloc_failed")
"""Words of libraries that have no class for it: CUDA, the CPU's allocator, C++, cuBLAS."""


def fault_from(error: BaseException) -> WorkerFault:
    """The fault that an exception is."""
    lacking = is_out_of_memory(error)
    if lacking is not None:
        return WorkerFault("failed", f"out of memory ({_message_of(lacking)})", OUT_OF_MEMORY_NEAREST)
    if isinstance(error, LiveAvatarError):
        return WorkerFault("refused", error.what, error.nearest)
    if is_out_of_files(error):
        return WorkerFault("failed", f"too many open files ({_message_of(error)})", OUT_OF_FILES_NEAREST)
    return WorkerFault("failed", _message_of(error), "Run it again; if it repeats, look at its log.")


def is_out_of_memory(error: BaseException) -> BaseException | None:
    """The error, or its cause, that reports a lack of memory of the machine or of a device; None for other errors."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return error
    if not isinstance(error, LiveAvatarError):  # whose texts may name memory for other reasons
        text = f"{type(error).__name__} {error}".lower()
        if any(words in text for words in _OUT_OF_MEMORY):
            return error
    return None if error.__cause__ is None else is_out_of_memory(error.__cause__)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 300 characters."""
    return (str(error).strip().splitlines() or [""])[0][:300]


def _message_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}".rstrip(". ")
