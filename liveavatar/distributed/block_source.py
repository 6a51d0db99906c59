"""The blocks of one video on their way to its workers: which may begin, and what they are made of."""

from __future__ import annotations

import torch

from ..events import Callback
from ..session import VideoTask
from ..spool import SlotFile
from ..stage import Changes, Portrait


class BlockSource:
    """The blocks of one video, in order, with what they are made of.

    How many there are is known beforehand, unless the video is stopped, or the video's gate lets them in one by one.
    Then what a block is made of is taken over when it is let in, and kept until no run will begin with it: whoever fed
    the video may forget it.

    Args:
        job: the video.
        most: blocks that are kept of an open number, at most; earlier ones are forgotten.
    """

    def __init__(self, job: VideoTask, most: int):
        self._job, self._most = job, most
        self._given, self._gate = job.conditioning, job.gate
        self.first = self.oldest = job.resolved.first_block
        """The first block of all, and the first one that is not forgotten."""
        self._total, self._let_in = job.blocks, self.first
        self._changes = self._given.changes if self._gate is None else Changes()
        self._features = None if self._gate is None else SlotFile()

    @property
    def is_open(self) -> bool:
        """Whether there is a gate."""
        return self._gate is not None

    @property
    def total(self) -> int | None:
        """The number of the last block and one; None as long as nobody knows."""
        if self._job.stop is not None and self._job.stop.is_set():
            self._total = self._let_in
        return self._total

    def has(self, block: int) -> bool:
        """Whether a block may begin, and then it does; the gate is asked, but not waited for. Blocks are asked for in
        order.

        Raises:
            Whatever the gate raises.
        """
        total = self.total
        if self._gate is None:
            self._let_in = max(self._let_in, min(block + 1, total or 0))
            return block < self._let_in
        if block == self._let_in and total is None:
            let_in = self._gate(block, False)
            if let_in is False:
                self._total = block
            elif let_in:
                self._take_over(block)
        return block < self._let_in

    def features(self, block: int) -> torch.Tensor:
        """Of its audio: [speakers, layers, channels, 12], float32."""
        return self._given.audio.block(block) if self._features is None else torch.from_numpy(self._features.get(block))

    def prompt(self, block: int) -> torch.Tensor | None:
        """Features of the prompt that begins to hold at a block; None where none does."""
        return self._changes.prompts.beginning(block)

    def portrait(self, block: int) -> Portrait | None:
        """The portrait that begins to hold at a block; None where none does."""
        return self._changes.portraits.beginning(block)

    def pose(self, block: int, callback: Callback) -> torch.Tensor | None:
        """Its pose latents [16, 3, h, w], encoded now, with the callback of `PoseLatents.block`; None where no pose is
        followed."""
        return None if self._given.pose is None else self._given.pose.block(block, callback)

    def prompts_before(self, block: int) -> tuple[list[torch.Tensor], int]:
        """Features of the first prompt, and of the one that holds just before a block where that is another one; and
        the block from which that holds."""
        prompts, first = self._changes.prompts, self._given.prompt
        version = prompts.version(block - 1)
        return ([first, prompts.value(version)], prompts.starts[version - 1]) if version else ([first], 0)

    @property
    def portraits(self) -> tuple[int, ...]:
        """Blocks at which another portrait begins, as far as they are known."""
        return tuple(self._changes.portraits.starts)

    def forget(self, before: int) -> None:
        """No run will begin with an earlier block than `before`."""
        if self._features is None or before <= self.oldest:
            return
        self.oldest = before
        self._features.forget(before)
        for changes in (self._changes.prompts, self._changes.portraits):
            changes.forget(before - 1)

    def close(self) -> None:
        """Let go of all that was kept."""
        if self._features is not None:
            self._features.close()

    def _take_over(self, block: int) -> None:
        assert self._features is not None
        self._features.put(block, self._given.audio.block(block).numpy())
        given = self._given.changes
        if (prompt := given.prompts.beginning(block)) is not None:
            self._changes.prompts.add(block, prompt)
        if (portrait := given.portraits.beginning(block)) is not None:
            self._changes.portraits.add(block, portrait)
        self._let_in = block + 1
        self.forget(self._let_in - self._most)
