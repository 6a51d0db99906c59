"""Picture, sound and prompt become material, each by the codec that lasts as long as it is needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .codec import Codec
from .config import BLOCK_FRAMES
from .encoders.audio import Tail, encode_audio
from .encoders.features import AudioFeatures
from .encoders.listener import Listener
from .media.picture import fit_picture, to_pixels
from .media.sound import Sound, mono_16k
from .request import Effective, Request, prompt_to_encode
from .session import Material
from .vae.tiling import WHOLE, Tiles

Phase = Callable[[str, float], None]
"""Called with the name of what is being done and the finished share of it, 0 to 1; what it raises ends the work."""


def prepare(
    codec: Codec,
    request: Request,
    effective: Effective,
    picture: np.ndarray,
    sound: Sound,
    phase: Phase = lambda name, share: None,
    tiles: Tiles = WHOLE,
) -> Material:
    """Encode everything the network is told.

    Args:
        codec: who encodes.
        request, effective: what was asked, and what that means.
        picture: uint8 [H, W, 3].
        sound: at any rate; only what `effective` uses is encoded.
        phase: hears of the progress.
        tiles: see `Plan.vae_tiles`.
    """
    context = read_prompt(codec, prompt_to_encode(effective.prompt), phase)
    used = sound.limited(effective.samples / sound.rate)
    audio = hear_sound(codec, used, effective.blocks, tail=request.tail, phase=phase)
    try:
        reference, motion = look_at_picture(codec, request, effective, picture, phase, tiles)
    except BaseException:
        audio.close()
        raise
    return Material(reference, motion, context, audio)


def read_prompt(codec: Codec, prompt: str, phase: Phase) -> torch.Tensor:
    """Prompt features [n, text_dim] on the CPU."""
    name = "reading the prompt"
    phase(name, 0.0)
    return codec.read(prompt, lambda: phase(name, 0.0))


def hear_sound(
    codec: Codec,
    sound: Sound,
    blocks: int,
    *,
    tail: Tail = "silence",
    phase: Phase = lambda name, share: None,
    listener: Listener | None = None,
) -> AudioFeatures:
    """Features of all of a sound for so many blocks, heard by the codec or by the `listener` given."""
    name = "listening to the sound"
    phase(name, 0.0)
    wave = mono_16k(sound)

    def progress(share: float) -> None:
        phase(name, share)

    def check() -> None:
        phase(name, 0.0)

    frames = blocks * BLOCK_FRAMES
    if listener is not None:
        return encode_audio(listener, wave, frames, tail=tail, progress=progress, check=check)
    return codec.hear(wave, frames, tail, progress, check)


def look_at_picture(
    codec: Codec, request: Request, effective: Effective, picture: np.ndarray, phase: Phase, tiles: Tiles = WHOLE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of the picture [16, 1, h, w], and of it standing still for 73 frames [16, 19, h, w], on the CPU."""
    name = "encoding the picture"
    phase(name, 0.0)
    pixels = to_pixels(fit_picture(picture, effective.width, effective.height, request.fit))
    latents = codec.look(pixels, lambda: phase(name, 0.0), tiles)
    phase(name, 1.0)
    return latents
