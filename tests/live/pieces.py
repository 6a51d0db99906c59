"""The pieces that a block leaves in."""

from __future__ import annotations

import numpy as np

from liveavatar.live.block import PIECES, LiveBlock, LivePiece


def pieces_of(block: LiveBlock) -> list[LivePiece]:
    """All of them, as if they had been decoded at once."""
    each = zip(np.split(block.images, PIECES), np.split(block.audio, PIECES), strict=True)
    return [
        LivePiece(block.number, place, *both, block.spoken, block.begun, block.finished)
        for place, both in enumerate(each)
    ]
