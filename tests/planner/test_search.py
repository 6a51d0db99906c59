"""Plans that are chosen fit, stand as high as they can, and refusals offer what really fits."""

import dataclasses
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.config import WAN2_2_S2V_14B
from liveavatar.errors import PlanError
from liveavatar.planner import (
    FIDELITY_LEVELS,
    Hardware,
    MeasuredSpeed,
    Plan,
    PlanOptions,
    apply_plan_size,
    choose_plan,
    level_of,
)
from liveavatar.planner.choose import best_candidate, candidate_plan
from liveavatar.planner.hardware import CUDA_CONTEXT_BYTES, GIB
from liveavatar.planner.search import PlanSearch, plan_searches
from liveavatar.planner.search import highest_level as highest_of
from liveavatar.request import Request, ResolvedRequest, image_size_for, resolve
from liveavatar.vae.tile_grid import tilings

CARDS = (16, 24, 32, 48, 80, 96, 141)
SIZES = ("384x256", "640x384", "512x512", "704x384", "720x400", "832x480", "1024x704", "1280x720")
mixes = st.lists(st.sampled_from(CARDS), min_size=1, max_size=8)
sizes = st.sampled_from(SIZES)
preferences = st.sampled_from(("quality", "speed"))


def effective(size: str = "704x384", steps: int = 4) -> ResolvedRequest:
    return resolve(Request(size=size, steps=steps), image_size_for(size), 160_000, 16_000)


def hardware(cards: list[int], host: int | None = None) -> Hardware:
    return Hardware.parse("+".join(map(str, cards)), host and host * GIB)


def plan(cards: Hardware | str, asked: ResolvedRequest | None = None, **wishes) -> Plan:
    cards = Hardware.parse(cards) if isinstance(cards, str) else cards
    return choose_plan(asked or effective(), WAN2_2_S2V_14B, cards, PlanOptions(**wishes), model="wan2.2-s2v-14b")


def rung(found: Plan) -> int:
    return level_of(tuple(stage.storage for stage in found.stages))


def check(found: Plan, cards: Hardware, steps: int) -> None:
    """All layers and steps are owned once, and no memory is exceeded."""
    usable = {card.name: card.usable for card in cards.devices}
    assert all(total <= usable[name] for name, total in found.total_by_device.items())
    assert sum(found.host_bytes_by_machine.values()) <= cards.usable_host
    assert found.encoders <= usable[found.vae_device]
    owned = [(step, layer) for stage in found.stages for step in stage.steps for layer in stage.layers]
    assert sorted(owned) == [(step, layer) for step in range(steps) for layer in range(40)]
    assert len({stage.device for stage in found.stages}) == len(found.stages) == found.partition.stages
    assert found.forecast and found.forecast.fps > 0 and found.forecast.first_frames_seconds > 0


@given(mixes, sizes, st.sampled_from((3, 4, 5)), preferences, st.sampled_from((None, 16, 64, 512)))
def test_any_cards_give_a_plan_that_fits_or_a_reason(cards, size, steps, prefer, host):
    asked, given = effective(size, steps), hardware(cards, host)
    try:
        found = plan(given, asked, prefer=prefer)
    except PlanError as refused:
        assert "does not fit" in refused.what and "GB" in refused.what
    else:
        check(found, given, steps)


def test_videos_of_one_shape_are_searched_for_once():
    first = plan("2x24", allow_smaller=True)
    before = best_candidate.cache_info()
    longer = dataclasses.replace(effective(), seed=7, frames=4800, blocks=400)
    assert plan("2x24", longer, allow_smaller=True).stages == first.stages
    after = best_candidate.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)
    plan("2x24", effective(steps=3), allow_smaller=True)
    assert best_candidate.cache_info().misses == after.misses + 1


@given(mixes, sizes, st.integers(0, len(FIDELITY_LEVELS) - 1))
def test_the_host_bytes_that_are_searched_with_are_those_of_the_plan(cards, size, rung):
    asked, given, options = effective(size), hardware(cards), PlanOptions()
    for candidate in PlanSearch(asked.shape, WAN2_2_S2V_14B, given, options).candidates(rung):
        pinned = candidate_plan(candidate, asked, WAN2_2_S2V_14B, given, options, model="x").host_bytes_by_machine
        assert sum(shard.host for shard in candidate.shards) == sum(pinned.values())


@given(mixes, sizes, st.data())
def test_more_memory_never_gives_a_lower_rung(cards, size, data):
    host, place = 256, data.draw(st.integers(0, len(cards) - 1))
    larger = list(cards)
    larger[place] = data.draw(st.sampled_from([c for c in CARDS if c >= cards[place]]))
    rungs = [highest(hardware(each, host), size) for each in (cards, larger, [*cards, cards[place]])]
    assert rungs[1] <= rungs[0] and rungs[2] <= rungs[0]
    assert highest(hardware(cards, 2 * host), size) <= rungs[0]


def highest(cards: Hardware, size: str) -> int:
    found = highest_of(plan_searches(effective(size).shape, WAN2_2_S2V_14B, cards, PlanOptions()))
    return len(FIDELITY_LEVELS) if found is None else found[0]


