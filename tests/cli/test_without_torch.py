"""What only reads headers, lists or does arithmetic says the same where PyTorch cannot be imported, and so is quick."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli.runs import run, write_inputs

import liveavatar.gpus as gpus

PROJECT = Path(__file__).parents[2]
COMMANDS = (
    "--help",
    "--version",
    "plan --help",
    "plan",
    "plan --image portrait.png --audio voice.wav --size 128x128 --json",
    "plan --model wan2.2-s2v-14b --gpus 1x24 --prefer speed",
    "plan --model wan2.2-s2v-14b --gpus 4x24 --json --compile auto --attention sage",
    "plan --compile always",
    "plan --model wan2.2-s2v-14b --stages 2x2 --dtype bfloat16 --simulate",
    "plan --model wan2.2-s2v-14b --gpus 1x8",
    "plan --model {mini} --engine ray --seconds 3600",
    "plan --model {mini} --devices cuda:0",
    "inspect {mini}",
    "inspect {mini} --lora none",
    "inspect mini",
    "inspect untrained",
    "inspect .",
    "workers",
    "workers --json",
)
BLOCKED = """
import contextlib, io, json, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "diffusers", "transformers"):
            raise ImportError(f"{name} was imported")
sys.meta_path.insert(0, Blocker())
from liveavatar.cli import main
for command in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(command)
        except SystemExit as e:
            code = int(e.code or 0)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


@pytest.mark.skipif(gpus.has_gpu_driver(), reason="what is free on a GPU only PyTorch knows")
def test_they_say_the_same_without_it(tmp_path, monkeypatch):
    write_inputs(tmp_path, 0.4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["-c"])
    mini = str(PROJECT / "liveavatar" / "mini" / "model")
    commands = [command.format(mini=mini).split() for command in COMMANDS]
    blocked = subprocess.run(
        [sys.executable, "-c", BLOCKED],
        input=json.dumps(commands),
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=280,  # many commands, on a machine that may be busy
    )
    assert blocked.returncode == 0, blocked.stderr
    for command, line in zip(commands, blocked.stdout.splitlines(), strict=True):
        code, out, err = json.loads(line)
        if command[0] == "workers":  # of other programs, which come and go
            assert (code, err) == (0, "")
            continue
        ran = run(*command)
        assert (code, out, err) == (ran.code, ran.out, ran.err), command


@pytest.mark.parametrize(
    ("system", "there", "found"),
    [
        ("linux", ["/dev/nvidiactl"], True),
        ("linux", ["/dev/kfd"], True),
        ("linux", ["/dev/dxg"], True),
        ("linux", ["/dev/null"], False),
        ("darwin", ["/dev/nvidiactl"], False),
        ("freebsd", [], True),
    ],
)
def test_a_gpu_is_looked_for_where_a_driver_is(monkeypatch, system, there, found):
    monkeypatch.setattr(gpus.os.path, "exists", lambda path: path in there)
    assert gpus.has_gpu_driver(system) is found


def test_windows_has_the_drivers_library(monkeypatch, tmp_path):
    (tmp_path / "System32").mkdir()
    monkeypatch.setenv("SYSTEMROOT", str(tmp_path))
    assert not gpus.has_gpu_driver("win32")
    (tmp_path / "System32" / "nvcuda.dll").touch()
    assert gpus.has_gpu_driver("win32")
