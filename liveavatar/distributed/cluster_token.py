"""The token of a Ray cluster: made, read from the owner's file, and proved by a head before anybody sends it.

Ray sends its token in clear text to whatever listens at the head's address, and whoever has it runs code on all
machines. So a process asks first: it sends a number that was never used before, and the head answers with its HMAC
under the token, which shows that it knows the token and tells nothing about it. The answer also covers the address that
was called and the head's port, so that it cannot be had from a true head and handed on by a false one.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import secrets
import socket
import socketserver
import threading
from collections.abc import Callable
from pathlib import Path

from ..errors import PlanError
from ..private_files import create_private, is_secret
from ..utils import OUT_OF_FILES_NEAREST, is_out_of_files

ADDRESS_VARIABLE, TOKEN_VARIABLE = "LIVEAVATAR_ADDRESS", "LIVEAVATAR_TOKEN_FILE"
"""Where the owner of a server names the cluster and the file of its token."""
_SHORTEST = 32
_MAKE = "Make one with `python -m liveavatar cluster token FILE`, and copy it to the other machines by a safe way."
_GIVE = f"Name the file of the head's token: --token-file, or {TOKEN_VARIABLE} in the environment of the server."


def new_token() -> str:
    """A token of 256 random bits, in 64 hexadecimal digits."""
    return secrets.token_hex(32)


def write_token(path: Path) -> None:
    """Make a new token, in a new file that only this user can read.

    Raises:
        PlanError: the file is there already, or cannot be written.
    """
    try:
        with create_private(path) as file:
            file.write(f"{new_token()}\n".encode())
    except FileExistsError:
        raise PlanError(f"{path} is there already.", "Use it as it is, or name another file.") from None
    except OSError as error:
        raise PlanError(f"The token file {path} cannot be written ({error.strerror}).", "Name another file.") from None


def read_token(path: Path) -> str:
    """The token in a file, which only this user can read.

    Raises:
        PlanError: it cannot be read, others can read it, or it holds no token.
    """
    try:
        if not path.is_file() and path.exists():  # opening a pipe would wait for whoever writes to it
            raise PlanError(f"The token file {path} is no file.", f"{_GIVE} {_MAKE}")
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            text = file.read(4096).decode()
    except (OSError, ValueError) as error:  # ValueError: bytes that are no text, a null character in the name
        why = getattr(error, "strerror", None) or "it is no text"
        raise PlanError(f"The token file {path} cannot be read ({why}).", f"{_GIVE} {_MAKE}") from None
    if not is_secret(found):
        raise PlanError(
            f"The token file {path} is not of this user alone (user {found.st_uid}, mode {found.st_mode & 0o777:03o}).",
            f"Own it, and close it by `chmod 600 {path}`; if others may have read it, make a new token.",
        )
    return checked_token(text.strip(), f"The token file {path}")


def checked_token(token: str, named: str) -> str:
    """The token, if it is one.

    Raises:
        PlanError: it is empty, can be guessed, or holds other characters; its text is not told.
    """
    if not token:
        raise PlanError(f"{named} is empty.", _MAKE)
    if len(token) < _SHORTEST or not re.fullmatch(r"[\x21-\x7e]+", token):
        raise PlanError(f"{named} holds no token of {_SHORTEST} characters or more without spaces.", _MAKE)
    return token


def owners_token(address: str) -> str:
    """The token of a cluster, from the file that the owner of this process has named.

    Raises:
        PlanError: there is none, or its file cannot be used.
    """
    path = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not path:
        raise PlanError(f"The Ray cluster at {address} is used with its token only, and none is known here.", _GIVE)
    return read_token(Path(path))


def owners_address() -> str:
    """host:port of the cluster that the owner of this process has named; "" for none."""
    return os.environ.get(ADDRESS_VARIABLE, "").strip()


def check_workflow_address(address: str) -> None:
    """Refuse an address that a workflow may not name: workflows come from others, and an address is called.

    Raises:
        PlanError: it is neither "local" nor "auto", nor what the server's owner has named.
    """
    if address not in ("local", "auto", owners_address() or "auto"):
        raise PlanError(
            f"This workflow wants workers of the cluster at {address!r}; a workflow may only say local or auto.",
            f"If that cluster is yours, start the server with {ADDRESS_VARIABLE}={address} and {TOKEN_VARIABLE}=FILE "
            "in its environment, and say auto; else say local.",
        )


_PROOF_SECONDS = 5.0
_NONCE, _ANSWER = 64, 64
"""Hexadecimal digits."""


def proof_port(port: int) -> int:
    """Where the head at a port answers for itself: one port above, or below the last one."""
    return port + 1 if port < 65535 else port - 1


def _proof(token: str, nonce: str, host: str, port: int) -> str:
    """What only somebody who knows the token can answer."""
    plain = host.split("%")[0].lower().removeprefix("::ffff:")
    return hmac.new(token.encode(), f"liveavatar head/{nonce}/{plain}/{port}".encode(), "sha256").hexdigest()


class HeadProof:
    """The service beside a head that proves that it knows the token. Its port tells nothing else, and nothing secret.

    Args:
        token: of the cluster.
        port: of the head.
        is_head: whether that port is held by the head; while it is not, no proof is given.

    Raises:
        OSError: the port beside the head's is taken.
    """

    def __init__(self, token: str, port: int, is_head: Callable[[], bool] = lambda: True):
        class Answer(socketserver.BaseRequestHandler):
            """One question."""

            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    self.request.settimeout(_PROOF_SECONDS)
                    nonce = _receive(self.request, _NONCE)
                    if re.fullmatch(r"[0-9a-f]{64}", nonce) and is_head():
                        host = self.request.getsockname()[0]
                        self.request.sendall(_proof(token, nonce, host, port).encode())

        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        listening = socket.create_server(
            ("", proof_port(port)), family=family, dualstack_ipv6=family == socket.AF_INET6
        )
        self._server = socketserver.ThreadingTCPServer(("", 0), Answer, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket, self._server.daemon_threads = listening, True
        threading.Thread(target=self._server.serve_forever, name="liveavatar-proof", daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()


def proved_head(head: str, token: str) -> str:
    """The address of a head that has proved that it knows the token: an IP address and a port.

    Args:
        head: host:port. Nothing secret is sent there.

    Raises:
        PlanError: it gave no proof, or a wrong one.
    """
    host, _, port = head.rpartition(":")
    nonce = secrets.token_hex(_NONCE // 2)
    try:
        with socket.create_connection((host.strip("[]"), proof_port(int(port))), _PROOF_SECONDS) as asked:
            peer = str(asked.getpeername()[0])
            asked.sendall(nonce.encode())
            answer = _receive(asked, _ANSWER)
    except OSError as error:
        if is_out_of_files(error):
            raise PlanError(f"The head at {head} cannot be asked ({error.strerror}).", OUT_OF_FILES_NEAREST) from error
        answer, peer = "", ""
    if not answer:
        raise PlanError(
            f"The head at {head} does not prove that it knows the token, which was not sent to it.",
            "Start it by `python -m liveavatar cluster start`, which answers at the port beside the head's own.",
        )
    if not hmac.compare_digest(answer.encode(), _proof(token, nonce, peer, int(port)).encode()):
        raise PlanError(
            f"The head at {head} does not know the token given here, which was not sent to it.",
            "All machines need the same token file; or it is another's head.",
        )
    return f"[{peer}]:{port}" if ":" in peer else f"{peer}:{port}"


def _receive(connection: socket.socket, count: int) -> str:
    """So many characters, or what came until the other end closed."""
    received = b""
    while len(received) < count and (piece := connection.recv(count - len(received))):
        received += piece
    return received.decode("ascii", "replace")
