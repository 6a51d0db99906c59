"""Decoding in any chunks, in any order of sessions, gives the pictures of one whole decode, bit for bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.compiler import CompileError
from liveavatar.errors import RequestError
from liveavatar.vae.decoding import CONTEXT_LATENTS, DecodeState, decode_block, open_decode
from liveavatar.vae.wan import build_vae, encode, latent_scale
from liveavatar.vae.wan_decoder import CompiledActivation, WanDecoder


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return build_vae(base_dim=4)


def noise(frames, seed=0, side=4):
    return torch.randn(16, frames, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def theirs(vae):
    """diffusers' own, with the same weights."""
    from diffusers import AutoencoderKLWan

    made = AutoencoderKLWan(base_dim=4).eval().requires_grad_(False)
    made.load_state_dict(vae.state_dict())
    return made


@torch.no_grad()
def whole(vae, theirs, latents):
    """The whole video decoded at once, which is diffusers' own decode but for rounding."""
    mean, inverse_std = latent_scale(vae)
    at_once = decode_block(vae, DecodeState.empty(vae), latents)
    torch.testing.assert_close(at_once, theirs.decode(latents[None] / inverse_std + mean).sample[0], atol=5e-5, rtol=0)
    return at_once


@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_chunked_decode_is_bit_equal_to_whole_decode(vae, theirs, cuts):
    latents = noise(sum(cuts))
    state = DecodeState.empty(vae)
    pictures = [decode_block(vae, state, chunk) for chunk in latents.split(cuts, dim=1)]
    assert [p.shape[1] for p in pictures] == [4 * n - 3 * (i == 0) for i, n in enumerate(cuts)]
    assert torch.equal(torch.cat(pictures, 1), whole(vae, theirs, latents))
    assert state.latents == sum(cuts)


def test_warmed_up_block_yields_twelve_pictures_and_equals_the_whole_decode(vae, theirs):
    motion, block = noise(19, seed=1), noise(3, seed=2)
    rgb = decode_block(vae, open_decode(vae, motion[None]), block)
    assert rgb.shape == (3, 12, 32, 32)
    assert torch.equal(rgb, whole(vae, theirs, torch.cat([motion[:, :7], block], 1))[:, 25:])


def test_two_sessions_take_turns_without_touching_each_other(vae, theirs):
    clips = [noise(6, seed=3), noise(6, seed=4)]
    states = [DecodeState.empty(vae) for _ in clips]
    pictures = [[], []]
    for k in (0, 3):
        for clip, state, out in zip(clips, states, pictures, strict=True):
            out.append(decode_block(vae, state, clip[:, k : k + 3]))
    for clip, out in zip(clips, pictures, strict=True):
        assert torch.equal(torch.cat(out, 1), whole(vae, theirs, clip))


def test_snapshot_resumes_where_it_was_taken(vae):
    clip = noise(6, seed=5)
    state = DecodeState.empty(vae)
    decode_block(vae, state, clip[:, :3])
    kept = state.snapshot()
    expected = decode_block(vae, state, clip[:, 3:])
    decode_block(vae, state, noise(2, seed=6))
    assert torch.equal(decode_block(vae, kept, clip[:, 3:]), expected)
    assert (kept.latents, state.latents) == (6, 8)
    assert kept.nbytes == state.nbytes > 0


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_encode_is_bit_equal_to_diffusers_and_leaves_no_state(vae, theirs, frames):
    pixels = torch.rand(1, 3, frames, 32, 24, generator=torch.Generator().manual_seed(frames)) * 2 - 1
    mean, inverse_std = latent_scale(vae)
    expected = (theirs.encode(pixels).latent_dist.mode() - mean) * inverse_std
    before = dict(vars(vae))
    assert torch.equal(encode(vae, pixels), expected)
    assert vars(vae) == before


def test_latent_scale_is_rounded_to_the_vae_dtype():
    vae = build_vae(base_dim=4).to(torch.bfloat16)
    mean, inverse_std = latent_scale(vae)
    std = torch.tensor(vae.config["latents_std"]).bfloat16()
    assert torch.equal(inverse_std.flatten(), 1.0 / std)
    assert torch.equal(mean.flatten(), torch.tensor(vae.config["latents_mean"]).bfloat16())
    assert encode(vae, torch.zeros(1, 3, 1, 16, 16)).dtype == torch.float32
    rgb = decode_block(vae, DecodeState.empty(vae), noise(1, side=2))
    assert rgb.dtype == torch.float32


@pytest.mark.parametrize("shape", [(1, 3, 2, 32, 32), (1, 3, 0, 32, 32), (1, 3, 1, 30, 32), (1, 3, 1, 32, 33)])
def test_video_that_does_not_fit_is_refused(vae, shape):
    with pytest.raises(RequestError, match="multiples of 8"):
        encode(vae, torch.zeros(shape))


def test_vae_builds_without_memory():
    with torch.device("meta"):
        vae = build_vae()
    assert {p.device.type for p in vae.parameters()} == {"meta"}
    assert sum(p.numel() for p in vae.parameters()) == 126_892_531


def test_nothing_older_than_its_memory_is_remembered(vae):
    latents, (one, other) = noise(3 * CONTEXT_LATENTS, side=1), (noise(9, seed=s, side=1) for s in (5, 6))
    pictures = []
    for motion in (one, other):
        state = open_decode(vae, motion[None])
        for block in latents.split(3, 1):
            decode_block(vae, state, block)
        pictures.append(decode_block(vae, state, noise(3, seed=9, side=1)))
    assert torch.equal(*pictures)


@torch.no_grad()
def test_a_decoder_that_cannot_be_compiled_works_as_it_is_written_where_it_may(vae, caplog):
    def decoded(*activation):
        decoder = WanDecoder(vae, *activation)
        return decode_block(decoder, DecodeState.empty(decoder), noise(3))

    made = decoded(CompiledActivation("absent", optional=True))
    assert torch.equal(made, decoded())
    assert len(caplog.records) == 1 and "absent" in caplog.text
    with pytest.raises(CompileError, match="absent"):
        decoded(CompiledActivation("absent"))
