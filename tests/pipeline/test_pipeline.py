"""The pipeline: its steps give what it gives in one go, and what is kept is used again."""

import dataclasses
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.runs import write_inputs
from safetensors.torch import save_file

import liveavatar
from liveavatar.components import loras_of, open_components
from liveavatar.config import MINI
from liveavatar.encoders.audio import encode_audio, gather_frame_features, hidden_states
from liveavatar.engine.backend import LocalBackend
from liveavatar.errors import (
    AudioError,
    Cancelled,
    ImageError,
    LoRAError,
    ModelError,
    OutputError,
    PlanError,
    RequestError,
    SizeError,
    SpeakerError,
)
from liveavatar.events import GENERATING, Callback, Event, ignore, notice_event
from liveavatar.media.audio import AudioClip
from liveavatar.pipeline import AudioInput, LiveAvatarPipeline, VideoJob
from liveavatar.placement import Placement
from liveavatar.receipt import receipt_text
from liveavatar.request import Request
from liveavatar.session import VideoTask
from liveavatar.streams import to_rgb24
from liveavatar.task_graph import task_count
from liveavatar.vae.wan import latent_scale

REQUEST = Request(size="64x64", steps=2, seed=9)
SECONDS = 1.3


def picture(shade: int = 120) -> np.ndarray:
    rows = np.linspace(0, shade, 64, dtype=np.uint8)
    return np.repeat(np.repeat(rows[:, None, None], 64, 1), 3, 2)


def sound(seconds: float = SECONDS, rate: int = 22_050) -> AudioClip:
    t = np.arange(int(seconds * rate)) / rate
    return AudioClip.from_array((0.4 * np.sin(2 * math.pi * 180 * t) * np.sin(9 * t)).astype(np.float32), rate)


@pytest.fixture(scope="module")
def pipeline() -> LiveAvatarPipeline:
    return LiveAvatarPipeline(open_components("mini"), LocalBackend(Placement(("cpu",), threads=1)))


@pytest.fixture(scope="module")
def voice(pipeline: LiveAvatarPipeline) -> AudioInput:
    return pipeline.encode_audio(sound())


@pytest.fixture(scope="module")
def context(pipeline: LiveAvatarPipeline) -> torch.Tensor:
    return pipeline.encode_prompt(REQUEST.prompt)


@pytest.fixture
def job(pipeline: LiveAvatarPipeline, voice: AudioInput, context: torch.Tensor) -> VideoJob:
    return pipeline.prepare(REQUEST, picture(), voice, context)


class Heard:
    """Counts the tasks and the blocks that are written, and breaks the run off after some."""

    def __init__(self, break_after: int | None = None):
        self.tasks, self.blocks, self.phases, self.break_after = 0, 0, [], break_after

    def __call__(self, event: Event) -> None:
        self.phases.append(event.phase)
        self.blocks += event.images is not None
        if event.phase == GENERATING and event.task is not None:
            self.tasks += 1
        if self.break_after is not None and self.tasks >= self.break_after:
            raise Cancelled("Enough.")


def film(job: VideoJob, folder: Path, name: str = "a", heard: Heard | None = None):
    return job.save(folder / f"{name}.mp4", folder / f"{name}.json", heard or Heard())


class Telling(LocalBackend):
    """Lends engines that tell something before every block."""

    def engine(self, components, plan):
        engine = super().engine(components, plan)

        def run(job, callback, make=engine.run):
            for number, block in enumerate(make(job, callback)):
                callback(notice_event(f"Before block {number}."))
                yield block

        engine.run = run
        return engine


def test_notices_are_shown_and_stay_in_the_receipt(tmp_path):
    pipeline = LiveAvatarPipeline(open_components("mini"), Telling(Placement(("cpu",), threads=1)))
    receipt, job, heard = tmp_path / "a.json", pipeline(picture(), sound(), request=REQUEST), []
    told = job.save(tmp_path / "a.mp4", callback=heard.append).notices
    assert told == tuple(f"Before block {n}." for n in range(job.spec.resolved.blocks))
    written = json.loads(receipt.read_text())
    assert written["notices"] == list(told)
    (attention,) = written["attention"]
    assert (attention["device"], attention["backend"]) == ("cpu", "sdpa") and 0 < attention["error"] < 1e-5
    (planned,) = written["plan"]["attention_uses"]
    assert planned == attention | {"kernel": "", "error": None}, "tried when the network was loaded"
    shown = {p.phase: p for p in heard}
    assert shown.keys() >= set(told) and 0 < shown[told[0]].done < shown[told[0]].total

    def stop(event: Event) -> None:
        if event.phase == told[1]:
            raise Cancelled("Enough.")

    with pytest.raises(Cancelled):
        pipeline(picture(), sound(), request=REQUEST).save(tmp_path / "a.mp4", callback=stop)
    assert json.loads(receipt.read_text())["notices"] == list(told[:2])


