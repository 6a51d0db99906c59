"""Compiled layers make nearly the same video; what is compiled is so once, before the work, for these engines alone."""

import dataclasses
import math
import os
import shutil
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
import torch._dynamo
from engine.tiny import TinyComponents, tiny_config, tiny_effective, tiny_job, with_two_speakers
from torch._dynamo.utils import counters

from liveavatar import compiler
from liveavatar.compiler import CompileError, check_compiler
from liveavatar.config import UNTRAINED
from liveavatar.engine.backend import LocalBackend
from liveavatar.engine.compile import forms
from liveavatar.engine.local import LocalEngine, ModelCache
from liveavatar.errors import Cancelled, ModelError
from liveavatar.events import Event
from liveavatar.model import quantize
from liveavatar.placement import Placement
from liveavatar.planner import make_plan
from liveavatar.storage import PLAIN, StorageConfig

BLOCKS = 6
GRAPHS = 2 + 5 + 1 + 2
"""Before the memory for the sink and a block; after it for the sink and four windows; sound; keys of block and sink."""
CONFIG = tiny_config(4)
COMPONENTS = TinyComponents(CONFIG)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Everything of compiling but the making of machine code."""
    monkeypatch.setattr(compiler, "COMPILER", "aot_eager")
    counters.clear()


def engine_of(
    storage: StorageConfig = PLAIN,
    stages: str = "1x1",
    compiled: bool = True,
    nets: ModelCache | None = None,
    size: str = "64x64",
) -> LocalEngine:
    plan = make_plan(tiny_effective(BLOCKS, size=size), CONFIG, model="tiny", stages=stages, storage=storage)
    return LocalEngine(COMPONENTS, dataclasses.replace(plan, compiled=compiled), nets)


def latents(engine: LocalEngine, size: str = "64x64") -> torch.Tensor:
    job = tiny_job(CONFIG, tiny_effective(BLOCKS, size=size))
    return torch.cat(list(engine.run(job)), 1)


def decibels(made: torch.Tensor, wanted: torch.Tensor) -> float:
    """Distance of two videos' latents, against the largest."""
    noise = (made - wanted).square().mean().sqrt()
    return 20 * math.log10(wanted.abs().max() / noise) if noise else math.inf


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    ("storage", "stages"),
    [
        pytest.param(PLAIN, "2x2", marks=pytest.mark.slow),
        pytest.param(
            StorageConfig(offload_layers=3, kv_offload=True, offload_text_kv=True), "1x1", marks=pytest.mark.slow
        ),
        (StorageConfig(weights="fp8", kv_dtype="fp8"), "1x1"),
    ],
    ids=str,
)
def test_it_is_nearly_the_same_and_all_layers_share_their_graphs(storage: StorageConfig, stages: str) -> None:
    engine = engine_of(storage, stages)
    engine.load()
    assert graphs() == GRAPHS
    compiled = latents(engine)
    assert graphs() == GRAPHS, "something was compiled while the work went on"
    assert not counters["graph_break"]
    assert decibels(compiled, latents(engine_of(storage, stages, compiled=False))) > 60


def test_what_a_device_can_is_tried_outside_of_the_graphs(monkeypatch) -> None:
    """Also where all weights were packed for another device than they work on, so that nothing was tried there yet."""
    config = dataclasses.replace(UNTRAINED, num_layers=2, audio_inject_layers=(0,))
    plan = make_plan(tiny_effective(1), config, model="tiny", dtype="bfloat16", storage=StorageConfig("fp8"))
    engine = LocalEngine(TinyComponents(config), dataclasses.replace(plan, compiled=True))
    LocalEngine(engine.components, plan, engine.models).load()
    monkeypatch.setattr(quantize, "fp8_trials", {})
    engine.load()
    assert quantize.fp8_trials and graphs() == GRAPHS
    quantize.supports_fp8_matmul(torch.device("cpu"), by_row=False)
    list(engine.run(tiny_job(config, tiny_effective(1))))
    assert graphs() == GRAPHS


def test_two_speakers_have_graphs_of_their_own() -> None:
    job = with_two_speakers(tiny_job(CONFIG, tiny_effective(2)))
    plan, nets = make_plan(job.resolved, CONFIG, model="tiny"), ModelCache()
    engine = LocalEngine(COMPONENTS, dataclasses.replace(plan, compiled=True), nets)
    engine.load()
    made = graphs()
    compiled, plain = (torch.cat(list(e.run(job)), 1) for e in (engine, LocalEngine(COMPONENTS, plan)))
    assert graphs() == made, "something was compiled while the work went on"
    assert decibels(compiled, plain) > 100
    assert not engine_of(nets=nets).loaded, "one voice is another form"


@pytest.mark.slow
def test_engines_of_the_same_weights_do_not_disturb_each_other() -> None:
    nets = ModelCache()
    as_written, compiled = engine_of(compiled=False, nets=nets), engine_of(nets=nets)
    before = latents(as_written)
    assert as_written.loaded and not compiled.loaded
    assert decibels(latents(compiled), before) > 100 and compiled.loaded
    made = graphs()
    assert torch.equal(latents(as_written), before)
    assert engine_of(nets=nets).loaded, "what was compiled is lost"
    latents(engine_of(nets=nets))
    assert graphs() == made == GRAPHS


