"""Wrong requests: each is refused in one readable paragraph that names what was given and what works instead."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli.runs import RATE, Ran, generate, run, write_inputs, write_picture, write_voice
from media.clips import float_wav

PROJECT = Path(__file__).parents[2]
EARLIER = b"an earlier video"
EARLIER_RECEIPT = b'{"schema": "liveavatar receipt 1", "video": "an earlier one"}'


@pytest.fixture
def inputs(tmp_path):
    """Good inputs, and an earlier video and receipt at the place of the new ones."""
    write_inputs(tmp_path, 0.3)
    (tmp_path / "out.mp4").write_bytes(EARLIER)
    (tmp_path / "out.json").write_bytes(EARLIER_RECEIPT)
    return tmp_path


def refused(ran: Ran, *words: str) -> None:
    """One paragraph on stderr that holds all words; nothing was promised on stdout."""
    assert ran.code == 2, (ran.code, ran.out, ran.err)
    assert ran.err.startswith("liveavatar: ") and ran.err.count("\n") == 1, ran.err
    assert "Traceback" not in ran.err and "None" not in ran.err, ran.err
    for word in words:
        assert word in ran.err, f"{word!r} is not in: {ran.err}"


def untouched(folder: Path, before: set[str]) -> None:
    assert (folder / "out.mp4").read_bytes() == EARLIER and (folder / "out.json").read_bytes() == EARLIER_RECEIPT
    assert {p.name for p in folder.iterdir()} == before


OPTIONS = [
    ("size", "704", "'704'", "704x384"),
    ("size", "tall", "'tall'", "704x384"),
    ("size", "0x64", "0x64", "64x64"),
    ("size", "-64x64", "'-64x64'", "64x64"),
    ("size", "32x32", "32x32", "64x64"),
    ("size", "9999x9999", "9999x9999", "1408x1408"),
    ("size", "700.5x300", "'700.5x300'", "x"),
    ("steps", "0", "0 denoising", "nearest is 1"),
    ("steps", "101", "101 denoising", "nearest is 100"),
    ("steps", "four", "'four'", "--steps", "whole number"),
    ("steps", "3.7", "'3.7'", "write 4"),
    ("seed", "-2", "-2", "0 to 18446744073709551615"),
    ("seed", str(2**64), str(2**64), "0 to 18446744073709551615"),
    ("seconds", "0", "0.0 seconds", "0.025"),
    ("seconds", "-3", "-3.0 seconds", "0.025"),
    ("seconds", "nan", "nan", "0.025"),
    ("seconds", "inf", "inf", "leave it out"),
    ("seconds", "1e308", "1e+308 seconds", "leave it out"),
    ("seed", "9" * 5000, "--seed", "5000 digits"),
    ("size", "9" * 5000 + "x64", "9...9", "64"),
    ("seconds", "ten", "'ten'", "not a number"),
    ("stages", "9x1", "4 steps", "9 groups", "4x1"),
    ("stages", "1x99", "6 layers", "99 parts", "1x6"),
    ("stages", "0x1", "0 groups", "1x1"),
    ("stages", "many", "'many'", "1x4"),
    ("devices", "tpu", "'tpu'", "cpu"),
    ("devices", "cuda:77", "'cuda:77'", "cpu"),
    ("dtype", "int8", "'int8'", "bfloat16"),
    ("threads", "0", "0 CPU threads", "1 to 256"),
    ("threads", "99999", "99999 CPU threads", "1 to 256"),
    ("fit", "stretch", "'stretch'", "cover or pad"),
    ("tail", "noise", "'noise'", "silence or zeros"),
    ("lead", "late", "'late'", "sync or original"),
    ("sink-distance", "99", "'99'", "4 to 30"),
    ("clip-frames", "50", "50 frames", "nearest is 48"),
    ("clip-frames", "0", "0 frames", "nearest is 12"),
    ("clip-frames", "1000", "1000 frames", "nearest is 240"),
    ("clip-frames", "long", "'long'", "48, for example"),
    ("prompt", "caf\udce9", "prompt", "UTF-8"),
    ("model", "minni", "minni", "Did you mean mini?"),
    ("model", "no/such/place", "no/such/place does not exist", "hf download"),
    ("model", "wan2.2-s2v-14b", "weights are not part", "folder"),
]


@pytest.mark.parametrize(
    ("option", "value", "words"), [(o[0], o[1], o[2:]) for o in OPTIONS], ids=lambda x: str(x)[:30]
)
def test_options_that_cannot_be_served(inputs, option, value, words):
    before = {p.name for p in inputs.iterdir()}
    refused(generate(inputs, f"--{option}={value}"), *words)
    untouched(inputs, before)


LINES = [
    (["generate"], "--audio", "required", "--help"),
    (["generate", "--audio", "a.wav"], "required", "--image", "--help"),
    (["generate", "--image", "a.png", "--audio", "a.wav", "--stpes", "4"], "--stpes", "Did you mean --steps?"),
    (["plan", "--speaker", "a.wav:left"], "--speaker a.wav:left", "Did you mean --speakers?"),
    (["generate", "--image", "a.png", "--audio", "a.wav", "--size", "704", "384"], "384", "needs quotes"),
    (["generate", "--image"], "--image", "expected one argument"),
    (["generat"], "'generat'", "Did you mean generate?"),
    (["fly"], "'fly'", "generate, plan, inspect, demo, live, doctor, bench, workers"),
    ([], "COMMAND", "--help"),
    (["plan", "--seconds=-inf"], "-inf", "0.025"),
    (["plan", "--model", "wan2.2-s2v-14b", "--stages", "1x41"], "40 layers", "1x40"),
    (["plan", "--image", "missing.png"], "missing.png"),
    (["inspect"], "DIR", "--help"),
    (["inspect", "no/such/place"], "no/such/place does not exist", "hf download"),
    (["inspect", "wan2.2-s2v-14b"], "folder"),
]


@pytest.mark.parametrize(("arguments", "words"), [(x[0], x[1:]) for x in LINES], ids=lambda x: " ".join(x)[:40])
def test_lines_that_cannot_be_read(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(run(*arguments), *words)
    assert not list(tmp_path.iterdir())


def cut(path: Path, keep: float) -> Path:
    path.write_bytes(path.read_bytes()[: round(keep * path.stat().st_size)])
    return path


def text(path: Path) -> Path:
    path.write_text("This is not what you think it is.\n" * 40)
    return path


def with_nan(path: Path) -> Path:
    samples = np.zeros((RATE, 1), np.float32)
    samples[800] = np.nan
    path.write_bytes(float_wav(samples, RATE))
    return path


def without_samples(path: Path) -> Path:
    path.write_bytes(float_wav(np.zeros((0, 1), np.float32), RATE))
    return path


def nine_channels(path: Path) -> Path:
    path.write_bytes(float_wav(np.zeros((RATE, 9), np.float32), RATE))
    return path


def silent_film(path: Path) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        container.mux(stream.encode(None))
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


FILES = {
    "no picture": ("image", "p.png", lambda p: p, ["p.png", "Check the path"]),
    "a folder as picture": ("image", "p.png", folder, ["p.png", "not a file"]),
    "one pixel": ("image", "p.png", lambda p: write_picture(p, 1, 1), ["1x1", "at least 16"]),
    "a text as picture": ("image", "p.png", text, ["p.png", "PNG, JPEG or WebP"]),
    "an empty picture": ("image", "p.png", lambda p: cut(text(p), 0), ["p.png", "PNG, JPEG or WebP"]),
    "half a picture": ("image", "p.png", lambda p: cut(write_picture(p, 200, 200), 0.5), ["p.png", "again"]),
    "a strip": ("image", "p.png", lambda p: write_picture(p, 6400, 20), ["6400x20", "Crop"]),
    "a sound as picture": ("image", "p.wav", lambda p: write_voice(p, 0.3), ["p.wav", "PNG, JPEG or WebP"]),
    "no sound": ("audio", "v.wav", lambda p: p, ["v.wav", "Check the path"]),
    "a folder as sound": ("audio", "v.wav", folder, ["v.wav", "not a file"]),
    "0 samples": ("audio", "v.wav", without_samples, ["v.wav", "0 s long", "0.025"]),
    "an empty sound": ("audio", "v.wav", lambda p: cut(text(p), 0), ["v.wav", "empty"]),
    "20 ms": ("audio", "v.wav", lambda p: write_voice(p, 0.02), ["0.020 s", "0.025"]),
    "NaN": ("audio", "v.wav", with_nan, ["v.wav", "sample 800", "0.050 s"]),
    "a text as sound": ("audio", "v.txt", text, ["v.txt", "no sound", "audio track"]),
    "half a sound": ("audio", "v.wav", lambda p: cut(write_voice(p, 1), 0.5), ["v.wav", "cut off"]),
    "a silent film": ("audio", "v.mp4", silent_film, ["v.mp4", "audio track"]),
    "a picture as sound": ("audio", "v.png", lambda p: write_picture(p), ["v.png", "audio track"]),
    "nine channels": ("audio", "v.wav", nine_channels, ["9 channels", "stereo"]),
}


@pytest.mark.parametrize(("option", "name", "make", "words"), FILES.values(), ids=FILES.keys())
def test_files_that_cannot_be_used(inputs, option, name, make, words):
    path = make(inputs / name)
    before = {p.name for p in inputs.iterdir()}
    refused(generate(inputs, **{option: path}), *words)
    untouched(inputs, before)


def test_too_short_for_the_published_tail(inputs):
    write_voice(inputs / "short.wav", 0.03)
    refused(generate(inputs, audio=inputs / "short.wav", tail="zeros"), "0.030 s", "0.045")


PLACES = {
    "no mp4": ({"out": "out.avi"}, ["out.avi", ".mp4"]),
    "no name": ({"out": ".mp4"}, [".mp4"]),
    "a missing folder": ({"out": "missing/a.mp4"}, ["missing", "Create it"]),
    "a file as folder": ({"out": "voice.wav/a.mp4"}, ["voice.wav", "exist"]),
    "a folder": ({"out": "taken.mp4"}, ["taken.mp4 is a folder", "video.mp4"]),
    "no text": ({"out": "caf\udce9.mp4"}, ["caf", "UTF-8"]),
    "nothing writable": ({"out": "/proc/a.mp4"}, ["/proc/a.mp4", "another folder"]),
    "the receipt is the video": ({"receipt": "out.mp4"}, ["both", "out.json"]),
    "the receipt is a folder": ({"receipt": "taken.mp4"}, ["taken.mp4 is a folder", "receipt.json"]),
    "the receipt's folder is missing": ({"receipt": "missing/a.json"}, ["missing/a.json", "out.json"]),
    "the receipt is not writable": ({"receipt": "/proc/a.json"}, ["/proc/a.json", "out.json"]),
    "the receipt is the portrait": ({"receipt": "portrait.png"}, ["portrait.png", "made from"]),
    "the video is the voice": ({"audio": "voice.mp4", "out": "./voice.mp4"}, ["voice.mp4", "made from"]),
}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="takes /proc for a folder nobody can write to")
@pytest.mark.parametrize(("options", "words"), PLACES.values(), ids=PLACES.keys())
def test_places_that_cannot_be_written(inputs, monkeypatch, options, words):
    monkeypatch.chdir(inputs)
    (inputs / "taken.mp4").mkdir()
    shutil.copy(inputs / "voice.wav", inputs / "voice.mp4")
    before = {p.name for p in inputs.iterdir()}
    refused(generate(inputs, **options), *words)
    untouched(inputs, before)


def test_a_file_where_the_output_folder_would_be(inputs, monkeypatch):
    monkeypatch.chdir(inputs)
    (inputs / "output").write_bytes(EARLIER)
    refused(generate(inputs, out=None), "output", "does not exist")


LOADED = """
import sys
from liveavatar.cli import main
for last, loaded in (
    ("--steps=0", {}),
    ("--size=tall", {}),
    ("--seconds=nan", {}),
    ("--out=a.avi", {"torch"}),
    ("--image=missing.png", {"torch"}),
    ("--audio=voice.txt", {"torch"}),
    ("--model=missing", {"torch"}),
    ("--stages=9x9", {"torch"}),
):
    assert main([*sys.argv[1:], last]) == 2, last
    found = {"torch", "diffusers", "transformers", "accelerate", "scipy"} & set(sys.modules)
    assert found <= set(loaded), (last, found)
"""


def test_nothing_heavy_is_loaded_to_refuse(inputs):
    text(inputs / "voice.txt")
    given = ["generate", "--image", "portrait.png", "--audio", "voice.wav", "--out", "new.mp4"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOADED, *given]
    result = subprocess.run(command, cwd=inputs, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("liveavatar: ") == 8 and not result.stdout
    assert not (inputs / "new.mp4").exists() and not (inputs / "new.json").exists()
