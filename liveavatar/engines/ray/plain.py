"""What crosses between the caller and a worker.

Inside ComfyUI the caller's classes belong to a module that is named by its path and that no other process can import.
So only tuples, numbers, text and tensors cross, and each side makes its own objects of them.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ... import __version__
from ...compiler import missing_for
from ...components import Components, FolderComponents
from ...errors import PlanError
from ...pipeline import Cut, Denoise, Prefill, Task
from ...weights.folder import ModelFiles

if TYPE_CHECKING:
    from ...mini.untrained import UntrainedComponents

_log = logging.getLogger("liveavatar")

PlainTask = tuple[str, int, int, int]
PlainModel = tuple[str, tuple[tuple[str, str | None], ...], tuple[float, ...]]
"""Name, and files or, for a model that is made in code, the numbers it is made with."""
PlainCut = tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]


OUT_OF_MEMORY_NEAREST = "Use more stages or a smaller size, or end other programs that hold memory of its device."


@dataclasses.dataclass(frozen=True)
class Greeting:
    """What a worker says when it has come to life.

    Attributes:
        pid: of its process.
        version, torch: of this library and of PyTorch, as it has them.
        nccl: whether its PyTorch has NCCL and sees a card.
        lacks: what is missing there to compile for "cpu" or "cuda", in words; "" for nothing.
    """

    pid: int
    version: str
    torch: str
    nccl: bool
    lacks: dict[str, str]

    @classmethod
    def own(cls) -> Greeting:
        """Of this process."""
        import torch.distributed as dist

        nccl = dist.is_available() and dist.is_nccl_available() and torch.cuda.is_available()
        lacks = {kind: ", ".join(missing_for(kind)) for kind in ("cpu", "cuda")}
        return cls(os.getpid(), __version__, torch.__version__, nccl, lacks)

    def strange(self) -> str:
        """What keeps whoever said this from working for this process, as a sentence's end; "" for nothing."""
        if self.version != __version__:
            return f"has version {self.version} of this library, this process {__version__}"
        if self.torch != torch.__version__:
            _log.warning("A worker has PyTorch %s, this process %s.", self.torch, torch.__version__)
        return ""


@dataclasses.dataclass(frozen=True)
class Duty:
    """The weights a worker holds.

    Attributes:
        model: see `plain_model`.
        layers: first and end.
        device: of its machine.
        dtype, threads: as in the plan.
        conditions: whether it embeds text, time and sound for the others.
        storage: fields of the stage's `Storage`.
        cap: as in the plan.
    """

    model: PlainModel
    layers: tuple[int, int]
    device: str
    dtype: str
    threads: int
    conditions: bool
    storage: tuple[Any, ...]
    cap: int


@dataclasses.dataclass(frozen=True)
class Orders:
    """One video, for one stage.

    Attributes:
        run: number of the run; what is sent for another run is ignored.
        stage: its own number.
        cut: of all stages.
        blocks, clip_blocks, seed: of the video.
        first: the block to begin with: 0, or one of which all stages have kept a snapshot.
        snapshot_blocks: as in the plan.
        folder: where all stages keep their snapshots.
        timesteps, sigmas: of its schedule.
        size: height and width of a latent.
        distance: the fields of a `SinkDistance`.
        reference, motion: latents of the picture, [16, 1, h, w] and [16, 19, h, w].
        compiler: what layers were compiled with; "" where they work as they are written.
    """

    run: int
    stage: int
    cut: PlainCut
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
class News:
    """What a worker has to say since it was asked last.

    Attributes:
        state: "idle", "running", "done" or "stopped".
        tasks: run since.
        latents: blocks that ended since, [16, 3, h, w] float32 on the CPU, in order.
        seconds: the stage was busy in this run.
        busy: seconds that the present task has taken; 0 between tasks.
        fault: None, or a `Fault` as plain data.
    """

    state: str
    tasks: tuple[PlainTask, ...]
    latents: tuple[torch.Tensor, ...]
    seconds: float
    busy: float
    fault: tuple[Any, ...] | None


@dataclasses.dataclass(frozen=True)
class Look:
    """How a worker is doing, for anybody who asks; asking changes nothing.

    Attributes:
        state: as in `News`.
        tasks, seconds: run so far, and busy with them, in the present run; 0 without one.
        allocated, reserved: bytes of its device's memory; 0 on the CPU.
    """

    state: str
    tasks: int
    seconds: float
    allocated: int
    reserved: int


@dataclasses.dataclass(frozen=True)
class Fault:
    """What went wrong in a worker.

    Attributes:
        kind: "refused" (a refusal of the library), "failed" (any other exception) or "link" (a neighbour fell silent,
            so that the cause is elsewhere).
        what, nearest: as in `LiveAvatarError`.
    """

    kind: str
    what: str
    nearest: str


def plain(data: Any) -> tuple[Any, ...]:
    """The fields of a dataclass whose values are plain."""
    return tuple(getattr(data, field.name) for field in dataclasses.fields(data))


def plain_task(task: Task) -> PlainTask:
    """A task as a tuple."""
    if isinstance(task, Prefill):
        return ("prefill", task.version, task.group, task.part)
    return ("denoise", task.block, task.step, task.part)


def task_of(data: PlainTask) -> Task:
    """A task from its tuple."""
    kind, first, second, part = data
    return Prefill(first, second, part) if kind == "prefill" else Denoise(first, second, part)


def plain_cut(cut: Cut) -> PlainCut:
    """A cut as the edges of its ranges."""
    steps, layers = (tuple((r.start, r.stop) for r in ranges) for ranges in (cut.steps, cut.layers))
    return steps, layers


def cut_of(data: PlainCut) -> Cut:
    """A cut from its edges."""
    steps, layers = (tuple(range(*edges) for edges in ranges) for ranges in data)
    return Cut(steps, layers)


def plain_model(components: Components) -> PlainModel:
    """What a worker needs to open the same model.

    Raises:
        PlanError: the model exists in this process only.
    """
    if isinstance(components, FolderComponents):
        files = components.files
        named = ((f.name, getattr(files, f.name)) for f in dataclasses.fields(files))
        paths = tuple((name, None if path is None else str(path.absolute())) for name, path in named)
        return components.name, paths, ()
    made = _made_in_code().get(components.name)
    if made is not None and isinstance(components, made):
        return components.name, (), components.numbers
    raise PlanError(
        f"The model {components.name!r} exists in this process only; workers cannot open it.",
        "Give a model folder or file, or run it in this process.",
    )


def model_of(data: PlainModel) -> Components:
    """The same model, opened here.

    Raises:
        ModelError: its files are not here, or not whole.
    """
    name, files, numbers = data
    if not files:
        return _made_in_code()[name](*numbers)
    paths: dict[str, Any] = {key: None if path is None else Path(path) for key, path in files}
    return FolderComponents(ModelFiles(**paths), name)


def _made_in_code() -> dict[str, type[UntrainedComponents]]:
    """Models without files, by name."""
    from ...mini.slow import SlowComponents
    from ...mini.untrained import UntrainedComponents

    return {made.name: made for made in (UntrainedComponents, SlowComponents)}
