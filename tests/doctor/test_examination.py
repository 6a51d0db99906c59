"""The command on this machine: it really measures, tells nobody who and where one is, and outlives its probes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli.runs import run

from liveavatar.doctor import examine, known_speeds
from liveavatar.doctor.plain import from_plain
from liveavatar.doctor.privacy import _NOBODY, names_here
from liveavatar.doctor.report import Report

PROJECT = Path(__file__).parents[2]
USER, PROXY = "zaphod-b", "http://proxy.magrathea.example:3128"


@pytest.fixture(scope="module")
def examined(tmp_path_factory):
    """One quick run with everything asked for: how it ended, and the folder of the one who ran it."""
    home = tmp_path_factory.mktemp("home of zaphod")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME"):
            patch.setenv(name, str(home))
        for name in ("USER", "LOGNAME", "USERNAME"):
            patch.setenv(name, USER)
        patch.setenv("HTTP_PROXY", PROXY)
        patch.chdir(home)
        (home / "half a model").mkdir()
        given = ["--quick", "--json", "--out", "doctor.json", "--model", home / "half a model"]
        return run("doctor", *given), home


def test_a_quick_look_measures_this_machine(examined):
    ran, _ = examined
    report = from_plain(Report, json.loads(ran.out))
    assert not report.failures and report.quick
    assert report.host.cores >= 1 and report.host.ram > report.host.ram_free > 0
    assert report.versions.libraries["torch"] and [d.name for d in report.disks] == ["temporary", "current"]
    assert report.devices[-1].id == "cpu"
    for device in report.devices:
        assert device.compute.matmul["float32"] > 0 and device.copies.memory > 0
    assert report.network.loopback and "HTTP_PROXY" in report.network.variables
    gloo = report.handshakes[0]
    assert gloo.worked and gloo.speed > 0, gloo


def test_an_incomplete_model_is_a_problem_and_the_exit_code_says_so(examined):
    ran, _ = examined
    assert ran.code == 1, ran.err
    problems = [f for f in json.loads(ran.out)["findings"] if f["level"] == "problem"]
    assert any("The model is not complete: transformer" in f["what"] for f in problems), problems


def test_the_report_can_be_shown_to_everybody(examined):
    ran, home = examined
    known = [n for n in names_here() if len(n) > 3 and n.lower() not in _NOBODY]
    for secret in (*known, USER, PROXY, "magrathea", str(home), home.name, "zaphod", str(PROJECT), sys.prefix):
        assert secret not in ran.out, f"{secret} is in the report"
    assert "/" + "home" not in ran.out and "/" + "tmp" not in ran.out


def test_progress_is_told_apart_from_the_result(examined):
    ran, _ = examined
    assert "computing on cpu" in ran.err and ran.err.splitlines()[-1].endswith("meet over gloo")


def test_file_and_kept_speeds_are_the_same_as_what_was_said(examined):
    ran, home = examined
    told = json.loads(ran.out)
    assert json.loads((home / "doctor.json").read_text()) == told
    kept = known_speeds(home / "liveavatar" / "speeds.json")
    assert kept
    for device in from_plain(Report, told).devices:
        speed = kept[device.id]
        assert speed.quick and (speed.compute, speed.copies) == (device.compute, device.copies)


CHILD = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from liveavatar.doctor import serve
really = serve.find
def find(name, *arguments):
    if name == "versions":
        print("a library that talks", end="", flush=True)
    if name == "disks":
        time.sleep(1000)
    if name == "accelerators":
        raise RuntimeError("the card is on fire\\nat line 3")
    if name == "handshake":
        os.kill(os.getpid(), signal.SIGKILL)
    return really(name, *arguments)
serve.find = find
serve.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_probe_that_raises_hangs_or_crashes_is_a_finding():
    report = examine(quick=True, command=[sys.executable, "-c", CHILD, str(PROJECT)], seconds=10)
    assert {f.probe: f.why for f in report.failures} == {
        "the disks": "It took longer than 10 s.",
        "the devices": "RuntimeError: the card is on fire at line 3",
        "two processes that meet over gloo": "Its process was ended by SIGKILL.",
    }
    assert report.host and report.versions and report.network.loopback, "the others went on"
    problems = " ".join(f.what for f in report.findings if f.level == "problem")
    assert not report.healthy
    assert all(word in problems for word in ("longer than 10 s", "on fire", "SIGKILL"))


def test_a_child_that_cannot_start_is_told_for_every_probe():
    report = examine(quick=True, command=[sys.executable, "-c", "raise SystemExit('no luck')"])
    assert len(report.failures) == 6 and all("code 1: no luck" in f.why for f in report.failures), report.failures


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="/proc to find children")
def test_ctrl_c_ends_it_and_all_that_it_started():
    command = [sys.executable, "-m", "liveavatar", "doctor", "--quick"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        while "meet over gloo" not in (line := p.stderr.readline()):
            assert line, "it ended by itself"
        started = below(p.pid)
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=60)
    assert p.returncode == 130 and err.strip() == "Cancelled." and not out, (p.returncode, out, err)
    until = time.monotonic() + 60  # who was killed may still have to be told
    while any(map(alive, started)) and time.monotonic() < until:
        time.sleep(0.05)
    assert started and not [pid for pid in started if alive(pid)]


def below(pid: int) -> list[int]:
    """Children and theirs."""
    children = [int(n) for t in Path(f"/proc/{pid}/task").iterdir() for n in (t / "children").read_text().split()]
    return [*children, *(n for child in children for n in below(child))]


def alive(pid: int) -> bool:
    """Not ended; one that has ended but was not asked for yet counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "missing/doctor.json"], ["missing", "exists"]),
        (["--out", "."], ["is a folder", "doctor.json"]),
        (["--quik"], ["--quik", "Did you mean --quick?"]),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_measured(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run("doctor", *arguments)
    assert ran.code == 2 and not ran.out and ran.err.count("\n") == 1, ran
    assert all(word in ran.err for word in words), ran.err
    assert not list(tmp_path.iterdir())


def test_it_is_among_the_commands():
    shown = run("--help").out
    assert "doctor" in shown and "what to do about it" in " ".join(shown.split())
