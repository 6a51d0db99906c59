"""What every storage takes on the device and on the host, against modules, buffers and the published figures."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.components import open_components
from liveavatar.config import MINI, UNTRAINED, WAN2_2_S2V_14B
from liveavatar.errors import PlanError
from liveavatar.model.transformer import CausalS2VTransformer, Part
from liveavatar.planner import LADDER, layer_bytes, make_plan, rung_of, stage_plan
from liveavatar.planner.bytes import Sizes, injector_bytes
from liveavatar.planner.companions import PUBLISHED, companions_of
from liveavatar.planner.shelf import Shelf
from liveavatar.planner.speed import layer_tflop
from liveavatar.request import Request, resolve
from liveavatar.storage import PLAIN, Storage, prompt_bytes
from liveavatar.vae.stream import DecodeState, decode_block
from liveavatar.vae.wan import build_vae

BIG = WAN2_2_S2V_14B
T = 1056


@pytest.fixture(scope="module")
def layer() -> CausalS2VTransformer:
    with torch.device("meta"):
        return CausalS2VTransformer(BIG, Part(range(4, 5)))


def test_quantised_layers_hold_a_byte_per_number_and_a_scale_per_row(layer):
    expected = 0
    for module in layer.modules():
        own = [p.numel() for p in module.parameters(recurse=False)]
        if isinstance(module, torch.nn.Linear):
            expected += module.weight.numel() + 4 * module.out_features + 2 * module.out_features
        else:
            expected += 2 * sum(own)
    assert layer_bytes(BIG, 2, "fp8") + injector_bytes(BIG, 2, "fp8") == expected


def test_prompt_weights_are_those_that_read_the_prompt(layer):
    attend = layer.blocks["4"].cross_attn
    leaving = sum(p.numel() for m in (attend.k, attend.v, attend.norm_k) for p in m.parameters())
    assert prompt_bytes(BIG.dim, "plain", 2) == 2 * leaving
    stay, leave = (Sizes(BIG, T, 2, Storage(prompt_weights=p)).travelling for p in ("stay", "leave"))
    assert stay - leave == 2 * leaving


def test_fp8_weights_are_about_as_large_as_published():
    stage = stage_plan(BIG, T, range(4), range(40), 2, "a", Storage(weights="fp8"))
    plan = make_plan(effective(), BIG, model="x", dtype="bfloat16")
    assert stage.weights + plan.conditions == pytest.approx(16.65e9, rel=0.01)


def test_fp8_keys_take_a_byte_and_a_share_of_a_scale():
    stage = stage_plan(BIG, T, range(1), range(1), 2, "a", Storage(keys="fp8"))
    assert stage.rings == 12 * T * 2 * (5120 + 4 * 40)
    plain, small = (stage_plan(BIG, T, range(4), range(40), 2, "a", Storage(keys=k)).rings for k in ("plain", "fp8"))
    assert small / plain == pytest.approx(0.5, abs=0.02)


def test_keys_on_the_host_leave_two_slots():
    plain = stage_plan(BIG, T, range(4), range(40), 2, "a")
    away = stage_plan(BIG, T, range(4), range(40), 2, "a", Storage(keys_home="host"))
    assert (away.rings, away.host_rings) == (0, plain.rings)
    assert away.slots == 2 * plain.rings // (4 * 40), "of a layer's window"


@given(st.integers(0, 39), st.integers(1, 40), st.sampled_from(LADDER), st.integers(1, 20), st.data())
def test_what_leaves_the_device_arrives_on_the_host(first, count, rung, window, data):
    layers = range(first, min(40, first + count))
    streamed = data.draw(st.integers(0, len(layers)))
    storage = Storage(**{**vars(rung.storage), "streamed": streamed})
    plain = stage_plan(BIG, T, range(4), layers, 2, "a", Storage(rung.storage.weights, rung.storage.keys), window)
    kept = stage_plan(BIG, T, range(4), layers, 2, "a", storage, window)
    twice = Sizes(BIG, T, 2, storage).travelling * min(streamed, 2)
    assert kept.weights + kept.host_weights == plain.weights + twice, "in a slot, and on the host"
    assert kept.rings + kept.host_rings == plain.rings
    assert (kept.slots > 0) == (storage.keys_home == "host")
    shelf = Shelf(BIG, T, 2, rung, window)
    if not streamed:
        assert shelf.resident(layers, 4) == kept.total
    assert shelf.pinned_weights(layers, streamed) == kept.host_weights
    assert shelf.pinned_rings(len(layers), 4) == kept.host_rings


@given(st.integers(0, 39), st.integers(1, 40), st.sampled_from([r for r in LADDER if r.streams]), st.data())
def test_the_least_is_streamed_that_fits(first, count, rung, data):
    layers = range(first, min(40, first + count))
    shelf = Shelf(BIG, T, 2, rung)
    all_here = shelf.resident(layers, 4)
    room = data.draw(st.integers(all_here // 4, all_here))
    found = shelf.least_streamed(len(layers), all_here - room)
    sizes = [
        stage_plan(BIG, T, range(4), layers, 2, "a", Storage(**{**vars(rung.storage), "streamed": n})).total
        for n in range(len(layers) + 1)
    ]
    assert found == next((n for n, size in enumerate(sizes) if size <= room), None)


def test_more_streamed_layers_than_there_are_are_refused():
    with pytest.raises(PlanError, match="11 layers"):
        make_plan(effective(), BIG, model="x", stages="1x4", storage=Storage(streamed=11))


def test_storages_stand_on_their_rungs():
    for number, rung in enumerate(LADDER):
        storage = Storage(**{**vars(rung.storage), "streamed": 3 * rung.streams})
        assert rung_of((storage,)) == number
    assert rung_of((PLAIN, LADDER[4].storage)) == 4
    with pytest.raises(ValueError, match="no rung"):
        rung_of((Storage(weights="int8"),))


def test_operations_are_those_of_the_published_network():
    """120.8 TFLOP per block and step at 704x384: 80 in matrices and 41 in attention."""
    work = [layer_tflop(BIG, T, i) for i in range(40)]
    matrices, attention = (sum(part) for part in zip(*work, strict=True))
    assert matrices + attention == pytest.approx(120.8, rel=0.005)
    assert (matrices, attention) == pytest.approx((80, 41), rel=0.02)
    assert sum(map(sum, (layer_tflop(BIG, 384, i) for i in range(40)))) == pytest.approx(34.7, rel=0.005)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (24, 40)])
def test_the_published_vae_is_counted(height, width):
    with torch.device("meta"):
        vae = build_vae()
        state = DecodeState.empty(vae)
        for _ in range(2):
            decode_block(vae, state, torch.zeros(16, 3, height, width))
    assert sum(p.numel() for p in vae.parameters()) == PUBLISHED.vae
    assert state.nbytes == 4 * PUBLISHED.decode_state * height * width


@pytest.mark.parametrize(("name", "config"), [("mini", MINI), ("untrained", UNTRAINED)])
def test_small_companions_are_counted(name, config):
    components, place = open_components(name), (torch.device("cpu"), torch.float32)
    known, vae = companions_of(config), components.vae(*place)
    state = DecodeState.empty(vae)
    decode_block(vae, state, torch.zeros(16, 3, 8, 8))
    assert sum(p.numel() for p in vae.parameters()) == known.vae
    assert state.nbytes == 4 * 64 * known.decode_state
    assert sum(p.numel() for p in components.text_encoder(*place)[0].parameters()) == known.text


def test_the_text_encoder_is_counted():
    """UMT5-XXL: 24 layers of 4 x 4096^2 attention, 3 x 4096 x 10240 gated, two norms, and positions of 32 x 64."""
    layer = 4 * 4096**2 + 3 * 4096 * 10240 + 2 * 4096 + 32 * 64
    assert 256_384 * 4096 + 24 * layer + 4096 == PUBLISHED.text


def effective():
    return resolve(Request(), (1280, 720), 160_000, 16_000)
