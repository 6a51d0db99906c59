"""What comes with the network: the VAE, which stays, and the encoders, which come and go before it."""

from __future__ import annotations

import dataclasses

from ..config import BLOCK_FRAMES, MINI, SPATIAL_STRIDE, UNTRAINED, ModelConfig
from ..request import Effective
from ..storage import Held
from ..vae.tiling import WHOLE, Grid, Tiles

_DECODE_WORK = 1.25
"""Activations of a decode against its caches; 1.08 to 1.2 was found with every allocation tracked."""
_PICTURES = BLOCK_FRAMES * 3 * SPATIAL_STRIDE**2 * 4
"""Bytes per latent pixel of a block's pictures in float32, to which tiles add theirs."""


@dataclasses.dataclass(frozen=True)
class Companions:
    """Sizes of the models beside the network.

    Attributes:
        vae: parameters of the VAE.
        decode_state: numbers a decode remembers per latent pixel (h x w); constant from the second latent frame on.
            1576 times the base width and 32 in the published VAE.
        decode_flops: operations per latent pixel and latent frame.
        text, audio: parameters of the encoders.
    """

    vae: int
    decode_state: int
    decode_flops: float
    text: int
    audio: int

    def vae_bytes(self, effective: Effective, size: int, tiles: Tiles = WHOLE, card: bool = True) -> Held:
        """Weights, decode caches and the activations of a decode.

        In tiles, one tile's caches and activations are on the card, and the caches of all lie on the host. At 1280x704
        in 16 bits the whole takes 9.8 GB, 4.3 of them caches. Four tiles would still take 6.8 with all caches on the
        card; with those at rest on the host they take 3.1, and 4.9 there. To carry them there and back for every block
        takes 0.4 s at 25 GB/s, where the network of a card that needs it takes ten or more.

        Args:
            effective: what is decoded.
            size: bytes per number.
            tiles: rows and columns.
            card: whether it is decoded on one; the memory of a CPU holds the caches of all tiles by itself.
        """
        grid = Grid.of(*effective.latent_size, tiles)
        cache = self.decode_state * size
        device = self.vae * size + int((1 + _DECODE_WORK) * cache * grid.tile)
        if tiles == WHOLE:
            return Held(device)
        height, width = effective.latent_size
        device += _PICTURES * height * width
        kept = cache * grid.covered
        return Held(device, kept) if card else Held(device + kept - cache * grid.tile)

    def decode_tflop(self, effective: Effective, latents: int, tiles: Tiles = WHOLE) -> float:
        """10^12 operations to decode so many latent frames; where tiles overlap, twice."""
        return self.decode_flops * Grid.of(*effective.latent_size, tiles).covered * latents / 1e12

    def encoder_bytes(self, size: int) -> int:
        """The larger encoder: they are never there together."""
        return max(self.text, self.audio) * size


PUBLISHED = Companions(
    vae=126_892_531, decode_state=151_328, decode_flops=2.163e9, text=5_680_910_336, audio=315_438_720
)
"""The Wan 2.1 VAE, UMT5-XXL and wav2vec2-large."""
_SMALL = {
    MINI: Companions(vae=2_050_595, decode_state=16_288, decode_flops=3.43e7, text=131_648, audio=215_136),
    UNTRAINED: Companions(vae=188_211, decode_state=6_528, decode_flops=5.19e6, text=64_944, audio=189_472),
}


def companions_of(config: ModelConfig) -> Companions:
    """Those of a network; one that is not known is taken to have the published ones, which are large."""
    return _SMALL.get(config, PUBLISHED)
