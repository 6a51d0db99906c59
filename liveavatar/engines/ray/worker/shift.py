"""One run of one stage in its worker: flows come in by their task, tasks run in the paced order, flows go out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping

import torch

from ....distance import SinkDistance
from ....model.layer import AudioTokens, Work
from ....model.transformer import CausalS2VTransformer, TimeVectors
from ....pipeline import Cut, Denoise, Task, begins, ends_block, followers
from ....planner import snapshot_due
from ....schedule import Schedule
from ....session import cpu_threads
from ....stage import Conditions, Flow, Origin, Stage
from ....storage import Storage
from ..plain import Duty, Fault, News, Orders, cut_of, plain, plain_task
from ..routes import own_tasks
from .links import ABORT, END, Incoming, Link, Outgoing
from .snapshots import Snapshots, stage_folder
from .trouble import fault_of, first_line, out_of_memory

_log = logging.getLogger("liveavatar.worker")
_LOOK_SECONDS = 1.0


class Shift:
    """A stage at work, in threads of its own.

    Args:
        duty, orders: what it does.
        net: its layers.
        work: how they do what they do.
        text, time: embedded prompt and timesteps.
        incoming, outgoing: links by the neighbour's number.
    """

    def __init__(
        self,
        duty: Duty,
        orders: Orders,
        net: CausalS2VTransformer,
        work: Work,
        text: torch.Tensor,
        time: TimeVectors,
        incoming: Iterable[Link],
        outgoing: Mapping[int, Link],
    ):
        self.duty, self.orders = duty, orders
        self.cut: Cut = cut_of(orders.cut)
        self._steps = self.cut.steps[orders.stage // len(self.cut.layers)]
        self._net, self._work_of_layers, self._text, self._time = net, work, text, time
        self._device, self._dtype = torch.device(duty.device), getattr(torch, duty.dtype)
        self._origin = Origin(orders.reference, orders.seed, orders.size, self._dtype, orders.clip_blocks)
        self._changed = threading.Condition()
        self._flows: dict[Task, Flow] = {}
        self._audio: dict[int, AudioTokens] = {}
        """Of blocks that may be worked on."""
        self._tasks: list[Task] = []
        self._latents: list[torch.Tensor] = []
        self._seconds = self._started = 0.0
        self._done = 0
        self._stopped = False
        self._fault: Fault | None = None
        self._running = True
        self._snapshots = self._opened_snapshots()
        self._out = {stage: Outgoing(link, self._lose) for stage, link in outgoing.items()}
        self._in = [Incoming(link, self._arrive, self.stop, self._lose) for link in incoming]
        self._thread = threading.Thread(target=self._work, name="liveavatar-stage", daemon=True)
        self._thread.start()

    # -- what the worker asks of it --

    def allow(self, block: int, audio: AudioTokens) -> None:
        """The block may be worked on; this is what it hears."""
        with self._changed:
            self._audio[block] = audio
            self._changed.notify_all()

    def stop(self) -> None:
        """End before the next task."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until nothing of the run is left, neither work nor a flow on its way."""
        self._thread.join()
        ends: list[Outgoing | Incoming] = [*self._out.values(), *self._in]
        for end in ends:
            while end.thread.is_alive():
                end.thread.join(_LOOK_SECONDS)
                end.link.free()
        if self._snapshots is not None:
            self._snapshots.close()
        # They know the shift and it knows them; so that links close when they are wired anew, not some time later.
        self._out.clear()
        self._in.clear()

    def news(self, wait: float) -> News:
        """What happened since the last call; waits up to `wait` seconds for something to happen."""
        with self._changed:
            self._changed.wait_for(lambda: self._tasks or self._fault or not self._running, wait)
            tasks, self._tasks = self._tasks, []
            latents, self._latents = self._latents, []
            busy = time.monotonic() - self._started if self._started else 0.0
            state = self._state()
            fault = None if self._fault is None else plain(self._fault)
            return News(state, tuple(map(plain_task, tasks)), tuple(latents), self._seconds, busy, fault)

    def so_far(self) -> tuple[str, int, float]:
        """State, tasks run, and seconds busy with them."""
        with self._changed:
            return self._state(), self._done, self._seconds

    def _state(self) -> str:
        return "running" if self._running else "stopped" if self._stopped else "done"

    # -- its threads --

    def _arrive(self, task: Task, flow: Flow) -> None:
        with self._changed:
            self._flows[task] = flow
            self._changed.notify_all()

    def _lose(self, error: BaseException) -> None:
        """A neighbour is gone; who it was and why is known outside. Or there was no memory for what it sent."""
        _log.info("a link broke: %s", error)
        lost = Fault("link", f"lost a neighbouring stage ({first_line(error)})", "")
        self._fail(fault_of(error) if out_of_memory(error) else lost)

    def _fail(self, fault: Fault) -> None:
        with self._changed:
            self._fault = self._fault or fault
            self._stopped = True
            self._changed.notify_all()

    def _work(self) -> None:
        done = False
        try:
            with torch.inference_mode(), cpu_threads(self.duty.threads):
                stage = self._stage()
                if self.orders.first and self._snapshots is not None:
                    self._snapshots.restore(self.orders.first, stage)
                    _log.info("going on from block %s", self.orders.first)
                done = all(self._step(stage, task) for task in self._own_tasks())
        except BaseException as error:
            fault = fault_of(error)
            if fault.kind != "refused":
                _log.exception("the stage failed")
            self._fail(fault)
        for out in self._out.values():
            out.finish(END if done else ABORT)
        with self._changed:
            self._started = 0.0
            self._flows.clear()
            self._audio.clear()
            self._running = False
            self._changed.notify_all()

    def _own_tasks(self) -> Iterable[Task]:
        o = self.orders
        return own_tasks(self.cut, o.blocks, o.stage, o.first, o.clip_blocks)

    def _opened_snapshots(self) -> Snapshots | None:
        o = self.orders
        return Snapshots(stage_folder(o.folder, o.stage), self._steps, o.first) if o.snapshot_blocks else None

    def _keep(self, stage: Stage, task: Task) -> None:
        """Save what the step holds, where the task was its last one before a boundary."""
        o = self.orders
        if self._snapshots is None or not isinstance(task, Denoise):
            return
        if snapshot_due(task.block + 1, o.snapshot_blocks, o.blocks, o.clip_blocks):
            self._snapshots.save(task.block + 1, task.step, stage)

    def _stage(self) -> Stage:
        o = self.orders
        rows, columns = (n // 2 for n in o.size)
        conditions = Conditions(
            rows=rows,
            columns=columns,
            schedule=Schedule(o.timesteps, o.sigmas),
            seed=o.seed,
            distance=SinkDistance(*o.distance),
            text=self._text,
            time=self._time,
            motion=o.motion,
            audio=self._audio.__getitem__,
            clip_blocks=o.clip_blocks,
        )
        storage, work = Storage(*self.duty.storage), self._work_of_layers
        return Stage(self._net, self._steps, conditions, self._device, self._dtype, storage, work)

    def _step(self, stage: Stage, task: Task) -> bool:
        """Run one task when its flow is there; False when the run was stopped."""
        flow = self._wait_for(task)
        if flow is None:
            return False
        with self._changed:
            self._started = time.monotonic()
        left = stage.run(task, flow)
        if self._device.type == "cuda":
            # Not the whole device: a transfer of a link may be on its way there, whose other end has gone.
            torch.cuda.current_stream(self._device).synchronize()
        latent = left.latent.float().cpu() if ends_block(self.cut, task) else None
        self._hand_on(task, left)
        self._keep(stage, task)
        with self._changed:
            self._done += 1
            self._seconds += time.monotonic() - self._started
            self._started = 0.0
            if isinstance(task, Denoise) and task.step == self._steps[-1]:
                self._audio.pop(task.block)
            if latent is not None:
                self._latents.append(latent)
            self._tasks.append(task)
            self._changed.notify_all()
        return True

    def _wait_for(self, task: Task) -> Flow | None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._ready(task))
            if self._stopped:
                return None
            return self._flows.pop(task, None) or self._origin.flow(task)

    def _ready(self, task: Task) -> bool:
        if isinstance(task, Denoise) and task.block not in self._audio:
            return False
        return task in self._flows or begins(task)

    def _hand_on(self, task: Task, left: Flow) -> None:
        for follower in followers(self.cut, self.orders.blocks, task, self.orders.clip_blocks):
            to = self.cut.stage_of(follower)
            flow = left.handed(task, follower)
            if to == self.orders.stage:
                self._arrive(follower, flow)
            else:
                self._out[to].put(follower, flow)
