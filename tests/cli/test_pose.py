"""A pose video on the command line: told before, followed, and refused where it cannot be."""

import json

import pytest
from cli.runs import run, write_inputs
from media.videos import write_film


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("pose"))
    write_film(folder / "pose.mp4", 12, None)
    (folder / "text.mp4").write_text("no video")
    return folder


def generate(files, *more):
    quick = ("--model", "untrained", "--size", "64x64", "--steps", 1, "--threads", 1, "--out", files / "out.mp4")
    return run("generate", "--image", files / "portrait.png", "--audio", files / "voice.wav", *quick, *more)


def test_a_video_follows_it(files):
    hashes = []
    for more in ((), ("--pose", files / "pose.mp4"), ("--pose", files / "pose.mp4", "--pose-end", "loop")):
        ran = generate(files, *more)
        assert ran.code == 0, ran.err
        hashes.append(json.loads((files / "out.json").read_text())["frames_sha256"])
        assert ("pose video ends after 0.48 s of 1.20 s" in ran.out) == bool(more)
        assert ("never learnt what a pose means" in ran.out) == bool(more)
    assert len(set(hashes)) == 3
    assert json.loads((files / "out.json").read_text())["requested"]["pose_end"] == "loop"


def test_plans_tell_it(files):
    def vae_bytes(*more):
        return json.loads(run("plan", "--model", "wan2.2-s2v-14b", "--gpus", "1x80", "--json", *more).out)["plan"][
            "vae"
        ]

    assert vae_bytes("--pose", files / "pose.mp4") > vae_bytes() + 10**9


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--pose", "none.mp4"), "There is no pose video at none.mp4"),
        (("--pose", "text.mp4"), "is no video that can be read"),
        (("--pose", "pose.mp4", "--pose-end", "bounce"), "Use hold or loop or black"),
        (("--pose", "pose.mp4", "--out", "pose.mp4"), "pose.mp4"),
    ],
)
def test_what_cannot_be_followed_is_refused(files, monkeypatch, more, message):
    monkeypatch.chdir(files)
    ran = generate(files, *more)
    assert ran.code == 2 and message in ran.err
