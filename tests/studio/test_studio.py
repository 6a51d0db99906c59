"""A studio's steps give what the front door gives in one go, and what is kept is used again."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from liveavatar.api import generate, look_ahead
from liveavatar.components import open_components
from liveavatar.config import MINI
from liveavatar.encoders.audio import encode_audio, pick_audio
from liveavatar.encoders.listener import hidden_states
from liveavatar.engines.backend import LocalBackend
from liveavatar.errors import AudioError, Cancelled, ImageError, PlanError, RequestError
from liveavatar.media.sound import Sound
from liveavatar.pipeline import task_count
from liveavatar.placement import Placement
from liveavatar.recording import GENERATING, Progress
from liveavatar.request import Request
from liveavatar.session import Job, OnNotice, OnTask, unnoticed
from liveavatar.studio import Studio, Take, Voice, receipt_text
from liveavatar.vae.wan import latent_scale

REQUEST = Request(size="64x64", steps=2, seed=9)
SECONDS = 1.3


def picture(shade: int = 120) -> np.ndarray:
    rows = np.linspace(0, shade, 64, dtype=np.uint8)
    return np.repeat(np.repeat(rows[:, None, None], 64, 1), 3, 2)


def sound(seconds: float = SECONDS, rate: int = 22_050) -> Sound:
    t = np.arange(int(seconds * rate)) / rate
    return Sound.from_array((0.4 * np.sin(2 * math.pi * 180 * t) * np.sin(9 * t)).astype(np.float32), rate)


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio(open_components("mini"), LocalBackend(Placement(("cpu",), threads=1)))


@pytest.fixture(scope="module")
def voice(studio: Studio) -> Voice:
    return studio.listen(sound())


@pytest.fixture(scope="module")
def context(studio: Studio) -> torch.Tensor:
    return studio.read(REQUEST.prompt)


@pytest.fixture
def take(studio: Studio, voice: Voice, context: torch.Tensor) -> Take:
    return studio.take(REQUEST, picture(), voice, context)


class Heard:
    """Counts the tasks, and breaks the run off after some."""

    def __init__(self, break_after: int | None = None):
        self.tasks, self.phases, self.break_after = 0, [], break_after

    def __call__(self, progress: Progress) -> None:
        self.phases.append(progress.phase)
        if progress.phase == GENERATING and progress.task is not None:
            self.tasks += 1
        if self.break_after is not None and self.tasks >= self.break_after:
            raise Cancelled("Enough.")


def film(take: Take, folder: Path, name: str = "a", heard: Heard | None = None):
    return take.record(folder / f"{name}.mp4", folder / f"{name}.json", heard or Heard())


def test_steps_give_the_frames_of_the_front_door(take, tmp_path):
    prospect = look_ahead(picture(), sound(), REQUEST, devices=["cpu"], threads=1)
    assert film(take, tmp_path).frames_sha256 == generate(prospect, tmp_path / "b.mp4").frames_sha256


class Telling(LocalBackend):
    """Lends engines that tell something before every block."""

    def engine(self, components, plan):
        engine = super().engine(components, plan)

        def run(job, on_task, on_notice, make=engine.run):
            for number, block in enumerate(make(job, on_task)):
                on_notice(f"Before block {number}.")
                yield block

        engine.run = run
        return engine


def test_notices_are_shown_and_stay_in_the_receipt(tmp_path):
    prospect, heard = look_ahead(picture(), sound(), REQUEST, devices=["cpu"], threads=1), []
    receipt, backend = tmp_path / "a.json", Telling(Placement(("cpu",), threads=1))
    told = generate(prospect, tmp_path / "a.mp4", on_progress=heard.append, backend=backend).notices
    assert told == tuple(f"Before block {n}." for n in range(prospect.effective.blocks))
    assert json.loads(receipt.read_text())["notices"] == list(told)
    shown = {p.phase: p for p in heard}
    assert shown.keys() >= set(told) and 0 < shown[told[0]].done < shown[told[0]].total

    def stop(progress: Progress) -> None:
        if progress.phase == told[1]:
            raise Cancelled("Enough.")

    with pytest.raises(Cancelled):
        generate(prospect, tmp_path / "a.mp4", on_progress=stop, backend=backend)
    assert json.loads(receipt.read_text())["notices"] == list(told[:2])


def test_notices_reach_who_collects_latents(studio, voice, context):
    telling, phases = Studio(studio.components, Telling(Placement(("cpu",), threads=1))), []
    telling.take(REQUEST, picture(), voice, context).collect(lambda progress: phases.append(progress.phase))
    assert "Before block 1." in phases


def test_a_finished_take_is_replayed_without_a_task(take, tmp_path):
    first, again = Heard(), Heard()
    made = film(take, tmp_path, "a", first)
    assert film(take, tmp_path, "b", again).frames_sha256 == made.frames_sha256
    effective = take.prospect.effective
    assert first.tasks >= task_count(take.prospect.plan.cut, effective.blocks)
    assert again.tasks == 0
    assert again.phases.count(GENERATING) == effective.blocks
    assert "loading the network" not in again.phases


def test_a_take_that_was_broken_off_begins_again_and_ends_the_same(studio, voice, context, tmp_path):
    whole = film(studio.take(REQUEST, picture(), voice, context), tmp_path, "whole")
    take = studio.take(REQUEST, picture(), voice, context)
    with pytest.raises(Cancelled):
        film(take, tmp_path, "broken", Heard(break_after=4))
    assert take.session().latents.produced == 0  # no run is paused that would hold memory
    assert film(take, tmp_path, "again").frames_sha256 == whole.frames_sha256


def test_released_memory_comes_back_with_the_next_run(studio, voice, context, tmp_path):
    made = film(studio.take(REQUEST, picture(), voice, context), tmp_path, "a")
    assert studio.loaded_bytes > 1e6
    studio.release()
    assert studio.loaded_bytes == 0
    assert film(studio.take(REQUEST, picture(), voice, context), tmp_path, "b").frames_sha256 == made.frames_sha256


def test_a_placement_may_ask_to_keep_nothing(voice, context, tmp_path):
    frugal = Studio(open_components("mini"), LocalBackend(Placement(("cpu",), threads=1, keep_loaded=False)))
    film(frugal.take(REQUEST, picture(), voice, context), tmp_path)
    assert frugal.loaded_bytes == 0


def test_room_is_asked_for_before_anything_is_loaded(voice, context, tmp_path):
    asked = []
    studio = Studio(open_components("mini"), LocalBackend(Placement(("cpu",), threads=1)))
    studio.make_room = lambda plan: asked.append((plan, studio.loaded_bytes))
    take = studio.take(REQUEST, picture(), voice, context)
    assert asked == []
    film(take, tmp_path)
    assert asked == [(take.prospect.plan, 0)]
    film(take, tmp_path, "replayed")
    assert len(asked) == 1, "a replay needs no room for the network"


def test_the_time_is_known_after_the_first_take(voice, context, tmp_path):
    studio = Studio(open_components("mini"), LocalBackend(Placement(("cpu",), threads=1)))
    take = studio.take(REQUEST, picture(), voice, context)
    assert studio.expected_seconds(take.prospect.effective) is None
    spent = film(take, tmp_path).seconds["generate"]
    assert studio.expected_seconds(take.prospect.effective) == pytest.approx(spent, abs=1e-6)
    film(take, tmp_path, "replayed")
    assert studio.expected_seconds(take.prospect.effective) == pytest.approx(spent, abs=1e-6)


def test_every_block_is_shown_once(take, tmp_path):
    shown = []
    take.record(tmp_path / "a.mp4", tmp_path / "a.json", Heard(), on_block=shown.append)
    assert sum(len(frames) for frames in shown) == take.prospect.effective.frames
    assert all(frames.dtype == np.uint8 and frames.shape[1:] == (64, 64, 3) for frames in shown)


def test_collected_latents_are_those_of_the_stream_without_normalisation(take):
    collected = take.collect(Heard())
    normalised = torch.cat(list(take.session().latents), 1)[None]
    mean, inverse_std = latent_scale(open_components("mini").vae("cpu", torch.float32))
    assert collected.shape == (1, 16, 3 * take.prospect.effective.blocks, 8, 8)
    torch.testing.assert_close((collected - mean) * inverse_std, normalised, atol=1e-5, rtol=1e-5)


def test_another_vae_decodes_the_same_latents(take, tmp_path):
    own = film(take, tmp_path, "own")
    other = open_components("mini").vae("cpu", torch.float32)
    with torch.no_grad():
        other.decoder.conv_out.bias += 0.5
    brighter = take.record(tmp_path / "b.mp4", tmp_path / "b.json", Heard(), vae=other)
    assert brighter.frames_sha256 != own.frames_sha256
    assert film(take, tmp_path, "c").frames_sha256 == own.frames_sha256


def test_the_tiles_of_a_plan_reach_every_decode(voice, context, tmp_path):
    """A take, one with another VAE, and the front door; and their pictures are not those of the whole."""
    request, wide = dataclasses.replace(REQUEST, size="128x64", steps=1), np.repeat(picture(), 2, 1)

    def taken(tiles: str | None) -> Take:
        there = Placement(("cpu",), threads=1, vae_tiles=tiles)
        return Studio(open_components("mini"), LocalBackend(there)).take(request, wide, voice, context)

    whole, cut = taken(None), taken("1x2")
    assert (whole.prospect.plan.vae_tiles, cut.prospect.plan.vae_tiles) == ((1, 1), (1, 2))
    found = film(cut, tmp_path, "cut").frames_sha256
    assert found != film(whole, tmp_path, "whole").frames_sha256
    other = open_components("mini").vae("cpu", torch.float32)
    again = cut.record(tmp_path / "b.mp4", tmp_path / "b.json", Heard(), vae=other)
    assert again.frames_sha256 == found and json.loads((tmp_path / "b.json").read_text())["plan"]["vae_tiles"] == [1, 2]
    direct = generate(look_ahead(wide, sound(), request, placement=cut.studio.placement), tmp_path / "direct.mp4")
    assert direct.frames_sha256 == found


def test_a_limited_voice_gives_a_shorter_video(studio, context):
    voice = studio.listen(sound(), 0.6)
    effective = studio.take(REQUEST, picture(), voice, context).prospect.effective
    assert (effective.frames, effective.seconds) == (15, pytest.approx(0.6, abs=1e-4))


def test_states_that_somebody_else_made_are_picked_like_the_published_ones(studio):
    model = studio.components.audio_encoder("cpu", torch.float32)
    wave = np.random.default_rng(3).normal(size=20_000).astype(np.float32)
    own = encode_audio(model, wave, 48, tail="zeros")
    normal = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
    picked = pick_audio(hidden_states(model, normal), 48)
    assert (picked.layers, picked.channels, picked.blocks) == (own.layers, own.channels, own.blocks)
    for block in range(4):
        torch.testing.assert_close(picked.block(block), own.block(block), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("length", "seconds"), [(0.01, None), (1.3, 0.01), (1.3, -1.0), (1.3, float("nan"))])
def test_too_little_sound_is_refused_before_the_encoder_is_loaded(length, seconds, monkeypatch):
    studio = Studio(open_components("mini"), LocalBackend(Placement(("cpu",), threads=1)))
    monkeypatch.setattr(studio.components, "audio_encoder", lambda *where: pytest.fail("the encoder was loaded"))
    with pytest.raises(RequestError, match=r"too short|cannot be made"):
        studio.listen(sound(length), seconds)


def test_a_heard_voice_makes_a_take(studio, context):
    states = [torch.randn(64, MINI.audio_dim) for _ in range(MINI.audio_layers)]
    assert studio.take(REQUEST, picture(), studio.heard(sound(), states), context).prospect.effective.blocks == 3


def test_what_does_not_fit_is_refused_before_anything_is_loaded(studio, voice, context):
    with pytest.raises(AudioError, match="hidden states"):
        studio.heard(sound(), [torch.randn(50, 9)] * 2)
    with pytest.raises(AudioError, match="not \\[features, channels\\]"):
        pick_audio([], 12)
    with pytest.raises(RequestError, match="encoded as"):
        studio.take(REQUEST, picture(), voice, torch.zeros(4, 5))
    with pytest.raises(ImageError):
        studio.take(REQUEST, picture()[..., :1], voice, context)
    with pytest.raises(AudioError, match="too short"):
        studio.take(REQUEST, picture(), dataclasses.replace(voice, sound=sound(0.001)), context)
    with pytest.raises(AudioError, match="blocks"):
        studio.take(REQUEST, picture(), dataclasses.replace(voice, sound=sound(5.0)), context)
    with pytest.raises(PlanError, match="cuda:99"):
        LocalBackend(Placement(("cuda:99",)))


def test_a_receipt_reads_as_it_was_written(take, tmp_path):
    film(take, tmp_path)
    assert '"status": "complete"' in receipt_text(tmp_path / "a.json")


def test_collecting_tells_what_the_engine_waits_for(take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    session, heard = take.session(), []
    run = session.engine.run

    def waiting(job: Job, on_task: OnTask, on_notice: OnNotice) -> Iterator[torch.Tensor]:
        for latents in run(job, on_task):
            on_notice("Waiting.")
            yield latents

    monkeypatch.setattr(session.engine, "run", waiting)
    take.collect(heard.append)
    blocks = session.latents.blocks
    assert [p for p in heard if p.phase == "Waiting."] == [Progress("Waiting.", made, blocks) for made in range(blocks)]
    assert session.on_notice is unnoticed


def test_the_front_door_needs_a_prompt_that_it_can_encode() -> None:
    with pytest.raises(RequestError, match="not known") as refused:
        look_ahead(picture(), sound(), dataclasses.replace(REQUEST, prompt=None))
    assert "Give a prompt" in refused.value.nearest
