"""The benchmark of the network measures what it says, and refuses what cannot be measured."""

import dataclasses
import json

import pytest
import torch
from cli.runs import run
from hypothesis import given
from hypothesis import strategies as st

from liveavatar import compiler
from liveavatar.bench.command_model import model_lines
from liveavatar.bench.decoding import side_by_side
from liveavatar.bench.figures import bytes_needed, work_of
from liveavatar.bench.found import Amount, Launching, ModelBench
from liveavatar.bench.launching import launching
from liveavatar.bench.material import noise_effective, noise_job
from liveavatar.bench.model import Asked, bench_model
from liveavatar.bench.random_model import RandomComponents
from liveavatar.bench.watched import WatchedEngine
from liveavatar.config import PRESETS, WAN2_2_S2V_14B
from liveavatar.doctor.report import AttentionSpeed, Compute
from liveavatar.engine.local import LocalEngine, ModelCache
from liveavatar.errors import ModelError, PlanError, RequestError
from liveavatar.model import quantize
from liveavatar.model.transformer import ModelSlice
from liveavatar.planner import Plan, make_plan
from liveavatar.planner.pace import layer_tflop
from liveavatar.storage import PLAIN, StorageConfig
from liveavatar.task_graph import Denoise

BLOCKS = 6


def planned(
    storage: StorageConfig = PLAIN, model: str = "untrained", stages: str = "1x1", dtype: str = "float32"
) -> Plan:
    effective = noise_effective(BLOCKS, 4, "64x64")
    return make_plan(effective, PRESETS[model], model=model, stages=stages, dtype=dtype, storage=storage)


def engine_of(plan: Plan, naive: bool = False, nets: ModelCache | None = None) -> WatchedEngine:
    return WatchedEngine(RandomComponents(plan.model, "cpu"), plan, nets or ModelCache(), naive)


@pytest.fixture(scope="module")
def found() -> ModelBench:
    return bench_model("untrained", planned(), Asked(BLOCKS, vae=True, baseline=True))


def test_numbers_agree_with_each_other(found):
    pace, work = found.pace, found.work
    assert found.finite
    assert pace.fps == pytest.approx(12 / pace.seconds_per_block)
    assert set(pace.phases) == {"embed", "layers", "head"}
    assert 0 < pace.phases["layers"] < pace.seconds_per_task < pace.seconds_per_block
    assert 0 < pace.prefill_seconds < pace.first_block_seconds
    layers = range(PRESETS["untrained"].num_layers)
    assert work.tflop_per_block == pytest.approx(4 * sum(sum(layer_tflop(PRESETS["untrained"], 16, i)) for i in layers))
    assert work.tflops == pytest.approx(work.tflop_per_block / pace.seconds_per_block)
    assert work.share_of_peak == pytest.approx(work.tflops / work.peak_tflops)
    assert work.peak_dtype == "float32"
    assert (found.moved.to_device, found.moved.to_host, found.moved.exposed_seconds) == (0, 0, None)
    assert (found.compile_seconds, found.compile_cache, found.launching) == (None, None, None)


def test_launching_is_timed_layer_by_layer_and_leaves_no_trace(found):
    plan = planned(StorageConfig(offload_layers=3), stages="2x1")
    engine, job = engine_of(plan), noise_job(PRESETS["untrained"], BLOCKS)
    before = engine.watch(job)
    leads = [net.layers_on_device for net in engine.networks()]
    sent = launching(engine, job, 2.0)
    assert [net.layers_on_device for net in engine.networks()] == leads
    layers = sum(task.phases["layers"] for task in before.tasks) / BLOCKS
    assert 0 < sent.seconds_per_block == 2 * sent.share < 10 * layers
    shown = model_lines(dataclasses.replace(found, launching=Launching(0.2, 0.1)))
    assert any("launch" in line and "10.0 %" in line and "never kept waiting" in line for line in shown)
    busy = model_lines(dataclasses.replace(found, launching=Launching(1.9, 0.95)))
    assert any("may keep the device waiting" in line for line in busy)


def test_what_stays_is_what_was_planned(found):
    memory = found.memory
    assert set(memory.parts) == {"weights", "conditions", "KV cache", "slots", "sink", "text"}
    for name, part in memory.parts.items():
        assert part.found == part.planned, name
    assert memory.held_difference_percent == 0
    assert abs(memory.difference_percent) < 10, "noise and rotations are not planned, and are large in small pictures"
    assert memory.host == Amount(0, 0) and memory.reserved is None


def test_the_vae_is_measured_apart(found):
    vae = found.decoding
    assert vae.seconds_per_block > 0 and vae.warmup_seconds > vae.seconds_per_block
    assert vae.first_frames_seconds == pytest.approx(found.pace.first_block_seconds + vae.seconds_per_block)
    assert vae.beside_seconds_per_block is None, "nothing works side by side on the CPU"


def test_a_video_is_made_and_decoded_as_for_users():
    engine, job = engine_of(planned()), noise_job(PRESETS["untrained"], BLOCKS)
    expected = torch.cat(engine.watch(job).latents, 1)
    decoded: list[torch.Tensor] = []
    period, decode = side_by_side(engine.unwatched(prefetch=True), job, lambda block: decoded.append(block) or block)
    assert torch.equal(torch.cat(decoded, 1), expected)
    assert period > decode > 0


