"""What follows from the facts: each rule speaks when it should, says what to do, and is silent on a healthy machine."""

import dataclasses
import json

import pytest
from doctor.machines import CPU, FAST, card, machine, without_gpu
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.doctor.findings import findings
from liveavatar.doctor.plain import from_plain, plain
from liveavatar.doctor.report import Compute, Copies, Disk, Failure, Handshake, Model, Network, Peer, Report, Versions

CARD = ("NVIDIA GeForce RTX 4090",)
HIDDEN = Network(True, "", ("CUDA_VISIBLE_DEVICES",))
NO_FP8 = dataclasses.replace(FAST, matmul={"float32": 20.0, "bfloat16": 70.0, "float16": 70.0})
BROKEN_FP8 = dataclasses.replace(NO_FP8, failed={"float8 rows": "no kernel"})
OLD = dataclasses.replace(FAST, matmul={"float32": 10.0, "bfloat16": 6.0, "float16": 60.0, "float8 rows": 1.0})
NONE = dataclasses.replace(FAST, matmul={}, failed={"float32": "RuntimeError: no kernel image"})
HOST = machine().host
TWO = (card(0), card(1))


def libraries(wanted=None, **has):
    known = {"torch": "2.9.0", "av": "15.0", "ray": "2.60.0", "dlib": "20.0.1"} | has
    return machine(versions=Versions("0.1.0", "3.12.1", known, wanted or {"av": "14.2", "ray": "2.52"}))


ROOMY = Disk("temporary", 10**11, True)


def disks(temporary=ROOMY, current=ROOMY):
    return machine(disks=(temporary, current))


def met(worked_not: str, *variables: str):
    return machine(handshakes=(Handshake("gloo", False, worked_not),), network=Network(True, "", variables))


RULES = {
    "a probe failed": (machine(failures=(Failure("the disks", "It took longer."),)), "problem", "the disks", "issue"),
    "no such model": (machine(failures=(Failure("the model", "There is no x"),)), "problem", "no x.", "folder"),
    "no torch": (libraries(torch=None), "problem", "PyTorch is not installed", "Install"),
    "a library is missing": (libraries(av=None), "problem", "Not installed: av", "requirements.txt"),
    "a library is old": (libraries(av="14.1.9"), "problem", "av 14.1.9 is older than 14.2", "Update av"),
    "no ray": (libraries(ray=None), "note", "Ray is not installed", "extra 'ray'"),
    "an old ray": (libraries(ray="2.9.1"), "note", "Ray 2.9.1 is older than 2.52", "Update"),
    "no dlib": (libraries(dlib=None), "note", "`meter` cannot read faces", "extra 'meter'"),
    "torch for the CPU": (without_gpu("CPU", "570.1", CARD), "problem", "built for the CPU only", "CUDA build"),
    "a hidden card": (without_gpu("CUDA 12.8", "570.1", CARD, network=HIDDEN), "problem", "hides it", "Unset"),
    "an old driver": (without_gpu("CUDA 12.8", "450.1", CARD), "problem", "finds no GPU", "Update the driver"),
    "no driver": (without_gpu("CUDA 12.8"), "problem", "no driver", "Install the driver"),
    "no GPU": (without_gpu("CPU"), "note", "no GPU", "NVIDIA GPU"),
    "a small card": (machine(card(total=8 * 10**9, free=7 * 10**9)), "note", "8.0 GB, too little", "several cards"),
    "a card in use": (machine(card(free=9 * 10**9)), "problem", "9.0 of 25.4 GB", "End them"),
    "a card partly in use": (machine(card(free=22 * 10**9)), "note", "22.0 of 25.4 GB", "End them"),
    "no fp8": (machine(card(compute=NO_FP8, capability="8.6")), "note", "does not compute in fp8", "widened"),
    "fp8 that fails": (machine(card(compute=BROKEN_FP8)), "problem", "fp8 matrices: no kernel.", "Update PyTorch"),
    "slow bfloat16": (machine(card(compute=OLD)), "note", "slower in bfloat16", "--dtype float16"),
    "no kernels": (machine(card(compute=NONE)), "problem", "no kernel image", "Update"),
    "four lanes": (machine(card(copies=Copies(3.1, 3.2, 2.0, 2.0, 900.0))), "note", "3.1 GB/s", "16 lanes"),
    "no P2P": (machine(*TWO, peers=(Peer("cuda:0", "cuda:1", False, 8.0),)), "note", "cuda:0 and cuda:1", "1xP"),
    "little memory": (machine(host=dataclasses.replace(HOST, ram_free=10**10)), "note", "10.0 GB", "add memory"),
    "a busy machine": (machine(host=dataclasses.replace(HOST, load=40.0)), "note", "40.0 processes", "End other"),
    "a read-only folder": (disks(Disk("temporary", None, False, "Read-only")), "problem", "(Read-only)", "TMPDIR"),
    "a full disk": (disks(Disk("temporary", 5 * 10**8, True)), "problem", "0.5 GB", "TMPDIR"),
    "a tight disk": (disks(Disk("temporary", 3 * 10**9, True)), "note", "3.0 GB", "TMPDIR"),
    "no room here": (disks(current=Disk("current", 10, False)), "note", "current folder", "--out"),
    "no loopback": (machine(network=Network(False, "refused", ())), "problem", "refused.", "firewall"),
    "no handshake": (met("It hangs"), "problem", "over gloo: It hangs.", "firewall"),
    "led astray": (met("It hangs", "GLOO_SOCKET_IFNAME"), "problem", "It hangs", "GLOO_SOCKET_IFNAME"),
    "a proxy": (met("It hangs", "CUDA_VISIBLE_DEVICES", "HTTP_PROXY"), "problem", "It hangs", "variable HTTP_PROXY."),
    "no nccl": (machine(*TWO, handshakes=(Handshake("nccl", False, "x"),)), "note", "over nccl: x.", "firewall"),
    "two cards in Windows": (
        machine(*TWO, host=dataclasses.replace(HOST, system="Windows")),
        "note",
        "Windows",
        "WSL2",
    ),
    "half a model": (machine(model=Model(False, {"VAE": "no file"}, ("VAE",))), "problem", "VAE (no file)", "inspect"),
}


