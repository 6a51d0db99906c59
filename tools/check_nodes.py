"""Type check of nodes/ as ComfyUI imports it, below the pack's own folder: `python -m tools.check_nodes`.

The nodes import the library relatively, which mypy can follow only from inside a package. The checkout may have a name
that is none, so it is seen through a link with a proper one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).parents[1]
PACK = "live_avatar"


def check() -> int:
    """Exit code of mypy, which prints what it found."""
    with tempfile.TemporaryDirectory(prefix="liveavatar-") as folder:
        (Path(folder) / PACK).symlink_to(PROJECT, target_is_directory=True)
        command = [sys.executable, "-m", "mypy", "--config-file", str(PROJECT / "pyproject.toml")]
        command += ["--cache-dir", str(PROJECT / ".mypy_cache"), "--package", f"{PACK}.nodes"]
        return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(check())
