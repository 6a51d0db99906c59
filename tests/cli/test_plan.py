"""`plan` says what would be made, to people and to machines, without weights."""

import json

import pytest
from cli.runs import run, write_inputs


def test_the_published_model_is_planned_without_its_weights():
    ran = run("plan", "--model", "wan2.2-s2v-14b", "--size", "704x384", "--stages", "1x4", "--dtype", "bfloat16")
    assert (ran.code, ran.err) == (0, "")
    for words in ("704x384", "250 frames", "10.00 s", "21 blocks", "stages 1x4", "30-39", "GB"):
        assert words in ran.out, ran.out
    rows = [line for line in ran.out.splitlines() if line.startswith(" ") and " cpu" in line]
    assert len(rows) == 4 and len({len(row) for row in rows}) == 1, "a table"


def test_tiles_are_told_where_the_vae_works_in_them():
    words = ("plan", "--model", "wan2.2-s2v-14b", "--size", "1280x720", "--gpus", "2x16", "--host-ram", 128)
    ran = run(*words)
    assert (ran.code, ran.err) == (0, "")
    assert "kept    VAE: 2x2 tiles, what they remember on the host" in ran.out, ran.out
    told = run("plan", "--size", "256x256", "--vae-tiles", "1x2")
    assert "kept    VAE: 1x2 tiles" in told.out and "VAE" not in told.out.split("kept    VAE")[1], told.out
    assert "VAE:" not in run("plan", "--size", "256x256").out
    refused = run("plan", "--size", "256x256", "--vae-tiles", "2")
    assert refused.code != 0 and "rows x columns" in refused.err


def test_packed_files_are_planned_for_that_are_not_here():
    words = ("plan", "--model", "wan2.2-s2v-14b", "--size", "640x384", "--gpus", "1x16", "--host-ram", 32)
    ran = run(*words, "--gguf", "q4_k_m")
    assert (ran.code, ran.err) == (0, "")
    assert "packed weights" in ran.out and "15 of 40 layers offloaded" in ran.out, ran.out
    without = run(*words)
    assert "fp8 weights, int4 KV cache" in without.out, without.out
    assert "int4" not in ran.out, ran.out
    assert "--packed 'IQ9' is not known. Use Q4_0" in run(*words, "--gguf", "IQ9").err
    assert "matrices stay as the file has them (460 in Q4_K) and are brought to bfloat16 for each product" in ran.out
    network = run(*words, "--packed", "nvfp4").out
    assert "packed weights" in network and "15 of 40 layers offloaded" in network and "460 in nvfp4" in network, network
    assert "only where the model's file has them in few bits" in run("plan", "--weights", "gguf").err


def test_long_videos_tell_how_often_workers_keep_a_snapshot():
    plan = ("plan", "--model", "wan2.2-s2v-14b", "--stages", "1x4", "--dtype", "bfloat16")
    words = (*plan, "--engine", "ray", "--seconds")
    (line,) = (line for line in run(*words, 3600).out.splitlines() if line.startswith("resume"))
    assert "every 347 blocks (167 s of video)" in line and "33.31 GB" in line, line
    assert "resume" not in run(*words, 60).out
    assert "resume" not in run(*plan, "--seconds", 3600).out, "this process keeps none"


def test_machines_get_json_and_nothing_else():
    ran = run("plan", "--json", "--size", "384 × 256", "--steps", 3, "--seconds", 2.5, "--stages", "3x2")
    assert (ran.code, ran.err) == (0, "")
    told = json.loads(ran.out)
    effective, plan = told["effective"], told["plan"]
    assert (effective["width"], effective["height"], effective["frames"], effective["steps"]) == (384, 256, 63, 3)
    assert len(plan["stages"]) == 6 and plan["stages"][5]["steps"] == {"start": 2, "stop": 3}
    shared = sum(stage["weights"] for stage in plan["stages"][:2])
    most = sum(sum_of(stage) for stage in plan["stages"]) + plan["conditions"] + plan["vae"]
    assert shared < told["total_by_device"]["cpu"] < most


def sum_of(stage) -> int:
    return sum(stage[part] for part in ("weights", "rings", "sink", "text", "workspace"))


def test_inputs_decide_size_and_length(tmp_path):
    write_inputs(tmp_path, 1.0)
    given = ["--image", tmp_path / "portrait.png", "--audio", tmp_path / "voice.wav"]
    effective = json.loads(run("plan", "--json", "--size", "256x128", *given).out)["effective"]
    assert effective["frames"] == 25 and effective["width"] == effective["height"]
    assert any("is an area" in note for note in effective["notes"])


@pytest.mark.parametrize("written", ["704*384", "704X384", "704×384", "704 x 384", "704, 384", " 704  384 "])
def test_sizes_are_understood_however_they_are_written(written):
    effective = json.loads(run("plan", "--json", "--model", "wan2.2-s2v-14b", f"--size={written}").out)["effective"]
    assert (effective["width"], effective["height"]) == (704, 384)


def test_devices_take_stages_in_turn_and_need_not_be_here():
    ran = run("plan", "--stages", "2x2", "--devices", "cuda:0, cuda:1", "--json")
    told = json.loads(ran.out)
    assert [stage["device"] for stage in told["plan"]["stages"]] == ["cuda:0", "cuda:1"] * 2
    assert told["total_by_device"].keys() == {"cuda:0", "cuda:1"} and told["plan"]["dtype"] == "bfloat16"


def test_help_names_every_command_and_option():
    shown = run("--help").out
    assert all(name in shown for name in ("generate", "plan", "inspect", "demo", "doctor", "bench", "workers"))
    options = ("image", "audio", "prompt", "model", "size", "steps", "seed", "seconds", "stages", "out", "receipt")
    assert all(f"--{name} " in run("generate", "--help").out for name in options)
    assert run("--version").out.strip()


def test_a_simulation_is_told_and_drawn(tmp_path):
    picture = tmp_path / "timeline.png"
    words = ["plan", "--model", "wan2.2-s2v-14b", "--stages", "1x4", "--seconds", "60"]
    ran = run(*words, "--step-seconds", "0.5", "--plot", str(picture))
    assert (ran.code, ran.err) == (0, "")
    assert "a block every 0.500 s, 24.0 frames per second; 100 %" in ran.out
    assert picture.read_bytes().startswith(b"\x89PNG")
    played = json.loads(run(*words, "--simulate", "--json").out)["simulation"]
    assert played["period"] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("wrong", [["--step-seconds", "0"], ["--plot", "/nowhere/at/all.png"], ["--plot", "a.nothing"]])
def test_a_simulation_that_cannot_be_is_refused(wrong):
    ran = run("plan", "--model", "wan2.2-s2v-14b", "--simulate", *wrong)
    assert ran.code == 2
    assert ran.err
