"""Picture, sound and prompt become material. Every encoder is loaded, used and let go before the next one comes."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .components import Components
from .config import BLOCK_FRAMES, MOTION_FRAMES
from .encoders.audio import Tail, encode_audio
from .encoders.features import AudioFeatures
from .encoders.listener import Listener
from .encoders.text import encode_text
from .media.picture import fit_picture, to_pixels
from .media.sound import Sound, mono_16k
from .planner import Plan
from .request import Effective, Request
from .session import Material, cpu_threads
from .vae.wan import encode

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

Phase = Callable[[str, float], None]
"""Called with the name of what is being done and the finished share of it, 0 to 1; what it raises ends the work."""


def prepare(
    components: Components,
    plan: Plan,
    request: Request,
    effective: Effective,
    picture: np.ndarray,
    sound: Sound,
    vae: AutoencoderKLWan,
    phase: Phase = lambda name, share: None,
) -> Material:
    """Encode everything the network is told.

    Args:
        components: where the encoders come from.
        plan: on which device and in what dtype they run.
        request, effective: what was asked, and what that means.
        picture: uint8 [H, W, 3].
        sound: at any rate; only what `effective` uses is encoded.
        vae: encodes the picture; it stays loaded, because it also decodes.
        phase: hears of the progress.
    """
    place = Place(plan.stages[0].device, plan.dtype, plan.threads)
    context = read_prompt(components, place, effective.prompt, phase)
    used = sound.limited(effective.samples / sound.rate)
    audio = hear_sound(components, place, used, effective.blocks, tail=request.tail, phase=phase)
    try:
        reference, motion = look_at_picture(vae, plan.threads, request, effective, picture, phase)
    except BaseException:
        audio.close()
        raise
    return Material(reference, motion, context, audio)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where and in what encoders run.

    Attributes:
        device, dtype: names.
        threads: CPU threads.
    """

    device: str
    dtype: str
    threads: int

    @contextlib.contextmanager
    def working(self) -> Iterator[tuple[torch.device, torch.dtype]]:
        """Inside, nothing records gradients and the CPU has its threads."""
        with torch.inference_mode(), cpu_threads(self.threads):
            yield torch.device(self.device), getattr(torch, self.dtype)


def read_prompt(components: Components, place: Place, prompt: str, phase: Phase) -> torch.Tensor:
    """Prompt features [n, text_dim] on the CPU; the text encoder comes and goes."""
    phase("reading the prompt", 0.0)
    with place.working() as where:
        model, tokenizer = components.text_encoder(*where)
        context = encode_text(model, tokenizer, prompt, components.config.text_len).cpu()
        gone = weakref.ref(model)
        del model
    _let_go(gone, place)
    return context


def hear_sound(
    components: Components,
    place: Place,
    sound: Sound,
    blocks: int,
    *,
    tail: Tail = "silence",
    phase: Phase = lambda name, share: None,
    listener: Listener | None = None,
) -> AudioFeatures:
    """Features of all of a sound for so many blocks; the audio encoder comes and goes, or is the `listener` given."""
    name = "listening to the sound"
    phase(name, 0.0)
    wave = mono_16k(sound)
    with place.working() as where:
        model = listener or components.audio_encoder(*where)
        features = encode_audio(
            model,
            wave,
            blocks * BLOCK_FRAMES,
            tail=tail,
            progress=lambda share: phase(name, share),
            check=lambda: phase(name, 0.0),
        )
        gone = weakref.ref(model)
        del model
    if listener is None:
        _let_go(gone, place)
    return features


def look_at_picture(
    vae: AutoencoderKLWan, threads: int, request: Request, effective: Effective, picture: np.ndarray, phase: Phase
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of the picture [16, 1, h, w], and of it standing still for 73 frames [16, 19, h, w], on the CPU."""
    phase("encoding the picture", 0.0)
    pixels = to_pixels(fit_picture(picture, effective.width, effective.height, request.fit))
    with torch.inference_mode(), cpu_threads(threads):
        reference = encode(vae, pixels)[0].cpu()
        motion = encode(vae, pixels.expand(-1, -1, MOTION_FRAMES, -1, -1))[0].cpu()
    phase("encoding the picture", 1.0)
    return reference, motion


def _let_go(encoder: weakref.ref[Any], place: Place) -> None:
    """Return the memory of an encoder whose last reference is gone; only one with cycles has to be collected."""
    if encoder() is not None:
        gc.collect()
    if torch.device(place.device).type == "cuda":
        torch.cuda.empty_cache()
