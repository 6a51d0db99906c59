"""However a stage keeps its memories, the video is the same: to the bit, or as near as fp8 keys come."""

import itertools

import pytest
import torch
from engine.tiny import TinyComponents, tiny_config, tiny_effective, tiny_job
from offload.drive import drive

from liveavatar.engine.local import ModelCache
from liveavatar.storage import PLAIN, StorageConfig, offloaded_layers

CONFIG = tiny_config(4)
JOB = tiny_job(CONFIG, tiny_effective(9, 2))
"""Past the new sink at block 4 and twice around the ring."""
FP8_ERROR = 1e-3
"""Of the latents, root mean square over root mean square: 60 dB."""
KEPT_AWAY = [
    StorageConfig("plain", "plain", home, prompt, streamed)
    for home, prompt, streamed in itertools.product((False, True), (False, True), range(5))
]


@pytest.fixture(scope="module")
def plain() -> torch.Tensor:
    return drive(CONFIG, JOB).run().latents


@pytest.fixture(scope="module")
def fp8() -> torch.Tensor:
    return drive(CONFIG, JOB, StorageConfig(kv_dtype="fp8")).run().latents


@pytest.mark.parametrize("storage", KEPT_AWAY, ids=str)
def test_what_is_kept_away_changes_no_bit(storage: StorageConfig, plain: torch.Tensor) -> None:
    assert torch.equal(drive(CONFIG, JOB, storage).run().latents, plain)


@pytest.mark.parametrize("storage", KEPT_AWAY, ids=str)
def test_nor_with_fp8_keys(storage: StorageConfig, fp8: torch.Tensor) -> None:
    kept = StorageConfig("plain", "fp8", storage.kv_offload, storage.offload_text_kv, storage.offload_layers)
    assert torch.equal(drive(CONFIG, JOB, kept).run().latents, fp8)


def test_fp8_keys_are_near_and_begin_alike(plain: torch.Tensor, fp8: torch.Tensor) -> None:
    assert torch.equal(fp8[:, :3], plain[:, :3]), "the first block sees only itself"
    assert not torch.equal(fp8, plain)
    assert (fp8 - plain).norm() / plain.norm() < FP8_ERROR


def test_half_precision_works_alike() -> None:
    kept = StorageConfig("plain", "plain", True, True, 3)
    plain, away = (drive(CONFIG, JOB, s, dtype=torch.bfloat16).run().latents for s in (PLAIN, kept))
    assert torch.equal(plain, away)
    fp8 = drive(CONFIG, JOB, StorageConfig(kv_dtype="fp8"), dtype=torch.bfloat16).run().latents
    assert (fp8 - plain).norm() / plain.norm() < 0.02


@pytest.mark.parametrize("cut", ["2x1", "1x2", "2x2"])
def test_stages_that_share_a_streamed_net(cut: str, plain: torch.Tensor) -> None:
    kept = StorageConfig("plain", "plain", True, True, 2)
    driven = drive(CONFIG, JOB, kept, cut)
    nets = {id(stage.net) for stage in driven.stages}
    assert len(nets) == len(driven.cut.layer_shards)
    assert torch.equal(driven.run().latents, plain)


def test_the_next_session_finds_the_net_as_it_was_left(plain: torch.Tensor) -> None:
    nets, components = ModelCache(), TinyComponents(CONFIG)
    kept = StorageConfig(offload_layers=3, offload_text_kv=True)
    for _ in range(2):
        assert torch.equal(drive(CONFIG, JOB, kept, nets=nets, components=components).run().latents, plain)
    assert len(components.loaded) == 3, "the embeddings, what stays, and what travels"
    host_keys = StorageConfig(offload_layers=3, offload_text_kv=True, kv_offload=True, kv_dtype="fp8")
    drive(CONFIG, JOB, host_keys, nets=nets, components=components)
    assert len(components.loaded) == 3, "keys and values are the stage's business"
    drive(CONFIG, JOB, PLAIN, nets=nets, components=components)
    assert len(components.loaded) == 4


def test_a_session_that_broke_off_in_a_layer_leaves_a_sound_net(plain: torch.Tensor) -> None:
    nets, components = ModelCache(), TinyComponents(CONFIG)
    kept = StorageConfig(offload_layers=4, kv_offload=True)
    broken = drive(CONFIG, JOB, kept, nets=nets, components=components)
    layer = broken.stages[0].net.blocks["2"]

    def fail(*_: object) -> None:
        if broken.stages[0].traffic.to_host > 9000:
            raise MemoryError("no more")

    handle = layer.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        broken.run()
    handle.remove()
    assert torch.equal(drive(CONFIG, JOB, kept, nets=nets, components=components).run().latents, plain)


def test_streamed_layers_are_those_that_are_named() -> None:
    net = drive(CONFIG, JOB, StorageConfig(offload_layers=2)).stages[0].net
    seen = []
    for (number, layer), led in zip(net.numbered_layers(), net.layers_on_device(net.numbered_layers()), strict=True):
        assert led is layer
        at_work = {p.data_ptr() for p in layer.parameters()}
        seen.append((number, at_work))
    at_home = {number: {p.data_ptr() for p in layer.parameters()} for number, layer in net.numbered_layers()}
    moved = {number for number, at_work in seen if not at_work & at_home[number]}
    stayed = {number for number, at_work in seen if at_work == at_home[number]}
    assert moved == set(offloaded_layers(range(4), 2))
    assert stayed == set(range(4)) - moved
