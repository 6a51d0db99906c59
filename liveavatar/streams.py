"""Replayable streams: a video may be watched late, twice, or by two consumers at once, in flat memory."""

from __future__ import annotations

import logging
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .config import BLOCK_FRAMES
from .errors import Cancelled, LiveAvatarError, ModelError, OutputError
from .spool import TemporaryFile


class BlockFile:
    """Equally sized blocks in an unnamed file. Not thread-safe: the stream's lock guards it."""

    def __init__(self, folder: Path | None):
        self.blocks = 0
        self._shape: tuple[int, ...] = ()
        self._dtype = torch.float32
        self._folder = folder
        self._file = TemporaryFile(self._refusal, folder)

    def append(self, block: torch.Tensor) -> None:
        """Write one block at the end.

        Raises:
            OutputError: the disk is full or cannot be written.
            ValueError: the block has another shape or dtype than those before it.
        """
        if not self.blocks:
            self._shape, self._dtype = tuple(block.shape), block.dtype
        if (tuple(block.shape), block.dtype) != (self._shape, self._dtype):
            raise ValueError(f"Block {self.blocks} is {tuple(block.shape)} {block.dtype}, others {self._shape}.")
        self._file.write(self.blocks * block.nbytes, _bytes_of(block.detach().cpu().contiguous()))
        self.blocks += 1

    def read(self, index: int) -> torch.Tensor:
        """Block `index` as a new tensor.

        Raises:
            OutputError: the file cannot be read.
        """
        block = torch.empty(self._shape, dtype=self._dtype)
        self._file.read_into(index * block.nbytes, _bytes_of(block))
        return block

    def close(self) -> None:
        """Remove the file. May be called again."""
        self._file.close()

    def _refusal(self, verb: str, error: OSError) -> OutputError:
        folder = self._folder or Path(tempfile.gettempdir())
        return OutputError(
            f"The temporary file for finished blocks in {folder} cannot be {verb} ({error.strerror or error}).",
            "Free some space there (6 GB per hour of video at 704x384) or choose another folder for temporary files.",
        )


