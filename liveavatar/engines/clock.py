"""Busy seconds per stage, without making an accelerator wait."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch

from ..planner import Plan


class StageClock:
    """Adds up what each stage of a plan spends on its tasks.

    On CUDA devices a task is bracketed by events and read after the run; elsewhere the wall clock tells. It may be read
    in one thread while another one works.
    """

    def __init__(self, plan: Plan):
        self._devices = [torch.device(s.device) for s in plan.stages]
        self._wall = [0.0] * len(self._devices)
        self._events: list[list[tuple[Any, Any]]] = [[] for _ in self._devices]
        self._folding = threading.Lock()

    @contextlib.contextmanager
    def timing(self, stage: int) -> Iterator[None]:
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
