"""Blocks on a clock: picture and sound of a moment belong together, whenever their blocks came."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.live.block import LiveBlock
from liveavatar.live.playout import BEHIND_SLOTS, BLOCK_SLOTS, CUSHION_SLOTS, MOST_BEHIND_SLOTS, SLOT_SAMPLES, Playout


def block(number: int, spoken: bool = True) -> LiveBlock:
    """A block whose twelve pictures and whose sound tell which they are."""
    first = 1 + 12 * number
    images = np.stack([np.full((2, 2, 3), first + i, np.uint8) for i in range(12)])
    audio = np.repeat(np.arange(first, first + 12, dtype=np.float32), 2 * SLOT_SAMPLES)
    return LiveBlock(number, images, audio, spoken, 0.0, 0.0)


def shown(playout: Playout, slots: range) -> list[tuple[int, int]]:
    """The picture (0 before the first) and the sound (0 is silence) of every slot."""
    found, picture, after = [], 0, -1
    for slot in slots:
        if (new := playout.image(after, slot)) is not None:
            after, picture = new[0], int(new[1][0, 0, 0])
        (sound,) = set(playout.audio(slot).tolist())
        found.append((picture, int(sound)))
    return found


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_whoever_speaks_is_seen_speaking_it(pauses: list[int]) -> None:
    playout, now, seen = Playout(), 0, []
    for number, pause in enumerate(pauses):
        playout.put(block(number), now)
        seen += shown(playout, range(now, now + pause))
        now += pause
    seen += shown(playout, range(now, now + 200))
    assert all(sound in (0, picture) for picture, sound in seen if picture)
    sounds = [sound for _, sound in seen if sound]
    skipped = playout.skipped_blocks
    assert len(sounds) == (len(pauses) - skipped) * BLOCK_SLOTS
    assert sounds == sorted(sounds)


def test_blocks_that_come_in_time_follow_without_a_gap() -> None:
    playout = Playout()
    for number in range(3):
        playout.put(block(number), number * BLOCK_SLOTS)
    seen = shown(playout, range(CUSHION_SLOTS + 3 * BLOCK_SLOTS))
    assert [sound for _, sound in seen] == [0] * CUSHION_SLOTS + [1 + i // 2 for i in range(72)]


def test_a_late_block_begins_when_it_comes() -> None:
    playout = Playout()
    playout.put(block(0), 0)
    playout.put(block(1), 50)
    assert playout.audio(51).max() == 0
    assert playout.audio(50 + CUSHION_SLOTS)[0] == 13


def test_what_piles_up_is_left_out_silence_first() -> None:
    playout = Playout()
    for number in range(3):
        playout.put(block(number), 0)
    assert playout.waiting_slots > BEHIND_SLOTS
    playout.put(block(3, spoken=False), 0)
    assert playout.skipped_blocks == 1
    for number in range(4, 20):
        playout.put(block(number), 0)
    assert playout.skipped_blocks > 1
    assert playout.waiting_slots <= MOST_BEHIND_SLOTS


def test_a_slow_viewer_gets_the_latest_picture() -> None:
    playout = Playout()
    playout.put(block(0), 0)
    assert playout.image(-1, 0) is None
    found = playout.image(-1, CUSHION_SLOTS + 11)
    assert found is not None
    slot, image = found
    assert (slot, image[0, 0, 0]) == (CUSHION_SLOTS + 10, 6)
    assert playout.image(slot, CUSHION_SLOTS + 11) is None
