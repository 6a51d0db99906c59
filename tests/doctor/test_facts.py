"""The small pieces that probes and reports are made of."""

import dataclasses
import json
import stat
import sys
import time

import pytest
import torch
from doctor.machines import CPU, card, machine

from liveavatar.doctor import known_speeds, partner, save_speeds
from liveavatar.doctor.child import Child, entry
from liveavatar.doctor.command import report_lines
from liveavatar.doctor.devices import compute, copies, driver_said, identities
from liveavatar.doctor.findings import findings
from liveavatar.doctor.host import disk, requirements
from liveavatar.doctor.network import meet
from liveavatar.doctor.plain import from_plain, plain
from liveavatar.doctor.privacy import clean
from liveavatar.doctor.report import Compute, Report
from liveavatar.errors import LiveAvatarError, OutputError

PROJECT_REQUIREMENTS = {"transformers", "safetensors", "av"}
MEMORY = ["25.40", "GB", "24.90", "GB"]
SILENT = [sys.executable, "-c", "import time; time.sleep(60)"]
DEAD = [sys.executable, "-c", "import sys; print('out of luck'); sys.exit(7)"]


def test_the_drivers_answer_is_read():
    assert driver_said("NVIDIA H200, 570.86.15\nNVIDIA L4, 570.86.15\n") == ("570.86.15", ("NVIDIA H200", "NVIDIA L4"))
    assert driver_said("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n") == ("", ())


def test_the_requirements_are_those_of_the_pack():
    wanted = requirements()
    assert wanted.keys() >= PROJECT_REQUIREMENTS and wanted["transformers"].startswith("4.") and wanted["ftfy"] == ""


def test_a_disk_is_measured_and_left_as_it_was(tmp_path):
    found = disk("temporary", tmp_path, 8 * 2**20)
    assert found.writable and found.free and found.write and (found.read or sys.platform != "linux")
    assert disk("current", tmp_path, 0).writable
    assert not list(tmp_path.iterdir())
    missing = disk("temporary", tmp_path / "missing", 100)
    assert not missing.writable and missing.why_not and str(tmp_path) not in missing.why_not


def test_the_cpu_is_measured():
    found = compute("cpu", True)
    assert set(found.matmul) | set(found.failed) == {"float32", "bfloat16", "float16", "float8", "float8 rows"}
    assert 0 < found.matmul["float32"] < 1000 and 0 < found.attention_tflops("float32")["sdpa"] < 1000
    own = [kernel for kernel in found.attention if kernel.backend == "sdpa"]
    assert own[0].kernel == "flash, in parts" and all(k.error < 1e-5 for k in own if k.error is not None)
    moved = copies("cpu", True)
    assert moved.memory > 0 and moved.pinned_in is None


@pytest.mark.timeout(60)
def test_partners_that_do_not_come_are_given_up():
    real, silent = Child(entry("partner", "gloo", "0")), Child(SILENT)
    found = meet("gloo", real, silent, 5)
    assert not found.worked and "longer than" in found.why_not
    assert all(child._process.returncode is not None for child in (real, silent))


def test_a_partner_that_dies_says_why():
    found = meet("gloo", Child(DEAD), Child(SILENT), 20)
    assert not found.worked and found.why_not == "Its process ended with code 7: out of luck"


@pytest.mark.parametrize("arrives", ["whole", "changed", "not at all"])
def test_the_second_partner_checks_what_arrives(arrives):
    sent = torch.arange(12.0).reshape(3, 4)
    got = {"whole": sent.clone(), "changed": sent + (sent == 5), "not at all": None}[arrives]
    store = torch.distributed.HashStore()
    verdict = partner._judge(store, time.perf_counter(), sent, lambda: got)
    assert ("error" in verdict) == (arrives != "whole")
    assert arrives != "whole" or verdict["speed"] > 0
    partner._stay(store)


SECRETS = [
    ("cannot read /srv/data/jane/model/a.safetensors", "cannot read .../a.safetensors"),
    ("cannot read '/tmp/my own/x.bin'", "cannot read '.../x.bin'"),
    (r"cannot read C:\Users\Jane\x.bin", r"cannot read .../x.bin"),
    ("file:line (/opt/a/b.py:12)", "file:line (.../b.py:12)"),
    ("jane cannot reach node7.example.org", "(name) cannot reach (name)"),
    ("Jane-PC", "(name)-PC"),
    ("janet and 12/24 GB/s stay", "janet and 12/24 GB/s stay"),
    ("https://pytorch.org/get-started stays", "https://pytorch.org/get-started stays"),
    ("the cpu of root", "the cpu of root"),
]


