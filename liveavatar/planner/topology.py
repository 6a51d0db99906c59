"""The ways to give cards to stages: which cut, which cards, and where the VAE works."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from ..pipeline import Cut
from .hardware import Card


@dataclasses.dataclass(frozen=True)
class Seat:
    """A card in a topology.

    Attributes:
        card: which.
        steps: how many denoising steps its stage owns.
        first: whether it also holds the conditions.
        decodes: whether the VAE works beside the stage.
    """

    card: Card
    steps: int
    first: bool
    decodes: bool


@dataclasses.dataclass(frozen=True)
class Topology:
    """Cards laid out, before layers are given to them.

    Attributes:
        steps: the groups.
        columns: for every part of the layers, one seat per group.
        vae: the card that decodes.
        alone: whether it does nothing else.
    """

    steps: tuple[range, ...]
    columns: tuple[tuple[Seat, ...], ...]
    vae: Card
    alone: bool

    @property
    def cards(self) -> int:
        """How many work."""
        return len(self.steps) * len(self.columns) + self.alone


def topologies(cards: tuple[Card, ...], steps: int, layers: int, vae_bytes: int) -> Iterator[Topology]:
    """All that differ in more than names: large cards come first, and the smallest are left out.

    Cards of one part of the layers are neighbours by size, because they hold the same layers.

    Args:
        cards: at hand.
        steps, layers: of the video and the network.
        vae_bytes: what a card that decodes must hold.
    """
    ranked = sorted(cards, key=lambda card: -card.usable)
    decoders = [card for card in ranked if card.usable >= vae_bytes]
    spare = [card for card in ranked if card is not decoders[-1]] if decoders else []
    for groups in range(1, min(steps, len(ranked)) + 1):
        owned = Cut.even(groups, 1, steps, layers).steps
        for parts in range(1, min(layers, len(ranked) // groups) + 1):
            count = groups * parts
            if count <= len(spare):
                yield _seated(spare[:count], owned, parts, None, decoders[-1])
            yield from _shared(ranked[:count], owned, parts)


def _shared(cards: list[Card], steps: tuple[range, ...], parts: int) -> Iterator[Topology]:
    """One for each different seat the VAE could share."""
    known = set()
    for place, card in enumerate(cards):
        column, group = divmod(place, len(steps))
        kind = (card.usable, card.speed, len(steps[group]), column == 0, place == 0, column == parts - 1)
        if kind not in known:
            known.add(kind)
            yield _seated(cards, steps, parts, place, card)


def _seated(cards: list[Card], steps: tuple[range, ...], parts: int, decoding: int | None, vae: Card) -> Topology:
    """Neighbours form a column."""
    seats = [
        Seat(card, len(steps[i % len(steps)]), first=i == 0, decodes=i == decoding) for i, card in enumerate(cards)
    ]
    columns = tuple(tuple(seats[i : i + len(steps)]) for i in range(0, parts * len(steps), len(steps)))
    return Topology(steps, columns, vae, decoding is None)
