"""The command `comfy` of comfy-cli: without network, without questions, and with its own folders."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOWHERE = "http://127.0.0.1:9"
"""A proxy that does not exist: what would ask the network fails at once."""


def comfy(*words: str, home: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `comfy` with these words; skips the test where comfy-cli is not installed."""
    if importlib.util.find_spec("comfy_cli") is None:
        pytest.skip("comfy-cli is not installed: python -m pip install -r requirements-dev.txt")
    environment = os.environ | {
        "HOME": str(home),
        "USERPROFILE": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "DO_NOT_TRACK": "1",
        "COMFY_NO_TELEMETRY": "1",
        "NO_COLOR": "1",
        "PYTHONIOENCODING": "utf-8",
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), NOWHERE),
    }
    command = [sys.executable, "-m", "comfy_cli", "--skip-prompt", *words]
    return subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=120
    )


def workflow_errors(workflow: Path, object_info: Path, home: Path) -> list[dict[str, Any]]:
    """What `comfy workflow validate` says against a saved /object_info: "node_id", "field", "code", "message"."""
    words = ("--json", "workflow", "validate", "--workflow", str(workflow), "--input", str(object_info))
    result = comfy(*words, home=home, cwd=home)
    answer = json.loads(result.stdout)
    assert answer["data"] is not None, answer["error"]
    assert answer["data"]["valid"] == (not answer["data"]["errors"])
    return answer["data"]["errors"]
