"""Continuing a video: what it may go on from, what is planned then, and what a finished one leaves in a file."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from .codec import Encoders
from .conditioning import NOTHING_ENCODED, Encoded, continued_conditioning, encode_conditioning
from .config import FPS, MOTION_FRAMES, SIZE_MULTIPLE, ModelConfig
from .errors import Cancelled, OutputError, PlanError, SizeError, StateError, shown
from .events import Callback, ignore
from .files import first_same, path_of
from .media.last_frames import VIDEO_SUFFIXES, read_last_frames
from .planner import Plan
from .recorder import VideoRecorder, VideoSpec
from .request import Request, ResolvedRequest
from .session import Session, VideoTask
from .speakers import PlacedSpeakers, counted_speakers
from .utils import format_bytes
from .video_state import (
    StateSource,
    VideoState,
    check_network,
    check_state_output,
    check_state_room,
    info_of,
    state_bytes,
    write_state,
)
from .weights.writing import LazyTensor

_SAME_FPS = 0.01


class VideoTail:
    """The end of a video in a file, from which another one goes on approximately.

    What the network remembered of the video is not in its file. So the new one begins anew, at its first block, but its
    motion is that of the last frames in place of a portrait that stands still, and its decoder has seen them.

    Args:
        path: of the video.

    Raises:
        StateError: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path, found = Path(path), read_last_frames(path, MOTION_FRAMES)
        missing = MOTION_FRAMES - len(found.frames)
        self.frames = np.concatenate((np.repeat(found.frames[:1], missing, 0), found.frames))
        """uint8 [73, H, W, 3]; what came before the first frame of a shorter one stands still."""
        self.first, self.size, self.fps = found.first, found.size, found.fps

    def check(self, resolved: ResolvedRequest) -> None:
        """Make sure that a video is of the same size.

        Raises:
            SizeError: it is not.
        """
        (width, height), new = self.size, (resolved.width, resolved.height)
        if self.size != new:
            usable = width % SIZE_MULTIPLE == height % SIZE_MULTIPLE == 0
            raise SizeError(
                f"{self.path} is {width}x{height}, and what goes on from it would be {new[0]}x{new[1]}.",
                f"Use --size {width}x{height}, and a picture of that shape or none."
                if usable
                else f"Give a video whose width and height are multiples of {SIZE_MULTIPLE}.",
            )

    def notes(self) -> tuple[str, ...]:
        """What is to be told of a video that goes on from it."""
        told = [
            f"it goes on from the last {MOTION_FRAMES} frames of {self.path.name}, approximately: what the network "
            "remembered of that video is not in its file (--save-state keeps it)"
        ]
        if abs(self.fps - FPS) > _SAME_FPS:
            told.append(f"{self.path.name} has {self.fps:.4g} frames per second, and they are taken for {FPS}")
        return tuple(told)


Start = StateSource | VideoTail
"""What a video goes on from."""
ContinueFrom = str | os.PathLike[str] | Start
"""The same, or its file: a state, or an MP4."""


def start_of(given: ContinueFrom | None) -> Start | None:
    """What was given to go on from.

    Raises:
        StateError: nothing of that kind.
    """
    if given is None or isinstance(given, VideoState | VideoLeft | VideoTail):
        return given
    if isinstance(given, str | os.PathLike) and isinstance(path := os.fspath(given), str):
        return VideoTail(path) if Path(path).suffix.lower() in VIDEO_SUFFIXES else VideoState(path)
    raise StateError(f"{shown(given)} is nothing to go on from.", "Give the file of a state, or an MP4.")


def size_of(start: Start) -> str:
    """The size of the video before, as it is asked for."""
    width, height = start.size if isinstance(start, VideoTail) else (start.info.width, start.info.height)
    return f"{width}x{height}"


