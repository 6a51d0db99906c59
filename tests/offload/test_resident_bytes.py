"""The bytes that storages are said to take are those that are allocated."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch
from engine.tiny import TinyComponents, tiny_effective, tiny_job
from offload.drive import Allocations, Drive, drive

from liveavatar.config import BLOCK_LATENTS, UNTRAINED, WAN2_2_S2V_14B, WINDOW_BLOCKS
from liveavatar.engine.local import ModelCache
from liveavatar.model.kv_cache import window_tokens
from liveavatar.model.transformer import EMBEDDERS, CausalS2VTransformer
from liveavatar.offload.kv_cache import OffloadedKVCache
from liveavatar.planner import layer_bytes, layer_parameters
from liveavatar.planner.memory import kv_cache_bytes, kv_cache_resident_bytes, layers_resident_bytes, text_kv_bytes
from liveavatar.request import Request, resolve
from liveavatar.storage import PLAIN, KVDtype, MemoryUse, StorageConfig

CONFIG = UNTRAINED
EFFECTIVE = tiny_effective(5, 2, "128x128")
LAYER = 4 * layer_parameters(CONFIG, 1)
"""One without injector."""
PROMPT = text_kv_bytes(CONFIG.dim, "plain", 4)
with torch.device("meta"):
    CONDITIONING = CausalS2VTransformer(CONFIG, EMBEDDERS)
STORAGES = [
    StorageConfig("plain", keys, home, prompt, streamed)
    for keys, home, prompt, streamed in itertools.product(get_args(KVDtype), (False, True), (False, True), (0, 1, 3, 4))
]


def rings_held(storage: StorageConfig) -> MemoryUse:
    tokens = BLOCK_LATENTS * EFFECTIVE.frame_tokens
    cache = WINDOW_BLOCKS * kv_cache_bytes(storage.kv_dtype, tokens, CONFIG.num_heads, CONFIG.head_dim, 4)
    return kv_cache_resident_bytes(storage, cache, CONFIG.num_layers, EFFECTIVE.steps)


def layers_held(storage: StorageConfig) -> MemoryUse:
    return layers_resident_bytes(storage, [LAYER] * CONFIG.num_layers, [PROMPT] * CONFIG.num_layers)


@pytest.fixture(scope="module")
def components() -> TinyComponents:
    made = TinyComponents(CONFIG)
    assert made.weights  # the files of this network, which are no memory of a stage
    return made


def measured(components: TinyComponents, storage: StorageConfig) -> tuple[Drive, int]:
    """A whole run, and the peak of its device while it ran."""
    job = tiny_job(CONFIG, EFFECTIVE)
    with Allocations() as allocations:
        nets = ModelCache()
        driven = drive(CONFIG, job, storage, nets=nets, components=components)
        allocations.peak = allocations.now
        driven.run()
    return driven, allocations.peak


@pytest.fixture(scope="module")
def plain_peak(components: TinyComponents) -> int:
    measured(components, PLAIN)  # what is done once in a process leaves tensors behind for a moment
    return measured(components, PLAIN)[1]


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_the_peak_changes_as_the_arithmetic_says(
    components: TinyComponents, plain_peak: int, storage: StorageConfig
) -> None:
    driven, peak = measured(components, storage)
    saved = rings_held(PLAIN).device - rings_held(storage).device
    layers, plain_layers = layers_held(storage), layers_held(PLAIN).device
    widened = rings_held(PLAIN).device // (CONFIG.num_layers * EFFECTIVE.steps) * (storage.kv_dtype != "plain")
    """The window of the layer that works, in the working dtype."""
    expected = plain_peak - saved - (plain_layers - layers.device) + widened
    print(f"{peak / expected - 1:+.2%}")
    assert abs(peak - expected) < 0.03 * expected
    loaded = 4 * sum(p.numel() for net in (driven.stages[0].net, CONDITIONING) for p in net.parameters())
    assert driven.nets.bytes_by_device["cpu"] == pytest.approx(
        loaded - plain_layers + layers.device + layers.host, rel=0.01
    )


@pytest.mark.parametrize("keys", get_args(KVDtype))
def test_caches_on_the_host_take_what_they_are_said_to(components: TinyComponents, keys: str) -> None:
    storage = StorageConfig("plain", keys, True)
    stage = drive(CONFIG, tiny_job(CONFIG, EFFECTIVE), storage, components=components).stages[0]
    caches = [cache for caches in stage.kv_caches.values() for cache in caches]
    assert all(isinstance(cache, OffloadedKVCache) for cache in caches)
    held = rings_held(storage)
    assert sum(t.nbytes for cache in caches for t in cache.tensors()) == held.host
    double_buffer = caches[0].double_buffer
    assert sum(t.nbytes for slot in double_buffer.slots for t in slot.buffer.tensors()) == held.device
    assert held.host <= double_buffer.host_buffer.bytes.nbytes < 1.03 * held.host


def test_known_figures_of_the_published_model_on_one_24_gb_card() -> None:
    """704x384, four steps: weights of fp8 without those of the prompt, and keys of fp8 on the host."""
    config, asked = WAN2_2_S2V_14B, resolve(Request(size="704x384"), (1280, 720), 160_000, 16_000)
    storage = StorageConfig("fp8", "fp8", True, True)
    tokens = window_tokens(asked.frame_tokens)
    cache = kv_cache_bytes("fp8", tokens, config.num_heads, config.head_dim, 2)
    caches = kv_cache_resident_bytes(storage, cache, config.num_layers, 4)
    assert caches.host == pytest.approx(20.8e9 * 132 / 128, rel=2e-3)
    assert caches.device == pytest.approx(0.27e9, rel=0.01)
    layers = layers_resident_bytes(
        storage,
        [layer_bytes(config, 2, "fp8")] * config.num_layers,
        [text_kv_bytes(config.dim, "fp8", 2)] * config.num_layers,
    )
    assert layers.host == pytest.approx(2.1e9, rel=2e-3)
    assert layers.device == pytest.approx(11.95e9, rel=2e-3)
