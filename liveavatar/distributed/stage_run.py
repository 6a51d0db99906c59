"""One run of one stage in its worker: inputs come in by their task, tasks run in their order, outputs go out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence

import torch

from ..model.layer import LayerOps
from ..model.transformer import CausalS2VTransformer, TimestepEmbedding
from ..offload.pinned_memory import PinnedPool
from ..planner import snapshot_due
from ..session import cpu_threads
from ..stage import Stage, StageConditioning, StageInput
from ..stage_state import restore_piece, stage_state
from ..task_graph import Denoise, Task, ends_block, followers
from ..weights.writing import LazyTensor
from .links import ABORT, END, Link, ReceiveThread, SendThread
from .snapshots import Snapshots, stage_folder
from .task_queue import BlockInput, TaskQueue
from .wire import (
    LoadSpec,
    RunSpec,
    WorkerEvents,
    WorkerFault,
    fault_from,
    first_line,
    is_out_of_memory,
)

_log = logging.getLogger("liveavatar.worker")
_POLL_SECONDS = 1.0


class StageRun:
    """One run of a stage, in threads of its own.

    Args:
        load_spec, spec: of the worker and of the run.
        net: its layers.
        ops: of the layers, compiled or not.
        texts, time: embedded prompts (see `RunSpec.prompt_start`) and timesteps.
        incoming, outgoing: links by the neighbour's number.
        pinned: where memory of the host is from, for KV caches that lie there.
    """

    def __init__(
        self,
        load_spec: LoadSpec,
        spec: RunSpec,
        net: CausalS2VTransformer,
        ops: LayerOps,
        texts: Sequence[torch.Tensor],
        time: TimestepEmbedding,
        incoming: Iterable[Link],
        outgoing: Mapping[int, Link],
        pinned: PinnedPool,
    ):
        self.load_spec, self.spec, self._pinned = load_spec, spec, pinned
        self.partition = spec.partition
        self._steps = self.partition.step_groups[spec.stage // len(self.partition.layer_shards)]
        self._net, self._ops, self._text, self._time = net, ops, texts[0], time
        self._device, self._dtype = torch.device(load_spec.device), getattr(torch, load_spec.dtype)
        self._changed = threading.Condition()
        self._queue = TaskQueue(spec, self._steps, self._dtype, texts[1:])
        self._stage: Stage | None = None
        """While tasks run; after the last one, where what it holds is to be kept."""
        self._tasks: list[Task] = []
        self._latents: list[torch.Tensor] = []
        self._seconds = self._started = 0.0
        self._done = 0
        self._stopped = False
        self._fault: WorkerFault | None = None
        self._running = True
        self._snapshots = self._opened_snapshots()
        self._out = {stage: SendThread(link, self._lose) for stage, link in outgoing.items()}
        self._in = [ReceiveThread(link, self._receive, self.stop, self._lose) for link in incoming]
        self._thread = threading.Thread(target=self._run, name="liveavatar-stage", daemon=True)
        self._thread.start()

    # -- called by the worker --

    def allow(self, block: int, block_input: BlockInput) -> None:
        """Allow a block, with what it is made of."""
        with self._changed:
            self._queue.allow(block, block_input)
            self._changed.notify_all()

    def limit(self, blocks: int) -> None:
        """Let the video end before this block, which has not been allowed."""
        with self._changed:
            self._queue.limit(blocks)
            self._changed.notify_all()

    def restore(self, piece: str, tensors: Sequence[torch.Tensor]) -> None:
        """Take a piece of what the blocks before the first one left (see `stage_state`); no block is allowed yet."""
        with self._changed:
            self._changed.wait_for(lambda: self._stage is not None or not self._running)
        if self._stage is not None:
            with torch.inference_mode():
                restore_piece(self._stage, self.spec.first, piece, tensors)

    def state(self) -> dict[str, LazyTensor]:
        """What the stage holds after the last block; nothing where it does not keep it."""
        boundary = self._queue.boundary
        return {} if self._running or not self._stage or boundary is None else stage_state(self._stage, boundary)

    def stop(self) -> None:
        """End before the next task."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until the run's threads have ended and its transfers with them."""
        self._thread.join()
        ends: list[SendThread | ReceiveThread] = [*self._out.values(), *self._in]
        for end in ends:
            while end.thread.is_alive():
                end.thread.join(_POLL_SECONDS)
                end.link.break_off()
        if self._snapshots is not None:
            self._snapshots.close()
        # They refer to this run and it to them: without the cycle, links close as soon as they are wired anew.
        self._out.clear()
        self._in.clear()

    def events(self, wait: float) -> WorkerEvents:
        """What happened since the last call; waits up to `wait` seconds for something to happen."""
        with self._changed:
            self._changed.wait_for(lambda: self._tasks or self._fault or not self._running, wait)
            tasks, self._tasks = self._tasks, []
            latents, self._latents = self._latents, []
            busy = time.monotonic() - self._started if self._started else 0.0
            kept = () if self._snapshots is None else self._snapshots.complete
            state = self._state()
            return WorkerEvents(state, tuple(tasks), tuple(latents), self._seconds, busy, self._fault, kept)

    def stats(self) -> tuple[str, int, float]:
        """State, tasks run, and seconds busy with them."""
        with self._changed:
            return self._state(), self._done, self._seconds

    def _state(self) -> str:
        return "running" if self._running else "stopped" if self._stopped else "done"

    # -- its threads --

    def _receive(self, task: Task, inputs: StageInput) -> None:
        with self._changed:
            self._queue.receive(task, inputs)
            self._changed.notify_all()

    def _lose(self, error: BaseException) -> None:
        """Fail because a link broke, whose cause the driver finds; or for lack of memory for what arrived."""
        _log.info("a link broke: %s", error)
        lost = WorkerFault("link", f"lost a neighbouring stage ({first_line(error)})", "")
        self._fail(fault_from(error) if is_out_of_memory(error) else lost)

    def _fail(self, fault: WorkerFault) -> None:
        with self._changed:
            self._fault = self._fault or fault
            self._stopped = True
            self._changed.notify_all()

    def _run(self) -> None:
        done = False
        try:
            with torch.inference_mode(), cpu_threads(self.load_spec.threads):
                stage = self._begin()
                while (taken := self._wait_for_task()) is not None:
                    self._step(stage, *taken)
                done = self._queue.finished
        except BaseException as error:
            fault = fault_from(error)
            if fault.kind != "refused":
                _log.exception("the stage failed")
            self._fail(fault)
        for out in self._out.values():
            out.finish(END if done else ABORT)
        with self._changed:
            self._started = 0.0
            self._queue.clear()
            self._running = False
            if not (done and self.spec.keep_state):
                self._stage = None
            self._changed.notify_all()

    def _opened_snapshots(self) -> Snapshots | None:
        o = self.spec
        return Snapshots(stage_folder(o.folder, o.stage), self._steps, o.first) if o.snapshot_blocks else None

    def _save_snapshot(self, stage: Stage, task: Task) -> None:
        """Save what the step holds, where the task was its last one before a boundary."""
        o = self.spec
        if self._snapshots is None or not isinstance(task, Denoise):
            return
        if snapshot_due(task.block + 1, o.snapshot_blocks, o.blocks, o.clip_blocks):
            self._snapshots.save(task.block + 1, task.step, stage)

    def _begin(self) -> Stage:
        """The stage, as the blocks before the first one left it; a state follows in pieces."""
        o, stage = self.spec, self._new_stage()
        if o.first and not o.from_state and self._snapshots is not None:
            self._snapshots.restore(o.first, stage)
        if o.first:
            _log.info("going on from block %s", o.first)
        with self._changed:
            self._stage = stage
            self._changed.notify_all()
        return stage

    def _new_stage(self) -> Stage:
        o = self.spec
        rows, columns = (n // 2 for n in o.size)
        conditions = StageConditioning(
            rows=rows,
            columns=columns,
            schedule=o.schedule,
            seed=o.seed,
            distance=o.distance,
            prompt=self._text,
            time=self._time,
            motion=o.motion,
            audio=self._queue.audio,
            clip_blocks=o.clip_blocks,
            changes=self._queue.changes,
            pose=self._queue.pose,
            speaker_mask=o.speaker_mask,
        )
        storage, work = self.load_spec.storage, self._ops
        return Stage(self._net, self._steps, conditions, self._device, self._dtype, storage, work, self._pinned)

    def _step(self, stage: Stage, task: Task, inputs: StageInput) -> None:
        """Run a task, and hand on what it leaves."""
        left = stage.run(task, inputs)
        if self._device.type == "cuda":
            # Not the whole device: a transfer of a link may be on its way there, whose other end has gone.
            torch.cuda.current_stream(self._device).synchronize()
        latent = left.latent.float().cpu() if ends_block(self.partition, task) else None
        self._send(task, left)
        self._save_snapshot(stage, task)
        with self._changed:
            seconds = time.monotonic() - self._started
            self._done += 1
            self._seconds += seconds
            self._started = 0.0
            self._queue.add_ended(task, seconds)
            if latent is not None:
                self._latents.append(latent)
            self._tasks.append(task)
            self._changed.notify_all()

    def _wait_for_task(self) -> tuple[Task, StageInput] | None:
        """The task to run now, with its input; None when all have run, or the run was stopped."""
        with self._changed:
            while not self._stopped and not self._queue.finished:
                now = time.monotonic()
                task = self._queue.next_ready(now)
                if task is not None:
                    self._started = now
                    return task, self._queue.take(task, now)
                self._changed.wait(self._queue.seconds_to_begin(now))
            return None

    def _send(self, task: Task, left: StageInput) -> None:
        o = self.spec
        for follower in followers(self.partition, o.blocks, task, o.clip_blocks, self._queue.portraits):
            to = self.partition.stage_of(follower)
            inputs = left.for_follower(task, follower)
            if to == o.stage:
                self._receive(follower, inputs)
            else:
                self._out[to].put(follower, inputs)
