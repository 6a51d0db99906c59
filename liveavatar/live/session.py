"""A live session: sound is pushed while it is spoken, and blocks of pictures come out with their sound."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from ..codec import Encoders
from ..config import AUDIO_SAMPLE_RATE, BLOCK_FRAMES
from ..encoders.text import prompt_notes
from ..errors import Cancelled, RequestError
from ..events import Callback, Event, ignore
from ..media.image import check_image, fit_image, to_pixels
from ..pipeline import LiveAvatarPipeline
from ..request import Request, prompt_to_encode
from ..session import Conditioning, VideoTask, cpu_threads
from ..stage import Changes, Portrait
from ..streams import Decoder, to_rgb24
from .audio_feed import BLOCK_SECONDS, AudioFeed, BlockAudio
from .block import LiveBlock
from .features import RollingFeatures
from .pace import LOOKAHEAD_SECONDS, Pace

State = Literal["idle", "speaking", "starved", "interrupted", "closed"]
_WAITING_BLOCKS = 2
"""Finished blocks that wait to be read; further ones are not made."""
_POLL_SECONDS = 0.1
_MEASURED_BLOCKS = 10
_REMEMBERED_CHANGES = 100


@dataclasses.dataclass
class _Pending:
    """What is to change with the next block: a prompt's features and text, a portrait."""

    prompt: tuple[torch.Tensor, str] | None = None
    portrait: Portrait | None = None


class _Progress:
    """What of a session its stats are made of."""

    def __init__(self) -> None:
        self.blocks, self.lag_ms, self.speaking, self.interrupted = 0, 0.0, False, False
        self.changes: deque[tuple[int, str]] = deque(maxlen=_REMEMBERED_CHANGES)
        self._finished: deque[float] = deque(maxlen=_MEASURED_BLOCKS)

    def add(self, block: LiveBlock, ahead: int) -> None:
        """Count a finished block, whose features knew so many samples (at 16 kHz) after it."""
        self.blocks, self.speaking = block.number + 1, block.spoken
        self.lag_ms = round(self.heard_ms(ahead) + 1000 * (block.finished - block.begun), 1)
        self._finished.append(block.finished)

    @staticmethod
    def heard_ms(ahead: int) -> float:
        """How long the first sample of a block waits until its features can be made."""
        return 1000 * (BLOCK_SECONDS + ahead / AUDIO_SAMPLE_RATE)

    @property
    def fps(self) -> float | None:
        """See `LiveStats`."""
        if len(self._finished) < 2:
            return None
        seconds = self._finished[-1] - self._finished[0]
        return round((len(self._finished) - 1) * BLOCK_FRAMES / max(seconds, 1e-9), 2)


@dataclasses.dataclass(frozen=True)
class LiveStats:
    """How a session goes.

    Attributes:
        state: "idle": nobody speaks; "speaking"; "starved": blocks are made too slowly for real time; "interrupted":
            what was to be said is dropped; "closed".
        block: blocks that are finished.
        lag_ms: from a sample of sound to its picture, of the latest block; or more, where the next one takes longer.
        fps: frames a second over the latest blocks, as they were made; None before there are two.
        queued_seconds: sound that waits.
        late_blocks: how many began more than half a block after their time.
        changes: prompts and portraits that were changed, with the block from which each held.
    """

    state: State
    block: int
    lag_ms: float
    fps: float | None
    queued_seconds: float
    late_blocks: int
    changes: tuple[tuple[int, str], ...]


