"""Small decoders in plans: bytes and operations are those of the modules, and they let small cards fit more."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from liveavatar.bench.tracked import Allocated
from liveavatar.config import WAN2_2_S2V_14B, LightConfig, TinyConfig
from liveavatar.planner import GIB, PlanOptions, choose_plan
from liveavatar.planner.decoders import decoder_figures
from liveavatar.planner.hardware import Hardware
from liveavatar.planner.memory import PUBLISHED_AUX, aux_models
from liveavatar.request import Request, resolve
from liveavatar.vae.decoding import DecodeState, decode_block
from liveavatar.vae.tiny import TinyDecoder, fold_upsampling
from liveavatar.vae.wan import build_vae, encode
from liveavatar.vae.wan_decoder import WanDecoder

PUBLISHED, NARROW, LIGHT = TinyConfig(), TinyConfig((64, 64, 32, 16)), LightConfig()
HEIGHT, WIDTH = 24, 40


def made(config):
    """A decoder, and the module that holds its weights."""
    with torch.device("meta"):
        if isinstance(config, LightConfig):
            vae = build_vae(config.base_dim).to(torch.bfloat16)
            return WanDecoder(vae), vae
        tiny = fold_upsampling(TinyDecoder(config)).to(torch.bfloat16)
        return tiny, tiny


@pytest.mark.parametrize("config", [PUBLISHED, NARROW, LIGHT])
def test_a_small_decoder_is_counted(config):
    decoder, module = made(config)
    with torch.inference_mode(), Allocated(module.parameters()) as seen:
        state = DecodeState.empty(decoder)
        for _ in range(2):
            decode_block(decoder, state, torch.empty(16, 3, HEIGHT, WIDTH, device="meta"))
    assert sum(p.numel() for p in module.parameters()) == decoder_figures(config).parameters
    given = 1.1 * (2 * decoder_figures(config).work + 9216) * HEIGHT * WIDTH
    assert 0.8 * given < seen.most <= given


@pytest.mark.parametrize("config", [PUBLISHED, NARROW, LIGHT])
def test_its_operations_are_counted(config):
    """Folded convolutions have one row and column more than pictures, which the count leaves out."""
    decoder, latents = made(config)[0], torch.empty(16, 3, HEIGHT, WIDTH, device="meta")
    state = DecodeState.empty(decoder)
    decode_block(decoder, state, latents)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        decode_block(decoder, state, latents)
    assert counter.get_total_flops() / (3 * HEIGHT * WIDTH) == pytest.approx(decoder_figures(config).flops, rel=0.03)


def test_an_encode_fits_into_what_is_given_to_it():
    with torch.device("meta"):
        vae = build_vae().to(torch.bfloat16)
    still = torch.empty(1, 3, 1, 8 * HEIGHT, 8 * WIDTH, device="meta", dtype=torch.bfloat16)
    with torch.inference_mode(), Allocated(vae.parameters()) as seen:
        encode(vae, still.expand(-1, -1, 9, -1, -1))
    given = 2 * PUBLISHED_AUX.encode_work * HEIGHT * WIDTH
    assert 0.99 * given < seen.most <= given


def test_it_takes_less_memory_and_time_than_the_vaes_own():
    asked = resolve(Request(size="704x384"), (704, 384), 160_000, 16_000)
    full, small = aux_models(WAN2_2_S2V_14B), aux_models(WAN2_2_S2V_14B, PUBLISHED)
    assert small.vae_bytes(asked.latent_size, 2).device < 0.9 * full.vae_bytes(asked.latent_size, 2).device
    tiled = small.vae_bytes(asked.latent_size, 2, (2, 3))
    assert tiled.host == 0 and tiled.device < 0.3 * full.vae_bytes(asked.latent_size, 2).device
    assert small.decode_work(asked.latent_size, 3)[0] < 0.1 * full.decode_work(asked.latent_size, 3)[0]


def test_a_plan_with_it_says_so_and_leaves_more_to_the_network():
    asked = resolve(Request(size="704x384"), (704, 384), 160_000, 16_000)
    cards = Hardware.parse("1x24", host=64 * GIB)
    plans = [
        choose_plan(asked, WAN2_2_S2V_14B, cards, PlanOptions(tiny=decoder), model="14B")
        for decoder in (None, PUBLISHED)
    ]
    assert [plan.tiny_decoder for plan in plans] == [False, True]
    assert plans[1].vae < plans[0].vae and plans[1].vae_host == 0
