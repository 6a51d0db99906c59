"""Tiled decoding and encoding: the decoder of a grid of overlapping tiles, and how tiles are blended."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from ..config import SPATIAL_STRIDE
from .decoding import DecodeState, LatentDecoder, decode_block, latent_decoder, open_decode
from .tile_grid import WHOLE, Grid, Tiles
from .wan import FeatureMap, StreamEncoder, encode

if TYPE_CHECKING:
    from .autoencoder import AutoencoderKLWan

RAMP = 0.5
"""Share of an overlap over which one tile fades into the next: its middle. The outer quarters, where one of the two
tiles is near its edge, are the other's alone."""


class OffloadSlot(Protocol):
    """Where the decoder state of a tile lies while others are decoded."""

    def store(self, features: FeatureMap) -> None:
        """Lay it there."""

    def load(self) -> FeatureMap:
        """Have it on the VAE's device again, bit for bit."""


def open_decoder(
    vae: AutoencoderKLWan | LatentDecoder, motion: torch.Tensor, tiles: Tiles, make_slot: Callable[[], OffloadSlot]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes images of the next latents, as `decode_block`: of the whole, or of `TiledDecoder`, whose arguments
    these are."""
    if tiles != WHOLE:
        return TiledDecoder(vae, motion, tiles, make_slot)
    decoder = latent_decoder(vae)
    return functools.partial(decode_block, decoder, open_decode(decoder, motion))


class TiledDecoder:
    """The decode of one video in tiles, warmed up as `open_decode` does.

    Args:
        vae: decodes; may be shared.
        motion: [1, 16, >= 7, h, w], normalised.
        tiles: rows and columns.
        make_slot: makes one; called once per tile.

    Raises:
        ValueError: more tiles than there are latents for.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan | LatentDecoder,
        motion: torch.Tensor,
        tiles: Tiles,
        make_slot: Callable[[], OffloadSlot],
    ):
        self._decoder = latent_decoder(vae)
        self._blender = TileBlender(Grid.of(motion.shape[-2], motion.shape[-1], tiles), SPATIAL_STRIDE, vae.device)
        self._slots = [self._begin_tile(tile, make_slot()) for tile in self._blender.split(motion)]

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """The images of the next latents [16, n, h, w]: as `decode_block`."""
        tiles = enumerate(self._blender.split(latents))
        return self._blender.blend(self._decode_tile(number, tile) for number, tile in tiles).clamp_(-1, 1)

    def _begin_tile(self, motion: torch.Tensor, rest: OffloadSlot) -> tuple[OffloadSlot, int]:
        """A tile that is warmed up and rests."""
        state = open_decode(self._decoder, motion)
        rest.store(state.features)
        return rest, state.latents

    def _decode_tile(self, number: int, latents: torch.Tensor) -> torch.Tensor:
        """The images of one tile, which goes to rest again."""
        rest, before = self._slots[number]
        state = DecodeState(rest.load(), before)
        frames = decode_block(self._decoder, state, latents)
        rest.store(state.features)
        self._slots[number] = (rest, state.latents)
        return frames


def encode_tiles(vae: AutoencoderKLWan, pixels: torch.Tensor, tiles: Tiles) -> torch.Tensor:
    """Video to normalised latents, tile after tile: arguments and result as of `encode`.

    Raises:
        RequestError: as `encode`.
        ValueError: more tiles than there are latents for.
    """
    if tiles == WHOLE:
        return encode(vae, pixels)
    height, width = (n // SPATIAL_STRIDE for n in pixels.shape[-2:])
    blender = TileBlender(Grid.of(height, width, tiles), 1, vae.device)
    return blender.blend(encode(vae, tile) for tile in blender.split(pixels, SPATIAL_STRIDE))


def open_encoder(vae: AutoencoderKLWan, size: tuple[int, int], tiles: Tiles) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes latents of the next frames of a video; arguments are those of `TiledEncoder`."""
    return StreamEncoder(vae) if tiles == WHOLE else TiledEncoder(vae, size, tiles)


class TiledEncoder:
    """The encode of one video in pieces and in tiles, as `StreamEncoder`.

    Args:
        vae: encodes; may be shared.
        size: height and width of a latent frame.
        tiles: rows and columns.

    Raises:
        ValueError: more tiles than there are latents for.
    """

    def __init__(self, vae: AutoencoderKLWan, size: tuple[int, int], tiles: Tiles):
        grid = Grid.of(*size, tiles)
        self._blender = TileBlender(grid, 1, vae.device)
        self._encoders = [StreamEncoder(vae) for _ in grid.places]

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """The latents of the next frames."""
        tiles = zip(self._encoders, self._blender.split(pixels, SPATIAL_STRIDE), strict=True)
        return self._blender.blend(encoder(tile) for encoder, tile in tiles)


class TileBlender:
    """Splits images into tiles and blends tiles into images.

    Args:
        grid: where the tiles lie.
        scale: lines of what is put together, per latent pixel.
        device: of that.
    """

    def __init__(self, grid: Grid, scale: int, device: torch.device):
        self._grid, self._scale = grid, scale
        self._rows, self._columns = (
            [share.to(device) for share in blend_weights(spans, scale)] for spans in (grid.rows, grid.columns)
        )

    def split(self, whole: torch.Tensor, scale: int = 1) -> Iterator[torch.Tensor]:
        """The tiles of an image [..., h, w], as views, row by row; `scale` as of what is put together."""
        for row, column in self._grid.places:
            yield whole[(..., *self._slices(row, column, scale))]

    def blend(self, tiles: Iterable[torch.Tensor]) -> torch.Tensor:
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


def blend_weights(spans: Sequence[range], scale: int) -> list[torch.Tensor]:
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
