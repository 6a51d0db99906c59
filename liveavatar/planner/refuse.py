"""Saying no: what is too large, and what is near and fits."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

from ..config import BLOCK_FRAMES, CLIP_BLOCKS, ModelConfig
from ..errors import PlanError
from ..pipeline import Cut
from ..request import Effective
from ..storage import options_of
from .assemble import assemble, stage_plan
from .hardware import ASSUMED_SPEEDS, GIB, MAX_CARDS, Hardware
from .ladder import LADDER, next_down
from .plan import Plan
from .search import Search, highest, searches
from .wishes import Wishes

_OFFERS = 3
_GB = 10**9
"""What caps are counted in."""


def refusal(
    effective: Effective,
    config: ModelConfig,
    hardware: Hardware,
    wishes: Wishes,
    model: str,
    smaller: Iterable[Effective],
) -> PlanError:
    """The error of a request that does not fit: what was asked, what is too large, and up to three that fit.

    Args:
        effective, config, hardware, wishes, model: of the request.
        smaller: sizes that may be offered, largest first.
    """
    cap = f" capped at {hardware.cap / 1e9:.4g} GB" if hardware.cap else ""
    clips = f" and clips of {effective.clip_blocks * BLOCK_FRAMES} frames" * (effective.clip_blocks != CLIP_BLOCKS)
    video = f"{model} at {effective.width}x{effective.height} with {effective.steps} steps{clips}"
    asked = f"{video} does not fit {hardware}{cap}"
    why = _shortage(searches(effective, config, hardware, wishes)[-1])
    offers = list(itertools.islice(_offers(effective, config, hardware, wishes, smaller), _OFFERS))
    typed = "; ".join(f"--model {model} {offer}" for offer in offers)
    return PlanError(f"{asked}: {why}.", f"What fits: {typed}." if typed else "")


def try_next(plan: Plan) -> str:
    """What takes less of the devices than a plan that did not fit after all, a sentence."""
    down = next_down(tuple(s.storage for s in plan.stages), min(len(s.layers) for s in plan.stages))
    if down is None:
        return "Nothing can be kept in less."
    rung, storage = down
    return f"Try next what takes less: {rung.name} ({options_of(storage)})."


def _offers(
    effective: Effective, config: ModelConfig, hardware: Hardware, wishes: Wishes, smaller: Iterable[Effective]
) -> Iterator[str]:
    """Command-line options that fit: clips as short as the model was trained with, a smaller video, more memory on the
    host, a higher cap, more or larger cards."""

    def fits(wanted: Effective, cards: Hardware) -> str | None:
        found = highest(searches(wanted, config, cards, wishes))
        if found is None:
            return None
        size = f"--size {wanted.width}x{wanted.height} --steps {wanted.steps}"
        if wanted.clip_blocks != CLIP_BLOCKS:
            size += f" --clip-frames {wanted.clip_blocks * BLOCK_FRAMES}"
        return f"{size}{_options(hardware, cards)} ({LADDER[found[0]].name})"

    def first(tried: Iterable[tuple[Effective, Hardware]]) -> Iterator[str]:
        yield from itertools.islice(filter(None, (fits(*pair) for pair in tried)), 1)

    largest, cap = max(card.total for card in hardware.cards), hardware.cap
    sizes = sorted(ASSUMED_SPEEDS)
    more_host = (dataclasses.replace(hardware, host=hardware.host * factor) for factor in (2, 4, 8))
    higher_caps = (hardware.capped(size * _GB) for size in sizes if cap and cap < size * _GB < largest)
    uncapped = [hardware.capped(None)] if cap else []
    count = len(hardware.cards)
    more_cards = (_cards(hardware, n, largest) for n in range(count + 1, min(2 * count + 7, MAX_CARDS) + 1))
    larger = (_cards(hardware, count, size * GIB) for size in sizes if size * GIB > largest)
    if effective.clip_blocks > CLIP_BLOCKS:
        yield from first([(dataclasses.replace(effective, clip_blocks=CLIP_BLOCKS), hardware)])
    yield from first((wanted, hardware) for wanted in smaller)
    yield from first((effective, cards) for cards in more_host)
    yield from first((effective, cards) for cards in higher_caps)
    yield from first((effective, cards) for cards in uncapped)
    yield from first((effective, cards) for cards in more_cards)
    yield from first((effective, cards) for cards in larger)


def _options(asked: Hardware, cards: Hardware) -> str:
    """How cards are named that stand beside those that were asked for; cards that are here need no name."""
    named = "" if cards.source == "measured" else f" --gpus {cards}"
    host = f" --host-ram {-(-cards.host // GIB)}" if cards.host != _usual_host(asked, cards) else ""
    return f"{named}{host}" + (f" --vram-cap {cards.cap / 1e9:.4g}" if cards.cap else "")


def _usual_host(asked: Hardware, cards: Hardware) -> int:
    """What is reckoned with where nobody says how much memory the host has."""
    return asked.host if cards.source == "measured" else Hardware.parse(str(cards)).host


def _cards(hardware: Hardware, count: int, total: int) -> Hardware:
    """So many equal cards, capped alike, with no less host memory than there is or would be assumed."""
    asked = Hardware.parse(f"{count}x{total / GIB:.4g}").capped(hardware.cap)
    return dataclasses.replace(asked, host=max(asked.host, hardware.host))


def _shortage(search: Search) -> str:
    """What is too large on the last rung, spread over all cards."""
    largest = max(search.hardware.cards, key=lambda card: card.usable)
    if search.encoders > largest.usable:
        return (
            f"the largest encoder takes {_gb(search.encoders)} and no card has more than {_gb(largest.usable)} usable"
        )
    plan = _thinnest(search)
    room = {card.name: card.usable for card in search.hardware.cards}
    over = {name: total - room[name] for name, total in plan.total_by_device.items()}
    worst = max(over, key=lambda name: over[name])
    if over[worst] > 0:
        terms = ", ".join(f"{name} {_gb(size)}" for name, size in plan.terms_by_device[worst].items() if size)
        return f"even on the last rung, {worst} would hold {terms}, and has {_gb(room[worst])} usable"
    host = sum(plan.host_bytes_by_machine.values())
    return (
        f"what the cards cannot hold, {_gb(host)}, has to lie on the host, where {_gb(search.hardware.usable_host)} may"
    )


def _thinnest(search: Search) -> Plan:
    """All layers streamed on the last rung, over all cards; the VAE on the largest."""
    config, effective = search.config, search.effective
    cards = sorted(search.hardware.cards, key=lambda card: card.usable)[-config.num_layers :]
    cut = Cut.even(1, len(cards), effective.steps, config.num_layers)
    stages = [
        stage_plan(
            config,
            effective.frame_tokens,
            cut.steps[0],
            layers,
            search.size,
            card.name,
            dataclasses.replace(LADDER[-1].storage, streamed=len(layers)),
            effective.clip_blocks,
        )
        for card, layers in zip(cards, cut.layers, strict=True)
    ]
    vae, dtype = cards[-1].name, search.wishes.dtype
    return assemble(effective, config, "", cut, stages, dtype, vae, 1, search.tiles)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
