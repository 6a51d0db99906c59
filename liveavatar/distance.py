"""How far ahead of a block the reference picture stands (the "rolling sink")."""

from __future__ import annotations

import dataclasses

from .config import BLOCK_LATENTS, MAX_SINK_DISTANCE, MIN_SINK_DISTANCE, REFERENCE_TIME_ID

_MASK64 = (1 << 64) - 1


@dataclasses.dataclass(frozen=True)
class SinkDistance:
    """How many latent frames ahead of a block the reference picture stands.

    Attributes:
        kind: "seeded" (a hash of seed and block, uniform in 4..30, the same for all steps), "fixed", or "replay"
            (a recorded list per block and step, to repeat a run of the published implementation, which draws anew
            at every call).
        value: the distance when fixed.
        recorded: [blocks][steps] when replayed.
    """

    kind: str = "seeded"
    value: int = MAX_SINK_DISTANCE
    recorded: tuple[tuple[int, ...], ...] = ()

    def at(self, seed: int, block: int, step: int) -> int:
        """The distance of one task."""
        if self.kind == "fixed":
            return self.value
        if self.kind == "replay":
            return self.recorded[block][step]
        return MIN_SINK_DISTANCE + _hash(seed, block) % (MAX_SINK_DISTANCE - MIN_SINK_DISTANCE + 1)

    def reference_time_id(self, seed: int, block: int, step: int) -> int:
        """Time id of the reference: 30 until the block comes within the distance, then always that far ahead."""
        near = REFERENCE_TIME_ID - self.at(seed, block, step)
        return REFERENCE_TIME_ID + max(0, block * BLOCK_LATENTS - near)


def _hash(seed: int, block: int) -> int:
    """A counter-based 64-bit hash (the finaliser of SplitMix64, Steele et al. 2014)."""
    z = (seed + (block + 1) * 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)
