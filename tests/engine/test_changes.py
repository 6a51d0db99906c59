"""A prompt or portrait changes at its block, equally on every cut; and the number of blocks may be open."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from engine.tiny import TinyComponents, latents, tiny_config, tiny_effective, tiny_job, tiny_plan
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.engine.local import LocalEngine
from liveavatar.session import VideoTask
from liveavatar.stage import Changes, Portrait

CONFIG = tiny_config()
CUTS = ["1x3", "4x1", "2x2"]


def changed(
    job: VideoTask, prompts: dict[int, int] | None = None, portraits: dict[int, int] | None = None
) -> VideoTask:
    """The job with made-up prompts and portraits, by the block at which they begin and their seed."""
    changes = Changes()
    for block, seed in prompts.items():
        generator = torch.Generator().manual_seed(seed)
        changes.prompts.add(block, torch.randn(4, CONFIG.text_dim, generator=generator))
    for block, seed in portraits.items():
        generator = torch.Generator().manual_seed(seed)
        given = job.conditioning
        like = (torch.randn(t.shape, generator=generator) for t in (given.reference, given.motion))
        changes.portraits.add(block, Portrait(*like))
    return dataclasses.replace(job, conditioning=dataclasses.replace(job.conditioning, changes=changes))


def first_difference(one: torch.Tensor, other: torch.Tensor) -> int | None:
    """The first block in which latents [16, 3 blocks, h, w] differ."""
    blocks = range(one.shape[1] // 3)
    return next((b for b in blocks if not torch.equal(one[:, 3 * b : 3 * b + 3], other[:, 3 * b : 3 * b + 3])), None)


@pytest.mark.parametrize("block", [1, 4, 6])
def test_a_prompt_takes_effect_at_its_block(block: int) -> None:
    job = tiny_job(CONFIG, tiny_effective(8))
    assert first_difference(latents(CONFIG, changed(job, {block: 1}, {})), latents(CONFIG, job)) == block


@pytest.mark.parametrize("block", [1, 4, 6])
def test_a_portrait_takes_effect_at_its_block(block: int) -> None:
    job = tiny_job(CONFIG, tiny_effective(8))
    assert first_difference(latents(CONFIG, changed(job, {}, {block: 1})), latents(CONFIG, job)) == block


@pytest.mark.parametrize("cut", CUTS)
def test_changes_are_equal_on_every_cut(cut: str) -> None:
    job = changed(tiny_job(CONFIG, tiny_effective(10)), {2: 1, 5: 2, 6: 3}, {3: 4, 7: 5})
    assert torch.equal(latents(CONFIG, job, cut), latents(CONFIG, job))


def test_the_same_prompt_and_portrait_again_change_nothing_in_the_first_clip() -> None:
    job = tiny_job(CONFIG, tiny_effective(4))
    changes, given = Changes(), job.conditioning
    changes.prompts.add(2, given.prompt)
    changes.portraits.add(3, Portrait(given.reference, given.motion))
    same = dataclasses.replace(job, conditioning=dataclasses.replace(given, changes=changes))
    assert torch.equal(latents(CONFIG, same), latents(CONFIG, job))


@given(st.integers(0, 9), st.sampled_from(["1x1", *CUTS]))
def test_an_open_number_of_blocks_gives_the_bits_of_a_known_one(blocks: int, cut: str) -> None:
    job = tiny_job(CONFIG, tiny_effective(max(1, blocks)))

    def gate(block: int, wait: bool) -> bool | None:
        return block < blocks if wait or block % 2 else None

    engine = LocalEngine(TinyComponents(CONFIG), tiny_plan(CONFIG, job.resolved, cut))
    made = list(engine.run(dataclasses.replace(job, gate=gate)))
    assert len(made) == blocks
    if blocks:
        assert torch.equal(torch.cat(made, 1), latents(CONFIG, job))


def test_changes_may_come_while_blocks_are_made() -> None:
    job = tiny_job(CONFIG, tiny_effective(7))
    expected = latents(CONFIG, changed(job, {3: 1, 5: 2}, {4: 3}))
    later = changed(job, {3: 1, 5: 2}, {4: 3}).conditioning.changes
    grown = Changes()

    def gate(block: int, wait: bool) -> bool:
        for ours, theirs in ((grown.prompts, later.prompts), (grown.portraits, later.portraits)):
            for start, value in theirs:
                if start == block and start not in ours.starts:
                    ours.add(start, value)
        return block < 7

    growing = dataclasses.replace(job, conditioning=dataclasses.replace(job.conditioning, changes=grown), gate=gate)
    engine = LocalEngine(TinyComponents(CONFIG), tiny_plan(CONFIG, job.resolved, "2x2"))
    assert torch.equal(torch.cat(list(engine.run(growing)), 1), expected)
