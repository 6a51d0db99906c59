"""A live session: sound is pushed while it is spoken, and pictures come out with their sound, block by block."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ..codec import Encoders
from ..components import for_speakers
from ..encoders.block_features import StackedFeatures
from ..encoders.text import prompt_notes
from ..errors import Cancelled, RequestError, shown
from ..events import Callback, Event, ignore
from ..media.image import check_image, fit_image, to_pixels
from ..media.mixing import RunningMix
from ..pipeline import LiveAvatarPipeline
from ..request import Request, prompt_to_encode
from ..session import Conditioning, VideoTask, cpu_threads
from ..speakers import GivenMask, OpenedMask, PlacedMasks, SpeakerReport, counted_speakers, open_masks, place_masks
from ..stage import Changes, Portrait
from ..streams import Decoder, to_rgb24
from .audio_feed import BLOCK_SECONDS, OUTPUT_RATE, AudioFeed, BlockAudio
from .block import PIECES, LiveBlock, LivePiece
from .features import RollingFeatures
from .pace import LOOKAHEAD_SECONDS, Pace
from .stats import LiveStats, Progress, SpeakerState, State

_WAITING_PIECES = 2 * PIECES
"""Finished pieces that wait to be read; further ones are not made."""
_POLL_SECONDS = 0.1


@dataclasses.dataclass
class _Pending:
    """What is to change with the next block: a prompt's features and text, a portrait."""

    prompt: tuple[torch.Tensor, str] | None = None
    portrait: Portrait | None = None