def _bytes_of(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a contiguous CPU tensor, whatever its dtype (numpy has no bfloat16)."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


_log = logging.getLogger(__name__)


class LatentStream:
    """The blocks of one video, produced on demand, kept on disk, served to any number of consumers in any threads.

    Iterating yields blocks 0 .. `blocks` - 1 as CPU tensors of the shape and dtype that were produced. Nothing is
    computed before it is asked for. All consumers share one producer: each reads what is spooled, and whoever is ahead
    of the spool takes the producer's next step while the others that need it wait.

    - A consumer that stops early (break, close of its iterator, an exception in its own code) only leaves. Finished
      blocks stay, the producer pauses, and the next consumer replays and continues. One that works ahead by itself
      pauses a block later.
    - A *run* is one production from block 0. It ends when the producer raises, when an exception such as Ctrl-C
      strikes inside the producer's step, or at `cancel()`. Then its spool is dropped and everyone still consuming it
      gets the error: one iteration never mixes two runs. The next iteration starts a new run at block 0, after the
      producer of the old one has let go.
    - Once the last block is spooled the producer is closed and consumers only replay.

    The spool is an unnamed file that the system removes with its last handle, so even a killed process leaves nothing.

    Args:
        blocks: how many blocks the video has, at least 1.
        produce: starts a run; its iterator yields at least `blocks` equally shaped tensors [16, 3, h, w]. Steps are
            taken one at a time but from whichever thread consumes, so it must not hold thread-local state (such as
            `torch.inference_mode`) across a yield. If it has a `close` method, that is called at the end of the run.
        spool_dir: an existing folder for the spool; None takes the system's folder for temporary files.

    Raises:
        OutputError (while iterating): the spool cannot be written or read, for example because the disk is full.
        Cancelled (while iterating): `cancel()` was called.
        LiveAvatarError (while iterating): the stream is closed.
    """

    def __init__(self, blocks: int, produce: Callable[[], Iterator[torch.Tensor]], spool_dir: Path | None = None):
        if blocks < 1:
            raise ValueError(f"A stream has at least 1 block, not {blocks}.")
        self.blocks = blocks
        self._produce = produce
        self._spool_dir = spool_dir
        self._changed = threading.Condition()
        self._run: _Run | None = None
        self._busy = False  # someone is inside a producer, of this run or of one that is ending
        self._closed = False

    @property
    def produced(self) -> int:
        """Blocks finished in the present run."""
        with self._changed:
            return self._run.spool.blocks if self._run else 0

    @property
    def done(self) -> bool:
        """Whether every block is finished, so that iterating only replays."""
        return self.produced == self.blocks

    def __len__(self) -> int:
        return self.blocks

    def __iter__(self) -> Iterator[torch.Tensor]:
        run = self._current_run()
        for index in range(self.blocks):
            yield self._block(run, index)

    def cancel(self) -> None:
        """End the present run, if one is unfinished; the next iteration starts again at block 0.

        Does not wait for a step that is being computed in another thread: it ends the run when it returns. A producer
        at rest is closed here, and one that works ahead by itself stops before its next task. A finished stream stays
        as it is.
        """
        self._end(Cancelled("The video was cancelled.", "Run it again to start over."), only_unfinished=True)

    def close(self) -> None:
        """End the present run for good and give the spool's disk space back. Happens by itself when the stream is
        garbage-collected and when the interpreter exits. May be called again."""
        with self._changed:
            self._closed = True
        self._end(_closed_error(), only_unfinished=False)

    def _current_run(self) -> _Run:
        with self._changed:
            if self._closed:
                raise _closed_error()
            if self._run is None:
                run = _Run(BlockFile(self._spool_dir))
                run.finalizer = weakref.finalize(self, run.release)
                self._run = run
            return self._run

    def _block(self, run: _Run, index: int) -> torch.Tensor:
        """Block `index` of `run`, from the spool; takes the producer's step when it is not there yet."""
        while True:
            mine = False
            try:
                with self._changed:
                    self._changed.wait_for(lambda: run.error or index < run.spool.blocks or not self._busy)
                    if run.error is not None:
                        raise run.error
                    if index < run.spool.blocks:
                        return run.spool.read(index)
                    mine = self._busy = True
                self._advance(run)
            finally:
                if mine:
                    self._leave(run)

    def _advance(self, run: _Run) -> None:
        """One step of the producer; the caller holds `_busy`. Whatever goes wrong ends the run."""
        try:
            if run.producer is None:
                run.producer = iter(self._produce())
            block = next(run.producer, None)
            if block is None:
                raise RuntimeError(f"The producer ended after {run.spool.blocks} of {self.blocks} blocks.")
            with self._changed:
                if run.error is not None:  # cancelled meanwhile
                    return
                run.spool.append(block)
                complete = run.spool.blocks == self.blocks
            if complete:
                run.close_producer()
        except BaseException as error:
            self._fail(run, error)
            raise

    def _leave(self, run: _Run) -> None:
        """Give `_busy` back; a run that ended meanwhile is released first, so that two producers never overlap."""
        while True:
            if run.error is not None:
                run.release()
            with self._changed:
                if run.error is None or run.released:
                    self._busy = False
                    self._changed.notify_all()
                    return

    def _fail(self, run: _Run, error: BaseException) -> None:
        with self._changed:
            if run.error is None:
                # Ctrl-C belongs to the thread it struck; to the others the video was cancelled.
                run.error = error if isinstance(error, Exception) else Cancelled("The video was cancelled.")
            run.spool.close()
            if self._run is run:
                self._run = None
            self._changed.notify_all()

    def _end(self, error: LiveAvatarError, only_unfinished: bool) -> None:
        mine = False
        with self._changed:
            run = self._run
            if run is None or (only_unfinished and run.spool.blocks == self.blocks):
                return
            self._fail(run, error)
            if not self._busy:
                mine = self._busy = True
        if mine:
            self._leave(run)


def _closed_error() -> LiveAvatarError:
    return LiveAvatarError("This stream is closed, its blocks are gone.", "Generate the video again.")


class _Run:
    """One production of the blocks: its producer (made by the first step), its spool, and how it ended."""

    def __init__(self, spool: BlockFile):
        self.spool = spool
        self.producer: Iterator[torch.Tensor] | None = None
        self.error: Exception | None = None
        self.released = False
        self.finalizer: weakref.finalize[[], Any] | None = None

    def close_producer(self) -> None:
        close = getattr(self.producer, "close", None)
        if close is not None:
            close()

    def release(self) -> None:
        """Let go of the producer and the spool. Not while a step is being taken."""
        self.released = True
        try:
            self.close_producer()
        except Exception:  # the run has its error, or the interpreter is exiting: nobody could catch this one
            _log.warning("The producer of a video could not be closed cleanly.", exc_info=True)
        self.producer = None
        self.spool.close()
        if self.finalizer is not None:
            self.finalizer.detach()


Decoder = Callable[[torch.Tensor], torch.Tensor]
"""Block latents [16, 3, h, w] -> pixels [3, 12, H, W] in [-1, 1], or as bytes; called once per block, in order."""


class FrameStream:
    """The frames of one video, decoded anew for every consumer. Any number of consumers, in any threads.

    Iterating opens a decoder of its own, pulls the blocks it needs and yields chunks [3, n, H, W] of the decoder's
    dtype whose n add up to `frames`. Blocks beyond the last frame are never asked for.

    Args:
        latents: where blocks come from.
        open_decoder: makes a decoder with a fresh state; see `Decoder`.
        frames: frames of the whole video, at least 1.
        drop: frames thrown away at the start, fewer than one block.

    Raises:
        ValueError: the latents do not hold that many frames.
        Whatever the latents and the decoder raise, while iterating.
    """

    def __init__(self, latents: LatentStream, open_decoder: Callable[[], Decoder], frames: int, drop: int = 0):
        held = latents.blocks * BLOCK_FRAMES - drop
        if not 0 <= drop < BLOCK_FRAMES or not 1 <= frames <= held:
            raise ValueError(f"{latents.blocks} blocks cannot give {frames} frames after dropping {drop}.")
        self.latents = latents
        self.frames = frames
        self.drop = drop
        self._open_decoder = open_decoder

    def __len__(self) -> int:
        return self.frames

    def __iter__(self) -> Iterator[torch.Tensor]:
        decode = self._open_decoder()
        start, left = self.drop, self.frames
        for block in self.latents:
            pixels = decode(block)
            if pixels.ndim != 4 or pixels.shape[:2] != (3, BLOCK_FRAMES):
                raise ModelError(f"The decoder made {list(pixels.shape)} of a block, not [3, {BLOCK_FRAMES}, H, W].")
            pixels = pixels[:, start : start + left]
            start, left = 0, left - pixels.shape[1]
            yield pixels
            if not left:
                return


def to_bytes(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames as bytes, on their device, and whether they hold NaN.

    Each value is (x + 1) * 127.5, computed in float32, clamped to 0..255 and rounded to the nearest whole number (ties
    to even). One frame at a time, which stays in a CPU's cache.

    Args:
        pixels: [3, n, H, W] in [-1, 1].

    Returns:
        uint8 [3, n, H, W], in memory as [n, H, W, 3]; and a bool [].
    """
    _, count, height, width = pixels.shape
    frames = torch.empty(count, height, width, 3, dtype=torch.uint8, device=pixels.device)
    sums = []
    for frame, pixel in zip(frames, pixels.detach().unbind(1), strict=True):
        scaled = pixel.float().add(1.0).mul_(127.5).clamp_(0.0, 255.0)
        sums.append(scaled.sum())  # clamping lets only NaN through; its cast to bytes would depend on the machine
        frame.copy_(scaled.round_().permute(1, 2, 0))
    return frames.permute(3, 0, 1, 2), torch.stack(sums).isnan().any()


def refuse_nan(found: bool) -> None:
    """Refuse frames that hold NaN.

    Raises:
        ModelError: they do.
    """
    if found:
        raise ModelError(
            "The decoded frames hold NaN: the network's numbers overflowed.",
            "Run with bfloat16 or float32 instead of float16, or check that the weights are not damaged.",
        )


def to_rgb24(pixels: torch.Tensor) -> np.ndarray:
    """Frames [3, n, H, W], bytes or in [-1, 1] (see `to_bytes`) -> uint8 [n, H, W, 3].

    Raises:
        ModelError: the frames hold NaN.
    """
    if pixels.dtype != torch.uint8:
        pixels, nan = to_bytes(pixels)
        refuse_nan(bool(nan))
    return pixels.permute(1, 2, 3, 0).contiguous().cpu().numpy()


__all__ = ["Decoder", "FrameStream", "LatentStream", "refuse_nan", "to_bytes", "to_rgb24"]
