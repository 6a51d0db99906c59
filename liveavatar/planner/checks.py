"""Refusing what no plan can be made of."""

from __future__ import annotations

from ..errors import PlanError
from ..request import Effective
from ..vae.tiling import Tiles, most_tiles, possible
from .bytes import BYTES

MAX_THREADS = 256
"""CPU threads beyond which no work divides and some systems fail."""


def check_working(dtype: str, threads: int) -> None:
    """Refuse a dtype that is not known and a thread count that is not possible.

    Raises:
        PlanError: with the nearest that works.
    """
    if dtype not in BYTES:
        raise PlanError(f"The dtype {dtype!r} is not known.", f"Use {', '.join(BYTES)}.")
    if not 1 <= threads <= MAX_THREADS:
        raise PlanError(f"{threads} CPU threads are not possible.", f"Use 1 to {MAX_THREADS}.")


def check_tiles(effective: Effective, tiles: Tiles) -> None:
    """Refuse more tiles of the VAE than a picture can be cut into.

    Raises:
        PlanError: with the most that it can.
    """
    if not possible(*effective.latent_size, tiles):
        most = most_tiles(*effective.latent_size)
        raise PlanError(
            f"A picture of {effective.width}x{effective.height} cannot be cut into {tiles[0]}x{tiles[1]} tiles.",
            f"The most rows and columns of tiles are {most[0]}x{most[1]}.",
        )
