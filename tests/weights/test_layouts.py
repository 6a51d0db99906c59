"""Layouts of ComfyUI's quantised matrices: read as a slow reference reads them; others are refused."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from weights.core_files import as_bytes

from liveavatar.errors import ModelError
from liveavatar.weights.quantised import DequantisedSource
from liveavatar.weights.source import SafetensorsSource

ROWS, COLUMNS = 160, 192
"""More than one tile of scales on either side, and no whole number of them."""
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
G = torch.Generator().manual_seed(8)


def draw(high, *shape):
    return torch.randint(0, high, shape, generator=G)


def byte_of_scale(row, column, columns):
    """Where the scale of a block lies: tiles of 128 x 4 one after another, 32 rows of 4 times 4 in each."""
    tile = row // 128 * math.ceil(columns / 4) + column // 4
    return tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4


def tiled(scales, form):
    """Scales [rows, columns] of bytes as a file has them."""
    rows, columns = scales.shape
    shape = math.ceil(rows / 128) * 128, math.ceil(columns / 4) * 4
    flat = torch.zeros(shape[0] * shape[1], dtype=torch.uint8)
    for row in range(rows):
        for column in range(columns):
            flat[byte_of_scale(row, column, columns)] = scales[row, column]
    return flat.view(shape) if form == "square" else flat


def mxfp8(form="square"):
    stored = (torch.randn(ROWS, COLUMNS, generator=G) * 100).to(torch.float8_e4m3fn)
    exponents = 118 + draw(9, ROWS, COLUMNS // 32)
    exponents[3, 1] = 0
    meant = stored.float() * torch.pow(2.0, exponents - 127).repeat_interleave(32, 1)
    meant[3, 32:64] = 0
    return {"a.weight": stored, "a.weight_scale": tiled(exponents.byte(), form)}, meant, {"format": "mxfp8"}


def nvfp4(form="square"):
    first, second = draw(16, ROWS, COLUMNS // 2), draw(16, ROWS, COLUMNS // 2)
    scales = (torch.rand(ROWS, COLUMNS // 16, generator=G) * 400 + 1).to(torch.float8_e4m3fn)
    each = torch.tensor(E2M1 + [-n for n in E2M1])
    numbers = torch.stack((each[first], each[second]), 2).flatten(1)
    of_all = torch.tensor(0.00131)
    tensors = {
        "a.weight": (first * 16 + second).byte(),
        "a.weight_scale": tiled(scales.view(torch.uint8), form).view(torch.float8_e4m3fn),
        "a.weight_scale_2": of_all,
        "a.input_scale": torch.tensor(0.5),
    }
    return tensors, numbers * (scales.float() * of_all).repeat_interleave(16, 1), {"format": "nvfp4"}


def int8(scale=None):
    stored = (draw(255, ROWS, COLUMNS) - 127).to(torch.int8)
    scale = torch.rand(ROWS, 1, generator=G) + 0.1 if scale is None else scale
    tensors = {"a.weight": stored, "a.weight_scale": scale}
    return tensors, stored.float() * scale, {"format": "int8_tensorwise"}


def hadamard(size):
    """Entries have the sign of the number of places where both digits of base 4 add up to 3."""
    digits = [[(n >> 2 * k) & 3 for k in range(round(math.log(size, 4)))] for n in range(size)]
    signs = [[(-1) ** sum(a + b == 3 for a, b in zip(x, y, strict=True)) for y in digits] for x in digits]
    return torch.tensor(signs, dtype=torch.float64) / math.sqrt(size)


def convrot(group=64):
    tensors, meant, how = int8()
    turned = torch.cat([part.double() @ hadamard(group) for part in meant.split(group, 1)], 1)
    return tensors, turned.float(), {**how, "convrot": True, "convrot_groupsize": group}


def factors():
    tensors, meant, how = nvfp4()
    each = torch.rand(COLUMNS, generator=G) + 0.5
    return tensors | {"a.pre_quant_scale": each}, meant * each, how


CASES = {
    "mxfp8": mxfp8,
    "mxfp8, scales in one row": lambda: mxfp8("flat"),
    "nvfp4": nvfp4,
    "nvfp4, scales in one row": lambda: nvfp4("flat"),
    "nvfp4 with factors of inputs": factors,
    "int8 by rows": int8,
    "int8, one scale": lambda: int8(torch.tensor(0.25)),
    "int8 turned by 64": convrot,
    "int8 turned by 4": lambda: convrot(4),
}


def opened(path, tensors, how, marked="mark", prefix=""):
    layers = json.dumps({"layers": {f"{prefix}a": how}})
    if marked == "mark":
        tensors = tensors | {"a.comfy_quant": as_bytes(json.dumps(how).encode())}
    header = {"_quantization_metadata": layers} if marked == "header" else None
    save_file({f"{prefix}{key}": tensor for key, tensor in tensors.items()}, path / "a.safetensors", header)
    return DequantisedSource(SafetensorsSource(path / "a.safetensors"), prefix)


@pytest.mark.parametrize("marked", ["mark", "header"])
@pytest.mark.parametrize("case", CASES)
def test_every_layout_is_read_as_the_numbers_that_were_meant(tmp_path, case, marked):
    tensors, meant, how = CASES[case]()
    source = opened(tmp_path, tensors, how, marked, "model.diffusion_model.")
    assert source.keys() == {"a.weight"} and source.shape("a.weight") == (ROWS, COLUMNS)
    read = source.read("a.weight")
    assert read.dtype == torch.float32
    if "turned" in case:
        torch.testing.assert_close(read, meant, atol=1e-4, rtol=1e-5)
    else:
        assert torch.equal(read, meant)
    assert f"(1 matrices in {case.split()[0].strip(',')})" in source.describe()
    assert torch.equal(source.read("a.weight"), read)


@pytest.mark.parametrize("case", ["mxfp8", "nvfp4"])
def test_scales_that_say_they_are_bytes_are_read_alike(tmp_path, case):
    tensors, meant, how = CASES[case]()
    scales = tensors["a.weight_scale"].view(torch.uint8)
    assert torch.equal(opened(tmp_path, tensors | {"a.weight_scale": scales}, how).read("a.weight"), meant)


def test_exponents_that_say_they_are_exponents_are_read_alike(tmp_path):
    tensors, meant, how = mxfp8()
    exponents = {"a.weight_scale": tensors["a.weight_scale"].view(torch.float8_e8m0fnu)}
    assert torch.equal(opened(tmp_path, tensors | exponents, how).read("a.weight"), meant)


def changed(case, how=None, lost=(), **tensors):
    given, _, stated = CASES[case]()
    given |= {f"a.{name}": tensor for name, tensor in tensors.items()}
    return {key: t for key, t in given.items() if key not in lost}, {**stated, **(how or {})}


WRONG = {
    "no scale of all": (changed("nvfp4", lost=["a.weight_scale_2"]), "lacks weight_scale_2 of a"),
    "no scale": (changed("mxfp8", lost=["a.weight_scale"]), "lacks the scale of a"),
    "scales in rows": (changed("mxfp8", weight_scale=torch.ones(ROWS, 6).byte()), r"mxfp8 parts \(scales \[160, 6\]"),
    "scales as numbers": (changed("mxfp8", weight_scale=torch.ones(256, 8)), "mxfp8 F8_E4M3 with scales of F32"),
    "bf16 that says nvfp4": (changed("nvfp4", weight=torch.ones(ROWS, 96).bfloat16()), "nvfp4 BF16 with scales of"),
    "a scale of all that is negative": (changed("nvfp4", weight_scale_2=torch.tensor(-1.0)), "that is negative"),
    "several scales of all": (changed("nvfp4", weight_scale_2=torch.ones(2)), r"nvfp4 with weight_scale_2 F32 \[2\]"),
    "factors of others": (changed("nvfp4", pre_quant_scale=torch.ones(9)), r"nvfp4 with pre_quant_scale F32 \[9\]"),
    "something more": (changed("int8 by rows", weight_shift=torch.ones(1)), "int8 with weight_shift beside it"),
    "int8 in whole bytes": (changed("int8 by rows", weight=torch.ones(ROWS, COLUMNS).byte()), "whole numbers .U8"),
    "groups of 48": (changed("int8 turned by 64", {"convrot_groupsize": 48}), "with another rotation"),
    "groups that do not fit": (changed("int8 turned by 64", {"convrot_groupsize": 256}), "int8 parts"),
    "a later layout": (changed("int8 by rows", {"format": "asym_w4a8_int8"}), "in asym_w4a8_int8"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_understood_is_refused(tmp_path, what):
    (tensors, how), message = WRONG[what]
    with pytest.raises(ModelError, match=message) as refusal:
        opened(tmp_path, tensors, how)
    assert "a.safetensors" in refusal.value.what


def test_whole_numbers_and_further_scales_mean_nothing_without_a_layout(tmp_path):
    for case, message in (("int8 by rows", "whole numbers"), ("nvfp4", "NVFP4")):
        tensors, _, how = CASES[case]()
        with pytest.raises(ModelError, match=message):
            opened(tmp_path, tensors, how, marked="nothing")
