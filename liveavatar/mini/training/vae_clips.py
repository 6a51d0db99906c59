"""Pictures for the VAE: many people, each at rest and talking at random."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..world.appearance import MOODS, Appearance
from ..world.artist import Artist
from ..world.canvas import View
from ..world.face import MIDDLE, Geometry
from ..world.identity import Identity
from ..world.palette import BACKGROUNDS
from ..world.pose import Pose
from ..world.sample import track_of
from ..world.voices import utterance

if TYPE_CHECKING:
    from .recipe import Recipe

SIZE = 128
"""Pixels of the pictures, in height and width."""
TALKING = 27
"""Frames of a person after the first, which shows them at rest."""
_SEED = 0x7AE
_MOUTH = (60.0, 32.0, 64.0)
"""Drawing units from the middle of the lips to the sides, the top and the bottom of the mouth box."""


@dataclasses.dataclass(frozen=True)
class Clips:
    """Drawn people.

    Attributes:
        frames: uint8 [people, 1 + TALKING, SIZE, SIZE, 3]; the first frame shows them at rest.
        mouths: left, top, right, bottom of the mouth's box at rest, in pixels, int [people, 4].
    """

    frames: np.ndarray
    mouths: np.ndarray


@dataclasses.dataclass(frozen=True)
class Batch:
    """One training step's pictures.

    Attributes:
        pixels: [batch, 3, frames, height, width] in [-1, 1].
        weight: of every pixel, [batch, 1, 1, height, width]; 1 outside the mouth.
        still: bool [batch], where nothing moves.
        past: frames at the start that only fill the caches; 0, or 1 + 4 n.
    """

    pixels: torch.Tensor
    weight: torch.Tensor
    still: torch.Tensor
    past: int


def draw_clips(people: int, log: Callable[[str], None], held_out: bool = False, keep: Path | None = None) -> Clips:
    """Draw people of even seeds, or of odd ones for `held_out`.

    Args:
        keep: a file for the pictures, which are read from there the next time.
    """
    seeds = [2 * i + held_out for i in range(people)]
    mouths = np.array([mouth_box(Identity.of(s)) for s in seeds])
    shape = (people, 1 + TALKING, SIZE, SIZE, 3)
    if keep is not None and keep.is_file() and keep.stat().st_size == np.prod(shape):
        return Clips(np.memmap(keep, np.uint8, "r", shape=shape), mouths)
    frames = np.empty(shape, np.uint8)
    for i, seed in enumerate(seeds):
        frames[i] = _draw(seed)
        if i % 100 == 99:
            log(f"vae: drew {i + 1}/{people} people")
    if keep is not None:
        beside = keep.with_suffix(".tmp")
        frames.tofile(beside)
        beside.replace(keep)
    return Clips(frames, mouths)


def mouth_box(identity: Identity, height: int = SIZE, width: int = SIZE) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of where the mouth is at rest, in pixels."""
    side, up, down = _MOUTH
    y = Geometry.of(identity).mouth_y
    corners = View(height, width).to_pixels([(MIDDLE - side, y - up), (MIDDLE + side, y + down)])
    (left, top), (right, bottom) = corners.round().astype(int).tolist()
    return left, top, right, bottom


