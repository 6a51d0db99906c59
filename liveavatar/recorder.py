"""One video being recorded: from its spec to a complete file and a receipt that says what was really done."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch

from .codec import Phase
from .components import Components
from .config import BLOCK_FRAMES
from .errors import Cancelled, OutputError, PlanError
from .interrupt import Interrupts, interrupts
from .media.audio import AudioClip
from .media.video import Probed, VideoWriter, check_writable, probe
from .planner import Plan, suggest_next
from .receipt import Receipt, Status, json_ready, peak_memory, versions, write_receipt
from .request import Request, ResolvedRequest
from .session import Session, TaskReport
from .streams import FrameStream, to_rgb24
from .task_graph import Task
from .utils import format_bytes

_log = logging.getLogger(__name__)

GENERATING = "generating"
"""The phase from whose beginning on there may be a file."""
_ESTIMATE_AFTER_SECONDS = 2.0
"""From here on the rate so far says something about the rest."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a recording is.

    Attributes:
        phase: what is being done, in words.
        done, total: in units of the phase: tasks while generating, hundredths before.
        frames: video frames already in the file.
        seconds_left: estimate for the rest, or None while nothing is known.
        task, stage: the latest one, and where it ran; None outside of generating.
    """

    phase: str
    done: int
    total: int
    frames: int = 0
    seconds_left: float | None = None
    task: Task | None = None
    stage: int | None = None


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
"""Makes ready what is recorded, and gives it back at the end."""


OnProgress = Callable[[Progress], None]
"""Called after every task and in between; raising `Cancelled` in it ends the run and leaves a playable file."""


OnBlock = Callable[[np.ndarray], None]
"""Called with the frames of every block, uint8 [n, H, W, 3]."""


class VideoRecorder:
    """The recorder of one video: what was measured so far, and its receipt.

    Args:
        spec: what is made.
        out, receipt_path: where to; both known to be writable.
        on_progress: is called with the progress.
        opener: makes the session ready.
        on_block: sees every block that was written.
    """

    def __init__(
        self,
        spec: VideoSpec,
        out: Path,
        receipt_path: Path,
        on_progress: OnProgress,
        opener: OpenVideoFactory,
        on_block: OnBlock = lambda frames: None,
    ):
        self.spec, self.out, self.receipt_path, self.on_progress = spec, out, receipt_path, on_progress
        self._open_video, self._on_block_frames = opener, on_block
        self._interrupts = Interrupts()
        self._seconds: dict[str, float] = {}
        self._notices: list[str] = []
        self._generating_since = 0.0
        self._latest: Progress | None = None
        self._writer = self._new_writer()
        self._receipt = Receipt(
            status="running",
            video=out,
            requested=spec.request,
            effective=spec.resolved,
            plan=spec.plan,
            threads=spec.plan.threads,
            versions=versions(),
            started=_now(),
        )

    def run(self) -> Receipt:
        """Record to the end.

        Raises:
            Cancelled: by Ctrl-C or `on_progress`; the file so far is playable and the receipt says "cancelled".
            LiveAvatarError: whatever broke it off; the receipt says "failed" and why.
        """
        write_receipt(self.receipt_path, self._receipt)
        with interrupts() as self._interrupts:
            try:
                with _enough_memory(self.spec.plan):
                    self._record()
                probed = self._probe_whole()
            except (KeyboardInterrupt, Cancelled) as stop:
                self._break_off("cancelled", self._what_is_left())
                raise Cancelled(self._what_is_left()) from stop
            except BaseException as error:
                self._break_off("failed", str(error) or type(error).__name__)
                raise
            return self._end("complete", probed)

    def _record(self) -> None:
        with contextlib.ExitStack() as stack:
            with self._timed("prepare"):
                video = stack.enter_context(self._open_video(self.spec, self._phase))
            stack.enter_context(self._writer)
            session = video.session
            session.on_task, session.on_notice = self._on_task, self._on_notice
            try:
                if session.latents.produced < session.latents.blocks and not session.engine.loaded:
                    with self._timed("load network"):
                        self._phase("loading the network", 0.0)
                        session.engine.load(self._on_notice)
                self._generating_since = time.monotonic()
                with self._timed("generate"):
                    for pixels in video.frames:
                        rgb = to_rgb24(pixels)
                        with self._interrupts.held():
                            self._writer.write(rgb)
                        self._on_block_frames(rgb)
                        self._on_block(session)
                    self._interrupts.hold()
                    self._writer.close()
            finally:
                self._count_stages(session)

    def _new_writer(self) -> VideoWriter:
        e, plan = self.spec.resolved, self.spec.plan
        summary = {"model": plan.model, "stages": str(plan.partition), "dtype": plan.dtype}
        comment = {**summary, **dataclasses.asdict(e), "plan": plan}
        return VideoWriter(
            self.out,
            e.width,
            e.height,
            self.spec.audio.limited(e.seconds),
            e.frames,
            {"title": "Live Avatar", "comment": json.dumps(json_ready(comment), ensure_ascii=False)},
        )

    def _on_task(self, report: TaskReport) -> None:
        spent = time.monotonic() - self._generating_since
        left = spent / report.done * (report.total - report.done) if spent > _ESTIMATE_AFTER_SECONDS else None
        frames = self._writer.frames_written
        self._latest = Progress(GENERATING, report.done, report.total, frames, left, report.task, report.stage)
        self._report(self._latest)

    def _on_notice(self, text: str) -> None:
        """Something out of the ordinary, or a wait: a phase of its own, which takes nothing back of what is done."""
        if text not in self._notices:
            self._notices.append(text)
        if self._latest is None:
            self._phase(text, 0.0)
        else:
            frames = self._writer.frames_written
            self._report(Progress(text, self._latest.done, self._latest.total, frames))

    def _on_block(self, session: Session) -> None:
        """A block is in the file; where it was only replayed, no task told of it."""
        frames, blocks = self._writer.frames_written, session.latents.blocks
        if self._latest is None:
            self._report(Progress(GENERATING, min(blocks, -(-frames // BLOCK_FRAMES)), blocks, frames))
        else:
            self._latest = dataclasses.replace(self._latest, frames=frames)
            self._report(self._latest)

    def _phase(self, name: str, share: float) -> None:
        self._report(Progress(name, round(100 * share), 100))

    def _report(self, progress: Progress) -> None:
        if self._interrupts.asked:
            raise Cancelled("Cancelled.")
        self.on_progress(progress)

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = round(time.monotonic() - start, 3)

    def _count_stages(self, session: Session) -> None:
        for number, seconds in enumerate(session.engine.stage_seconds()):
            self._seconds[f"stage {number}"] = round(seconds, 3)
        self._seconds["decode"] = round(session.decode_seconds, 3)

    def _probe_whole(self) -> Probed:
        """What the finished file holds.

        Raises:
            OutputError: it cannot be read back, or is not what was to be made.
        """
        probed, e = probe(self.out), self.spec.resolved
        if (probed.width, probed.height, probed.frames) != (e.width, e.height, e.frames):
            raise OutputError(
                f"{self.out} holds {probed.frames} frames of {probed.width}x{probed.height} instead of {e.frames} of "
                f"{e.width}x{e.height}.",
                "Something else wrote to it meanwhile: choose another name.",
            )
        return probed

    def _break_off(self, status: Status, error: str) -> None:
        """Say so in the receipt; where even that fails, it goes on saying "running"."""
        self._interrupts.hold()
        probed = None
        if self._writer.frames_written:
            with contextlib.suppress(OutputError):
                probed = probe(self.out)
        try:
            self._end(status, probed, error)
        except OutputError as second:
            _log.warning("%s", second)

    def _end(self, status: Status, probed: Probed | None, error: str | None = None) -> Receipt:
        whole = probed is not None and probed.frames == self._writer.frames_written
        self._receipt = dataclasses.replace(
            self._receipt,
            status=status,
            finished=_now(),
            error=error,
            probed=probed,
            frames_sha256=self._writer.frames_sha256 if whole else None,
            seconds=self._seconds,
            notices=tuple(self._notices),
            peak_memory=peak_memory(),
        )
        write_receipt(self.receipt_path, self._receipt)
        return self._receipt

    def _what_is_left(self) -> str:
        written = self._writer.frames_written
        if not written:
            return "Cancelled before the first frame; no video was written."
        return f"Cancelled; {self.out} plays and holds {written} of {self.spec.resolved.frames} frames."


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


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def check_outputs(
    out: str | os.PathLike[str],
    receipt: str | os.PathLike[str] | None = None,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> Path:
    """Make sure that a video and its receipt can be written, and would replace neither each other nor an input.

    Nothing is created or changed.

    Args:
        out, receipt: as in `generate`.
        inputs: files that must stay.

    Returns:
        The place of the receipt.

    Raises:
        OutputError: what is wrong, and another name.
    """
    out = Path(out)
    receipt = Path(receipt) if receipt else out.with_suffix(".json")
    check_writable(out)
    if receipt.is_dir():
        raise OutputError(f"The receipt {receipt} is a folder.", f"Name a file in it: {receipt / 'receipt.json'}.")
    try:
        tempfile.TemporaryFile(dir=receipt.absolute().parent).close()
    except OSError as error:
        raise OutputError(
            f"The receipt {receipt} cannot be written ({error.strerror or error}).",
            f"Choose another folder, or leave it out: it is {out.with_suffix('.json')} then.",
        ) from error
    if receipt.resolve() == out.resolve():
        raise OutputError(f"Video and receipt are both {out}.", f"Write the receipt to {out.with_suffix('.json')}.")
    kept = {Path(given).resolve() for given in inputs}
    for name, path in (("video", out), ("receipt", receipt)):
        if path.resolve() in kept:
            raise OutputError(f"The {name} would replace {path}, which it is made from.", "Choose another name.")
    return receipt
