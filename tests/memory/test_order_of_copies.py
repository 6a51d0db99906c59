"""Where copies run beside the computation, nothing is read before it is there or overwritten while it is needed."""

import contextlib

import pytest
import torch
from memory.drive import drive
from memory.races import RaceError, Watched, WatchedCopies
from session.tiny import tiny_config, tiny_effective, tiny_job

from liveavatar.memory import rings, weights
from liveavatar.model.kv import Window, window_tokens
from liveavatar.storage import Storage

KEYS = {"plain keys": Storage(keys_home="host"), "fp8 keys": Storage("plain", "fp8", "host")}
LAYERS = {"all layers": Storage(streamed=4), "most layers": Storage(streamed=3, prompt_weights="leave")}


def watch(
    monkeypatch: pytest.MonkeyPatch, storage: Storage, careless: str = "", cut: str = "1x1", layers: int = 4
) -> Watched:
    """A whole job under watch."""
    config = tiny_config(layers)
    job = tiny_job(config, tiny_effective(6, 2))
    watched = Watched()
    for module in (rings, weights):
        monkeypatch.setattr(module, "copies_of", lambda device: WatchedCopies(watched, careless))
    with watched:
        assert torch.isfinite(drive(config, job, storage, cut).run().latents).all()
    return watched


@pytest.mark.parametrize("cut", ["1x1", "2x1", "1x2"])
@pytest.mark.parametrize("storage", [Storage("plain", "fp8", "host", "leave", 2), *KEYS.values()], ids=str)
def test_no_copy_meets_the_computation(monkeypatch: pytest.MonkeyPatch, storage: Storage, cut: str) -> None:
    assert watch(monkeypatch, storage, cut=cut).checked > 1000


@pytest.mark.parametrize("storage", KEYS.values(), ids=KEYS)
def test_a_single_layer_waits_for_its_own_rows(monkeypatch: pytest.MonkeyPatch, storage: Storage) -> None:
    assert watch(monkeypatch, storage, cut="2x1", layers=1).checked > 100


@pytest.mark.parametrize("storage", LAYERS.values(), ids=LAYERS)
def test_no_layer_is_overwritten_while_it_works(monkeypatch: pytest.MonkeyPatch, storage: Storage) -> None:
    assert watch(monkeypatch, storage).checked > 1000


@pytest.mark.parametrize("careless", ["after", "wait"])
@pytest.mark.parametrize("storage", [*KEYS.values(), *LAYERS.values()], ids=[*KEYS, *LAYERS])
def test_the_watch_sees_what_it_is_for(monkeypatch: pytest.MonkeyPatch, storage: Storage, careless: str) -> None:
    with pytest.raises(RaceError):
        watch(monkeypatch, storage, careless)


@pytest.mark.parametrize("careless", ["", "after"])
def test_the_first_rows_wait_for_whoever_had_the_memory_before(monkeypatch: pytest.MonkeyPatch, careless: str) -> None:
    """Rings that were restored are fetched before any layer has worked."""
    watched = Watched()
    monkeypatch.setattr(rings, "copies_of", lambda device: WatchedCopies(watched, careless))
    shape = rings.RingShape(window_tokens(4), 2, 6, torch.float32)
    with watched, pytest.raises(RaceError) if careless else contextlib.nullcontext():
        made = rings.make_rings(Storage(keys_home="host"), range(1), 2, shape, torch.device("cpu"))
        made.by_step[0][0].fetch(Window.of(5, 4))
