"""Layers of networks that are not trained give what those of a checkpoint give."""

import pytest
import torch
from torch import nn

from liveavatar.model.fused import FeedForward, untrained_linears


def feed_forward(device: str, dtype: torch.dtype) -> FeedForward:
    with torch.device(device):
        return FeedForward(nn.Linear(24, 40), nn.GELU("tanh"), nn.Linear(40, 24)).to(dtype)


@pytest.mark.parametrize(("dtype", "closeness"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_gelu_is_made_with_the_product_before_it(dtype: torch.dtype, closeness: float) -> None:
    plain, made = feed_forward("cpu", dtype), feed_forward("meta", dtype)
    untrained_linears(made)
    made.load_state_dict(plain.state_dict(), assign=True)
    x = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.allclose(made(x), plain(x), atol=closeness), "where gradients are recorded"
    with torch.inference_mode():
        assert torch.allclose(made(x), plain(x), atol=closeness)
        assert torch.allclose(made(x[:, :2]), made(x)[:, :2], atol=closeness), "rows that do not lie side by side"