@pytest.mark.slow
def test_any_number_of_sizes_is_compiled_and_nobody_elses_limits_change() -> None:
    limit, nets = torch._dynamo.config.recompile_limit, ModelCache()
    sizes = ("64x64", "128x128", "192x192")
    for number, size in enumerate(sizes, 1):
        engine = engine_of(nets=nets, size=size)
        engine.load()
        assert graphs() == number * GRAPHS
    assert engine_of(nets=nets, size=sizes[0]).loaded
    assert torch._dynamo.config.recompile_limit == limit
    nets.release()
    assert not engine_of(nets=nets, size=sizes[0]).loaded


@pytest.mark.parametrize("clip_blocks", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_clips_of_any_length_are_compiled_for_before_the_work(clip_blocks: int) -> None:
    effective = dataclasses.replace(tiny_effective(14, 1), clip_blocks=clip_blocks)
    plan, limit = make_plan(effective, CONFIG, model="tiny"), torch._dynamo.config.recompile_limit
    job, engine = tiny_job(CONFIG, effective), LocalEngine(COMPONENTS, dataclasses.replace(plan, compiled=True))
    engine.load()
    made = graphs()
    assert made == GRAPHS - 4 + clip_blocks and torch._dynamo.config.recompile_limit == limit
    compiled, plain = (list(e.run(job)) for e in (engine, LocalEngine(COMPONENTS, plan)))
    assert graphs() == made, "something was compiled while the work went on"
    assert decibels(torch.cat(compiled, 1), torch.cat(plain, 1)) > 100


def test_it_is_told_and_can_be_broken_off_between_two_forms() -> None:
    engine, said = engine_of(), []

    def break_off(event: Event) -> None:
        said.append(event)
        if len(said) == 3:
            raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        engine.load(break_off)
    assert 0 < graphs() < GRAPHS and not engine.loaded
    said.clear()
    engine.load(said.append)
    assert graphs() == GRAPHS and engine.loaded
    assert len(said) == forms(engine.plan.clip_blocks) + 1 and len(set(said)) == 2
    assert all(event.notice and "/" in event.phase for event in said)
    assert "once per size" in said[0].phase and " s; " in said[-1].phase


@pytest.mark.slow
def test_machine_code_makes_nearly_the_same_video(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(compiler, "COMPILER", "inductor")
    if missing := compiler.missing_requirements("cpu"):
        pytest.skip(f"no machine code can be made here: {', '.join(missing)} missing")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # what another kind of CPU left there gives no numbers
    compiled, plain = latents(engine_of()), latents(engine_of(compiled=False))
    assert decibels(compiled, plain) > 100


def test_a_compiler_that_fails_ends_only_what_must_be_compiled(monkeypatch) -> None:
    monkeypatch.setattr(compiler, "COMPILER", "absent")
    engine, said = engine_of(), []
    with pytest.raises(CompileError, match="absent"):
        engine.load()
    assert engine.plan.compiled and not engine.loaded
    engine.plan = dataclasses.replace(engine.plan, compile_optional=True)
    assert not engine.loaded
    engine.load(said.append)
    assert engine.loaded and not engine.plan.compiled
    assert "without compiled layers" in said[-1].phase and "absent" in said[-1].phase and said[-1].notice
    assert torch.equal(latents(engine), latents(engine_of(compiled=False)))


def test_a_machine_without_a_compiler_is_refused_before_anything_is_loaded(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiler, "COMPILER", "inductor")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ModelError, match=r"C\+\+ compiler") as refused:
        LocalBackend(Placement(("cpu",), compile=True))
    assert "--compile off" in refused.value.nearest
    LocalBackend(Placement(("cpu",)))
    assert shutil.which("c++") is None


def test_a_pytorch_whose_path_has_a_space_is_refused(monkeypatch, tmp_path: Path) -> None:
    if os.name != "posix":
        pytest.skip("PyTorch quotes its path on Windows")
    monkeypatch.setattr(compiler, "COMPILER", "inductor")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: ModuleSpec(name, None, origin="/my lib/torch/x.py"))
    with pytest.raises(ModelError, match="without spaces"):
        check_compiler(["cpu"])


def test_a_gpu_without_triton_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(compiler, "COMPILER", "inductor")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="triton"):
        check_compiler(["cuda:0"])


def test_a_plan_says_that_layers_are_compiled() -> None:
    place, effective = Placement(("cpu",), dtype="float32", threads=1), tiny_effective(BLOCKS)
    plans = [dataclasses.replace(place, compile=wish).make_plan(effective, CONFIG, "tiny") for wish in (False, True)]
    assert [plan.compiled for plan in plans] == [False, True]
    assert plans[0] == dataclasses.replace(plans[1], compiled=False)
