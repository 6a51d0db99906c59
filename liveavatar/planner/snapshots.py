"""How often worker processes save what they hold, so that a video can go on when one of them is lost."""

from __future__ import annotations

import math

from ..config import BLOCK_FRAMES, CLIP_BLOCKS, FPS

SNAPSHOT_BYTES_PER_SECOND = 1e9
"""Assumed speed at which a stage writes a snapshot to disk."""
SNAPSHOT_SHARE = 0.05
"""Share of the time that may go into writing snapshots, when blocks are made in real time."""
LEAST_SNAPSHOT_BLOCKS = 8


def snapshot_interval(nbytes: int, blocks: int, clip_blocks: int = CLIP_BLOCKS) -> int:
    """Blocks from one snapshot to the next, so that writing takes little of the time; 0: the video has no snapshot.

    Args:
        nbytes: of the snapshot of the largest stage.
        blocks: of the video.
        clip_blocks: of a clip; there is no snapshot before the second clip is under way.
    """
    seconds = nbytes / SNAPSHOT_BYTES_PER_SECOND / SNAPSHOT_SHARE
    interval = max(LEAST_SNAPSHOT_BLOCKS, clip_blocks + 1, math.ceil(seconds / (BLOCK_FRAMES / FPS)))
    return interval if snapshot_due(interval, interval, blocks, clip_blocks) else 0


def snapshot_due(block: int, interval: int, blocks: int, clip_blocks: int = CLIP_BLOCKS) -> bool:
    """Whether a snapshot is kept of all that the blocks before `block` left.

    Not while the first version of the sink is in use, so that whoever goes on from a snapshot needs no prefill.
    """
    return interval > 0 and block % interval == 0 and clip_blocks < block < blocks
