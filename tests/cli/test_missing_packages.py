"""A package that is not installed is told in a sentence, by every command that needs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("package", "command", "how"),
    [
        ("torch", "generate --image x.png --audio y.wav", "pytorch.org"),
        ("numpy", "demo", "requirements.txt"),
    ],
)
def test_a_missing_package_is_a_sentence(package, command, how):
    code = f"import sys; sys.modules[{package!r}] = None\nfrom liveavatar.cli import main\nsys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    ran = subprocess.run(
        [sys.executable, "-c", code, *command.split()], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 2 and "Traceback" not in ran.stderr, ran.stderr
    assert f"The package {package} is not installed" in ran.stderr and how in ran.stderr
