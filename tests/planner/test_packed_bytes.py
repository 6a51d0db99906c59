"""What the planner says of packed matrices is what networks hold, to the byte."""

import dataclasses
import shutil

import pytest
import torch
from weights.gguf_files import mini_text_encoder, mini_transformer, write_gguf

from liveavatar.components import MINI_FOLDER, open_components, packed_of
from liveavatar.config import WAN2_2_S2V_14B, ModelConfig
from liveavatar.errors import PlanError
from liveavatar.model.transformer import ModelSlice, empty_transformer
from liveavatar.planner import (
    GIB,
    PACKED_LEVELS,
    Hardware,
    PlanOptions,
    assumed_sizes,
    choose_plan,
    lowest_level,
    make_plan,
    next_level_down,
    packed_sizes,
    stage_plan,
)
from liveavatar.planner.packed import PackedBytes, PackedSizes
from liveavatar.planner.search import CostTable
from liveavatar.request import Request, image_size_for, resolve
from liveavatar.storage import PACKED_FORMATS, StorageConfig, WeightFormat
from liveavatar.weights.block_types import FLOATS, PACKED, PackedMatrix
from liveavatar.weights.layouts import FORMATS
from liveavatar.weights.lora import ExtraLoRA

BIG, T = WAN2_2_S2V_14B, 960
GGUF = StorageConfig(weights="packed")


def mixed(config: ModelConfig) -> dict[str, PackedMatrix]:
    """Types as converters mix them: more bits for values and the way down in every other layer; a float here and
    there."""
    matrices = {}
    for layer in range(config.num_layers):
        more = PACKED["Q6_K" if layer % 2 else "Q4_K"]
        for kind in ("self_attn", "cross_attn"):
            for part in "qkvo":
                matrices[f"blocks.{layer}.{kind}.{part}"] = PackedMatrix(more if part == "v" else PACKED["Q4_K"], 128)
        matrices[f"blocks.{layer}.ffn.0"] = PackedMatrix(PACKED["Q4_K"], 64)
        matrices[f"blocks.{layer}.ffn.2"] = PackedMatrix(more)
    matrices["blocks.0.self_attn.k"] = PackedMatrix(FLOATS["F16"], 300)
    matrices |= {f"blocks.2.ffn.{n}": PackedMatrix(FORMATS[kind], 16) for n, kind in ((0, "nvfp4"), (2, "int8"))}
    matrices["blocks.3.self_attn.q"] = PackedMatrix(FORMATS["mxfp8"])
    del matrices["blocks.1.cross_attn.k"]
    return matrices


def held(net: torch.nn.Module) -> int:
    """Bytes in bfloat16, of tensors on the meta device."""
    return sum(t.numel() * (t.element_size() if t.dtype == torch.uint8 else 2) for t in net.parameters())


@pytest.mark.parametrize("weights", PACKED_FORMATS)
@pytest.mark.parametrize("layers", [range(3), range(1, 4), range(37, 40)], ids=str)
def test_layers_of_mixed_types_take_what_is_said(layers: range, weights: WeightFormat) -> None:
    matrices = mixed(BIG)
    part = ModelSlice(layers, embed=layers.start == 0, head=layers.stop == 40)
    storage, sizes = StorageConfig(weights=weights), packed_sizes(BIG, matrices)
    plan = stage_plan(BIG, T, range(4), layers, 2, "a", storage, packed=sizes)
    assert plan.weights == held(empty_transformer(BIG, part, weights, matrices))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("extra", [False, True])
def test_a_file_takes_what_its_header_says(tmp_path, kind, extra):
    shutil.copytree(MINI_FOLDER, tmp_path / "mini")
    write_gguf(tmp_path / "mini" / "mini.gguf", mini_transformer(), kind)
    pair = {f"blocks.2.self_attn.v.lora_{h}.weight": torch.ones(s) for h, s in (("A", (40, 192)), ("B", (192, 40)))}
    torch.save(pair, tmp_path / "style.pt")
    loras = (ExtraLoRA(tmp_path / "style.pt"),) if extra else ()
    model = open_components(tmp_path / "mini" / "mini.gguf", extra_loras=loras)
    layers = range(1, model.config.num_layers - 1)
    net = model.transformer(ModelSlice(layers), "cpu", torch.float32, "packed")
    packed = packed_of(model)
    found = stage_plan(model.config, 64, range(4), layers, 4, "a", GGUF, packed=packed).weights
    assert found == sum(t.nbytes for t in net.parameters())
    plain = stage_plan(model.config, 64, range(4), layers, 4, "a", packed=packed).weights
    assert found < (0.8 if kind == "Q8_0" else 0.7) * plain


