"""Training videos, encoded once: what the network sees, hears and should say."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...config import BLOCK_FRAMES, MOTION_LATENTS, VAE_WARMUP_LATENTS
from ...encoders.audio import encode_audio
from ...encoders.text import encode_text
from ...media.image import to_pixels
from ...vae.wan import encode
from .recipe import Recipe
from .rollout import Scene

_STILL_FRAMES = 4 * (VAE_WARMUP_LATENTS - 1) + 1
"""Frames of the reference before a video, as many as the decoder's warm-up."""
_KEPT_IN_MEMORY = 512


class SceneFolder:
    """Encoded scenes, numbered from 0, one file each, in float16."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, index: int) -> Path:
        """File of a scene."""
        return self.folder / f"{index:05d}.safetensors"

    def count(self) -> int:
        """How many there are, without a gap, from 0 on."""
        index = 0
        while self.path(index).exists():
            index += 1
        return index

    def write(self, index: int, scene: Scene) -> None:
        """Whole or not at all."""
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.path(index).with_suffix(".tmp")
        parts = {name: value.half().contiguous() for name, value in vars(scene).items() if value is not None}
        save_file(parts, beside)
        beside.replace(self.path(index))

    def read(self, index: int, device: torch.device) -> Scene:
        """A scene in float32."""
        return Scene(**{name: value.to(device).float() for name, value in self._load(index).items()})

    @functools.lru_cache(maxsize=_KEPT_IN_MEMORY)  # noqa: B019 (one folder per training)
    def _load(self, index: int) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(self.path(index))


def encode_scene(
    vae: Any,
    encoder: Any,
    reader: tuple[Any, Any],
    picture: np.ndarray,
    frames: np.ndarray,
    wave: np.ndarray,
    words: str,
) -> Scene:
    """Encode one video as inference would have its parts.

    Args:
        vae, encoder: the trained VAE and sound encoder.
        reader: the trained text encoder and its tokenizer.
        picture: the reference, uint8 [H, W, 3].
        frames: the video, uint8 [12 blocks, H, W, 3].
        wave: its sound, 16 kHz.
        words: the prompt.
    """
    blocks = len(frames) // BLOCK_FRAMES
    still = to_pixels(picture)
    video = torch.cat([to_pixels(f) for f in frames], 2)
    with torch.inference_mode():
        whole = encode(vae, torch.cat((still.expand(-1, -1, _STILL_FRAMES, -1, -1), video), 2))[0]
        context = encode_text(*reader, words)
        features = hear(encoder, wave, blocks)
    # A still picture's latents no longer change after the first few, so the rest of the 19 need no encoding.
    begun, latents = whole[:, :VAE_WARMUP_LATENTS], whole[:, VAE_WARMUP_LATENTS:]
    motion = torch.cat((begun, begun[:, -1:].expand(-1, MOTION_LATENTS - VAE_WARMUP_LATENTS, -1, -1)), 1)
    return Scene(begun[:, :1], motion, latents, context.float(), features)


def hear(encoder: Any, wave: np.ndarray, blocks: int) -> torch.Tensor:
    """Features of every frame of so many blocks: [12 blocks, layers, channels]."""
    with torch.inference_mode():
        audio = encode_audio(encoder, wave, blocks * BLOCK_FRAMES)
    features = torch.cat([audio.block(b)[0] for b in range(blocks)], 2).permute(2, 0, 1)
    audio.close()
    return features


def make_scenes(
    recipe: Recipe,
    work: Path,
    parts: tuple[Any, Any, tuple[Any, Any]],
    first: int,
    stride: int,
    log: Callable[[str], None],
) -> None:
    """Encode the scenes `first`, `first + stride`, ... that are missing; several processes may share the work."""
    from ..world.sample import sample

    seconds = recipe.scene_blocks * BLOCK_FRAMES / 25

    def encoded(index: int) -> Scene:
        example = sample(recipe.seed * 100_000 + index, seconds, height=recipe.size, width=recipe.size)
        frames = example.drawn[: recipe.scene_blocks * BLOCK_FRAMES]
        return encode_scene(*parts, example.reference, frames, example.sound.samples, example.prompt.text)

    write_missing(SceneFolder(work / "scenes"), range(first, recipe.scenes, stride), encoded, log)


def write_missing(
    folder: SceneFolder, indices: range, encoded: Callable[[int], Scene], log: Callable[[str], None]
) -> None:
    """Encode and write the scenes of these numbers that are not in a folder."""
    for index in indices:
        if not folder.path(index).exists():
            folder.write(index, encoded(index))
            if index % 20 == 0:
                log(f"scenes: {index} of {indices.stop}")