@given(mixes, sizes)
def test_quality_stands_on_the_highest_rung_and_speed_is_not_slower(cards, size):
    given = hardware(cards)
    try:
        best = plan(given, effective(size))
    except PlanError:
        return
    # Lower on the ladder only: tiles, or a split that does without what its rung allows, may stand above.
    assert rung(best) <= highest(given, size)
    fast = plan(given, effective(size), prefer="speed")
    assert any(stage.storage.weights == "fp8" for stage in fast.stages)


@pytest.mark.parametrize(
    ("cards", "size", "host"),
    [("1x24", "1024x704", 128), ("2x16", "1280x720", 128), ("2x24", "1600x896", 256)],
)
def test_tiles_make_large_pictures_fit(cards, size, host):
    """With fewer tiles nothing fits, or what rounds more."""
    given, asked = Hardware.parse(cards, host * GIB), effective(size)
    found = plan(given, asked)
    check(found, given, 4)
    assert found.vae_tiles > (1, 1) and found.vae_host > 0
    fewer = [tiles for tiles in tilings(*asked.latent_size) if tiles < found.vae_tiles]
    for tiles in fewer:
        try:
            assert rung(plan(given, asked, vae_tiles=tiles)) > rung(found)
        except PlanError as refused:
            assert "does not fit" in refused.what


def test_nothing_is_cut_into_tiles_where_moving_is_enough():
    found = plan("1x24")
    assert found.vae_tiles == (1, 1) and found.vae_host == 0
    told = plan("1x24", vae_tiles=(2, 2))
    assert told.vae_tiles == (2, 2) and told.vae < found.vae / 2 and told.vae_host > 0
    assert sum(told.host_bytes_by_machine.values()) >= told.vae_host


def test_tiles_that_a_picture_cannot_have_are_refused():
    with pytest.raises(PlanError, match="cannot be cut into 9x9") as refused:
        plan("1x80", vae_tiles=(9, 9))
    assert "5x8" in refused.value.nearest


@pytest.mark.parametrize(
    ("cards", "words"),
    [
        ("1x24", "fp8 weights, KV cache offloaded"),
        ("4x24", "unrounded"),
        ("1x48", "unrounded, text KV weights offloaded, KV cache offloaded"),
        ("1x141", "unrounded"),
    ],
)
def test_known_cards_stand_where_they_should(cards, words):
    assert FIDELITY_LEVELS[rung(plan(cards))].name.startswith(words)


def test_two_hundred_gigabytes_of_cards_are_faster_than_one_card():
    one, five = (plan(cards).forecast for cards in ("1x80", "5x80"))
    assert one and five and five.fps > 3 * one.fps
    assert five.source == "assumed"


def test_a_4090_beside_32_gigabytes_of_host_memory_has_a_plan_within_both():
    cards = Hardware.parse("1x24", 32 * GIB)
    found = plan(cards)
    check(found, cards, 4)
    storage = found.stages[0].storage
    assert (storage.weights, storage.kv_dtype, storage.kv_offload) == ("fp8", "fp8", True)
    assert sum(found.host_bytes_by_machine.values()) < 0.8 * 32 * GIB
    with pytest.raises(PlanError, match=r"has to lie on the host, where 13\.7 GB may"):
        plan(Hardware.parse("1x24", 16 * GIB))


@pytest.mark.parametrize(("cards", "host", "size"), [("1x24", 24, "704x384"), ("1x16", 32, "704x384")])
@pytest.mark.parametrize("prefer", ["quality", "speed"])
def test_int4_is_kept_where_nothing_else_fits_and_told(cards, host, size, prefer):
    given, asked = Hardware.parse(cards, host * GIB), effective(size)
    found = plan(given, asked, prefer=prefer)
    check(found, given, 4)
    assert {stage.storage.kv_dtype for stage in found.stages} == {"int4"}
    assert any("int4" in note and "miniature alone" in note for note in found.notes)
    twice = dataclasses.replace(given, host=2 * given.host)
    assert {stage.storage.kv_dtype for stage in plan(twice, asked, prefer=prefer).stages} <= {"plain", "fp8"}


def test_faster_cards_do_not_choose_int4_by_themselves():
    for cards in ("1x24", "1x32", "2x24", "1x80"):
        for prefer in ("quality", "speed"):
            found = plan(cards, prefer=prefer)
            assert not any(stage.storage.kv_dtype == "int4" or "int4" in str(found.notes) for stage in found.stages)


def test_unequal_cards_get_unequal_shares():
    found = plan("2x24,1x48")
    shares = {stage.device: len(stage.layers) for stage in found.stages}
    assert shares["cuda:2"] > max(shares["cuda:0"], shares["cuda:1"]) > 0


def test_cards_that_help_nothing_are_left_out_and_named():
    found = plan("1x141,1x2")
    assert {stage.device for stage in found.stages} == {"cuda:0"}
    assert any("cuda:1 (2 GiB) left out" in note for note in found.notes)