@pytest.mark.parametrize(("said", "shown"), SECRETS, ids=[s[0] for s in SECRETS])
def test_names_and_places_are_taken_out(said, shown):
    names, folders = ["jane", "node7.example.org", "root", "cpu"], ["/tmp/my own", "/"]
    cleaned = clean({"jane": [said, 1, None]}, names, folders)
    assert cleaned == {"jane": [shown, 1, None]}


def measured(name: str, tflops: float = 0.5, device: str = "cpu"):
    return dataclasses.replace(CPU, id=device, name=name, compute=Compute({"float32": tflops}, (), {}))


def of_this_machine(tflops: float = 0.5):
    return [measured(name, tflops, device) for device, name in identities()]


def test_speeds_are_kept_and_known_again(tmp_path):
    path, here = tmp_path / "cache" / "speeds.json", dict(identities())
    assert known_speeds(path) == {}
    assert save_speeds(of_this_machine(), False, path) == path
    assert not stat.S_IMODE(path.stat().st_mode) & 0o077
    save_speeds([card(5)], False, path)
    known = known_speeds(path)
    assert known.keys() == here.keys(), "what was measured before stays, and devices that are not here are left out"
    assert all(
        speed.name == here[device] and speed.compute.matmul == {"float32": 0.5} for device, speed in known.items()
    )


def test_a_quick_measurement_takes_the_place_of_a_quick_one_only(tmp_path):
    path, seen = tmp_path / "speeds.json", []
    for tflops, quick in ((1.0, True), (2.0, True), (3.0, False), (4.0, True), (5.0, False)):
        save_speeds(of_this_machine(tflops), quick, path)
        seen.append(known_speeds(path)["cpu"].compute.matmul["float32"])
    assert seen == [1.0, 2.0, 3.0, 3.0, 5.0]
    assert len(json.loads(path.read_text())["devices"]) == len(identities())


def test_a_device_is_taken_for_its_like(tmp_path):
    path = tmp_path / "speeds.json"
    save_speeds([measured(dict(identities())["cpu"], device="cuda:7")], False, path)
    assert known_speeds(path)["cpu"].compute.matmul == {"float32": 0.5}


@pytest.mark.skipif(sys.platform == "win32", reason="access rights")
def test_what_others_can_have_kept_is_not_believed(tmp_path, monkeypatch):
    path = tmp_path / "speeds.json"
    save_speeds(of_this_machine(), False, path)
    whole = path.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0")
        assert known_speeds(path) == {}, "kernels of another version"
    path.chmod(0o666)
    assert known_speeds(path) == {}
    path.chmod(0o600)
    assert known_speeds(path)
    for spoilt in ("", "[]", whole.replace('"schema": ', '"schema": 9')):
        path.write_text(spoilt)
        assert known_speeds(path) == {}


def test_speeds_that_are_none_or_have_no_place_are_refused(tmp_path):
    with pytest.raises(OutputError, match="No device"):
        save_speeds([CPU], False, tmp_path / "speeds.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        save_speeds(machine().devices, False, tmp_path / "file" / "speeds.json")


@pytest.mark.parametrize(
    "spoil", [{"schema": "1"}, {"devices": [{"id": "cpu"}]}, {"findings": [{"level": "bad", "what": "", "remedy": ""}]}]
)
def test_a_report_of_another_kind_is_refused(spoil):
    with pytest.raises(LiveAvatarError):
        from_plain(Report, plain(machine()) | spoil)


def test_people_read_a_table():
    report = machine(card(0), card(1, copies=None, compute=None))
    lines = list(report_lines(dataclasses.replace(report, findings=findings(report))))
    rows = {line.split()[0]: line.split() for line in lines if line.startswith(" ") and "(" not in line}
    assert rows["cuda:0"] == ["cuda:0", *MEMORY, "60", "150", "150", "290", "270", "130", "25", "25.5", "900"]
    assert rows["cuda:1"][-8:] == ["-"] * 8 and rows["cpu"]
    assert "attends cuda:0: sdpa (flash, in parts), 130 TFLOP/s in bfloat16, 2.0e-03 off float32" in lines
    assert lines[-1] == "No problem found." and any("cuda:0 to cuda:1: 20.0 GB/s, direct" in line for line in lines)
