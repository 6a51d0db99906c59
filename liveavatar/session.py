"""One avatar being generated: prepared conditions in, a stream of frames out.

Nothing is computed before somebody pulls: pulling a frame decodes a block, decoding pulls its latent, and the latent
makes the engine run the tasks that are still missing. Both streams replay, so a video can be read twice or by two.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from .distance import SinkDistance
from .encoders.features import AudioFeatures
from .pipeline import Task
from .planner import Plan
from .request import Effective
from .streams import FrameStream, LatentStream
from .vae.stream import decode_block, open_decode

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan


@dataclasses.dataclass(frozen=True)
class Material:
    """What the encoders made of the picture, the sound and the prompt.

    Attributes:
        reference: latent of the picture [16, 1, h, w].
        motion: latents of the picture standing still for 73 frames [16, 19, h, w].
        context: prompt features [n, text_dim].
        audio: features of every block.
    """

    reference: torch.Tensor
    motion: torch.Tensor
    context: torch.Tensor
    audio: AudioFeatures


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything an engine needs to make the latents of one video.

    Attributes:
        effective: what will be made.
        material: of what.
        distance: where the reference stands at each block.
    """

    effective: Effective
    material: Material
    distance: SinkDistance


@dataclasses.dataclass(frozen=True)
class TaskReport:
    """One task that an engine has run (on an accelerator: has sent).

    Attributes:
        task, stage: which, and where.
        done, total: tasks of the video.
    """

    task: Task
    stage: int
    done: int
    total: int


OnTask = Callable[[TaskReport], None]
"""Called after every task; what it raises stops the run."""


class Engine(Protocol):
    """Who runs the stages of a plan."""

    plan: Plan

    def run(self, job: Job, on_task: OnTask) -> Iterator[torch.Tensor]:
        """Finished latents [16, 3, h, w] of each block, in order, on the CPU; closing the iterator stops the work."""
        ...

    @property
    def loaded(self) -> bool:
        """Whether the next run begins without loading weights."""
        ...

    def load(self) -> None:
        """Load the weights now; otherwise the first run does."""
        ...

    def stage_seconds(self) -> tuple[float, ...]:
        """Busy seconds of each stage in the latest run."""
        ...

    def release(self) -> None:
        """Give back all memory; the next run loads again."""
        ...


class Session:
    """One avatar being generated.

    Args:
        engine: runs the stages.
        vae: decodes; shared with other sessions, all state is kept here. None where every consumer brings its own.
        job: what is made.
        on_task: called after every task; what it raises stops the run. May be exchanged at any time.
        spool_dir: where finished latents are kept while the session lives; the system's temporary folder by default.
    """

    def __init__(
        self,
        engine: Engine,
        vae: AutoencoderKLWan | None,
        job: Job,
        on_task: OnTask = lambda report: None,
        spool_dir: Path | None = None,
    ):
        self.engine, self.vae, self.job = engine, vae, job
        self.on_task = on_task
        self.decode_seconds = 0.0
        self.latents = LatentStream(job.effective.blocks, self._run, spool_dir)

    @property
    def frames(self) -> FrameStream:
        """The video; every consumer decodes for itself."""
        if self.vae is None:
            raise ValueError("This session has no VAE of its own.")
        return self.frames_through(self.vae)

    def frames_through(self, vae: AutoencoderKLWan) -> FrameStream:
        """The video, decoded by another VAE."""
        effective = self.job.effective
        return FrameStream(self.latents, lambda: self._open_decoder(vae), effective.frames, effective.drop)

    def close(self) -> None:
        """Stop the work and remove what was spooled."""
        self.latents.close()
        self.job.material.audio.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> Iterator[torch.Tensor]:
        return self.engine.run(self.job, lambda report: self.on_task(report))

    def _open_decoder(self, vae: AutoencoderKLWan) -> Callable[[torch.Tensor], torch.Tensor]:
        with torch.inference_mode(), cpu_threads(self.engine.plan.threads):
            state = open_decode(vae, self.job.material.motion[None])

        def decode(latents: torch.Tensor) -> torch.Tensor:
            start = time.perf_counter()
            with torch.inference_mode(), cpu_threads(self.engine.plan.threads):
                pixels = decode_block(vae, state, latents).cpu()
            self.decode_seconds += time.perf_counter() - start
            return pixels

        return decode


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
