"""Requests that nobody means, for `tools.fuzz`: options of the command line, arguments of the pipeline, placements."""

from __future__ import annotations

import argparse
import dataclasses
import decimal
import fractions
import functools
import random
from pathlib import Path
from typing import Any

from .fuzz_corpus import audio_file, image_files
from .fuzz_mutations import ODD_NUMBERS, ODD_TEXTS

_USUAL: dict[str, tuple[str, ...]] = {
    "--model": ("mini", "untrained", "wan2.2-s2v-14b"),
    "--size": ("64x64", "704x384", "1280*720", "64x1920"),
    "--steps": ("1", "4", "100"),
    "--seed": ("-1", "7", str(2**64 - 1)),
    "--seconds": ("0.5", "3600", "1e9", "0.025"),
    "--stages": ("auto", "1x1", "4x1", "1x4", "2x2"),
    "--devices": ("cpu", "cpu,cpu", "all", "cuda:0", "meta"),
    "--engine": ("local", "ray"),
    "--dtype": ("float32", "bfloat16", "float16"),
    "--threads": ("1", "8"),
    "--gpus": ("4x24", "2x24,1x48", "1x80", "8x141", "here", "1x16"),
    "--step-seconds": ("0.5", "1e-300"),
    "--weights": ("plain", "fp8", "fp8-tensor", "int8"),
    "--kv-dtype": ("plain", "fp8", "int4"),
    "--offload-layers": ("0", "1", "5"),
    "--prefer": ("quality", "speed"),
    "--vram-cap": ("20", "8.5"),
    "--host-ram": ("64", "8"),
    "--vae-tiles": ("2x2", "1x1", "999x999"),
    "--fit": ("cover", "pad"),
    "--tail": ("silence", "zeros"),
    "--lead": ("sync", "original"),
    "--sink-distance": ("seeded", "4", "30"),
    "--clip-frames": ("12", "48", "240"),
}
"""Values that make sense."""


@functools.cache
def _plan_options() -> list[argparse.Action]:
    from liveavatar.cli import plan
    from liveavatar.cli.parser import Parser

    parser = Parser(prog="plan")
    plan.add_arguments(parser)
    return list(parser._actions)


def plan_with_options(rng: random.Random, folder: Path) -> list[str]:
    """Arguments of `plan`: a few options with values that make sense or do not."""
    image, audio = _inputs(folder)
    usual = _USUAL | {"--image": (str(image),), "--audio": (str(audio),), "--plot": ("plot.png", "plot.jpg", "plot.x")}
    words: list[str] = []
    for action in rng.choices(_plan_options(), k=rng.choice((1, 2, 3, 5))):
        name = rng.choice(action.option_strings)
        if action.nargs == 0:
            words.append(name)
            continue
        value = rng.choice(usual.get(name, ("x",))) if rng.random() < 0.6 else _odd_text(rng)
        words += [f"{name}={value}"] if rng.random() < 0.7 else [name, value]
    return words if rng.random() < 0.97 else [*words, _odd_text(rng)]


def _odd_text(rng: random.Random) -> str:
    if rng.random() < 0.4:
        number = rng.choice([n for n in ODD_NUMBERS if n != 10**400])
        return rng.choice((str(number), f"{number}x{number}", f"{number},{number}", f"-{number}"))
    return rng.choice(ODD_TEXTS)


def _inputs(folder: Path) -> tuple[Path, Path]:
    """A picture and a voice that are whole."""
    image, audio = folder / "whole.png", folder / "whole.wav"
    if not audio.exists():
        image.write_bytes(image_files("png")[0])
        audio.write_bytes(audio_file("wav"))
    return image, audio


def odd_value(rng: random.Random) -> Any:
    """A Python object of any type."""
    import numpy as np
    import torch

    single: tuple[Any, ...] = (
        None,
        True,
        b"x",
        [1],
        {},
        (),
        object(),
        int,
        1j,
        np.int64(4),
        np.float32("nan"),
        Path("x"),
    )
    single += (fractions.Fraction(1, 3), decimal.Decimal("NaN"), decimal.Decimal(4), torch.tensor(3), torch.ones(2))
    single += (np.zeros(0), np.zeros((40, 48, 3), "uint8"), np.ones((2, 2), object), np.array("4"), range(3), len)
    return rng.choice((*single, *rng.sample(ODD_NUMBERS, 8), *rng.sample(ODD_TEXTS, 8)))