class Hopeful(LocalBackend):
    """Its plans chose to compile, unasked."""

    def engine(self, components, plan):
        return super().engine(components, dataclasses.replace(plan, compiled=True, compile_optional=True))


def test_a_compiler_that_fails_where_nobody_asked_is_told_in_the_receipt(tmp_path, monkeypatch):
    monkeypatch.setattr("liveavatar.compiler.COMPILER", "absent")
    pipeline = LiveAvatarPipeline(open_components("mini"), Hopeful(Placement(("cpu",), threads=1)))
    pipeline(picture(), sound(), request=REQUEST).save(tmp_path / "a.mp4")
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["status"] == "complete" and written["plan"]["compiled"] is False
    assert "without compiled layers" in written["notices"][-1] and "absent" in written["notices"][-1]


def test_a_busy_machine_is_told_in_the_receipt(tmp_path, pipeline, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (1000.0, 0.0, 0.0), raising=False)
    told = pipeline(picture(), sound(), request=REQUEST).save(tmp_path / "a.mp4").notices
    assert "1000.0 processes" in told[-1]


def test_notices_reach_who_collects_latents(pipeline, voice, context):
    telling, phases = LiveAvatarPipeline(pipeline.components, Telling(Placement(("cpu",), threads=1))), []
    telling.prepare(REQUEST, picture(), voice, context).latents(lambda event: phases.append(event.phase))
    assert "Before block 1." in phases


def test_a_finished_take_is_replayed_without_a_task(job, tmp_path):
    first, again = Heard(), Heard()
    made = film(job, tmp_path, "a", first)
    assert film(job, tmp_path, "b", again).frames_sha256 == made.frames_sha256
    effective = job.spec.resolved
    assert first.tasks >= task_count(job.spec.plan.partition, effective.blocks)
    assert again.tasks == 0
    assert again.blocks == effective.blocks
    assert "loading the network" not in again.phases


def test_a_take_that_was_broken_off_begins_again_and_ends_the_same(pipeline, voice, context, tmp_path):
    whole = film(pipeline.prepare(REQUEST, picture(), voice, context), tmp_path, "whole")
    job = pipeline.prepare(REQUEST, picture(), voice, context)
    with pytest.raises(Cancelled):
        film(job, tmp_path, "broken", Heard(break_after=4))
    assert job.session().latents.produced == 0  # no run is paused that would hold memory
    assert film(job, tmp_path, "again").frames_sha256 == whole.frames_sha256


def test_released_memory_comes_back_with_the_next_run(pipeline, voice, context, tmp_path):
    made = film(pipeline.prepare(REQUEST, picture(), voice, context), tmp_path, "a")
    assert pipeline.loaded_bytes > 1e6
    pipeline.release()
    assert pipeline.loaded_bytes == 0
    assert film(pipeline.prepare(REQUEST, picture(), voice, context), tmp_path, "b").frames_sha256 == made.frames_sha256


def test_a_placement_may_ask_to_keep_nothing(voice, context, tmp_path):
    frugal = LiveAvatarPipeline(
        open_components("mini"), LocalBackend(Placement(("cpu",), threads=1, keep_loaded=False))
    )
    film(frugal.prepare(REQUEST, picture(), voice, context), tmp_path)
    assert frugal.loaded_bytes == 0


def test_room_is_asked_for_before_anything_is_loaded(voice, context, tmp_path):
    asked = []
    pipeline = LiveAvatarPipeline(open_components("mini"), LocalBackend(Placement(("cpu",), threads=1)))
    pipeline.make_room = lambda plan: asked.append((plan, pipeline.loaded_bytes))
    job = pipeline.prepare(REQUEST, picture(), voice, context)
    assert asked == []
    film(job, tmp_path)
    assert asked == [(job.spec.plan, 0)]
    film(job, tmp_path, "replayed")
    assert len(asked) == 1, "a replay needs no room for the network"


