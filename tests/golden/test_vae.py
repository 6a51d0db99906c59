"""Encoding and streaming decode equal the original VAE's."""

import functools

import pytest
import torch
from golden.cases import Case, assert_matches, cases

from liveavatar.vae.decoding import DecodeState, decode_block, open_decode
from liveavatar.vae.wan import build_vae, encode, latent_scale
from liveavatar.weights.formats import vae_to_diffusers
from liveavatar.weights.load import fill
from liveavatar.weights.source import DictSource, RenamedSource


def holding(*keys):
    """The cases whose file has all of `keys`."""
    return [p for p in cases("vae", "vae_weights") if all(k in p.values[0] for k in keys)]


@functools.lru_cache(maxsize=2)
def vae_of(case: Case):
    with torch.device("meta"):
        vae = build_vae(base_dim=case.info["config"]["dim"])
    source = RenamedSource(DictSource(case.sibling("vae_weights").state_dict()), vae_to_diffusers)
    fill(vae, source, dtype=torch.float32, device="cpu")
    return vae


@pytest.mark.parametrize("case", holding("mean", "std"))
def test_latent_scale(case):
    mean, inverse_std = latent_scale(vae_of(case))
    assert torch.equal(mean.flatten(), case["mean"])
    assert torch.equal(inverse_std.flatten(), 1.0 / case["std"])


@pytest.mark.parametrize("case", holding("image", "tpp.ref_latents"))
def test_reference_latents(case):
    assert_matches(encode(vae_of(case), case["image"]), case["tpp.ref_latents"], "reference")


@pytest.mark.parametrize("case", holding("image", "tpp.motion_latents"))
def test_motion_latents_of_the_still_reference(case):
    frames = case.info["config"]["motion_frames"]
    pixels = case["image"].expand(-1, -1, frames, -1, -1)
    assert_matches(encode(vae_of(case), pixels), case["tpp.motion_latents"], "motion")


@pytest.mark.parametrize("case", holding("video9", "video9.latents"))
def test_moving_video_latents(case):
    assert_matches(encode(vae_of(case), case["video9"]), case["video9.latents"], "video")


@pytest.mark.parametrize("case", holding("clip_latents", "decode.clip3_rgb.stride2"))
def test_plain_decode(case):
    expected = case["decode.clip3_rgb.stride2"][0]
    vae = vae_of(case)
    latents = case["clip_latents"][0, :, : (expected.shape[1] + 3) // 4]
    rgb = decode_block(vae, DecodeState.empty(vae), latents)
    assert rgb.shape[1] == case.info["decode_clip3_frames"]
    assert_matches(rgb[..., ::2, ::2], expected, "pictures")


@pytest.mark.parametrize("case", holding("decode.clamp_in", "decode.clamp_rgb"))
def test_pictures_are_clamped(case):
    vae = vae_of(case)
    rgb = decode_block(vae, DecodeState.empty(vae), case["decode.clamp_in"][0])
    assert_matches(rgb, case["decode.clamp_rgb"][0], "pictures")
    assert rgb.abs().max() <= 1


@pytest.mark.parametrize("case", holding("tpp.motion_latents", "clip_latents", "tpp.stream.rgb.stride3"))
def test_streaming_decode_after_the_warm_up(case):
    """The recorded calls: some motion latents first, then blocks; the first block dropped its first pictures."""
    vae, (prime, *blocks) = vae_of(case), case.info["stream_calls"]
    state = open_decode(vae, case["tpp.motion_latents"], warmup=prime["latents"])
    pictures, at = [], 0
    for call in blocks:
        rgb = decode_block(vae, state, case["clip_latents"][0, :, at : at + call["latents"]])
        assert rgb.shape[1] == call["frames"]
        pictures.append(rgb[:, call["frames"] - call["kept"] :])
        at += call["latents"]
    rgb = torch.cat(pictures, 1)[None]
    assert_matches(rgb[..., ::3, ::3], case["tpp.stream.rgb.stride3"], "every third row and column")
    if "tpp.stream.rgb.head1" in case:
        assert_matches(rgb[:, :, :1], case["tpp.stream.rgb.head1"], "first picture")
    if "tpp.stream.rgb.tail1" in case:
        assert_matches(rgb[:, :, -1:], case["tpp.stream.rgb.tail1"], "last picture")


@pytest.mark.parametrize("case", holding("tpp.motion_latents", "tpp.stream.prime_last2"))
def test_warm_up_pictures(case):
    vae, prime = vae_of(case), case.info["stream_calls"][0]
    rgb = decode_block(vae, DecodeState.empty(vae), case["tpp.motion_latents"][0, :, : prime["latents"]])
    assert rgb.shape[1] == prime["frames"]
    assert_matches(rgb[None, :, -2:], case["tpp.stream.prime_last2"], "last pictures of the warm-up")
