"""What the planner says a stage takes is what engines allocate, on every rung of the ladder."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from engine.tiny import ROUND_CONFIG as CONFIG
from engine.tiny import TinyComponents, tiny_effective, tiny_job
from offload.drive import Allocations, drive

from liveavatar.engine.local import LocalEngine, ModelCache
from liveavatar.offload.kv_cache import OffloadedKVCache
from liveavatar.planner import FIDELITY_LEVELS, Plan, make_plan, workspace_bytes
from liveavatar.stage import Stage
from liveavatar.storage import StorageConfig

EFFECTIVE = tiny_effective(5, 2, "128x128")
"""Long enough for a refresh of the sink, when there are two."""
DEVICE = "cpu:0"
"""So that what is on the device and what is on the host have different names."""
STORAGES = [
    *(
        dataclasses.replace(rung.storage, offload_layers=n)
        for rung in FIDELITY_LEVELS
        for n in ((1, 3) if rung.offloads_layers else (0,))
    ),
    *(StorageConfig("int8", offload_text_kv=True, offload_layers=n) for n in (0, 3)),
]
CUTS = [("1x1", torch.float32), ("2x1", torch.float32), ("1x2", torch.bfloat16)]


@pytest.fixture(scope="module")
def components() -> TinyComponents:
    made = TinyComponents(CONFIG)
    assert made.weights  # the files of this network, which are no memory of a stage
    return made


def planned(storage: StorageConfig, stages: str = "1x1", dtype: torch.dtype = torch.float32) -> Plan:
    name = str(dtype).removeprefix("torch.")
    return make_plan(EFFECTIVE, CONFIG, model="x", stages=stages, devices=(DEVICE,), dtype=name, storage=storage)


def nbytes(tensors) -> int:
    return sum(t.nbytes for t in tensors)


@pytest.mark.parametrize(("stages", "dtype"), CUTS)
@pytest.mark.parametrize("storage", STORAGES)
def test_loaded_weights_are_those_of_the_plan(
    components: TinyComponents, storage: StorageConfig, stages: str, dtype: torch.dtype
) -> None:
    plan, nets = planned(storage, stages, dtype), ModelCache()
    LocalEngine(components, plan, nets).load()
    host = sum({stage.layers: stage.host_weights for stage in plan.stages}.values())
    expected = {DEVICE: plan.weights_by_device[DEVICE] + plan.embedders, "cpu": host}
    assert nets.bytes_by_device == {name: size for name, size in expected.items() if size}
    caches = sum(stage.host_kv_cache for stage in plan.stages)
    assert sum(plan.host_bytes_by_machine.values()) == host + caches


@pytest.mark.parametrize("storage", STORAGES)
def test_every_memory_takes_what_is_planned(components: TinyComponents, storage: StorageConfig) -> None:
    driven = drive(CONFIG, tiny_job(CONFIG, EFFECTIVE), storage, components=components)
    (stage,), (plan,) = driven.stages, planned(storage).stages
    sinks: list[int] = []
    driven.run(lambda task: sinks.append(sink_bytes(stage)))
    assert max(sinks) == plan.sink
    text = (part for text in stage.text_kv[0] for part in (text.k, text.v))
    assert nbytes((*text, *stage.modulation)) == plan.text
    caches = [cache for step in stage.kv_caches.values() for cache in step]
    kept = nbytes(t for cache in caches for t in cache.tensors())
    if not storage.kv_offload:
        assert (plan.kv_cache, plan.offload_slots, plan.host_kv_cache) == (kept, 0, 0)
        return
    assert isinstance(caches[0], OffloadedKVCache)
    double_buffer = caches[0].double_buffer
    assert (plan.kv_cache, plan.host_kv_cache) == (0, kept)
    assert plan.offload_slots == nbytes(t for slot in double_buffer.slots for t in slot.buffer.tensors())
    assert kept <= double_buffer.host_buffer.bytes.nbytes < 1.03 * kept


def sink_bytes(stage: Stage) -> int:
    return nbytes(t for sinks in stage.sinks.values() for sink in sinks for t in vars(sink).values())


@pytest.mark.parametrize(
    ("storage", "stages", "dtype"),
    [*((storage, *CUTS[0]) for storage in STORAGES), *((STORAGES[i], *cut) for cut in CUTS[1:] for i in (0, -3, -1))],
)
def test_what_stays_and_the_peak_of_an_engine_are_planned(
    components: TinyComponents, storage: StorageConfig, stages: str, dtype: torch.dtype
) -> None:
    """From the first look at the prompt to the last block, with all that a run keeps besides."""
    plan, job = planned(storage, stages, dtype), tiny_job(CONFIG, EFFECTIVE)
    with Allocations() as allocations:
        engine = LocalEngine(components, plan)
        engine.load()
        loaded = allocations.peak = allocations.now
        finished = [allocations.now for _ in engine.run(job)]
    terms = plan.terms_by_device[DEVICE]
    assert loaded == pytest.approx(terms["weights"] + terms["conditions"], rel=0.001)
    lasting = sum(terms[name] for name in ("weights", "conditions", "KV cache", "slots", "text")) + terms["sink"] / 2
    most = plan.total_by_device[DEVICE] - terms["VAE"]
    assert finished[-1] == pytest.approx(lasting, rel=0.03)
    assert 0.5 * terms["workspace"] <= allocations.peak - (most - terms["workspace"]) <= terms["workspace"]


def test_a_prompt_that_takes_more_than_the_work_that_follows_counts() -> None:
    """Wide layers and a small picture: the slots of the prompt's weights are larger than all that comes after them."""
    config = dataclasses.replace(CONFIG, dim=512, num_layers=2, audio_inject_layers=(0,))
    effective, storage = tiny_effective(5, 1), StorageConfig(offload_text_kv=True)
    plan = make_plan(effective, config, model="x", devices=(DEVICE,), storage=storage)
    assert plan.stages[0].workspace > workspace_bytes(config, effective.frame_tokens, 4, storage)
    components = TinyComponents(config)
    assert components.weights
    with Allocations() as allocations:
        engine = LocalEngine(components, plan)
        engine.load()
        allocations.peak = allocations.now
        list(engine.run(tiny_job(config, effective)))
    most = plan.total_by_device[DEVICE] - plan.vae
    assert 0.9 * most < allocations.peak <= most
