"""The benchmark of pipelines measures what it says, and refuses what cannot be measured."""

import json

import pytest
from cli.runs import run

from liveavatar.bench.pipeline import bench_pipeline, fewest_blocks
from liveavatar.engine.backend import LocalBackend
from liveavatar.errors import ModelError, PlanError, RequestError
from liveavatar.placement import Placement
from liveavatar.task_graph import steady


@pytest.fixture
def local() -> LocalBackend:
    return LocalBackend(Placement(("cpu",), threads=1))


def test_a_cut_is_measured_and_predicted(local):
    told = []
    found = bench_pipeline(local, ["1x2"], 18, 0.004, told.append)
    one, two = found.cuts
    assert (one.cut, one.multiple, one.efficiency) == ("1x1", 1.0, 1.0)
    assert (two.cut, two.stages) == ("1x2", 2)
    assert two.efficiency == pytest.approx(two.multiple / 2)
    assert len(told) == 2
    for cut in found.cuts:
        assert cut.measured.period >= 4 * 4 * 0.004, "four steps through four layers, which take turns in one thread"
        assert cut.longest_gap >= cut.measured.period
        assert len(cut.busy) == cut.stages and 0 < sum(cut.busy) <= 1
    assert found.seconds_per_layer >= 0.004
    for cut, layers in ((one, 4), (two, 2)):
        task = layers * found.seconds_per_layer + found.seconds_per_task
        assert cut.predicted.period == pytest.approx(4 * task, rel=1e-6), "were its stages side by side"


@pytest.mark.parametrize("stages", [1, 2, 4, 8])
def test_the_fewest_blocks_fill_the_pipeline(stages):
    fewest = fewest_blocks(stages)
    assert len(steady(range(fewest), stages)) == 5
    assert len(steady(range(fewest - 1), stages)) < 5


@pytest.mark.parametrize(
    ("stages", "blocks", "seconds", "error"),
    [("1x4", 24, 0.0, RequestError), ("1x5", 40, 0.0, PlanError), ("1x2", 40, -1.0, ModelError)],
)
def test_what_cannot_be_measured_is_refused_at_once(local, stages, blocks, seconds, error):
    with pytest.raises(error) as refused:
        bench_pipeline(local, [stages], blocks, seconds)
    assert refused.value.nearest
    assert local.bytes_by_device() == {}, "nothing was loaded"


def test_the_command_shows_a_table_and_writes_a_report(tmp_path):
    report = tmp_path / "bench.json"
    words = ("--stages", "1x2, 2x1", "--blocks", 17, "--sleep", 0, "--engine", "local", "--json", report)
    ran = run("bench", "pipeline", *words)
    assert ran.code == 0, ran.err
    rows = [line.split() for line in ran.out.splitlines() if line.split()[0] in ("1x1", "1x2", "2x1")]
    assert [row[0] for row in rows] == ["1x1", "1x2", "2x1"]
    assert "measuring 2x1" in ran.err
    told = json.loads(report.read_text())
    assert (told["bench"], told["engine"]) == ("pipeline", "local")
    assert told["cores"] >= 1 and told["versions"]["torch"] and told["date"]
    assert [cut["cut"] for cut in told["found"]["cuts"]] == ["1x1", "1x2", "2x1"]
    assert told["found"]["cuts"][1]["efficiency"] == told["found"]["cuts"][1]["multiple"] / 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pipelines"], "Did you mean pipeline?"),
        ([], "COMMAND"),
        (["pipeline", "--bloks", "9"], "Did you mean --blocks?"),
        (["pipeline", "--engine", "magic"], "local or ray"),
        (["pipeline", "--engine", "local", "--blocks", "3"], "at least 25"),
        (["pipeline", "--engine", "local", "--json", "/nowhere/at/all.json"], "cannot be written"),
    ],
)
def test_mistakes_are_told(words, said):
    ran = run("bench", *words)
    assert ran.code == 2 and said in ran.err
