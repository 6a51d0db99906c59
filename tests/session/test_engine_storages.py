"""An engine that keeps things elsewhere makes the same video; one that rounds, nearly the same."""

import pytest
import torch
from session.tiny import TinyComponents, tiny_config, tiny_effective, tiny_job

from liveavatar.engines.local import LocalEngine
from liveavatar.planner import make_plan
from liveavatar.storage import PLAIN, Storage

BLOCKS = 6
EXACT = (
    Storage(keys_home="host"),
    Storage(prompt_weights="leave"),
    Storage(streamed=3),
    Storage(keys_home="host", prompt_weights="leave", streamed=3),
)
ROUNDED = (
    Storage(weights="fp8"),
    Storage(weights="int8"),
    Storage(keys="fp8"),
    Storage("fp8", "fp8", "host", "leave", 3),
)


def latents(storage: Storage, stages: str = "1x1") -> torch.Tensor:
    config, effective = tiny_config(6), tiny_effective(BLOCKS)
    plan = make_plan(effective, config, model="tiny", stages=stages, storage=storage)
    assert {stage.storage for stage in plan.stages} == {storage}
    engine = LocalEngine(TinyComponents(config), plan)
    return torch.cat(list(engine.run(tiny_job(config, effective), lambda report: None)), 1)


@pytest.fixture(scope="module")
def plain() -> torch.Tensor:
    return latents(PLAIN)


@pytest.mark.parametrize("storage", EXACT, ids=str)
@pytest.mark.parametrize("stages", ["1x1", "2x1", "1x2"])
def test_what_lies_elsewhere_is_the_same_to_the_bit(plain: torch.Tensor, storage: Storage, stages: str) -> None:
    assert torch.equal(latents(storage, stages), plain)


@pytest.mark.parametrize("storage", ROUNDED, ids=str)
def test_what_is_rounded_is_the_same_on_any_cut_and_near(plain: torch.Tensor, storage: Storage) -> None:
    whole = latents(storage)
    assert not torch.equal(whole, plain)
    assert (whole - plain).norm() / plain.norm() < 0.1
    assert torch.equal(latents(storage, "2x1"), whole)
    assert torch.equal(latents(storage, "1x2"), whole)
