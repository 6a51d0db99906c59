"""`--save-state` and `--continue` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.runs import Ran, generate, receipt, write_inputs, write_voice

from liveavatar.video_state import VideoState


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A portrait, two voices, and a video of two blocks with its state."""
    folder = write_inputs(tmp_path_factory.mktemp("inputs"), 0.6)
    write_voice(folder / "next.wav", 0.3)
    made = generate(folder, "--steps", 2, "--seed", 8, out=folder / "a.mp4", **{"save-state": folder / "a.state"})
    assert made.code == 0 and "state   " in made.out and "its state, from which it can be continued" in made.out
    return folder


def go_on(folder: Path, *arguments: object, **options: object) -> Ran:
    given = {"image": None, "size": None, "audio": folder / "next.wav", "continue": folder / "a.state"}
    return generate(folder, *arguments, **given | options)


def test_a_video_of_its_own_begins_where_the_other_ended(inputs):
    assert receipt(inputs, "a.json")["probed"]["frames"] == 24
    made = go_on(inputs, **{"save-state": inputs / "b.state"})
    assert made.code == 0, made.err
    assert "goes on from a.state, after 0.96 s (2 blocks)" in made.out
    effective = receipt(inputs)["effective"]
    assert (effective["first_block"], effective["seed"], effective["steps"], effective["blocks"]) == (2, 8, 2, 1)
    assert receipt(inputs)["probed"]["frames"] == 12
    assert VideoState(inputs / "b.state").info.block == 3


def test_an_mp4_is_continued_approximately(inputs):
    made = go_on(inputs, "--steps", 1, **{"continue": inputs / "a.mp4"})
    assert made.code == 0 and "approximately" in made.out, made.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": "128x128", "image": "portrait.png"}, ("64x64", "128x128")),
        ({"steps": 3}, ("2 steps, not 3",)),
        ({"model": "untrained"}, ("another network",)),
        ({"continue": "voice.wav"}, ("voice.wav",)),
        ({"continue": "missing"}, ("missing",)),
        ({"continue": "missing.mp4"}, ("missing.mp4",)),
        ({"save-state": "voice.wav"}, ("voice.wav", "no state")),
        ({"lead": "original"}, ("lead",)),
        ({"out": "a.state"}, ("a.state",)),
    ],
    ids=str,
)
def test_what_cannot_be_continued_is_refused_before_anything_is_made(inputs, options, words, monkeypatch):
    monkeypatch.chdir(inputs)
    (inputs / "out.mp4").unlink(missing_ok=True)
    refused = go_on(inputs, **options)
    assert refused.code == 2 and all(word in refused.err for word in words), refused.err
    assert not (inputs / "out.mp4").exists()
