"""A training that is killed ends like one that is not."""

import itertools

import pytest
import torch
from torch import nn

from liveavatar.mini.training import loop


class Killed(Exception):
    pass


def train(path, kill_at=None, steps=8):
    """A small regression whose data follow from the step."""
    torch.manual_seed(1)
    model = nn.Linear(3, 2)

    def loss_of(step):
        if step == kill_at:
            raise Killed
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        return (model(x) - x[:, :2]).square().mean()

    done = loop.train_steps(path, model, loss_of, steps=steps, rate=0.05, minutes=None, log=lambda line: None)
    return model, done


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    whole, done = train(tmp_path / "whole.pt")
    with pytest.raises(Killed):
        train(tmp_path / "cut.pt", kill_at=5)
    again, done_again = train(tmp_path / "cut.pt")
    assert done and done_again
    assert torch.equal(whole.weight, again.weight)
    assert torch.equal(loop.load_checkpoint(tmp_path / "cut.pt")["weight"], whole.weight)


def test_time_that_is_up_keeps_what_was_learned(tmp_path):
    model = nn.Linear(1, 1)
    done = loop.train_steps(
        tmp_path / "x.pt", model, lambda step: model(torch.ones(1)).sum(), steps=5, rate=1.0, minutes=0, log=print
    )
    assert not done
    assert torch.equal(loop.load_checkpoint(tmp_path / "x.pt")["weight"], model.weight)


def test_the_rate_rises_then_falls_to_nothing():
    shares = [loop.rate_share(i, 100) for i in range(101)]
    assert shares[0] < 0.3 and max(shares) == 1.0 and shares[100] < 1e-6
    assert all(a >= b for a, b in itertools.pairwise(shares[5:]))
