"""Decoding latents as they come, one session or many on one VAE.

The decoder is causal: the first latent frame of a video yields one picture, every later one four, and all it needs of
the past are the last two frames at each of its convolutions. Those are the session's state, kept outside the module,
so chunks of any size give exactly the pictures of one long decode, and sessions can take turns.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING

import torch

from ..config import VAE_WARMUP_LATENTS
from .wan import FeatureMap, empty_features, latent_scale

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan


MEMORY_BLOCKS = 14
"""Blocks after which a decoder remembers nothing older. Its causal convolutions look back over 24 frames at the
latents' own rate, 14 at twice and 26 at four times that rate: 37.5 latent frames, less than 13 blocks."""


@dataclasses.dataclass
class DecodeState:
    """How far one session's video is decoded.

    Attributes:
        features: what the causal convolutions remember; entries are replaced, never written into.
        latents: latent frames decoded so far.
    """

    features: FeatureMap
    latents: int = 0

    @classmethod
    def empty(cls, vae: AutoencoderKLWan) -> DecodeState:
        """The start of a video, whose first latent frame will yield one picture."""
        return cls(empty_features(vae.decoder))

    def snapshot(self) -> DecodeState:
        """A state to resume from later; costs no memory until this one moves on."""
        return DecodeState(list(self.features), self.latents)

    @property
    def nbytes(self) -> int:
        """Bytes the state holds on the VAE's device."""
        return sum(f.nbytes for f in self.features if isinstance(f, torch.Tensor))


def open_decode(vae: AutoencoderKLWan, motion_latents: torch.Tensor, warmup: int = VAE_WARMUP_LATENTS) -> DecodeState:
    """A state that has seen the still reference, so that already the first latent of block 0 yields four pictures.

    Args:
        motion_latents: [1, 16, n >= warmup, h, w], normalised; the first `warmup` are decoded and thrown away.
    """
    state = DecodeState.empty(vae)
    for k in range(warmup):
        decode_block(vae, state, motion_latents[0, :, k : k + 1])
    return state


def decode_block(vae: AutoencoderKLWan, state: DecodeState, latents: torch.Tensor) -> torch.Tensor:
    """The pictures of the next latents; `state` moves on.

    Args:
        latents: [16, n, h, w], normalised; n = 3 for a block.

    Returns:
        [3, 4n, 8h, 8w] in [-1, 1], float32; three pictures fewer at the start of a state that was not warmed up.
    """
    mean, inverse_std = latent_scale(vae)
    z = (latents[None].to(vae.device, torch.float32) / inverse_std + mean).to(vae.dtype)
    pictures = []
    for k in range(z.shape[2]):
        first = {"first_chunk": state.latents == 0} if _takes_first_chunk(vae) else {}
        frame = vae.post_quant_conv(z[:, :, k : k + 1])
        pictures.append(vae.decoder(frame, feat_cache=state.features, feat_idx=[0], **first)[0])
        state.latents += 1
    return torch.cat(pictures, 1).float().clamp_(-1, 1)


def _takes_first_chunk(vae: AutoencoderKLWan) -> bool:
    """Older diffusers do not tell the decoder that a video begins; this VAE gives the same pictures either way."""
    return "first_chunk" in inspect.signature(vae.decoder.forward).parameters
