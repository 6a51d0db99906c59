"""Where a talk goes besides whoever watches it: into a file, and to addresses on the network."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..components import loras_of
from ..errors import OutputError
from ..files import OutputClaim, remove_leftovers
from ..media.video import probe
from ..receipt import Receipt, claim_receipt, now, versions, write_receipt
from .addresses import OutputAddress
from .block import LivePiece
from .network import NetworkOutput, OutputStatus
from .recording import TalkRecording
from .session import LiveSession

OnChange = Callable[[OutputStatus], None]
"""Called with every new state of an output, in whichever thread found it out."""
_log = logging.getLogger(__name__)


class Outputs:
    """Outputs of all talks of a server.

    Args:
        record: file of the first talk, for which `check_outputs` belongs before; each further one goes to the next of
            "talk-2.mp4", "talk-3.mp4"... that is not there yet.
        addresses: to which every talk is sent.
        on_change: see there.
    """

    def __init__(
        self,
        record: Path | None = None,
        addresses: tuple[OutputAddress, ...] = (),
        on_change: OnChange = lambda status: None,
    ):
        self.record, self.addresses, self.on_change = record, addresses, on_change
        self._has_begun = False

    def begin(self, session: LiveSession) -> TalkOutputs:
        """The outputs of a new talk."""
        path = self.record
        if path is not None and self._has_begun:
            path = _first_free(path)
        self._has_begun = True
        return TalkOutputs(session, path, self.addresses, self.on_change)


def _first_free(path: Path) -> Path:
    names = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return next(name for name in names if not name.exists() and not name.with_suffix(".json").exists())


class TalkOutputs:
    """Outputs of one talk. What goes wrong with one of them is told, and the talk goes on.

    Args:
        session: of the talk.
        record: a file, or None; its receipt lies beside it.
        addresses: where it is sent.
        on_change: see there.
    """

    def __init__(
        self, session: LiveSession, record: Path | None, addresses: tuple[OutputAddress, ...], on_change: OnChange
    ):
        e = session.resolved
        self._file = None if record is None else _RecordedFile(session, record, on_change)
        self._network = [NetworkOutput(address, e.width, e.height, on_change) for address in addresses]

    def write(self, piece: LivePiece) -> None:
        """Write a piece to the file, and hand it to the network."""
        for output in self._network:
            output.put(piece)
        if self._file is not None:
            self._file.write(piece)

    def close(self) -> None:
        """End them all. May be called again."""
        if self._file is not None:
            self._file.close()
        for output in self._network:
            output.close()

    @property
    def statuses(self) -> tuple[OutputStatus, ...]:
        """How each of them goes."""
        file = () if self._file is None else (self._file.status,)
        return (*file, *(output.status for output in self._network))


class _RecordedFile:
    """The recording of a talk and its receipt."""

    def __init__(self, session: LiveSession, path: Path, on_change: OnChange):
        self._session, self._path, self._on_change = session, path, on_change
        self.status = OutputStatus(str(path), "recording")
        self._claim: OutputClaim | None = None
        self._recording: TalkRecording | None = None
        self._receipt = _receipt(session, path)
        with self._failing():
            self._claim = claim_receipt(path.with_suffix(".json"))
            remove_leftovers(self._claim.target)
            e = session.resolved
            details = {"model": session.plan.model, "seed": e.seed, "size": f"{e.width}x{e.height}"}
            self._recording = TalkRecording(path, e.width, e.height, details)
            self._write_receipt(self._receipt)
            on_change(self.status)

    def write(self, piece: LivePiece) -> None:
        if self.status.state == "recording" and self._recording is not None:
            with self._failing():
                self._recording.write(piece)

    def close(self) -> None:
        """Make it an ordinary MP4 and say so in the receipt."""
        if self._recording is None or self.status.state == "closed":
            return
        with self._failing():
            self._recording.close()
        with self._failing():
            self._write_receipt(self._finished())
        if self._claim is not None:
            self._claim.release()
        if self.status.state == "recording":
            self.status = dataclasses.replace(self.status, state="closed", what=self._recording.note or "")
            self._on_change(self.status)
        self._recording = None

    def _finished(self) -> Receipt:
        assert self._recording is not None
        failed, made = self.status.state == "failed", self._recording.frames > 0
        notes = [self._recording.note, None if made else "Nothing was shown, and no video was written."]
        return dataclasses.replace(
            self._receipt,
            status="failed" if failed else "complete",
            finished=now(),
            error=self.status.what if failed else None,
            effective={
                **_effective(self._session),
                "frames": self._recording.frames,
                "seconds": self._recording.seconds,
            },
            probed=probe(self._path) if made and self._path.exists() else None,
            frames_sha256=self._recording.frames_sha256 if made and not failed else None,
            notices=tuple(note for note in notes if note),
            speakers=self._session.speaker_reports,
        )

    def _write_receipt(self, receipt: Receipt) -> None:
        write_receipt(self._path.with_suffix(".json"), receipt, self._claim)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """What cannot be written is told once, and the talk goes on without it."""
        try:
            yield
        except OutputError as error:
            _log.warning("%s", error)
            if self.status.state != "failed":
                self.status = dataclasses.replace(self.status, state="failed", what=str(error))
                self._on_change(self.status)


def _receipt(session: LiveSession, path: Path) -> Receipt:
    return Receipt(
        status="running",
        video=path,
        requested=session.request,
        effective=_effective(session),
        plan=session.plan,
        threads=session.plan.threads,
        versions=versions(),
        started=now(),
        loras=loras_of(session.components),
        speakers=session.speaker_reports,
    )


def _effective(session: LiveSession) -> dict[str, Any]:
    """The request as it was understood, and what changed in which block; its length is 0 until it is known."""
    return {**dataclasses.asdict(session.resolved), "changes": session.stats.changes}