def test_the_time_is_known_after_the_first_take(voice, context, tmp_path):
    pipeline = LiveAvatarPipeline(open_components("mini"), LocalBackend(Placement(("cpu",), threads=1)))
    job = pipeline.prepare(REQUEST, picture(), voice, context)
    assert pipeline.expected_seconds(job.spec.resolved) is None
    spent = film(job, tmp_path).seconds["generate"]
    assert pipeline.expected_seconds(job.spec.resolved) == pytest.approx(spent, abs=1e-6)
    film(job, tmp_path, "replayed")
    assert pipeline.expected_seconds(job.spec.resolved) == pytest.approx(spent, abs=1e-6)
    for other in ({"speaker_count": 2}, {"pose": True}, {"steps": 1}):
        assert pipeline.expected_seconds(dataclasses.replace(job.spec.resolved, **other)) is None


def test_every_block_is_shown_once(job, tmp_path):
    events: list[Event] = []
    job.save(tmp_path / "a.mp4", tmp_path / "a.json", events.append)
    shown = [event.images for event in events if event.images is not None]
    assert sum(len(frames) for frames in shown) == job.spec.resolved.frames
    assert all(frames.dtype == np.uint8 and frames.shape[1:] == (64, 64, 3) for frames in shown)


def test_collected_latents_are_those_of_the_stream_without_normalisation(job):
    collected = job.latents(Heard())
    normalised = torch.cat(list(job.session().latents), 1)[None]
    mean, inverse_std = latent_scale(open_components("mini").vae("cpu", torch.float32))
    assert collected.shape == (1, 16, 3 * job.spec.resolved.blocks, 8, 8)
    torch.testing.assert_close((collected - mean) * inverse_std, normalised, atol=1e-5, rtol=1e-5)


def test_another_vae_decodes_the_same_latents(job, tmp_path):
    own = film(job, tmp_path, "own")
    other = open_components("mini").vae("cpu", torch.float32)
    with torch.no_grad():
        other.decoder.conv_out.bias += 0.5
    brighter = job.save(tmp_path / "b.mp4", tmp_path / "b.json", Heard(), vae=other)
    assert brighter.frames_sha256 != own.frames_sha256
    assert film(job, tmp_path, "c").frames_sha256 == own.frames_sha256


def test_the_tiles_of_a_plan_reach_every_decode(voice, context, tmp_path):
    """A job, one with another VAE, and the front door; and their pictures are not those of the whole."""
    request, wide = dataclasses.replace(REQUEST, size="128x64", steps=1), np.repeat(picture(), 2, 1)

    def taken(tiles: str | None) -> VideoJob:
        there = Placement(("cpu",), threads=1, vae_tiles=tiles)
        return LiveAvatarPipeline(open_components("mini"), LocalBackend(there)).prepare(request, wide, voice, context)

    whole, cut = taken(None), taken("1x2")
    assert (whole.spec.plan.vae_tiles, cut.spec.plan.vae_tiles) == ((1, 1), (1, 2))
    found = film(cut, tmp_path, "cut").frames_sha256
    assert found != film(whole, tmp_path, "whole").frames_sha256
    other = open_components("mini").vae("cpu", torch.float32)
    again = cut.save(tmp_path / "b.mp4", tmp_path / "b.json", Heard(), vae=other)
    assert again.frames_sha256 == found and json.loads((tmp_path / "b.json").read_text())["plan"]["vae_tiles"] == [1, 2]
    direct = film(cut.pipeline(wide, sound(), request=request), tmp_path, "direct")
    assert direct.frames_sha256 == found


def test_a_limited_voice_gives_a_shorter_video(pipeline, context):
    voice = pipeline.encode_audio(sound(), 0.6)
    effective = pipeline.prepare(REQUEST, picture(), voice, context).spec.resolved
    assert (effective.frames, effective.seconds) == (15, pytest.approx(0.6, abs=1e-4))


def test_states_that_somebody_else_made_are_picked_like_the_published_ones(pipeline):
    model = pipeline.components.audio_encoder("cpu", torch.float32)
    wave = np.random.default_rng(3).normal(size=20_000).astype(np.float32)
    own = encode_audio(model, wave, 48, tail="zeros")
    normal = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
    picked = gather_frame_features(hidden_states(model, normal), 48)
    assert (picked.layers, picked.channels, picked.blocks) == (own.layers, own.channels, own.blocks)
    for block in range(4):
        torch.testing.assert_close(picked.block(block), own.block(block), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("length", "seconds"), [(0.01, None), (1.3, 0.01), (1.3, -1.0), (1.3, float("nan"))])
