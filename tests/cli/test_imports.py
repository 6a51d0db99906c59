"""What a whole run imports, and what workers do: no library that takes seconds, but PyTorch itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli.runs import write_inputs

PROJECT = Path(__file__).parents[2]
SLOW = ("diffusers", "transformers", "torch._dynamo", "torch._inductor", "torch.distributed.tensor", "sympy")
REPORT = "\nprint(json.dumps(sorted(sys.modules)))"


def modules_after(code: str, folder: Path) -> set[str]:
    """What is imported in a new process that has run some code."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "import json, sys\n" + code + REPORT]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    return set(json.loads(ran.stdout.splitlines()[-1]))


@pytest.mark.parametrize("model", ["mini", "untrained"])
def test_a_whole_video_needs_no_library_of_other_networks(tmp_path, model):
    write_inputs(tmp_path, 0.3)
    options = ["--image", "portrait.png", "--audio", "voice.wav", "--size", "64x64", "--steps", "1", "--threads", "1"]
    command = ["generate", "--model", model, *options, "--prompt", "a word " * 40, "--out", "out.mp4", "--quiet"]
    loaded = modules_after(f"from liveavatar.cli import main\nassert main({command!r}) == 0", tmp_path)
    assert "torch" in loaded and not loaded & set(SLOW)


@pytest.mark.parametrize(
    ("role", "others"),
    [
        ("worker:StageWorker", ("av", "PIL", "tokenizers", "liveavatar.encoders.umt5")),
        ("codec_worker:CodecWorker", ("av", "PIL")),
    ],
)
def test_workers_import_what_they_need(tmp_path, role, others):
    module, name = role.split(":")
    loaded = modules_after(f"from liveavatar.distributed.{module} import {name}", tmp_path)
    assert "torch" in loaded and not loaded & {*SLOW, *others}, loaded & {*SLOW, *others}
