"""What comes from a device is all there once it was waited for, whatever else the device is given."""

import pytest
import torch

from liveavatar.offload.streams import AsyncHostTensor, SideStream

DEVICES = [
    "cpu",
    pytest.param(
        "cuda:0",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
def test_what_has_landed_is_what_was_sent(device):
    sent = torch.arange(24.0, device=device).view(2, 3, 4).transpose(0, 2)
    landing = AsyncHostTensor.copy_of(sent)
    again = AsyncHostTensor.copy_of(sent * 2)
    for _ in range(50):  # what comes later is not waited for
        sent = sent + 1
    landed = landing.wait()
    assert landed.device.type == "cpu" and not landed.is_pinned()
    assert torch.equal(landed, torch.arange(24.0).view(2, 3, 4).transpose(0, 2))
    assert torch.equal(again.wait(), landed * 2)


@pytest.mark.parametrize("device", DEVICES)
def test_work_aside_begins_with_what_was_done_before(device):
    there = torch.device(device)
    numbers = torch.ones(1000, 1000, device=there)
    for _ in range(100):
        numbers = numbers @ numbers / 1000
    aside = SideStream(there)
    with aside.active():
        landing = AsyncHostTensor.copy_of(numbers + 1)
    assert torch.equal(landing.wait(), torch.full((1000, 1000), 2.0))
