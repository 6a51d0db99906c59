"""The untrained model with layers that take their time: what pipelines are measured with where there are no devices.

Most of that time a layer sleeps and needs no processor, so any number of stages works side by side on any machine, as
stages with a device each would.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from torch import nn

from ..errors import ModelError
from ..storage import WeightFormat
from ..weights.load import DType, TensorDevice
from .untrained import UntrainedComponents

if TYPE_CHECKING:
    from ..model.transformer import CausalS2VTransformer, ModelSlice


class SlowComponents(UntrainedComponents):
    """The untrained model, slowed down (see `liveavatar.components.Components`).

    Args:
        layer_seconds: the least time a layer takes at each task.

    Raises:
        ModelError: no time that anything can take.
    """

    name = "slow"

    def __init__(self, layer_seconds: float):
        if not (math.isfinite(layer_seconds) and layer_seconds >= 0):
            raise ModelError(f"A layer cannot take {layer_seconds} s.", "Give seconds from 0 on, such as 0.03.")
        self.layer_seconds = float(layer_seconds)

    @property
    def numbers(self) -> tuple[float, ...]:
        """See `UntrainedComponents.numbers`."""
        return (self.layer_seconds,)

    def transformer(
        self, model_slice: ModelSlice, device: TensorDevice, dtype: DType, weights: WeightFormat = "plain"
    ) -> CausalS2VTransformer:
        net = super().transformer(model_slice, device, dtype, weights)
        for layer in net.blocks.values():
            _slow_down(layer, self.layer_seconds)
        return net

    def describe(self) -> str:
        return f"{super().describe()}; every layer takes {self.layer_seconds:g} s"


def _slow_down(layer: nn.Module, seconds: float) -> None:
    """Make it sleep until it has taken so long; what it computes within that time costs no more."""
    until = 0.0

    def begin(*_: object) -> None:
        nonlocal until
        until = time.monotonic() + seconds

    def end(*_: object) -> None:
        time.sleep(max(0.0, until - time.monotonic()))

    layer.register_forward_pre_hook(begin)
    layer.register_forward_hook(end)
