"""The pack's sockets fit the core nodes around them."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import graphs
import pytest
from live_client import Client
from live_server import Server
from media.videos import write_film
from outcome import assert_correct, receipt_of, saved, succeeded
from video_file import look_into


def test_get_video_components_gives_the_frames_and_the_sound(server: Server, client: Client) -> None:
    graph = graphs.modular()
    graph["parts"] = graphs.node("GetVideoComponents", video=["decode", 0])
    graph["again"] = graphs.node("CreateVideo", images=["parts", 0], audio=["parts", 1], fps=["parts", 2])
    graph["fps"] = graphs.node("PreviewAny", source=["parts", 2])
    graph["copy"] = graphs.changed(graph, "save", video=["again", 0], filename_prefix="video/again")["save"]
    run = succeeded(client.run(graph))
    assert float(run.shown["fps"]["text"][0]) == 25.0
    assert_correct(saved(server, run, "copy"), graphs.SECONDS)


def test_the_saved_file_is_the_written_one_with_the_graph_inside(server: Server, client: Client) -> None:
    graph = graphs.modular(seed=502)
    run = succeeded(client.run(graph))
    (shown,) = run.shown["decode"]["images"]
    file = saved(server, run)
    temporary, kept = look_into(client.view(shown)), look_into(file)
    assert kept.pictures == temporary.pictures  # copied, not encoded again
    assert json.loads(kept.metadata["prompt"]).keys() == graph.keys()


def test_a_picture_with_alpha_and_a_batch_are_understood(client: Client) -> None:
    plain = receipt_of(succeeded(client.run(graphs.modular(seed=500))))["frames_sha256"]
    graph = graphs.modular(seed=500)
    graph["twice"] = graphs.node("RepeatImageBatch", image=["picture", 0], amount=2)
    run = succeeded(client.run(graphs.changed(graph, "sampler", image=["twice", 0])))
    assert receipt_of(run)["frames_sha256"] == plain
    graph = graphs.modular(seed=500)
    graph["alpha"] = graphs.node("JoinImageWithAlpha", image=["picture", 0], alpha=["picture", 1])
    run = succeeded(client.run(graphs.changed(graph, "sampler", image=["alpha", 0])))
    assert receipt_of(run)["effective"]["width"] == 128


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_stereo_voice_of_any_rate_is_understood(server: Server, client: Client, rate: int) -> None:
    name = f"stereo{rate}.wav"
    write_tone(server.base / "input" / name, rate, seconds=1.0)
    run = succeeded(client.run(graphs.modular(voice=name)))
    held = look_into(saved(server, run))
    assert held.frames == 25
    assert held.sound == pytest.approx(1.0, abs=0.1)


def test_a_trimmed_voice_gives_a_shorter_video(server: Server, client: Client) -> None:
    graph = graphs.modular()
    graph["trim"] = graphs.node("TrimAudioDuration", audio=["voice", 0], start_index=0.2, duration=1.0)
    run = succeeded(client.run(graphs.changed(graph, "audio", audio=["trim", 0])))
    assert look_into(saved(server, run)).frames == 25


def test_latents_go_to_core_as_a_latent(client: Client) -> None:
    graph = graphs.modular()
    graph["latent"] = graphs.node("LiveAvatarLatent", latents=["sampler", 0])
    graph["kept"] = graphs.node("SaveLatent", samples=["latent", 0], filename_prefix="latents/LiveAvatar")
    run = succeeded(client.run(graph))
    (shown,) = run.shown["kept"]["latents"]
    file = client.view(shown)
    header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    latents = 3 * -(-graphs.frames_of(graphs.SECONDS) // 12)
    assert header["latent_tensor"]["shape"] == [1, 16, latents, 16, 16]


def listening(kind: str, **shape: int) -> graphs.Graph:
    """A graph whose voice is heard by an encoder of core, as an encoder or as what it made."""
    graph = graphs.modular(seed=503)
    graph["encoder"] = graphs.node("OddAudioEncoder", **{"width": 64, "layers": 4, **shape})
    graph["encoded"] = graphs.node("AudioEncoderEncode", audio_encoder=["encoder", 0], audio=["voice", 0])
    source = {"audio_encoder": "encoder", "audio_encoder_output": "encoded"}[kind]
    return graphs.changed(graph, "audio", **{kind: [source, 0]})


@pytest.mark.parametrize("kind", ["audio_encoder", "audio_encoder_output"])
def test_a_voice_heard_by_core_makes_a_video(server: Server, client: Client, kind: str) -> None:
    run = succeeded(client.run(listening(kind)))
    assert_correct(saved(server, run), graphs.SECONDS)


@pytest.mark.parametrize("kind", ["audio_encoder", "audio_encoder_output"])
@pytest.mark.parametrize(("shape", "words"), [({"width": 32}, "32"), ({"layers": 2}, "3 hidden states")])
def test_a_voice_heard_by_another_model_is_refused(
    client: Client, kind: str, shape: dict[str, int], words: str
) -> None:
    run = client.run(listening(kind, **shape))
    assert run.error["node_id"] == "audio"
    assert words in run.error["exception_message"]


def test_conditioning_of_the_right_width_is_taken_from_anywhere(server: Server, client: Client) -> None:
    graph = graphs.modular(seed=504)
    graph["other"] = graphs.node("OddConditioning", width=64)
    run = succeeded(client.run(graphs.changed(graph, "sampler", positive=["other", 0])))
    assert look_into(saved(server, run)).frames == graphs.frames_of(graphs.SECONDS)


def test_a_backend_node_changes_where_but_not_what(client: Client) -> None:
    plain = receipt_of(succeeded(client.run(graphs.modular(seed=501))))
    graph = graphs.modular(seed=501)
    graph["backend"] = graphs.node(
        "LiveAvatarBackend",
        engine="this process",
        devices="cpu",
        stages="1x2",
        memory="free after each run",
        threads=plain["threads"],
    )
    run = succeeded(client.run(graphs.changed(graph, "model", backend=["backend", 0])))
    assert receipt_of(run)["frames_sha256"] == plain["frames_sha256"]


def write_tone(path: Path, rate: int, seconds: float) -> None:
    """A soft stereo sawtooth."""
    samples = bytearray()
    for i in range(round(rate * seconds)):
        value = (i * 97 % 2000) - 1000
        samples += value.to_bytes(2, "little", signed=True) * 2
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(samples))


def test_a_pose_comes_as_a_video_or_as_pictures(server: Server, client: Client) -> None:
    write_film(server.base / "input" / "pose.mp4", 12, None, 128, 128)
    plain = graphs.modular(seconds=0.9, steps=1)
    graph = plain | {"film": graphs.node("LoadVideo", file="pose.mp4")}
    graph["pictures"] = graphs.node("GetVideoComponents", video=["film", 0])
    found = [receipt_of(succeeded(client.run(plain)))]
    for source in ("film", "pictures"):
        posed = graphs.changed(graph, "sampler", pose=[source, 0], pose_end="loop")
        found.append(receipt_of(succeeded(client.run(posed))))
        assert any("pose video ends after 0.48 s of 0.90 s" in note for note in found[-1]["effective"]["notes"])
    assert found[0]["frames_sha256"] not in [receipt["frames_sha256"] for receipt in found[1:]]
