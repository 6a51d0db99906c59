"""Values nobody means: pipes, names no file can have, endless numbers. Each gets one sentence, at once."""

import os
from pathlib import Path

import pytest
from cli.runs import Ran, generate, run, write_inputs

from liveavatar.components import MINI_FOLDER

LONG, DIGITS = "a" * 300, "9" * 5000
NUMBERS = ("seconds", "seed", "steps", "size", "clip-frames", "threads", "sink-distance", "host-ram", "vram-cap")
NUMBERS += ("stages", "offload-layers", "vae-tiles", "gpus", "step-seconds")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and names as Linux has them")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_inputs(tmp_path_factory.mktemp("inputs"), 0.5)
    os.mkfifo(folder / "pipe")
    return folder


def refused(ran: Ran, *words: str) -> None:
    lines = ran.err.splitlines()
    assert ran.code == 2 and len(lines) == 1 and lines[0].startswith("liveavatar: ") and len(lines[0]) < 1500, ran
    assert all(word in lines[0] for word in words), lines


@pytest.mark.parametrize("place", ["pipe", "/dev/zero"])
def test_pipes_and_devices_are_refused_without_waiting(place: str, inputs: Path) -> None:
    given = inputs / place
    for option in ("image", "audio"):
        refused(generate(inputs, **{option: given}), str(given), "pipe or a device")
        refused(run("plan", f"--{option}", given), str(given), "pipe or a device")
    for option in ("model", "lora", "vae", "text-encoder", "tokenizer", "audio-encoder"):
        refused(run("plan", *(() if option == "model" else ("--model", MINI_FOLDER)), f"--{option}", given), given.name)
    refused(run("inspect", given), str(given))
    refused(generate(inputs, "--engine", "ray", "--address", "auto", "--token-file", given), str(given), "no file")
    refused(run("repair", given), str(given))


@pytest.mark.parametrize("option", ["image", "audio", "model", "lora", "out", "receipt", "token-file"])
def test_names_that_no_file_can_have(option: str, inputs: Path) -> None:
    ending = {"image": ".png", "audio": ".wav", "out": ".mp4", "receipt": ".json"}.get(option, "")
    beside = ("--engine", "ray", "--address", "auto") if option == "token-file" else ()
    beside += ("--model", str(MINI_FOLDER)) if option == "lora" else ()
    refused(generate(inputs, *beside, **{option: LONG + ending}), "too long")
    refused(generate(inputs, *beside, **{option: f"a\0b{ending}"}))


def test_models_and_videos_of_such_names_are_neither_inspected_nor_repaired() -> None:
    for name in (LONG, "a\0b"):
        refused(run("inspect", name))
        refused(run("repair", f"{name}.mp4"))


@pytest.mark.parametrize("option", NUMBERS)
def test_numbers_of_5000_digits(option: str) -> None:
    simulated = ("--simulate",) if option == "step-seconds" else ()
    refused(run("plan", *simulated, f"--{option}={DIGITS}"))
    refused(run("plan", *simulated, f"--{option}=-{DIGITS}"))


@pytest.mark.parametrize("seconds", ["1e308", "1e-320", "nan", "-1"])
def test_steps_that_take_no_time_or_all_of_it(seconds: str) -> None:
    refused(run("plan", "--simulate", f"--step-seconds={seconds}"), "step", "1e-9 to 1e9")


def test_words_that_are_empty_are_shown() -> None:
    refused(run("plan", ""), "'' is not understood")