def batch_of(clips: Clips, step: int, recipe: Recipe, device: torch.device | str = "cpu") -> Batch:
    """The pictures of a training step; they follow from the recipe and the step alone.

    Single pictures at first, then two latents' frames after up to five that only fill the caches. A step sees a whole
    picture, or four times as many quarters.
    """
    rng = np.random.default_rng([_SEED, recipe.seed, step])
    single = step < recipe.vae_still_steps
    whole = rng.random() < recipe.vae_whole_share
    past = 0 if single else int(rng.choice([0, 0, 0, 1, 2, 4]))
    count = 1 if single else 1 + 4 * (past + 2)
    side = SIZE if whole else SIZE // 2
    pixels, weights, still = [], [], []
    for _ in range(1 if whole else 4):
        i = int(rng.integers(len(clips.frames)))
        stands = single or rng.random() < 0.2
        frames = clips.frames[i, _order(rng, count, stands)]
        weight = mouth_weight(clips.mouths[i])
        x, y = _corner(rng, clips.mouths[i], side)
        frames, weight = frames[:, y : y + side, x : x + side], weight[y : y + side, x : x + side]
        frames, weight = varied(rng, frames, weight)
        pixels.append(torch.from_numpy(np.ascontiguousarray(frames)))
        weights.append(torch.from_numpy(np.ascontiguousarray(weight)))
        still.append(stands)
    video = torch.stack(pixels).to(device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    weight_map = torch.stack(weights)[:, None, None].to(device)
    return Batch(video, weight_map, torch.tensor(still, device=device), 1 + 4 * past if past else 0)


def mouth_weight(mouth: np.ndarray) -> np.ndarray:
    """Weight of every pixel, float32 [SIZE, SIZE]: 4 in the mouth's box, 1 elsewhere."""
    weight = np.ones((SIZE, SIZE), np.float32)
    left, top, right, bottom = mouth
    weight[top:bottom, left:right] = 4.0
    return weight


def _order(rng: np.random.Generator, count: int, stands: bool) -> np.ndarray:
    """Which of a person's frames to show: one for all time, or the resting one for a while and then talk."""
    if stands:
        return np.full(count, rng.integers(1 + TALKING))
    talk = min(count - 1, TALKING, int(rng.integers(8, TALKING + 1)))
    start = int(rng.integers(1, TALKING - talk + 2))
    return np.concatenate([np.zeros(count - talk, np.int64), np.arange(start, start + talk)])


def _corner(rng: np.random.Generator, mouth: np.ndarray, side: int) -> tuple[int, int]:
    """Upper left corner of a crop, anywhere or with the mouth in it."""
    if side == SIZE:
        return 0, 0
    if rng.random() < 0.5:
        x, y = rng.integers(0, SIZE - side + 1, 2)
    else:
        x = rng.integers(max(0, mouth[2] - side), min(SIZE - side, mouth[0]) + 1)
        y = rng.integers(max(0, mouth[3] - side), min(SIZE - side, mouth[1]) + 1)
    return int(x), int(y)


def varied(rng: np.random.Generator, frames: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirrored in half of all cases; in a quarter with swapped colours or another contrast."""
    if rng.random() < 0.5:
        frames, weight = frames[:, :, ::-1], weight[:, ::-1]
    roll = rng.random()
    if roll < 0.15:
        frames = frames[..., rng.permutation(3)]
    elif roll < 0.25:
        gain, shift = rng.uniform(0.7, 1.2), rng.uniform(-25, 25)
        frames = np.clip(frames * gain + shift, 0, 255).astype(np.uint8)
    return frames, weight


def _draw(seed: int) -> np.ndarray:
    """One person's frames, uint8 [1 + TALKING, SIZE, SIZE, 3]."""
    rng = np.random.default_rng([_SEED, 1, seed])
    identity = Identity.of(seed)
    walls = list(BACKGROUNDS.values())
    wall = identity.background if rng.random() < 0.4 else walls[int(rng.integers(len(walls)))]
    appearance = Appearance(wall, list(MOODS)[int(rng.integers(len(MOODS)))])
    return Artist(identity, appearance, SIZE, SIZE).clip([Pose(), *_talk(rng, seed)])


def _talk(rng: np.random.Generator, seed: int) -> list[Pose]:
    """A moment of speech, or in a quarter of all cases livelier talk of nobody."""
    if rng.random() < 0.25:
        return _babble(rng)
    poses = track_of(utterance(seed // 2, 2.4, held_out=seed % 2 == 1), 60).poses()
    start = int(rng.integers(len(poses) - TALKING + 1))
    return poses[start : start + TALKING]


def _babble(rng: np.random.Generator) -> list[Pose]:
    """Random talk: the mouth at the pace of syllables, the head slower, perhaps a blink."""
    t = np.arange(TALKING) / 25

    def wave(low: float, high: float) -> np.ndarray:
        return np.sin(2 * np.pi * (rng.uniform(low, high) * t + rng.random())) * rng.uniform(0.4, 1)

    opening = np.clip(0.45 + 0.5 * wave(2, 5) + 0.35 * wave(4, 9) - rng.uniform(0, 0.4), 0, 1)
    if rng.random() < 0.1:
        opening[:] = 0
    width = np.clip(wave(1, 4) + 0.4 * wave(3, 7), -1, 1)
    blink = np.clip(1 - np.abs(t - rng.uniform(0, 2)) / 0.12, 0, 1)
    dx, dy, tilt = 2.5 * wave(0.2, 1.2), 2.0 * wave(0.2, 1.5), 3.0 * wave(0.2, 1)
    return [Pose(*map(float, values)) for values in zip(opening, width, blink, dx, dy, tilt, strict=True)]
