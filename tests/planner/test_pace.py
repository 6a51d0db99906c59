"""What the forecast reckons with: counts are counted again, and the sums are those that were made by hand."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planner.traffic import layer_traffic as counted_layer
from planner.traffic import traffic_of

from liveavatar.components import MINI_FOLDER
from liveavatar.config import MINI, UNTRAINED, WAN2_2_S2V_14B
from liveavatar.errors import PlanError
from liveavatar.mini.untrained import VAE
from liveavatar.placement import Placement
from liveavatar.planner import GIB, DeviceSpec, DeviceSpeed, Hardware, MeasuredSpeed, Plan, PlanOptions, choose_plan
from liveavatar.planner.memory import DTYPE_BYTES, aux_models
from liveavatar.planner.pace import COMPILE_SECONDS, compiling_saves, compute_seconds, layer_traffic, layer_work
from liveavatar.request import Request, image_size_for, resolve
from liveavatar.storage import StorageConfig
from liveavatar.vae.decoding import DecodeState, decode_block
from liveavatar.vae.wan import build_vae

COUNTED = 0.03
"""How far a count may be from what is reckoned with."""
CARD = DeviceSpeed(700, 1150, 600, 50, 3000)


@pytest.mark.parametrize("kv_dtype", ["plain", "fp8", "int4"])
@pytest.mark.parametrize("weights", ["plain", "fp8", "fp8-tensor"])
@pytest.mark.parametrize("layer", [1, 4], ids=["layer", "with injector"])
@pytest.mark.parametrize(("rows", "columns"), [(24, 44), (12, 24)])
def test_what_a_layer_moves_is_counted(kv_dtype, weights, layer, rows, columns):
    config, storage = WAN2_2_S2V_14B, StorageConfig(weights=weights, kv_dtype=kv_dtype)
    nbytes, operations = counted_layer(config, layer, rows, columns, torch.bfloat16, storage)
    traffic = layer_traffic(storage, compiled=False)
    work = layer_work(config, rows * columns, 2, layer, traffic)
    told = f"counted {nbytes / 1e9:.2f} GB and {operations} operations: correct `liveavatar/planner/pace.py`"
    assert work.moved == pytest.approx(nbytes, rel=COUNTED), told
    assert work.launches == pytest.approx(operations, rel=0.25), told


@pytest.mark.parametrize(
    ("config", "dtype", "settings"),
    [
        (WAN2_2_S2V_14B, torch.bfloat16, {}),
        (UNTRAINED, torch.float32, VAE),
        (MINI, torch.float32, json.loads((MINI_FOLDER / "vae" / "config.json").read_text(encoding="utf-8"))),
    ],
    ids=["14B", "untrained", "mini"],
)
def test_what_the_vae_moves_is_counted(config, dtype, settings: dict[str, Any]):
    with torch.device("meta"), torch.inference_mode():
        vae = build_vae(**{name: value for name, value in settings.items() if not name.startswith("_")}).to(dtype)
        state, latents = DecodeState.empty(vae), torch.empty(16, 3, 24, 24)
        decode_block(vae, state, latents)
        counted = traffic_of(lambda: decode_block(vae, state, latents))
    _, moved = aux_models(config).decode_work((24, 24), 3)
    assert moved == pytest.approx(counted.total, rel=COUNTED), f"counted {counted.total / (3 * 24 * 24):.3g} bytes"


def plan(card: DeviceSpec, **options: Any) -> Plan:
    asked = resolve(Request(size="704x384"), image_size_for("704x384"), 160_000, 16_000)
    hardware = Hardware((card,), 512 * GIB)
    return choose_plan(asked, WAN2_2_S2V_14B, hardware, PlanOptions(**options), model="wan2.2-s2v-14b")


@pytest.mark.parametrize(
    ("size", "memory", "prefer", "eager", "fused"),
    [
        (141, 4300.0, "quality", 12.5, 13.3),
        (141, 4300.0, "speed", 14.2, 16.1),
        (80, 3000.0, "speed", 12.9, 15.3),
    ],
)
def test_one_card_is_as_fast_as_was_reckoned_by_hand(size, memory, prefer, eager, fused):
    """From products and attention at 700, 1150 and 600 TFLOP/s, the VAE at 300, and all other bytes."""
    card = DeviceSpec("cuda:0", size * GIB, measured=MeasuredSpeed(700.0, 1150.0, (("sdpa", 600.0),), 50.0, memory))
    for compiled, expected in ((False, eager), (True, fused)):
        found = plan(card, prefer=prefer, compiled=compiled)
        assert found.forecast and found.forecast.fps == pytest.approx(expected, rel=0.03)
        assert found.forecast.source == "measured" and found.compiled == compiled


def test_layers_are_compiled_where_the_video_is_long_enough_to_pay_for_it():
    card = DeviceSpec("cuda:0", 141 * GIB, measured=MeasuredSpeed(700.0, 1150.0, (("sdpa", 600.0),), 50.0, 4300.0))
    place = Placement(dtype="bfloat16", prefer="speed", compile="auto").for_cards(Hardware((card,), 512 * GIB))

    def planned(seconds: int, place: Placement = place) -> Plan:
        asked = resolve(Request(size="704x384"), image_size_for("704x384"), 16_000 * seconds, 16_000)
        return place.make_plan(asked, WAN2_2_S2V_14B, "wan2.2-s2v-14b", lambda: Hardware((card,), 512 * GIB))

    short, long = planned(60), planned(3600)
    assert short == planned(60, dataclasses.replace(place, compile=False))
    assert place == dataclasses.replace(place, compile=Placement().compile) and long.compile_optional
    asked_for = planned(3600, dataclasses.replace(place, compile=True))
    assert dataclasses.replace(long, notes=(), compile_optional=False) == asked_for
    assert not short.compiled and long.compiled and "about 90 s once" in long.notes[-1]
    assert short.forecast and long.forecast
    per_block = short.forecast.seconds_per_block - long.forecast.seconds_per_block
    saved = compiling_saves(short.forecast, long.forecast, blocks := 7500)
    assert saved == pytest.approx(per_block * blocks - COMPILE_SECONDS, abs=1)


def test_nothing_is_compiled_unasked_on_a_cpu():
    asked = resolve(Request(size="704x384"), image_size_for("704x384"), 16_000 * 3600, 16_000)
    assert not Placement(("cpu",), compile="auto").make_plan(asked, WAN2_2_S2V_14B, "wan2.2-s2v-14b").compiled
    with pytest.raises(PlanError, match="compile = 'always' is not known"):
        Placement(compile="always")  # type: ignore[arg-type]


@given(
    st.sampled_from(("plain", "fp8", "int8")),
    st.sampled_from(("plain", "attention", "fp8", "memory")),
    st.floats(1, 100),
    st.integers(16, 4000),
)
def test_faster_devices_and_compiled_layers_are_never_slower(weights, what, factor, frame_tokens):
    storage = StorageConfig(weights=weights)
    faster = dataclasses.replace(CARD, **{what: factor * getattr(CARD, what)})
    for layer in (1, 4):
        seconds = [
            compute_seconds(
                layer_work(WAN2_2_S2V_14B, frame_tokens, 2, layer, layer_traffic(storage, compiled)), storage, card
            )
            for compiled in (False, True)
            for card in (CARD, faster)
        ]
        assert seconds[1] <= seconds[0] and seconds[3] <= seconds[2] and seconds[2] <= seconds[0]


def test_a_small_picture_waits_for_what_the_host_launches():
    traffic = layer_traffic(StorageConfig(), compiled=False)
    small, large = (layer_work(WAN2_2_S2V_14B, tokens, DTYPE_BYTES["bfloat16"], 1, traffic) for tokens in (16, 1056))
    assert compute_seconds(small, StorageConfig(), CARD) == pytest.approx(small.launches * 5e-6)
    assert compute_seconds(large, StorageConfig(), CARD) > 5 * compute_seconds(small, StorageConfig(), CARD)


def test_free_memory_that_was_measured_is_not_filled_to_the_brim():
    measured = DeviceSpec("cuda:0", 24 * GIB, 20 * GIB)
    assert measured.usable == pytest.approx(0.97 * 20 * GIB - 600_000_000, abs=1)
    assert dataclasses.replace(measured, cap=10**10).usable == 10**10 - 600_000_000
