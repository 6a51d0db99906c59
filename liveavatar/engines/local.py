"""All stages in this process: the embedded default, with no service beside it.

One thread walks the paced order. On the CPU that is the work itself, done by whoever pulls. On accelerators sending a
task does not wait for it: devices work side by side as far as the tasks allow, and a thread of its own sends the work,
up to a block ahead, so that the network goes on while the caller decodes.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Iterator

import torch

from .. import compiler
from ..components import Components
from ..memory.cap import hold_to
from ..memory.landing import Landing
from ..model.layer import AS_WRITTEN, AudioTokens, Work
from ..model.transformer import CONDITIONS, CausalS2VTransformer, Part
from ..pipeline import Cut, Task, begins, ends_block, followers, paced_order, task_count
from ..planner import Plan, StagePlan
from ..schedule import Schedule
from ..session import Job, OnNotice, OnTask, TaskReport, cpu_threads, unnoticed
from ..stage import Conditions, Flow, Origin, Stage
from ..storage import Storage, embeddings_of
from .ahead import Ahead, on_accelerators
from .clock import StageClock
from .compiled import Compiled, compiling, was_compiled
from .nets import Nets


class LocalEngine:
    """Runs a plan in this process.

    Weights are loaded at the first run and kept for the next ones, and so is what was compiled for them; everything
    else lives as long as its run.

    Args:
        components: where weights come from.
        plan: what runs where.
        nets: loaded weights, shared with other engines. Engines that compile and others do not disturb each other.
        ahead: whether a thread of its own makes the blocks, up to one ahead; by default where all stages are
            on accelerators. The bits are the same.
    """

    def __init__(self, components: Components, plan: Plan, nets: Nets | None = None, ahead: bool | None = None):
        self.components, self.plan = components, plan
        self._ahead = on_accelerators(plan) if ahead is None else ahead
        self._dtype: torch.dtype = getattr(torch, plan.dtype)
        self._nets = nets or Nets()
        self._clock = StageClock(plan)

    @property
    def loaded(self) -> bool:
        """Whether all weights of the plan are there, and compiled for if it says so."""
        held = all(
            self._nets.holds(self.components, device, part, self._dtype, storage)
            for device, part, storage in self._parts()
        )
        return held and not (self.plan.compiled and self._unknown())

    def load(self, on_notice: OnNotice = unnoticed) -> None:
        """Load the weights now, and compile for them; stages that own the same layers on the same device share them.

        Args:
            on_notice: told between the forms that are compiled, and what it took.

        Raises:
            ModelError: the layers cannot be compiled here.
        """
        for stage in self.plan.stages:
            hold_to(stage.device, self.plan.cap)
        for where in self._parts():
            self._net(*where)
        if self.plan.compiled and (unknown := self._unknown()):
            self._compile(unknown, on_notice)

    def _compile(self, stages: list[StagePlan], on_notice: OnNotice) -> None:
        begun = time.perf_counter()
        for stage in stages:
            for form in range(self._compiled(stage).forms):
                on_notice(compiling())
                with self._working():
                    self._compiled(stage).warm_up(self._net_of(stage), form, self._dtype)
        on_notice(was_compiled(time.perf_counter() - begun))

    def _unknown(self) -> list[StagePlan]:
        """Stages whose layers nothing was compiled for yet."""
        return [stage for stage in self.plan.stages if not self._compiled(stage).knows(self._net_of(stage))]

    def _compiled(self, stage: StagePlan) -> Compiled:
        plan = self.plan
        return self._nets.compiled(stage.device, plan.size, plan.threads, compiler.COMPILER, plan.clip_blocks)

    def _parts(self) -> Iterator[tuple[str, Part, Storage]]:
        """What is loaded where, and how it is kept."""
        for stage in self.plan.stages:
            yield stage.device, self._part(stage.layers), stage.storage
        yield self.plan.stages[0].device, CONDITIONS, embeddings_of(self.plan.stages[0].storage)

    def release(self) -> None:
        """Give back the weights."""
        self._nets.release()

    def stage_seconds(self) -> tuple[float, ...]:
        """Busy seconds of each stage in the latest run."""
        return self._clock.seconds()

    def run(self, job: Job, on_task: OnTask, on_notice: OnNotice = unnoticed) -> Iterator[torch.Tensor]:
        """The finished latents [16, 3, h, w] of each block, in order, on the CPU. Notices are those of `load`.

        Weights are loaded, and `on_task` is called, by whoever pulls.
        """
        self.load(on_notice)
        self._clock = StageClock(self.plan)
        make = functools.partial(self._made, job)
        devices = (torch.device(stage.device) for stage in self.plan.stages)
        with contextlib.closing(Ahead(make, on_task, devices) if self._ahead else make(on_task)) as blocks:
            for latent in blocks:
                yield latent.wait()

    def _made(self, job: Job, on_task: OnTask) -> Generator[Landing, None, None]:
        """The finished latents, on their way to the CPU."""
        with self._working():
            run = _Run(self.plan.cut, job, self._stages(job), self._dtype)
        cut, blocks, clip_blocks = self.plan.cut, job.effective.blocks, job.effective.clip_blocks
        total = task_count(cut, blocks, clip_blocks=clip_blocks)
        for done, start in enumerate(paced_order(cut, blocks, clip_blocks=clip_blocks), 1):
            with self._working():
                with self._clock.timing(start.stage):
                    finished = run.run(start.task)
                latent = None if finished is None else Landing.of(finished.float())
            on_task(TaskReport(start.task, start.stage, done, total))
            if latent is not None:
                yield latent  # whoever takes it waits for it: the one wait of a block

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """Entered anew for every task, because between two of them the thread may be the caller's."""
        # Where nothing is summed on the CPU, the number of threads is left to the decoder, which may work meanwhile.
        threads = contextlib.nullcontext() if on_accelerators(self.plan) else cpu_threads(self.plan.threads)
        with torch.inference_mode(), threads:
            yield

    def _stages(self, job: Job) -> list[Stage]:
        conditions = self._conditions(job)
        return [self._stage(planned, conditions) for planned in self.plan.stages]

    def _stage(self, planned: StagePlan, conditions: Conditions) -> Stage:
        """One stage of a run."""
        there, net = torch.device(planned.device), self._net_of(planned)
        return Stage(net, planned.steps, conditions, there, self._dtype, planned.storage, self._work(planned))

    def _work(self, stage: StagePlan) -> Work:
        """How the layers of a stage do what they do."""
        return self._compiled(stage).work if self.plan.compiled else AS_WRITTEN

    def _conditions(self, job: Job) -> Conditions:
        conditioner, effective = self._conditioner(), job.effective
        schedule = Schedule.of(effective.steps)
        rows, columns = (n // 2 for n in effective.latent_size)
        return Conditions(
            rows=rows,
            columns=columns,
            schedule=schedule,
            seed=effective.seed,
            distance=job.distance,
            text=conditioner.condition_text(job.material.context),
            time=conditioner.condition_time([*schedule.timesteps, 0.0]),
            motion=job.material.motion,
            audio=self._hearing(conditioner, job),
            clip_blocks=effective.clip_blocks,
        )

    def _hearing(self, conditioner: CausalS2VTransformer, job: Job) -> Callable[[int], AudioTokens]:
        """What each block hears, kept for the blocks that are open."""

        @functools.lru_cache(maxsize=self.plan.cut.stages + 1)
        def audio(block: int) -> AudioTokens:
            return conditioner.condition_audio(job.material.audio.block(block)[None])

        return audio

    def _part(self, layers: range) -> Part:
        return Part.of(layers, self.components.config)

    def _conditioner(self) -> CausalS2VTransformer:
        return self._net(self.plan.stages[0].device, CONDITIONS, embeddings_of(self.plan.stages[0].storage))

    def _net_of(self, stage: StagePlan) -> CausalS2VTransformer:
        return self._net(stage.device, self._part(stage.layers), stage.storage)

    def _net(self, device: str, part: Part, storage: Storage) -> CausalS2VTransformer:
        return self._nets.get(self.components, device, part, self._dtype, storage)


class _Run:
    """The flows of one run, waiting for the tasks that take them up."""

    def __init__(self, cut: Cut, job: Job, stages: list[Stage], dtype: torch.dtype):
        e = job.effective
        self.cut, self.blocks, self.clip_blocks, self.stages = cut, e.blocks, e.clip_blocks, stages
        self.origin = Origin(job.material.reference, e.seed, e.latent_size, dtype, e.clip_blocks)
        self.flows: dict[Task, Flow] = {}

    def run(self, task: Task) -> torch.Tensor | None:
        """Run one task; the latent when it ends its block."""
        flow = self.origin.flow(task) if begins(task) else self.flows.pop(task)
        left = self.stages[self.cut.stage_of(task)].run(task, flow)
        for follower in followers(self.cut, self.blocks, task, self.clip_blocks):
            self.flows[follower] = left.handed(task, follower)
        return left.latent if ends_block(self.cut, task) else None
