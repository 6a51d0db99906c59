"""Who watches is told of every tensor that a module is given, and may end that."""

import pytest
import torch
from torch import nn

from liveavatar.errors import Cancelled
from liveavatar.weights.load import fill, watched_reads
from liveavatar.weights.source import DictSource


def module() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))


SOURCE = DictSource({k: torch.ones(v.shape) for k, v in module().state_dict().items()})


def test_shares_grow_to_one_and_bytes_add_up():
    read: list[tuple[int, float]] = []
    with watched_reads(lambda nbytes, share: read.append((nbytes, share))):
        fill(module(), SOURCE, dtype=torch.bfloat16, device="cpu")
    shares = [share for _, share in read]
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) == 4
    assert sum(nbytes for nbytes, _ in read) == 2 * (4 * 8 + 8 + 8 * 4 + 4)


def test_what_is_not_read_does_not_count():
    read: list[tuple[int, float]] = []
    with watched_reads(lambda nbytes, share: read.append((nbytes, share))):
        fill(module(), SOURCE, dtype=torch.float32, device=lambda key: "meta" if key.startswith("0") else "cpu")
    assert [share for _, share in read][-1] == 1 and len(read) == 2


def test_what_the_watcher_raises_ends_the_reading_and_outside_nobody_is_told():
    read = []

    def stop(nbytes: int, share: float) -> None:
        read.append(share)
        raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled), watched_reads(stop):
        fill(module(), SOURCE, dtype=torch.float32, device="cpu")
    fill(module(), SOURCE, dtype=torch.float32, device="cpu")
    assert len(read) == 1
