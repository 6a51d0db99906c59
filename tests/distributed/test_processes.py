"""Nothing is left behind, however the caller ends."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from liveavatar.distributed import cluster
from liveavatar.offload.host_weights import supports_shared_memory

pytest.importorskip("ray", reason="Ray is not installed (the extra 'ray')")
psutil = pytest.importorskip("psutil")

PROJECT = Path(__file__).parents[2]


def test_a_killed_caller_leaves_no_process_and_the_next_start_its_folder(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("killed_driver.py"))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["HOME"] = str(home := tmp_path / "home")
    with (tmp_path / "errors").open("wb") as errors:
        caller = subprocess.Popen(
            [sys.executable, script, str(PROJECT)], stdout=subprocess.PIPE, stderr=errors, cwd=tmp_path, env=environment
        )
    assert caller.stdout is not None
    said = caller.stdout.readline()
    assert said == b"started\n", (tmp_path / "errors").read_text()[-3000:]
    family = psutil.Process(caller.pid).children(recursive=True)
    assert not list(home.rglob("*")), "Ray would write its token there"
    assert listening_beyond_this_machine({caller.pid, *(p.pid for p in family)}) == []
    assert sum("RemoteWorker" in " ".join(p.cmdline()) for p in family) == 2
    assert len(family) >= 6, "two workers, Ray's node, its centre and its two agents"
    shared = memories(family)
    assert len(shared) == supports_shared_memory(), "of the layers that both workers have in the host's memory"
    caller.kill()
    caller.wait()
    caller.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    cluster.remove_leftovers()
    pids = (caller.pid, *(p.pid for p in family))
    assert not [found.name for pid in pids for found in cluster.short_folder().glob(f"la-{pid}-*")]
    assert not memories(psutil.process_iter()) & shared


ENDING = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from liveavatar.distributed import cluster
cluster.acquire_ray()
import ray
references = [ray.put(number) for number in range(20_000)]
ending = threading.Thread(target=cluster.release_ray)
ending.start()
while ending.is_alive():
    if references:
        references.pop()
    ending.join(0.0005)
print("alive")
"""


def test_what_is_let_go_while_ray_ends_does_not_end_the_process(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", ENDING, str(PROJECT)], capture_output=True, text=True, cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "alive\n"), ran.stderr[-3000:]


def memories(processes: Iterable[psutil.Process]) -> set[str]:
    """Shared memory of ours that they have open or mapped."""
    found: set[str] = set()
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            found |= {m.path for m in process.memory_maps() if m.path.startswith("/memfd:liveavatar-")}
    return found


def listening_beyond_this_machine(pids: set[int]) -> list[str]:
    found = psutil.net_connections("tcp")
    addresses = {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN and c.pid in pids}
    return sorted(ip for ip in addresses if ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1"))


def test_only_folders_of_dead_processes_are_swept() -> None:
    own = Path(tempfile.mkdtemp(prefix=f"la-{os.getpid()}-", dir=cluster.short_folder()))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    other = Path(tempfile.mkdtemp(prefix=f"la-{ended.pid}-", dir=cluster.short_folder()))
    try:
        cluster.remove_leftovers()
        assert own.is_dir() and not other.exists()
    finally:
        own.rmdir()
