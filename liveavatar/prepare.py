"""Image, audio and prompt are encoded into the conditioning, each by an encoder that stays as long as it is needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .codec import Encoders
from .config import BLOCK_FRAMES
from .encoders.audio import AudioEncoder, AudioFeatures, Tail, encode_audio
from .media.audio import AudioClip, mono_16k
from .media.image import fit_image, to_pixels
from .request import Request, ResolvedRequest, prompt_to_encode
from .session import Conditioning
from .vae.tiling import WHOLE, Tiles

Phase = Callable[[str, float], None]
"""Called with the name of what is being done and the finished share of it, 0 to 1; what it raises ends the work."""


def prepare(
    encoders: Encoders,
    request: Request,
    resolved: ResolvedRequest,
    image: np.ndarray,
    audio_input: AudioClip,
    phase: Phase = lambda name, share: None,
    tiles: Tiles = WHOLE,
) -> Conditioning:
    """Encode the conditioning of a video.

    Args:
        encoders: who encodes.
        request, resolved: what was asked, and what that means.
        image: uint8 [H, W, 3].
        audio_input: at any rate; only what `resolved` uses is encoded.
        phase: is called with the progress.
        tiles: see `Plan.vae_tiles`.
    """
    context = encode_prompt(encoders, prompt_to_encode(resolved.prompt), phase)
    used = audio_input.limited(resolved.samples / audio_input.rate)
    features = encode_sound(encoders, used, resolved.blocks, tail=request.tail, phase=phase)
    try:
        reference, motion = encode_picture(encoders, request, resolved, image, phase, tiles)
    except BaseException:
        features.close()
        raise
    return Conditioning(reference, motion, context, features)


def encode_prompt(encoders: Encoders, prompt: str, phase: Phase) -> torch.Tensor:
    """Prompt features [n, text_dim] on the CPU."""
    name = "reading the prompt"
    phase(name, 0.0)
    return encoders.encode_prompt(prompt, lambda: phase(name, 0.0))


def encode_sound(
    encoders: Encoders,
    audio: AudioClip,
    blocks: int,
    *,
    tail: Tail = "silence",
    phase: Phase = lambda name, share: None,
    audio_encoder: AudioEncoder | None = None,
) -> AudioFeatures:
    """Features of all of audio for so many blocks, encoded by the model's encoders or by the `audio_encoder` given."""
    name = "listening to the sound"
    phase(name, 0.0)
    samples = mono_16k(audio)

    def progress(share: float) -> None:
        phase(name, share)

    def check() -> None:
        phase(name, 0.0)

    frames = blocks * BLOCK_FRAMES
    if audio_encoder is not None:
        return encode_audio(audio_encoder, samples, frames, tail=tail, progress=progress, check=check)
    return encoders.encode_audio(samples, frames, tail, progress, check)


def encode_picture(
    encoders: Encoders,
    request: Request,
    resolved: ResolvedRequest,
    image: np.ndarray,
    phase: Phase,
    tiles: Tiles = WHOLE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of the image [16, 1, h, w], and of it standing still for 73 frames [16, 19, h, w], on the CPU."""
    name = "encoding the picture"
    phase(name, 0.0)
    pixels = to_pixels(fit_image(image, resolved.width, resolved.height, request.fit))
    latents = encoders.encode_image(pixels, lambda: phase(name, 0.0), tiles)
    phase(name, 1.0)
    return latents
