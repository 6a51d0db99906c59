"""`cluster` makes a token that only its owner can read, and starts or joins nothing without one."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.runs import run

PROJECT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="this system has no modes of files")


@pytest.fixture(autouse=True)
def no_token_of_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIVEAVATAR_TOKEN_FILE", "LIVEAVATAR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def token(tmp_path: Path) -> Path:
    ran = run("cluster", "token", tmp_path / "token")
    assert ran.code == 0 and "new token" in ran.out
    text = (tmp_path / "token").read_text().strip()
    assert len(text) == 64 and text not in ran.out + ran.err
    return tmp_path / "token"


def test_a_token_is_made_once(token: Path) -> None:
    before = token.read_text()
    assert token.stat().st_mode & 0o777 == 0o600
    again = run("cluster", "token", token)
    assert again.code == 2 and "is there already" in again.err and token.read_text() == before


@pytest.mark.parametrize("words", [("start",), ("join", "127.0.0.1:1")])
def test_nothing_starts_without_a_token(words: tuple[str, ...], token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = run("cluster", *words)
    assert ran.code == 2 and "--token-file" in ran.err and "cluster token" in ran.err
    token.chmod(0o644)
    for named in (("--token-file", token), ()):
        monkeypatch.setenv("LIVEAVATAR_TOKEN_FILE", str(token))
        ran = run("cluster", *words, *named)
        assert ran.code == 2 and "chmod 600" in ran.err


def test_no_head_is_started_at_a_port_that_is_taken(token: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (the extra 'ray')")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for head in (port, port - 1):  # its own, or the one of its proof
            ran = run("cluster", "start", "--port", head, "--token-file", token)
            assert ran.code == 2 and f"Port {port} of this machine is taken" in ran.err
    assert run("cluster", "start", "--port", 0, "--token-file", token).code == 2


@pytest.mark.parametrize("address", ["local", "auto", "studio1", "127.0.0.1:1"])
def test_no_head_is_joined_that_is_not_there(token: Path, address: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (the extra 'ray')")
    ran = run("cluster", "join", address, "--token-file", token)
    assert ran.code == 2 and ("HOST:PORT" in ran.err or "does not prove" in ran.err)


@pytest.fixture
def head(token: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "liveavatar", "cluster", "start", "--port", port, "--token-file", token]
    with (token.parent / "log").open("wb") as log:
        started = subprocess.Popen(
            list(map(str, [*command, "--name", "one"])), cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT
        )
    yield started, port
    started.kill()
    started.wait()


@pytest.mark.slow
def test_a_head_is_joined_by_whoever_has_its_token(token: Path, head: tuple[subprocess.Popen[bytes], int]) -> None:
    """In processes of their own, because this one may hold Ray for this machine alone."""
    started, port = head
    script = f"""
from pathlib import Path
from liveavatar.distributed import RayBackend, read_token
from liveavatar.placement import Placement
backend = RayBackend(Placement(("one/cpu",), threads=1), "127.0.0.1:{port}", token=read_token(Path({str(token)!r})))
print([machine.name for machine in backend.pool.find_machines(("one/cpu",))])
backend.release()
"""
    end, said = time.monotonic() + 120, ""
    while "['one']" not in said and started.poll() is None and time.monotonic() < end:
        ran = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True)
        said = ran.stdout + ran.stderr
    assert "['one']" in said, said[-2000:] + (token.parent / "log").read_text()[-2000:]
    secret = token.read_text().strip()
    assert secret not in said and secret not in (token.parent / "log").read_text()
    started.send_signal(signal.SIGINT)
    assert started.wait(60) == 130
