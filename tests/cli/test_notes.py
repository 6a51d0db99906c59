"""What was skipped, filled, chosen or cut of the inputs stands in the plan, on the terminal and in the receipt."""

import json
from pathlib import Path

import numpy as np
import pytest
from cli.runs import RATE, generate, receipt, run, write_inputs
from media.clips import float_wav, tones, write

from liveavatar.errors import LiveAvatarError
from liveavatar.media.audio import AudioClip
from liveavatar.pipeline import LiveAvatarPipeline

LONG_PROMPT = "A tall person in a blue coat stands in the rain and talks to the camera. " * 4


def notes_of(*arguments: object) -> list[str]:
    """The notes of a plan, which are the same for people and for machines."""
    told = json.loads(run("plan", "--json", *arguments).out)["effective"]["notes"]
    shown = run("plan", *arguments).out
    assert all(f"note    {note}" in shown for note in told)
    return told


def voice(path: Path, samples: np.ndarray) -> Path:
    path.write_bytes(float_wav(samples.astype(np.float32), RATE))
    return path


def test_what_is_wrong_with_the_voice_is_told(tmp_path):
    hum = tones(RATE, RATE)
    against = voice(tmp_path / "against.wav", np.concatenate([hum, -hum], 1))
    assert any("cancel each other" in note for note in notes_of("--audio", against))
    silent = voice(tmp_path / "silent.wav", 0 * hum)
    assert any("the sound is silent" in note for note in notes_of("--audio", silent))
    whole = write(tmp_path / "whole.mp3", "libmp3lame", hum, RATE, "mono").read_bytes()
    (tmp_path / "joined.mp3").write_bytes(whole + whole + b"\n")
    told = notes_of("--audio", tmp_path / "joined.mp3")
    assert any("joined" in note for note in told) and any("is no sound" in note for note in told)


def test_only_the_part_that_is_used_is_told(tmp_path):
    hum = tones(RATE, RATE)
    path = voice(tmp_path / "x.wav", np.concatenate([hum, 0 * hum, 0 * hum]))
    assert not any("silent" in note for note in notes_of("--audio", path, "--seconds", 1))
    assert not any("asked for" in note for note in notes_of("--audio", path, "--seconds", 0.7))
    assert any("ends after 3.00 s" in note for note in notes_of("--audio", path, "--seconds", 5))


@pytest.mark.parametrize(("model", "length"), [("mini", 32), ("untrained", 64)])
def test_a_prompt_that_is_too_long_is_told_with_what_is_used(model, length):
    told = notes_of("--model", model, "--prompt", LONG_PROMPT)
    assert any(f"the model reads {length}: it is used up to" in note for note in told)
    assert not any("prompt" in note for note in notes_of("--model", model, "--prompt", "A person talks."))


def test_a_prompt_for_a_model_that_is_not_here_is_counted_in_words():
    model = ("--model", "wan2.2-s2v-14b")
    assert any("600 words" in note for note in notes_of(*model, "--prompt", "rain " * 600))
    assert not any("prompt" in note for note in notes_of(*model, "--prompt", LONG_PROMPT))


def test_notes_of_the_inputs_stand_in_the_receipt(tmp_path):
    write_inputs(tmp_path, 0.5)
    hum = tones(RATE // 2, RATE)
    voice(tmp_path / "voice.wav", np.concatenate([hum, -hum], 1))
    ran = generate(tmp_path, model="untrained", prompt=LONG_PROMPT, seconds=0.2, steps=1)
    assert ran.code == 0, ran.err
    told = receipt(tmp_path)["effective"]["notes"]
    assert any("cancel each other" in note for note in told) and any("it is used up to" in note for note in told)
    assert all(note in ran.out for note in told)


WRONG = [
    ({"image": 5}, "image of type int"),
    ({"image": None}, "image of type NoneType"),
    ({"image": [[0]]}, "image of type list"),
    ({"audio": None}, "sound of type NoneType"),
    ({"audio": np.zeros(RATE)}, "from_array"),
    ({"audio": b"RIFF"}, "sound of type bytes"),
    ({"prompt": 7}, "prompt = 7 is of type int"),
    ({"seconds": "3"}, "seconds = '3' is of type str"),
    ({"seconds": True}, "of type bool"),
    ({"seed": "x"}, "seed x is out of range"),
    ({"seed": 1.5}, "out of range"),
    ({"steps": "4"}, "steps"),
    ({"size": None}, "size"),
    ({"size": (704, 384)}, "size"),
    ({"clip_blocks": "4"}, "clip"),
    ({"sink_distance": 30}, "Give a SinkDistance"),
]


@pytest.mark.parametrize(("wrong", "told"), WRONG)
def test_values_of_wrong_types_are_refused_in_a_sentence(wrong, told):
    given = {"image": np.zeros((64, 64, 3), np.uint8), "audio": AudioClip.from_array(tones(RATE, RATE), RATE)} | wrong
    pipeline = LiveAvatarPipeline.from_pretrained("untrained")
    with pytest.raises(LiveAvatarError) as error:
        pipeline(given.pop("image"), given.pop("audio"), **given)
    assert told in str(error.value) and "\n" not in str(error.value)
