"""Streaming decoding: latents to frames as they come, with all memory of the video in a state of its own."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import nn

from ..config import VAE_WARMUP_LATENTS
from .tiny import TinyDecoder
from .wan import FeatureMap
from .wan_decoder import WanDecoder

if TYPE_CHECKING:
    from .autoencoder import AutoencoderKLWan

CONTEXT_LATENTS = 14
"""Blocks after which a decoder remembers nothing older. Its causal convolutions look back over 24 frames at the
latents' own rate, 14 at twice and 26 at four times that rate: 37.5 latent frames, less than 13 blocks."""


class LatentDecoder(Protocol):
    """A network that makes frames of one latent frame after another; it may be shared, its memory lies outside."""

    @property
    def device(self) -> torch.device: ...

    @property
    def module(self) -> nn.Module:
        """Whose layers are called on the way, at least once per latent frame."""
        ...

    def empty_features(self) -> FeatureMap:
        """The memory at the start of a video."""
        ...

    def decode_latent(self, latent: torch.Tensor, features: FeatureMap, first: bool) -> torch.Tensor:
        """The frames of a latent frame [16, h, w], normalised: [3, 4, 8h, 8w] in about [-1, 1], or one frame of the
        `first`; `features` move on: their entries are replaced, never written into."""
        ...


def latent_decoder(vae: AutoencoderKLWan | LatentDecoder) -> LatentDecoder:
    """The decoder of a VAE; what is one already stays."""
    return vae if isinstance(vae, TinyDecoder | WanDecoder) else WanDecoder(cast("AutoencoderKLWan", vae))


@dataclasses.dataclass
class DecodeState:
    """How far one session's video is decoded.

    Attributes:
        features: what the decoder remembers; entries are replaced, never written into.
        latents: latent frames decoded so far.
    """

    features: FeatureMap
    latents: int = 0

    @classmethod
    def empty(cls, vae: AutoencoderKLWan | LatentDecoder) -> DecodeState:
        """The start of a video, whose first latent frame will yield one frame."""
        return cls(latent_decoder(vae).empty_features())

    def snapshot(self) -> DecodeState:
        """A state to resume from later; costs no memory until this one moves on."""
        return DecodeState(list(self.features), self.latents)

    @property
    def nbytes(self) -> int:
        """Bytes the state holds on the decoder's device."""
        return sum(f.nbytes for f in self.features if isinstance(f, torch.Tensor))


def open_decode(
    vae: AutoencoderKLWan | LatentDecoder, motion_latents: torch.Tensor, warmup: int = VAE_WARMUP_LATENTS
) -> DecodeState:
    """A state that has seen the still reference, so that already the first latent of block 0 yields four frames.

    Args:
        vae: decodes.
        motion_latents: [1, 16, n >= warmup, h, w], normalised; the first `warmup` are decoded and thrown away.
    """
    decoder = latent_decoder(vae)
    state = DecodeState.empty(decoder)
    for k in range(warmup):
        decode_block(decoder, state, motion_latents[0, :, k : k + 1])
    return state


def decode_block(vae: AutoencoderKLWan | LatentDecoder, state: DecodeState, latents: torch.Tensor) -> torch.Tensor:
    """The images of the next latents; `state` moves on.

    Args:
        vae: decodes.
        state: of this video.
        latents: [16, n, h, w], normalised; n = 3 for a block.

    Returns:
        [3, 4n, 8h, 8w] in [-1, 1], float32; three frames fewer at the start of a state that was not warmed up.
    """
    decoder, frames = latent_decoder(vae), []
    for latent in latents.unbind(1):
        frames.append(decoder.decode_latent(latent, state.features, state.latents == 0))
        state.latents += 1
    return torch.cat(frames, 1).float().clamp_(-1, 1)
