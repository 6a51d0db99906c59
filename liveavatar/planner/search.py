"""Laying layers over the cards of a topology on one rung: what fits, and the split that is fastest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from ..config import BLOCK_LATENTS, ModelConfig
from ..request import Effective
from ..storage import Storage
from ..vae.tiling import WHOLE, Tiles, possible, tilings
from .bytes import BYTES, condition_parameters
from .companions import companions_of
from .hardware import CONTEXT, Hardware
from .ladder import LADDER, Rung, gentler
from .plan import is_card
from .shelf import Shelf
from .speed import compute_seconds, decode_seconds, link_seconds, task_seconds
from .topology import Seat, Topology, topologies
from .wishes import Wishes

_PRECISION = 0.01
"""Share of a block's time to which the fastest split is looked for."""


@dataclasses.dataclass(frozen=True)
class Share:
    """Layers of one part, and how its stages keep them.

    Attributes:
        layers: owned.
        storage: of its stages.
        seconds: of one task, per group.
        host: pinned bytes.
        load: seconds per block of its busiest card.
    """

    layers: range
    storage: Storage
    seconds: tuple[float, ...]
    host: int
    load: float


@dataclasses.dataclass(frozen=True)
class Layout:
    """A topology with all layers given out.

    Attributes:
        topology: of the cards.
        shares: one per part of the layers.
        rung: index into `LADDER`.
        seconds: per block in a full pipeline, at least.
        decode: seconds per block of the VAE.
    """

    topology: Topology
    shares: tuple[Share, ...]
    rung: int
    seconds: float
    decode: float


@dataclasses.dataclass(frozen=True, eq=False)
class Post:
    """What waits for a share of the layers.

    Attributes:
        column: a seat per group.
        cards: at work in the whole topology.
        decode: seconds per block of the VAE.
    """

    column: tuple[Seat, ...]
    cards: int
    decode: float


