"""The token of a cluster: from a file of its owner alone, and sent to nobody who has not proved that he knows it."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from liveavatar.distributed import RayBackend, check_workflow_address
from liveavatar.distributed.cluster_token import (
    ADDRESS_VARIABLE,
    TOKEN_VARIABLE,
    HeadProof,
    new_token,
    owners_token,
    proof_port,
    proved_head,
    read_token,
    write_token,
)
from liveavatar.errors import PlanError

TOKEN = new_token()
needs_modes = pytest.mark.skipif(os.name != "posix", reason="this system has no modes of files")


def two_free_ports() -> int:
    """The first of two neighbours."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as one:
            port = int(one.getsockname()[1])
            try:
                socket.create_server(("127.0.0.1", proof_port(port))).close()
            except OSError:
                continue
            return port


class FalseHead:
    """Whoever listens at a head's port and at the one beside it, and keeps what he is sent.

    Args:
        answer: given to every question; None: none. Or the port of a true head to ask in his place.
    """

    def __init__(self, answer: bytes | int | None):
        self.port, self.received = two_free_ports(), b""
        self._answer = answer
        self._listening = [socket.create_server(("127.0.0.1", p)) for p in (self.port, proof_port(self.port))]
        for listening in self._listening:
            threading.Thread(target=self._serve, args=(listening,), daemon=True).start()

    def close(self) -> None:
        for listening in self._listening:
            listening.close()

    def _serve(self, listening: socket.socket) -> None:
        while True:
            try:
                asked, _ = listening.accept()
            except OSError:
                return
            with asked:
                asked.settimeout(5)
                question = asked.recv(4096)
                self.received += question
                if isinstance(self._answer, int):
                    with socket.create_connection(("127.0.0.1", proof_port(self._answer))) as true_head:
                        true_head.sendall(question)
                        asked.sendall(true_head.recv(4096))
                elif self._answer is not None:
                    asked.sendall(self._answer)


@pytest.fixture(scope="module")
def head() -> Iterator[int]:
    port = two_free_ports()
    with closing(HeadProof(TOKEN, port)):
        yield port


def test_a_head_that_knows_the_token_is_believed(head: int) -> None:
    assert proved_head(f"127.0.0.1:{head}", TOKEN) == f"127.0.0.1:{head}"
    assert proved_head(f"localhost:{head}", TOKEN).endswith(f":{head}")


def test_a_head_with_another_token_is_not_believed(head: int) -> None:
    with pytest.raises(PlanError, match="does not know the token given here, which was not sent") as caught:
        proved_head(f"127.0.0.1:{head}", other := new_token())
    assert other not in str(caught.value)


@pytest.mark.parametrize("answer", [None, b"", b"0" * 64, b"\xff" * 64, "relay"])
def test_a_false_head_learns_no_token(answer: bytes | str | None, head: int) -> None:
    given = head if isinstance(answer, str) else answer
    with closing(FalseHead(given)) as false, pytest.raises(PlanError, match=r"the token.*not sent to it"):
        proved_head(f"127.0.0.1:{false.port}", TOKEN)
    assert len(false.received) == 64 and TOKEN.encode() not in false.received, "one number, and nothing after it"


def test_no_backend_sends_a_token_to_a_false_head(backend: RayBackend) -> None:
    backend.release()  # a process is in one cluster at a time
    with closing(FalseHead(b"0" * 64)) as false, pytest.raises(PlanError, match="not sent to it"):
        RayBackend(address=f"127.0.0.1:{false.port}", token=TOKEN)
    assert TOKEN.encode() not in false.received


def test_a_head_that_has_gone_gives_no_proof() -> None:
    there = [True]
    with closing(HeadProof(TOKEN, port := two_free_ports(), lambda: there[0])):
        assert proved_head(f"127.0.0.1:{port}", TOKEN)
        there[0] = False
        with pytest.raises(PlanError, match="does not prove"):
            proved_head(f"127.0.0.1:{port}", TOKEN)


def test_questions_of_another_form_get_no_answer(head: int) -> None:
    for question in (b"0" * 63 + b"\n", b"G" * 64, b"\0" * 64):
        with socket.create_connection(("127.0.0.1", proof_port(head)), 5) as asked:
            asked.sendall(question)
            assert asked.recv(64) == b""


@needs_modes
def test_a_new_token_is_in_a_file_of_this_user_alone(tmp_path: Path) -> None:
    file = tmp_path / "token"
    write_token(file)
    assert file.stat().st_mode & 0o777 == 0o600
    token = read_token(file)
    assert len(token) == 64 and token != new_token()
    with pytest.raises(PlanError, match="is there already"):
        write_token(file)
    assert read_token(file) == token
    (tmp_path / "link").symlink_to(file)
    assert read_token(tmp_path / "link") == token


@needs_modes
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_token_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(mode)
    with pytest.raises(PlanError, match=rf"mode {mode:03o}.*chmod 600") as caught:
        read_token(file)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(("text", "why"), [("", "is empty"), ("secret", "32 characters"), ("se cret " * 9, "spaces")])
def test_what_is_no_token_is_refused_and_not_told(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(PlanError, match=f"token file.*{why}") as caught:
        read_token(file)
    assert "secret" not in str(caught.value)
    with pytest.raises(PlanError, match=r"token file .* cannot be read"):
        read_token(tmp_path / "none")


def test_the_owner_names_the_file_of_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(PlanError, match=f"--token-file, or {TOKEN_VARIABLE}"):
        owners_token("studio1:6379")
    write_token(tmp_path / "token")
    monkeypatch.setenv(TOKEN_VARIABLE, str(tmp_path / "token"))
    assert owners_token("studio1:6379") == read_token(tmp_path / "token")


def test_a_workflow_names_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    for address in ("local", "auto"):
        check_workflow_address(address)
    for address in ("10.0.0.1:6379", "localhost:6379", "ray://10.0.0.1:10001", ""):
        with pytest.raises(PlanError, match=f"only say local or auto.*{ADDRESS_VARIABLE}.*{TOKEN_VARIABLE}"):
            check_workflow_address(address)
    monkeypatch.setenv(ADDRESS_VARIABLE, "10.0.0.1:6379")
    check_workflow_address("10.0.0.1:6379")
    with pytest.raises(PlanError):
        check_workflow_address("10.0.0.2:6379")
