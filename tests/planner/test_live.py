"""Plans for live talk keep the pace of speech with the least latency, or say that they cannot and what could."""

from __future__ import annotations

import itertools
import json
import re

import pytest
import torch
from cli.runs import run
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.bench.tracked import Allocated
from liveavatar.config import BLOCK_FRAMES, WAN2_2_S2V_14B
from liveavatar.encoders.wav2vec2 import Wav2Vec2Config, Wav2Vec2Model
from liveavatar.planner import BLOCK_SECONDS, Hardware, Plan, PlanOptions, choose_live_plan, choose_plan, play_live
from liveavatar.planner.levels import FIDELITY_LEVELS, level_of
from liveavatar.planner.live import live_forecast
from liveavatar.planner.memory import PUBLISHED_AUX
from liveavatar.planner.search import plan_searches
from liveavatar.request import Request, ResolvedRequest, resolve, resolve_open
from liveavatar.task_graph import Denoise, Partition, StageSpeed, paced_order, simulate
from liveavatar.timed_changes import parse_timeline

BIG = WAN2_2_S2V_14B
TWO_PROMPTS = 2 * 40 * 2 * 512 * 5120 * 2
"""Keys and values of 512 tokens in 40 layers, in 16 bits."""
OFFER = re.compile(r"(--compile)?(?:--size (\d+x\d+))?(?:--steps (\d+))?(?:--gpus (\S+))? \((\d+\.\d) fps\)")


def talk(size: str = "704x384", steps: int = 4) -> ResolvedRequest:
    width, height = map(int, size.split("x"))
    return resolve_open(Request(size=size, steps=steps), (8 * width, 8 * height))


def plan(cards: str, size: str = "704x384", steps: int = 4, **options: object) -> Plan:
    chosen = PlanOptions(**options)  # type: ignore[arg-type]
    return choose_live_plan(talk(size, steps), BIG, Hardware.parse(cards), chosen, model="x")


@given(st.integers(1, 4), st.integers(1, 5), st.floats(0.02, 0.7), st.integers(1, 6))
def test_blocks_begin_when_they_are_known_and_no_stage_works_twice(groups: int, parts: int, step: float, clip: int):
    partition = Partition.even(groups, parts, 4, 20)
    speed = StageSpeed.even(partition, step)
    starts = list(
        paced_order(partition, 30, lambda task: speed.seconds(partition, task), clip_blocks=clip, period=BLOCK_SECONDS)
    )
    begun = {s.task.block: s.start for s in starts if isinstance(s.task, Denoise) and s.task.step == s.task.shard == 0}
    assert list(begun) == sorted(begun) == list(range(30))
    assert all(begun[b] >= begun[0] + b * BLOCK_SECONDS - 1e-9 for b in begun)
    for stage in range(partition.stages):
        mine = sorted((s.start, s.end) for s in starts if s.stage == stage)
        assert all(end <= start + 1e-9 for (_, end), (start, _) in itertools.pairwise(mine))


@given(st.integers(1, 4), st.integers(1, 5))
def test_a_pipeline_with_time_to_spare_takes_as_long_as_a_block_s_tasks(groups: int, parts: int):
    partition = Partition.even(groups, parts, 4, 20)
    step = 0.9 * BLOCK_SECONDS / 4
    assert simulate(partition, 40, StageSpeed.even(partition, step), period=BLOCK_SECONDS).latency == pytest.approx(
        4 * step, rel=1e-6
    )
    live = play_live(partition, StageSpeed.even(partition, step), 4)
    assert live.holds
    assert live.latency(0.16) == pytest.approx(BLOCK_SECONDS + 0.16 + 4 * step, rel=1e-6)


def test_what_is_too_slow_does_not_hold():
    partition = Partition.even(1, 2, 4, 40)
    live = play_live(partition, StageSpeed.even(partition, 0.3), 4)
    assert not live.holds
    assert live.fps == pytest.approx(BLOCK_FRAMES / 0.6, rel=0.01)


@pytest.mark.parametrize("cards", ["5x80", "3x80", "8x80", "4x96,2x80"])
def test_the_plan_has_the_least_latency_of_all_that_hold(cards: str):
    found = plan(cards)
    assert found.live is not None and found.live.holds and not found.live.nearest
    video, hardware = talk().shape, Hardware.parse(cards)
    level = next(i for i, level in enumerate(FIDELITY_LEVELS) if level.offloads_layers)
    assert level_of(tuple(stage.storage for stage in found.stages)) <= level, "nothing is rounded where that holds"
    (search, *_) = plan_searches(video, BIG, hardware, PlanOptions())
    played = [live_forecast(candidate, video, BIG) for candidate in search.candidates(level, BLOCK_SECONDS)]
    assert found.live.pipeline_seconds == min(one.pipeline_seconds for one in played if one.holds)
    assert all(found.total_by_device[name] <= room for name, room in found.usable)


@pytest.mark.parametrize("cards", ["1x80", "2x80", "1x16"])
def test_a_plan_that_cannot_hold_says_so_and_what_it_offers_holds(cards: str):
    found = plan(cards)
    assert found.live is not None and not found.live.holds
    assert found.live.fps < 25
    for offer in found.live.nearest:
        compiled, size, steps, gpus, fps = OFFER.fullmatch(offer).groups()  # type: ignore[union-attr]
        other = plan(gpus or cards, size or "704x384", int(steps or 4), compiled=bool(compiled))
        assert other.live is not None and other.live.holds
        assert other.live.fps == pytest.approx(float(fps), abs=0.06)