def test_the_naive_path_makes_the_same_latents_in_turns(found):
    compared = found.compared
    assert len(compared.ours) == len(compared.naive) == 2
    assert compared.ratio == pytest.approx(sum(compared.naive) / sum(compared.ours))
    assert compared.difference < 1e-5, "rounding of float32"


@pytest.mark.parametrize("stages", ["1x1", "2x2"])
def test_the_naive_path_differs_in_rounding_only(stages):
    plan, nets = planned(stages=stages), ModelCache()
    job = noise_job(PRESETS["untrained"], BLOCKS)
    ours, naive = (torch.cat(engine_of(plan, n, nets).watch(job).latents, 1) for n in (False, True))
    torch.testing.assert_close(naive, ours, rtol=1e-4, atol=1e-5)
    assert not torch.equal(naive, naive.flip(1))


def test_watching_changes_nothing_and_sees_every_task():
    plan = planned(stages="2x2")
    job = noise_job(PRESETS["untrained"], BLOCKS)
    engine = engine_of(plan)
    seen = engine.watch(job)
    plain = LocalEngine(RandomComponents("untrained", "cpu"), plan).run(job)
    assert all(torch.equal(a, b) for a, b in zip(seen.latents, plain, strict=True))
    made = [t.task for t in seen.tasks if isinstance(t.task, Denoise)]
    assert len(made) == len(set(made)) == BLOCKS * 4 * 2
    assert list(seen.ends) == sorted(seen.ends)
    for timed in seen.tasks:
        assert 0 < sum(timed.phases.values()) <= timed.seconds
        assert "layers" in timed.phases and "text" not in timed.phases


@pytest.mark.parametrize(
    "storage",
    [
        StorageConfig(weights="fp8"),
        StorageConfig(weights="int8", kv_dtype="fp8"),
        StorageConfig(weights="fp8-tensor", offload_text_kv=True),
    ],
    ids=str,
)
def test_every_format_takes_what_was_planned(storage, monkeypatch):
    # What stays is the same where matrices are widened, and products with one scale take a CPU minutes.
    monkeypatch.setitem(quantize.fp8_trials, (torch.device("cpu"), False, True), "too slow for a test")
    memory = bench_model("mini", planned(storage, "mini"), Asked(BLOCKS)).memory
    assert abs(memory.held_difference_percent) < 3
    assert memory.parts["KV cache"].found == memory.parts["KV cache"].planned
    assert abs(memory.host.difference) < 3


def test_what_moves_is_counted_and_set_against_nothing_moving():
    told = []
    plan = planned(StorageConfig(kv_offload=True, offload_layers=3))
    found = bench_model("untrained", plan, Asked(BLOCKS), told.append)
    moved, config = found.moved, PRESETS["untrained"]
    row = 2 * 3 * 16 * config.dim * 4
    assert moved.to_host == 4 * config.num_layers * row, "the block's own rows, once for every step and layer"
    layers = moved.to_device - 3 * moved.to_host
    assert layers > 0 and layers % (4 * 3) == 0, "three streamed layers at four steps"
    assert moved.copy_seconds == pytest.approx(moved.to_device / 1e9 / moved.copy_gb)
    assert moved.exposed_seconds == pytest.approx(found.pace.seconds_per_block - moved.resident_seconds_per_block)
    assert "the same with nothing on the host" in told
    held = found.memory
    both = held.parts["weights"].found + held.host.found
    assert both == pytest.approx(held.parts["weights"].planned + held.host.planned, rel=0.03)


def test_weights_are_drawn_in_the_format_and_place_they_stay_in():
    components = RandomComponents("mini", "cpu")
    part, places = ModelSlice(range(2)), []

    def where(name: str) -> str:
        places.append(name)
        return "meta" if name.startswith("blocks.1.") else "cpu"

    net = components.transformer(part, where, torch.bfloat16, "fp8")
    again = components.transformer(ModelSlice(range(1)), "cpu", torch.bfloat16, "fp8")
    for (name, tensor), other in zip(
        net.blocks["0"].state_dict().items(), again.blocks["0"].state_dict().values(), strict=True
    ):
        assert tensor.device.type == "cpu" and torch.equal(tensor.float(), other.float()), name
    assert {p.device.type for p in net.blocks["1"].parameters()} == {"meta"}
    assert net.blocks["0"].get_submodule("ffn.0").weight.dtype == torch.float8_e4m3fn
    assert "blocks.1.ffn.0.weight" in places
    with pytest.raises(ModelError, match="no encoders"):
        components.text_encoder("cpu", torch.float32)


def test_activations_stay_finite_through_all_forty_layers():
    deep = dataclasses.replace(WAN2_2_S2V_14B, dim=96, ffn_dim=256, num_heads=4, text_dim=48, audio_dim=32)
    components = RandomComponents("untrained", "cpu")
    components.config = deep
    plan = make_plan(noise_effective(BLOCKS, 4, "64x64"), deep, model="deep", dtype="bfloat16")
    run_ = WatchedEngine(components, plan, ModelCache()).watch(noise_job(deep, BLOCKS))
    assert all(latents.isfinite().all() and latents.abs().max() < 1e3 for latents in run_.latents)


