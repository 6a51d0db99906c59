"""The suite tells each figure at once; a part that fails or overruns does not keep the next one from running."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cli.runs import run

from liveavatar import compiler
from liveavatar.bench import suite_parts
from liveavatar.bench.command_suite import suite_lines, suite_markdown
from liveavatar.bench.model import Asked, check_fit
from liveavatar.bench.random_model import KeptComponents, RandomComponents
from liveavatar.bench.suite import Figure, SuitePart, SuiteReport, read_suite, run_suite, write_suite
from liveavatar.bench.suite_parts import PARTS, SuiteState
from liveavatar.bench.time_limit import Overrun, time_limit
from liveavatar.config import PRESETS, WAN2_2_S2V_14B
from liveavatar.doctor.devices import attention_speeds
from liveavatar.doctor.known import known_speeds
from liveavatar.engine.local import ModelCache
from liveavatar.errors import ModelError, OutputError, PlanError
from liveavatar.model.transformer import ModelSlice
from liveavatar.planner import make_plan
from liveavatar.request import Request, resolve
from liveavatar.storage import StorageConfig
from tools import bench_table

PROJECT = Path(__file__).parents[2]
FOREIGN = ("av", "soxr", "ftfy", "wcwidth", "ray", "torchaudio", "diffusers", "transformers")
"""What a machine that measures need not have."""
WITHOUT = f"""
import sys