def test_too_little_sound_is_refused_before_the_encoder_is_loaded(length, seconds, monkeypatch):
    pipeline = LiveAvatarPipeline(open_components("mini"), LocalBackend(Placement(("cpu",), threads=1)))
    monkeypatch.setattr(pipeline.components, "audio_encoder", lambda *where: pytest.fail("the encoder was loaded"))
    with pytest.raises(RequestError, match=r"too short|cannot be made"):
        pipeline.encode_audio(sound(length), seconds)


def test_a_heard_voice_makes_a_take(pipeline, context):
    states = [torch.randn(64, MINI.audio_dim) for _ in range(MINI.audio_layers)]
    assert (
        pipeline.prepare(REQUEST, picture(), pipeline.from_audio_states(sound(), states), context).spec.resolved.blocks
        == 3
    )


def test_what_is_told_of_the_parts_stands_in_the_spec(pipeline: LiveAvatarPipeline, context: torch.Tensor) -> None:
    samples = np.asarray(sound().samples)
    against = dataclasses.replace(
        AudioClip.from_array(np.concatenate([samples, -samples], 1), sound().rate), notes=("a note of the clip",)
    )
    told = pipeline.prepare(REQUEST, picture(), pipeline.encode_audio(against), context, ("a note of the image",))
    notes = told.spec.resolved.notes
    assert "a note of the clip" in notes and "a note of the image" in notes and any("cancel" in n for n in notes)
    config = pipeline.config
    states = [torch.randn(80, config.audio_dim)] * config.audio_layers
    encoded_elsewhere = pipeline.from_audio_states(against, states)
    notes = pipeline.prepare(REQUEST, picture(), encoded_elsewhere, context).spec.resolved.notes
    assert "a note of the clip" in notes and not any("cancel" in n for n in notes)


def test_what_does_not_fit_is_refused_before_anything_is_loaded(pipeline, voice, context):
    with pytest.raises(AudioError, match="hidden states"):
        pipeline.from_audio_states(sound(), [torch.randn(50, 9)] * 2)
    with pytest.raises(AudioError, match="not \\[features, channels\\]"):
        gather_frame_features([], 12)
    with pytest.raises(RequestError, match="encoded as"):
        pipeline.prepare(REQUEST, picture(), voice, torch.zeros(4, 5))
    with pytest.raises(ImageError):
        pipeline.prepare(REQUEST, picture()[..., :1], voice, context)
    with pytest.raises(AudioError, match="too short"):
        pipeline.prepare(REQUEST, picture(), dataclasses.replace(voice, audio=sound(0.001)), context)
    with pytest.raises(AudioError, match="blocks"):
        pipeline.prepare(REQUEST, picture(), dataclasses.replace(voice, audio=sound(5.0)), context)
    with pytest.raises(PlanError, match="cuda:99"):
        LocalBackend(Placement(("cuda:99",)))


def test_a_receipt_reads_as_it_was_written(job, tmp_path):
    film(job, tmp_path)
    assert '"status": "complete"' in receipt_text(tmp_path / "a.json")


def test_collecting_tells_what_the_engine_waits_for(job: VideoJob, monkeypatch: pytest.MonkeyPatch) -> None:
    session, heard = job.session(), []
    run = session.engine.run

    def waiting(job: VideoTask, callback: Callback) -> Iterator[torch.Tensor]:
        for latents in run(job, callback):
            callback(notice_event("Waiting."))
            yield latents

    monkeypatch.setattr(session.engine, "run", waiting)
    job.latents(heard.append)
    blocks = session.latents.blocks
    assert [e for e in heard if e.notice] == [Event("Waiting.", made, blocks, notice=True) for made in range(blocks)]
    assert session.callback is ignore


def test_the_front_door_needs_a_prompt_that_it_can_encode(pipeline) -> None:
    with pytest.raises(RequestError, match="not known") as refused:
        pipeline(picture(), sound(), request=dataclasses.replace(REQUEST, prompt=None))
    assert "Give a prompt" in refused.value.nearest


