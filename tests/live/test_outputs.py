"""A talk is recorded and sent while it goes on; what cannot be written or sent is told and costs it nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live.conftest import REQUEST
from live.stream_servers import free_port, needs_nginx, nginx
from live.test_server import HELLO, SOUND, Client, greeted, play  # noqa: F401

from liveavatar.live.addresses import parse_address
from liveavatar.live.outputs import Outputs
from liveavatar.live.server import LiveServer
from liveavatar.media.video import probe


async def talk(
    server: LiveServer, http: Any, url: str, until: Callable[[dict[str, Any]], Any] = lambda stats: True
) -> dict[str, Any]:
    """A talk in which something is said and the prompt changes, until it goes like that; its last stats."""
    client = await greeted(http, url)
    await client.send({"type": "start"})
    await client.until("started")
    await client.send({"type": "audio", "rate": 16_000, "encoding": "s16le"})
    await client.socket.send_bytes(SOUND)
    await client.send({"type": "end_of_speech"}, {"type": "prompt", "text": "A person is sad."})
    session = server.room.talk.session
    taken = await client.stats(lambda stats: session.stats.changes and not stats["queued_s"])
    said = taken["block"] + 2  # of one stage, so many may have taken their sound
    stats = await client.stats(lambda stats: stats["block"] >= said and until(stats))
    await client.send({"type": "bye"})
    with pytest.raises(ConnectionError):
        await client.until("never")
    return stats


def test_every_talk_is_recorded_with_its_receipt(play: Callable[..., None], tmp_path: Path) -> None:  # noqa: F811
    file, told = tmp_path / "talk.mp4", []
    outputs = Outputs(file, on_change=lambda status: told.append(status.state))

    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        (status,) = (await talk(server, http, url))["outputs"]
        assert (status["to"], status["state"]) == (str(file), "recording")
        assert json.loads(file.with_suffix(".json").read_text())["status"] == "complete"
        await talk(server, http, url)

    play(scenario, outputs=outputs)
    assert told == ["recording", "closed"] * 2
    for path in (file, tmp_path / "talk-2.mp4"):
        found, receipt = probe(path), json.loads(path.with_suffix(".json").read_text())
        assert (found.width, found.height, found.audio_rate) == (64, 64, 48_000)
        assert found.frames == receipt["effective"]["frames"] == receipt["probed"]["frames"] >= 12
        assert receipt["requested"]["seed"] == REQUEST.seed and receipt["frames_sha256"]
    changes = json.loads(file.with_suffix(".json").read_text())["effective"]["changes"]
    assert [what for _, what in changes] == ["prompt: A person is sad."]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "talk-2.json", "talk-2.mp4", "talk.json", "talk.mp4"
    ]  # fmt: skip


def test_the_receipt_tells_who_spoke_where(play: Callable[..., None], tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "talk.mp4"

    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        await talk(server, http, url)

    play(scenario, outputs=Outputs(file), speakers=["left", "right"])
    receipt = json.loads(file.with_suffix(".json").read_text())
    assert receipt["effective"]["speaker_count"] == 2
    first, second = receipt["speakers"]
    assert first == {"audio": "live", "seconds": 1.0, "mask": "the left half", "share": 0.5}
    assert (second["mask"], second["seconds"]) == ("the right half", 0)


def test_a_file_that_cannot_be_written_is_told_and_the_talk_goes_on(
    play: Callable[..., None],  # noqa: F811
    tmp_path: Path,
) -> None:
    foreign = tmp_path / "talk.json"
    foreign.write_text('{"mine": 1}')

    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        (status,) = (await talk(server, http, url))["outputs"]
        assert status["state"] == "failed" and "talk.json" in status["what"]

    play(scenario, outputs=Outputs(tmp_path / "talk.mp4"))
    assert foreign.read_text() == '{"mine": 1}'
    assert not (tmp_path / "talk.mp4").exists()


@needs_nginx
def test_a_talk_is_sent_while_it_goes_on(play: Callable[..., None], tmp_path: Path) -> None:  # noqa: F811
    port = free_port()
    address = parse_address(f"rtmp://127.0.0.1:{port}/live/secret")

    let_in: list[int] = []

    def arrives(stats: dict[str, Any]) -> bool:
        """Whether it has been sent for some blocks."""
        if stats["outputs"][0]["state"] == "sending":
            let_in.append(stats["block"])
        return bool(let_in) and stats["block"] > let_in[0] + 4

    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        (status,) = (await talk(server, http, url, arrives))["outputs"]
        assert status["to"] == f"rtmp://127.0.0.1:{port}/live/***"
        assert status["state"] == "sending"

    with nginx(tmp_path, port) as kept:
        play(scenario, outputs=Outputs(addresses=(address,)))
    (sent,) = kept.iterdir()
    assert probe(sent).frames >= 24


def test_a_server_out_of_reach_is_told_and_the_talk_goes_on(play: Callable[..., None]) -> None:  # noqa: F811
    address = parse_address(f"rtmp://127.0.0.1:{free_port()}/live/secret")

    async def scenario(server: LiveServer, url: str, http: Any) -> None:
        status = (await talk(server, http, url, lambda stats: stats["outputs"][0]["what"]))["outputs"][0]
        assert "refused" in status["what"] and "secret" not in json.dumps(status)

    play(scenario, outputs=Outputs(addresses=(address,)))