def test_a_product_in_32_bits_is_counted_where_matrices_are_multiplied_as_they_are():
    sizes = assumed_sizes(BIG, FORMATS["int8"])
    plans = [
        stage_plan(BIG, T, range(4), range(4), 2, "a", StorageConfig(weights=w), packed=sizes) for w in PACKED_FORMATS
    ]
    assert plans[1].workspace - plans[0].workspace >= 3 * T * BIG.ffn_dim * 4


def test_the_published_network_in_four_bits_is_as_large_as_its_file_and_the_lora():
    """16.3 thousand million numbers: 15.8 of them in 4.5 bits, and 0.7 of the LoRA in bfloat16."""
    weights = stage_plan(BIG, T, range(4), range(40), 2, "a", GGUF, packed=assumed_sizes(BIG, PACKED["Q4_K"])).weights
    assert weights / 1e9 == pytest.approx(10.6, abs=0.3)


@pytest.mark.parametrize("offloaded", [0, 2, 7, 40])
def test_layers_of_unequal_size_are_offloaded_as_planned(offloaded):
    packed = packed_sizes(BIG, mixed(BIG))
    level = next(level for level in PACKED_LEVELS if level.offloads_layers)
    storage = StorageConfig(**{**vars(level.storage), "offload_layers": offloaded})
    costs = CostTable(BIG, T, 2, level, packed=packed)
    plan = stage_plan(BIG, T, range(4), range(40), 2, "a", storage, packed=packed)
    none = stage_plan(BIG, T, range(4), range(40), 2, "a", level.storage, packed=packed)
    assert costs.pinned_weights(range(40), offloaded) == plan.host_weights
    need = none.weights - plan.weights
    if offloaded > 2:
        assert costs.fewest_offloaded(range(40), need) == offloaded
        assert costs.fewest_offloaded(range(40), need + 1) in (offloaded + 1, None)


# -- what fits --


def chosen(cards: str, host: int, kind: str | None = "Q4_K", size: str = "640x384", **options):
    packed = assumed_sizes(BIG, (PACKED | FORMATS)[kind]) if kind else None
    video = resolve(Request(size=size), image_size_for(size), 160_000, 16_000)
    hardware = Hardware.parse(cards, host * GIB)
    return choose_plan(video, BIG, hardware, PlanOptions(packed=packed, **options), model="wan2.2-s2v-14b"), hardware


def test_four_bits_fit_a_card_of_16_with_32_of_host_memory():
    plan, hardware = chosen("1x16", 32)
    (stage,) = plan.stages
    assert stage.storage.weights == "packed" and stage.storage.kv_dtype == "fp8"
    assert plan.total_by_device["cuda:0"] <= hardware.devices[0].usable
    assert sum(plan.host_bytes_by_machine.values()) <= hardware.usable_host
    assert chosen("1x16", 32, None)[0].stages[0].storage.kv_dtype == "int4"


@pytest.mark.parametrize("cards", ["1x16", "1x24", "2x16"])
@pytest.mark.parametrize("host", [16, 32, 64])
@pytest.mark.parametrize("prefer", ["quality", "speed"])
def test_nothing_fits_beyond_what_there_is(cards, host, prefer):
    try:
        plan, hardware = chosen(cards, host, prefer=prefer)
    except PlanError as refusal:
        assert "What fits:" in str(refusal)
        return
    room = {device.name: device.usable for device in hardware.devices}
    assert all(total <= room[name] for name, total in plan.total_by_device.items())
    assert sum(plan.host_bytes_by_machine.values()) <= hardware.usable_host


