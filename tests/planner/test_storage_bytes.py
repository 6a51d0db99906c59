"""What every storage takes on the device and on the host, against modules, buffers and the published figures."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.components import open_components
from liveavatar.config import MINI, UNTRAINED, WAN2_2_S2V_14B
from liveavatar.errors import PlanError
from liveavatar.model.transformer import CausalS2VTransformer, ModelSlice
from liveavatar.planner import FIDELITY_LEVELS, layer_bytes, level_of, make_plan, stage_plan
from liveavatar.planner.memory import PUBLISHED_AUX, LayerSizes, aux_models, injector_bytes, text_kv_bytes
from liveavatar.planner.pace import layer_tflop
from liveavatar.planner.search import CostTable
from liveavatar.request import Request, resolve
from liveavatar.storage import PLAIN, StorageConfig
from liveavatar.vae.decoding import DecodeState, decode_block
from liveavatar.vae.wan import build_vae

BIG = WAN2_2_S2V_14B
T = 1056


@pytest.fixture(scope="module")
def layer() -> CausalS2VTransformer:
    with torch.device("meta"):
        return CausalS2VTransformer(BIG, ModelSlice(range(4, 5)))


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
    assert text_kv_bytes(BIG.dim, "plain", 2) == 2 * leaving
    stay, leave = (LayerSizes(BIG, T, 2, StorageConfig(offload_text_kv=p)).layer_transfer_bytes for p in (False, True))
    assert stay - leave == 2 * leaving


def test_fp8_weights_are_about_as_large_as_published():
    stage = stage_plan(BIG, T, range(4), range(40), 2, "a", StorageConfig(weights="fp8"))
    plan = make_plan(effective(), BIG, model="x", dtype="bfloat16")
    assert stage.weights + plan.embedders == pytest.approx(16.65e9, rel=0.01)


def test_fp8_keys_take_a_byte_and_a_share_of_a_scale():
    stage = stage_plan(BIG, T, range(1), range(1), 2, "a", StorageConfig(kv_dtype="fp8"))
    assert stage.kv_cache == 12 * T * 2 * (5120 + 4 * 40)
    plain, small = (
        stage_plan(BIG, T, range(4), range(40), 2, "a", StorageConfig(kv_dtype=k)).kv_cache for k in ("plain", "fp8")
    )
    assert small / plain == pytest.approx(0.5, abs=0.02)


def test_keys_on_the_host_leave_two_slots():
    plain = stage_plan(BIG, T, range(4), range(40), 2, "a")
    away = stage_plan(BIG, T, range(4), range(40), 2, "a", StorageConfig(kv_offload=True))
    assert (away.kv_cache, away.host_kv_cache) == (0, plain.kv_cache)
    assert away.offload_slots == 2 * plain.kv_cache // (4 * 40), "of a layer's window"


@given(st.integers(0, 39), st.integers(1, 40), st.sampled_from(FIDELITY_LEVELS), st.integers(1, 20), st.data())
def test_what_leaves_the_device_arrives_on_the_host(first, count, rung, window, data):
    layers = range(first, min(40, first + count))
    streamed = data.draw(st.integers(0, len(layers)))
    storage = StorageConfig(**{**vars(rung.storage), "offload_layers": streamed})
    plain = stage_plan(
        BIG, T, range(4), layers, 2, "a", StorageConfig(rung.storage.weights, rung.storage.kv_dtype), window
    )
    kept = stage_plan(BIG, T, range(4), layers, 2, "a", storage, window)
    twice = LayerSizes(BIG, T, 2, storage).layer_transfer_bytes * min(streamed, 2)
    assert kept.weights + kept.host_weights == plain.weights + twice, "in a slot, and on the host"
    assert kept.kv_cache + kept.host_kv_cache == plain.kv_cache
    assert (kept.offload_slots > 0) == (storage.kv_offload)
    shelf = CostTable(BIG, T, 2, rung, window)
    if not streamed:
        assert shelf.resident_bytes(layers, 4) == kept.total
    assert shelf.pinned_weights(layers, streamed) == kept.host_weights
    assert shelf.pinned_kv_cache(len(layers), 4) == kept.host_kv_cache


@given(
    st.integers(0, 39),
    st.integers(1, 40),
    st.sampled_from([r for r in FIDELITY_LEVELS if r.offloads_layers]),
    st.data(),
)
def test_the_least_is_streamed_that_fits(first, count, rung, data):
    layers = range(first, min(40, first + count))
    shelf = CostTable(BIG, T, 2, rung)
    all_here = shelf.resident_bytes(layers, 4)
    room = data.draw(st.integers(all_here // 4, all_here))
    found = shelf.fewest_offloaded(layers, all_here - room)
    sizes = [
        stage_plan(BIG, T, range(4), layers, 2, "a", StorageConfig(**{**vars(rung.storage), "offload_layers": n})).total
        for n in range(len(layers) + 1)
    ]
    assert found == next((n for n, size in enumerate(sizes) if size <= room), None)


def test_more_streamed_layers_than_there_are_are_refused():
    with pytest.raises(PlanError, match="11 layers"):
        make_plan(effective(), BIG, model="x", stages="1x4", storage=StorageConfig(offload_layers=11))


def test_storages_stand_on_their_rungs():
    for number, rung in enumerate(FIDELITY_LEVELS):
        storage = StorageConfig(**{**vars(rung.storage), "offload_layers": 3 * rung.offloads_layers})
        assert level_of((storage,)) == number
    assert level_of((PLAIN, FIDELITY_LEVELS[4].storage)) == 4
    with pytest.raises(ValueError, match="no fidelity level"):
        level_of((StorageConfig(weights="int8"),))


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
    assert sum(p.numel() for p in vae.parameters()) == PUBLISHED_AUX.vae
    assert state.nbytes == 4 * PUBLISHED_AUX.decode_state * height * width


@pytest.mark.parametrize(("name", "config"), [("mini", MINI), ("untrained", UNTRAINED)])
def test_small_companions_are_counted(name, config):
    components, place = open_components(name), (torch.device("cpu"), torch.float32)
    known, vae = aux_models(config), components.vae(*place)
    state = DecodeState.empty(vae)
    decode_block(vae, state, torch.zeros(16, 3, 8, 8))
    assert sum(p.numel() for p in vae.parameters()) == known.vae
    assert state.nbytes == 4 * 64 * known.decode_state
    assert sum(p.numel() for p in components.text_encoder(*place)[0].parameters()) == known.text


def test_the_text_encoder_is_counted():
    """UMT5-XXL: 24 layers of 4 x 4096^2 attention, 3 x 4096 x 10240 gated, two norms, and positions of 32 x 64."""
    layer = 4 * 4096**2 + 3 * 4096 * 10240 + 2 * 4096 + 32 * 64
    assert 256_384 * 4096 + 24 * layer + 4096 == PUBLISHED_AUX.text


def effective():
    return resolve(Request(), (1280, 720), 160_000, 16_000)
