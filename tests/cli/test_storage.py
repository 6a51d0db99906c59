"""Ways to keep stages, from the command line: what only moves changes no frame, what rounds changes all of them."""

import pytest
from cli.runs import generate, receipt, run, write_inputs

from liveavatar.media.video import probe


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def made(inputs, name, *options):
    """The receipt of a run, whose video is whole."""
    ran = generate(inputs, *options, out=inputs / f"{name}.mp4", steps=2)
    assert ran.code == 0, ran.err
    found = probe(inputs / f"{name}.mp4")
    assert (found.width, found.height, found.frames) == (64, 64, 30)
    told = receipt(inputs, f"{name}.json")
    assert told["status"] == "complete"
    return told, ran.out


@pytest.fixture(scope="module")
def plain(inputs):
    return made(inputs, "plain")[0]


@pytest.mark.parametrize(
    ("options", "storage", "kept"),
    [
        (("--kv-offload",), {"keys_home": "host"}, "KV cache offloaded"),
        (("--offload-layers", 2), {"streamed": 2}, "2 of 6 layers offloaded"),
        (("--offload-text-kv",), {"prompt_weights": "leave"}, "text KV weights offloaded"),
        (
            ("--keys-home", "host", "--stream", 6, "--prompt-weights", "leave"),  # as these options were called before
            {"keys_home": "host", "streamed": 6, "prompt_weights": "leave"},
            "6 of 6 layers offloaded",
        ),
    ],
)
def test_what_moves_changes_no_frame(inputs, plain, options, storage, kept):
    told, said = made(inputs, "moved", *options)
    assert told["frames_sha256"] == plain["frames_sha256"]
    assert told["plan"]["stages"][0]["storage"] == plain["plan"]["stages"][0]["storage"] | storage
    assert kept in said


@pytest.mark.parametrize(
    ("options", "storage"),
    [
        (("--weights", "fp8"), {"weights": "fp8"}),
        (("--weights", "fp8-tensor"), {"weights": "fp8-tensor"}),
        (("--weights", "int8"), {"weights": "int8"}),
        (("--kv-dtype", "fp8"), {"keys": "fp8"}),
        (("--keys", "fp8"), {"keys": "fp8"}),
        (("--kv-dtype", "int4", "--kv-offload"), {"keys": "int4", "keys_home": "host"}),
    ],
)
def test_what_rounds_changes_frames(inputs, plain, options, storage):
    told, said = made(inputs, "rounded", *options)
    in_fp8 = [note for note in told["plan"]["notes"] if "cpu multiplies fp8 weights as they are" in note]
    assert len(in_fp8) == ("fp8" in storage.get("weights", "")) and all(note in said for note in in_fp8)
    assert told["frames_sha256"] != plain["frames_sha256"]
    assert told["plan"]["stages"][0]["storage"] == plain["plan"]["stages"][0]["storage"] | storage
    assert "kept    stage 0" in said


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            ("--weights", "fp4"),
            "--weights fp4 is not known. Use plain, fp8, fp8-tensor, int8, packed or packed-native.",
        ),
        (("--keys", "int8"), "--kv-dtype int8 is not known. Use plain, fp8 or int4."),
        (("--keys-home", "disk"), "--keys-home: disk is not known; use device or host."),
        (("--prompt-weights", "go"), "--prompt-weights: go is not known; use stay or leave."),
        (("--stream", 7), "The most that works is 6."),
        (("--stream", -1), "The most that works is 6."),
        (("--prefer", "size"), "Use quality or speed."),
        (("--devices", "cpu", "--vram-cap", 8), "memory of GPUs, and cpu is none"),
        (("--devices", "cpu", "--allow-smaller"), "only where a plan is chosen"),
    ],
)
def test_what_cannot_be_is_refused(inputs, wrong, words):
    for ran in (generate(inputs, *wrong, out=inputs / "refused.mp4"), run("plan", *wrong)):
        assert ran.code == 2 and words in ran.err
    assert not (inputs / "refused.mp4").exists()


def test_a_plan_for_cards_takes_no_orders():
    for told in (("--weights", "fp8"), ("--stages", "1x2"), ("--devices", "cuda:0")):
        ran = run("plan", "--gpus", "1x24", *told)
        assert ran.code == 2 and "are chosen" in ran.err
