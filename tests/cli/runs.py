"""Running the command line in this process, on inputs so small that a whole run takes a second."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from liveavatar.cli import main

RATE = 16_000


@dataclasses.dataclass(frozen=True)
class Ran:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


def run(*arguments: object) -> Ran:
    """The command line with these arguments."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as e:  # --help and --version
            code = int(e.code or 0)
    return Ran(code, out.getvalue(), err.getvalue())


def generate(folder: Path, *arguments: object, **options: object) -> Ran:
    """`generate` with the folder's portrait and voice, one thread, 64x64 and out.mp4, unless said otherwise."""
    given: dict[str, object] = {
        "image": folder / "portrait.png",
        "audio": folder / "voice.wav",
        "out": folder / "out.mp4",
        "size": "64x64",
        "threads": 1,
    }
    given |= options
    named = [x for name, value in given.items() if value is not None for x in (f"--{name}", value)]
    return run("generate", *named, *arguments)


def receipt(folder: Path, name: str = "out.json") -> Any:
    """The receipt of a run."""
    return json.loads((folder / name).read_text(encoding="utf-8"))


def write_inputs(folder: Path, seconds: float = 1.2) -> Path:
    """portrait.png, 96x96, and voice.wav."""
    write_picture(folder / "portrait.png")
    write_voice(folder / "voice.wav", seconds)
    return folder


def write_picture(path: Path, width: int = 96, height: int = 96) -> Path:
    rows, columns = np.mgrid[0:height, 0:width]
    face = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (min(width, height) / 3) ** 2
    rgb = np.stack([np.where(face, 210, columns % 256), np.where(face, 160, rows % 256), np.full_like(rows, 90)], 2)
    Image.fromarray(rgb.astype(np.uint8)).save(path)
    return path


def write_voice(path: Path, seconds: float, rate: int = RATE, channels: int = 1) -> Path:
    """A hum that opens and closes four times a second, written in pieces: it may be long."""
    count = round(seconds * rate)
    size = 2 * channels * count
    head = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2, channels * 2, 16)
    with path.open("wb") as file:
        file.write(b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<I", 16) + head)
        file.write(b"data" + struct.pack("<I", size))
        for start in range(0, count, 1 << 18):
            t = np.arange(start, min(count, start + (1 << 18))) / rate
            hum = 9000 * np.sin(2 * np.pi * 180 * t) * np.abs(np.sin(2 * np.pi * 4 * t))
            file.write(np.repeat(hum.astype("<i2")[:, None], channels, 1).tobytes())
    return path