class LiveSession:
    """A talking portrait that goes on until it is closed.

        with LiveSession(pipeline, image, Request(size="128x128", prompt="A person talks.")) as live:
            live.push(samples, 16_000)       # from any thread, as it is spoken
            for block in live.blocks():      # ends when the session is closed, or `end` was called and all is said
                show(block.images, block.audio)

    Whoever shows them at once takes `pieces`, which come while the rest of their block is still being decoded.

    Everything is encoded and loaded when it is made. Its blocks are made by a thread of its own, no further ahead than
    they are read. A session keeps its backend busy; close it before another video is made there.

    Several speakers in the portrait are given as their masks, and are numbered from 1 in that order:

        with LiveSession(pipeline, image, request, speakers=["left.png", "right.png"]) as live:
            live.push(samples, 16_000, speaker=2)

    Args:
        pipeline: makes the blocks.
        image: uint8 [H, W, 3].
        request: size, prompt, steps, seed; its `seconds`, `tail` and `lead` are not looked at.
        lookahead: seconds of sound after a block that its features know: the more, the later, and the better the lips.
        real_time: whether blocks are made at the pace of a clock, with silence where nobody speaks; else as soon as
            their sound is there.
        callback: called with what is loaded and with notices; what it raises ends the session.
        speakers: where in the image each of several speakers is heard (see `GivenMask`); none: there is one, and all of
            it is theirs. The places stay when the portrait changes.

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
        speakers: Sequence[GivenMask | OpenedMask] = (),
    ):
        check_image(image)
        self._check_lookahead(lookahead)
        self.pipeline, self.request = pipeline, request
        self._masks, size = open_masks(speakers), (image.shape[1], image.shape[0])
        self.feeds = tuple(AudioFeed() for _ in self._masks or [None])
        """Of each speaker."""
        self.components = for_speakers(pipeline.components, len(self.feeds))
        self.resolved, self.plan = pipeline.plan_open(request, size, len(self.feeds))
        self._placed = self._place(size)
        self._pace = Pace(self.feeds, lookahead, real_time)
        self._mix = RunningMix(OUTPUT_RATE)
        self._callback, self._closing = callback, threading.Event()
        pipeline.make_room(self.plan)
        self._encoders: Encoders = pipeline.encoders(self.plan)
        self._encoders.load_vae(callback)
        encoder = self._encoders.audio_encoder(self._on_event)
        self._features: tuple[RollingFeatures, ...] = tuple(RollingFeatures(encoder) for _ in self.feeds)
        (context,) = self._encoders.encode_prompts([prompt_to_encode(request.prompt)], callback)
        first = self._portrait(image, callback)
        self._changes, self._pending = Changes(), _Pending()
        conditioning = self._conditioning(first, context)
        job = VideoTask(self.resolved, conditioning, request.sink_distance, self._let_in)
        self._engine = pipeline.backend.engine(self.components, self.plan)
        self._engine.load(callback)
        self.plan = self._engine.plan
        decoder = self._encoders.decoder(first.motion, self._on_event, self.plan.vae_tiles)
        self._taken: deque[tuple[tuple[BlockAudio, ...], float]] = deque()
        """Sound of each speaker and time of the blocks that are being made."""
        self._made: queue.Queue[LivePiece | None] = queue.Queue(_WAITING_PIECES)
        self._error: BaseException | None = None
        self._progress = Progress(len(self.feeds))
        # What calls back into the session is the thread's alone: it goes with it, and no session waits to be collected.
        self._thread = threading.Thread(target=self._run, args=(job, decoder), name="liveavatar-live", daemon=True)
        self._thread.start()

    def push(self, samples: np.ndarray, rate: int, speaker: int = 1) -> None:
        """Add sound of a speaker; see `AudioFeed.push`."""
        index = self._index(speaker)
        self.feeds[index].push(samples, rate)
        self._progress.interrupted[index] = False

    def end_of_speech(self, speaker: int | None = None) -> None:
        """Say what was pushed to its end without waiting for more, of one speaker or of all.

        Where blocks do not follow a clock, they wait for each speaker's sound, until this tells that nothing comes.
        """
        for index in self._chosen(speaker):
            self.feeds[index].end_of_speech()

    def interrupt(self, speaker: int | None = None) -> float:
        """Drop what was pushed and no block has taken, of one speaker or of all; the mouth shuts with the next block.
        Returns its seconds, the most of one."""
        dropped = []
        for index in self._chosen(speaker):
            dropped.append(self.feeds[index].clear())
            self._progress.interrupted[index] = True
        return max(dropped)

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
        """Let another portrait hold from the next block on; it is fitted to the size of the first, and speakers stay
        where they are in the picture.

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
        pieces: list[LivePiece] = []
        for piece in self.pieces():
            pieces.append(piece)
            if piece.is_last:
                yield LiveBlock.of(pieces)
                pieces = []

    def pieces(self) -> Iterator[LivePiece]:
        """The same piece by piece, each as soon as it is decoded; of a session that is closed, the last block may lack
        some.

        Raises:
            Whatever ended the session.
        """
        while True:
            try:
                piece = self._made.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if self._closing.is_set() or not self._thread.is_alive():
                    piece = None
                else:
                    continue
            if piece is None:
                self._thread.join()  # whoever has read the last piece sees that it is closed
                if self._error is not None:
                    raise self._error
                return
            yield piece

    def end(self) -> None:
        """Say what was pushed, and end then."""
        for feed in self.feeds:
            feed.end()

    def close(self) -> None:
        """End now. The weights stay with the pipeline. May be called again."""
        self._closing.set()
        self._pace.stop()
        if self._thread is not threading.current_thread():
            self._thread.join()
        features, self._features = self._features, ()
        for one in features:
            one.close()

    @property
    def speaker_reports(self) -> tuple[SpeakerReport, ...]:
        """Of several speakers, for a receipt: what each has said so far, and where."""
        if self._placed is None:
            return ()
        each = zip(self._masks, self._progress.seconds, self._placed.shares, strict=True)
        return tuple(SpeakerReport("live", seconds, mask.source, share) for mask, seconds, share in each)

    @property
    def stats(self) -> LiveStats:
        """How it goes now."""
        p = self._progress
        speakers = p.speakers([feed.queued_seconds for feed in self.feeds])
        return LiveStats(
            state=self._state({speaker.state for speaker in speakers}),
            block=p.blocks,
            lag_ms=max(p.lag_ms, self._lag_ms()),
            fps=p.fps,
            queued_seconds=max(speaker.queued_seconds for speaker in speakers),
            late_blocks=self._pace.late_blocks,
            changes=tuple(p.changes),
            speakers=speakers,
        )

    def __enter__(self) -> LiveSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _state(self, of_speakers: set[SpeakerState]) -> State:
        if self._closing.is_set() or not self._thread.is_alive():
            return "closed"
        if "speaking" in of_speakers:
            return "starved" if self._pace.is_late and not self._made.full() else "speaking"
        return "interrupted" if "interrupted" in of_speakers else "idle"

    def _chosen(self, speaker: int | None) -> Sequence[int]:
        """Indices of the feeds of one speaker, or of all."""
        return range(len(self.feeds)) if speaker is None else [self._index(speaker)]

    def _index(self, speaker: int) -> int:
        """Of a speaker's feed."""
        count = len(self.feeds)
        if not isinstance(speaker, int) or not 1 <= speaker <= count:
            raise RequestError(
                f"There is no speaker {shown(speaker)}: this talk has {counted_speakers(count)}.",
                f"Give a number from 1 to {count}." if count > 1 else "Give 1, or leave it out.",
            )
        return speaker - 1

    def _place(self, size: tuple[int, int]) -> PlacedMasks | None:
        e = self.resolved
        return place_masks(self._masks, size, e.width, e.height, self.request.fit) if self._masks else None

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

    def _conditioning(self, first: Portrait, context: torch.Tensor) -> Conditioning:
        mask = None if self._placed is None else self._placed.of_block()
        features = StackedFeatures(self._features)
        return Conditioning(first.reference, first.motion, context, features, self._changes, speaker_mask=mask)

    def _check_open(self) -> None:
        if self._closing.is_set() or not self._thread.is_alive():
            raise RequestError("The live session is closed.", "Open another one.")

    @staticmethod
    def _check_lookahead(seconds: float) -> None:
        if not 0.0 <= seconds <= BLOCK_SECONDS:
            raise RequestError(f"A look-ahead of {seconds} s is not possible.", f"Use 0 to {BLOCK_SECONDS} s.")

    # -- the thread that makes blocks --

    def _run(self, job: VideoTask, decoder: Decoder) -> None:
        try:
            with contextlib.closing(self._engine.run(job, self._on_event)) as latents:  # type: ignore[type-var]
                for number, latent in enumerate(latents):
                    self._emit(number, latent, decoder)
                    if self._closing.is_set():
                        break
        except BaseException as error:
            if not self._closing.is_set():
                self._error = error
        finally:
            self._put(None)

    def _emit(self, number: int, latent: torch.Tensor, decoder: Decoder) -> None:
        """Decode a block and hand out its pieces, one latent frame at a time."""
        audio, begun = self._taken[0]
        outputs = [one.output for one in audio]
        sounds = np.split(self._mix.add(outputs) if len(outputs) > 1 else outputs[0], PIECES)
        spoken = any(one.spoken for one in audio)
        for place, (frame, sound) in enumerate(zip(latent.split(1, dim=1), sounds, strict=True)):
            images = to_rgb24(decoder(frame))
            piece = LivePiece(number, place, images, sound, spoken, begun, time.monotonic())
            if place == 0:
                self._taken.popleft()
                self._progress.show(piece, audio, self._pace.ahead)
            if piece.is_last:
                self._progress.finish(piece)
            self._put(piece)

    def _on_event(self, event: Event) -> None:
        """The callback of all work: a session that is closed ends before the next task."""
        if self._closing.is_set():
            raise Cancelled("The live session was closed.")
        self._callback(event)

    def _put(self, piece: LivePiece | None) -> None:
        begun = time.monotonic()
        while not self._closing.is_set():
            with contextlib.suppress(queue.Full):
                self._made.put(piece, timeout=_POLL_SECONDS)
                break
        self._pace.hold(time.monotonic() - begun)

    def _let_in(self, block: int, wait: bool) -> bool | None:
        """The gate of the engine (see `task_graph.BlockGate`), in whichever thread runs its tasks."""
        audio = self._pace.next_audio(wait)
        if audio == "later":
            return None
        if audio == "never":
            return False
        assert isinstance(audio, tuple)
        begun = time.monotonic()
        with cpu_threads(self.plan.threads):
            for features, one in zip(self._features, audio, strict=True):
                features.hear(one)
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
