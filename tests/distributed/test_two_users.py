"""What another user of the same machine can read, forge or put in the way of worker processes: nothing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed.videos import Video

from liveavatar.distributed import RayBackend, WorkerError, ray_compat
from liveavatar.distributed.cluster_token import new_token
from liveavatar.distributed.registry import drivers, process_start_time

pytest.importorskip("ray", reason="Ray is not installed (the extra 'ray')")
psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.skipif(
    process_start_time(os.getpid()) is None, reason="this system does not tell who a process is"
)
PROJECT = Path(__file__).parents[2]
NOBODY = 65534


def as_nobody(*command: object) -> subprocess.CompletedProcess[str]:
    """Run a command as a user who owns nothing."""
    if os.name != "posix" or os.getuid():
        pytest.skip("only root can act as another user")
    return subprocess.run(
        [str(word) for word in command], user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True
    )


def cannot_read(path: Path) -> bool:
    return path.exists() and as_nobody("cat", path).returncode != 0


@pytest.fixture(scope="module")
def folder(backend: RayBackend) -> Iterator[Path]:
    """That of workers which hold weights, and list and log into it."""
    Video(1).engine(backend, "1x2").load()
    yield backend.pool.resources.folder
    backend.release()  # and Ray with it: other tests ask for other clusters in this process


@pytest.fixture(scope="module")
def family(folder: Path) -> list[Any]:
    """Ray's processes, and the workers among them."""
    return [p for p in psutil.Process().children(recursive=True) if str(folder) in " ".join(p.cmdline())]


@pytest.fixture(scope="module")
def token(family: list[Any]) -> str:
    (raylet,) = (process for process in family if process.name() == "raylet")
    return str(raylet.environ()["RAY_AUTH_TOKEN"])


def test_the_folder_and_all_in_it_are_closed_to_others(folder: Path, backend: RayBackend) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    (page,) = folder.glob("workers-*.json")
    logs = [worker.log for worker in backend.pool.workers if worker.log]
    assert len(logs) == 2
    for file in (page, *logs):
        assert file.stat().st_mode & 0o777 == 0o600
        assert cannot_read(file)
    assert as_nobody("ls", folder.parent).returncode == 0, "nobody sees the name"
    assert as_nobody("ls", folder).returncode != 0 and as_nobody("ls", folder / "ray").returncode != 0
    assert as_nobody("touch", folder / "workers-9.json").returncode != 0


def test_the_token_is_in_the_environment_of_its_own_processes_only(
    folder: Path, family: list[Any], token: str, backend: RayBackend
) -> None:
    assert len(token) == 64 and token not in os.environ.values()
    for pid in (*backend.worker_pids, *(process.pid for process in family)):
        assert token not in " ".join(psutil.Process(pid).cmdline())
        assert cannot_read(Path(f"/proc/{pid}/environ"))
    secret = token.encode()
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    assert len(files) > 10, "Ray's logs are among them"
    assert not [file for file in files if secret in file.read_bytes()]
    kept = Path.home() / ".ray/auth_token"
    assert not kept.exists() or kept.read_text().strip() != token


def test_without_the_token_nobody_is_let_in(family: list[Any], token: str) -> None:
    (raylet,) = (process for process in family if process.name() == "raylet")
    (head,) = (flag.partition("=")[2] for flag in raylet.cmdline() if flag.startswith("--gcs-address="))
    assert "InvalidAuthToken" in ray_compat.connection_error(head, new_token(), 20)
    assert ray_compat.connection_error(head, token, 20) == ""


OTHER_TOKENS = """
import os
from ray._raylet import AuthenticationTokenLoader
from liveavatar.distributed import ray_compat
from liveavatar.distributed.cluster_token import new_token
before = dict(os.environ)
with ray_compat.token_in_environment(own := new_token()):
    assert AuthenticationTokenLoader.instance().get_raw_token() == own
assert dict(os.environ) == before
"""


def test_a_token_that_the_user_has_for_ray_is_not_used(tmp_path: Path) -> None:
    """In a process of its own, because a process that is in a cluster must keep its token."""
    (tmp_path / ".ray").mkdir()
    for name, digit in ((".ray/auth_token", "0"), ("other", "1")):
        (tmp_path / name).write_text(digit * 64)
    own = {"HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "other"), "PYTHONPATH": str(PROJECT)}
    ran = subprocess.run([sys.executable, "-c", OTHER_TOKENS], env=os.environ | own, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_nothing_is_asked_or_heard_beyond_this_machine(family: list[Any], backend: RayBackend) -> None:
    pids = {os.getpid(), *backend.worker_pids, *(process.pid for process in family)}
    found = [c for c in psutil.net_connections("inet") if c.pid in pids]
    addresses = {end.ip.removeprefix("::ffff:") for c in found for end in (c.laddr, c.raddr) if end}
    assert addresses <= {"127.0.0.1", "::1"}, addresses
    commands = [" ".join(process.cmdline()) for process in family]
    assert not [command for command in commands if "dashboard/dashboard.py" in command], "it asks clouds who they are"


def test_a_link_in_the_place_of_a_log_is_not_written_through(folder: Path, backend: RayBackend, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    newest = max(int(worker.log.stem.split("-")[1]) for worker in backend.pool.workers if worker.log)
    link = folder / f"worker-{newest + 1}.log"
    link.symlink_to(victim)
    with pytest.raises(WorkerError, match=r"could not start .*File exists"):
        Video(1).engine(backend, "1x3").load()
    link.unlink()
    assert victim.read_text() == "mine"
    assert Video(1).is_made_by(backend, "1x3")


def test_folders_that_another_user_has_made_are_neither_listed_nor_removed() -> None:
    from liveavatar.distributed.cluster import remove_leftovers, short_folder

    forged = short_folder() / "la-4194304-forged"  # the number of no process
    try:
        assert as_nobody("mkdir", "-m", "700", forged).returncode == 0
        assert forged not in [driver.folder for driver in drivers()]
        remove_leftovers()
        assert forged.exists()
    finally:
        shutil.rmtree(forged, ignore_errors=True)
