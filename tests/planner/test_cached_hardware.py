"""Cards at hand: what was measured takes the place of what is assumed, and what is loaded changes no plan."""

import pytest

from liveavatar.cli.tables import plan_lines
from liveavatar.config import WAN2_2_S2V_14B
from liveavatar.doctor import KeptSpeed
from liveavatar.doctor.report import AttentionSpeed, Compute, Copies
from liveavatar.errors import PlanError
from liveavatar.hardware_cache import CachedHardware, detect_hardware, measured_speeds
from liveavatar.placement import Placement
from liveavatar.planner import GIB, DeviceSpec, DeviceSpeed, Hardware, MeasuredSpeed, PlanOptions, choose_plan
from liveavatar.request import Request, resolve

COPIES = Copies(20.0, 19.0, 6.0, 6.0, 900.0)


KERNELS = (
    AttentionSpeed("sdpa", "cuDNN", "bfloat16", None, None, "no kernel for this card"),
    AttentionSpeed("sdpa", "flash", "bfloat16", 0.002, 90.0),
    AttentionSpeed("sage", "", "bfloat16", 0.03, 150.0),
)


def kept(name: str = "cuda:0", copies: Copies | None = COPIES, **matmul: float) -> KeptSpeed:
    compute = Compute({"bfloat16": 100.0, **matmul}, KERNELS, {})
    return KeptSpeed(name, "A card", "2.11", True, compute, copies)


ATTENTION = (("sdpa", 90.0), ("sage", 150.0))


def test_measured_speeds_replace_assumed_ones():
    known = {"cuda:0": kept(), "cuda:1": kept("cuda:1", **{"float8 rows": 190.0}), "cpu": kept("cpu")}
    speeds = measured_speeds(known)
    assert speeds == {
        "cuda:0": MeasuredSpeed(100, None, ATTENTION, 20, 1800),
        "cuda:1": MeasuredSpeed(100, 190, ATTENTION, 20, 1800),
    }
    hardware = Hardware.parse("2x24").with_speeds(speeds)
    assert [card.speed for card in hardware.devices] == [
        DeviceSpeed(100, 100, 90, 20, 1800, False),
        DeviceSpeed(100, 190, 90, 20, 1800, True),
    ]
    asked = resolve(Request(), (704, 384), 160_000, 16_000)
    plan = choose_plan(asked, WAN2_2_S2V_14B, hardware, PlanOptions(), model="wan2.2-s2v-14b")
    assert plan.forecast and plan.forecast.source == "measured"
    assert {(use.backend, use.tflops, use.source) for use in plan.attention_uses} == {("sdpa", 90, "measured")}


@pytest.mark.parametrize(
    ("attention", "tflops", "source"),
    [("sdpa", 90, "measured"), ("sage", 150, "measured"), ("flash3", 90, "assumed"), ("auto", 90, "measured")],
)
def test_the_plan_tells_which_kernel_it_reckons_with(attention, tflops, source):
    cards = Hardware.parse("1x24").with_speeds(measured_speeds({"cuda:0": kept()}))
    plan = planned(attention, cards)
    assert [(u.tflops, u.source, u.error) for u in plan.attention_uses] == [(tflops, source, None)]
    assert plan.forecast and plan.forecast.source == source
    (line,) = (line for line in plan_lines(plan) if line.startswith("attends"))
    assert f"planned with {tflops} TFLOP/s, {source}" in line and "tried when the network is loaded" in line


def planned(attention: str, cards: Hardware):
    placement = Placement(attention=attention, dtype="bfloat16").for_cards(cards)
    asked = resolve(Request(), (704, 384), 160_000, 16_000)
    return placement.make_plan(asked, WAN2_2_S2V_14B, "wan2.2-s2v-14b", lambda: cards)


def test_without_a_measurement_a_faster_kernel_is_assumed_to_be_faster_where_a_figure_is_known():
    def fps(attention: str, cards: str) -> float:
        forecast = planned(attention, Hardware.parse(cards)).forecast
        assert forecast and forecast.source == "assumed"
        return forecast.fps

    assert fps("sage", "1x24") > 1.05 * fps("sdpa", "1x24")
    assert fps("comfy-kitchen", "1x24") == fps("sdpa", "1x24")
    assert fps("sage", "1x141") == fps("sdpa", "1x141"), "no figure is known of Hopper"


def test_what_was_not_measured_stays_assumed():
    nothing = KeptSpeed("cuda:1", "A card", "2.11", True, None, None)
    assert measured_speeds({"cuda:0": kept(copies=None), "cuda:1": nothing}) == {}
    card = Hardware.parse("1x24").with_speeds({}).with_fp8_support({"cuda:0": False}).devices[0]
    assert not card.is_measured and not card.speed.supports_fp8


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
