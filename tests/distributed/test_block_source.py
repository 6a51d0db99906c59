"""What blocks are made of is there as long as a run may begin with them, and no longer."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from distributed.test_open import Feed, with_changes
from engine.tiny import tiny_config, tiny_effective, tiny_job

from liveavatar.distributed.block_source import BlockSource
from liveavatar.session import VideoTask
from liveavatar.spool import SlotFile

MOST = 8


@pytest.fixture
def known() -> VideoTask:
    return with_changes(tiny_job(tiny_config(), tiny_effective(40)), {3: 1, 10: 2}, {5: 3})


def test_of_a_known_number_everything_stays(known: VideoTask) -> None:
    source = BlockSource(known, MOST)
    assert not source.is_open and source.total == 40 and source.has(39) and not source.has(40)
    source.forget(30)
    assert source.oldest == 0 and source.portraits == (5,)
    changes = known.conditioning.changes
    assert source.prompt(3) is changes.prompts.value(1) and source.prompt(4) is None
    assert source.portrait(5) is changes.portraits.value(1)
    first = known.conditioning.prompt
    assert source.prompts_before(3) == ([first], 0)
    assert source.prompts_before(10) == ([first, source.prompt(3)], 3)
    assert torch.equal(source.features(7), known.conditioning.audio.block(7))


def test_of_an_open_number_blocks_are_taken_over_once_and_forgotten(known: VideoTask) -> None:
    feed = Feed(known)
    source = BlockSource(feed.job, MOST)
    assert source.is_open and source.total is None and not source.has(0)
    feed.pushed = 12
    for block in range(12):
        assert source.has(block) and source.has(block)
    assert feed.asked == list(range(12)) and not source.has(12)
    assert source.oldest == 4, "no more than so many are kept"
    assert torch.equal(source.features(11), known.conditioning.audio.block(11))
    with pytest.raises(KeyError):
        source.features(3)
    assert source.portraits == (5,) and source.portrait(5) is not None
    assert source.prompts_before(6)[0][1] is known.conditioning.changes.prompts.value(1)
    source.forget(11)
    assert source.prompts_before(11)[0][1] is known.conditioning.changes.prompts.value(2)
    with pytest.raises(ValueError, match="forgotten"):
        source.prompts_before(6)
    feed.ended = True
    assert source.total is None and not source.has(12) and source.total == 12
    source.close()


def test_what_the_gate_raises_passes_through(known: VideoTask) -> None:
    def gate(block: int, wait: bool) -> bool:
        raise RuntimeError("no sound card")

    with pytest.raises(RuntimeError, match="no sound card"):
        BlockSource(dataclasses.replace(known, gate=gate), MOST).has(0)


def test_a_slot_file_uses_its_room_again() -> None:
    slots, whole = SlotFile(), torch.arange(24.0).reshape(2, 3, 4).numpy()
    for number in range(100):
        slots.put(number, whole + number)
        slots.forget(number - 4)
        assert len(slots) <= 5
        for kept in range(max(0, number - 4), number + 1):
            assert (slots.get(kept) == whole + kept).all()
    assert slots.nbytes <= 6 * whole.nbytes
    slots.close()
    slots.close()
