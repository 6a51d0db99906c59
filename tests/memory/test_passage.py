"""Layers that pass through slots are whole while they work, and only what must travel travels."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from memory.drive import drive
from session.tiny import TinyComponents, tiny_config, tiny_effective, tiny_job
from torch import nn

from liveavatar.memory.copies import PlainCopies
from liveavatar.memory.passage import Load, Passage
from liveavatar.memory.weights import homes, keep_weights
from liveavatar.model.transformer import CausalS2VTransformer, Part
from liveavatar.pipeline import Task
from liveavatar.storage import Storage, carried_by_layers, prompt_bytes, streamed_layers
from liveavatar.weights.fill import fill
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
    return TinyComponents(CONFIG).transformer(Part.whole(CONFIG), CPU, torch.float32)


def test_tensors_of_any_kind_travel_unchanged() -> None:
    modules, same = [Mixed(i) for i in range(3)], [Mixed(i) for i in range(3)]
    for module, copy in zip(modules, same, strict=True):
        copy.load_state_dict(module.state_dict())
    loads = {i: Load(list(m.modules())) for i, m in enumerate(modules)}
    passage = Passage(loads, PlainCopies(CPU))
    for _ in range(2):
        for i, module in enumerate(passage(enumerate(modules))):
            at_work, expected = module.state_dict(), same[i].state_dict()
            assert at_work.keys() == expected.keys()
            for name, tensor in at_work.items():
                assert tensor.dtype == expected[name].dtype and tensor.stride() == expected[name].stride(), name
                assert torch.equal(tensor.float(), expected[name].float()), name
            assert isinstance(module.side, nn.Parameter) and not module.side.requires_grad
            slots = [s.packed.data_ptr() for s in passage._slots]
            assert any(s <= module.side.data_ptr() < s + loads[i].nbytes for s in slots), "works from a slot"
    assert passage.host_bytes == sum(load.packed.nbytes for load in loads.values())


def test_a_walk_that_breaks_off_leaves_the_layer_at_home() -> None:
    net = network()
    keep_weights(net, CPU, Storage(streamed=4))
    home = {k: v.data_ptr() for k, v in net.state_dict().items()}
    walk = net.lead(net.numbered_layers())
    next(walk), next(walk)
    assert {k: v.data_ptr() for k, v in net.state_dict().items()} != home
    walk.close()
    assert {k: v.data_ptr() for k, v in net.state_dict().items()} == home


@pytest.mark.parametrize("streamed", range(5))
def test_prompt_weights_leave_and_come_back_exactly(streamed: int) -> None:
    plain, kept = network(), network()
    keep_weights(kept, CPU, Storage(prompt_weights="leave", streamed=streamed))
    assert isinstance(kept.lead_prompt, Passage)
    for seed in range(2):
        text = torch.randn(CONFIG.text_len, CONFIG.dim, generator=torch.Generator().manual_seed(seed))
        for a, b in zip(plain.text_kv(text), kept.text_kv(text), strict=True):
            assert torch.equal(a.k, b.k) and torch.equal(a.v, b.v)
        assert kept.lead_prompt.device_bytes == 0, "its slots are there while a prompt is read only"
        assert kept.lead_prompt.copies.traffic.to_device == (seed + 1) * kept.lead_prompt.host_bytes
    prompt = CONFIG.num_layers * prompt_bytes(CONFIG.dim, "plain", 4)
    assert kept.lead_prompt.tensor_bytes == prompt


@pytest.mark.parametrize("prompt", ["stay", "leave"])
@pytest.mark.parametrize("streamed", range(5))
def test_each_streamed_layer_comes_once_a_task(streamed: int, prompt: str) -> None:
    storage = Storage(streamed=streamed, prompt_weights=prompt)
    driven = drive(CONFIG, tiny_job(CONFIG, tiny_effective(2, 2)), storage)
    lead = driven.stages[0].net.lead
    counts: list[int] = []

    def watch(task: Task) -> None:
        counts.append(lead.copies.traffic.to_device if isinstance(lead, Passage) else 0)

    driven.run(watch)
    packed = lead.host_bytes // streamed if isinstance(lead, Passage) else 0
    """With what lies unused between tensors, of which the arithmetic knows nothing."""
    expected = carried_by_layers(storage, packed, 0)
    assert {b - a for a, b in pairwise(counts)} == {expected}
    assert expected == (streamed * packed if streamed > 2 else 0)


@pytest.mark.parametrize("prompt", ["stay", "leave"])
@pytest.mark.parametrize("streamed", range(5))
def test_what_leaves_is_read_to_the_host(streamed: int, prompt: str) -> None:
    """The meta device stands for the one that must not see it."""
    part, storage = Part.of(range(4), CONFIG), Storage(streamed=streamed, prompt_weights=prompt)
    with torch.device("meta"):
        net = CausalS2VTransformer(CONFIG, part)
    weights = {k: torch.zeros(v.shape) for k, v in net.state_dict().items()}
    fill(net, DictSource(weights), dtype=torch.float32, device=homes(part.layers, torch.device("meta"), storage))
    on_host = {k for k, v in net.state_dict().items() if v.device.type == "cpu"}
    layers = dict(net.numbered_layers())
    wanted = {id(p) for number in streamed_layers(range(4), streamed) for p in layers[number].parameters()}
    if prompt == "leave":
        wanted |= {id(p) for layer in layers.values() for m in layer.prompt_parts for p in m.parameters()}
    assert on_host == {k for k, v in net.state_dict(keep_vars=True).items() if id(v) in wanted}
