"""Several speakers on the command line: named one by one, told before, and refused where something is missing."""

import json

import numpy as np
import pytest
from cli.runs import generate, receipt, run, write_inputs, write_voice
from PIL import Image

from liveavatar.cli.speakers import parse_speaker


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(write_inputs(tmp_path))
    write_voice(tmp_path / "other.wav", 0.6)
    for name, columns in (("left.png", slice(0, 40)), ("right.png", slice(56, 96))):
        mask = np.zeros((96, 96), np.uint8)
        mask[24:, columns] = 255
        Image.fromarray(mask).save(tmp_path / name)
    Image.fromarray(np.zeros((96, 96), np.uint8)).save(tmp_path / "black.png")
    return tmp_path


def spoken(files, *speakers, **options):
    named = [x for speaker in speakers for x in ("--speaker", speaker)]
    return generate(files, *named, **{"audio": None, "model": "untrained", "steps": 1, **options})


def test_two_speakers_are_told_and_made(files):
    ran = spoken(files, "voice.wav:left.png", "other.wav:right.png")
    assert ran.code == 0, ran.err
    assert "2 speakers" in ran.out and "speaker 2: other.wav, 0.60 s, at right.png (3" in ran.out
    assert "speaker 2 (other.wav) says nothing from 0.60 s on" in ran.out
    assert [s["audio"] for s in receipt(files)["speakers"]] == ["voice.wav", "other.wav"]
    assert spoken(files, "voice.wav:left", "other.wav:right").code == 0
    assert [s["mask"] for s in receipt(files)["speakers"]] == ["the left half", "the right half"]
    one = spoken(files, "voice.wav")
    assert one.code == 0 and receipt(files)["speakers"] == []
    alone = receipt(files)["frames_sha256"]
    ran = spoken(files, "voice.wav:left.png")
    assert ran.code == 0 and "at left.png: the rest of the picture hears silence" in ran.out
    assert generate(files, model="untrained", steps=1).code == 0 and receipt(files)["frames_sha256"] == alone


@pytest.mark.parametrize(
    ("speakers", "words"),
    [
        (("voice.wav:left.png", "other.wav"), ("Speaker 2 (other.wav) has no mask",)),
        (("voice.wav:",), ("--speaker 'voice.wav:' names no mask",)),
        ((":left.png", "other.wav:right.png"), ("--speaker ':left.png' names no sound",)),
        (("voice.wav:left.png", "other.wav:no:mask.png"), ("The mask of speaker 2 (other.wav)", "at no:mask.png")),
        (("voice.wav:left.png", "other.wav:black.png"), ("speaker 2 (other.wav) is empty",)),
        (("voice.wav:left.png", "other.wav:left.png"), ("speaker 1 (voice.wav) and speaker 2 (other.wav)", "100%")),
        (("voice.wav:left.png", "gone.wav:right.png"), ("Speaker 2 (gone.wav): There is no sound at gone.wav",)),
        (("voice.wav:left.png", "other.wav:voice.wav"), ("The mask of speaker 2 (other.wav): ",)),
    ],
)
def test_refusals_before_anything_is_loaded(files, speakers, words):
    before = {p.name for p in files.iterdir()}
    ran = spoken(files, *speakers)
    assert ran.code == 2 and all(word in ran.err for word in words), ran.err
    assert {p.name for p in files.iterdir()} == before


def test_a_voice_or_speakers_and_not_with_a_plus(files):
    ran = spoken(files, "voice.wav:left.png", audio="voice.wav")
    assert ran.code == 2 and "both given" in ran.err
    ran = generate(files, audio="voice.wav+other.wav")
    assert ran.code == 2 and "no sound at voice.wav+other.wav" in ran.err and "--speaker a.wav:left.png" in ran.err
    write_voice(files / "one+two.wav", 0.5)
    assert generate(files, audio="one+two.wav", model="untrained", steps=1).code == 0


def test_plans_count_them(files):
    def plan(*more):
        return json.loads(run("plan", "--model", "wan2.2-s2v-14b", "--gpus", "1x80", "--json", *more).out)

    one, four = plan(), plan("--speakers", 4)
    assert four["effective"]["speaker_count"] == 4
    assert four["plan"]["forecast"]["seconds_per_block"] > one["plan"]["forecast"]["seconds_per_block"]
    assert "4 speakers" in run("plan", "--speakers", 4).out
    ran = run("plan", "--speakers", 9)
    assert ran.code == 2 and "Use 1 to 8" in ran.err


@pytest.mark.parametrize(
    ("text", "audio", "mask"),
    [
        ("a.wav:b.png", "a.wav", "b.png"),
        ("a.wav", "a.wav", None),
        ("a.wav:", "a.wav:", None),
        (r"C:\a.wav:D:\b.png", r"C:\a.wav", r"D:\b.png"),
        (r"C:\a.wav", r"C:\a.wav", None),
        (r"C:/a.wav:b.png", r"C:/a.wav", "b.png"),
        ("at 12:30.wav:b.png", "at 12:30.wav", "b.png"),
        ("/x/a.wav:/y/b.png", "/x/a.wav", "/y/b.png"),
    ],
)
def test_how_speakers_are_written(text, audio, mask):
    speaker = parse_speaker(text)
    assert (speaker.audio, speaker.mask) == (audio, mask)


def test_names_with_colons_are_found(files):
    write_voice(files / "a:b.wav", 0.5)
    (files / "left.png").rename(files / "le:ft.png")
    assert parse_speaker("a:b.wav").mask is None
    assert (parse_speaker("a:b.wav:le:ft.png").audio, parse_speaker("voice.wav:le:ft.png").mask) == (
        "a:b.wav",
        "le:ft.png",
    )
