"""Stages on several machines: each worker is where it was asked to be, and a machine that dies is named.

The machines are simulated: processes of their own on this one, which Ray keeps apart.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from distributed.videos import Video

from liveavatar.device_names import Machine
from liveavatar.distributed import RayBackend, WorkerError, worker_handle
from liveavatar.distributed.cluster import check_address
from liveavatar.distributed.worker_handle import WorkerHandle
from liveavatar.errors import PlanError
from liveavatar.offload.host_weights import supports_shared_memory
from liveavatar.placement import Placement

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened on a cluster of three machines."""
    pytest.importorskip("ray", reason="Ray is not installed (the extra 'ray')")
    results = tmp_path_factory.mktemp("machines")
    errors, output = results / "errors", results / "output"
    script = Path(__file__).with_name("several_machines.py")
    # Without what this process has chosen for its own Ray.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = os.pathsep.join((str(PROJECT), str(PROJECT / "tests")))
    # A folder of this user with a short name: Ray's usual one may be another user's, and sockets lie in it.
    # Into files, not pipes: those would be waited for as long as any machine of a failed script lives.
    with (
        errors.open("wb") as stderr,
        output.open("wb") as stdout,
        tempfile.TemporaryDirectory(prefix="la-", ignore_cleanup_errors=True) as folder,
    ):
        environment["RAY_TMPDIR"] = folder
        ran = subprocess.run([sys.executable, str(script)], stdout=stdout, stderr=stderr, env=environment)
    assert ran.returncode == 0, errors.read_text(errors="replace")[-3000:]
    return json.loads(output.read_text(encoding="utf-8").splitlines()[-1])


def test_any_cut_over_machines_gives_equal_bits_where_it_was_asked_for(results: dict[str, Any]) -> None:
    assert results["videos"] == [
        {"equal": True, "nodes": ["studio1", "studio2"], "held": ["cpu", "studio2/cpu"]},
        {"equal": True, "nodes": ["studio2", "studio1"], "held": ["cpu", "studio2/cpu"]},
        {"equal": True, "nodes": ["studio1", "studio2", "studio3"], "held": ["cpu", "studio2/cpu", "studio3/cpu"]},
    ]


def test_encoders_work_where_they_were_asked_for(results: dict[str, Any]) -> None:
    assert results["codec"] == {"equal": True, "nodes": ["studio2"]}


def test_a_machine_that_dies_is_named_and_the_others_go_on(results: dict[str, Any]) -> None:
    lost = results["lost"]
    assert lost["kind"] == "WorkerError"
    assert "Stage 2 of 2 (steps 0-3, layers 2-3, on studio3/cpu) was lost: its machine" in lost["said"]
    assert lost["next"], "the next video, on the machines that are left"
    assert "'studio3'" in lost["gone"] and "studio1, studio2" in lost["gone"]


def test_nothing_is_left_and_the_cluster_goes_on(results: dict[str, Any]) -> None:
    released = dict(results["released"])
    assert released.pop("nodes")[:2] == ["studio1", "studio2"]
    assert released == {"workers": 3, "alive": 0, "left": [], "connected": False}


def test_workers_of_another_machine_share_what_lives_on_its_host(results: dict[str, Any]) -> None:
    assert results["sharing"] == {
        "equal": True,
        "nodes": ["studio2"] * 2,
        "one copy": supports_shared_memory(),
        "counted once": True,
    }


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("no machine", "There are studio1, studio2, studio3"),
        ("no device", "studio2 has cpu and cuda:0..1"),
        ("several", "3 machines are called"),
        ("unreachable", "No Ray cluster answers at 127.0.0.1:"),
        ("mute", "does not prove that it knows the token, which was not sent"),
        ("wrong token", "does not know the token given here, which was not sent"),
        ("no token", "LIVEAVATAR_TOKEN_FILE"),
    ],
)
def test_what_is_not_there_is_refused_at_once(results: dict[str, Any], case: str, text: str) -> None:
    refused = results["refusals"][case]
    assert refused["kind"] == "PlanError" and text in refused["said"]


@pytest.mark.parametrize("address", ["", "here", "10.0.0.1", "10.0.0.1:", "10.0.0.1:99999", "ray://10.0.0.1:10001"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(PlanError, match="cluster join" if address.startswith("ray:") else "HOST:PORT"):
        RayBackend(address=address)


def test_addresses_are_understood() -> None:
    for address in ("local", "auto", "10.0.0.1:6379", "studio1:6379", "[fd00::2]:6379"):
        check_address(address)


def test_devices_of_other_machines_need_an_address() -> None:
    pytest.importorskip("ray", reason="Ray is not installed (the extra 'ray')")
    with pytest.raises(PlanError, match=r"studio2/cuda:0.* is not of this machine"):
        RayBackend(Placement(("cpu", "studio2/cuda:0")))


def test_only_another_machine_is_asked_whether_it_is_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as open_port:
        machine = Machine("a", "127.0.0.1", "studio2", "studio2", 0, open_port.getsockname()[1])
        assert WorkerHandle(None, machine, None, 1).is_reachable
    assert not WorkerHandle(None, machine, None, 1).is_reachable
    assert WorkerHandle(None, machine, tmp_path / "log", 1).is_reachable


@pytest.mark.parametrize(
    ("library", "text"),
    [
        ('__version__ = "0.0.1"\n__path__ = [{real!r}]\n', r"has version 0\.0\.1 of this library"),
        ('raise ModuleNotFoundError("No module named torch")\n', r"not there or not whole \(No module named torch\)"),
    ],
)
def test_another_library_on_a_machine_is_refused(
    backend: RayBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, text: str
) -> None:
    (tmp_path / "liveavatar").mkdir()
    (tmp_path / "liveavatar/__init__.py").write_text(library.format(real=str(PROJECT / "liveavatar")))
    monkeypatch.setattr(worker_handle, "_PACK", tmp_path)
    monkeypatch.chdir(tmp_path)  # Ray looks there first
    backend.release()
    try:
        with pytest.raises(WorkerError, match=rf"Stage 1 of 1 .*{text}.* [Ii]nstall the same version"):
            Video(1).engine(backend, "1x1").load()
    finally:
        backend.release()  # and Ray with it, which was started in this folder
