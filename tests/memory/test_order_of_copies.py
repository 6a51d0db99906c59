"""Where copies run beside the computation, nothing is read before it is there or overwritten while it is needed."""

import pytest
import torch
from memory.drive import drive
from memory.races import RaceError, Watched, WatchedCopies
from session.tiny import tiny_config, tiny_effective, tiny_job

from liveavatar.memory import rings, weights
from liveavatar.storage import Storage

CONFIG = tiny_config(4)
JOB = tiny_job(CONFIG, tiny_effective(6, 2))
KEYS = {"plain keys": Storage(keys_home="host"), "fp8 keys": Storage("plain", "fp8", "host")}
LAYERS = {"all layers": Storage(streamed=4), "most layers": Storage(streamed=3, prompt_weights="leave")}


def watch(monkeypatch: pytest.MonkeyPatch, storage: Storage, careless: str = "", cut: str = "1x1") -> Watched:
    """A whole job under watch."""
    watched = Watched()
    for module in (rings, weights):
        monkeypatch.setattr(module, "copies_of", lambda device: WatchedCopies(watched, careless))
    with watched:
        assert torch.isfinite(drive(CONFIG, JOB, storage, cut).run().latents).all()
    return watched


@pytest.mark.parametrize("cut", ["1x1", "2x1", "1x2"])
@pytest.mark.parametrize("storage", [Storage("plain", "fp8", "host", "leave", 2), *KEYS.values()], ids=str)
def test_no_copy_meets_the_computation(monkeypatch: pytest.MonkeyPatch, storage: Storage, cut: str) -> None:
    assert watch(monkeypatch, storage, cut=cut).checked > 1000


@pytest.mark.parametrize("storage", LAYERS.values(), ids=LAYERS)
def test_no_layer_is_overwritten_while_it_works(monkeypatch: pytest.MonkeyPatch, storage: Storage) -> None:
    assert watch(monkeypatch, storage).checked > 1000


@pytest.mark.parametrize("careless", ["after", "wait"])
@pytest.mark.parametrize("storage", [*KEYS.values(), *LAYERS.values()], ids=[*KEYS, *LAYERS])
def test_the_watch_sees_what_it_is_for(monkeypatch: pytest.MonkeyPatch, storage: Storage, careless: str) -> None:
    with pytest.raises(RaceError):
        watch(monkeypatch, storage, careless)
