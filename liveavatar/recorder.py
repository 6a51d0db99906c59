"""One video being recorded: from its spec to a complete file and a receipt that says what was really done."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from .components import Components, loras_of
from .config import BLOCK_FRAMES
from .errors import Cancelled, OutputError, PlanError
from .events import GENERATING, LOADING_NETWORK, Callback, Event, share_event
from .files import OutputClaim, first_same, is_same_file, is_stream, path_of, remove_leftovers
from .interrupt import Interrupts, interrupts
from .media.audio import AudioClip
from .media.mp4 import check_end
from .media.pose_video import PoseSource
from .media.video import Probed, VideoWriter, check_writable, probe
from .media.writing import WriterThread
from .planner import Plan, suggest_next
from .receipt import (
    Receipt,
    Status,
    claim_receipt,
    json_ready,
    now,
    overload_notice,
    peak_memory,
    versions,
    write_receipt,
)
from .request import Request, ResolvedRequest
from .session import Session
from .speakers import PlacedSpeakers, SpeakerReport
from .streams import FrameStream, to_rgb24
from .utils import format_bytes, load_average

_log = logging.getLogger(__name__)

_ESTIMATE_AFTER_SECONDS = 2.0
"""From here on the rate so far says something about the rest."""


@dataclasses.dataclass(frozen=True)
class VideoSpec:
    """The spec of a video, known before anything heavy is loaded.

    Attributes:
        components: where the weights would come from.
        request, resolved: what was asked, and what that means.
        plan: where it would run.
        image: uint8 [H, W, 3]; None where the portrait is that of the video that is continued.
        audio: as read.
        inputs: the files they and the model are read from, which no output may replace.
        portraits: images that take the place of the first one, with the blocks they begin at.
        pose: a pose video that is followed.
        speakers: whose sounds are heard where in the frame, where there are several; `audio` is all of them together.
    """

    components: Components
    request: Request
    resolved: ResolvedRequest
    plan: Plan
    image: np.ndarray | None
    audio: AudioClip
    inputs: tuple[Path, ...] = ()
    portraits: tuple[tuple[int, np.ndarray], ...] = ()
    pose: PoseSource | None = None
    speakers: PlacedSpeakers | None = None

    @property
    def speaker_reports(self) -> tuple[SpeakerReport, ...]:
        """Of several speakers."""
        return () if self.speakers is None else self.speakers.reports


class VideoRecorder:
    """The recorder of one video: what was measured so far, and its receipt.

        with recorder.recording():
            with recorder.timed("prepare"):
                session = ...  # `recorder.on_event` is the callback of all that is done here
            recorder.write(session, session.frames)
        recorder.receipt  # as written

    Args:
        spec: what is made.
        out, receipt_path: where to; both known to be writable.
        callback: called with every event, completed by the frames that are written and the seconds that are left.
    """

    def __init__(self, spec: VideoSpec, out: Path, receipt_path: Path, callback: Callback):
        self.spec, self.out, self.receipt_path, self.callback = spec, out, receipt_path, callback
        self._interrupts = Interrupts()
        self._seconds: dict[str, float] = {}
        self._notices: list[str] = []
        self._load_before = load_average()
        self._generating_since = 0.0
        self._latest: Event | None = None
        self._frames = 0
        self._stop: threading.Event | None = None
        """See `write`."""
        self.state: Path | None = None
        """Where the state of the video was written."""
        self._writer = self._new_writer()
        self._receipt_claim: OutputClaim | None = None
        self.receipt = Receipt(
            status="running",
            video=out,
            requested=spec.request,
            effective=spec.resolved,
            plan=spec.plan,
            threads=spec.plan.threads,
            versions=versions(),
            started=now(),
            loras=loras_of(spec.components),
            speakers=spec.speaker_reports,
        )

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Keeps the receipt: "running" while inside, and at the end what came of it.

        Raises:
            Cancelled: by Ctrl-C or the callback; the file so far is playable and the receipt says "cancelled".
            LiveAvatarError: whatever broke it off; the receipt says "failed" and why.
        """
        with self._claimed(), interrupts() as self._interrupts:
            write_receipt(self.receipt_path, self.receipt, self._receipt_claim)
            try:
                with _enough_memory(self.spec.plan):
                    yield
                probed = self._probe_whole()
            except (KeyboardInterrupt, Cancelled) as stop:
                self._break_off("cancelled", self._what_is_left())
                raise Cancelled(self._what_is_left()) from stop
            except BaseException as error:
                self._break_off("failed", str(error) or type(error).__name__)
                raise
            self._end("complete", probed)

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        """Nobody else writes the video or the receipt while inside."""
        self._receipt_claim = None if is_stream(self.receipt_path) else claim_receipt(self.receipt_path)
        with self._receipt_claim or contextlib.nullcontext(), self._writer:
            if self._receipt_claim is not None:
                remove_leftovers(self._receipt_claim.target)
            self._writer.claim()
            yield

    def write(self, session: Session, frames: FrameStream, stop: threading.Event | None = None) -> None:
        """Write the video to its end.

        Args:
            session: makes the latents; its callback becomes `on_event`.
            frames: decoded from them.
            stop: set by a wish to cancel, where the blocks that have begun are to be finished first; None: the wish
                ends the work at once.
        """
        session.callback = self.on_event
        with self._writer:
            try:
                if session.latents.produced < session.latents.blocks and not session.engine.loaded:
                    with self.timed("load network"):
                        self.on_event(share_event(LOADING_NETWORK, 0.0))
                        session.engine.load(self.on_event)
                self._generating_since = time.monotonic()
                with self.timed("generate"):
                    if stop is not None:
                        self._stop = stop
                        self._interrupts.hold()
                    with WriterThread(self._writer) as writing:
                        for pixels in frames:
                            rgb = to_rgb24(pixels)
                            with self._interrupts.held() if stop is None else contextlib.nullcontext():
                                writing.write(rgb)
                            self._frames = writing.frames
                            self.on_event(dataclasses.replace(self._reached(), images=rgb))
                        self._interrupts.hold()
                    self._writer.close()
            finally:
                self._count_stages(session)

    def on_event(self, event: Event) -> None:
        """The callback of what is recorded.

        Raises:
            Cancelled: somebody has pressed Ctrl-C, or the recorder's callback raises it; not where the video can be
                continued: then it is raised when the blocks that have begun are finished.
            Whatever else the recorder's callback raises.
        """
        if event.notice:
            event = self._noticed(event)
        elif event == Event(GENERATING):  # a decoder is at work, and knows no more
            event = self._reached()
        elif event.phase == GENERATING and event.images is None:
            event = self._latest = self._estimated(event)
        try:
            if self._interrupts.asked:
                raise Cancelled("Cancelled.")
            self.callback(event)
        except Cancelled:
            if self._stop is None:
                raise
            self._stop.set()

    def _new_writer(self) -> VideoWriter:
        e, plan = self.spec.resolved, self.spec.plan
        summary = {"model": plan.model, "stages": str(plan.partition), "dtype": plan.dtype}
        comment = {**summary, **dataclasses.asdict(e), "plan": plan}
        if self.spec.speakers is not None:
            comment["speakers"] = self.spec.speaker_reports
        return VideoWriter(
            self.out,
            e.width,
            e.height,
            self.spec.audio.limited(e.seconds),
            e.frames,
            {"title": "Live Avatar", "comment": json.dumps(json_ready(comment), ensure_ascii=False)},
        )

    def _estimated(self, event: Event) -> Event:
        """A task that has run, with the frames that are written and the seconds that are left."""
        spent = time.monotonic() - self._generating_since
        known = event.done > 0 and spent > _ESTIMATE_AFTER_SECONDS
        left = spent / event.done * (event.total - event.done) if known else None
        return dataclasses.replace(event, frames=self._frames, seconds_left=left)

    def _noticed(self, event: Event) -> Event:
        """A notice, kept for the receipt; it takes nothing back of what is done."""
        if event.phase not in self._notices:
            self._notices.append(event.phase)
        if self._latest is None:
            return event
        done, total = self._latest.done, self._latest.total
        return dataclasses.replace(event, done=done, total=total, frames=self._frames)

    def _reached(self) -> Event:
        """How far the file is; where it is only replayed, no task has run for it."""
        frames, blocks = self._frames, self.spec.resolved.blocks
        if self._latest is None:
            return Event(GENERATING, min(blocks, -(-frames // BLOCK_FRAMES)), blocks, frames)
        return dataclasses.replace(self._latest, frames=frames)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """The seconds inside stand in the receipt under this name."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = round(time.monotonic() - start, 3)

    def _count_stages(self, session: Session) -> None:
        for number, seconds in enumerate(session.engine.stage_seconds()):
            self._seconds[f"stage {number}"] = round(seconds, 3)
        engine = session.engine
        self.receipt = dataclasses.replace(self.receipt, plan=engine.plan, attention=engine.attention())
        self._seconds["decode"] = round(session.decode_seconds, 3)

    def _probe_whole(self) -> Probed:
        """What the finished file holds.

        Raises:
            OutputError: it cannot be read back or decoded, or is not what was to be made.
        """
        if not self._is_as_written():
            raise OutputError(f"{self.out} was removed or changed by something else meanwhile.", "Make it again.")
        probed, e = probe(self.out), self.spec.resolved
        if (probed.width, probed.height, probed.frames) != (e.width, e.height, e.frames):
            raise OutputError(
                f"{self.out} holds {probed.frames} frames of {probed.width}x{probed.height} instead of {e.frames} of "
                f"{e.width}x{e.height}.",
                "Something else wrote to it meanwhile: choose another name.",
            )
        check_end(self.out, e.frames)
        return probed

    def _is_as_written(self) -> bool:
        """Whether the name of the video still leads to the file that was written, and to all of it."""
        try:
            there = self.out.stat()
        except OSError:
            return False
        return self._writer.identity == (there.st_dev, there.st_ino, there.st_size)

    def _break_off(self, status: Status, error: str) -> None:
        """Say so in the receipt; where even that fails, it goes on saying "running"."""
        self._interrupts.hold()
        probed = None
        if self._is_as_written():
            with contextlib.suppress(OutputError):
                probed = probe(self.out)
        try:
            self._end(status, probed, error)
        except OutputError as second:
            if self.receipt_path.parent.is_dir():  # else somebody has removed it, with all that was written
                _log.warning("%s", second)

    def _end(self, status: Status, probed: Probed | None, error: str | None = None) -> None:
        busy = overload_notice(self._load_before, load_average())
        whole = probed is not None and probed.frames == self._writer.frames_written
        self.receipt = dataclasses.replace(
            self.receipt,
            status=status,
            finished=now(),
            error=error,
            probed=probed,
            frames_sha256=self._writer.frames_sha256 if whole else None,
            seconds=self._seconds,
            notices=(*self._notices, *filter(None, (self._writer.note, busy))),
            peak_memory=peak_memory(),
        )
        write_receipt(self.receipt_path, self.receipt, self._receipt_claim)

    def _what_is_left(self) -> str:
        written = self._writer.frames_written
        if not written:
            return "Cancelled before the first frame; no video was written."
        left = f"Cancelled; {self.out} plays and holds {written} of {self.spec.resolved.frames} frames."
        return left if self.state is None else f"{left} {self.state} continues it."


@contextlib.contextmanager
def _enough_memory(plan: Plan) -> Iterator[None]:
    """Turns an accelerator that is full into a PlanError."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise out_of_memory(plan) from error


def out_of_memory(plan: Plan) -> PlanError:
    """What to say and to try where a device is full."""
    sizes = ", ".join(f"{format_bytes(total)} on {device}" for device, total in plan.total_by_device.items())
    return PlanError(
        f"A device has no memory left; the plan was to take {sizes}.",
        f"{suggest_next(plan)} Or close what else uses the device, let less of it be used (--vram-cap), ask for a "
        "smaller size, or cut the network into more parts on more devices (--stages 1x4 --devices cuda:0,cuda:1,...).",
    )


def check_outputs(
    out: str | os.PathLike[str],
    receipt: str | os.PathLike[str] | None = None,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> Path:
    """Make sure that a video and its receipt can be written, and would replace neither each other nor an input.

    Nothing is created or changed.

    Args:
        out, receipt: as in `VideoJob.save`.
        inputs: files that must stay.

    Returns:
        The place of the receipt.

    Raises:
        OutputError: what is wrong, and another name.
    """
    video = path_of(out, "The video")
    check_writable(video)
    default = video.with_suffix(".json")
    place = path_of(receipt, "The receipt") if receipt else default
    if is_same_file(place, video):
        raise OutputError(f"Video and receipt are both {video}.", f"Write the receipt to {default}.")
    kept = [Path(given) for given in inputs]
    for name, path in (("video", video), ("receipt", place)):
        if not is_stream(path) and first_same(path, kept):
            raise OutputError(f"The {name} would replace {path}, which it is made from.", "Choose another name.")
    if not is_stream(place):
        _check_receipt(place, default)
    return place


def _check_receipt(receipt: Path, default: Path) -> None:
    place = f"or leave it out: it is {default} then."
    if not Path(os.path.realpath(receipt)).parent.is_dir():
        raise OutputError(f"The folder of the receipt {receipt} does not exist.", f"Create it, {place}")
    with claim_receipt(receipt) as claim:
        folder = claim.target.parent
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputError(
            f"The receipt {receipt} cannot be written ({error.strerror or error}).", f"Choose another folder, {place}"
        ) from error
