"""A doubled picture and the 3 x 3 convolution after it as one 2 x 2 convolution of the small picture.

Each pixel of the doubled picture sees 2 x 2 pixels of the small one through its 3 x 3; which of them, and with which
sums of weights, depends on whether its row and its column are even. So one convolution makes all four kinds at once, of
16 products each in place of 36, and nothing is computed on doubled pictures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_ROWS = [[[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]
"""Which of the two rows of the small picture each of the three rows lies in, for an even and for an odd row."""


def fold_weight(weight: torch.Tensor) -> torch.Tensor:
    """The weight [o, i, 3, 3] of a convolution of doubled pictures for small ones: [4 o, i, 2, 2]."""
    rows = weight.new_tensor(_ROWS, dtype=torch.float32)
    folded = torch.einsum("oiyx,auy,bvx->aboiuv", weight.float(), rows, rows).flatten(0, 2)
    return folded.to(weight.dtype).contiguous(memory_format=torch.channels_last)


def upsample_conv(
    frames: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride: int = 1
) -> torch.Tensor:
    """Frames [n, i, h, w] doubled and convolved: [stride n, o, 2h, 2w], channels last.

    Args:
        frames: small.
        weight: from `fold_weight`, or `stride` of them one after the other.
        bias: [o], added in the end.
        stride: frames that each becomes.
    """
    n, _, h, w = frames.shape
    kinds = F.conv2d(frames, weight, padding=1).unflatten(1, (stride, 2, 2, -1))
    shape = (n * stride, kinds.shape[4], 2 * h, 2 * w)
    grown = torch.empty(shape, dtype=frames.dtype, device=frames.device, memory_format=torch.channels_last)
    by_frame = grown.unflatten(0, (n, stride))
    for row in (0, 1):
        for column in (0, 1):
            here = kinds[:, :, row, column, :, row : row + h, column : column + w]
            by_frame[..., row::2, column::2].copy_(here)
    return grown if bias is None else grown.add_(bias[:, None, None])
