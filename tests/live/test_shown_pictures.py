"""What `page_figures.py` finds out: delays that were put in come out again."""

from __future__ import annotations

import numpy as np
import pytest
from live.shown_pictures import Microphone, best_lag, delays, places, shut_after

RATE, DELAY = 16_000, 0.93
FRAMES = 300


@pytest.fixture(scope="module")
def talk() -> dict[str, np.ndarray]:
    """A recording whose pictures and sound have nothing twice; its sound was at the microphone from second 2 on."""
    rng = np.random.default_rng(0)
    sound = rng.normal(0, 0.1, FRAMES * RATE // 25).astype(np.float32)
    pictures = rng.integers(0, 255, (FRAMES, 16, 16, 3), np.uint8)
    return {"sound": sound, "pictures": pictures}


def heard(sound: np.ndarray) -> Microphone:
    """Pieces of 10 ms that begin at second 2 and arrive up to 30 ms late, behind a second of something else."""
    rng = np.random.default_rng(1)
    whole = np.concatenate((rng.normal(0, 0.1, RATE).astype(np.float32), sound))
    firsts = np.arange(0, len(whole), 160)
    late = rng.uniform(0, 0.03, len(firsts))
    late[::7] = 0
    return Microphone.of(whole, RATE, np.stack([firsts + 5_000, 1 + firsts / RATE + late], 1))


def test_delays_come_out_as_they_were_put_in(talk: dict[str, np.ndarray]) -> None:
    microphone = heard(talk["sound"])
    assert microphone.begun == pytest.approx(1.0)
    order = [place for place in range(48, FRAMES) if place % 9]  # some were never shown
    times = 2 + np.array(order) / 25 + DELAY
    shown = talk["pictures"][order] // 2 + 40  # brightness is another one
    found = places(shown, times, talk["pictures"] // 2 + 41)
    assert list(found) == order
    late, when = delays(microphone, times, found, talk["sound"])
    assert late == pytest.approx(DELAY, abs=1e-3)
    assert len(late) == len(order) and list(when) == list(times)


def test_a_picture_that_is_taken_for_another_does_not_count(talk: dict[str, np.ndarray]) -> None:
    order = np.arange(48, FRAMES)
    times, found = 2 + order / 25 + DELAY, order.copy()
    found[100] = 50
    late, _ = delays(heard(talk["sound"]), times, found, talk["sound"])
    assert late == pytest.approx(DELAY, abs=1e-3)


def test_silence_is_not_measured(talk: dict[str, np.ndarray]) -> None:
    sound = talk["sound"].copy()
    sound[7_680 * 5 :] = 0
    order = np.arange(FRAMES)
    late, _ = delays(heard(sound), 2 + order / 25 + DELAY, order, sound)
    assert len(late) == 60


def test_mouth_and_loudness_fit_best_at_their_delay() -> None:
    loud = np.repeat(np.random.default_rng(2).uniform(0, 1, 100), RATE // 10)
    sound = (0.1 * loud * np.sin(np.arange(len(loud)))).astype(np.float32)
    microphone = Microphone(sound, 5.0)
    times = 5.5 + np.arange(200) / 25
    openings = np.array([loud[int((time + 0.02 - 5.5 + 0.1) * RATE)] for time in times])
    lag, fit = best_lag(times, openings, microphone)
    assert lag == pytest.approx(0.4, abs=0.03)
    assert fit > 0.9


def test_the_mouth_is_shut_behind_the_last_picture_that_shows_it_open() -> None:
    times = np.arange(100) / 25
    openings = np.zeros(100)
    openings[20:40] = 0.6
    openings[90] = 0.9  # something else that is said later
    assert shut_after(1.0, times, openings, 2.0, 0.2) == pytest.approx(0.6)
    assert shut_after(2.5, times, openings, 1.0, 0.2) == 0.0
