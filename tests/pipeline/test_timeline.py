"""A timeline changes prompt and portrait at its blocks, on every cut alike, and the receipt and the file tell it."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from cli.runs import generate, receipt, write_inputs, write_picture

from liveavatar.errors import ImageError, RequestError
from liveavatar.media.audio import AudioClip
from liveavatar.pipeline import LiveAvatarPipeline
from liveavatar.placement import Placement
from liveavatar.request import Request
from liveavatar.timed_changes import TimedChange, parse_timeline

SECONDS = 3.0
"""7 blocks."""
TIMELINE = "0: A calm person.\n1: A person laughs.\n2: A sad person.\n2: image: other.png\n"
Make = Callable[..., list[np.ndarray]]


@pytest.fixture(scope="module")
def sound() -> AudioClip:
    return AudioClip.from_array(np.random.default_rng(0).normal(0, 0.1, round(16_000 * SECONDS)).clip(-1, 1), 16_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timeline")
    write_picture(folder / "other.png", 64, 80)
    return folder


@pytest.fixture(scope="module")
def make(sound: AudioClip) -> Make:
    """The frames of each block, of a cut and a timeline."""
    image = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)

    @functools.cache
    def make(timeline: tuple[TimedChange, ...], stages: str = "1x1", **options: object) -> list[np.ndarray]:
        pipeline = LiveAvatarPipeline.from_pretrained("untrained", threads=1, stages=stages)
        request = Request("64x64", "A calm person.", steps=2, seed=5, timeline=timeline)
        request = dataclasses.replace(request, **options)  # type: ignore[arg-type]
        video = pipeline(image, sound, request=request)
        try:
            return [frames.numpy().copy() for frames in video.frames()]
        finally:
            video.close()
            pipeline.release()

    return make


def test_every_cut_makes_the_same_video(make: Make, folder: Path) -> None:
    timeline = parse_timeline(TIMELINE, folder)
    whole, plain = make(timeline), make(())
    differs = [not np.array_equal(one, other) for one, other in zip(whole, plain, strict=True)]
    assert differs == [False, False, True, True, True, True, True], "block 2 begins at 0.96 s"
    for stages in ("2x1", "1x3", "2x2"):
        assert all(np.array_equal(a, b) for a, b in zip(whole, make(timeline, stages), strict=True)), stages


def test_each_change_counts_from_its_own_block(make: Make, folder: Path) -> None:
    both, prompts = (make(parse_timeline(text, folder)) for text in (TIMELINE, TIMELINE.rpartition("2: image")[0]))
    differs = [not np.array_equal(one, other) for one, other in zip(both, prompts, strict=True)]
    assert differs == [False, False, False, False, True, True, True]


def test_a_portrait_may_change_after_the_sink_was_renewed_and_when_clips_are_short(make: Make, folder: Path) -> None:
    timeline = parse_timeline("1: image: other.png\n2.4: image: other.png", folder)
    one, other = (make(timeline, stages, clip_blocks=1) for stages in ("1x1", "2x2"))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_prompt_at_the_beginning_takes_the_place_of_the_other(make: Make) -> None:
    timeline = parse_timeline("0: A person laughs.")
    one, other = make(timeline), make((), prompt="A person laughs.")
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_receipt_and_file_tell_the_changes(tmp_path: Path) -> None:
    write_inputs(tmp_path, 2.0)
    write_picture(tmp_path / "other.png", 64, 64)
    (tmp_path / "t.txt").write_text("0: A calm person.\n1: laughing\n1: image: other.png\n9: late", encoding="utf-8")
    ran = generate(tmp_path, "--timeline", tmp_path / "t.txt", "--prompt", "A friendly host", model="untrained")
    assert ran.code == 0, ran.err
    assert "change  at 0.96 s (block 2), prompt: laughing" in ran.out + ran.err
    written = receipt(tmp_path)
    effective = written["effective"]
    assert effective["prompt"] == "A calm person."
    assert effective["prompt_changes"] == [[2, "laughing"]]
    assert effective["portrait_changes"] == [[2, str(tmp_path / "other.png")]]
    assert written["requested"]["timeline"][1] == {"seconds": 1.0, "prompt": "laughing", "image": None}
    assert "the prompt at 0 s of the timeline takes the place of the other one" in effective["notes"]
    assert any("from 9 s on" in note for note in effective["notes"])
    with av.open(str(tmp_path / "out.mp4")) as file:
        assert json.loads(file.metadata["comment"])["prompt_changes"] == [[2, "laughing"]]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("laughing", "Line 1 of the timeline"),
        ("1: a\n1.1: b", "fall on the same block"),
        ("1: image: nothing.png", "nothing.png"),
    ],
)
def test_a_wrong_timeline_is_refused_before_anything_loads(tmp_path: Path, line: str, what: str) -> None:
    write_inputs(tmp_path, 2.0)
    (tmp_path / "t.txt").write_text(line, encoding="utf-8")
    ran = generate(tmp_path, "--timeline", tmp_path / "t.txt", model="untrained")
    assert ran.code == 2
    assert what in ran.err
    assert not (tmp_path / "out.mp4").exists()


def test_no_output_may_replace_what_the_timeline_names(tmp_path: Path) -> None:
    write_inputs(tmp_path, 2.0)
    write_picture(tmp_path / "other.png", 64, 64)
    (tmp_path / "t.txt").write_text("1: image: other.png", encoding="utf-8")
    refused = generate(tmp_path, "--timeline", tmp_path / "t.txt", "--receipt", tmp_path / "t.txt", model="untrained")
    assert refused.code == 2 and "would replace" in refused.err
    refused = generate(tmp_path, "--timeline", tmp_path / "t.txt", "--receipt", tmp_path / "other.png")
    assert refused.code == 2


def test_prompts_that_came_encoded_are_not_encoded_again(sound: AudioClip) -> None:
    pipeline = LiveAvatarPipeline.from_pretrained("untrained", placement=Placement(("cpu",), threads=1))
    texts = ["A calm person.", "A person laughs."]
    contexts = dict(zip(texts, pipeline.encode_prompts(texts), strict=True))
    audio, image = pipeline.encode_audio(sound), np.full((64, 64, 3), 90, np.uint8)
    request = Request("64x64", texts[0], steps=1, timeline=parse_timeline(f"1: {texts[1]}"))
    pipeline.release()
    job = pipeline.prepare(request, image, audio, contexts[texts[0]], contexts=contexts)
    changes = job.session().job.conditioning.changes
    assert [(block, torch.equal(given, contexts[texts[1]])) for block, given in changes.prompts] == [(2, True)]
    job.close()
    with pytest.raises(RequestError, match="reads"):
        pipeline.prepare(request, image, audio, contexts[texts[0]], contexts={texts[1]: torch.zeros(3, 5)})


def test_a_portrait_that_is_none_is_refused(sound: AudioClip, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    pipeline = LiveAvatarPipeline.from_pretrained("untrained", threads=1)
    with pytest.raises(ImageError):
        pipeline(
            np.zeros((64, 64, 3), np.uint8),
            sound,
            request=Request("64x64", timeline=(TimedChange(1.0, image=tmp_path / "text.png"),)),
        )
