"""An engine that keeps things elsewhere makes the same video; one that rounds, nearly the same."""

import pytest
import torch
from engine.tiny import TinyComponents, tiny_config, tiny_effective, tiny_job

from liveavatar.engine.local import LocalEngine
from liveavatar.planner import make_plan
from liveavatar.storage import PLAIN, StorageConfig

BLOCKS = 6
EXACT = (
    StorageConfig(kv_offload=True),
    StorageConfig(offload_text_kv=True),
    StorageConfig(offload_layers=3),
    StorageConfig(kv_offload=True, offload_text_kv=True, offload_layers=3),
)
ROUNDED = (
    StorageConfig(weights="fp8"),
    StorageConfig(weights="int8"),
    StorageConfig(kv_dtype="fp8"),
    StorageConfig(kv_dtype="int4", kv_offload=True),
    StorageConfig("fp8", "fp8", True, True, 3),
)


def latents(storage: StorageConfig, stages: str = "1x1") -> torch.Tensor:
    config, effective = tiny_config(6), tiny_effective(BLOCKS)
    plan = make_plan(effective, config, model="tiny", stages=stages, storage=storage)
    assert {stage.storage for stage in plan.stages} == {storage}
    engine = LocalEngine(TinyComponents(config), plan)
    return torch.cat(list(engine.run(tiny_job(config, effective))), 1)


@pytest.fixture(scope="module")
def plain() -> torch.Tensor:
    return latents(PLAIN)


@pytest.mark.parametrize("storage", EXACT, ids=str)
@pytest.mark.parametrize("stages", ["1x1", "2x1", "1x2"])
def test_what_lies_elsewhere_is_the_same_to_the_bit(plain: torch.Tensor, storage: StorageConfig, stages: str) -> None:
    assert torch.equal(latents(storage, stages), plain)


@pytest.mark.parametrize("storage", ROUNDED, ids=str)
def test_what_is_rounded_is_the_same_on_any_cut_and_near(plain: torch.Tensor, storage: StorageConfig) -> None:
    whole = latents(storage)
    assert not torch.equal(whole, plain)
    assert (whole - plain).norm() / plain.norm() < 0.1
    assert torch.equal(latents(storage, "2x1"), whole)
    assert torch.equal(latents(storage, "1x2"), whole)
