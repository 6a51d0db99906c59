"""One avatar being generated: prepared conditions in, a stream of frames out.

Nothing is computed before somebody pulls: pulling a frame decodes a block, decoding pulls its latent, and the latent
makes the engine run the tasks that are still missing. An engine on accelerators then goes on with the next block by
itself, but never further. Both streams replay, so a video can be read twice or by two.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch

from .encoders.audio import AudioFeatures
from .planner import Plan
from .request import ResolvedRequest, SinkDistance
from .streams import Decoder, FrameStream, LatentStream
from .task_graph import Task


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """The conditioning of a video: encoded image, audio and prompt.

    Attributes:
        reference: latent of the image [16, 1, h, w].
        motion: latents of the image standing still for 73 frames [16, 19, h, w].
        prompt: prompt features [n, text_dim].
        audio: features of every block.
    """

    reference: torch.Tensor
    motion: torch.Tensor
    prompt: torch.Tensor
    audio: AudioFeatures


@dataclasses.dataclass(frozen=True)
class VideoTask:
    """Everything an engine needs to make the latents of one video.

    Attributes:
        resolved: what will be made.
        conditioning: of what.
        distance: where the reference stands at each block.
    """

    resolved: ResolvedRequest
    conditioning: Conditioning
    distance: SinkDistance


@dataclasses.dataclass(frozen=True)
class TaskReport:
    """One task that an engine has run (on an accelerator: has sent).

    Attributes:
        task, stage: which, and where.
        done, total: tasks of the video. When an engine goes on from an earlier block, `done` falls back to the tasks
            that still stand finished: those of the blocks before it, and what has run since.
    """

    task: Task
    stage: int
    done: int
    total: int


OnTask = Callable[[TaskReport], None]
"""Called after every task; what it raises stops the run."""
OnNotice = Callable[[str], None]
"""Called with a readable sentence when something out of the ordinary happened to a run that goes on all the same, and,
again and again meanwhile, with what the run waits for; what it raises stops the run."""


def ignore_notice(text: str) -> None:
    """For callers that want no notices."""


class Engine(Protocol):
    """Who runs the stages of a plan."""

    plan: Plan

    def run(self, job: VideoTask, on_task: OnTask, on_notice: OnNotice = ignore_notice) -> Iterator[torch.Tensor]:
        """Finished latents [16, 3, h, w] of each block, in order, on the CPU.

        The work begins with the first pull and may then go on by itself, but only so far (`LocalEngine`: a block).
        Tasks and notices are told in the thread that pulls. Closing the iterator stops the work before its next task.
        """
        ...

    @property
    def loaded(self) -> bool:
        """Whether the next run begins without loading weights."""
        ...

    def load(self, on_notice: OnNotice = ignore_notice) -> None:
        """Load the weights now; otherwise the first run does."""
        ...

    def stage_seconds(self) -> tuple[float, ...]:
        """Busy seconds of each stage in the latest run."""
        ...

    def release(self) -> None:
        """Give back all memory; the next run loads again."""
        ...


OpenDecoder = Callable[[torch.Tensor, OnNotice], Decoder]
"""Motion latents [16, 19, h, w], and who is called with what is out of the ordinary -> a decoder of the video to
come."""


class Session:
    """One avatar being generated.

    Args:
        engine: runs the stages.
        job: what is made.
        open_decoder: who makes images of the latents. None where every consumer brings its own.
        on_task: called after every task; what it raises stops the run. May be exchanged at any time.
        on_notice: called with what else is worth telling; likewise.
        spool_dir: where finished latents are kept while the session lives; the system's temporary folder by default.
    """

    def __init__(
        self,
        engine: Engine,
        job: VideoTask,
        open_decoder: OpenDecoder | None = None,
        on_task: OnTask = lambda report: None,
        spool_dir: Path | None = None,
        on_notice: OnNotice = ignore_notice,
    ):
        self.engine, self.job, self.open_decoder = engine, job, open_decoder
        self.on_task, self.on_notice = on_task, on_notice
        self.decode_seconds = 0.0
        self.latents = LatentStream(job.resolved.blocks, self._run, spool_dir)

    @property
    def frames(self) -> FrameStream:
        """The video; every consumer decodes for itself."""
        if self.open_decoder is None:
            raise ValueError("This session has no decoder of its own.")
        return self.frames_through(self.open_decoder)

    def frames_through(self, open_decoder: OpenDecoder) -> FrameStream:
        """The video, decoded by somebody else."""
        resolved = self.job.resolved
        return FrameStream(self.latents, lambda: self._decoder(open_decoder), resolved.frames, resolved.drop)

    def close(self) -> None:
        """Stop the work and remove what was spooled."""
        self.latents.close()
        self.job.conditioning.audio.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> Iterator[torch.Tensor]:
        # A run that kept the session would keep the stream, which could then not end it when both are forgotten.
        me = weakref.proxy(self)
        return self.engine.run(self.job, lambda report: me.on_task(report), lambda text: me.on_notice(text))

    def _decoder(self, open_decoder: OpenDecoder) -> Decoder:
        """One whose seconds are counted."""
        decode = open_decoder(self.job.conditioning.motion, lambda text: self.on_notice(text))

        def timed(latents: torch.Tensor) -> torch.Tensor:
            start = time.perf_counter()
            pixels = decode(latents)
            self.decode_seconds += time.perf_counter() - start
            return pixels

        return timed


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Compute with `count` CPU threads inside; sums are bit-equal only at equal counts."""
    before = torch.get_num_threads()
    if before != count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if before != count:
            torch.set_num_threads(before)