class StateStore:
    """The state of one video: written once, at its end, and there for whoever continues it.

    Args:
        spec: of the video.
        network: fingerprint of its network.
    """

    def __init__(self, spec: VideoSpec, network: str):
        self.spec, self.network = spec, network
        self.state: VideoState | None = None
        """None before it is written."""

    def write(self, session: Session, path: Path | None = None) -> None:
        """Write what the latest run has left, where that has not been done.

        Args:
            session: of the run.
            path: where to; None: a temporary file.

        Raises:
            OutputError: it cannot be written.
        """
        if self.state is None:
            self.state = write_left(session, self.spec, self.network, path or _temporary_file(self))
        elif path is not None:
            self.state = self.state.copied(path)

    @contextlib.contextmanager
    def saving(
        self, recorder: VideoRecorder, session: Session, path: Path | None, cancelled: Path | None
    ) -> Iterator[None]:
        """Writes what the video leaves that is made inside; where it is cancelled, to another file or nowhere."""
        stopped = None
        try:
            yield
        except Cancelled as error:
            stopped = error
        except BaseException:
            session.discard_state()
            raise
        if stopped is not None:
            with recorder.timed("save state"):
                recorder.state = self.write_cancelled(session, cancelled)
            raise stopped
        with recorder.timed("save state"):
            self.write(session, path)
        recorder.state = path
        if self.state is None:
            raise _gone()

    def write_cancelled(self, session: Session, path: Path | None) -> Path | None:
        """Write what a run has left that was cancelled, where a file is named; the file, where there was something.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            left = None if path is None else write_left(session, self.spec, self.network, path)
        finally:
            session.discard_state()
        return None if left is None else left.path


class VideoLeft:
    """What a video will leave, known before it is made (see `StateSource`).

    Args:
        spec: of the video.
        store: of its state; None: it is not kept.
        session: opens its session.

    Raises:
        StateError: it is not kept.
    """

    name = "the video before"

    def __init__(self, spec: VideoSpec, store: StateStore | None, session: Callable[[Callback], Session]):
        if store is None:
            raise StateError("The video before does not keep what a continuation needs.", "Set keep_state there.")
        e = spec.resolved
        end, mask = e.first_block + e.blocks, mask_fingerprint(spec.speakers)
        self.info = info_of(e, spec.request.sink_distance, spec.plan, store.network, end, speaker_mask=mask)
        self._store, self._session = store, session

    def check(self, config: ModelConfig, network: str, model: str) -> None:
        """See `StateSource`."""
        check_network(self.info, network, model, self.name.capitalize())

    def open(self, callback: Callback = ignore) -> VideoState:
        """See `StateSource`."""
        if self._store.state is None:
            session = self._session(callback)
            session.callback = callback
            try:
                for _ in session.latents:
                    pass
                self._store.write(session)
            finally:
                session.callback = ignore
        if self._store.state is None:
            raise _gone()
        return self._store.state


def mask_fingerprint(speakers: PlacedSpeakers | None) -> str:
    """What tells where several speakers are; "" where there is one."""
    return "" if speakers is None else speakers.masks.fingerprint


def speaker_notes(start: Start | None, speakers: PlacedSpeakers | None) -> tuple[str, ...]:
    """What is to be told where others speak than in the video before, or elsewhere in the picture."""
    if isinstance(start, VideoTail | None):
        return ()
    before, now = start.info.speaker_count, 1 if speakers is None else len(speakers.audio)
    if before != now:
        return (f"{counted_speakers(before)} in the video before, and {counted_speakers(now)} now",)
    if start.info.speaker_mask != mask_fingerprint(speakers):
        return ("the speakers' masks are others than in the video before",)
    return ()


def _gone() -> StateError:
    return StateError("What the video has left is gone.", "Make it again.")


def with_state(
    resolved: ResolvedRequest, plan: Plan, config: ModelConfig, asked: Request, start: Start | None
) -> ResolvedRequest:
    """What will really be made where a video goes on from another one, or shall be continued itself.

    Args:
        resolved, plan: as for a video of its own.
        config: of the network.
        asked: the request as it came.
        start: the video before.

    Raises:
        PlanError: it fits in a smaller size only.
        SizeError: it has another size than the video before.
    """
    notes = resolved.notes
    if isinstance(start, VideoTail):
        start.check(resolved)
        notes = (*notes, *start.notes())
    elif start is not None:
        info = start.info
        if (resolved.width, resolved.height) != (info.width, info.height):
            raise PlanError(
                f"A video of {info.width}x{info.height} does not fit here, and it goes on in that size only.",
                "Let its KV cache or layers lie in host memory, or use more devices.",
            )
        notes = (*notes, *info.notes(asked, plan, start.name))
        resolved = dataclasses.replace(resolved, first_block=info.block)
    if asked.keep_state:
        size = format_bytes(state_bytes(config, resolved, plan), ".3g")
        notes = (*notes, f"its state, from which it can be continued, will take {size}")
    return dataclasses.replace(resolved, notes=notes)


def video_task(
    encoders: Encoders,
    spec: VideoSpec,
    start: Start | None,
    callback: Callback = ignore,
    encoded: Encoded = NOTHING_ENCODED,
) -> VideoTask:
    """What is made of a spec, with everything encoded.

    Args:
        encoders: of the model.
        spec: of the video.
        start: what it goes on from, which is made now where it is not there yet.
        callback: called with the progress; what it raises ends the work.
        encoded: what is there already.
    """
    state = None if isinstance(start, VideoTail | None) else start.open(callback)
    encoders.load_vae(callback)
    asked = encoders, spec.request, spec.resolved
    tiles, portraits = spec.plan.vae_tiles, spec.portraits
    if state is not None:
        conditioning = continued_conditioning(
            *asked,
            state,
            spec.audio,
            callback,
            tiles,
            encoded=encoded,
            portraits=portraits,
            pose=spec.pose,
            speakers=spec.speakers,
        )
    else:
        assert spec.image is not None
        conditioning = encode_conditioning(
            *asked,
            spec.image,
            spec.audio,
            callback,
            tiles,
            encoded=encoded,
            portraits=portraits,
            pose=spec.pose,
            tail=start.frames if isinstance(start, VideoTail) else None,
            speakers=spec.speakers,
        )
    keep = spec.request.keep_state
    return VideoTask(
        spec.resolved,
        conditioning,
        spec.request.sink_distance if state is None else state.info.sink_distance,
        start=state,
        keep_state=keep,
        stop=threading.Event() if keep else None,
    )


def check_state_path(
    spec: VideoSpec, config: ModelConfig, state: str | os.PathLike[str] | None, outputs: Iterable[Path] = ()
) -> Path | None:
    """Where the state of a video goes, checked before anything is loaded; None: nowhere, or to a temporary file.

    Args:
        spec: of the video.
        config: of the network.
        state: as it was given.
        outputs: what else is written.

    Raises:
        StateError: the video does not keep it.
        OutputError: see `check_state_output`; or it is one of the other outputs.
    """
    if not spec.request.keep_state:
        if state is None:
            return None
        raise StateError("A state is saved only of a video that keeps it.", "Ask for it: Request(keep_state=True).")
    nbytes = state_bytes(config, spec.resolved, spec.plan)
    if state is not None:
        if first_same(path_of(state, "The state"), outputs):
            raise OutputError(f"The state {state} is another output of this video, too.", "Choose another name.")
        return check_state_output(state, nbytes)
    check_state_room(Path(tempfile.gettempdir()), nbytes)
    return None


def write_left(session: Session, spec: VideoSpec, network: str, path: Path) -> VideoState | None:
    """Write what a session's latest run has left; None where there is nothing, or it was written before.

    Raises:
        OutputError: it cannot be written.
    """
    left = session.take_state()
    if left is None:
        return None
    given = session.job.conditioning
    prompts = given.changes.prompts
    version = prompts.version(left.block - 1)
    tensors = {
        "first_prompt": LazyTensor.of(given.prompt),
        "prompt": LazyTensor.of(prompts.value(version) if version else given.prompt),
    }
    info = info_of(
        spec.resolved,
        session.job.distance,
        spec.plan,
        network,
        left.block,
        prompts.starts[version - 1] if version else 0,
        tuple(start for start in given.changes.portraits.starts if start < left.block),
        mask_fingerprint(spec.speakers),
    )
    try:
        write_state(path, info, {**tensors, **left.tensors})
    finally:
        left.close()
    return VideoState(path)


def _temporary_file(owner: object) -> Path:
    """A file for a state that lives as long as its owner.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder = tempfile.mkdtemp(prefix="liveavatar-state-")
    except OSError as error:
        raise OutputError(
            f"No folder for a state can be made in {tempfile.gettempdir()} ({error.strerror or error}).",
            "Point the environment variable TMPDIR at another folder.",
        ) from error
    weakref.finalize(owner, shutil.rmtree, folder, True)
    return Path(folder) / "state.safetensors"
