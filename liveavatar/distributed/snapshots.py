"""Snapshots of a stage between two blocks, as files, so that a worker that replaces it goes on from there.

A snapshot at boundary b is the stage's part of a state (see `stage_state`): for every step its KV caches, saved when
block b - 1 has passed them and before block b does, and the sink that block b - 1 attends to, which never changes.
Stages save while the pipeline runs, each at its own time; no stage waits for another, and only a thread waits for the
disk.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from ..errors import ModelError
from ..private_files import is_private_folder, make_private_folder
from ..stage import Stage
from ..stage_state import restore_stage, sink_state, step_state
from ..utils import format_bytes
from ..weights.source import SafetensorsSource
from ..weights.writing import LazyTensor, write_safetensors

NUM_KEPT = 2
"""Complete snapshots per stage; stages that are less than an interval apart have at least one in common."""
_SINK_PART = "sink"
_RESERVE = 2
"""Snapshots that disk and memory must have room for before one is begun, because other stages need them too."""
_log = logging.getLogger("liveavatar.worker")

_Part = tuple[int, str, Mapping[str, LazyTensor]]
"""A boundary, which part of its snapshot this is, and what its file will hold: copies that the stage never changes."""


class Snapshots:
    """The files of one stage in one run: per boundary one for each step, and one for the sink.

    A snapshot that cannot be written is given up and logged: the run goes on, and an older one has to do.

    Args:
        folder: of the stage; made here.
        steps: of the stage.
        first: the boundary that the run begins at, whose files stay as they are; later ones are removed, because
            their blocks are made anew. 0: all are removed.
    """

    def __init__(self, folder: Path, steps: range, first: int = 0):
        self._folder, self._steps = folder, steps
        self._wanted: dict[int, bool] = {}
        """Boundaries that not all steps have passed, and whether there was room for them."""
        self._passed = dict.fromkeys(steps, first)
        """By step: the latest boundary that was to be saved."""
        self._missing: dict[int, int] = {}
        """Boundaries that are being written, and how many files they still lack; like what follows the thread's own."""
        self._complete = tuple(b for b in complete_in(folder, steps) if b <= first)
        self._failed: set[int] = set()
        """Boundaries that could not be written, and that some step may not have passed."""
        self._usable = self._make_folder()
        self._clean()
        self._to_write: queue.SimpleQueue[_Part | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="liveavatar-snapshots", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Files to be written, about."""
        return self._to_write.qsize()

    @property
    def complete(self) -> tuple[int, ...]:
        """Boundaries of the snapshots that are whole, ascending."""
        return self._complete

    def restore(self, boundary: int, stage: Stage) -> None:
        """Give a new stage what one like it held at a boundary.

        Raises:
            ModelError: a file is not there or not whole.
        """
        restore_stage(stage, boundary, _Saved(_file(self._folder, boundary, part) for part in _parts(self._steps)))

    def save(self, boundary: int, step: int, stage: Stage) -> None:
        """Copy what a step holds now; it is written soon.

        Args:
            boundary, step: of which; boundaries rise.
            stage: holds it.
        """
        if boundary not in self._wanted:
            self._wanted[boundary] = self._has_room(boundary, stage)
            if self._wanted[boundary]:
                self._to_write.put((boundary, _SINK_PART, _copied(sink_state(stage, boundary))))
        if self._wanted[boundary]:
            self._to_write.put((boundary, str(step), _copied(step_state(stage, boundary, step))))
        self._passed[step] = boundary
        for old in [b for b in self._wanted if b <= min(self._passed.values())]:
            del self._wanted[old]

    def close(self) -> None:
        """Return when all that was saved is written."""
        self._to_write.put(None)
        self._thread.join()

    def _make_folder(self) -> bool:
        """Make the folder, with those above it that are missing (on another machine), all of this user alone."""
        missing = [self._folder]
        while not missing[-1].parent.exists():
            missing.append(missing[-1].parent)
        try:
            for folder in reversed(missing):
                make_private_folder(folder)
        except OSError as error:
            _log.warning("no snapshots: %s", error)
            return False
        return True

    def _has_room(self, boundary: int, stage: Stage) -> bool:
        """Whether memory and disk can take a whole snapshot more."""
        if not self._usable:
            return False
        needed = _RESERVE * sum(
            t.nbytes for kv_caches in stage.kv_caches.values() for r in kv_caches for t in r.tensors()
        )
        wanted = f"free, and {format_bytes(needed, '.3g')} are wanted"
        if self.waiting > len(_parts(self._steps)):
            why = "the disk is too slow for those before it"
        elif (free := _free_disk(self._folder)) < needed:
            why = f"the disk has {format_bytes(free, '.3g')} {wanted}"
        elif (free := _free_memory()) < needed:
            why = f"the memory has {format_bytes(free, '.3g')} {wanted}"
        else:
            return True
        _log.warning("no snapshot at block %s: %s", boundary, why)
        return False

    def _work(self) -> None:
        with torch.inference_mode():
            while (part := self._to_write.get()) is not None:
                if part[0] not in self._failed:
                    self._write(*part)

    def _write(self, boundary: int, part: str, saved: Mapping[str, LazyTensor]) -> None:
        path, missing = _file(self._folder, boundary, part), self._missing.pop(boundary, len(_parts(self._steps)))
        unfinished = path.with_suffix(".part")
        try:
            with unfinished.open("wb", buffering=0) as file:
                write_safetensors(file, saved, {})
            unfinished.replace(path)
        except OSError as error:
            _log.warning("no snapshot at block %s: %s", boundary, error)
            self._failed.add(boundary)
            self._clean()
            return
        if missing > 1:
            self._missing[boundary] = missing - 1
        else:
            self._complete = (*self._complete, boundary)[-NUM_KEPT:]
            self._failed = {b for b in self._failed if b > boundary}
            self._clean()

    def _clean(self) -> None:
        """Remove what is of no use any more."""
        kept = {str(boundary) for boundary in (*self._complete, *self._missing)}
        for path in _files(self._folder):
            if path.suffix == ".part" or path.name.split("-")[0] not in kept:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)


def stage_folder(folder: str, stage: int) -> Path:
    """Where a stage keeps its files: known by run and number, so that a worker finds those of the one before it."""
    return Path(folder) / f"stage-{stage}"


def complete_in(folder: Path, steps: range) -> tuple[int, ...]:
    """The boundaries of which all files of a stage are there and whole, rising; none where others can have put them."""
    if not is_private_folder(folder):
        return ()
    names = (path.name.split("-")[0] for path in _files(folder))
    found = {int(name) for name in names if name.isdecimal()}
    return tuple(sorted(b for b in found if all(_whole(_file(folder, b, part)) for part in _parts(steps))))


def latest_common(kept: Iterable[Iterable[int]], at_most: int) -> int:
    """The greatest boundary that every stage has, and that is not beyond `at_most`; 0 where there is none."""
    common = set.intersection(*map(set, kept))
    return max((b for b in common if b <= at_most), default=0)


def remove(folder: str) -> None:
    """Remove all files of a run."""
    shutil.rmtree(folder, ignore_errors=True)


def _parts(steps: range) -> tuple[str, ...]:
    """What one snapshot is made of."""
    return (_SINK_PART, *map(str, steps))


def _file(folder: Path, boundary: int, part: str) -> Path:
    return folder / f"{boundary}-{part}.safetensors"


def _files(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from list(folder.iterdir())


def _whole(path: Path) -> bool:
    """Whether a file is there and as long as it says."""
    try:
        return bool(SafetensorsSource(path).keys())
    except ModelError:
        return False


class _Saved:
    """The tensors of several files (see `SavedTensors`)."""

    def __init__(self, files: Iterable[Path]):
        self._sources = {key: source for source in map(SafetensorsSource, files) for key in sorted(source.keys())}

    def keys(self) -> frozenset[str]:
        return frozenset(self._sources)

    def read(self, key: str) -> torch.Tensor:
        return self._sources[key].read(key)


def _copied(state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The same on the CPU, in memory of its own where the stage will write into its own."""
    return {name: LazyTensor.of(lazy.read().cpu()) for name, lazy in state.items()}


def _free_disk(folder: Path) -> float:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0.0


def _free_memory() -> float:
    """Bytes of host memory that can be had; infinite where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), math.inf)
