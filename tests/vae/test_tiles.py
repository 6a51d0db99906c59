"""Tiles cover the picture, fade into each other, and give pictures that are nearly those of the whole."""

import functools
import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.components import open_components
from liveavatar.media.image import fit_image, read_image, to_pixels
from liveavatar.offload.streams import DeviceSlot, HostSlot
from liveavatar.vae.decoding import decode_block, open_decode
from liveavatar.vae.tile_grid import OVERLAP, Grid, most_spans, most_tiles, spans, tilings
from liveavatar.vae.tiling import TiledDecoder, blend_weights, encode_tiles
from liveavatar.vae.wan import build_vae, encode, to_channels_last

PORTRAIT = Path(__file__).parents[2] / "liveavatar/mini/assets/portrait.png"
SIDE = 32
"""Latent pixels of the pictures that are compared: 256 x 256."""


@st.composite
def cuts(draw) -> tuple[int, int]:
    length = draw(st.integers(1, 200))
    return length, draw(st.integers(1, most_spans(length)))


@given(cuts())
def test_tiles_cover_all_and_share_enough(cut):
    length, count = cut
    found = spans(length, count)
    assert len(found) == count and len({len(span) for span in found}) == 1
    assert found[0].start == 0 and found[-1].stop == length
    assert all(one.stop - other.start >= OVERLAP for one, other in itertools.pairwise(found))
    assert all(one.stop <= other.start for one, other in zip(found, found[2:], strict=False))


@given(cuts(), st.sampled_from((1, 8)))
def test_shares_add_up_to_one_everywhere(cut, scale):
    found, total = spans(*cut), torch.zeros(cut[0] * scale)
    for span, share in zip(found, blend_weights(found, scale), strict=True):
        assert bool((share >= 0).all())
        total[scale * span.start : scale * span.stop] += share
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)


@given(st.integers(1, 300), st.integers(1, 300))
def test_more_tiles_are_smaller_and_cover_more(height, width):
    ways = tilings(height, width)
    grids = [Grid.of(height, width, tiles) for tiles in ways]
    assert ways[0] == (1, 1) and grids[0].covered == grids[0].tile == height * width
    assert all(b.tile < a.tile and b.covered > a.covered for a, b in itertools.pairwise(grids))
    assert tilings(width, height) == tuple((c, r) for r, c in ways) or height == width


def test_too_many_tiles_are_refused():
    assert most_tiles(16, 8) == (2, 1)
    with pytest.raises(ValueError, match="16 latent pixels cannot be cut into 3"):
        spans(16, 3)


@pytest.fixture(scope="module")
def mini():
    return open_components("mini").vae("cpu", torch.float32)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """A portrait that moves sideways, [1, 3, 37, 256, 256]."""
    still = to_pixels(fit_image(read_image(PORTRAIT), 8 * SIDE, 8 * SIDE))
    return torch.cat([torch.roll(still, frame // 4, -1) for frame in range(37)], 2)


@pytest.fixture(scope="module")
def latents(mini, pixels) -> torch.Tensor:
    with torch.inference_mode():
        return encode(mini, pixels)


@torch.inference_mode()
def tiled(vae, latents: torch.Tensor, tiles=(2, 2), slot=DeviceSlot, blocks=(3,)) -> torch.Tensor:
    decode = TiledDecoder(vae, latents, tiles, slot)
    return torch.cat([decode(part) for part in latents[0, :, 7 : 7 + sum(blocks)].split(list(blocks), 1)], 1)


@torch.inference_mode()
def untiled(vae, latents: torch.Tensor, count: int = 3) -> torch.Tensor:
    return decode_block(vae, open_decode(vae, latents), latents[0, :, 7 : 7 + count])


def psnr(one: torch.Tensor, other: torch.Tensor, span: float) -> float:
    return 10 * math.log10(span**2 / float((one - other).square().mean()))


@pytest.fixture(scope="module")
def whole(mini, latents) -> torch.Tensor:
    return untiled(mini, latents)


@pytest.fixture(scope="module")
def in_four(mini, latents) -> torch.Tensor:
    return tiled(mini, latents)


def test_one_tile_is_bit_equal_to_the_whole():
    torch.manual_seed(4)
    vae, latents, pixels = build_vae(base_dim=4), torch.randn(1, 16, 10, 6, 5), torch.rand(1, 3, 9, 48, 40)
    assert torch.equal(tiled(vae, latents, (1, 1)), untiled(vae, latents))
    with torch.inference_mode():
        assert torch.equal(encode_tiles(vae, pixels, (1, 1)), encode(vae, pixels))


def test_tiles_decode_nearly_what_the_whole_does(whole, in_four):
    assert psnr(in_four, whole, 2.0) > 59, "62.7 dB were found; rounding to 8 bits leaves 59"
    assert float((in_four - whole).abs().max()) < 0.1


def test_tiles_encode_nearly_what_the_whole_does(mini, pixels, latents):
    with torch.inference_mode():
        found = encode_tiles(mini, pixels[:, :, :13], (2, 2))
    assert psnr(found, latents[:, :, :4], float(latents.max() - latents.min())) > 68, "72 dB were found"


def test_no_seam_is_seen(whole, in_four):
    """Where tiles meet, pictures change from pixel to pixel no more than those of the whole do there."""
    one, other = spans(SIDE, 2)
    shared = slice(8 * other.start - 1, 8 * one.stop)
    for axis in (-1, -2):
        steps = [video.diff(dim=axis).abs().mean(dim=(0, 1, -3 - axis)) for video in (in_four, whole)]
        ratio = steps[0][shared] / steps[1][shared]
        assert float((ratio - 1).abs().max()) < 0.03


@pytest.mark.parametrize(
    "slot", [pytest.param(DeviceSlot, marks=pytest.mark.slow), functools.partial(HostSlot, torch.device("cpu"))]
)
def test_blocks_are_bit_equal_to_one_long_decode(slot):
    torch.manual_seed(5)
    vae, latents = build_vae(base_dim=4), torch.randn(1, 16, 16, 12, 18)
    blocks = tiled(vae, latents, (1, 2), slot, (3, 1, 2, 3))
    assert torch.equal(blocks, tiled(vae, latents, (1, 2), DeviceSlot, (9,)))


def test_what_lies_on_the_host_comes_back_in_any_layout():
    torch.manual_seed(6)
    vae = to_channels_last(build_vae(base_dim=4).to(torch.bfloat16))
    latents, there = torch.randn(1, 16, 13, 12, 18), functools.partial(HostSlot, torch.device("cpu"))
    assert torch.equal(tiled(vae, latents, (1, 2), there, (3, 3)), tiled(vae, latents, (1, 2), DeviceSlot, (6,)))


def test_a_host_berth_keeps_gaps_and_other_things_apart():
    slot = HostSlot(torch.device("cpu"))
    held = [None, "Rep", torch.arange(12.0).view(3, 4)[:, ::2], torch.randn(2, 3, 4).permute(2, 0, 1)]
    for shift in (0, 1):
        slot.store([h + shift if isinstance(h, torch.Tensor) else h for h in held])
        found = slot.load()
        assert found[:2] == [None, "Rep"]
        assert all(torch.equal(a, b + shift) for a, b in zip(found[2:], held[2:], strict=True))
    assert found[3].stride() == held[3].stride() and slot.nbytes == 2 * 256
    slot.store([torch.zeros(100)])
    assert torch.equal(slot.load()[0], torch.zeros(100)) and slot.nbytes == 512
