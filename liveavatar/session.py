"""One avatar being generated: prepared conditions in, a stream of frames out.

Nothing is computed before somebody pulls: pulling a frame decodes a block, decoding pulls its latent, and the latent
makes the engine run the tasks that are still missing. An engine on accelerators then goes on with the next block by
itself, but never further. Both streams replay, so a video can be read twice or by two.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch

from .attention_choice import AttentionUse
from .config import BLOCK_LATENTS
from .encoders.block_features import BlockFeatures
from .errors import Cancelled
from .events import GENERATING, Callback, Event, ignore
from .planner import Plan
from .pose import PoseLatents
from .request import ResolvedRequest, SinkDistance
from .stage import Changes
from .stage_state import SavedTensors
from .streams import Decoder, FrameStream, LatentStream
from .task_graph import BlockGate
from .vae.decoding import CONTEXT_LATENTS
from .weights.writing import LazyTensor


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """The conditioning of a video: encoded image, audio and prompt.

    Attributes:
        reference: latent of the image [16, 1, h, w].
        motion: latents of the image standing still for 73 frames [16, 19, h, w].
        prompt: prompt features [n, text_dim].
        audio: features of every block, of each speaker.
        changes: of prompt (features) and portrait, on the way.
        before: latents [16, 3 n, h, w] of the blocks before the first, which its decoder has to have seen; None: there
            are none.
        pose: of every block; None where no pose is followed.
        speaker_mask: who is heard in which token, as of `AudioTokens`; None for a single speaker.
    """

    reference: torch.Tensor
    motion: torch.Tensor
    prompt: torch.Tensor
    audio: BlockFeatures
    changes: Changes = dataclasses.field(default_factory=Changes)
    before: torch.Tensor | None = None
    pose: PoseLatents | None = None
    speaker_mask: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True)
class VideoTask:
    """Everything an engine needs to make the latents of one video.

    Attributes:
        resolved: what will be made.
        conditioning: of what.
        distance: where the reference stands at each block.
        gate: lets blocks in whose number is not known beforehand; None: there are as many as was resolved.
        start: what the blocks before the first one have left (see `stage_state`); the reference in the conditioning is
            the first latent frame of block 0 then. None: there are none before.
        keep_state: whether the engine keeps what the blocks leave, for `Engine.take_state`.
        stop: once it is set, no further block is begun; those that have begun are finished.
    """

    resolved: ResolvedRequest
    conditioning: Conditioning
    distance: SinkDistance
    gate: BlockGate | None = None
    start: SavedTensors | None = None
    keep_state: bool = False
    stop: threading.Event | None = None

    @property
    def blocks(self) -> int | None:
        """The number of the last block and one; None where that is not known."""
        return self.resolved.first_block + self.resolved.blocks if self.gate is None else None


@dataclasses.dataclass(frozen=True)
class EngineState:
    """What a run has left in the stages.

    Attributes:
        block: the number of the next block.
        tensors: of all stages (see `stage_state`), read from them when they are written.
        close: lets the stages go, where they are kept for these.
    """

    block: int
    tensors: Mapping[str, LazyTensor]
    close: Callable[[], object] = lambda: None


class Engine(Protocol):
    """Who runs the stages of a plan."""

    plan: Plan

    def run(self, job: VideoTask, callback: Callback = ignore) -> Iterator[torch.Tensor]:
        """Finished latents [16, 3, h, w] of each block, in order, on the CPU.

        The work begins with the first pull and may then go on by itself, but only so far (`LocalEngine`: a block).
        The callback is called after every task and with notices, in the thread that pulls; what it raises stops the
        run. Closing the iterator stops the work before its next task.
        """
        ...

    @property
    def loaded(self) -> bool:
        """Whether the next run begins without loading weights."""
        ...

    def load(self, callback: Callback = ignore) -> None:
        """Load the weights now; otherwise the first run does."""
        ...

    def stage_seconds(self) -> tuple[float, ...]:
        """Busy seconds of each stage in the latest run."""
        ...

    def attention(self) -> tuple[AttentionUse, ...]:
        """What self-attention was done with on each device in the latest run; none before one has begun."""
        ...

    def take_state(self) -> EngineState | None:
        """What the latest run has left, where its job wanted that and every block that had begun was finished. The
        engine keeps it no longer."""
        ...

    def release(self) -> None:
        """Give back all memory; the next run loads again."""
        ...


OpenDecoder = Callable[[torch.Tensor, Callback], Decoder]
"""Motion latents [16, 19, h, w], and who is called with notices -> a decoder of the video to come."""


class Session:
    """One avatar being generated.

    Args:
        engine: runs the stages.
        job: what is made.
        open_decoder: who makes images of the latents. None where every consumer brings its own.
        callback: called after every task and with notices; what it raises stops the run. May be exchanged at any time.
        spool_dir: where finished latents are kept while the session lives; the system's temporary folder by default.
    """

    def __init__(
        self,
        engine: Engine,
        job: VideoTask,
        open_decoder: OpenDecoder | None = None,
        callback: Callback = ignore,
        spool_dir: Path | None = None,
    ):
        self.engine, self.job, self.open_decoder, self.callback = engine, job, open_decoder, callback
        self.decode_seconds = 0.0
        self._latest = Event(GENERATING)
        self._keeper: LatentKeeper | None = None
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

    def take_state(self) -> EngineState | None:
        """What the latest run has left, with what its decoder has to see again: complete, but for the prompt. None
        where `VideoTask.keep_state` was not set, or blocks that had begun were not finished; the second time, too."""
        left, keeper = self.engine.take_state(), self._keeper
        if left is None or keeper is None:
            return None
        given = self.job.conditioning
        own = {"motion": LazyTensor.of(given.motion), **keeper.tensors()}
        if given.pose is not None and (pictures := given.pose.pictures_before(left.block)) is not None:
            own["pose"] = LazyTensor.of(torch.from_numpy(pictures))
        return dataclasses.replace(left, tensors={**own, **left.tensors})

    def discard_state(self) -> None:
        """Let what the latest run has left go: it would hold its KV caches as long as the session."""
        if (left := self.engine.take_state()) is not None:
            left.close()

    def close(self) -> None:
        """Stop the work and remove what was spooled."""
        self.latents.close()
        self.job.conditioning.audio.close()
        if self.job.conditioning.pose is not None:
            self.job.conditioning.pose.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> Iterator[torch.Tensor]:
        # A run that kept the session would keep the stream, which could then not end it when both are forgotten.
        me = weakref.proxy(self)
        latents = self.engine.run(self.job, lambda event: me._on_engine_event(event))
        if not self.job.keep_state:
            return latents
        if self.job.stop is not None:
            self.job.stop.clear()
        self._keeper = LatentKeeper(self.job)
        return self._keeper.passing(latents)

    def _on_engine_event(self, event: Event) -> None:
        if not event.notice:
            self._latest = dataclasses.replace(event, task=None)
        self.callback(event)

    def _on_decoder_event(self, event: Event) -> None:
        """A notice; else the decoder says that it is at work, and how far the video is stands in the latest event."""
        self.callback(event if event.notice else self._latest)

    def _decoder(self, open_decoder: OpenDecoder) -> Decoder:
        """One whose seconds are counted."""
        if self.latents.produced == self.latents.blocks:
            self._latest = Event(GENERATING)  # what is replayed is no task of that run
        decode = open_decoder(self.job.conditioning.motion, self._on_decoder_event)
        if (before := self.job.conditioning.before) is not None:
            for block in before.split(BLOCK_LATENTS, 1):
                decode(block)

        def timed(latents: torch.Tensor) -> torch.Tensor:
            start = time.perf_counter()
            pixels = decode(latents)
            self.decode_seconds += time.perf_counter() - start
            return pixels

        return timed


class LatentKeeper:
    """Of the latents of a run, those that a video which continues it needs.

    Args:
        job: of the run.
    """

    def __init__(self, job: VideoTask):
        given = job.conditioning
        before = () if given.before is None else given.before.split(BLOCK_LATENTS, 1)
        self._recent = deque(before, maxlen=CONTEXT_LATENTS)
        self._first_frame = None if job.start is None else given.reference
        self._left, self._stop = job.resolved.blocks, job.stop

    def passing(self, latents: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The blocks as they come.

        Raises:
            Cancelled: the work was stopped before the last one.
        """
        with contextlib.closing(latents):  # type: ignore[type-var]
            for block in latents:
                self._recent.append(block)
                self._first_frame = block[:, :1].clone() if self._first_frame is None else self._first_frame
                self._left -= 1
                yield block
        if self._left and self._stop is not None and self._stop.is_set():
            raise Cancelled("The video was cancelled.", "It can be continued from its state.")

    def tensors(self) -> dict[str, LazyTensor]:
        """By their names in a state; there is at least one block."""
        assert self._first_frame is not None
        kept = {"first_frame": self._first_frame, "latents": torch.cat(list(self._recent), 1)}
        return {name: LazyTensor.of(tensor) for name, tensor in kept.items()}


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