class LiveSession:
    """A talking portrait that goes on until it is closed.

        with LiveSession(pipeline, image, Request(size="128x128", prompt="A person talks.")) as live:
            live.push(samples, 16_000)       # from any thread, as it is spoken
            for block in live.blocks():      # ends when the session is closed, or `end` was called and all is said
                show(block.images, block.audio)

    Everything is encoded and loaded when it is made. Its blocks are made by a thread of its own, no further ahead than
    they are read. A session keeps its backend busy; close it before another video is made there.

    Args:
        pipeline: makes the blocks.
        image: uint8 [H, W, 3].
        request: size, prompt, steps, seed; its `seconds`, `tail` and `lead` are not looked at.
        lookahead: seconds of sound after a block that its features know: the more, the later, and the better the lips.
        real_time: whether blocks are made at the pace of a clock, with silence where nobody speaks; else as soon as
            their sound is there.
        callback: called with what is loaded and with notices; what it raises ends the session.

    Raises:
        LiveAvatarError: the first thing found wrong, with the nearest that works.
    """

    def __init__(
        self,
        pipeline: LiveAvatarPipeline,
        image: np.ndarray,
        request: Request,
        lookahead: float = LOOKAHEAD_SECONDS,
        real_time: bool = True,
        callback: Callback = ignore,
    ):
        check_image(image)
        self._check_lookahead(lookahead)
        self.pipeline, self.request = pipeline, request
        self.resolved, self.plan = pipeline.plan_open(request, (image.shape[1], image.shape[0]))
        self.feed = AudioFeed()
        self._pace = Pace(self.feed, lookahead, real_time)
        self._callback, self._closing = callback, threading.Event()
        pipeline.make_room(self.plan)
        self._encoders: Encoders = pipeline.encoders(self.plan)
        self._encoders.load_vae(callback)
        self._features = RollingFeatures(self._encoders.audio_encoder(self._on_event))
        (context,) = self._encoders.encode_prompts([prompt_to_encode(request.prompt)], callback)
        first = self._portrait(image, callback)
        self._changes, self._pending = Changes(), _Pending()
        conditioning = Conditioning(first.reference, first.motion, context, self._features, self._changes)
        self._job = VideoTask(self.resolved, conditioning, request.sink_distance, self._let_in)
        self._engine = pipeline.backend.engine(pipeline.components, self.plan)
        self._engine.load(callback)
        self.plan = self._engine.plan
        self._decoder: Decoder = self._encoders.decoder(first.motion, self._on_event, self.plan.vae_tiles)
        self._taken: deque[tuple[BlockAudio, float]] = deque()
        """Sound and time of the blocks that are being made."""
        self._made: queue.Queue[LiveBlock | None] = queue.Queue(_WAITING_BLOCKS)
        self._error: BaseException | None = None
        self._progress = _Progress()
        self._thread = threading.Thread(target=self._run, name="liveavatar-live", daemon=True)
        self._thread.start()

    def push(self, samples: np.ndarray, rate: int) -> None:
        """Add sound; see `AudioFeed.push`."""
        self.feed.push(samples, rate)
        self._progress.interrupted = False

    def end_of_speech(self) -> None:
        """Say what was pushed to its end without waiting for more."""
        self.feed.end_of_speech()

    def interrupt(self) -> float:
        """Drop what was pushed and no block has taken; the mouth shuts with the next block. Returns its seconds."""
        dropped = self.feed.clear()
        self._progress.interrupted = True
        return dropped

    def set_prompt(self, prompt: str) -> None:
        """Let another prompt hold from the next block on; returns when it is encoded.

        Raises:
            RequestError: it cannot be encoded.
        """
        self._check_open()
        text = prompt_to_encode(prompt)
        if cut := prompt_notes(self.pipeline.components.tokenizer, text, self.pipeline.config.text_len):
            raise RequestError(f"The prompt cannot be used whole: {cut[0]}.", "Write a shorter one.")
        self._pending.prompt = self._encoders.encode_prompts([text])[0], text

    def set_portrait(self, image: np.ndarray) -> None:
        """Let another portrait hold from the next block on; it is fitted to the size of the first.

        Raises:
            ImageError: it cannot be used.
        """
        self._check_open()
        check_image(image)
        self._pending.portrait = self._portrait(image, ignore)

    def blocks(self) -> Iterator[LiveBlock]:
        """The blocks, as they are made, each once.

        Raises:
            Whatever ended the session.
        """
        while True:
            try:
                block = self._made.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if self._closing.is_set() or not self._thread.is_alive():
                    block = None
                else:
                    continue
            if block is None:
                if self._error is not None:
                    raise self._error
                return
            yield block

    def end(self) -> None:
        """Say what was pushed, and end then."""
        self.feed.end()

    def close(self) -> None:
        """End now. The weights stay with the pipeline. May be called again."""
        self._closing.set()
        self._pace.stop()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._features.close()

    @property
    def stats(self) -> LiveStats:
        """How it goes now."""
        p = self._progress
        return LiveStats(
            state=self._state(),
            block=p.blocks,
            lag_ms=max(p.lag_ms, self._lag_ms()),
            fps=p.fps,
            queued_seconds=self.feed.queued_seconds,
            late_blocks=self._pace.late_blocks,
            changes=tuple(p.changes),
        )

    def __enter__(self) -> LiveSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _state(self) -> State:
        if self._closing.is_set() or not self._thread.is_alive():
            return "closed"
        if self._progress.interrupted:
            return "interrupted"
        if not self._progress.speaking and not self.feed.queued:
            return "idle"
        return "starved" if self._pace.is_late and not self._made.full() else "speaking"

    def _lag_ms(self) -> float:
        """Of the block that is being made, so far."""
        try:
            begun = self._taken[0][1]
        except IndexError:
            return 0.0
        return round(self._progress.heard_ms(self._pace.ahead) + 1000 * (time.monotonic() - begun), 1)

    def _portrait(self, image: np.ndarray, callback: Callback) -> Portrait:
        e = self.resolved
        pixels = to_pixels(fit_image(image, e.width, e.height, self.request.fit))
        return Portrait(*self._encoders.encode_image(pixels, callback, self.plan.vae_tiles))

    def _check_open(self) -> None:
        if self._closing.is_set() or not self._thread.is_alive():
            raise RequestError("The live session is closed.", "Open another one.")

    @staticmethod
    def _check_lookahead(seconds: float) -> None:
        if not 0.0 <= seconds <= BLOCK_SECONDS:
            raise RequestError(f"A look-ahead of {seconds} s is not possible.", f"Use 0 to {BLOCK_SECONDS} s.")

    # -- the thread that makes blocks --

    def _run(self) -> None:
        try:
            with contextlib.closing(self._engine.run(self._job, self._on_event)) as latents:  # type: ignore[type-var]
                for number, latent in enumerate(latents):
                    images = to_rgb24(self._decoder(latent))
                    self._emit(number, images)
                    if self._closing.is_set():
                        break
        except BaseException as error:
            if not self._closing.is_set():
                self._error = error
        finally:
            self._put(None)

    def _emit(self, number: int, images: np.ndarray) -> None:
        audio, begun = self._taken.popleft()
        block = LiveBlock(number, images, audio.output, audio.spoken > 0, begun, time.monotonic())
        self._progress.add(block, self._pace.ahead)
        self._put(block)

    def _on_event(self, event: Event) -> None:
        """The callback of all work: a session that is closed ends before the next task."""
        if self._closing.is_set():
            raise Cancelled("The live session was closed.")
        self._callback(event)

    def _put(self, block: LiveBlock | None) -> None:
        begun = time.monotonic()
        while not self._closing.is_set():
            with contextlib.suppress(queue.Full):
                self._made.put(block, timeout=_POLL_SECONDS)
                break
        self._pace.hold(time.monotonic() - begun)

    def _let_in(self, block: int, wait: bool) -> bool | None:
        """The gate of the engine (see `task_graph.BlockGate`), in whichever thread runs its tasks."""
        audio = self._pace.next_audio(wait)
        if audio == "later":
            return None
        if audio == "never":
            return False
        assert isinstance(audio, BlockAudio)
        begun = time.monotonic()
        with cpu_threads(self.plan.threads):
            self._features.hear(audio)
        self._apply_changes(block)
        self._taken.append((audio, begun))
        return True

    def _apply_changes(self, block: int) -> None:
        prompt, self._pending.prompt = self._pending.prompt, None
        portrait, self._pending.portrait = self._pending.portrait, None
        if prompt is not None:
            self._changes.prompts.add(block, prompt[0])
            self._progress.changes.append((block, f"prompt: {prompt[1]}"))
        if portrait is not None:
            self._changes.portraits.add(block, portrait)
            self._progress.changes.append((block, "portrait"))
        for timeline in (self._changes.prompts, self._changes.portraits):
            timeline.forget(block - self.plan.partition.stages - 1)
