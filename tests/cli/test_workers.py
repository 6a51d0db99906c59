"""`generate --engine ray` makes the same video in worker processes."""

import json

import pytest
from cli.runs import run, write_inputs


def test_workers_make_the_frames_that_this_process_makes(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (the extra 'ray')")
    inputs = write_inputs(tmp_path, 0.5)
    image, audio = inputs / "portrait.png", inputs / "voice.wav"
    made = []
    for name, how in (("own", ()), ("workers", ("--engine", "ray", "--restarts", 1))):
        out = tmp_path / f"{name}.mp4"
        words = ("--model", "untrained", "--size", "64x64", "--stages", "1x2", "--devices", "cpu", "--threads", 1)
        ran = run("generate", "--image", image, "--audio", audio, "--out", out, *words, *how)
        assert ran.code == 0, ran.err
        receipt = json.loads(out.with_suffix(".json").read_text())
        assert receipt["notices"] == []
        made.append(receipt["frames_sha256"])
    assert made[0] == made[1]


@pytest.mark.parametrize(
    "how, nearest", [(("--restarts", 1), "--engine ray"), (("--engine", "ray", "--restarts", -1), "Use 0 for never")]
)
def test_restarts_that_cannot_be_are_refused(how, nearest, tmp_path):
    inputs = write_inputs(tmp_path, 0.5)
    image, audio = inputs / "portrait.png", inputs / "voice.wav"
    ran = run("generate", "--image", image, "--audio", audio, "--out", tmp_path / "a.mp4", *how)
    assert ran.code == 2
    assert nearest in ran.err


def test_an_unknown_engine_is_refused(tmp_path):
    inputs = write_inputs(tmp_path, 0.5)
    image, audio = inputs / "portrait.png", inputs / "voice.wav"
    ran = run("generate", "--image", image, "--audio", audio, "--out", tmp_path / "a.mp4", "--engine", "magic")
    assert ran.code == 2
    assert "local or ray" in ran.err
