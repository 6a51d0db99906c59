"""Where copies run beside the computation, nothing is read before it is there or overwritten while it is needed."""

import contextlib

import pytest
import torch
from engine.tiny import tiny_config, tiny_effective, tiny_job
from offload.drive import drive
from offload.races import RaceError, Watched, WatchedStreams

from liveavatar.model.kv_cache import Window, window_tokens
from liveavatar.offload import kv_cache
from liveavatar.offload import layers as offloading
from liveavatar.offload.kv_formats import KVCacheShape
from liveavatar.storage import StorageConfig

KEYS = {
    "plain keys": StorageConfig(kv_offload=True),
    "fp8 keys": StorageConfig("plain", "fp8", True),
    "int4 keys": StorageConfig("plain", "int4", True),
}
LAYERS = {
    "all layers": StorageConfig(offload_layers=4),
    "most layers": StorageConfig(offload_layers=3, offload_text_kv=True),
}


def watch(
    monkeypatch: pytest.MonkeyPatch, storage: StorageConfig, careless: str = "", cut: str = "1x1", layers: int = 4
) -> Watched:
    """A whole job under watch."""
    config = tiny_config(layers)
    job = tiny_job(config, tiny_effective(6, 2))
    watched = Watched()
    for module in (kv_cache, offloading):
        monkeypatch.setattr(module, "copy_streams", lambda device, pinned=None: WatchedStreams(watched, careless))
    with watched:
        assert torch.isfinite(drive(config, job, storage, cut).run().latents).all()
    return watched


@pytest.mark.parametrize("cut", ["1x1", "2x1", "1x2"])
@pytest.mark.parametrize("storage", [StorageConfig("plain", "fp8", True, True, 2), *KEYS.values()], ids=str)
def test_no_copy_meets_the_computation(monkeypatch: pytest.MonkeyPatch, storage: StorageConfig, cut: str) -> None:
    assert watch(monkeypatch, storage, cut=cut).checked > 1000


@pytest.mark.parametrize("storage", KEYS.values(), ids=KEYS)
def test_a_single_layer_waits_for_its_own_rows(monkeypatch: pytest.MonkeyPatch, storage: StorageConfig) -> None:
    assert watch(monkeypatch, storage, cut="2x1", layers=1).checked > 100


@pytest.mark.parametrize("storage", LAYERS.values(), ids=LAYERS)
def test_no_layer_is_overwritten_while_it_works(monkeypatch: pytest.MonkeyPatch, storage: StorageConfig) -> None:
    assert watch(monkeypatch, storage).checked > 1000


@pytest.mark.parametrize("careless", ["after", "wait"])
@pytest.mark.parametrize("storage", [*KEYS.values(), *LAYERS.values()], ids=[*KEYS, *LAYERS])
def test_the_watch_sees_what_it_is_for(monkeypatch: pytest.MonkeyPatch, storage: StorageConfig, careless: str) -> None:
    with pytest.raises(RaceError):
        watch(monkeypatch, storage, careless)


@pytest.mark.parametrize("careless", ["", "after"])
def test_the_first_rows_wait_for_whoever_had_the_memory_before(monkeypatch: pytest.MonkeyPatch, careless: str) -> None:
    """Rings that were restored are fetched before any layer has worked."""
    watched = Watched()
    monkeypatch.setattr(kv_cache, "copy_streams", lambda device, pinned=None: WatchedStreams(watched, careless))
    shape = KVCacheShape(window_tokens(4), 2, 6, torch.float32)
    with watched, pytest.raises(RaceError) if careless else contextlib.nullcontext():
        made = kv_cache.allocate_kv_caches(StorageConfig(kv_offload=True), range(1), 2, shape, torch.device("cpu"))
        made.by_step[0][0].prefetch(Window.of(5, 4))
