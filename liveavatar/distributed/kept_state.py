"""What a finished run has left in its workers: read from there tensor by tensor, or moved to a file in good time."""

from __future__ import annotations

import functools
import logging
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..errors import LiveAvatarError, StateError
from ..planner import Plan
from ..weights.source import SafetensorsSource
from ..weights.writing import LazyTensor, write_safetensors
from .pool import STOP_TIMEOUT_SECONDS, WorkerPool
from .worker_handle import WorkerHandle

_log = logging.getLogger("liveavatar")


class KeptState:
    """The state of one run, whose stages rest in their workers.

    Of its tensors one is in this process at a time. When the workers are needed for something else, it is moved to a
    temporary file.

    Args:
        pool, workers, plan: who ran it.
        run: its number.
        block: the number of the next block.

    Raises:
        WorkerError: a worker was lost.
    """

    def __init__(self, pool: WorkerPool, workers: Sequence[WorkerHandle], plan: Plan, run: int, block: int):
        self._pool, self._workers, self._plan, self._run, self.block = pool, list(workers), plan, run, block
        self._lock = threading.Lock()
        self._moved: SafetensorsSource | None = None
        self._gone = False
        asked = {stage: worker.call("state", run) for stage, worker in enumerate(self._workers)}
        described = pool.gather(plan, asked, pool.limits.deadline, "say what it has kept")
        self._stage_of = {name: stage for stage in asked for name in described[stage]}
        self._forms = {name: form for stage in asked for name, form in described[stage].items()}
        move = weakref.WeakMethod(self._move)
        pool.before_reuse = lambda: (move() or _nothing)()

    def tensors(self) -> dict[str, LazyTensor]:
        """By name; to be read until `close`."""
        return self._lazily(self._read)

    def close(self) -> None:
        """Let the stages go, and what was moved."""
        with self._lock:
            here, self._gone = self._moved is None and not self._gone, True
            if here:
                self._pool.before_reuse = None
                self._pool.wait_until_idle(STOP_TIMEOUT_SECONDS)
                self._pool.remove_snapshots()

    def _lazily(self, read: Callable[[str], torch.Tensor]) -> dict[str, LazyTensor]:
        return {
            name: LazyTensor(shape, getattr(torch, dtype.removeprefix("torch.")), functools.partial(read, name))
            for name, (shape, dtype) in self._forms.items()
        }

    def _read(self, name: str) -> torch.Tensor:
        """One of the tensors.

        Raises:
            StateError: it is gone.
            WorkerError: its worker was lost.
        """
        with self._lock:
            if self._gone:
                raise _lost()
            return self._from_worker(name) if self._moved is None else self._moved.read(name)

    def _from_worker(self, name: str) -> torch.Tensor:
        stage = self._stage_of[name]
        asked = {stage: self._workers[stage].call("state_tensor", self._run, name)}
        tensor = self._pool.gather(self._plan, asked, self._pool.limits.deadline, "give what it has kept")[stage]
        if tensor is None:
            raise _lost()
        found: torch.Tensor = tensor
        return found

    def _move(self) -> None:
        """Move it to a temporary file, which goes with this; what cannot be moved is gone."""
        with self._lock:
            if self._gone:
                return
            folder = ""
            try:
                folder = tempfile.mkdtemp(prefix="liveavatar-state-")
                weakref.finalize(self, shutil.rmtree, folder, True)
                path = Path(folder) / "stages.safetensors"
                with path.open("wb", buffering=0) as file:
                    write_safetensors(file, self._lazily(self._from_worker), {})
                self._moved = SafetensorsSource(path)
            except (OSError, LiveAvatarError) as error:
                _log.warning("What a video has left for its continuation is lost: %s", error)
                shutil.rmtree(folder, ignore_errors=True)
                self._gone = True


def _nothing() -> None:
    """Where nobody keeps a state any more."""


def _lost() -> StateError:
    return StateError("What the video has left was lost with its workers.", "Make it again.")