@pytest.mark.slow
def test_compiled_layers_make_the_same_latents(monkeypatch):
    monkeypatch.setattr(compiler, "COMPILER", "aot_eager")
    job, plan = noise_job(PRESETS["untrained"], BLOCKS), planned(StorageConfig(kv_offload=True, offload_layers=3))
    plain = torch.cat(engine_of(plan).watch(job).latents, 1)
    compiled = torch.cat(engine_of(dataclasses.replace(plan, compiled=True)).watch(job).latents, 1)
    assert (compiled - plain).abs().max() < 1e-5 * plain.abs().max()


def test_compiling_is_timed_apart(monkeypatch):
    monkeypatch.setattr(compiler, "COMPILER", "aot_eager")
    found = bench_model("untrained", dataclasses.replace(planned(), compiled=True), Asked(BLOCKS, baseline=True))
    assert found.compile_seconds > 0 and found.compile_cache
    assert found.finite and found.compared.difference < 1e-4


def test_a_compiler_that_fails_is_told(monkeypatch, tmp_path):
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    broken = inductor.patch({"cpp.cxx": ("/nowhere/at/all",), "force_disable_caches": True})
    with broken, pytest.raises(ModelError, match="cannot be compiled") as refused:
        bench_model("untrained", dataclasses.replace(planned(), compiled=True), Asked(BLOCKS))
    assert "--compile" in refused.value.nearest


def test_a_speed_that_could_not_be_measured_leaves_its_shares_out():
    plan, config = planned(dtype="bfloat16"), PRESETS["untrained"]
    can = Compute({"float32": 1.0}, (AttentionSpeed("sdpa", "", "float32", 0.0, 1.0),), {"bfloat16": "RuntimeError"})
    work = work_of(config, plan, can, torch.device("cpu"), 2.0)
    assert (work.peak_tflops, work.share_of_peak, work.share_of_possible) == (None, None, None)
    known = work_of(config, planned(), can, torch.device("cpu"), work.tflop_per_block)
    assert known.tflops == known.share_of_peak == pytest.approx(1) == known.share_of_possible


@given(st.integers(-3, 5) | st.integers(1001, 10**9))
def test_too_few_and_too_many_blocks_are_refused(blocks):
    with pytest.raises(RequestError, match="Give at"):
        bench_model("untrained", planned(), Asked(blocks))


def test_the_big_network_is_not_begun_where_it_does_not_fit():
    plan = make_plan(noise_effective(BLOCKS, 4, "1280x704"), WAN2_2_S2V_14B, model="x")
    huge = dataclasses.replace(plan, embedders=10**15)
    assert bytes_needed(huge, False) > 10**15
    with pytest.raises(PlanError, match="free"):
        bench_model("wan2.2-s2v-14b", huge, Asked(BLOCKS))


def test_the_command_shows_a_table_and_writes_a_report(tmp_path):
    report = tmp_path / "model.json"
    words = ("--model", "untrained", "--size", "64x64", "--blocks", BLOCKS, "--threads", 1, "--keys-home", "host")
    ran = run("bench", "model", *words, "--vae", "--json", report)
    assert ran.code == 0, ran.err
    for word in ("pace ", "work ", "copies ", "memory", "VAE ", "KV cache", "on the host"):
        assert word in ran.out
    assert "measuring warming up" in ran.err
    told = json.loads(report.read_text())
    assert told["bench"] == "model" and told["versions"]["torch"] and told["plan"]["stages"]
    assert told["found"]["pace"]["fps"] > 0 and told["found"]["memory"]["peak"]["found"] > 0
    assert told["found"]["storages"][0]["keys_home"] == "host"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "mimi"], "untrained"),
        (["--device", "cuda:99"], "There is no device"),
        (["--device", "cpu,cpu"], "One device"),
        (["--device", "cpu", "--vram-cap", "24"], "--vram-cap is for GPUs"),
        (["--vram-cap", "0.1"], "1 GB or more"),
        (["--device", "cpu", "--plan", "auto"], "nothing to choose on the CPU"),
        (["--plan", "auto", "--weights", "fp8"], "chooses stages and storage itself"),
        (["--weights", "fp4"], "fp8-tensor"),
        (["--device", "cpu", "--dtype", "int4"], "float32, bfloat16, float16"),
        (["--device", "cpu", "--stream", "7"], "The most that works is 6"),
        (["--device", "cpu", "--blocks", "3"], "at least 6"),
        (["--device", "cpu", "--keys", "fp8", "--baseline"], "naive path"),
        (["--device", "cpu", "--size", "1x1"], "64"),
        (["--device", "cpu", "--json", "/nowhere/at/all.json"], "cannot be written"),
    ],
)
def test_mistakes_are_told(words, said):
    ran = run("bench", "model", *words)
    assert ran.code == 2 and said in ran.err, ran.err
