"""One video of a pipeline: its session, its frames and latents, and the file it is saved in."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .codec import vae_decoder
from .conditioning import NO_CONTEXTS, Contexts, Encoded
from .config import ModelConfig
from .continuation import Start, StateStore, VideoLeft, check_state_path, video_task
from .encoders.block_features import KnownFeatures
from .errors import Cancelled, RequestError, shown
from .events import Callback, Event, ignore
from .media.audio import AudioClip
from .planner.disk import TemporaryBytes
from .receipt import Receipt
from .recorder import VideoRecorder, VideoSpec, check_outputs
from .session import OpenDecoder, Session
from .speakers import OpenedSpeakers
from .streams import FrameStream

if TYPE_CHECKING:
    from .pipeline import LiveAvatarPipeline
    from .vae.autoencoder import AutoencoderKLWan


@dataclasses.dataclass(frozen=True, eq=False)
class AudioInput:
    """Encoded audio of one voice or of several speakers, with the clip it was made of.

    Attributes:
        audio: what is put into the video, all of it; of several speakers, all together.
        features: of every block of it; None of long audio, which is encoded while its video is made.
        notes: what is to be told of it, a sentence each.
        speakers: with their masks, where there are several.
    """

    audio: AudioClip
    features: KnownFeatures | None
    notes: tuple[str, ...] = ()
    speakers: OpenedSpeakers | None = None


class VideoJob:
    """One video of a pipeline: made while it is watched the first time, replayed after that.

    Its finished latents lie in a temporary file as long as the video job lives. A video job that was broken off begins
    again at block 0 and gives the same video.
    """

    def __init__(
        self,
        pipeline: LiveAvatarPipeline,
        spec: VideoSpec,
        audio: AudioInput | None = None,
        context: torch.Tensor | None = None,
        contexts: Contexts = NO_CONTEXTS,
        start: Start | None = None,
    ):
        """What was encoded already is given; the rest is encoded when the video is first watched."""
        self.pipeline, self.spec, self.audio, self.context = pipeline, spec, audio, context
        self.contexts, self._start = contexts, start
        self._session: Session | None = None
        self._store = StateStore(spec, pipeline.network) if spec.request.keep_state else None

    @property
    def config(self) -> ModelConfig:
        """Dimensions of the network."""
        return self.pipeline.config

    @property
    def complete(self) -> bool:
        """Whether all latents are made, so that a run only replays them."""
        return self._session is not None and self._session.latents.produced == self._session.latents.blocks

    def session(self, callback: Callback = ignore) -> Session:
        """The session, with everything encoded; made at the first call."""
        p = self.spec
        self._check_room()
        if not self.complete:
            self.pipeline.make_room(p.plan)
        if self._session is None:
            features = None if self.audio is None else self.audio.features
            encoders = self.pipeline.encoders(p.plan)
            encoded = Encoded(self.context, self.contexts, features)
            task = video_task(encoders, p, self._start, callback, encoded)
            self._session = Session(self.pipeline.backend.engine(p.components, p.plan), task)
        return self._session

    def frames(self, callback: Callback = ignore) -> FrameStream:
        """The video, block by block as it is made: images uint8 [3, n, H, W]; every consumer decodes anew.

        Args:
            callback: called with every event, also while the frames are read.
        """
        session = self.session(callback)
        session.callback = callback
        return session.frames_through(self._decoder_factory(None))

    def close(self) -> None:
        """Stop the work and remove what was kept of it; the weights stay with the pipeline."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def latents(
        self, callback: Callback = ignore, cancelled_state: str | os.PathLike[str] | None = None
    ) -> torch.Tensor:
        """All latents at once, without the VAE's normalisation, as core keeps them: [1, 16, 3 blocks, h, w] float32.

        Args:
            callback: called with every event; may raise `Cancelled`.
            cancelled_state: as of `save`.

        Raises:
            Cancelled: from the callback.
        """
        state = check_state_path(self.spec, self.config, cancelled_state)
        session = self.session(callback)

        def on_event(event: Event) -> None:
            if event.notice:
                event = dataclasses.replace(event, done=session.latents.produced, total=session.latents.blocks)
            try:
                callback(event)
            except Cancelled:
                if state is None or session.job.stop is None:
                    raise
                session.job.stop.set()

        session.callback = on_event
        try:
            latents = torch.cat(list(session.latents), 1)[None]
            if self._store is not None:
                self._store.write(session)
        except Cancelled as error:
            if self._store is None or (left := self._store.write_cancelled(session, state)) is None:
                raise
            raise Cancelled(f"Cancelled. {left} continues the video.") from error
        finally:
            session.callback = ignore
        mean, inverse_std = self.pipeline.encoders(self.spec.plan).latent_scale()
        return latents.float() / inverse_std + mean

    def save(
        self,
        out: str | os.PathLike[str],
        receipt: str | os.PathLike[str] | None = None,
        callback: Callback = ignore,
        vae: AutoencoderKLWan | None = None,
        state: str | os.PathLike[str] | None = None,
        cancelled_state: str | os.PathLike[str] | None = None,
    ) -> Receipt:
        """Make the video, or replay it, and write its receipt beside it.

        Args:
            out: the MP4; it grows while frames are made, plays at any moment, and is an ordinary MP4 at the end.
            receipt: the JSON; by default the video's name with `.json`. "-" is the standard output.
            callback: called with every event; may raise `Cancelled`.
            vae: decodes instead of the model's own.
            state: a file for what a continuation needs (see `Request.keep_state`). It is written when the video is
                complete; and where it is cancelled, after the blocks that had begun then.
            cancelled_state: the same for a video that is cancelled, where a complete one needs no file.

        Returns:
            The receipt as written, with status "complete".

        Raises:
            OutputError: see `check_outputs` and `TemporaryBytes.check`, called before anything is loaded; or a disk
                that fills up meanwhile.
            Cancelled: on Ctrl-C or from the callback; the file is playable and the receipt says so.
            LiveAvatarError: anything else that stopped the run; the receipt says so.
        """
        place = check_outputs(out, receipt, self.spec.inputs)
        if not callable(callback):
            raise RequestError(
                f"The callback is {shown(callback)}, which cannot be called.", "Give a function of an event."
            )
        self._check_room()
        store, outputs = self._store, (Path(out), place)
        state_path, if_cancelled = (
            check_state_path(self.spec, self.config, given, outputs) for given in (state, cancelled_state or state)
        )
        recorder = VideoRecorder(self.spec, Path(out), place, callback)
        replayed = self.complete
        with recorder.recording():
            with recorder.timed("prepare"):
                session = self.session(recorder.on_event)
            try:
                saving = store and store.saving(recorder, session, state_path, if_cancelled)
                with saving or contextlib.nullcontext():
                    stop = None if if_cancelled is None else session.job.stop
                    recorder.write(session, session.frames_through(self._decoder_factory(vae)), stop)
            except BaseException:
                session.latents.cancel()  # or a paused run would hold its KV caches as long as the video job
                raise
            finally:
                session.callback = ignore
                if not self.pipeline.placement.keep_loaded:
                    self.pipeline.release_weights()
        if not replayed:
            self.pipeline.remember_seconds(self.spec.resolved, recorder.receipt.seconds["generate"])
        return recorder.receipt

    @property
    def left(self) -> VideoLeft:
        """What the video will leave, for one that continues it; the video is made then, where it was not yet.

        Raises:
            StateError: it does not keep that (see `Request.keep_state`).
        """
        return VideoLeft(self.spec, self._store, self.session)

    def _check_room(self) -> None:
        """Make sure, before the work begins, that the temporary folder can hold what is kept there.

        Raises:
            OutputError: it cannot.
        """
        if self._session is None:
            needed = TemporaryBytes.of(self.spec.resolved, self.config)
            encoded = self.audio is not None and self.audio.features is not None
            (dataclasses.replace(needed, features=0, audio=0) if encoded else needed).check()

    def _decoder_factory(self, vae: AutoencoderKLWan | None) -> OpenDecoder:
        plan = self.spec.plan
        if vae is None:
            encoders = self.pipeline.encoders(plan)
            return lambda motion, callback: encoders.decoder(motion, callback, plan.vae_tiles)
        return lambda motion, callback: vae_decoder(vae, motion, plan.threads, plan.vae_tiles, callback, as_bytes=True)
