"""What a video will be, and what makes it ready to be filmed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from .codec import Place
from .components import Components
from .engines.backend import Backend, LocalBackend
from .media.sound import Sound
from .planner import Plan
from .prepare import Phase, prepare
from .request import Effective, Request
from .session import Job, Session
from .streams import FrameStream


@dataclasses.dataclass(frozen=True)
class Prospect:
    """What a request would make, known before anything heavy is loaded.

    Attributes:
        components: where the weights would come from.
        request, effective: what was asked, and what that means.
        plan: where it would run.
        picture: uint8 [H, W, 3].
        sound: as read.
        inputs: the files they were read from, which no output may replace.
    """

    components: Components
    request: Request
    effective: Effective
    plan: Plan
    picture: np.ndarray
    sound: Sound
    inputs: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class Filmed:
    """What is recorded.

    Attributes:
        session: makes the latents.
        frames: the video, decoded from them.
    """

    session: Session
    frames: FrameStream


Opening = Callable[[Prospect, Phase], AbstractContextManager[Filmed]]
"""Makes ready what is filmed, and gives it back at the end."""


@contextlib.contextmanager
def fresh_session(prospect: Prospect, phase: Phase, backend: Backend | None = None) -> Iterator[Filmed]:
    """A session of its own: everything is loaded for it and let go after it.

    Args:
        prospect: what is made.
        phase: hears of the progress.
        backend: lends the engine, and keeps what it holds; None: this process.
    """
    p = prospect
    lender = backend or LocalBackend()
    codec = lender.codec(p.components, Place(p.plan.vae_device, p.plan.dtype, p.plan.threads, p.plan.cap))
    phase("loading the VAE", 0.0)
    codec.load_vae(lambda: phase("loading the VAE", 0.0))
    material = prepare(codec, p.request, p.effective, p.picture, p.sound, phase, p.plan.vae_tiles)
    job = Job(p.effective, material, p.request.sink_distance)
    open_decoder = functools.partial(codec.decoder, tiles=p.plan.vae_tiles)
    with Session(lender.engine(p.components, p.plan), job, open_decoder) as session:
        yield Filmed(session, session.frames)
