"""What people see: a living line that leaves no traces, plain lines in a log, paragraphs that can be copied."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli.runs import write_inputs

from liveavatar.cli import terminal
from liveavatar.cli.terminal import ProgressLine, event_text, say_error
from liveavatar.errors import MissingFilesError
from liveavatar.events import GENERATING, Event

PROJECT = Path(__file__).parents[2]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(written: str) -> list[str]:
    """The lines that a terminal shows after all that."""
    lines = []
    for line in written.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def watch(monkeypatch) -> Terminal:
    """From now on a terminal of 60 columns is watched."""
    terminal_of_60 = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal_of_60)
    monkeypatch.setattr(terminal.shutil, "get_terminal_size", lambda: os.terminal_size((60, 20)))
    return terminal_of_60


def test_the_living_line_is_wiped_away(monkeypatch):
    watched = watch(monkeypatch)
    line = ProgressLine()
    line(Event("encoding the voice", 30, 100))
    assert screen(watched.getvalue()) == [" 30 %  encoding the voice"]
    line(Event(GENERATING, 50, 200, 48, 75.0))
    assert screen(watched.getvalue()) == [" 25 %  generating, 1.9 s of video, 1:15 left"]
    assert all(len(part) < 60 for part in watched.getvalue().split("\r"))
    line.end()
    assert screen(watched.getvalue()) == [""]


def test_nobody_watching_gets_a_line_per_phase(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    line = ProgressLine()
    for done in range(100):
        line(Event("encoding the voice", done, 100))
    for done in range(1, 500):
        line(Event(GENERATING, done, 500, done // 5))
    line.end()
    assert len(log.getvalue().splitlines()) == 2 and "\r" not in log.getvalue()


def test_quiet_is_quiet_and_a_lost_reader_is_no_failure(monkeypatch):
    watched = watch(monkeypatch)
    quiet = ProgressLine(quiet=True)
    quiet(Event(GENERATING, 1, 2))
    quiet.end()
    assert not watched.getvalue() and quiet.generating

    def gone(text: str) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(watched, "write", gone)
    lost = ProgressLine()
    lost(Event(GENERATING, 1, 2))
    lost.end()


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Event("loading the VAE", 0, 100), "       loading the VAE"),
        (Event(GENERATING, 1, 1000, 0, 59.6), "       generating, 1:00 left"),
        (Event(GENERATING, 999, 1000, 30_000, 7265), " 99 %  generating, 1200.0 s of video, 2:01:05 left"),
    ],
)
def test_progress_in_words(progress, text):
    assert event_text(progress) == text


def test_paragraphs_fit_the_terminal_and_break_no_word(monkeypatch):
    watched = watch(monkeypatch)
    command = "hf download Wan-AI/Wan2.2-S2V-14B --local-dir models/Wan2.2-S2V-14B"
    say_error(MissingFilesError("The model is not complete.", f"To fetch it: {command}"))
    lines = watched.getvalue().splitlines()
    assert len(lines) > 1 and all(len(line) < 60 for line in lines)
    assert " ".join(lines).endswith(command)


def test_a_reader_that_leaves_is_no_traceback(tmp_path):
    """As `python -m liveavatar plan | head -1` does."""
    write_inputs(tmp_path, 0.3)
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "liveavatar", "inspect", "mini"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        p.stdout.close()
        said = p.stderr.read().decode()
    assert p.returncode == 1 and not said, said


ENTRY = "import sys; sys.argv[1:] = ['--version']; from liveavatar.cli import entry\ntry: entry()\nfinally: "
SAY = "import os; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("code", "chosen", "said"),
    [
        (ENTRY + SAY, {}, "False 1000"),
        (ENTRY + SAY, {"OMP_WAIT_POLICY": "ACTIVE"}, "False None"),
        (ENTRY + SAY, {"GOMP_SPINCOUNT": "7"}, "False 7"),
        ("import sys; from liveavatar.pipeline import LiveAvatarPipeline; " + SAY, {}, "True None"),
    ],
    ids=["the program", "as the user says", "or so", "the library"],
)
def test_threads_of_the_program_spin_briefly(code, chosen, said):
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=plain | chosen, capture_output=True, text=True, timeout=60
    )
    assert ran.stdout.splitlines()[-1] == said, ran.stderr
