"""Devices of other machines have names, and what must stay here stays here."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.config import UNTRAINED
from liveavatar.device_names import DeviceName, Machine, check_device, find_machine
from liveavatar.errors import PlanError
from liveavatar.placement import Placement, refuse_multi_gpu_windows
from liveavatar.planner import make_plan
from liveavatar.request import Request, resolve

EFFECTIVE = resolve(Request(size="64x64"), (64, 64), 16_000, 16_000)
STUDIOS = [
    Machine("aa11", "10.0.0.1", "alpha", "studio1", 0),
    Machine("ab22", "10.0.0.2", "beta", "studio2", 1),
    Machine("cd33", "10.0.0.3", "beta", "studio3", 4),
]


@given(st.text(min_size=1), st.none() | st.text(min_size=1))
def test_names_are_read_as_they_are_written(device: str, machine: str | None) -> None:
    device = device.replace("/", "") or "cpu"
    name = DeviceName(device, machine)
    assert DeviceName.parse(str(name)) == name


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        assert str(DeviceName.parse(text)) == text
    except PlanError as error:
        assert text.startswith("/") or text.endswith("/")
        assert "MACHINE/DEVICE" in error.nearest


@pytest.mark.parametrize(
    ("name", "number"),
    [("10.0.0.2", 1), ("alpha", 0), ("studio3", 2), ("cd33", 2), ("ab", 1), ("c", 2)],
)
def test_machines_are_found_by_all_their_names(name: str, number: int) -> None:
    assert find_machine(name, STUDIOS) is STUDIOS[number]


def test_names_of_several_or_none_are_refused_with_those_that_work() -> None:
    with pytest.raises(PlanError, match=r"2 machines are called 'beta'\. Use one of studio2, studio3\."):
        find_machine("beta", STUDIOS)
    with pytest.raises(PlanError, match=r"'a'\. Use one of"):
        find_machine("a", STUDIOS)
    with pytest.raises(PlanError, match=r"no machine 'studio9'.* There are studio1, studio2, studio3\."):
        find_machine("studio9", STUDIOS)


def test_devices_that_a_machine_lacks_are_refused() -> None:
    for device, machine in (("cpu", 0), ("cuda:0", 1), ("cuda:3", 2)):
        check_device(DeviceName(device, "x"), STUDIOS[machine])
    for device, machine, has in (("cuda:0", 0, "x has cpu."), ("cuda:1", 1, "cuda:0."), ("cuda:4", 2, "cuda:0..3")):
        with pytest.raises(PlanError) as caught:
            check_device(DeviceName(device, "x"), STUDIOS[machine])
        assert has in caught.value.nearest
    for device in ("gpu", "cuda", "cuda:-1", "cuda:01"):
        with pytest.raises(PlanError):
            check_device(DeviceName(device, "x"), STUDIOS[2])


def test_encoders_and_vae_go_where_the_fewest_stages_are() -> None:
    def vae(*devices: str, stages: str = "1x2") -> str:
        return make_plan(EFFECTIVE, UNTRAINED, model="untrained", stages=stages, devices=devices).vae_device

    assert vae("cuda:1", "studio2/cuda:0") == "studio2/cuda:0"
    assert vae("cuda:0", "cuda:1", "cuda:2") == "cuda:2", "one device more than stages"
    assert vae("cuda:0", "cuda:1", stages="1x3") == "cuda:1", "the first has two stages"
    assert Placement(("cuda:0", "studio2/cpu")).last_device == "studio2/cpu"
    assert Placement(("studio2/cuda:0", "cpu")).resolved_dtype == "bfloat16"
    assert Placement(("studio2/cpu",)).resolved_dtype == "float32"


def test_other_machines_are_somebody_elses_to_check() -> None:
    placement = Placement(("cpu", "studio2/cuda:0"))
    placement.check_devices(elsewhere=True)
    with pytest.raises(PlanError, match="address of their Ray cluster"):
        placement.check_devices()
    with pytest.raises(PlanError, match="no device 'cuda:99'"):
        Placement(("cuda:99", "studio2/cuda:0")).check_devices(elsewhere=True)


def test_several_cards_on_native_windows_are_sent_to_wsl() -> None:
    with pytest.raises(PlanError, match=r"native Windows.*WSL2"):
        refuse_multi_gpu_windows("win32", ("cuda:0", "cuda:1"))
    with pytest.raises(PlanError, match="WSL2"):
        refuse_multi_gpu_windows("win32", ("cuda:0", "studio2/cuda:0"))
    refuse_multi_gpu_windows("win32", ("cuda:0", "cpu", "cuda:0"))
    refuse_multi_gpu_windows("linux", ("cuda:0", "cuda:1"))
