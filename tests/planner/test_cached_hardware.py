"""Cards at hand: what was measured takes the place of what is assumed, and what is loaded changes no plan."""

import pytest

from liveavatar.config import WAN2_2_S2V_14B
from liveavatar.doctor.report import Compute, Copies, Device
from liveavatar.errors import PlanError
from liveavatar.hardware_cache import CachedHardware, detect_hardware, measured_speeds
from liveavatar.planner import GIB, DeviceSpec, DeviceSpeed, Hardware, PlanOptions, choose_plan
from liveavatar.request import Request, resolve

COPIES = Copies(20.0, 19.0, 6.0, 6.0, 900.0)


def device(name: str = "cuda:0", copies: Copies | None = COPIES, **matmul: float) -> Device:
    compute = Compute({"bfloat16": 100.0, **matmul}, {"bfloat16": 90.0}, {})
    return Device(name, "A card", 24 * GIB, 20 * GIB, "8.6", compute, copies)


def test_measured_speeds_replace_assumed_ones():
    speeds = measured_speeds((device(), device("cuda:1", **{"float8 rows": 190.0}), device("cpu")))
    assert speeds == {
        "cuda:0": DeviceSpeed(100, 100, 90, 20, 1800, False),
        "cuda:1": DeviceSpeed(100, 190, 90, 20, 1800, True),
    }
    hardware = Hardware.parse("2x24").with_speeds(speeds)
    assert all(card.measured for card in hardware.devices) and hardware.devices[1].speed == speeds["cuda:1"]
    asked = resolve(Request(), (704, 384), 160_000, 16_000)
    plan = choose_plan(asked, WAN2_2_S2V_14B, hardware, PlanOptions(), model="wan2.2-s2v-14b")
    assert plan.forecast and plan.forecast.source == "measured"


def test_what_was_not_measured_stays_assumed():
    assert measured_speeds((device(copies=None), Device("cuda:1", "A card", 1, 1, "8.6"))) == {}
    card = Hardware.parse("1x24").with_speeds({}).with_fp8_support({"cuda:0": False}).devices[0]
    assert not card.measured and not card.speed.supports_fp8


def test_memory_that_can_be_given_back_is_free():
    hardware = Hardware((DeviceSpec("cuda:0", 24 * GIB, 4 * GIB), DeviceSpec("cuda:1", 24 * GIB, 23 * GIB)), 64 * GIB)
    given = hardware.with_freed({"cuda:0": 10 * GIB, "cuda:1": 10 * GIB})
    assert [card.free for card in given.devices] == [14 * GIB, 24 * GIB]
    assert [card.name for card in hardware.restricted_to(["cuda:1"]).devices] == ["cuda:1"]


def test_cards_are_looked_at_once():
    looks = []
    seen = CachedHardware(lambda held: looks.append(dict(held)) or Hardware.parse("1x24"))
    assert seen.hardware({}) is seen.hardware({"cuda:0": 5}) and looks == [{}]
    seen.clear()
    seen.hardware({"cuda:0": 5})
    assert looks == [{}, {"cuda:0": 5}]


def test_cards_that_are_not_here_are_missed(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(PlanError, match="no GPU"):
        detect_hardware({})
