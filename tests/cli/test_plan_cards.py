"""`plan --gpus` chooses stages and storage for cards that need not be here."""

import json

import pytest
from cli.runs import run

BIG = ("plan", "--model", "wan2.2-s2v-14b", "--size", "704x384")


def test_a_chosen_plan_says_what_every_card_holds():
    ran = run(*BIG, "--gpus", "1x24")
    assert (ran.code, ran.err) == (0, "")
    for words in ("of 23.11 GB usable", "VAE", "fp8 weights", "layers offloaded", "pinned", "assumed speeds", "rest"):
        assert words in ran.out, ran.out


def test_machines_get_the_same():
    told = json.loads(run(*BIG, "--gpus", "2x24,1x48", "--prefer", "speed", "--json").out)
    usable = dict(told["plan"]["usable"])
    assert all(total <= usable[name] for name, total in told["total_by_device"].items())
    assert told["plan"]["forecast"]["source"] == "assumed" and told["host_bytes_by_machine"]
    assert told["plan"]["stages"][0]["storage"]["weights"] == "fp8"


def test_memory_is_drawn(tmp_path):
    ran = run(*BIG, "--gpus", "4x24", "--plot", tmp_path / "bars.png")
    assert ran.code == 0 and (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert "pace" in ran.out and "waiting" not in ran.out
    ran = run(*BIG, "--gpus", "4x24", "--simulate", "--plot", tmp_path / "timeline.png")
    assert "waiting" in ran.out and (tmp_path / "timeline.png").exists()


def test_caps_and_smaller_videos():
    capped = json.loads(run(*BIG, "--gpus", "1x80", "--vram-cap", 20, "--json").out)
    assert capped["total_by_device"]["cuda:0"] <= 19.4e9
    large = ("plan", "--model", "wan2.2-s2v-14b", "--size", "1280x720", "--gpus", "1x16")
    refused = run(*large)
    assert refused.code == 2 and "--gpus" in refused.err and "GB usable" in refused.err
    smaller = run(*large, "--allow-smaller")
    assert smaller.code == 0 and "does not fit these cards" in smaller.out
    assert run(*BIG, "--gpus", "1x24", "--host-ram", 24).code in (0, 2)


@pytest.mark.parametrize(
    "wrong",
    [["--gpus", "4 cards"], ["--vram-cap", "9"], ["--gpus", "1x24", "--vram-cap", "-1"], ["--allow-smaller"]],
)
def test_options_that_make_no_sense_are_refused(wrong):
    ran = run(*BIG, *wrong)
    assert ran.code == 2 and ran.err
