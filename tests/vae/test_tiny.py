"""The tiny decoder: the published structure, bit-equal in any chunks, and files of it told from others."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from liveavatar.codec import vae_decoder
from liveavatar.components import load_tiny
from liveavatar.config import WAN_LATENT_SCALE, TinyConfig
from liveavatar.errors import ModelError
from liveavatar.vae.decoding import DecodeState, decode_block, open_decode
from liveavatar.vae.tiny import TinyDecoder, fold_upsampling
from liveavatar.weights.settings import tiny_weights

NARROW = TinyConfig((16, 8, 8, 4))
PUBLISHED_SHAPES = {
    "decoder.1.weight": (256, 16, 3, 3),
    "decoder.3.conv.0.weight": (256, 512, 3, 3),
    "decoder.7.conv.weight": (256, 256, 1, 1),
    "decoder.8.weight": (128, 256, 3, 3),
    "decoder.13.conv.weight": (256, 128, 1, 1),
    "decoder.17.conv.4.bias": (64,),
    "decoder.19.conv.weight": (128, 64, 1, 1),
    "decoder.20.weight": (64, 64, 3, 3),
    "decoder.22.bias": (3,),
}


def made(config=NARROW):
    """Random weights, of which frames are neither grey nor clipped."""
    torch.manual_seed(5)
    decoder = TinyDecoder(config).eval().requires_grad_(False)
    for weight in decoder.parameters():
        weight.mul_(1.6)
    return decoder


def noise(frames, side=4):
    return torch.randn(16, frames, side, side, generator=torch.Generator().manual_seed(frames))


def whole(decoder, latents):
    """A video decoded at once."""
    return decode_block(decoder, DecodeState.empty(decoder), latents)


@pytest.fixture(scope="module")
def folded():
    return fold_upsampling(made())


def test_its_tensors_are_named_and_shaped_as_the_published_ones():
    with torch.device("meta"):
        tensors = TinyDecoder(TinyConfig()).state_dict()
    assert len(tensors) == 64
    assert {name: tuple(tensors[name].shape) for name in PUBLISHED_SHAPES} == PUBLISHED_SHAPES


@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_chunks_are_bit_equal_to_the_whole(folded, cuts):
    latents, state = noise(sum(cuts)), DecodeState.empty(folded)
    frames = [decode_block(folded, state, chunk) for chunk in latents.split(cuts, 1)]
    assert [f.shape[1] for f in frames] == [4 * n - 3 * (i == 0) for i, n in enumerate(cuts)]
    assert torch.equal(torch.cat(frames, 1), whole(folded, latents))


def test_two_videos_in_turns_do_not_disturb_each_other(folded):
    clips = [noise(6), noise(6) + 1]
    states, taken = [DecodeState.empty(folded) for _ in clips], [[], []]
    for at in (0, 3):
        for clip, state, frames in zip(clips, states, taken, strict=True):
            frames.append(decode_block(folded, state, clip[:, at : at + 3]))
    for clip, frames in zip(clips, taken, strict=True):
        assert torch.equal(torch.cat(frames, 1), whole(folded, clip))


@pytest.mark.parametrize("config", [NARROW, TinyConfig((32, 16, 16, 8), WAN_LATENT_SCALE)])
def test_the_quick_form_gives_the_same_frames(config):
    plain = made(config)
    one, other = (
        decode_block(d, DecodeState.empty(d), noise(3)) for d in (plain, fold_upsampling(copy.deepcopy(plain)))
    )
    assert one.std() > 0.1
    torch.testing.assert_close(other, one, atol=1e-5, rtol=0)


def test_a_block_becomes_bytes_where_it_is_decoded(folded):
    motion, block = noise(7), noise(3)
    frames = vae_decoder(folded, motion, 1, as_bytes=True)(block)
    assert frames.dtype == torch.uint8 and frames.shape == (3, 12, 32, 32)
    floats = decode_block(folded, open_decode(folded, motion[None]), block)
    assert (frames.float() / 127.5 - 1 - floats).abs().max() <= 0.5 / 127.5 + 1e-6


def written(path, config=NARROW):
    save_file(made(config).state_dict(), path)
    return path


def test_dimensions_are_read_off_the_file(tmp_path):
    assert tiny_weights(written(tmp_path / "taew2_1.safetensors"))[1] == NARROW
    assert tiny_weights(written(tmp_path / "lighttaew2_1.safetensors"))[1].latent_scale == WAN_LATENT_SCALE
    decoder = load_tiny(tmp_path / "taew2_1.safetensors", "cpu", torch.float32)
    torch.testing.assert_close(whole(decoder, noise(2)), whole(made(), noise(2)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "replaced", "words"),
    [
        ("taew2_2.safetensors", {"decoder.1.weight": (16, 48, 3, 3)}, "of Wan 2.2, not of Wan 2.1"),
        ("lighttaehy1_5.safetensors", {"decoder.1.weight": (16, 32, 3, 3)}, "of HunyuanVideo 1.5"),
        ("taehv.safetensors", {}, "of HunyuanVideo, not"),
    ],
)
def test_the_tiny_vae_of_another_model_is_named(tmp_path, name, replaced, words):
    save_file({**made().state_dict(), **{k: torch.ones(s) for k, s in replaced.items()}}, tmp_path / name)
    with pytest.raises(ModelError, match=words) as refusal:
        tiny_weights(tmp_path / name)
    assert "lighttaew2_1" in refusal.value.nearest


def test_a_file_that_is_none_is_named(tmp_path):
    save_file({"decoder.middle.0.residual.0.gamma": torch.zeros(2)}, tmp_path / "taew2_1.safetensors")
    with pytest.raises(ModelError, match=r"is a VAE of Wan 2\.1, not a tiny VAE"):
        tiny_weights(tmp_path / "taew2_1.safetensors")
