"""Training the tiny decoder: to draw, from latents of the trained VAE, the people that were encoded.

Its teacher is the VAE's encoder alone. The aim is the drawn picture itself, not what the VAE's own decoder makes of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ...config import FRAMES_PER_LATENT, SPATIAL_STRIDE, TinyConfig
from ...errors import MissingFilesError
from ...vae.tiny import LATENT_CHANNELS, TinyDecoder
from ...vae.wan import encode
from .loop import follow_average, load_checkpoint, train_steps
from .vae import picture_loss
from .vae_clips import SIZE, TALKING, Clips, draw_clips, mouth_weight, varied

if TYPE_CHECKING:
    from ...vae.autoencoder import AutoencoderKLWan
    from .recipe import Recipe

CHECKPOINT, PICTURES, LATENTS = "tiny_vae.pt", "vae_pictures.u8", "tiny_vae_latents.f16"
"""Names in the folder of the work."""
_STILL = 2
"""Frames at rest before a person talks; with the talk they are 1 + 4n."""
_LEARNED = 2
"""Latent frames of a video that a step learns from."""
_BLIND = 8
"""Pixels at the cut edges of a part of a picture from which nothing is learned: they lack what lies around them."""
_SEED = 0x714


class TinyTrainee(nn.Module):
    """The tiny decoder in training and its averaged weights."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.decoder, self.average = (TinyDecoder(TinyConfig(recipe.tiny_widths)) for _ in range(2))
        self.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average.load_state_dict(self.decoder.state_dict())
        self.average.requires_grad_(False)


@dataclasses.dataclass(frozen=True)
class Example:
    """What a step learns from one person.

    Attributes:
        past: latents [n, 16, h, w], one to three, that only fill the memory.
        latents: those that follow, [2, 16, h, w].
        pixels: the frames they hold, [1, 3, 8, height, width] in [-1, 1].
        weight: of every pixel, [1, 1, 1, height, width].
    """

    past: torch.Tensor
    latents: torch.Tensor
    pixels: torch.Tensor
    weight: torch.Tensor


