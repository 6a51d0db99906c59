"""A studio: one model on one backend, and what of it is warm. Its takes are videos that wait to be watched.

What a graph of nodes does in steps (read the prompt, listen to the voice, sample, decode) happens here step by step,
and every result can be kept and used again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .at_hand import Cards, Seen, hardware_here
from .codec import Codec, Place, vae_decoder
from .components import Components
from .config import BLOCK_FRAMES, ModelConfig
from .encoders.audio import pick_audio
from .encoders.features import AudioFeatures
from .encoders.listener import Listener
from .engines.backend import Backend
from .errors import AudioError, RequestError
from .media.picture import check_picture
from .media.sound import Sound
from .opening import Filmed, Prospect
from .planner import Plan
from .prepare import Phase, hear_sound, look_at_picture, read_prompt
from .receipt import Receipt
from .recording import GENERATING, OnBlock, OnProgress, Progress, Recording
from .request import Effective, Request, check_request, frames_of, resolve, used_samples
from .session import Job, Material, OpenDecoder, Session, unnoticed

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan


def _quiet(name: str, share: float) -> None:
    """A phase nobody listens to."""


@dataclasses.dataclass(frozen=True, eq=False)
class Voice:
    """A voice that was listened to.

    Attributes:
        sound: what is put into the video, all of it.
        features: what the network hears, for every block of it.
    """

    sound: Sound
    features: AudioFeatures


class Studio:
    """One model on one backend.

    Args:
        components: the model.
        backend: lends the engines.
        dtype: of weights and keys; None leaves it to the backend's placement.
        make_room: called with the plan before anything is loaded for it; frees memory that others hold.
        hardware: looks at the cards that plans are chosen for, where they are chosen.
    """

    def __init__(
        self,
        components: Components,
        backend: Backend,
        dtype: str | None = None,
        make_room: Callable[[Plan], None] = lambda plan: None,
        hardware: Cards = hardware_here,
    ):
        self.components, self.backend, self.make_room = components, backend, make_room
        self.placement = dataclasses.replace(backend.placement, dtype=dtype or backend.placement.dtype)
        self._seen = Seen(hardware)
        self.seconds_per_block: dict[tuple[int, int, int], float] = {}
        """By tokens of a latent frame, steps and blocks of a clip: what the latest complete take needed."""

    @property
    def config(self) -> ModelConfig:
        """Dimensions of the network."""
        return self.components.config

    @property
    def loaded_bytes(self) -> int:
        """Bytes of weights that are loaded now."""
        return sum(self.backend.bytes_by_device().values())

    def look_ahead(self, request: Request, picture: tuple[int, int], samples: int, rate: int) -> tuple[Effective, Plan]:
        """What a request would really make; loads nothing.

        Args:
            picture: width and height.
            samples, rate: length of the sound.

        Raises:
            RequestError: the first thing found wrong, with the nearest that works.
        """
        effective = resolve(request, picture, samples, rate)
        name, held = self.components.name, self.backend.bytes_by_device
        return self.placement.foresee(effective, self.config, name, lambda: self._seen.hardware(held()))

    def expected_seconds(self, effective: Effective) -> float | None:
        """Seconds the video will take, from the latest take of this size, steps and clip; None where there was none."""
        pace = self.seconds_per_block.get((effective.frame_tokens, effective.steps, effective.clip_blocks))
        return None if pace is None else pace * effective.blocks

    def read(self, prompt: str, phase: Phase = _quiet) -> torch.Tensor:
        """Prompt features [n, text_dim]; the text encoder comes and goes."""
        return read_prompt(self.codec(), prompt, phase)

    def listen(
        self, sound: Sound, seconds: float | None = None, phase: Phase = _quiet, listener: Listener | None = None
    ) -> Voice:
        """Listen to (the first seconds of) a sound; the audio encoder comes and goes.

        Args:
            listener: hears instead of the model's own encoder.

        Raises:
            AudioError: too short; the listener is another one than the network was trained with.
        """
        used, blocks = _used(sound, seconds)
        if listener is not None:
            self._check_listener(listener.layers, listener.channels)
        return Voice(used, hear_sound(self.codec(), used, blocks, phase=phase, listener=listener))

    def heard(self, sound: Sound, states: Sequence[torch.Tensor], seconds: float | None = None) -> Voice:
        """A voice that somebody else encoded: hidden states [n, channels] at 50 a second, one per layer.

        Raises:
            AudioError: as `listen`, and as `pick_audio`.
        """
        used, blocks = _used(sound, seconds)
        self._check_listener(len(states), states[0].shape[-1] if len(states) else 0)
        return Voice(used, pick_audio(states, blocks * BLOCK_FRAMES))

    def take(self, request: Request, picture: np.ndarray, voice: Voice, context: torch.Tensor) -> Take:
        """A video that waits to be watched; nothing is loaded.

        Args:
            request: its prompt tells what `context` was read from (None: not known); its seconds are not looked at.
            picture: uint8 [H, W, 3].
            voice: from `listen` or `heard`.
            context: from `read` [n, text_dim].

        Raises:
            RequestError: the first thing found wrong, with the nearest that works.
        """
        check_picture(picture)
        if context.ndim != 2 or context.shape[1] != self.config.text_dim:
            raise RequestError(
                f"The prompt was encoded as {list(context.shape)}; this model reads [n, {self.config.text_dim}].",
                "Encode it with this model's own text encoder, or with the UMT5-XXL it was trained with.",
            )
        size, sound = (picture.shape[1], picture.shape[0]), voice.sound
        effective, plan = self.look_ahead(request, size, len(sound.samples), sound.rate)
        if voice.features.blocks < effective.blocks:
            raise AudioError(
                f"The voice was listened to for {voice.features.blocks} blocks; the video has {effective.blocks}.",
                "Listen to all of the sound that the video uses.",
            )
        self._check_listener(voice.features.layers, voice.features.channels)
        prospect = Prospect(self.components, request, effective, plan, picture, sound)
        return Take(self, prospect, voice, context)

    def codec(self, plan: Plan | None = None) -> Codec:
        """Who encodes and decodes; where there is no plan yet, at the place that plans will have."""
        p = self.placement
        place = Place(p.last_device, p.working_dtype, p.working_threads, p.cap)
        if plan is not None:
            place = Place(plan.vae_device, plan.dtype, plan.threads, plan.cap)
        return self.backend.codec(self.components, place)

    def release(self) -> None:
        """Give back all memory; the next take loads again."""
        self.backend.release()
        self._seen.forget()

    def _check_listener(self, layers: int, channels: int) -> None:
        if (layers, channels) != (self.config.audio_layers, self.config.audio_dim):
            raise AudioError(
                f"The voice was encoded as {layers} hidden states of {channels} numbers; this model hears "
                f"{self.config.audio_layers} of {self.config.audio_dim}.",
                "Use the model's own audio encoder, or the wav2vec2 it was trained with.",
            )


class Take:
    """One video of a studio: made while it is watched the first time, replayed after that.

    Its finished latents lie in a temporary file as long as the take lives. A take that was broken off begins again at
    block 0 and gives the same video.
    """

    def __init__(self, studio: Studio, prospect: Prospect, voice: Voice, context: torch.Tensor):
        self.studio, self.prospect, self.voice, self.context = studio, prospect, voice, context
        self._session: Session | None = None

    @property
    def config(self) -> ModelConfig:
        """Dimensions of the network."""
        return self.studio.config

    @property
    def complete(self) -> bool:
        """Whether all latents are made, so that a run only replays them."""
        return self._session is not None and self._session.latents.produced == self._session.latents.blocks

    def session(self, phase: Phase = _quiet) -> Session:
        """The session, with the picture encoded; made at the first call."""
        p = self.prospect
        if not self.complete:
            self.studio.make_room(p.plan)
        if self._session is None:
            phase("loading the VAE", 0.0)
            codec = self.studio.codec(p.plan)
            codec.load_vae(lambda: phase("loading the VAE", 0.0))
            reference, motion = look_at_picture(codec, p.request, p.effective, p.picture, phase, p.plan.vae_tiles)
            material = Material(reference, motion, self.context, self.voice.features)
            job = Job(p.effective, material, p.request.sink_distance)
            self._session = Session(self.studio.backend.engine(self.studio.components, p.plan), job)
        return self._session

    def collect(self, on_progress: OnProgress) -> torch.Tensor:
        """All latents at once, without the VAE's normalisation, as core keeps them: [1, 16, 3 blocks, h, w] float32.

        Args:
            on_progress: hears of the progress; may raise `Cancelled`.
        """
        session = self.session(lambda name, share: on_progress(Progress(name, round(100 * share), 100)))
        session.on_task = lambda r: on_progress(Progress(GENERATING, r.done, r.total, task=r.task, stage=r.stage))
        session.on_notice = lambda text: on_progress(Progress(text, session.latents.produced, session.latents.blocks))
        try:
            latents = torch.cat(list(session.latents), 1)[None]
        finally:
            session.on_task, session.on_notice = lambda report: None, unnoticed
        mean, inverse_std = self.studio.codec(self.prospect.plan).latent_scale()
        return latents.float() / inverse_std + mean

    def record(
        self,
        out: Path,
        receipt: Path,
        on_progress: OnProgress,
        vae: AutoencoderKLWan | None = None,
        on_block: OnBlock = lambda frames: None,
    ) -> Receipt:
        """Film it; as `api.generate`.

        Args:
            out, receipt: known to be writable.
            on_progress: hears of the progress; may raise `Cancelled`.
            vae: decodes instead of the model's own.
            on_block: sees every finished block.
        """

        @contextlib.contextmanager
        def opening(prospect: Prospect, phase: Phase) -> Iterator[Filmed]:
            session = self.session(phase)
            try:
                yield Filmed(session, session.frames_through(self._opener(prospect.plan, vae)))
            except BaseException:
                session.latents.cancel()  # or a paused run would hold its keys and values as long as the take
                raise
            finally:
                session.on_task, session.on_notice = lambda report: None, unnoticed
                if not self.studio.placement.keep_loaded:
                    self.studio.release()

        replayed = self.complete
        done = Recording(self.prospect, out, receipt, on_progress, opening, on_block).run()
        if not replayed:
            e = self.prospect.effective
            self.studio.seconds_per_block[e.frame_tokens, e.steps, e.clip_blocks] = done.seconds["generate"] / e.blocks
        return done

    def _opener(self, plan: Plan, vae: AutoencoderKLWan | None) -> OpenDecoder:
        if vae is None:
            codec = self.studio.codec(plan)
            return lambda motion, tell: codec.decoder(motion, tell, plan.vae_tiles)
        return lambda motion, _: vae_decoder(vae, motion, plan.threads, plan.vae_tiles)


def receipt_text(receipt: Path) -> str:
    """A receipt as it was written."""
    return json.dumps(json.loads(receipt.read_text(encoding="utf-8")), indent=2, ensure_ascii=False)


def _used(sound: Sound, seconds: float | None) -> tuple[Sound, int]:
    """The part of a sound that is used, and the blocks that cover it."""
    request = Request(seconds=seconds)
    check_request(request)
    used = used_samples(request, len(sound.samples), sound.rate)
    return sound.limited(used / sound.rate), -(-frames_of(used, sound.rate) // BLOCK_FRAMES)
