"""The cards and the memory at hand, measured or asked for; nothing is looked at before it is needed."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from ..errors import PlanError

GIB = 1024**3
CONTEXT = 600_000_000
"""Bytes the driver and the libraries take on a card before the first tensor."""
USABLE_SHARE = 0.92
"""Of a card's nominal memory; a desktop, the driver and what allocators round up take the rest."""
HOST_SHARE = 0.8
"""Of the host's memory that may be pinned."""
_LEAST_HOST = 64 * GIB
MAX_CARDS = 16


@dataclasses.dataclass(frozen=True)
class Speed:
    """What a card really reaches in this network, and what it copies.

    Attributes:
        plain, fp8, attention: TFLOP/s of matrices in the working dtype, in fp8, and of attention.
        copy: GB/s from pinned host memory.
        computes_fp8: whether matrices are worked in fp8.
    """

    plain: float
    fp8: float
    attention: float
    copy: float
    computes_fp8: bool = True


ASSUMED_SPEEDS = {
    16: Speed(70, 135, 65, 25),  # half of the class of 24
    24: Speed(140, 270, 130, 25),  # RTX 4090: bf16 (140, 130), fp8 270; PCIe 4 x16
    32: Speed(210, 420, 200, 50),  # RTX 5090: fp8 420, bf16 half of that; PCIe 5 x16
    48: Speed(150, 300, 140, 25),  # L40S: fp8 300, bf16 half of that
    80: Speed(600, 1200, 500, 50),  # H100: bf16 (600, 500); fp8 twice that
    96: Speed(210, 420, 200, 50),  # RTX Pro 6000: taken as the 5090, whose chip it is
    141: Speed(790, 1200, 600, 50),  # H200: bf16 790, fp8 1200, attention 600
}
"""Effective figures by GiB of the card, assumed: estimates for the best-known card of each size with a good attention
kernel in 16 bits, to be replaced by what `Card` measured. An asked card takes those of the nearest size."""


