"""The decoder of the Wan 2.1 VAE, frame by frame: diffusers' weights, in a form that moves fewer bytes.

What a causal convolution reads is assembled once: the two frames it remembers, and behind them the new ones, normalised
and activated. Nothing is padded beforehand, channels lie side by side everywhere, and doubled pictures are never made
(see `upsampling`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from ..compiler import CompileError
from .upsampling import fold_weight, upsample_conv
from .wan import FeatureMap, empty_features, latent_scale

if TYPE_CHECKING:
    from .autoencoder import AutoencoderKLWan

_log = logging.getLogger(__name__)
Activation = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
_PAST = 2
"""Frames that a causal convolution looks back."""
_TINY = 1e-24
"""Under the root of a norm; the length of a pixel that is nothing at all."""
_FIRST = "first"
"""What a doubling in time remembers of a video's first latent frame, which it leaves single."""


def activate(x: torch.Tensor, gain: torch.Tensor, out: torch.Tensor) -> None:
    """Write SiLU of x [1, c, t, h, w], each pixel's channels brought to the root of their number, times a gain [c]."""
    normalised = F.rms_norm(x.permute(0, 2, 3, 4, 1), gain.shape, gain, _TINY)
    torch.ops.aten.silu.out(normalised.permute(0, 4, 1, 2, 3), out=out)


class CompiledActivation:
    """`activate` as one kernel.

    Args:
        backend: of torch.compile.
        optional: whether it works as it is written where it cannot be compiled; that is logged once.
    """

    def __init__(self, backend: str, optional: bool = False):
        self._backend, self._optional = backend, optional
        self._function: Activation | None = None
        """None: not compiled yet."""

    def __call__(self, x: torch.Tensor, gain: torch.Tensor, out: torch.Tensor) -> None:
        """See `activate`.

        Raises:
            CompileError: it cannot be compiled here, and must be.
        """
        try:
            self._function = self._function or torch.compile(activate, backend=self._backend)
            self._function(x, gain, out)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # compilers raise errors of many kinds
            if self._function is activate:
                raise
            if not self._optional:
                raise CompileError.of(error) from error
            _log.warning("The VAE's decoder goes on without compiling: %s", error)
            self._function = activate
            activate(x, gain, out)


class WanDecoder:
    """The decoder of a VAE; it may be shared, its memory lies outside (a `decoding.LatentDecoder`).

    Args:
        vae: whose weights it takes.
        activation: a norm and what follows it: `activate`, or that as one kernel.
    """

    def __init__(self, vae: AutoencoderKLWan, activation: Activation = activate):
        self._vae, self._scale = vae, latent_scale(vae)
        self._decoder = cast(Any, vae).decoder
        self._activate = activation
        self._onednn = vae.device.type == "cpu" and vae.dtype == torch.float32 and torch.backends.mkldnn.is_available()
        self._folded = {
            block: fold_weight(block.upsamplers[0].resample[1].weight)
            for block in self._decoder.up_blocks
            if block.upsamplers is not None
        }

    @property
    def device(self) -> torch.device:
        """Where the VAE is."""
        return self._vae.device

    @property
    def module(self) -> nn.Module:
        """See `LatentDecoder`; those of its attention."""
        module: nn.Module = self._decoder
        return module

    def empty_features(self) -> FeatureMap:
        """See `LatentDecoder`; the slots that a convolution of one pixel has in diffusers stay empty."""
        return empty_features(self._decoder)

    def decode_latent(self, latent: torch.Tensor, features: FeatureMap, first: bool) -> torch.Tensor:
        """See `LatentDecoder`."""
        mean, inverse_std = self._scale
        z = (latent[None, :, None].to(self.device, torch.float32) / inverse_std + mean).to(self._vae.dtype)
        x = self._vae.post_quant_conv(z).contiguous(memory_format=torch.channels_last_3d)
        decoder, memory = self._decoder, _Memory(features, self._activate)
        x = self._conv(decoder.conv_in, memory.extend(x))
        middle = decoder.mid_block
        x = self._residual(middle.resnets[0], x, memory)
        for attention, block in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = self._residual(block, attention(x), memory)
        for block in decoder.up_blocks:
            for resnet in block.resnets:
                x = self._residual(resnet, x, memory)
            if block.upsamplers is not None:
                x = self._upsample(block, x, memory)
        frames: torch.Tensor = self._conv(decoder.conv_out, memory.extend(x, decoder.norm_out))
        return frames[0]

    def _residual(self, block: Any, x: torch.Tensor, memory: _Memory) -> torch.Tensor:
        inside = self._conv(block.conv1, memory.extend(x, block.norm1))
        inside = self._conv(block.conv2, memory.extend(inside, block.norm2))
        past = x if isinstance(block.conv_shortcut, nn.Identity) else self._conv(block.conv_shortcut, x)
        return inside.add_(past)

    def _upsample(self, block: Any, x: torch.Tensor, memory: _Memory) -> torch.Tensor:
        """Twice as high and wide, and twice as long where the block doubles time; but never the first frame."""
        layer = block.upsamplers[0]
        if layer.mode == "upsample3d" and (frames := memory.extend_after_first(x)) is not None:
            pairs = self._conv(layer.time_conv, frames)
            _, channels, count, height, width = x.shape
            x = _empty(x, (1, channels, 2 * count, height, width))
            x[:, :, 0::2], x[:, :, 1::2] = pairs[:, :channels], pairs[:, channels:]
        grown = upsample_conv(x[0].transpose(0, 1), self._folded[block], layer.resample[1].bias)
        return grown.transpose(0, 1)[None]

    def _conv(self, layer: Any, frames: torch.Tensor) -> torch.Tensor:
        """A convolution that pads in space alone."""
        padding = (0, *layer._padding[3:0:-2]) if len(layer._padding) else (0, 0, 0)
        if self._onednn:
            return torch.mkldnn_convolution(
                frames, layer.weight, layer.bias, padding, layer.stride, layer.dilation, layer.groups
            )
        return F.conv3d(frames, layer.weight, layer.bias, layer.stride, padding)


class _Memory:
    """The features of one video while a latent frame passes: their slots are taken in turn."""

    def __init__(self, features: FeatureMap, activate: Activation):
        self._features, self._activate, self._slot = features, activate, 0

    def extend(self, x: torch.Tensor, norm: Any = None) -> torch.Tensor:
        """The two frames that are remembered and behind them new ones [1, c, t, h, w]; the last two are remembered.

        Args:
            x: new frames.
            norm: by which they are normalised, to be activated then; None: they are taken as they are.
        """
        past = self._features[self._slot]
        _, channels, count, height, width = x.shape
        frames = _empty(x, (1, channels, _PAST + count, height, width))
        here = frames[:, :, _PAST:]
        if norm is None:
            here.copy_(x)
        else:
            self._activate(x, norm.gamma.flatten(), here)
        if isinstance(past, torch.Tensor):
            frames[:, :, :_PAST].copy_(past)
        else:
            frames[:, :, :_PAST].zero_()
        self._features[self._slot] = frames[:, :, -_PAST:].clone()
        self._slot += 1
        return frames

    def extend_after_first(self, x: torch.Tensor) -> torch.Tensor | None:
        """As `extend`; of a video's first latent frame nothing is made and nothing remembered."""
        if self._features[self._slot] is None:
            self._features[self._slot] = _FIRST
            self._slot += 1
            return None
        return self.extend(x)


def _empty(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Frames without values, channels last."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)
