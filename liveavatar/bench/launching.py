"""How long the host needs to give a device its work: what launching would cost if the device needed no time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator

import torch

from ..model.layer import Layer
from ..model.transformer import CausalS2VTransformer, LayerProvider
from ..session import VideoTask
from .found import Launching
from .watched import WatchedEngine


def launching(engine: WatchedEngine, job: VideoTask, seconds_per_block: float) -> Launching:
    """Send the layers of a video to an idle device, each by itself, and time the sending alone.

    Each layer is waited for before the next is sent, so that the device's queue never fills, which would make the host
    wait in the middle of sending.

    Args:
        engine: warm.
        job: a short video.
        seconds_per_block: on the device.
    """
    watches = [_LaunchTimer(net, engine.device) for net in engine.networks() if net.slice.layers]
    leads = [watch.net.layers_on_device for watch in watches]
    for watch, lead in zip(watches, leads, strict=True):
        watch.net.layers_on_device = watch.around(lead)
    try:
        engine.watch(job)
    finally:
        for watch, lead in zip(watches, leads, strict=True):
            watch.net.layers_on_device = lead
    steps = engine.plan.partition.last_step + 1
    sent = steps * sum(watch.seconds() for watch in watches)
    return Launching(sent, sent / seconds_per_block)


class _LaunchTimer:
    """The host's seconds with each layer of a network."""

    def __init__(self, net: CausalS2VTransformer, device: torch.device):
        self.net, self._device = net, device
        self._seconds: dict[int, list[float]] = {}

    def around(self, provider: LayerProvider) -> LayerProvider:
        """The same lead; from one layer to the next it is timed."""

        def timed(layers: Iterable[tuple[int, Layer]]) -> Iterator[Layer]:
            for place, layer in enumerate(provider(layers)):
                self._synchronize()
                begun = time.perf_counter()
                yield layer
                self._seconds.setdefault(place, []).append(time.perf_counter() - begun)

        return timed

    def seconds(self) -> float:
        """Of one pass through all layers; the median of each."""
        return sum(map(statistics.median, self._seconds.values()))

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