@functools.cache
def _pipeline() -> Any:
    from liveavatar import LiveAvatarPipeline

    return LiveAvatarPipeline.from_pretrained("mini", devices=["cpu"])


def call_pipeline(rng: random.Random, folder: Path) -> None:
    """Call a pipeline with odd arguments, or with fields of a request that are odd."""
    from liveavatar import Request

    image, audio = _inputs(folder)
    arguments: list[Any] = [image, audio]
    odd: dict[str, Any] = {}
    for _ in range(rng.choice((1, 1, 2, 3))):
        match rng.randrange(8):
            case 0:
                arguments[0] = _odd_image(rng)
            case 1:
                arguments[1] = _odd_audio(rng)
            case 2:
                odd["request"] = odd_value(rng)
            case 3:
                odd["sink_distance"] = _odd_distance(rng)
            case _:
                odd[rng.choice([field.name for field in dataclasses.fields(Request)])] = odd_value(rng)
    if rng.random() < 0.3 and "request" not in odd:
        odd = {"request": dataclasses.replace(Request(size="64x64"), **odd)}
    _pipeline()(*arguments, **odd)


def _odd_image(rng: random.Random) -> Any:
    import numpy as np

    shape = rng.choice(((40, 48, 3), (40, 48), (0, 0, 3), (40, 48, 4), (1, 1, 3), (16, 4000, 3), ()))
    made = np.zeros(shape, rng.choice(("uint8", "float32", "bool", "U1", "complex64")))
    return rng.choice((made, made, odd_value(rng)))


def _odd_audio(rng: random.Random) -> Any:
    import numpy as np

    from liveavatar.media.audio import AudioClip

    shape = rng.choice(((8000,), (8000, 2), (2, 8000), (0,), (1,), (8000, 1, 1), ()))
    samples: Any = np.zeros(shape, rng.choice(("float32", "float16", "int16", "uint8", "bool", "int64", "U1", "O")))
    if rng.random() < 0.3:
        samples = odd_value(rng)
    rate = rng.choice((16_000, 44_100, 8000, 1, 10**7, odd_value(rng)))
    return rng.choice((odd_value(rng), AudioClip.from_array(samples, rate)))


def _odd_distance(rng: random.Random) -> Any:
    from liveavatar import Request

    usual = Request().sink_distance
    fields = {"kind": ("fixed", "replay", "seeded"), "value": (4, 30), "recorded": ((), ((4,) * 4,) * 40)}
    chosen = rng.sample(sorted(fields), rng.choice((1, 2, 3)))
    return dataclasses.replace(usual, **{name: rng.choice((*fields[name], odd_value(rng))) for name in chosen})


_STORAGE_FIELDS = ("weights", "kv_dtype", "kv_offload", "offload_text_kv", "offload_layers")


def plan_placement(rng: random.Random, folder: Path) -> None:
    """Plan on a placement of which one to three fields are odd."""
    from liveavatar import LiveAvatarPipeline
    from liveavatar.placement import Placement
    from liveavatar.storage import StorageConfig

    usual: dict[str, tuple[Any, ...]] = {
        "devices": (("cpu",), ("cpu", "cpu"), ("cuda:0",), ("a/cpu",), ("\0",), ("cpu",) * 300),
        "stages": ("auto", "1x1", "4x1", "2x2", "0x0", "9999x9999"),
        "dtype": ("float32", "bfloat16", None),
        "vae_tiles": (None, "2x2", "0x0", "999x999"),
        "prefer": ("quality", "speed"),
        "storage": (StorageConfig(**{rng.choice(_STORAGE_FIELDS): odd_value(rng)}), StorageConfig("fp8", "fp8", True)),
        "vram_cap": (1.5, 20),
        "host_ram": (8, 64),
    }
    names = [field.name for field in dataclasses.fields(Placement)]
    chosen = {}
    for name in rng.sample(names, rng.choice((1, 2, 3))):
        chosen[name] = rng.choice(usual[name]) if name in usual and rng.random() < 0.5 else odd_value(rng)
    simple = {"devices", "stages", "dtype", "threads"}
    if simple.issuperset(chosen):
        pipeline = LiveAvatarPipeline.from_pretrained("mini", **chosen)
    else:
        pipeline = LiveAvatarPipeline.from_pretrained("mini", placement=Placement(**chosen))
    pipeline(*_inputs(folder), size="64x64")
