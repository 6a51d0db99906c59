"""The programs in docs/examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from liveavatar.live import voices
from liveavatar.media.video import probe

PROJECT = Path(__file__).parents[2]
EXAMPLES = PROJECT / "docs" / "examples"
PORTRAIT = PROJECT / "liveavatar" / "mini" / "assets" / "portrait.png"


@pytest.mark.skipif(not voices.available(), reason="needs espeak-ng")
def test_the_voice_loop_says_its_lines(tmp_path: Path) -> None:
    out = tmp_path / "talk.mp4"
    environment = {**os.environ, "LIVE_AVATAR_MODEL": "untrained", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, str(EXAMPLES / "voice_loop.py"), str(PORTRAIT), str(out)]
    subprocess.run(command, input="Hello.\n\nGood bye.\n", text=True, env=environment, cwd=tmp_path, check=True)
    found = probe(out)
    assert found.frames >= 24 and found.audio_rate == 48_000
