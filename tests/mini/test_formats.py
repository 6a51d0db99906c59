"""What the trained miniature draws when its large matrices are kept in eight bits."""

import functools

import numpy as np
import pytest

from liveavatar.components import open_components
from liveavatar.mini.exam import Exam
from liveavatar.mini.judge import Studio
from liveavatar.storage import WeightFormat


@functools.cache
def video(weights: WeightFormat) -> np.ndarray:
    """Two blocks of a held-out person: float [24, 128, 128, 3]"""
    exam = Exam(Studio(open_components("mini"), 1, weights), 1)
    return exam.make(exam.example(0, 0.96)).astype(float)


@pytest.mark.usefixtures("speech")
@pytest.mark.parametrize(
    ("weights", "decibels"),
    [
        ("fp8", 43),
        # Products with one scale take most CPUs minutes.
        pytest.param("fp8-tensor", 42, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
        ("int8", 53),
    ],
)
def test_the_video_is_hardly_another_one(weights: WeightFormat, decibels: float) -> None:
    """Peak signal to noise of the worst frame against the plain weights; measured in longer videos of two people at
    46.0, 45.6 and 57.0 dB."""
    errors = ((video(weights) - video("plain")) ** 2).mean((1, 2, 3))
    worst = 10 * np.log10(255**2 / errors.max())
    print(f"{weights}: {worst:.1f} dB")
    assert decibels < worst < 80, "beyond 80 the format would not have been used"
