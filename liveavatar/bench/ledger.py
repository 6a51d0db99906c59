"""The bytes a run really took, beside those that were planned."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ..offload.layers import resident_bytes
from ..planner import Plan
from .figures import bytes_needed
from .found import Amount, Memory
from .tracked import Allocated
from .watched import WatchedEngine


class Ledger:
    """Counts: CUDA's allocator where there is one, every tensor elsewhere.

    Args:
        plan: what was planned, on one device.
        device: which.
        vae: whether the VAE will be there.
    """

    def __init__(self, plan: Plan, device: torch.device, vae: bool):
        self.plan, self.device, self.vae = plan, device, vae
        self._most: dict[str, int] = {}
        self._host = self._weights_away = 0
        self._loading: int | None = None
        self._tracked: Allocated | None = None
        if device.type != "cuda":
            self._tracked = Allocated()

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Weights are made inside."""
        if self._tracked is None:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        with self._counting():
            yield
        if self._tracked is None:
            self._loading = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._loading, self._tracked.most = self._tracked.most, 0

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """What works inside is counted; on CUDA all that comes later is, too."""
        with self._counting():
            yield

    def note_weights(self, engine: WatchedEngine) -> None:
        """Count what is loaded."""
        conditions = engine._embedders()
        layers = [resident_bytes(net) for net in engine.networks() if net is not conditions]
        self._most["weights"] = sum(held.device for held in layers)
        self._most["conditions"] = resident_bytes(conditions).device
        self._weights_away = self._host = sum(held.host for held in layers)

    def note(self, engine: WatchedEngine) -> None:
        """Count what stays between two tasks."""
        held = engine.resident()
        for name, part in held.items():
            self._most[name] = max(self._most.get(name, 0), part.device)
        self._host = max(self._host, self._weights_away + sum(part.host for part in held.values()))

    def memory(self) -> Memory:
        """All of it."""
        planned = next(iter(self.plan.terms_by_device.values()))
        parts = {name: Amount(planned[name], found) for name, found in self._most.items()}
        held = Amount(sum(p.planned for p in parts.values()), sum(p.found for p in parts.values()))
        most, reserved = self._peak()
        away = sum(self.plan.host_bytes_by_machine.values()) - self.plan.vae_host
        if reserved is None:  # what lies on the host is counted with the rest, and the VAE is not there yet
            peak = Amount(bytes_needed(self.plan, False) + away, most)
        else:
            peak = Amount(bytes_needed(self.plan, self.vae), most)
        return Memory(
            parts=parts,
            held=held,
            peak=peak,
            difference_percent=peak.difference,
            held_difference_percent=held.difference,
            reserved=reserved,
            loading=self._loading,
            host=Amount(away, self._host),
        )

    def _peak(self) -> tuple[int, int | None]:
        if self._tracked is not None:
            return self._tracked.most, None
        return torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        if self._tracked is None:
            yield
        else:
            with self._tracked:
                yield
