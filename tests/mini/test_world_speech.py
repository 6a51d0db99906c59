"""From sound to mouth and motion: silent when nothing is said, local in time, and nothing hidden."""

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from liveavatar.errors import AudioError, MissingFilesError
from liveavatar.mini.world import sounds, voices
from liveavatar.mini.world.motion import MEMORY, blinks, track
from liveavatar.mini.world.sample import sample, track_of
from liveavatar.mini.world.speech import Mouth, level, mouth

RATE = 16_000


def vowel(formants: tuple[float, ...], seconds: float = 1.0, pitch: float = 120) -> np.ndarray:
    """A buzz with resonances, as a throat makes it."""
    time = np.arange(round(seconds * RATE)) / RATE
    wave = np.zeros(len(time))
    for k in range(1, 40):
        gain = sum(1 / (1 + ((k * pitch - f) / 90) ** 2) for f in formants)
        wave += gain * np.sin(2 * np.pi * k * pitch * time)
    return (0.1 * wave / np.sqrt(np.mean(wave**2))).astype(np.float32)


def test_silence_and_hiss_keep_the_mouth_shut():
    hiss = 1e-3 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    for wave in (np.zeros(RATE, np.float32), hiss):
        assert mouth(wave).opening.max() == 0
    assert len(mouth(np.zeros(0, np.float32)).opening) == 0
    assert mouth(hiss, frames=40).opening.shape == (40,)


def test_open_vowels_open_and_front_vowels_spread():
    ah, ee, oo, mm = (vowel(f) for f in ((750, 1200, 2500), (290, 2300, 3000), (310, 700), (240,)))
    shapes = [mouth(v, reference=0.1) for v in (ah, ee, oo, mm)]
    opening = [s.opening[5:-5].mean() for s in shapes]
    assert opening[0] > 2 * opening[1] and opening[0] > opening[2] > opening[3] and opening[3] < 0.1
    assert shapes[1].width[5:-5].mean() > 0.5 and shapes[2].width[5:-5].mean() < -0.5


def test_loudness_of_the_whole_sound_does_not_matter():
    wave = np.concatenate([vowel((600, 1100)), np.zeros(RATE, np.float32)])
    np.testing.assert_allclose(mouth(wave).opening, mouth(4 * wave).opening, atol=1e-5)


def test_a_frame_hears_its_own_moment_only():
    wave = np.zeros(3 * RATE, np.float32)
    wave[RATE : RATE + 800] = vowel((700, 1200), 0.05)
    audible = np.flatnonzero(mouth(wave, reference=0.1).opening)
    assert audible.min() >= 24 and audible.max() <= 28


def test_unusable_samples_are_refused():
    for wave in (np.zeros((2, 100), np.float32), np.zeros(100, np.int16), np.full(100, np.nan)):
        with pytest.raises(AudioError):
            mouth(wave)


def test_the_head_follows_the_last_frames_only_and_moves_little():
    rng = np.random.default_rng(1)
    opening, width = rng.random(400).astype(np.float32), rng.uniform(-1, 1, 400).astype(np.float32)
    whole, late = track(Mouth(opening, width)), track(Mouth(opening[100:], width[100:]))
    for name in ("dx", "dy", "tilt"):
        np.testing.assert_allclose(getattr(whole, name)[100 + MEMORY :], getattr(late, name)[MEMORY:], atol=1e-5)
        assert np.abs(getattr(whole, name)).max() < 3


def test_eyes_blink_once_when_a_pause_begins():
    opening = np.r_[np.full(20, 0.5), np.zeros(60), np.full(20, 0.5), np.zeros(3), np.full(20, 0.5)].astype(np.float32)
    closed = blinks(opening) > 0
    assert np.flatnonzero(closed).tolist() == [24, 25, 26, 27, 28]
    assert not blinks(np.zeros(100, np.float32)).any()


def test_resampling_keeps_a_tone():
    for rate in (22_050, 48_000, 8_000):
        tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
        out = sounds.resampled(tone, rate)
        assert len(out) == RATE
        np.testing.assert_allclose(out, np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE), atol=1e-3)


def install_program(folder: Path, *options: str) -> Path:
    """A program espeak-ng in a folder, whose help lists these options."""
    program = folder / "espeak-ng"
    folder.mkdir()
    program.write_text("#!/bin/sh\nprintf '%s\\n' Usage: " + " ".join(f"'{line}'" for line in options) + "\n")
    program.chmod(0o755)
    return program


def test_without_espeak_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(MissingFilesError, match=r"apt-get install espeak-ng.*package espeakng-loader"):
        voices.speak("hello")


def test_a_program_that_seeds_its_noise_by_the_clock_is_told_not_to(monkeypatch, tmp_path):
    older = install_program(tmp_path / "1.51", "-z  No final pause")
    newer = install_program(tmp_path / "1.52", "-z  No final pause", "-D  Enable deterministic random mode")
    for program, options in ((older, []), (newer, ["-D"])):
        monkeypatch.setenv("PATH", str(program.parent))
        assert voices.espeak_command() == [str(program), "--stdout", *options]


@pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="espeakng-loader is not installed")
def test_the_library_speaks_alike_whatever_was_said_before_and_when(monkeypatch):
    monkeypatch.setenv("PATH", "")
    first = voices.speak("hello, my friends", "en-us+f3")
    time.sleep(1)  # a voice with breath has noise, which the engine alone seeds by the second
    other = voices.speak("grün und blau", "de+klatt2", speed=120, pitch=20)
    assert np.array_equal(voices.speak("hello, my friends", "en-us+f3"), first)
    assert 0.5 * RATE < len(first) < 3 * RATE and np.abs(first).max() > 0.1
    assert len(other) != len(first)


@pytest.mark.usefixtures("speech")
def test_an_unknown_voice_is_named():
    with pytest.raises(MissingFilesError, match="klingon-42"):
        voices.speak("hello", "klingon-42")


@pytest.mark.usefixtures("speech")
def test_training_and_judging_share_no_voice_and_no_language():
    def used(held_out: bool) -> set[str]:
        said = (voices.utterance(seed, 1.0, held_out).description.split(" ")[0] for seed in range(25))
        return {part for voice in said if "+" in voice for part in voice.split("+")}

    assert not used(True) & used(False)


@pytest.mark.usefixtures("speech")
def test_an_utterance_is_reproducible_and_its_speech_moves_the_mouth():
    a, b = voices.utterance(2), voices.utterance(2)
    assert np.array_equal(a.samples, b.samples) and 4 <= a.seconds <= 10
    assert a.samples.dtype == np.float32 and np.abs(a.samples).max() <= 1
    open_share = (track_of(a).opening > 0.1).mean()
    assert 0.2 < open_share < 0.95 and level(a.samples) > 0.01


@pytest.mark.usefixtures("speech")
def test_a_sample_holds_everything_for_the_same_moment():
    s = sample(5, 1.0, held_out=True)
    assert s.frames is not None and len(s.frames) == len(s.track) == 25
    assert s.reference.shape == s.frames.shape[1:] and len(s.sound.samples) == RATE
    assert s.identity.seed % 2 == 1
    assert sample(5, 1.0, held_out=True, draw=False).frames is None
