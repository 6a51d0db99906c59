"""What a plan should be like, where one is chosen."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ..vae.tiling import Tiles

Preference = Literal["quality", "speed"]


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What matters beside the video and the cards.

    Attributes:
        prefer: "quality" takes the highest rung that fits; "speed" the fastest of those from fp8 weights on, or of all
            where a card does not compute in fp8.
        allow_smaller: whether a smaller video may be planned where nothing else fits.
        dtype: of weights, keys and tokens where they are not rounded further.
        threads: CPU threads per task.
        processes: whether every stage, and the VAE, will work in a process of its own.
        vae_tiles: in which the VAE works; None: whole, or the fewest that let a plan round less, or fit.
    """

    prefer: Preference = "quality"
    allow_smaller: bool = False
    dtype: str = "bfloat16"
    threads: int = 1
    processes: bool = False
    vae_tiles: Tiles | None = None


NONE = Wishes()
"""Nothing in particular."""