class Search:
    """What fits a request on some hardware.

    Args:
        effective: what will be made.
        config: of the network.
        hardware: at hand.
        wishes: what matters; what is preferred is for others to heed.
        tiles: in which the VAE works.
    """

    def __init__(
        self, effective: Effective, config: ModelConfig, hardware: Hardware, wishes: Wishes, tiles: Tiles = WHOLE
    ):
        self.effective, self.config, self.hardware, self.wishes = effective, config, hardware, wishes
        self.size, self.beside, self.tiles = BYTES[wishes.dtype], companions_of(config), tiles
        held = self.beside.vae_bytes(effective, self.size, tiles, all(is_card(card.name) for card in hardware.cards))
        self.vae, self.vae_host = held.device, held.host
        self.conditions = condition_parameters(config) * self.size
        self.encoders = self.beside.encoder_bytes(self.size)
        self._tflop = self.beside.decode_tflop(effective, BLOCK_LATENTS, tiles)
        self._host = hardware.usable_host - self.vae_host
        self._shelves: dict[Rung, Shelf] = {}
        self._shares: dict[tuple[Post, int, int, int], Share | None] = {}
        self._known: dict[tuple[tuple[Seat, ...], int, float], Post] = {}

    def layouts(self, rung: int, *, fastest: bool = True) -> Iterator[Layout]:
        """All that fit on a rung; without `fastest`, the first split that does."""
        for topology in topologies(self.hardware.cards, self.effective.steps, self.config.num_layers, self.vae):
            if self._encoders_fit(topology):
                layout = self._lay(topology, rung, fastest)
                if layout:
                    yield layout

    def fits(self, rung: int) -> bool:
        """Whether anything fits on a rung."""
        return any(self.layouts(rung, fastest=False))

    def _encoders_fit(self, topology: Topology) -> bool:
        """They work where the VAE does, which is there before them."""
        return self.encoders + self.beside.vae * self.size <= topology.vae.usable

    def _lay(self, topology: Topology, rung: int, fastest: bool) -> Layout | None:
        """The split whose busiest card has least to do, of those whose host bytes fit."""
        posts = self._posts(topology)
        full = self._split(posts, rung, math.inf)
        if full is None:
            return None
        best = full if _host(full) <= self._host else None
        low, high = 0.0, _busiest(full)
        while (fastest or best is None) and high - low > _PRECISION * high:
            middle = (low + high) / 2
            found = self._split(posts, rung, middle)
            if found is None:
                low = middle
                continue
            high = _busiest(found)
            if _host(found) <= self._host:
                best = found
        if best is None:
            return None
        decode = decode_seconds(self._tflop, topology.vae.speed, self.vae_host)
        seconds = max(_busiest(best), decode if topology.alone else 0.0)
        return Layout(topology, tuple(best), rung, seconds, decode)

    def _posts(self, topology: Topology) -> list[Post]:
        """The columns of a topology; equal ones of different topologies are one object, which is quick to look up."""
        decode = decode_seconds(self._tflop, topology.vae.speed, self.vae_host)
        posts = (Post(column, topology.cards, decode) for column in topology.columns)
        return [self._known.setdefault((post.column, post.cards, post.decode), post) for post in posts]

    def _split(self, posts: list[Post], rung: int, limit: float) -> list[Share] | None:
        """Every part takes as many layers as fit and can be worked within `limit` seconds per block."""
        last, first = self.config.num_layers, 0
        shares: list[Share] = []
        for after, post in zip(range(len(posts) - 1, -1, -1), posts, strict=True):
            share = self._longest(post, rung, first, last - after, limit)
            if share is None:
                return None
            shares.append(share)
            first = share.layers.stop
        return shares if first == last else None

    def _longest(self, post: Post, rung: int, first: int, most: int, limit: float) -> Share | None:
        """The longest share from layer `first` on, at most to `most`."""
        best, low, high, middle = None, first + 1, most, most
        while low <= high:
            share = self._share(post, rung, first, middle)
            if share and share.load <= limit:
                best, low = share, middle + 1
            else:
                high = middle - 1
            middle = (low + high) // 2
        return best

    def _share(self, post: Post, rung: int, first: int, stop: int) -> Share | None:
        key = (post, rung, first, stop)
        if key not in self._shares:
            self._shares[key] = self._weigh(post, rung, first, stop)
        return self._shares[key]

    def _weigh(self, post: Post, rung: int, first: int, stop: int) -> Share | None:
        """The gentlest storage of a rung that fits all cards of a column."""
        for kept in gentler(rung):
            shelf = self._shelf(kept)
            layers = range(first, stop)
            need = max(shelf.resident(layers, seat.steps) - self._room(seat) for seat in post.column)
            count = shelf.least_streamed(len(layers), need)
            if count is not None:
                return self._priced(shelf, post, layers, count)
        return None

    def _shelf(self, rung: Rung) -> Shelf:
        if rung not in self._shelves:
            e = self.effective
            self._shelves[rung] = Shelf(self.config, e.frame_tokens, self.size, rung, e.clip_blocks)
        return self._shelves[rung]

    def _room(self, seat: Seat) -> int:
        """Bytes for the stage on its card."""
        decoding = self.vae + (CONTEXT if self.wishes.processes else 0)
        return seat.card.usable - (decoding if seat.decodes else 0) - (self.conditions if seat.first else 0)

    def _priced(self, shelf: Shelf, post: Post, layers: range, count: int) -> Share:
        """A share with its seconds and its bytes on the host."""
        work, storage = shelf.work(layers), shelf.storage(count)
        copied = shelf.carried(len(layers), count)
        sent = link_seconds(self.config, self.effective.frame_tokens, self.size, post.cards)
        # The cards are of one machine: all seats of a column have their layers from one copy.
        seconds, loads, host = [], [], shelf.pinned_weights(layers, count)
        for seat in post.column:
            speed = seat.card.speed
            compute = compute_seconds(*work, storage, speed)
            task = task_seconds(compute, copied, len(layers), speed, post.cards) + sent
            seconds.append(task)
            # Network and VAE work side by side, but what a card computes they share: together they take no longer than
            # one after the other.
            loads.append(task * seat.steps + (post.decode if seat.decodes else 0.0))
            host += shelf.pinned_rings(len(layers), seat.steps)
        return Share(layers, storage, tuple(seconds), host, max(loads))


def searches(effective: Effective, config: ModelConfig, hardware: Hardware, wishes: Wishes) -> tuple[Search, ...]:
    """A search for each way the VAE may work: the whole, then more and more tiles.

    Where the tiles are told there is one, or none for a picture that cannot be cut into them.
    """
    size, tiles = effective.latent_size, wishes.vae_tiles
    ways = tilings(*size) if tiles is None else (tiles,) if possible(*size, tiles) else ()
    return tuple(Search(effective, config, hardware, wishes, way) for way in ways)


def highest(ways: Sequence[Search]) -> tuple[int, Search] | None:
    """The highest rung that anything fits on, and there the first way of the VAE that lets it.

    Tiles change the pictures, though by less than their rounding to 8 bits does; what is moved to the host changes
    nothing, and what is rounded more changes the network. So tiles are tried on the last rung of each rounding, after
    all that only moves and before the next that rounds. Stages that then have room stand higher by themselves.
    """
    for rung, last in enumerate(LADDER):
        found = next((way for way in (ways if last.streams else ways[:1]) if way.fits(rung)), None)
        if found is not None:
            return rung, found
    return None


def _busiest(shares: list[Share]) -> float:
    """Seconds per block of the busiest card that holds layers."""
    return max(share.load for share in shares)


def _host(shares: list[Share]) -> int:
    """Pinned bytes."""
    return sum(share.host for share in shares)
