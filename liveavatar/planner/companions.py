"""What comes with the network: the VAE, which stays, and the encoders, which come and go before it."""

from __future__ import annotations

import dataclasses

from ..config import MINI, UNTRAINED, ModelConfig
from ..request import Effective

_DECODE_WORK = 1.25
"""Activations of a decode against its caches; 1.08 to 1.2 was found with every allocation tracked."""


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

    def vae_bytes(self, effective: Effective, size: int) -> int:
        """Weights, decode caches and the activations of a decode."""
        height, width = effective.latent_size
        return (self.vae + int((1 + _DECODE_WORK) * self.decode_state * height * width)) * size

    def decode_tflop(self, effective: Effective, latents: int) -> float:
        """10^12 operations to decode so many latent frames."""
        height, width = effective.latent_size
        return self.decode_flops * height * width * latents / 1e12

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