class EncodedClips:
    """Drawn people and their latents.

    Args:
        clips: the people, perhaps more than were encoded.
        latents: float16 [people, n, 16, h, w], of what `video_of` shows.
        seed: of the variations.
    """

    def __init__(self, clips: Clips, latents: np.ndarray, seed: int):
        self.clips, self.latents, self.seed = clips, latents, seed

    def examples(self, step: int, recipe: Recipe) -> list[Example]:
        """What a step learns from; it follows from the recipe and the step alone.

        One whole picture, or four quarters of four.
        """
        rng = np.random.default_rng([_SEED, recipe.seed, step])
        if rng.random() < recipe.vae_whole_share:
            return [self._example(rng, SIZE, recipe.vae_noise)]
        return [self._example(rng, SIZE // 2, recipe.vae_noise) for _ in range(4)]

    def _example(self, rng: np.random.Generator, side: int, noise: float) -> Example:
        """Part of somebody's video; latents a little wrong, as a small network guesses them."""
        person, past = int(rng.integers(len(self.latents))), int(rng.choice([1, 1, 1, 2, 3]))
        first = int(rng.integers(self.latents.shape[1] - past - _LEARNED + 1))
        frames, weight = video_of(self.clips, person, self.seed)
        x, y = (SPATIAL_STRIDE * int(n) for n in rng.integers(0, (SIZE - side) // SPATIAL_STRIDE + 1, 2))
        rows, columns = slice(y, y + side), slice(x, x + side)
        start = FRAMES_PER_LATENT * (first + past - 1) + 1
        shown = frames[start : start + FRAMES_PER_LATENT * _LEARNED, rows, columns]
        here = self.latents[person, first : first + past + _LEARNED]
        here = here[:, :, y // SPATIAL_STRIDE :, x // SPATIAL_STRIDE :]
        here = here[:, :, : side // SPATIAL_STRIDE, : side // SPATIAL_STRIDE].astype(np.float32)
        here += rng.standard_normal(here.shape, np.float32) * np.float32(rng.random() * noise)
        chosen = torch.from_numpy(here).contiguous(memory_format=torch.channels_last)
        seen = torch.from_numpy((weight * inside(y, x, side))[rows, columns])[None, None, None]
        return Example(chosen[:past], chosen[past:], _pixels(shown), seen)


def inside(top: int, left: int, side: int) -> np.ndarray:
    """1 where a part of a picture shows enough around a pixel, float32 [SIZE, SIZE]; 0 near its edges that are none of
    the picture's own."""
    seen = np.zeros((SIZE, SIZE), np.float32)
    start = [edge + _BLIND if edge else 0 for edge in (top, left)]
    stop = [edge + side - (_BLIND if edge + side < SIZE else 0) for edge in (top, left)]
    seen[start[0] : stop[0], start[1] : stop[1]] = 1.0
    return seen


def video_of(clips: Clips, person: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A person at rest and then talking, perhaps mirrored or in other colours: frames uint8 [1 + 4n, H, W, 3], and the
    weight of every pixel [H, W]."""
    order = np.concatenate([np.zeros(_STILL, np.int64), np.arange(1, TALKING + 1)])
    rng = np.random.default_rng([_SEED, seed, 1, person])
    return varied(rng, clips.frames[person, order], mouth_weight(clips.mouths[person]))


def encode_clips(
    vae: AutoencoderKLWan, clips: Clips, recipe: Recipe, keep: Path, log: Callable[[str], None]
) -> EncodedClips:
    """Latents of the first `recipe.tiny_people`; those that the file `keep` has already are not encoded again."""
    side = SIZE // SPATIAL_STRIDE
    shape = ((_STILL + TALKING - 1) // FRAMES_PER_LATENT + 1, LATENT_CHANNELS, side, side)
    each = 2 * int(np.prod(shape))
    known = keep.stat().st_size // each if keep.is_file() else 0
    with keep.open("r+b" if known else "wb") as file:
        file.truncate(known * each)
        file.seek(known * each)
        for person in range(known, recipe.tiny_people):
            with torch.inference_mode():
                encoded = encode(vae, _pixels(video_of(clips, person, recipe.seed)[0]))[0]
            file.write(encoded.transpose(0, 1).half().contiguous().numpy().tobytes())
            if person % 40 == 39:
                log(f"tiny_vae: encoded {person + 1}/{recipe.tiny_people} people")
    latents = np.memmap(keep, np.float16, "r", shape=(recipe.tiny_people, *shape))
    return EncodedClips(clips, latents, recipe.seed)


def train_tiny(
    recipe: Recipe, work: Path, vae: AutoencoderKLWan, minutes: float | None, log: Callable[[str], None]
) -> bool:
    """Train, or go on training, until `recipe.tiny_steps` are done or the time is up.

    Args:
        work: where the checkpoint, the drawn pictures and their latents lie.
        vae: makes the latents.
        minutes: of training, without drawing and encoding; None for no limit.
        log: called with a line about every 15 s.

    Returns:
        Whether all steps are done.
    """
    clips = draw_clips(recipe.vae_people, log, keep=work / PICTURES)
    encoded = encode_clips(vae, clips, recipe, work / LATENTS, log)
    trainee = TinyTrainee(recipe)

    def loss_of(step: int) -> torch.Tensor:
        follow_average(trainee.average, trainee.decoder, step)
        examples = encoded.examples(step, recipe)
        return torch.stack([tiny_loss(trainee.decoder, example) for example in examples]).mean()

    steps, rate = recipe.tiny_steps, recipe.tiny_rate
    return train_steps(work / CHECKPOINT, trainee, loss_of, steps=steps, rate=rate, minutes=minutes, log=log)


def tiny_loss(decoder: TinyDecoder, example: Example) -> torch.Tensor:
    """Difference of pictures, of their edges and of their mean colours; the past gets no gradient."""
    features = decoder.empty_features()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            decoder(example.past, features)
        frames = decoder(example.latents, features)
    pictures = frames.float().transpose(0, 1)[None] * 2 - 1
    return picture_loss(pictures, example.pixels, example.weight)


def load_tiny(recipe: Recipe, work: Path) -> TinyDecoder:
    """The averaged weights of the checkpoint.

    Raises:
        MissingFilesError: the tiny decoder has not been trained there.
    """
    state = load_checkpoint(work / CHECKPOINT)
    if state is None:
        raise MissingFilesError(f"There is no trained tiny decoder in {work}.", "Run the stage 'tiny_vae' first.")
    decoder = TinyDecoder(TinyConfig(recipe.tiny_widths)).eval().requires_grad_(False)
    decoder.load_state_dict({k.removeprefix("average."): v for k, v in state.items() if k.startswith("average.")})
    return decoder


def write_tiny(folder: Path, decoder: TinyDecoder) -> int:
    """Write the decoder in bfloat16 beside the rest of a model; returns its bytes."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.to(torch.bfloat16).contiguous() for name, value in decoder.state_dict().items()}
    path = folder / "taew2_1.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    return path.stat().st_size


def _pixels(frames: np.ndarray) -> torch.Tensor:
    """uint8 [n, H, W, 3] as [1, 3, n, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
