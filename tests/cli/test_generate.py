"""`generate` from the outside: the file, its receipt, and the same frames however the work is cut."""

import contextlib
import hashlib
import json

import av
import pytest
from cli.runs import generate, receipt, run, write_inputs, write_voice

from liveavatar.media.video import probe
from liveavatar.pipeline import LiveAvatarPipeline
from liveavatar.streams import to_rgb24


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def made(inputs):
    """One run that several tests look at."""
    ran = generate(inputs, prompt="A woman says „hello“.", seed=7)
    assert ran.code == 0, ran.err
    return ran


def test_the_file_is_what_was_said(inputs, made):
    found = probe(inputs / "out.mp4")
    assert (found.width, found.height, found.frames, found.fps) == (64, 64, 30, 25)
    assert found.audio_rate == 16000 and abs(found.av_difference) <= 0.04
    assert abs(found.video_start) < 1e-3 and abs(found.audio_start) < 1e-3
    for words in (
        "64x64",
        "30 frames",
        "1.20 s",
        "3 blocks of 12 frames",
        "4 steps",
        "seed 7",
        "stages 1x1",
        "miniature",
    ):
        assert words in made.out, made.out


def test_the_receipt_tells_everything(inputs, made):
    told = receipt(inputs)
    assert told["status"] == "complete" and told["error"] is None and told["finished"] >= told["started"]
    assert told["requested"]["size"] == "64x64" and told["requested"]["steps"] == 4
    assert told["effective"]["blocks"] == 3 and told["effective"]["frames"] == 30
    assert told["effective"]["prompt"] == "A woman says „hello“."
    assert (told["probed"]["width"], told["probed"]["height"], told["probed"]["frames"]) == (64, 64, 30)
    assert abs(told["probed"]["av_difference"]) <= 0.04
    assert told["threads"] == told["plan"]["threads"] == 1
    assert {"prepare", "load network", "generate", "decode", "stage 0"} <= told["seconds"].keys()
    assert 0 < told["seconds"]["stage 0"] <= told["seconds"]["generate"]
    assert told["peak_memory"]["host"] > 10**8
    assert {"liveavatar", "python", "torch", "transformers", "av"} <= told["versions"].keys()
    assert len(told["frames_sha256"]) == 64


def test_the_plan_is_in_the_file_itself(inputs, made):
    with av.open(str(inputs / "out.mp4")) as container:
        told = json.loads(container.metadata["comment"])
    assert told["stages"] == "1x1" and told["model"] == "mini" and told["dtype"] == "float32"
    assert (told["seed"], told["steps"], told["blocks"], told["width"]) == (7, 4, 3, 64)
    assert [s["device"] for s in told["plan"]["stages"]] == ["cpu"]


def test_the_frames_are_those_of_the_library(inputs, made):
    """What the receipt signs is recomputed from the stream of frames, without the writer."""
    pipeline = LiveAvatarPipeline.from_pretrained("mini", threads=1)
    job = pipeline(inputs / "portrait.png", inputs / "voice.wav", "A woman says „hello“.", size="64x64", seed=7)
    sha = hashlib.sha256()
    with contextlib.closing(job):
        for pixels in job.frames():
            sha.update(to_rgb24(pixels).tobytes())
    assert sha.hexdigest() == receipt(inputs)["frames_sha256"]


@pytest.mark.parametrize(
    ("steps", "cuts"), [(4, ["1x1", "4x1", "1x4", "2x2"]), (3, ["1x1", "2x3"]), (5, ["1x1", "5x4"])]
)
def test_every_cut_makes_the_same_frames(inputs, tmp_path, steps, cuts):
    signed = set()
    for cut in cuts:
        ran = generate(inputs, steps=steps, stages=cut, out=tmp_path / f"{cut}.mp4")
        assert ran.code == 0, ran.err
        told = receipt(tmp_path, f"{cut}.json")
        assert len(told["plan"]["stages"]) == len([s for s in told["seconds"] if s.startswith("stage ")])
        signed.add(told["frames_sha256"])
    assert len(signed) == 1


def test_other_seeds_and_prompts_make_other_frames(inputs, tmp_path):
    signed = set()
    for number, options in enumerate([{"seed": 1}, {"seed": 2}, {"seed": 1, "prompt": "A man sings."}]):
        assert generate(inputs, seconds=0.4, out=tmp_path / f"{number}.mp4", **options).code == 0
        signed.add(receipt(tmp_path, f"{number}.json")["frames_sha256"])
    assert len(signed) == 3


def test_a_second_run_replaces_the_first(inputs, tmp_path):
    for seconds, frames in ((0.5, 13), (0.3, 8)):
        assert generate(inputs, seconds=seconds, out=tmp_path / "a.mp4").code == 0
        assert probe(tmp_path / "a.mp4").frames == receipt(tmp_path, "a.json")["probed"]["frames"] == frames
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.mp4"]


def test_the_shortest_sound_makes_a_frame(inputs, tmp_path):
    write_voice(tmp_path / "blip.wav", 0.025)
    assert generate(inputs, audio=tmp_path / "blip.wav", out=tmp_path / "a.mp4").code == 0
    assert probe(tmp_path / "a.mp4").frames == 1


def test_parity_options_are_understood(inputs, tmp_path):
    options = {"fit": "pad", "tail": "zeros", "lead": "original", "sink-distance": 30, "clip-frames": 12}
    assert generate(inputs, out=tmp_path / "a.mp4", **options).code == 0
    told = receipt(tmp_path, "a.json")
    assert told["effective"]["drop"] == 3 and told["probed"]["frames"] == 30
    assert told["requested"]["sink_distance"] == {"kind": "fixed", "value": 30, "recorded": []}
    assert [told[part]["clip_blocks"] for part in ("requested", "effective", "plan")] == [1, 1, 1]


def test_names_are_only_names(inputs, tmp_path):
    folder = tmp_path / "Grüße 100% %03d"
    folder.mkdir()
    strange = write_inputs(folder, 0.3)
    ran = generate(strange, out=folder / "a:b +1.mp4", receipt=folder / "told.json")
    assert ran.code == 0, ran.err
    assert probe(folder / "a:b +1.mp4").frames == receipt(folder, "told.json")["probed"]["frames"] == 8


def test_quiet_says_nothing(inputs, tmp_path):
    ran = generate(inputs, "--quiet", seconds=0.3, out=tmp_path / "a.mp4")
    assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_a_video_without_a_name_goes_to_the_output_folder(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert generate(inputs, out=None, seconds=0.3).code == 0
    assert sorted(p.name for p in (tmp_path / "output").iterdir()) == ["avatar.json", "avatar.mp4"]


def test_demo_makes_a_video_of_the_projects_own_voice(tmp_path, monkeypatch):
    monkeypatch.setattr("liveavatar.cli.options._DEFAULT_SIZES", {"mini": "64x64"})
    monkeypatch.setattr("liveavatar.placement._MOST_THREADS", 1)
    ran = run("demo", "--out", tmp_path / "demo.mp4")
    assert ran.code == 0 and str(tmp_path / "demo.mp4") in ran.out
    assert receipt(tmp_path, "demo.json")["probed"]["frames"] == probe(tmp_path / "demo.mp4").frames > 100
