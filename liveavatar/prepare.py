"""Picture, sound and prompt become material. Every encoder is loaded, used and let go before the next one comes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .components import Components
from .config import BLOCK_FRAMES, MOTION_FRAMES
from .encoders.audio import AudioFeatures, encode_audio
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
    with torch.inference_mode(), cpu_threads(plan.threads):
        context = _encode_prompt(components, plan, effective, phase)
        audio = _encode_sound(components, plan, request, effective, sound, phase)
        try:
            phase("encoding the picture", 0.0)
            fitted = fit_picture(picture, effective.width, effective.height, request.fit)
            pixels = to_pixels(fitted)
            reference = encode(vae, pixels)[0].cpu()
            motion = encode(vae, pixels.expand(-1, -1, MOTION_FRAMES, -1, -1))[0].cpu()
        except BaseException:
            audio.close()
            raise
        phase("encoding the picture", 1.0)
    return Material(reference, motion, context, audio)


def _encode_prompt(components: Components, plan: Plan, effective: Effective, phase: Phase) -> torch.Tensor:
    phase("reading the prompt", 0.0)
    model, tokenizer = components.text_encoder(*_place(plan))
    context = encode_text(model, tokenizer, effective.prompt, components.config.text_len).cpu()
    gone = weakref.ref(model)
    del model
    _let_go(gone, plan)
    return context


def _encode_sound(
    components: Components, plan: Plan, request: Request, effective: Effective, sound: Sound, phase: Phase
) -> AudioFeatures:
    name = "listening to the sound"
    phase(name, 0.0)
    model = components.audio_encoder(*_place(plan))
    wave = mono_16k(sound.limited(effective.samples / sound.rate))
    features = encode_audio(
        model,
        wave,
        effective.blocks * BLOCK_FRAMES,
        tail=request.tail,
        progress=lambda share: phase(name, share),
        check=lambda: phase(name, 0.0),
    )
    gone = weakref.ref(model)
    del model
    _let_go(gone, plan)
    return features


def _place(plan: Plan) -> tuple[torch.device, torch.dtype]:
    return torch.device(plan.stages[0].device), getattr(torch, plan.dtype)


def _let_go(encoder: weakref.ref[Any], plan: Plan) -> None:
    """Return the memory of an encoder whose last reference is gone; only one with cycles has to be collected."""
    if encoder() is not None:
        gc.collect()
    if torch.device(plan.stages[0].device).type == "cuda":
        torch.cuda.empty_cache()
