"""A VAE laid out channels last gives the same pictures and latents, and stays channels last on the way."""

import pytest
import torch
from torch import nn

from liveavatar.components import open_components
from liveavatar.vae.decoding import DecodeState, decode_block
from liveavatar.vae.wan import build_vae, encode, layout_for, optimize_layout, to_channels_last


def made(dtype: torch.dtype = torch.float32, base_dim: int = 8):
    torch.manual_seed(3)
    return build_vae(base_dim=base_dim).to(dtype)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def decoded(vae, latents: torch.Tensor) -> torch.Tensor:
    state = DecodeState.empty(vae)
    return torch.cat([decode_block(vae, state, chunk) for chunk in latents.split(3, 1)], 1)


def layout(x: torch.Tensor) -> torch.memory_format:
    """Channels last, for pictures or for videos."""
    return torch.channels_last_3d if x.ndim == 5 else torch.channels_last


def follows(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=layout(x))


def convolve_as_gpus_do(vae):
    """Let each convolution return the layout of its weights, in place, as cuDNN and oneDNN do.

    A CPU without 16-bit instructions has other convolutions, which return plain tensors whatever they are given.
    """
    for m in vae.modules():
        if isinstance(m, nn.Conv3d | nn.Conv2d) and follows(m.weight):
            m.register_forward_hook(lambda m, _, out: out.contiguous(memory_format=layout(out)))
    return vae


def passed(half: nn.Module, run) -> list[tuple[str, bool]]:
    """What the modules of a half of the VAE return meanwhile: kind, and whether it is channels last."""
    seen: list[tuple[str, bool]] = []
    hooks = [
        m.register_forward_hook(lambda m, _, out: seen.append((type(m).__name__, follows(out)))) for m in half.modules()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def test_pictures_and_latents_are_the_same_but_for_rounding():
    latents, pixels = noise(16, 6, 6, 4), noise(1, 3, 9, 48, 32).clamp(-1, 1)
    plain, other = made(), to_channels_last(made())
    torch.testing.assert_close(decoded(other, latents), decoded(plain, latents), atol=2e-5, rtol=0)
    torch.testing.assert_close(encode(other, pixels), encode(plain, pixels), atol=2e-5, rtol=0)


def test_the_trained_vae_decodes_alike_in_sixteen_bits():
    vaes = [open_components("mini").vae("cpu", torch.bfloat16) for _ in range(2)]
    latents = noise(16, 4, 6, 4)
    plain, other = decoded(vaes[0], latents), decoded(to_channels_last(vaes[1]), latents)
    exact = decoded(open_components("mini").vae("cpu", torch.float32), latents)
    assert (other - exact).square().mean() < 1.2 * (plain - exact).square().mean()


def test_blocks_of_any_length_are_bit_equal_to_the_whole():
    vae, latents = to_channels_last(made(torch.bfloat16)), noise(16, 6, 4, 6)
    state = DecodeState.empty(vae)
    chunks = [decode_block(vae, state, c) for c in latents.split([1, 3, 2], 1)]
    assert torch.equal(torch.cat(chunks, 1), decode_block(vae, DecodeState.empty(vae), latents))


def test_nothing_on_the_way_through_the_decoder_loses_the_layout():
    vae, latents = convolve_as_gpus_do(to_channels_last(made(torch.bfloat16))), noise(16, 3, 4, 6)
    state = DecodeState.empty(vae)
    decode_block(vae, state, latents)
    decode_block(vae, state, latents)
    kept = [f for f in state.features if isinstance(f, torch.Tensor)]
    assert len(kept) > 25 and all(follows(f) for f in kept)


def test_only_the_padding_loses_it_on_the_way_through_the_encoder():
    vae = convolve_as_gpus_do(to_channels_last(made(torch.bfloat16)))
    seen = passed(vae.encoder, lambda: encode(vae, noise(1, 3, 9, 32, 48)))
    assert {kind for kind, kept in seen if not kept} <= {"ZeroPad2d"}
    assert sum(not kept for _, kept in seen) < 0.02 * len(seen)


@pytest.mark.parametrize("side", [1, 2])
def test_the_smallest_pictures_work(side):
    plain, other = made(), to_channels_last(made())
    latents, pixels = noise(16, 4, side, side), noise(1, 3, 5, 8 * side, 8 * side)
    torch.testing.assert_close(decoded(other, latents), decoded(plain, latents), atol=2e-5, rtol=0)
    torch.testing.assert_close(encode(other, pixels), encode(plain, pixels), atol=2e-5, rtol=0)


def test_every_place_has_its_form():
    halves = (torch.bfloat16, torch.float16)
    assert {layout_for("cuda", dtype) for dtype in halves} == {"channels last"}
    assert layout_for("cuda", torch.float32) == "plain"
    assert layout_for("cpu", torch.float32) == "quick"
    assert {layout_for("cpu", dtype) for dtype in halves} == {layout_for("meta", torch.float32)} == {"plain"}


def test_what_is_loaded_is_suited(monkeypatch):
    conv = open_components("mini").vae("cpu", torch.float32).decoder.conv_in
    assert "_conv_forward" in vars(conv) and conv.weight.is_contiguous()
    monkeypatch.setattr("liveavatar.vae.wan.layout_for", lambda device, dtype: "channels last")
    with torch.inference_mode():
        vae = optimize_layout(open_components("mini").vae("cpu", torch.bfloat16))
    assert all(follows(m.weight) for m in vae.modules() if isinstance(m, nn.Conv3d | nn.Conv2d))
