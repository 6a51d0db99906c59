"""What the judge counts: lips, distances, hits, and whether a figure meets its target. Arrays in, numbers out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MOST_LAG = 5
"""Frames by which lips are searched to be early or late."""

Pairs = Sequence[tuple[str, str]]
"""What was asked and what was seen, one pair per try."""


@dataclasses.dataclass(frozen=True)
class Lips:
    """How the mouth follows the sound.

    Attributes:
        correlation: of the opening in the pixels with the true one, over all frames of all people, at lag 0.
        lag: frames by which shifting the video correlates best; positive when the picture is late. None: nothing moves.
    """

    correlation: float
    lag: int | None


def lips(seen: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> Lips:
    """Compare mouth openings, one pair of equally long arrays [n] per video; all videos count as one."""

    def at(lag: int) -> float:
        pairs = [
            (s[max(0, lag) :][: len(t) - abs(lag)], t[max(0, -lag) :][: len(t) - abs(lag)])
            for s, t in zip(seen, true, strict=True)
        ]
        a, b = (np.concatenate(x) for x in zip(*pairs, strict=True))
        return float(np.corrcoef(a, b)[0, 1]) if min(a.std(), b.std()) > 1e-6 else 0.0

    lags = {lag: at(lag) for lag in range(-MOST_LAG, MOST_LAG + 1)}
    return Lips(round(lags[0], 4), max(lags, key=lambda k: lags[k]) if any(lags.values()) else None)


def distance(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute difference of pictures uint8 [..., H, W, 3] where `mask` [H, W] is set, 0..255.

    One of both may be a single picture that is compared with all of the other.
    """
    return float(np.abs(a[..., mask, :].astype(np.float32) - b[..., mask, :].astype(np.float32)).mean())


def hits(pairs: Pairs) -> float:
    """Share of tries that show what was asked."""
    return round(sum(asked == seen for asked, seen in pairs) / len(pairs), 3)


def table(pairs: Pairs) -> dict[str, dict[str, int]]:
    """For every word that was asked, how often each word was seen; both in the order of the alphabet."""
    words = sorted({asked for asked, _ in pairs})
    return {word: dict(sorted(Counter(seen for asked, seen in pairs if asked == word).items())) for word in words}


@dataclasses.dataclass(frozen=True)
class Target:
    """What a figure should be.

    Attributes:
        name: of the target.
        at: keys that lead to the figure.
        rule: ">=", "<=", "<" or "within", which means: no further from zero.
        limit: the number.
    """

    name: str
    at: tuple[str, str]
    rule: str
    limit: float

    def met(self, value: float) -> bool:
        """Whether a measured value is good enough."""
        if self.rule == ">=":
            return value >= self.limit
        if self.rule == "<":
            return value < self.limit
        return (abs(value) if self.rule == "within" else value) <= self.limit


TARGETS = (
    Target("lip_correlation", ("talking", "lip_correlation"), ">=", 0.8),
    Target("best_lag_frames", ("talking", "best_lag_frames"), "within", 1),
    Target("identity_at_2_s", ("identity", "at_2_s"), "<=", 1.3),
    Target("identity_at_end", ("endurance", "at_end"), "<=", 1.3),
    Target("silent_opening", ("silence", "mean_opening"), "<", 0.05),
    Target("wall", ("obedience", "wall"), ">=", 0.9),
    Target("mood", ("obedience", "mood"), ">=", 0.9),
    Target("frames_per_second", ("speed", "frames_per_second"), ">=", 25),
    Target("pair_own_lips", ("pairs", "own_lips"), ">=", 0.75),
    Target("pair_others_lips", ("pairs", "others_lips"), "<=", 0.2),
    Target("pair_silent_opening", ("pairs", "silent_opening"), "<", 0.05),
    Target("pair_identity_at_2_s", ("pairs", "identity_at_2_s"), "<=", 1.3),
    Target("first_frames_s", ("speed", "first_frames_s"), "<", 2),
)


def passes(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, object]]:
    """Every target with what was measured and whether it is met; None where nothing was measured."""
    found: dict[str, dict[str, object]] = {}
    for target in TARGETS:
        value = figures.get(target.at[0], {}).get(target.at[1])
        met = None if value is None else target.met(value)
        found[target.name] = {"measured": value, "target": f"{target.rule} {target.limit:g}", "passes": met}
    return found
