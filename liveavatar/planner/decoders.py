"""Sizes of the decoders that may work in place of the VAE's own, counted from their dimensions."""

from __future__ import annotations

import dataclasses

from ..config import DecoderConfig, LightConfig, TinyConfig

_LEVELS = ((1, 1, 1), (4, 1, 2), (16, 2, 2))
"""Of a tiny decoder: pixels per latent pixel, frames per latent frame, and frames that each becomes."""
_BLOCKS, _BLOCK_WEIGHTS = 3, 36
"""Memory blocks per level, and weights of one over its width squared: 3 x 3 from twice, once and once the width."""


@dataclasses.dataclass(frozen=True)
class DecoderFigures:
    """What a decoder needs.

    Attributes:
        parameters: numbers in it, as it works.
        flops: operations per latent pixel and latent frame.
        work: numbers that it takes at most per latent pixel, with what it remembers.
    """

    parameters: int
    flops: float
    work: int


def decoder_figures(config: DecoderConfig) -> DecoderFigures:
    """Those of a decoder with these dimensions."""
    return _of_light(config) if isinstance(config, LightConfig) else _of_tiny(config)


def _of_light(config: LightConfig) -> DecoderFigures:
    """Of a VAE of this width; its encoder is there and does nothing."""
    width = config.base_dim
    parameters = 13_709 * width**2 + 5_719 * width + 1_363
    return DecoderFigures(parameters, 223_473.0 * width**2 + 60_288 * width, 2_728 * width + 1_680)


def _of_tiny(config: TinyConfig) -> DecoderFigures:
    first, *_, last = config.widths
    parameters = 9 * 16 * first + first + 9 * last * 3 + 3
    operations = 9 * 16 * first + 4 * 64 * 9 * last * 3
    state = 0
    for width, following, (pixels, frames, grown) in zip(config.widths, config.widths[1:], _LEVELS, strict=False):
        weights, growing = _BLOCKS * _BLOCK_WEIGHTS * width**2, 16 * grown * width * following
        parameters += weights + _BLOCKS * 3 * width + growing
        operations += pixels * frames * (weights + growing)
        state += _BLOCKS * width * pixels
    return DecoderFigures(parameters, 2.0 * operations, state + 2 * 4 * 64 * last)