@pytest.mark.parametrize(("report", "level", "what", "remedy"), RULES.values(), ids=RULES.keys())
def test_each_rule_says_what_is_wrong_and_what_to_do(report, level, what, remedy):
    found = [f for f in findings(report) if f.level != "good"]
    assert [f.level for f in found] == [level], found
    assert what in found[0].what and remedy in found[0].remedy, found


@pytest.mark.parametrize("report", [machine(), machine(*TWO)], ids=["one card", "two cards"])
def test_a_healthy_machine_is_praised_only(report):
    found = findings(report)
    assert {f.level for f in found} == {"good"}, found
    told = " ".join(f.what for f in found)
    assert "float8 290" in told and "gloo: 1.00 GB/s" in told and "Ray 2.60.0" in told and "complete" in told
    assert ("directly" in told) == (len(report.gpus) > 1)


@pytest.mark.parametrize(("speed", "told"), [(0.04, "25 times slower in bfloat16"), (0.9, None), (2.0, None)])
def test_a_processor_that_is_slow_in_bfloat16_is_told_where_it_has_to_do_the_work(speed, told):
    slow = dataclasses.replace(CPU, compute=Compute({"float32": 1.0, "bfloat16": speed}, (), {}))
    notes = [f.what for f in findings(dataclasses.replace(without_gpu("CPU"), devices=(slow,))) if f.level == "note"]
    assert len(notes) == 1 + (told is not None) and (told is None or told in notes[1]), notes
    assert not [f for f in findings(dataclasses.replace(machine(), devices=(card(), slow))) if f.level != "good"]


def test_problems_come_first_and_decide():
    report = disks(Disk("temporary", 5 * 10**8, True), Disk("current", 10, False))
    levels = [f.level for f in findings(report)]
    assert levels == sorted(levels, key=("problem", "note", "good").index) and levels[:2] == ["problem", "note"]
    assert not dataclasses.replace(report, findings=findings(report)).healthy
    assert dataclasses.replace(without_gpu("CPU"), findings=findings(without_gpu("CPU"))).healthy


NUMBERS = st.floats(0, 1e15, allow_nan=False)
st.register_type_strategy(float, NUMBERS)


@given(st.builds(Report, devices=st.lists(st.just(CPU) | st.builds(card, free=st.integers(0, 10**11))).map(tuple)))
def test_any_report_survives_json_and_is_judged(report):
    again = from_plain(Report, json.loads(json.dumps(plain(report))))
    assert again == report
    assert all(f.what for f in findings(again))
