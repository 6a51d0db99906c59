"""The planner's bytes are those of real modules and real buffers."""

import dataclasses

import pytest
import torch

from liveavatar.config import UNTRAINED, WAN2_2_S2V_14B, ModelConfig
from liveavatar.errors import PlanError
from liveavatar.model.kv_cache import RollingKVCache
from liveavatar.model.transformer import CausalS2VTransformer, ModelSlice
from liveavatar.planner import Plan, embedder_parameters, make_plan
from liveavatar.planner.hardware import CUDA_CONTEXT_BYTES
from liveavatar.request import Request, ResolvedRequest, resolve
from liveavatar.storage import StorageConfig


def effective(size: str = "704x384", steps: int = 4) -> ResolvedRequest:
    return resolve(Request(size=size, steps=steps), (1280, 720), 160_000, 16_000)


def parameters(config: ModelConfig, part: ModelSlice) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in CausalS2VTransformer(config, part).parameters())


@pytest.mark.parametrize("config", [UNTRAINED, WAN2_2_S2V_14B], ids=["mini", "14b"])
@pytest.mark.parametrize("parts", [1, 3, 4])
def test_weights_are_counted_to_the_number(config: ModelConfig, parts: int) -> None:
    plan = make_plan(effective(), config, model="x", stages=f"1x{parts}", dtype="bfloat16")
    for stage in plan.stages:
        part = ModelSlice(stage.layers, embed=stage.layers.start == 0, head=stage.layers.stop == config.num_layers)
        assert stage.weights == 2 * parameters(config, part)
    assert (
        plan.embedders
        == 2 * embedder_parameters(config)
        == 2 * parameters(config, ModelSlice(range(0), embedders=True))
    )


def test_the_published_model_has_its_published_size() -> None:
    plan = make_plan(effective(), WAN2_2_S2V_14B, model="x", dtype="bfloat16")
    assert plan.stages[0].weights + plan.embedders == 2 * 16_295_755_609


def test_kv_caches_and_sinks_are_those_that_are_allocated() -> None:
    asked = effective("128x128", steps=3)
    plan = make_plan(asked, UNTRAINED, model="x", stages="1x2")
    kv_cache = RollingKVCache.empty(
        asked.frame_tokens, UNTRAINED.num_heads, UNTRAINED.head_dim, torch.float32, torch.device("meta")
    )
    per_layer = kv_cache.k.nbytes + kv_cache.v.nbytes
    for stage in plan.stages:
        assert stage.kv_cache == per_layer * len(stage.layers) * 3
    tokens = asked.frame_tokens * 5 // 2
    assert plan.stages[0].sink == 2 * (2 * tokens * UNTRAINED.dim * 4) * len(plan.stages[0].layers)


def test_known_figures_at_704x384() -> None:
    """10.38 GB of keys and values per step, 2.16 GB of sink."""
    stage = make_plan(effective(), WAN2_2_S2V_14B, model="x", dtype="bfloat16").stages[0]
    assert stage.kv_cache / 4 == pytest.approx(10.38e9, rel=1e-3)
    assert stage.sink / 2 == pytest.approx(2.16e9, rel=2e-3)


def test_stages_of_other_steps_share_weights_on_one_device() -> None:
    one = make_plan(effective(), UNTRAINED, model="x", stages="1x1")
    four = make_plan(effective(), UNTRAINED, model="x", stages="4x1")
    apart = make_plan(effective(), UNTRAINED, model="x", stages="4x1", devices=["a", "b", "c", "d"])
    assert four.weights_by_device == one.weights_by_device
    assert sum(apart.weights_by_device.values()) == 4 * sum(one.weights_by_device.values())


def test_processes_share_nothing_on_a_card() -> None:
    """Two stages of the same layers on one: weights and work twice, and more contexts; pinned memory as before."""
    given = {
        "model": "x",
        "stages": "2x1",
        "storage": StorageConfig(kv_offload=True, offload_text_kv=True, offload_layers=3),
    }

    def laid(device: str, processes: bool) -> Plan:
        return make_plan(effective(), UNTRAINED, devices=(device,), processes=processes, **given)

    together, apart = (laid("cuda:0", processes) for processes in (False, True))
    stage, one, two = apart.stages[0], together.terms_by_device["cuda:0"], apart.terms_by_device["cuda:0"]
    assert together.weights_by_device == {"cuda:0": stage.weights}
    assert apart.weights_by_device == {"cuda:0": 2 * stage.weights}
    assert two["weights"] == 2 * one["weights"]
    assert one["workspace"] == stage.workspace + stage.hop_bytes, "one block may wait"
    assert two["workspace"] == 2 * stage.workspace
    same = ("KV cache", "sink", "text", "slots", "conditions", "VAE")
    assert [two[name] for name in same] == [one[name] for name in same]
    assert (one["contexts"], two["contexts"]) == (0, 2 * CUDA_CONTEXT_BYTES), "of the second stage, and of the VAE"
    assert apart.host_bytes_by_machine == together.host_bytes_by_machine
    assert sum(apart.host_bytes_by_machine.values()) == stage.host_weights + 2 * stage.host_kv_cache
    assert stage.host_weights > 0 and stage.host_kv_cache > 0
    assert laid("cpu", True).terms_by_device["cpu"]["contexts"] == 0
    assert laid("studio2/cuda:1", True).terms_by_device["studio2/cuda:1"]["contexts"] == 2 * CUDA_CONTEXT_BYTES
    alone = make_plan(effective(), UNTRAINED, model="x", devices=("cuda:0", "cuda:1"), processes=True)
    assert [terms["contexts"] for terms in alone.terms_by_device.values()] == [0, 0]


@pytest.mark.parametrize("processes", [False, True])
def test_layers_on_the_host_are_there_once_a_machine(processes: bool) -> None:
    """For all stages that keep them alike, on whatever cards; each machine has its own."""
    storage = StorageConfig(kv_offload=True, offload_text_kv=True, offload_layers=1)
    given = {"model": "x", "stages": "2x2", "storage": storage, "processes": processes}
    cards = ("cuda:0", "cuda:1", "cuda:2", "cuda:3")
    here = make_plan(effective(), UNTRAINED, devices=cards, **given)
    weights = {stage.layers: stage.host_weights for stage in here.stages}
    kv_caches = sum(stage.host_kv_cache for stage in here.stages)
    assert len(weights) == 2 and min(weights.values()) > 0
    assert sum(here.host_bytes_by_machine.values()) == sum(weights.values()) + kv_caches
    there = make_plan(effective(), UNTRAINED, devices=(*cards[:2], "studio2/cuda:0", "studio2/cuda:1"), **given)
    halves = {"this machine": there.stages[:2], "studio2": there.stages[2:]}
    assert there.host_bytes_by_machine == {
        name: sum(stage.host_weights + stage.host_kv_cache for stage in stages) for name, stages in halves.items()
    }
    other = dataclasses.replace(
        here.stages[2], storage=dataclasses.replace(storage, offload_layers=2), host_weights=10**9
    )
    differing = dataclasses.replace(here, stages=(*here.stages[:2], other, here.stages[3]))
    assert sum(differing.host_bytes_by_machine.values()) == sum(weights.values()) + kv_caches + 10**9


@pytest.mark.parametrize("wrong", [{"dtype": "int3"}, {"threads": 0}, {"stages": "5x1"}, {"stages": "1x99"}])
def test_impossible_plans_are_refused(wrong: dict) -> None:
    with pytest.raises(PlanError) as e:
        make_plan(effective(), UNTRAINED, model="x", **wrong)
    assert e.value.nearest
