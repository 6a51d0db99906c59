"""What is sent over TLS goes to servers that are trusted; others are told, and never see it."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
from live.certificates import self_signed, tls_in_front_of
from live.stream_servers import free_port, needs_nginx, nginx
from live.test_network import KEY, assert_in_step, send, send_while, sending
from live.test_whip import TOKEN, Server, put_until, serve


@needs_nginx
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_rtmps_arrives_at_a_server_that_is_trusted(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, context = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    port = free_port()
    with (
        nginx(tmp_path, port) as kept,
        tls_in_front_of(port, context) as encrypted,
        sending(f"rtmps://{host}:{encrypted}/live/{KEY}") as (output, _),
    ):
        send(output, 4)
    (arrived,) = kept.iterdir()
    assert_in_step(arrived, 3)


@needs_nginx
def test_rtmps_goes_to_no_server_that_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, context = self_signed(tmp_path)
    other, _ = self_signed(tmp_path, "elsewhere.example")
    port = free_port()
    with nginx(tmp_path, port) as kept, tls_in_front_of(port, context) as encrypted:
        for trusted, why in ((None, "self"), (other, "not trusted")):
            if trusted is None:
                monkeypatch.delenv("SSL_CERT_FILE", raising=False)
            else:
                monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
            with sending(f"rtmps://127.0.0.1:{encrypted}/live/{KEY}") as (output, told):
                send_while(output, lambda: output.status.state != "lost")
                assert "certificate is not trusted" in output.status.what and why in output.status.what
                assert "SSL_CERT_FILE" in output.status.what
                assert not any(status.state == "sending" for status in told)
    assert not list(kept.iterdir()), "not a picture has left"


def test_rtmps_goes_to_no_server_of_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = self_signed(tmp_path, "elsewhere.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, tmp_path / "elsewhere.example.key")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with (
        tls_in_front_of(free_port(), context) as encrypted,
        sending(f"rtmps://localhost:{encrypted}/live/{KEY}") as (output, _),
    ):
        send_while(output, lambda: output.status.state != "lost")
        assert "Hostname mismatch" in output.status.what


def test_whip_asks_for_a_certificate_that_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, context = self_signed(tmp_path)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)

    async def scenario(server: Server, address: str) -> None:
        to: Any = f"whip+https://:{TOKEN}@{address}"
        with sending(to) as (output, _):
            await put_until(output, lambda: output.status.state == "lost")
            assert "certificate is not trusted (self" in output.status.what
            await asyncio.to_thread(output.close)
        assert not server.viewers
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        with sending(to) as (output, _):
            await put_until(output, lambda: server.viewers and server.viewers[0].received["video"])
            await asyncio.to_thread(output.close)

    serve(scenario, context)