class Absent:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        return None if name.split(".")[0] in {FOREIGN} else self.finder.find_spec(name, *rest)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path = [Absent(finder) for finder in sys.meta_path]
from liveavatar import compiler
compiler.COMPILER = "eager"
from liveavatar.cli import main
code = main(sys.argv[1:])
assert not set({FOREIGN}) & set(sys.modules)
sys.exit(code)
"""


pytestmark = pytest.mark.timeout(1800)  # the whole suite takes a minute of two idle cores


@pytest.fixture(scope="module")
def state() -> SuiteState:
    return SuiteState("untrained", "cpu", "64x64", "float32", 1)


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[SuiteReport, str, str, Path]:
    """The whole suite with the miniature, in a process that has only what a bare machine has."""
    folder = tmp_path_factory.mktemp("figures") / "new"
    words = ("bench", "suite", "--model", "mini", "--size", "64x64", "--threads", "1", "--budget", "3000")
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT, *words, "--json", str(folder)],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "XDG_CACHE_HOME": str(folder.parent)},
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return read_suite(folder), ran.stdout, ran.stderr, folder.parent


def test_every_part_is_measured_without_the_libraries_of_videos(rehearsed):
    report, _, said, _ = rehearsed
    assert report.finished and report.good and report.seconds < report.budget
    ended = {part.name: part.status for part in report.parts}
    assert ended.pop("published network") == "left out" and set(ended.values()) == {"done"}
    assert list(ended) == [part.name for part in PARTS[:-1]]
    assert [line for line in said.splitlines() if line.startswith("measuring ")] == [
        f"measuring {part.name} (at most {part.limit:.0f} s)" for part in report.parts[:-1]
    ]


def test_measured_speeds_are_kept_for_plans(rehearsed):
    folder, peaks = rehearsed[3], {figure.name: figure.value for figure in rehearsed[0].parts[0].figures}
    kept = known_speeds(folder / "liveavatar" / "speeds.json")["cpu"]
    assert kept.quick and kept.compute.matmul["float32"] == peaks["matrices, float32"]
    assert kept.compute.attention_tflops("float32")["sdpa"] == peaks["attention, sdpa (flash, in parts)"]


def agrees(figure: Figure, decibels: float) -> bool:
    return figure.note == "equal to the bit" or figure.value > decibels


def test_figures_agree_with_each_other_and_with_the_plan(rehearsed):
    report = rehearsed[0]
    found = {(part.name, figure.name): figure for part in report.parts for figure in part.figures}
    paces = [figure for (_, name), figure in found.items() if name.startswith("pace")]
    assert len(paces) == 10 and all(figure.value > 0 and figure.predicted > 0 for figure in paces)
    stays = [figure.ratio for (_, name), figure in found.items() if name == "memory, what stays"]
    assert len(stays) == 7 and all(0.97 < ratio < 1.03 for ratio in stays)
    for part in ("bf16, compiled", "fp8, compiled"):
        assert agrees(found[part, "latents against layers as written"], 60)
    assert agrees(found["VAE", "frames against those as written"], 80)
    assert found["parity", "bfloat16 against float32"].value > 30
    assert found["peaks", "attention, sdpa (flash, in parts)"].value > 0
    assert found["fp8", "fp8 matrices are multiplied"].note == "as they are"
    assert found["24 GB", "copies to the device, a block"].value > 0


def test_the_file_gives_the_table_that_was_shown(rehearsed, tmp_path):
    report, shown, _, _ = rehearsed
    write_suite(tmp_path, report)
    assert read_suite(tmp_path / "suite.json") == report
    assert "\n".join(suite_lines(report)) == shown.rstrip("\n")
    again = run("bench", "suite", "--show", tmp_path / "suite.json")
    assert again.code == 0 and again.out == shown
    table = suite_markdown(report)
    assert report.device_name in table and f"torch {torch.__version__}" in table and report.date[:10] in table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    figures = sum(len(part.figures) for part in report.parts)
    assert len(rows) == 2 + figures + 1, "a head, every figure, and the part that was left out"
    assert {row.count(" | ") for row in rows} == {5}


def part(name: str, *figures: float, then: object = None, share: float = 1, quick: bool = True) -> SuitePart:
    """A part that yields some figures, and then does something."""

    def measure(state: SuiteState):
        for number, value in enumerate(figures):
            yield Figure(f"figure {number}", value)
        if callable(then):
            then()

    return SuitePart(name, share, measure, quick)


def broken() -> None:
    raise RuntimeError("the device is lost\nsecond line")


def endless() -> None:
    while True:
        time.sleep(0.01)


def interrupted() -> None:
    raise KeyboardInterrupt


def test_a_part_that_raises_is_told_and_the_next_one_runs(state):
    parts = (part("one", 1.0, 2.0, then=broken), part("two", 3.0))
    report = run_suite(state, parts, 60, False, lambda report: None)
    one, two = report.parts
    assert (one.status, [f.value for f in one.figures]) == ("failed", [1.0, 2.0])
    assert "RuntimeError: the device is lost" in one.why and "second line" not in one.why
    assert (two.status, two.figures[0].value) == ("done", 3.0)
    assert report.finished and not report.good
    assert any("failed" in line and "the device is lost" in line for line in suite_lines(report))


def test_a_part_that_overruns_is_cut_off_and_keeps_what_it_had(state):
    parts = (part("one", 1.0, then=endless), part("two", 3.0, share=9))
    report = run_suite(state, parts, 10, False, lambda report: None)
    one, two = report.parts
    assert (one.status, one.figures[0].value, one.limit) == ("overran", 1.0, pytest.approx(1, abs=0.1))
    assert (two.status, report.finished) == ("done", True)


def test_what_a_part_leaves_of_its_time_is_the_later_ones():
    limits = []
    parts = [SuitePart(str(i), share, lambda state: iter(())) for i, share in enumerate((1, 1, 2))]
    state = SuiteState("untrained", "cpu", "64x64", "float32", 1, say=limits.append)
    report = run_suite(state, parts, 4e6, False, lambda report: None)
    assert [part.limit for part in report.parts] == [pytest.approx(limit, rel=1e-3) for limit in (1e6, 4e6 / 3, 4e6)]


def test_without_time_left_a_part_is_left_out(state):
    report = run_suite(state, (part("one", then=endless), part("two", 1.0, share=0.001)), 0.8, False, lambda r: None)
    assert [p.status for p in report.parts] == ["overran", "left out"]
    assert "spent" in report.parts[1].why


def test_every_figure_is_told_at_once(state):
    seen: list[SuiteReport] = []
    run_suite(state, (part("one", 1.0, 2.0), part("two", 3.0)), 60, False, seen.append)
    counts = [[len(p.figures) for p in report.parts] for report in seen]
    assert counts == [[1], [2], [2], [2, 1], [2, 1], [2, 1]]
    assert [report.parts[0].status for report in seen[:3]] == ["running", "running", "done"]
    assert [report.finished for report in seen] == [False] * 5 + [True]


def test_an_interrupt_ends_the_suite_and_what_was_measured_is_told(state):
    seen: list[SuiteReport] = []
    with pytest.raises(KeyboardInterrupt):
        run_suite(state, (part("one", 1.0, then=interrupted), part("two")), 60, False, seen.append)
    assert not seen[-1].finished and seen[-1].parts[-1].why == "it was interrupted"
    assert seen[-1].parts[-1].figures[0].value == 1.0


def test_quick_is_the_first_half(state):
    report = run_suite(state, (part("one", 1.0), part("two", 2.0, quick=False)), 60, True, lambda report: None)
    assert [p.name for p in report.parts] == ["one"] and report.quick
    quick = [part.quick for part in PARTS]
    assert quick == sorted(quick, reverse=True) and 3 < sum(quick) < len(quick)


def test_a_time_limit_leaves_other_timers_as_they_were():
    with pytest.raises(Overrun), time_limit(5), time_limit(0.05):
        endless()
    with time_limit(5):
        pass


def test_the_page_of_figures_has_those_of_the_files():
    page = bench_table.PAGE.read_text(encoding="utf-8")
    assert bench_table.rewritten(page) == page
    for file in bench_table.FIGURES.glob("*.json"):
        assert f"### {file.stem}" in page and read_suite(file).finished


@pytest.mark.parametrize("content", ["", "{}", "[1]", json.dumps({"schema": 1})])
def test_a_file_of_another_kind_is_refused(content, tmp_path):
    file = tmp_path / "suite.json"
    file.write_text(content)
    with pytest.raises(OutputError, match="no report"):
        read_suite(file)
    with pytest.raises(OutputError, match="no report"):
        read_suite(tmp_path / "missing")


def test_a_report_of_another_version_is_refused(state, tmp_path):
    report = run_suite(state, (), 60, False, lambda report: None)
    write_suite(tmp_path, dataclasses.replace(report, schema=0))
    with pytest.raises(OutputError, match="version 0"):
        read_suite(tmp_path)


def test_keys_and_values_go_to_fp8_where_plain_ones_do_not_fit(state, monkeypatch):
    def tight(plan, asked) -> None:
        if plan.stages[0].storage.kv_dtype == "plain":
            raise PlanError("This takes 82.9 GB of cuda:0, and 78.1 GB may be used.")

    monkeypatch.setattr(suite_parts, "check_fit", tight)
    first = next(iter(suite_parts.pace("plain", "plain", False, state)))
    assert first.name == "pace" and first.value > 0
    assert first.note.startswith("KV cache in fp8: This takes 82.9 GB of cuda:0")
    state.clean_up()


def on_card(monkeypatch, free: int, allocated: int = 0) -> None:
    """Let a card have so many bytes."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


