"""Pieces on a clock: picture and sound of a moment belong together, whenever they came."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from live.pieces import pieces_of

from liveavatar.live.block import PIECES, LiveBlock, LivePiece
from liveavatar.live.playout import (
    BEHIND_SLOTS,
    CUSHION_SLOTS,
    IMAGE_SLOTS,
    LOOKED_AT,
    MOST_BEHIND_SLOTS,
    QUIET,
    SLOT_SAMPLES,
    Playout,
)

PIECE_SLOTS = 8
BLOCK_SLOTS = PIECES * PIECE_SLOTS


def block(number: int, spoken: bool = True, loudness: float = 1.0) -> list[LivePiece]:
    """The pieces of a block whose twelve pictures and whose sound tell which they are."""
    first = 1 + 12 * number
    images = np.stack([np.full((2, 2, 3), first + i, np.uint8) for i in range(12)])
    audio = loudness * np.repeat(np.arange(first, first + 12, dtype=np.float32), 2 * SLOT_SAMPLES)
    return pieces_of(LiveBlock(number, images, audio, spoken, 0.0, 0.0))


def put(playout: Playout, pieces: list[LivePiece], now: int) -> None:
    """Place them all at once."""
    for piece in pieces:
        playout.put(piece, now)


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
        put(playout, block(number), now)
        seen += shown(playout, range(now, now + pause))
        now += pause
    seen += shown(playout, range(now, now + 200))
    assert all(sound in (0, picture) for picture, sound in seen if picture)
    sounds = [sound for _, sound in seen if sound]
    left_out = len(pauses) * BLOCK_SLOTS - len(sounds)
    assert left_out % PIECE_SLOTS == 0
    assert -(-left_out // BLOCK_SLOTS) == playout.skipped_blocks
    assert sounds == sorted(sounds)


def test_pieces_need_not_wait_for_the_rest_of_their_block() -> None:
    playout = Playout()
    for number in range(3):
        for piece in block(number):
            playout.put(piece, number * BLOCK_SLOTS + piece.place)
        assert playout.waiting_slots == CUSHION_SLOTS
    seen = shown(playout, range(CUSHION_SLOTS + 3 * BLOCK_SLOTS))
    assert [sound for _, sound in seen] == [0] * CUSHION_SLOTS + [1 + i // 2 for i in range(72)]


def test_blocks_that_come_in_time_follow_without_a_gap() -> None:
    playout = Playout()
    for number in range(3):
        put(playout, block(number), number * BLOCK_SLOTS)
    seen = shown(playout, range(CUSHION_SLOTS + 3 * BLOCK_SLOTS))
    assert [sound for _, sound in seen] == [0] * CUSHION_SLOTS + [1 + i // 2 for i in range(72)]


def test_a_late_block_begins_when_it_comes() -> None:
    playout = Playout()
    put(playout, block(0), 0)
    put(playout, block(1), 50)
    assert playout.audio(51).max() == 0
    assert playout.audio(50 + CUSHION_SLOTS)[0] == 13


def test_what_piles_up_is_left_out_silence_first() -> None:
    playout = Playout()
    for number in range(3):
        put(playout, block(number), 0)
    assert playout.waiting_slots > BEHIND_SLOTS
    put(playout, block(3, spoken=False), 0)
    assert playout.skipped_blocks == 1
    for number in range(4, 20):
        put(playout, block(number), 0)
    assert playout.skipped_blocks > 1
    assert playout.waiting_slots <= MOST_BEHIND_SLOTS


def test_a_slow_viewer_gets_the_latest_picture() -> None:
    playout = Playout()
    put(playout, block(0), 0)
    assert playout.image(-1, 0) is None
    found = playout.image(-1, CUSHION_SLOTS + 11)
    assert found is not None
    slot, image = found
    assert (slot, image[0, 0, 0]) == (CUSHION_SLOTS + 10, 6)
    assert playout.image(slot, CUSHION_SLOTS + 11) is None


def late_once(loudness: float, blocks: int = 20, late: int = 10) -> tuple[Playout, list[tuple[int, int]]]:
    """Blocks on time but for the second one, and what was shown."""
    playout, now, seen = Playout(), 0, []
    for number in range(blocks):
        due = number * BLOCK_SLOTS + (late if number == 1 else 0)
        seen += shown(playout, range(now, due))
        now = due
        put(playout, block(number, loudness=loudness), now)
    return playout, seen


def test_what_one_late_block_cost_is_caught_up_in_pauses() -> None:
    playout, seen = late_once(QUIET / 1000)
    assert CUSHION_SLOTS <= playout.waiting_slots < CUSHION_SLOTS + IMAGE_SLOTS
    assert playout.skipped_blocks == 0
    pictures = [picture for picture, _ in seen]
    assert pictures == sorted(pictures)
    gaps = np.diff(sorted(set(pictures)))
    assert set(gaps.tolist()) == {1, 2}, "never two in a row"


def test_nothing_is_left_out_of_speech() -> None:
    playout, seen = late_once(1.0)
    assert playout.waiting_slots == CUSHION_SLOTS + 10
    assert set(np.diff(sorted({picture for picture, _ in seen})).tolist()) == {1}


def test_where_pieces_come_unevenly_the_one_that_waits_least_counts() -> None:
    playout, now = Playout(), 0
    for number in range(21):
        now = number * BLOCK_SLOTS + (10 if number % 6 == 1 else 0)
        put(playout, block(number, loudness=QUIET / 1000), now)
    assert playout.waiting_slots == CUSHION_SLOTS + 10
    assert LOOKED_AT == 6 * PIECES