def test_a_smaller_video_is_taken_where_it_is_allowed_and_keeps_the_pace():
    found = plan("4x24", allow_smaller=True)
    assert found.live is not None and found.live.holds
    assert found.size[0] * found.size[1] < 704 * 384


def test_fp8_is_taken_where_the_unrounded_network_is_too_slow():
    weights = {size: plan("2x24", size).stages[0].storage.weights for size in ("256x256", "320x256")}
    assert weights == {"256x256": "plain", "320x256": "fp8"}


def test_what_a_talk_holds_besides_is_counted():
    live = plan("5x80")
    prompts = sum(stage.text - len(stage.layers) * 2 * 6 * BIG.dim * 4 for stage in live.stages)
    assert len(live.stages) == 4 and prompts == 4 * TWO_PROMPTS, "each stage modulates a step and the prefill"
    assert live.terms_by_device[live.vae_device]["audio encoder"] > 2 * PUBLISHED_AUX.audio


@pytest.mark.parametrize(("timeline", "prompts"), [("", TWO_PROMPTS / 2), ("5: She laughs.", TWO_PROMPTS)])
def test_a_video_whose_prompt_changes_holds_two(timeline: str, prompts: float):
    request = Request(timeline=parse_timeline(timeline))
    found = choose_plan(resolve(request, (5632, 3072), 160_000, 16_000), BIG, Hardware.parse("1x141"), model="x")
    (stage,) = found.stages
    assert stage.text - 40 * 5 * 6 * BIG.dim * 4 == prompts
    assert all(terms["audio encoder"] == 0 for terms in found.terms_by_device.values())


@pytest.mark.parametrize("live", [True, False])
def test_the_audio_encoder_fits_into_what_it_is_given(live: bool):
    config = Wav2Vec2Config(1024, 4096, 24, 16, conv_bias=True, feat_extract_norm="layer", do_stable_layer_norm=True)
    with torch.device("meta"):
        model = Wav2Vec2Model(config).to(torch.bfloat16)
    samples = torch.empty(1, 16_000 * (6 if live else 40), dtype=torch.bfloat16, device="meta")
    with torch.inference_mode(), Allocated(model.parameters()) as seen:
        model(samples)
    held = sum(p.nbytes for p in model.parameters()) + seen.most
    given = PUBLISHED_AUX.audio_encoder_bytes(2, live)
    assert 0.9 * given < held <= given * 1.001


def test_the_command_tells_people_and_machines():
    words = ("plan", "--live", "--model", "wan2.2-s2v-14b", "--size", "704x384")
    holds = run(*words, "--gpus", "5x80")
    assert holds.code == 0
    assert "live    25 fps hold" in holds.out and "from a sample to its picture" in holds.out
    slow = run(*words, "--gpus", "1x80")
    assert "25 fps do not hold" in slow.out and "nearest --" in slow.out
    told = json.loads(run(*words, "--gpus", "5x80", "--json").out)["live"]
    assert told["holds"] and told["nearest"] == []
    parts = told["block_seconds"] + told["lookahead_seconds"] + told["pipeline_seconds"]
    assert told["latency_seconds"] == pytest.approx(parts)
    assert json.loads(run(*words, "--gpus", "1x80", "--json").out)["live"]["holds"] is False


def test_what_is_offered_holds_as_it_is_offered():
    words = ("plan", "--live", "--model", "wan2.2-s2v-14b", "--json")
    refused = json.loads(run(*words, "--size", "704x384", "--gpus", "1x80").out)["live"]
    offers = [offer.partition(" (")[0].split() for offer in refused["nearest"]]
    assert ["--gpus", "2x80"] in offers
    for name, value in offers:
        asked = {"--size": "704x384", "--gpus": "1x80"} | {name: value}
        found = json.loads(run(*words, *(word for pair in asked.items() for word in pair)).out)["live"]
        assert found["holds"], (name, value)


def test_each_speaker_costs_the_audio_encoder_its_time():
    words = ("plan", "--live", "--model", "wan2.2-s2v-14b", "--size", "704x384", "--gpus", "5x80", "--json")
    alone, *several = (json.loads(run(*words, "--speakers", count).out)["live"] for count in "128")
    pipeline = [live["pipeline_seconds"] for live in (alone, *several)]
    assert pipeline[1] - pipeline[0] > 0.01
    assert pipeline[2] - pipeline[0] > 5 * (pipeline[1] - pipeline[0])


def test_where_nothing_is_known_the_command_says_so_or_takes_given_seconds():
    words = ("plan", "--live", "--stages", "1x4")
    assert "measured in the talk" in run(*words).out
    assert json.loads(run(*words, "--json").out)["live"] is None
    told = json.loads(run(*words, "--step-seconds", "0.1", "--json").out)["live"]
    assert told["pipeline_seconds"] == pytest.approx(0.4) and told["holds"]


@pytest.mark.parametrize("option", [("--seconds", "3"), ("--audio", "a.wav"), ("--timeline", "a.txt")])
def test_options_of_rendered_videos_are_refused(option: tuple[str, str], tmp_path):
    (tmp_path / "a.txt").write_text("1: a")
    name, value = option
    refused = run("plan", "--live", name, tmp_path / value if name == "--timeline" else value)
    assert refused.code == 2 and "not for live talk" in refused.err
