"""Decoding and encoding in tiles, for memory that cannot hold what the whole picture needs at once.

Every tile is decoded as a video of its own, and neighbours fade into each other. The pictures are not quite those of
the whole: near its edges a tile does not see what lies beyond, and the attention in the middle of the VAE looks at all
of the picture. Activations are those of one tile. What the tiles remember is needed all at once, because every block
goes on from it; between its turns it may lie elsewhere (`Berth`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from ..config import SPATIAL_STRIDE
from .stream import DecodeState, decode_block, open_decode
from .tiling import RAMP, WHOLE, Grid, Tiles
from .wan import FeatureMap, encode

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan


class Berth(Protocol):
    """Where what a tile remembers lies while others are worked on."""

    def put(self, features: FeatureMap) -> None:
        """Lay it there."""

    def take(self) -> FeatureMap:
        """Have it on the VAE's device again, bit for bit."""


def open_tiled(
    vae: AutoencoderKLWan, motion: torch.Tensor, tiles: Tiles, berth: Callable[[], Berth]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes pictures of the next latents, as `decode_block`: of the whole, or of `TiledDecode`, whose arguments
    these are."""
    if tiles != WHOLE:
        return TiledDecode(vae, motion, tiles, berth)
    return functools.partial(decode_block, vae, open_decode(vae, motion))


class TiledDecode:
    """The decode of one video in tiles, warmed up as `open_decode` does.

    Args:
        vae: may be shared.
        motion: [1, 16, >= 7, h, w], normalised.
        tiles: rows and columns.
        berth: makes one; called once per tile.

    Raises:
        ValueError: more tiles than there are latents for.
    """

    def __init__(self, vae: AutoencoderKLWan, motion: torch.Tensor, tiles: Tiles, berth: Callable[[], Berth]):
        self._vae = vae
        self._mosaic = Mosaic(Grid.of(motion.shape[-2], motion.shape[-1], tiles), SPATIAL_STRIDE, vae.device)
        self._resting = [self._begun(tile, berth()) for tile in self._mosaic.cut(motion)]

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """The pictures of the next latents [16, n, h, w]: as `decode_block`."""
        tiles = enumerate(self._mosaic.cut(latents))
        return self._mosaic.joined(self._decoded(number, tile) for number, tile in tiles).clamp_(-1, 1)

    def _begun(self, motion: torch.Tensor, rest: Berth) -> tuple[Berth, int]:
        """A tile that is warmed up and rests."""
        state = open_decode(self._vae, motion)
        rest.put(state.features)
        return rest, state.latents

    def _decoded(self, number: int, latents: torch.Tensor) -> torch.Tensor:
        """The pictures of one tile, which goes to rest again."""
        rest, before = self._resting[number]
        state = DecodeState(rest.take(), before)
        pictures = decode_block(self._vae, state, latents)
        rest.put(state.features)
        self._resting[number] = (rest, state.latents)
        return pictures


def encode_tiles(vae: AutoencoderKLWan, pixels: torch.Tensor, tiles: Tiles) -> torch.Tensor:
    """Video to normalised latents, tile after tile: arguments and result as of `encode`.

    Raises:
        RequestError: as `encode`.
        ValueError: more tiles than there are latents for.
    """
    if tiles == WHOLE:
        return encode(vae, pixels)
    height, width = (n // SPATIAL_STRIDE for n in pixels.shape[-2:])
    mosaic = Mosaic(Grid.of(height, width, tiles), 1, vae.device)
    return mosaic.joined(encode(vae, tile) for tile in mosaic.cut(pixels, SPATIAL_STRIDE))


class Mosaic:
    """Takes pictures apart and puts them together.

    Args:
        grid: where the tiles lie.
        scale: lines of what is put together, per latent pixel.
        device: of that.
    """

    def __init__(self, grid: Grid, scale: int, device: torch.device):
        self._grid, self._scale = grid, scale
        self._rows, self._columns = (
            [share.to(device) for share in fades(spans, scale)] for spans in (grid.rows, grid.columns)
        )

    def cut(self, whole: torch.Tensor, scale: int = 1) -> Iterator[torch.Tensor]:
        """The tiles of a picture [..., h, w], as views, row by row; `scale` as of what is put together."""
        for row, column in self._grid.places:
            yield whole[(..., *self._slices(row, column, scale))]

    def joined(self, tiles: Iterable[torch.Tensor]) -> torch.Tensor:
        """What tiles [..., h, w], which are used up, are together; one is there at a time."""
        whole: torch.Tensor | None = None
        height, width = (self._scale * spans[-1].stop for spans in (self._grid.rows, self._grid.columns))
        for (row, column), tile in zip(self._grid.places, tiles, strict=True):
            if whole is None:
                whole = tile.new_zeros(*tile.shape[:-2], height, width)
            tile.mul_(self._rows[row][:, None]).mul_(self._columns[column])
            whole[(..., *self._slices(row, column, self._scale))].add_(tile)
            del tile
        assert whole is not None
        return whole

    def _slices(self, row: int, column: int, scale: int) -> tuple[slice, slice]:
        rows, columns = self._grid.rows[row], self._grid.columns[column]
        return slice(scale * rows.start, scale * rows.stop), slice(scale * columns.start, scale * columns.stop)


def fades(spans: Sequence[range], scale: int) -> list[torch.Tensor]:
    """How much each tile has of every line it covers; the shares of a line add up to 1.

    Args:
        spans: where the tiles lie.
        scale: lines per latent pixel.

    Returns:
        [scale * length] per tile, float32, on the CPU.
    """
    shares = [torch.ones(scale * len(span)) for span in spans]
    for i, (one, other) in enumerate(itertools.pairwise(spans)):
        shared = scale * (one.stop - other.start)
        across = (torch.arange(shared) + 0.5) / shared
        rising = ((across - (1 - RAMP) / 2) / RAMP).clamp(0, 1)
        shares[i + 1][:shared] = rising
        shares[i][-shared:] = 1 - rising
    return shares
