"""The faster CPU forms give the same pictures, and keep chunked decode bit-equal."""

import pytest
import torch

from liveavatar.vae.decoding import DecodeState, decode_block
from liveavatar.vae.wan import build_vae, encode, use_mkldnn


@pytest.fixture
def vae():
    torch.manual_seed(1)
    return build_vae(base_dim=4)


def test_quick_forms_agree_with_the_plain_ones(vae):
    latents = torch.randn(16, 3, 6, 4)
    pixels = torch.rand(1, 3, 9, 48, 32) * 2 - 1
    plain = decode_block(vae, DecodeState.empty(vae), latents), encode(vae, pixels)
    use_mkldnn(vae)
    quick = decode_block(vae, DecodeState.empty(vae), latents), encode(vae, pixels)
    for a, b in zip(plain, quick, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_quick_chunks_are_bit_equal_to_the_quick_whole(vae):
    use_mkldnn(vae)
    latents = torch.randn(16, 6, 4, 4)
    state = DecodeState.empty(vae)
    chunks = [decode_block(vae, state, c) for c in latents.split([1, 3, 2], 1)]
    assert torch.equal(torch.cat(chunks, 1), decode_block(vae, DecodeState.empty(vae), latents))


def test_a_vae_in_another_dtype_stays_as_it_is(vae):
    vae.to(torch.bfloat16)
    assert "_conv_forward" not in vars(use_mkldnn(vae).decoder.conv_in)