def test_a_cap_counts_the_context():
    cards = Hardware.parse("1x80").with_cap(20_000_000_000)
    assert cards.devices[0].usable == 20_000_000_000 - CUDA_CONTEXT_BYTES
    assert plan(cards).total_by_device["cuda:0"] <= cards.devices[0].usable


@pytest.mark.parametrize("cards", ["1x16", "2x16", "1x24", "2x24,1x48", "4x24"])
def test_processes_that_share_a_card_have_room_for_both_contexts(cards):
    found, hardware = plan(cards, processes=True), Hardware.parse(cards)
    check(found, hardware, 4)
    alone = found.vae_device not in {stage.device for stage in found.stages}
    assert found.processes
    assert found.terms_by_device[found.vae_device]["contexts"] == (0 if alone else CUDA_CONTEXT_BYTES)


def test_measured_cards_are_believed():
    card = dataclasses.replace(
        Hardware.parse("1x141").devices[0],
        measured=MeasuredSpeed(400.0, 800.0, (("sdpa", 300.0),), 55.0, 2000.0),
    )
    slow = plan(Hardware((card,), 512 * GIB, "measured")).forecast
    assumed = plan("1x141").forecast
    assert slow and assumed and slow.source == "measured" and slow.fps < assumed.fps


def test_speed_without_fp8_units_may_stay_unrounded():
    cards = Hardware.parse("1x141")
    old = dataclasses.replace(cards, devices=(dataclasses.replace(cards.devices[0], supports_fp8=False),))
    assert FIDELITY_LEVELS[rung(plan(old, prefer="speed"))].storage.weights == "plain"
    assert FIDELITY_LEVELS[rung(plan(cards, prefer="speed"))].storage.weights == "fp8"


def test_a_smaller_video_is_planned_only_where_that_is_allowed():
    asked = effective("1280x720")
    with pytest.raises(PlanError):
        plan("1x16", asked)
    found = plan("1x16", asked, allow_smaller=True)
    made = apply_plan_size(asked, found)
    assert (made.width, made.height) == found.size != (asked.width, asked.height)
    assert made.width * made.height < asked.width * asked.height and "does not fit" in made.notes[-1]
    assert apply_plan_size(asked, plan("4x80", asked)) == asked


@pytest.mark.parametrize(
    ("cards", "size", "host", "cap"),
    [
        ("1x16", "1280x720", None, None),
        ("1x32", "1600x896", None, None),
        ("1x24", "704x384", 16, None),
        ("2x16", "1024x704", 16, None),
        ("1x24", "704x384", None, 4),
        ("1x80", "1280x720", None, 16),
    ],
)
def test_what_a_refusal_offers_fits_as_it_is_typed(cards, size, host, cap):
    with pytest.raises(PlanError) as refused:
        plan(Hardware.parse(cards, host and host * GIB).with_cap(cap and cap * 10**9), effective(size))
    option = r"--size (\S+) --steps (\d+) --gpus (\S+)(?: --host-ram (\d+))?(?: --vram-cap (\d+))? "
    offers = re.findall(option, refused.value.nearest)
    assert 2 <= len(offers) <= 3, refused.value.nearest
    for wanted, steps, gpus, ram, most in offers:
        given = Hardware.parse(gpus, int(ram) * GIB if ram else None).with_cap(int(most) * 10**9 if most else None)
        check(plan(given, effective(wanted, int(steps))), given, int(steps))


def test_a_refusal_for_cards_that_are_here_names_only_others():
    here = dataclasses.replace(Hardware.parse("1x24"), source="measured")
    with pytest.raises(PlanError) as refused:
        plan(here, effective("1280x720"))
    same, *others = refused.value.nearest.split("; ")
    assert "--size" in same and "--gpus" not in same
    assert others and all("--gpus" in offer for offer in others)


def test_a_card_too_small_for_the_encoders_is_told_so():
    with pytest.raises(PlanError, match=r"encoder takes 11\.4 GB"):
        plan("4x8")


@pytest.mark.parametrize("text", ["", "x", "4x", "0x24", "4x0", "24GB", "99x24", "1x24,,1x24"])
def test_cards_that_are_not_understood_are_refused(text):
    with pytest.raises(PlanError) as refused:
        Hardware.parse(text)
    assert refused.value.nearest


@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from(CARDS)), min_size=1, max_size=4))
def test_cards_are_read_as_they_are_written(groups):
    text = ",".join(f"{count}x{size}" for count, size in groups)
    cards = Hardware.parse(text).devices
    assert [card.total // GIB for card in cards] == [size for count, size in groups for _ in range(count)]
    assert [card.name for card in cards] == [f"cuda:{i}" for i in range(len(cards))]


@pytest.mark.parametrize("wrong", [{"prefer": "luck"}, {"dtype": "int3"}, {"threads": 0}])
def test_wishes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(PlanError) as refused:
        plan("1x80", **wrong)
    assert refused.value.nearest


def test_the_cards_of_this_machine_are_read_or_missed():
    if torch.cuda.is_available():
        assert all(0 < card.usable < card.total for card in Hardware.detect().devices)
    else:
        with pytest.raises(PlanError, match="no GPU"):
            Hardware.detect()