def test_a_plan_that_a_card_has_no_room_for_is_refused_before_anything_is_made(monkeypatch):
    effective = resolve(Request(size="704x384"), (704, 384), 160_000, 16_000)

    def plan(keys: str):
        kept = StorageConfig(kv_dtype=keys)
        return make_plan(effective, WAN2_2_S2V_14B, model="x", devices=("cuda:0",), dtype="bfloat16", storage=kept)

    on_card(monkeypatch, 79 * 10**9)
    with pytest.raises(PlanError, match=r"This takes 79\.6 GB of cuda:0, and 79\.0 GB may be used.*--keys fp8"):
        check_fit(plan("plain"), Asked(8))
    check_fit(plan("fp8"), Asked(8))
    with pytest.raises(PlanError, match=r"23\.4 GB may be used"):
        check_fit(plan("fp8"), Asked(8, most=24 * 10**9))
    on_card(monkeypatch, 50 * 10**9, allocated=33 * 10**9)
    check_fit(plan("fp8"), Asked(8))


def test_weights_are_made_once_and_converted_in_place():
    config, part = PRESETS["untrained"], ModelSlice(range(2))
    kept = KeptComponents("untrained", "cpu")
    net = kept.transformer(part, torch.device("cpu"), torch.float32)
    assert kept.transformer(part, torch.device("cpu"), torch.float32) is net
    assert ModelCache().get(kept, "cpu", part, torch.float32) is net
    quantised = kept.transformer(part, torch.device("cpu"), torch.float32, "fp8")
    assert quantised is net
    fresh = RandomComponents("untrained", "cpu").transformer(part, torch.device("cpu"), torch.float32, "fp8")
    for (name, tensor), (other, wanted) in zip(net.state_dict().items(), fresh.state_dict().items(), strict=True):
        assert name == other and torch.equal(tensor, wanted), name
    plain = kept.transformer(part, torch.device("cpu"), torch.float32)
    assert plain is not net and plain.config is config
    kept.transformer(part, lambda name: "cpu", torch.float32)
    assert kept.transformer(part, torch.device("cpu"), torch.float32) is not plain


def test_kernels_are_held_against_float32():
    found = list(attention_speeds(torch.device("cpu"), torch.float32, 0.001))
    assert [(k.backend, k.kernel) for k in found[:2]] == [("sdpa", "flash, in parts"), ("sdpa", "")]
    for kernel in found[:2]:
        assert kernel.tflops > 0 and kernel.error < 1e-5 and not kernel.why_not


def test_a_package_that_cannot_attend_is_told(monkeypatch, tmp_path):
    (tmp_path / "sageattention.py").write_text("def sageattn(q, k, v):\n    raise ValueError('not for this card')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {k.backend: k for k in attention_speeds(torch.device("cpu"), torch.float32, 0.001)}
    assert found["sage"].why_not == "ValueError: not for this card" and found["sage"].tflops is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "mimi"], "untrained"),
        (["--device", "cuda:99"], "There is no device"),
        (["--device", "cpu,cpu"], "One device"),
        (["--budget", "0"], "A budget of 0 s is not possible"),
        (["--budget", "long"], "480"),
        (["--original", "/nowhere/at/all"], "There is no folder /nowhere/at/all"),
        (["--show", "/nowhere/at/all.json"], "no report"),
        (["--device", "cpu", "--size", "1x1"], "64"),
        (["--device", "cpu", "--dtype", "int4"], "float32, bfloat16, float16"),
        (["--device", "cpu", "--json", "/dev/null/figures"], "cannot be made"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(words, said):
    ran = run("bench", "suite", *words)
    assert ran.code == 2 and said in ran.err and "measuring" not in ran.err, ran.err


def test_compiling_the_vae_needs_a_compiler(state, monkeypatch):
    monkeypatch.setattr(compiler, "COMPILER", "inductor")
    monkeypatch.setattr(compiler, "missing_requirements", lambda kind: ["a C++ compiler"])
    measured = []
    with pytest.raises(ModelError, match="C\\+\\+ compiler"):
        measured.extend(suite_parts.vae(state))
