"""Layers that pass through slots are whole while they work, and only what must travel travels."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from engine.tiny import TinyComponents, tiny_config, tiny_effective, tiny_job
from offload.drive import drive
from torch import nn

from liveavatar.model.transformer import CausalS2VTransformer, ModelSlice
from liveavatar.offload.layers import LayerPrefetcher, PackedModule, attach_prefetchers, read_devices
from liveavatar.offload.streams import SynchronousCopies
from liveavatar.planner.memory import layers_transfer_bytes, text_kv_bytes
from liveavatar.storage import StorageConfig, offloaded_layers
from liveavatar.task_graph import Task
from liveavatar.weights.load import fill
from liveavatar.weights.source import DictSource

CONFIG = tiny_config(4)
CPU = torch.device("cpu")


class Mixed(nn.Module):
    """Numbers of several kinds, one matrix lying on its side."""

    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("whole", torch.randint(-128, 127, (5, 3), generator=generator, dtype=torch.int8))
        self.register_buffer("small", torch.randn(4, 4, generator=generator).to(torch.float8_e4m3fn))
        self.side = nn.Parameter(torch.randn(3, 7, generator=generator).t(), requires_grad=False)
        self.inner = nn.Linear(3, 2).requires_grad_(False).to(torch.bfloat16)
        self.register_parameter("none", None)


def network() -> CausalS2VTransformer:
    return TinyComponents(CONFIG).transformer(ModelSlice.whole(CONFIG), CPU, torch.float32)


def test_tensors_of_any_kind_travel_unchanged() -> None:
    modules, same = [Mixed(i) for i in range(3)], [Mixed(i) for i in range(3)]
    for module, copy in zip(modules, same, strict=True):
        copy.load_state_dict(module.state_dict())
    loads = {i: PackedModule(list(m.modules())) for i, m in enumerate(modules)}
    prefetcher = LayerPrefetcher(loads, SynchronousCopies(CPU))
    for _ in range(2):
        for i, module in enumerate(prefetcher(enumerate(modules))):
            at_work, expected = module.state_dict(), same[i].state_dict()
            assert at_work.keys() == expected.keys()
            for name, tensor in at_work.items():
                assert tensor.dtype == expected[name].dtype and tensor.stride() == expected[name].stride(), name
                assert torch.equal(tensor.float(), expected[name].float()), name
            assert isinstance(module.side, nn.Parameter) and not module.side.requires_grad
            slots = [s.buffer.packed.data_ptr() for s in prefetcher.slots]
            assert any(s <= module.side.data_ptr() < s + loads[i].nbytes for s in slots), "works from a slot"
    assert prefetcher.host_bytes == sum(load.packed.nbytes for load in loads.values())


def test_a_walk_that_breaks_off_leaves_the_layer_at_home() -> None:
    net = network()
    attach_prefetchers(net, CPU, StorageConfig(offload_layers=4))
    home = {k: v.data_ptr() for k, v in net.state_dict().items()}
    walk = net.layers_on_device(net.numbered_layers())
    next(walk), next(walk)
    assert {k: v.data_ptr() for k, v in net.state_dict().items()} != home
    walk.close()
    assert {k: v.data_ptr() for k, v in net.state_dict().items()} == home


@pytest.mark.parametrize("streamed", range(5))
def test_prompt_weights_leave_and_come_back_exactly(streamed: int) -> None:
    plain, kept = network(), network()
    attach_prefetchers(kept, CPU, StorageConfig(offload_text_kv=True, offload_layers=streamed))
    assert isinstance(kept.text_layers_on_device, LayerPrefetcher)
    for seed in range(2):
        text = torch.randn(CONFIG.text_len, CONFIG.dim, generator=torch.Generator().manual_seed(seed))
        for a, b in zip(plain.text_kv(text), kept.text_kv(text), strict=True):
            assert torch.equal(a.k, b.k) and torch.equal(a.v, b.v)
        assert kept.text_layers_on_device.device_bytes == 0, "its slots are there while a prompt is read only"
        assert (
            kept.text_layers_on_device.streams.transfer_stats.to_device
            == (seed + 1) * kept.text_layers_on_device.host_bytes
        )
    prompt = CONFIG.num_layers * text_kv_bytes(CONFIG.dim, "plain", 4)
    assert kept.text_layers_on_device.tensor_bytes == prompt


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("streamed", range(5))
def test_each_streamed_layer_comes_once_a_task(streamed: int, prompt: str) -> None:
    storage = StorageConfig(offload_layers=streamed, offload_text_kv=prompt)
    driven = drive(CONFIG, tiny_job(CONFIG, tiny_effective(2, 2)), storage)
    lead = driven.stages[0].net.layers_on_device
    counts: list[int] = []

    def watch(task: Task) -> None:
        counts.append(lead.streams.transfer_stats.to_device if isinstance(lead, LayerPrefetcher) else 0)

    driven.run(watch)
    packed = lead.host_bytes // streamed if isinstance(lead, LayerPrefetcher) else 0
    """With what lies unused between tensors, of which the arithmetic knows nothing."""
    expected = layers_transfer_bytes(storage, [packed] * CONFIG.num_layers, [0] * CONFIG.num_layers)
    assert {b - a for a, b in pairwise(counts)} == {expected}
    assert expected == (streamed * packed if streamed > 2 else 0)


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("streamed", range(5))
def test_what_leaves_is_read_to_the_host(streamed: int, prompt: str) -> None:
    """The meta device stands for the one that must not see it."""
    part, storage = ModelSlice.of(range(4), CONFIG), StorageConfig(offload_layers=streamed, offload_text_kv=prompt)
    with torch.device("meta"):
        net = CausalS2VTransformer(CONFIG, part)
    weights = {k: torch.zeros(v.shape) for k, v in net.state_dict().items()}
    fill(net, DictSource(weights), dtype=torch.float32, device=read_devices(part.layers, torch.device("meta"), storage))
    on_host = {k for k, v in net.state_dict().items() if v.device.type == "cpu"}
    layers = dict(net.numbered_layers())
    wanted = {id(p) for number in offloaded_layers(range(4), streamed) for p in layers[number].parameters()}
    if prompt:
        wanted |= {id(p) for layer in layers.values() for m in layer.text_kv_modules for p in m.parameters()}
    assert on_host == {k for k, v in net.state_dict(keep_vars=True).items() if id(v) in wanted}
