"""The demo's portrait: a person of the drawn world whom training never sees, large.

python -m liveavatar.mini.world.portrait FILE.png [SEED]
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from .artist import Artist
from .identity import Identity, describe
from .pose import Pose

SIZE = 512
DEMO = 3
"""Seed of the demo's person; odd seeds are held out."""


def portrait(seed: int = DEMO, size: int = SIZE) -> Image.Image:
    """A person looking at you, neutral, with the mouth shut: RGB, size x size (a multiple of 64)."""
    return Image.fromarray(Artist(Identity.of(seed), None, size, size).frame(Pose()))


def write_portrait(path: Path, seed: int = DEMO, size: int = SIZE) -> None:
    """Write a portrait as PNG of 256 colours, some 50 kB at 512 x 512; the same file every time."""
    picture = portrait(seed, size).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)


def main() -> None:
    """Write the file named first, of the seed named second."""
    path, seed = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else DEMO
    write_portrait(path, seed)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB, {describe(Identity.of(seed))}")


if __name__ == "__main__":
    main()
