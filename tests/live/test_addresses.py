"""Addresses are understood, refused in words that repeat no secret, and shown without one."""

from __future__ import annotations

import shutil

import pytest

from liveavatar.errors import RequestError
from liveavatar.live.addresses import parse_address

SECRET = "hunter2"


@pytest.mark.parametrize(
    "text, shown, container",
    [
        (f"rtmp://a.example/live2/{SECRET}", "rtmp://a.example/live2/***", "flv"),
        (f"rtmps://u:{SECRET}@a.example:443/x/y/{SECRET}?k={SECRET}", "rtmps://***@a.example:443/x/y/***?***", "flv"),
        (f"rtsp://u:{SECRET}@[::1]:8554/cam", "rtsp://***@[::1]:8554/cam", "rtsp"),
        (f"srt://a.example:9000?passphrase={SECRET}", "srt://a.example:9000?***", "mpegts"),
        (f"whip+https://:{SECRET}@a.example/{SECRET}/whip", "whip+https://***@a.example/***", "whip"),
    ],
)
def test_what_is_shown_holds_no_secret(text: str, shown: str, container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    address = parse_address(text)
    assert address.shown == shown
    assert address.protocol.format == container
    assert SECRET not in repr(address)


def test_a_token_goes_into_the_header_and_not_into_the_address() -> None:
    address = parse_address(f"whip+https://:{SECRET}%2F@a.example/room")
    assert address.url == "https://a.example/room"
    assert address.options["authorization"] == f"{SECRET}/"
    assert parse_address("whip+http://a.example/room").url == "http://a.example/room"


@pytest.mark.parametrize(
    "text, said",
    [
        (f"ftp://a.example/{SECRET}", "no protocol"),
        (SECRET, "no protocol"),
        (f"rtmp:///live/{SECRET}", "no host"),
        (f"rtmp://a.example/{SECRET}", "the key of the stream"),
        (f"rtmp://a.example:99999/live/{SECRET}", "cannot be read"),
        (f"rtmp://a.example/live/{SECRET} x", "spaces"),
        (f"srt://a.example?passphrase={SECRET}", "no port"),
    ],
)
def test_what_cannot_be_sent_to_is_refused(text: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        parse_address(text)
    assert SECRET not in str(caught.value)
    assert "://" in caught.value.nearest


def test_an_address_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVEAVATAR_STAGE", f" rtmp://a.example/live/{SECRET}\n")
    assert parse_address("$LIVEAVATAR_STAGE") == parse_address(f"rtmp://a.example/live/{SECRET}")


@pytest.mark.parametrize("name", ["$HOME_ADDRESS", "$", "$liveavatar_a", "rtmp://a.example/live/$LIVEAVATAR_STAGE"])
def test_nothing_else_of_the_environment_is_looked_at(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME_ADDRESS", f"rtmp://a.example/live/{SECRET}")
    monkeypatch.setenv("LIVEAVATAR_STAGE", SECRET)
    try:
        assert SECRET not in parse_address(name).url
    except RequestError as refused:
        assert "LIVEAVATAR_" in str(refused) and SECRET not in str(refused)


def test_a_variable_that_holds_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIVEAVATAR_STAGE", raising=False)
    with pytest.raises(RequestError, match="LIVEAVATAR_STAGE does not hold an address"):
        parse_address("$LIVEAVATAR_STAGE")
    monkeypatch.setenv("LIVEAVATAR_STAGE", SECRET)
    with pytest.raises(RequestError, match="no protocol") as caught:
        parse_address("$LIVEAVATAR_STAGE")
    assert SECRET not in str(caught.value)


def test_srt_without_any_program_for_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RequestError, match="no SRT") as caught:
        parse_address("srt://a.example:9000")
    assert "Install ffmpeg" in caught.value.nearest
