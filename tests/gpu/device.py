"""The device that the tests of this folder run on: the first GPU.

LIVEAVATAR_TEST_DEVICE=cpu tries the tests themselves where there is none; it says nothing about GPUs.
"""

import os

import pytest
import torch

DEVICE = os.environ.get("LIVEAVATAR_TEST_DEVICE", "cuda:0")
ON_GPU = DEVICE.startswith("cuda")
MISSING = ON_GPU and not torch.cuda.is_available()
on_the_device = [
    pytest.mark.gpu,
    pytest.mark.skipif(MISSING, reason="there is no GPU here (PyTorch sees no CUDA device)"),
]


def psnr(made: torch.Tensor, true: torch.Tensor) -> float:
    """Decibels against the largest number of the true one."""
    error = (made.float() - true.float()).square().mean()
    return float("inf") if error == 0 else float(10 * torch.log10(true.float().abs().max() ** 2 / error))


def held() -> int:
    """Bytes of tensors on the device; 0 on the CPU, which does not count them."""
    if not ON_GPU:
        return 0
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated(DEVICE)
