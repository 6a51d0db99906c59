"""Weights out of nothing: every tensor from a generator seeded by its own name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch


class SeededSource:
    """Random tensors with the variance of a fresh network; the same for a name in whatever module it stands.

    Matrices and kernels are normal with standard deviation 1 / sqrt(fan-in), so that signals keep their size; gains of
    norms are 1; biases and modulations are small.

    Args:
        shapes: of every tensor, by name.
        seed: of the whole model.
        scales: factors for tensors whose name ends so.
        device, dtype: where and in what they are made; kinds of devices and dtypes draw different numbers.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        seed: int,
        scales: Mapping[str, float] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self._shapes = dict(shapes)
        self._seed = seed
        self._scales = dict(scales or {})
        self._made: dict[str, Any] = {"device": torch.device(device), "dtype": dtype}

    def keys(self) -> frozenset[str]:
        return frozenset(self._shapes)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._shapes[key]

    def read(self, key: str) -> torch.Tensor:
        shape = self._shapes[key]
        if key.endswith("weight.original0"):  # length of a normalised weight: that of the weight itself
            direction = self.read(key.removesuffix("0") + "1")
            others = [d for d in range(len(shape)) if shape[d] == 1]
            return direction.square().sum(others, keepdim=True).sqrt()
        if _is_gain(key, shape):
            return torch.ones(shape, **self._made)
        name = hashlib.sha256(f"{self._seed}:{key}".encode()).digest()
        generator = torch.Generator(self._made["device"]).manual_seed(int.from_bytes(name[:8], "big") >> 1)
        return torch.randn(shape, generator=generator, **self._made).mul_(self._deviation(key, shape))

    def describe(self) -> str:
        return f"random weights of seed {self._seed}"

    def _deviation(self, key: str, shape: tuple[int, ...]) -> float:
        scale = next((s for end, s in self._scales.items() if key.endswith(end)), 1.0)
        if len(shape) < 2:
            return 0.02 * scale
        fan_in = math.prod(shape[1:])
        return scale / math.sqrt(fan_in)


def _is_gain(key: str, shape: tuple[int, ...]) -> bool:
    """The multiplier of a norm: `gamma`, or a vector called weight."""
    return key.endswith("gamma") or (len(shape) == 1 and key.endswith("weight"))
