"""Training of the small audio encoder: a wav2vec2 that learns what a talking face needs of the sound."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...config import BLOCK_FRAMES
from ...encoders.audio import encode_audio
from ...errors import MissingFilesError
from ...weights.folder import AUDIO_FOLDER
from .audio_examples import MOVEMENTS, AudioExample, audio_example, nothing_but_noise
from .loop import load_checkpoint, train_steps
from .movement_encoder import MovementEncoder, samples_for, wav2vec2_settings
from .parts import write_part
from .spoken import spoken_sentences

if TYPE_CHECKING:
    from .recipe import Recipe

CHECKPOINT, SENTENCES = "sound.pt", "sound_sentences.npz"
"""Names in the folder of the work."""
_BATCH, _JUDGED = 8, 24
"""Sounds of a step, and those it is judged by at the end."""
_FRAMES = (60, 96, 144)
"""Video frames of a training sound; the sound of a batch lasts equally long."""
_WEIGHTS = torch.tensor([2.0, 1.0, 0.5, 1.0, 0.5])
"""Of the movements in the loss; the mouth counts most."""
_UNIT_WEIGHT = 0.02
"""Of the features' distance from mean 0 and deviation 1, so that the network gets numbers of a good size."""


@dataclasses.dataclass(frozen=True)
class MovementScores:
    """How well movements are read off the features, in voices that were not learned from.

    Attributes:
        correlations: with the true movement, by name.
        opening_error: mean distance of the opening, 0 to 1.
        silent: mean opening read where the mouth is shut for at least 5 frames.
        noise: mean opening read in noise without speech.
    """

    correlations: dict[str, float]
    opening_error: float
    silent: float
    noise: float


def train_sound(recipe: Recipe, work: Path, minutes: float | None, log: Callable[[str], None]) -> None:
    """Train the encoder, or go on with it.

    Args:
        work: folder of checkpoints; `sound.pt` and `sound_sentences.npz` are this part's.
        minutes: ends early after so many; another call goes on.
        log: called with lines about the progress and, at the end, how well it hears.
    """
    sentences = spoken_sentences(work / SENTENCES, recipe.seed, log)
    torch.manual_seed(recipe.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = MovementEncoder(recipe, len(MOVEMENTS)).to(device)

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        frames = int(rng.choice(_FRAMES))
        sounds = [audio_example(rng, sentences.training, frames, samples_for(frames)) for _ in range(_BATCH)]
        return _loss(encoder, sounds, frames, device)

    done = train_steps(
        work / CHECKPOINT,
        encoder,
        loss_of,
        steps=recipe.sound_steps,
        rate=recipe.sound_rate,
        minutes=minutes,
        log=log,
    )
    if done:
        log(f"sound: {measure(encoder.cpu().eval(), sentences.held_out, recipe.seed)}")


def export_sound(recipe: Recipe, work: Path, folder: Path) -> int:
    """Write the encoder into a model folder, under its official name.

    Returns:
        Bytes of the weights.

    Raises:
        MissingFilesError: nothing was trained yet.
    """
    settings = {"model_type": "wav2vec2", **wav2vec2_settings(recipe)}
    return write_part(folder / AUDIO_FOLDER, trained_movement_encoder(recipe, work).encoder, settings, "Wav2Vec2Model")


def trained_movement_encoder(recipe: Recipe, work: Path) -> MovementEncoder:
    """The encoder of a checkpoint, on the CPU in evaluation mode.

    Raises:
        MissingFilesError: nothing was trained yet.
    """
    weights = load_checkpoint(work / CHECKPOINT)
    if weights is None:
        raise MissingFilesError(f"{work} holds no trained sound encoder.", "Run the stage sound first.")
    encoder = MovementEncoder(recipe, len(MOVEMENTS))
    encoder.load_state_dict(weights)
    return encoder.eval()


def measure(encoder: MovementEncoder, sentences: Sequence[np.ndarray], seed: int) -> MovementScores:
    """Listen to sounds made of sentences, the way a request's sound is encoded."""
    rng = np.random.default_rng([seed, 1 << 31])
    frames = 16 * BLOCK_FRAMES
    examples = [audio_example(rng, sentences, frames, samples_for(frames)) for _ in range(_JUDGED)]
    read = np.concatenate([predict_movements(encoder, h.wave, frames) for h in examples])
    true = np.concatenate([h.movements for h in examples])
    noise = [predict_movements(encoder, nothing_but_noise(rng, samples_for(frames)), frames) for _ in range(4)]
    shut = np.convolve(true[:, 0] > 0, np.ones(5), mode="same") == 0
    pairs = zip(MOVEMENTS, read.T, true.T, strict=True)
    return MovementScores(
        correlations={name: round(float(np.corrcoef(a, b)[0, 1]), 4) for name, a, b in pairs},
        opening_error=round(float(np.abs(read - true)[:, 0].mean()), 4),
        silent=round(float(read[shut, 0].mean()), 4),
        noise=round(float(np.concatenate(noise)[:, 0].mean()), 4),
    )


def predict_movements(encoder: MovementEncoder, wave: np.ndarray, frames: int) -> np.ndarray:
    """Movements [frames, movements] read off the features the network would get for a 16 kHz sound."""
    features = encode_audio(encoder.encoder, wave, frames)
    states = torch.cat([features.block(b)[0] for b in range(features.blocks)], -1)
    features.close()
    with torch.inference_mode():
        return encoder.read(states.permute(0, 2, 1)[:, None])[0][0].numpy()


def _loss(encoder: MovementEncoder, sounds: Sequence[AudioExample], frames: int, device: str) -> torch.Tensor:
    """Squared distance of all movements, in units of their usual spread, and of the features' size from 1."""
    waves = torch.from_numpy(np.stack([s.normalised() for s in sounds])).to(device)
    true = torch.from_numpy(np.stack([s.movements for s in sounds])).to(device)
    read, rows = encoder(waves, frames)
    spread = torch.tensor(list(MOVEMENTS.values()), device=device)
    distance = (((read - true) / spread).square() * _WEIGHTS.to(device)).mean()
    flat = rows.flatten(0, 1)
    return distance + _UNIT_WEIGHT * (flat.mean(0).square().mean() + (flat.std(0) - 1).square().mean())