@dataclasses.dataclass(frozen=True)
class Card:
    """One device.

    Attributes:
        name: as PyTorch calls it.
        total: bytes.
        free: bytes that may be used; None: not measured, `USABLE_SHARE` of the total is taken.
        plain_tflops, fp8_tflops, attention_tflops: measured; None: assumed.
        copy_gb: measured GB/s from pinned host memory; None: assumed.
        computes_fp8: None: assumed.
        cap: bytes that may be used at most, the context among them; None: all.
    """

    name: str
    total: int
    free: int | None = None
    plain_tflops: float | None = None
    fp8_tflops: float | None = None
    attention_tflops: float | None = None
    copy_gb: float | None = None
    computes_fp8: bool | None = None
    cap: int | None = None

    @functools.cached_property
    def usable(self) -> int:
        """Bytes that a plan may use."""
        free = int(USABLE_SHARE * self.total) if self.free is None else self.free
        return max(0, (free if self.cap is None else min(free, self.cap)) - CONTEXT)

    @functools.cached_property
    def speed(self) -> Speed:
        """Measured where it was, assumed elsewhere."""
        assumed = ASSUMED_SPEEDS[min(ASSUMED_SPEEDS, key=lambda size: abs(size - self.total / GIB))]
        return Speed(
            plain=self.plain_tflops or assumed.plain,
            fp8=self.fp8_tflops or assumed.fp8,
            attention=self.attention_tflops or assumed.attention,
            copy=self.copy_gb or assumed.copy,
            computes_fp8=assumed.computes_fp8 if self.computes_fp8 is None else self.computes_fp8,
        )

    @property
    def measured(self) -> bool:
        """Whether nothing of its speed is assumed."""
        return None not in (self.plain_tflops, self.fp8_tflops, self.attention_tflops, self.copy_gb, self.computes_fp8)


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What a plan may use.

    Attributes:
        cards: all on one machine.
        host: bytes of its memory.
        source: whether the cards are here ("measured") or were only named ("asked").
    """

    cards: tuple[Card, ...]
    host: int
    source: Literal["measured", "asked"] = "asked"

    @classmethod
    def parse(cls, text: str, host: int | None = None) -> Hardware:
        """Cards by their nominal GiB: "4x24", "2x24,1x48", "24+16".

        Args:
            text: counts and sizes.
            host: bytes of the host's memory; None: twice that of the cards, at least 64 GiB.

        Raises:
            PlanError: not understood, no card or more than `MAX_CARDS`.
        """
        sizes: list[float] = []
        for piece in re.split(r"[,+;]", text):
            read = re.fullmatch(r"\s*(?:(\d{1,3})\s*[xX×*]\s*)?(\d{1,4}(?:\.\d{1,3})?)\s*", piece)
            if not read or float(read[2]) <= 0:
                raise PlanError(f"The cards {text!r} are not understood.", "Write 1x24, 4x24 or 2x24,1x48, in GiB.")
            sizes += [float(read[2])] * int(read[1] or 1)
        if not 1 <= len(sizes) <= MAX_CARDS:
            raise PlanError(f"{len(sizes)} cards cannot be planned for.", f"Name 1 to {MAX_CARDS}.")
        cards = tuple(Card(f"cuda:{i}", int(size * GIB)) for i, size in enumerate(sizes))
        return cls(cards, max(_LEAST_HOST, 2 * sum(c.total for c in cards)) if host is None else host)

    @classmethod
    def here(cls) -> Hardware:
        """The cards of this machine, with what is free on them now.

        Raises:
            PlanError: there are none.
        """
        import torch

        found = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        if not found:
            raise PlanError("There is no GPU here.", "Name cards, for example --gpus 1x24, or work on the CPU.")
        memory = [torch.cuda.mem_get_info(i) for i in found]
        cards = tuple(Card(f"cuda:{i}", total, free) for i, (free, total) in zip(found, memory, strict=True))
        return cls(cards, host_bytes(), "measured")

    def only(self, names: Sequence[str]) -> Hardware:
        """The same without the cards that are not named."""
        return dataclasses.replace(self, cards=tuple(c for c in self.cards if c.name in names))

    def giving_back(self, held: Mapping[str, int]) -> Hardware:
        """The same with free what this process holds on its cards, or `held` bytes of other processes, if more."""
        import torch

        def free(card: Card) -> int | None:
            own = torch.cuda.memory_reserved(card.name) if card.name.startswith("cuda") else 0
            return None if card.free is None else min(card.total, card.free + max(own, held.get(card.name, 0)))

        return self._each(lambda card: dataclasses.replace(card, free=free(card)))

    def as_fast_as(self, speeds: Mapping[str, Speed]) -> Hardware:
        """The same with the measured speeds of some cards, by name."""

        def timed(card: Card) -> Card:
            s = speeds.get(card.name)
            return (
                card
                if s is None
                else dataclasses.replace(
                    card,
                    plain_tflops=s.plain,
                    fp8_tflops=s.fp8,
                    attention_tflops=s.attention,
                    copy_gb=s.copy,
                    computes_fp8=s.computes_fp8,
                )
            )

        return self._each(timed)

    def computing_fp8(self, by_card: Mapping[str, bool]) -> Hardware:
        """The same, knowing of some cards whether they compute in fp8."""
        return self._each(lambda c: dataclasses.replace(c, computes_fp8=by_card.get(c.name, c.computes_fp8)))

    def capped(self, most: int | None) -> Hardware:
        """The same with at most so many bytes used per card, the context among them; None: all."""
        return self._each(lambda card: dataclasses.replace(card, cap=most))

    @property
    def cap(self) -> int | None:
        """The most that is used of any card, where that is capped."""
        return max((card.cap for card in self.cards if card.cap is not None), default=None)

    def _each(self, changed: Callable[[Card], Card]) -> Hardware:
        return dataclasses.replace(self, cards=tuple(map(changed, self.cards)))

    @property
    def usable_host(self) -> int:
        """Bytes that may be pinned."""
        return int(HOST_SHARE * self.host)

    def __str__(self) -> str:
        counts: dict[str, int] = {}
        for card in self.cards:
            size = f"{card.total / GIB:.4g}"
            counts[size] = counts.get(size, 0) + 1
        return ",".join(f"{count}x{size}" for size, count in counts.items())


def host_bytes() -> int:
    """Memory of this machine; 64 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return _LEAST_HOST