def test_a_large_card_keeps_the_numbers_and_smaller_ones_what_is_packed():
    plans = [chosen(cards, 64, size="704x384")[0] for cards in ("1x141", "1x80", "1x24")]
    names = [lowest_level(tuple(stage.storage for stage in plan.stages)).name for plan in plans]
    assert names[:2] == ["unrounded", "packed as in the file"] and "KV cache offloaded" in names[2]


def test_what_did_not_fit_is_followed_by_what_takes_less():
    storage, seen = PACKED_LEVELS[1].storage, []
    packed = assumed_sizes(BIG, PACKED["Q4_K"])
    while (down := next_level_down((storage,), 40)) is not None:
        seen.append(stage_plan(BIG, T, range(4), range(40), 2, "a", storage, packed=packed).total)
        storage = down[1]
        assert storage.weights == "packed"
    seen.append(stage_plan(BIG, T, range(4), range(40), 2, "a", storage, packed=packed).total)
    assert (storage.kv_dtype, storage.offload_layers) == ("fp8", 40) and seen[-1] < seen[0] / 5


def test_matrices_of_another_file_cannot_stay_packed():
    video = resolve(Request(size="640x384"), (640, 384), 160_000, 16_000)
    with pytest.raises(PlanError, match=r"--weights packed\) only where the model.s file has them in few bits"):
        make_plan(video, BIG, model="x", storage=GGUF)


def test_a_card_of_12_with_32_of_host_memory_keeps_int4_and_says_so():
    plan, hardware = chosen("1x12", 32)
    (stage,) = plan.stages
    assert (stage.storage.weights, stage.storage.kv_dtype) == ("packed", "int4")
    assert plan.total_by_device["cuda:0"] <= hardware.devices[0].usable
    assert sum(plan.host_bytes_by_machine.values()) <= hardware.usable_host
    assert any("int4" in note for note in plan.notes)
    assert not any("int4" in note for note in chosen("1x16", 32)[0].notes)


def test_a_packed_text_encoder_lets_a_card_of_12_encode_the_prompt():
    plan, hardware = chosen("1x12", 64)
    assert plan.encoders <= hardware.devices[0].usable
    packed = dataclasses.replace(assumed_sizes(BIG, PACKED["Q4_K"]), text_encoder=PackedBytes())
    video = resolve(Request(size="640x384"), (640, 384), 160_000, 16_000)
    with pytest.raises(PlanError, match=r"the largest encoder takes 11\.4 GB"):
        choose_plan(video, BIG, hardware, PlanOptions(packed=packed), model="x")


def test_a_packed_text_encoder_alone_counts_and_packs_no_network():
    video = resolve(Request(size="640x384"), (640, 384), 160_000, 16_000)
    hardware = Hardware.parse("1x12", 64 * GIB)
    alone = PackedSizes(text_encoder=assumed_sizes(BIG, PACKED["Q4_K"]).text_encoder)
    with pytest.raises(PlanError, match=r"the largest encoder takes 11\.4 GB"):
        choose_plan(video, BIG, hardware, PlanOptions(), model="x")
    for prefer in ("quality", "speed"):
        plan = choose_plan(video, BIG, hardware, PlanOptions(packed=alone, prefer=prefer), model="x")
        assert plan.encoders <= hardware.devices[0].usable
        assert {stage.storage.weights for stage in plan.stages} == {"fp8"}
    with pytest.raises(PlanError, match=r"--weights packed\) only where the model.s file has them in few bits"):
        make_plan(video, BIG, model="x", storage=GGUF, packed=alone)


def test_a_model_with_a_packed_text_encoder_says_so(tmp_path):
    write_gguf(tmp_path / "umt5-Q8_0.gguf", mini_text_encoder(), "Q8_0", "t5encoder")
    model = open_components(MINI_FOLDER, text_encoder=tmp_path / "umt5-Q8_0.gguf")
    assert packed_of(model) == PackedSizes(text_encoder=model.packed_text_encoder)
    assert packed_of(open_components(MINI_FOLDER)) is None
