"""A producer of blocks that can be recognised, and how to read them."""

import torch

SHAPE = (16, 3, 2, 2)


class Broken(Exception):
    """What a failing producer raises."""


class Producer:
    """Counts what is asked of it. Blocks hold (run, index), so a mixed or repeated one shows."""

    def __init__(self, blocks: int, dtype: torch.dtype = torch.float32):
        self.blocks, self.dtype = blocks, dtype
        self.runs = self.open = self.most_open = 0
        self.made: list[tuple[int, int]] = []
        self.fail_at: set[tuple[int, int]] = set()

    def __call__(self):
        run = self.runs
        self.runs += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            for index in range(self.blocks):
                if (run, index) in self.fail_at:
                    raise Broken(f"run {run} block {index}")
                self.made.append((run, index))
                yield torch.full(SHAPE, 100 * run + index, dtype=self.dtype)
        finally:
            self.open -= 1


def label(block: torch.Tensor) -> tuple[int, int]:
    assert block.shape == SHAPE and (block == block.flatten()[0]).all()
    return divmod(int(block.flatten()[0]), 100)


def labels(stream) -> list[tuple[int, int]]:
    return [label(b) for b in stream]