def test_the_front_door_needs_two_lines(tmp_path, pipeline, voice, context):
    front = liveavatar.LiveAvatarPipeline.from_pretrained("mini", devices=("cpu",), threads=1)
    video = front(picture(), sound(), size="64x64", steps=2, seed=9)
    assert video.spec.resolved.steps == 2 and front.loaded_bytes == 0, "nothing is loaded before it is watched"
    told = video.save(tmp_path / "talk.mp4")
    assert told.status == "complete" and (tmp_path / "talk.json").is_file()
    in_steps = film(pipeline.prepare(REQUEST, picture(), voice, context), tmp_path, "steps")
    assert told.frames_sha256 == in_steps.frames_sha256
    shown = hashlib.sha256()
    for pixels in video.frames():
        shown.update(to_rgb24(pixels).tobytes())
    assert shown.hexdigest() == told.frames_sha256, "frames replay what was saved"
    video.close()
    assert front.loaded_bytes > 0


@pytest.mark.parametrize(
    ("options", "error"),
    [({"size": "1x1"}, SizeError), ({"steps": 0}, RequestError), ({"seconds": 0.001}, RequestError)],
)
def test_the_front_door_refuses_before_anything_is_loaded(options, error):
    front = liveavatar.LiveAvatarPipeline.from_pretrained("mini", devices=("cpu",))
    with pytest.raises(error):
        front(picture(), sound(), **options)
    assert front.loaded_bytes == 0


def test_a_video_does_not_replace_what_it_is_made_from(tmp_path):
    write_inputs(tmp_path)
    front = liveavatar.LiveAvatarPipeline.from_pretrained("mini", devices=("cpu",))
    video = front(tmp_path / "portrait.png", tmp_path / "voice.wav", size="64x64")
    with pytest.raises(OutputError, match="replace"):
        video.save(tmp_path / "a.mp4", tmp_path / "voice.wav")


def test_public_names_are_found_late():
    code = "import liveavatar, sys; assert 'torch' not in sys.modules; liveavatar.Request; print(liveavatar.__all__)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LiveAvatarPipeline" in ran.stdout
    with pytest.raises(AttributeError, match="Pipelin"):
        _ = liveavatar.Pipelin


def test_values_of_the_wrong_kind_are_refused_in_a_sentence(pipeline: LiveAvatarPipeline, tmp_path: Path) -> None:
    voice, face = sound(0.3), picture()
    for wrong in (None, 3, b"x", ["x"], object(), 10**5000):
        with pytest.raises(ImageError, match=r"picture is given as|No portrait was given"):
            pipeline(wrong, voice)
        with pytest.raises((AudioError, SpeakerError), match=r"sound is given as|'x' is no speaker"):
            pipeline(face, wrong)
        with pytest.raises(ModelError, match="no path"):
            LiveAvatarPipeline.from_pretrained(wrong)
        with pytest.raises(OutputError, match="no path"):
            pipeline(face, voice, request=REQUEST).save(wrong)
        with pytest.raises(RequestError, match="request is"):
            pipeline(face, voice, request=wrong or 3)
        with pytest.raises(RequestError, match="cannot be called"):
            pipeline(face, voice, request=REQUEST).save(tmp_path / "a.mp4", callback=wrong)
    with pytest.raises(RequestError, match="Did you mean size"):
        pipeline(face, voice, sise="64x64")
    assert not list(tmp_path.iterdir())


def test_further_loras_are_given_alone_or_with_their_strength(tmp_path: Path) -> None:
    style, module = tmp_path / "style.safetensors", "blocks.0.self_attn.q"
    save_file(
        {f"{module}.lora_A.weight": torch.ones(2, MINI.dim), f"{module}.lora_B.weight": torch.ones(MINI.dim, 2)}, style
    )
    for given, strengths in ((style, [1.0]), ([str(style), (style, 0.5)], [1.0, 0.5])):
        front = LiveAvatarPipeline.from_pretrained("mini", devices=("cpu",), extra_loras=given)
        assert [report.strength for report in loras_of(front.components)[1:]] == strengths
    for wrong, words in (((style, "much"), "strength 'much' of a LoRA"), (3, "The LoRA of type int is no path")):
        with pytest.raises(LoRAError, match=words):
            LiveAvatarPipeline.from_pretrained("mini", devices=("cpu",), extra_loras=[wrong])
    with pytest.raises(LoRAError, match="takes no LoRA"):
        LiveAvatarPipeline.from_pretrained("untrained", devices=("cpu",), extra_loras=[style])
