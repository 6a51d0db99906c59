"""The small sound encoder: what it learns from, and that it learns on what the network will be given."""

import types

import numpy as np
import pytest
import torch

from liveavatar.components import FolderComponents
from liveavatar.encoders.audio import encode_audio
from liveavatar.errors import MissingFilesError
from liveavatar.mini.training import sound
from liveavatar.mini.training.audio_examples import MOVEMENTS, audio_example, nothing_but_noise
from liveavatar.mini.training.movement_encoder import MovementEncoder, samples_for
from liveavatar.mini.training.recipe import Recipe
from liveavatar.mini.training.spoken import spoken_sentences
from liveavatar.weights.folder import AUDIO_FOLDER

RECIPE = Recipe(audio_dim=16, audio_layers=3, sound_steps=2)


@pytest.fixture(scope="module")
def stock():
    """Half-second vowels of a buzzing tone, as int16."""
    t = np.arange(8000) / 16_000
    buzz = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 20)) * np.hanning(8000)
    return [np.round(buzz * scale).astype(np.int16) for scale in (3000, 6000, 9000)]


@pytest.fixture
def work(tmp_path, stock):
    lengths = [len(s) for s in stock]
    np.savez(tmp_path / sound.SENTENCES, samples=np.concatenate(stock), lengths=lengths, training=2)
    return tmp_path


@pytest.fixture
def sentences(work):
    return spoken_sentences(work / sound.SENTENCES, 0, lambda line: None)


def test_a_kept_stock_is_read_and_even(sentences):
    assert (len(sentences.training), len(sentences.held_out)) == (2, 1)
    levels = [float(np.sqrt(np.mean(s**2))) for s in (*sentences.training, *sentences.held_out)]
    assert np.allclose(levels, 0.08, rtol=0.01)


def test_sounds_have_a_movement_for_every_frame(sentences):
    made = [audio_example(np.random.default_rng(i), sentences.training, 48, samples_for(48)) for i in range(12)]
    assert all(h.wave.shape == (samples_for(48),) and h.movements.shape == (48, len(MOVEMENTS)) for h in made)
    assert max(h.movements[:, 0].max() for h in made) > 0.3
    loud = max(made, key=lambda h: float(h.wave.std())).normalised()
    assert abs(loud.mean()) < 1e-3 and abs(loud.std() - 1) < 1e-2


def test_noise_alone_moves_nothing(sentences):
    silence = [np.zeros(8000, np.float32)]
    made = [audio_example(np.random.default_rng(i), silence, 24, samples_for(24)) for i in range(8)]
    assert any(np.abs(h.wave).max() > 0 for h in made)
    assert all(np.abs(h.movements).max() < 1e-6 for h in made)


def test_it_learns_on_the_features_the_network_gets():
    """Training reads rows in one pass with gradients; they are those of `encode_audio`, in mix and in time."""
    torch.manual_seed(0)
    encoder = MovementEncoder(RECIPE, len(MOVEMENTS)).eval()
    frames = 60
    wave = nothing_but_noise(np.random.default_rng(3), samples_for(frames))
    normal = torch.from_numpy((wave - wave.mean()) / wave.std())[None].float()
    read, rows = encoder(normal, frames)
    assert torch.allclose(read[0], torch.from_numpy(sound.predict_movements(encoder, wave, frames)), atol=1e-3)
    assert rows.shape == (1, frames, RECIPE.audio_dim)
    assert read.requires_grad


def test_training_ends_in_a_folder_that_can_be_opened(work, tmp_path, monkeypatch):
    monkeypatch.setattr(sound, "_FRAMES", (24,))
    monkeypatch.setattr(sound, "_BATCH", 2)
    monkeypatch.setattr(sound, "_JUDGED", 2)
    lines = []
    sound.train_sound(RECIPE, work, None, lines.append)
    assert "opening" in lines[-1]
    assert sound.export_sound(RECIPE, work, tmp_path / "model") < 200_000
    files = types.SimpleNamespace(audio_encoder=tmp_path / "model" / AUDIO_FOLDER)
    model = FolderComponents.audio_encoder(types.SimpleNamespace(files=files), "cpu", torch.float32)
    wave = nothing_but_noise(np.random.default_rng(3), samples_for(12))
    got = encode_audio(model, wave, 12).block(0)
    expected = encode_audio(sound.trained_movement_encoder(RECIPE, work).encoder, wave, 12).block(0)
    assert got.shape == (1, RECIPE.audio_layers, RECIPE.audio_dim, 12)
    assert torch.allclose(got, expected, atol=0.1)


def test_nothing_trained_is_said(tmp_path):
    with pytest.raises(MissingFilesError, match="sound"):
        sound.export_sound(RECIPE, tmp_path, tmp_path)
