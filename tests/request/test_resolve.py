"""A request becomes effective values that cover the sound, or a refusal that names what works."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.config import BLOCK_FRAMES, FPS
from liveavatar.errors import AudioError, RequestError
from liveavatar.receipt import json_ready
from liveavatar.request import MIN_SOUND_SECONDS, Request, ResolvedRequest, clip_blocks_of, prompt_to_encode, resolve

RATES = st.sampled_from([8000, 11025, 16000, 22050, 24000, 44100, 48000, 96000])


def of(request: Request, seconds: float = 4.0, rate: int = 16000) -> ResolvedRequest:
    return resolve(request, (1280, 720), round(seconds * rate), rate)


@given(RATES, st.floats(MIN_SOUND_SECONDS + 0.001, 20_000))
def test_frames_cover_the_sound_and_end_with_it(rate: int, seconds: float) -> None:
    effective = of(Request(), seconds, rate)
    assert 0 <= effective.frames / FPS - effective.seconds < 1 / FPS + 1e-9
    made = effective.blocks * BLOCK_FRAMES - effective.drop
    assert 0 <= made - effective.frames < BLOCK_FRAMES


@given(RATES, st.floats(0.1, 600))
def test_dropped_frames_are_made_up_for(rate: int, seconds: float) -> None:
    effective = of(Request(lead="original"), seconds, rate)
    assert effective.drop == 3
    assert effective.blocks * BLOCK_FRAMES - effective.drop >= effective.frames


@given(st.floats(0.03, 100), st.floats(0.03, 100))
def test_seconds_limit_and_never_lengthen(limit: float, sound: float) -> None:
    effective = of(Request(seconds=limit), sound)
    assert effective.seconds == pytest.approx(min(limit, sound), abs=1e-3)


def test_what_differs_from_the_request_is_said() -> None:
    notes = " ".join(of(Request(size="720x400", steps=3, seconds=9, lead="original"), 4.0).notes)
    for words in ("704x384", "3 steps", "ends after 4.00 s", "120 ms"):
        assert words in notes


def test_exact_requests_need_no_words() -> None:
    assert of(Request(), 4.8).notes == ()


def test_a_drawn_seed_is_told_and_differs() -> None:
    first, second = of(Request(seed=-1)), of(Request(seed=-1))
    assert first.seed != second.seed
    assert str(first.seed) in " ".join(first.notes)


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.024])
def test_hardly_any_sound_is_refused(seconds: float) -> None:
    with pytest.raises(AudioError, match=r"0\.025 s"):
        of(Request(), seconds)


@pytest.mark.parametrize(
    "wrong, nearest",
    [
        ({"steps": 0}, "nearest is 1"),
        ({"steps": -4}, "nearest is 1"),
        ({"steps": 101}, "nearest is 100"),
        ({"steps": 2.5}, "nearest is 4"),
        ({"seed": -2}, "-1 to draw one"),
        ({"seed": 2**64}, "-1 to draw one"),
        ({"seconds": 0}, "at least 0.025"),
        ({"seconds": -3.0}, "at least 0.025"),
        ({"seconds": float("nan")}, "at least 0.025"),
        ({"seconds": float("inf")}, "at least 0.025"),
        ({"fit": "stretch"}, "cover or pad"),
        ({"tail": "loop"}, "silence or zeros"),
        ({"lead": "late"}, "sync or original"),
        ({"clip_blocks": 0}, "nearest is 1"),
        ({"clip_blocks": -7}, "nearest is 1"),
        ({"clip_blocks": 21}, "nearest is 20"),
        ({"clip_blocks": 3.5}, "nearest is 4"),
    ],
)
def test_impossible_requests_name_the_nearest(wrong: dict, nearest: str) -> None:
    with pytest.raises(RequestError, match=nearest):
        of(Request(**wrong))


@pytest.mark.parametrize(("frames", "blocks"), [(12, 1), (36, 3), (48, 4), (240, 20)])
def test_a_clip_is_a_number_of_whole_blocks(frames: int, blocks: int) -> None:
    assert clip_blocks_of(frames) == blocks


@pytest.mark.parametrize(
    ("frames", "nearest"), [(-5, 12), (0, 12), (11, 12), (32, 36), (50, 48), (80, 84), (241, 240), (10**400, 240)]
)
def test_other_clips_are_refused_with_the_nearest(frames: int, nearest: int) -> None:
    with pytest.raises(RequestError, match=f"nearest is {nearest} frames"):
        clip_blocks_of(frames)


def test_the_length_of_a_clip_is_taken_over_and_told_where_it_is_unusual() -> None:
    usual, short = of(Request()), of(Request(clip_blocks=3))
    assert usual.clip_blocks == 4 and short.clip_blocks == 3
    assert (usual.blocks, usual.clips) == (9, 3) and (short.blocks, short.clips) == (9, 3)
    assert of(Request(clip_blocks=1)).clips == 9
    assert "clips" not in " ".join(usual.notes) and "clips of 36 frames" in " ".join(short.notes)


def test_what_was_written_before_clips_had_a_length_means_four_blocks() -> None:
    effective = of(Request())
    later = ("clip_blocks", "prompt_changes", "portrait_changes")
    written = {name: value for name, value in json_ready(effective).items() if name not in later}
    assert ResolvedRequest(**{**written, "notes": tuple(written["notes"])}) == effective


def test_a_prompt_whose_text_is_not_known_is_told_and_cannot_be_encoded() -> None:
    unknown = of(Request(prompt=None), 4.8)
    assert unknown.prompt is None
    assert unknown.notes == ("the prompt came already encoded; its text is not known",)
    assert prompt_to_encode("A man sings.") == "A man sings." and prompt_to_encode("") == ""
    with pytest.raises(RequestError, match="Give a prompt"):
        prompt_to_encode(unknown.prompt)


WRONG = {
    "steps": ["4", 1.5, None, True, [4], 10**400],
    "seed": ["7", 7.5, None, True, 10**5000],
    "seconds": ["3", b"3", [3], True, float("nan"), float("inf"), 1e308, 10**400, -1, 1e-320],
    "prompt": [3, b"text", ["a"], float("nan")],
    "size": [None, 704, b"x", ["704", "384"], "9" * 5000],
    "clip_blocks": ["4", 4.0, None, True],
    "sink_distance": [None, "seeded", 4],
    "fit": [None, 3, ["pad"]],
}


@pytest.mark.parametrize("field", WRONG)
def test_values_of_the_wrong_kind_are_refused_in_a_sentence(field):
    for value in WRONG[field]:
        with pytest.raises(RequestError) as refused:
            of(Request(**{field: value}))
        assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("picture", "size", "told"),
    [
        ((20_000, 200), "128x128", "96% of the picture's width is cut off"),
        ((1080, 1920), "128x128", "44% of the picture's height is cut off"),
        ((1920, 1080), "704x384", None),
        ((512, 512), "128x128", None),
    ],
)
def test_what_is_cut_off_a_picture_is_told(picture: tuple[int, int], size: str, told: str | None) -> None:
    notes = " ".join(resolve(Request(size=size), picture, 16_000, 16_000).notes)
    assert told in notes if told else "cut off" not in notes
    assert "cut off" not in " ".join(resolve(Request(size=size, fit="pad"), picture, 16_000, 16_000).notes)
