"""The reference picture in "pad" mode equals the published implementation's, byte for byte."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from golden.cases import Case, cases

from liveavatar.media.image import fit_image, read_image

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def keys_of(entries: list[dict], index: int) -> tuple[str | None, str]:
    """Names of the tensors of an entry of `images`: what goes in (None: an example picture) and what comes out."""
    if "path" in entries[index]:
        return None, f"file{sum('path' in e for e in entries[:index])}.uint8_hwc"
    return f"{entries[index]['name']}.in_uint8_hwc", f"{entries[index]['name']}.out_uint8_hwc"


def images() -> list:
    """The recorded pictures whose tensors are there, over all cases."""
    found = []
    for param in cases("image"):
        case = param.values[0]
        listed = case.info.get("images", [])
        for i, entry in enumerate(listed):
            given, expected = keys_of(listed, i)
            if expected in case and (given is None or given in case):
                found.append(pytest.param(case, entry, given, expected, id=f"{param.id}-{expected.split('.')[0]}"))
    return found


def black_bars() -> list:
    """The recorded example pictures with their bars, over all cases."""
    return [
        pytest.param(param.values[0], e, id=f"{param.id}-{Path(e['path']).stem}-{e['out_hw'][1]}x{e['out_hw'][0]}")
        for param in cases("image")
        for e in param.values[0].info.get("black_bars", [])
    ]


def decoded_sums(case: Case) -> dict[str, str]:
    return {e["path"]: e["sha256_of_decoded_rgb"] for e in case.info["images"] if "sha256_of_decoded_rgb" in e}


def example(case: Case, path: str) -> np.ndarray:
    """The example picture a case names, if it is at hand and decodes to the recorded pixels."""
    file = DATA / Path(path).name
    if not file.is_file():
        pytest.skip(f"{file.name} is not in {DATA}")
    rgb = read_image(file)
    expected = decoded_sums(case).get(path)
    if expected and hashlib.sha256(rgb.tobytes()).hexdigest() != expected:
        pytest.skip(f"{file.name} decodes to other pixels than when the case was recorded")
    return rgb


@pytest.mark.parametrize(("case", "entry", "given", "expected"), images())
def test_padded_picture_is_the_published_one(case: Case, entry: dict, given: str | None, expected: str) -> None:
    rgb = case[given].numpy() if given else example(case, entry["path"])
    height, width = entry["out_hw"]
    assert tuple(rgb.shape[:2]) == tuple(entry["size"])
    assert np.array_equal(fit_image(rgb, width, height, "pad"), case[expected].numpy())


@pytest.mark.parametrize(("case", "entry"), black_bars())
def test_black_bars_are_the_published_ones_and_cover_has_none(case: Case, entry: dict) -> None:
    given = example(case, entry["path"])
    height, width = entry["out_hw"]
    assert list(given.shape[:2]) == entry["image_hw"]
    padded = fit_image(given, width, height, "pad")
    bars = [entry[f"black_{side}"] for side in ("left", "right", "top", "bottom")]
    left, right, top, bottom = bars
    assert not padded[:, :left].any() and not padded[:, width - right :].any()
    assert not padded[:top].any() and not padded[height - bottom :].any()
    assert hashlib.sha256(padded.tobytes()).hexdigest() == entry["sha256_out_uint8"]
    covered = fit_image(given, width, height, "cover")
    if any(bars):
        edge = (covered[:, :1], covered[:, -1:]) if left + right else (covered[:1], covered[-1:])
        assert all(e.any() for e in edge)
