"""The spec of a video, and what makes it ready to be recorded."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from .codec import ExecConfig
from .components import Components
from .engine.backend import Backend, LocalBackend
from .media.audio import AudioClip
from .planner import Plan
from .prepare import Phase, prepare
from .request import Request, ResolvedRequest
from .session import Session, VideoTask
from .streams import FrameStream


@dataclasses.dataclass(frozen=True)
class VideoSpec:
    """The spec of a video, known before anything heavy is loaded.

    Attributes:
        components: where the weights would come from.
        request, resolved: what was asked, and what that means.
        plan: where it would run.
        image: uint8 [H, W, 3].
        audio: as read.
        inputs: the files they were read from, which no output may replace.
    """

    components: Components
    request: Request
    resolved: ResolvedRequest
    plan: Plan
    image: np.ndarray
    audio: AudioClip
    inputs: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class OpenVideo:
    """A video ready to be recorded.

    Attributes:
        session: makes the latents.
        frames: the video, decoded from them.
    """

    session: Session
    frames: FrameStream


OpenVideoFactory = Callable[[VideoSpec, Phase], AbstractContextManager[OpenVideo]]
"""Makes ready what is filmed, and gives it back at the end."""


@contextlib.contextmanager
def open_video(spec: VideoSpec, phase: Phase, backend: Backend | None = None) -> Iterator[OpenVideo]:
    """A session of its own: everything is loaded for it and let go after it.

    Args:
        spec: what is made.
        phase: is called with the progress.
        backend: lends the engine, and keeps what it holds; None: this process.
    """
    p = spec
    lender = backend or LocalBackend()
    encoders = lender.codec(p.components, ExecConfig(p.plan.vae_device, p.plan.dtype, p.plan.threads, p.plan.cap))
    phase("loading the VAE", 0.0)
    encoders.load_vae(lambda: phase("loading the VAE", 0.0))
    conditioning = prepare(encoders, p.request, p.resolved, p.image, p.audio, phase, p.plan.vae_tiles)
    job = VideoTask(p.resolved, conditioning, p.request.sink_distance)
    open_decoder = functools.partial(encoders.decoder, tiles=p.plan.vae_tiles)
    with Session(lender.engine(p.components, p.plan), job, open_decoder) as session:
        yield OpenVideo(session, session.frames)
