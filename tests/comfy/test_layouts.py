"""Matrices that ComfyUI quantised and wrote are read as ComfyUI reads them itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from liveavatar.weights.quantised import DequantisedSource
from liveavatar.weights.source import SafetensorsSource

THEIRS = """
import sys
sys.path.insert(0, sys.argv[1])
layout, options, written, numbers = sys.argv[2], eval(sys.argv[3]), *sys.argv[4:6]
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import torch
import comfy.ops
from safetensors.torch import save_file
try:
    from comfy.quant_ops import QuantizedTensor, QUANT_ALGOS
except ImportError:
    sys.exit(3)
if layout not in QUANT_ALGOS:
    sys.exit(3)
weight = torch.randn(160, 192, generator=torch.Generator().manual_seed(4)) / 14
weight[7, 64:128] = 0
linear = comfy.ops.mixed_precision_ops(compute_dtype=torch.float32).Linear(192, 160, bias=True, dtype=torch.float32)
linear.quant_format, linear.bias = layout, torch.nn.Parameter(torch.zeros(160))
quantised = QuantizedTensor.from_float(weight, QUANT_ALGOS[layout]["comfy_tensor_layout"], **options)
linear.weight = torch.nn.Parameter(quantised, requires_grad=False)
save_file({name: t.contiguous() for name, t in linear.state_dict(prefix="a.").items()}, written)
save_file({"meant": quantised.dequantize(), "weight": weight}, numbers)
"""
LAYOUTS = {
    "float8_e4m3fn": "{'scale': 'recalculate'}",
    "int8_tensorwise": "{}",
    "int8_tensorwise by rows": "{'per_channel': True}",
    "int8_tensorwise turned": "{'per_channel': True, 'convrot': True, 'convrot_groupsize': 64}",
    "mxfp8": "{}",
    "nvfp4": "{}",
}
ERROR = {"float8_e4m3fn": 0.04, "int8_tensorwise": 0.02, "mxfp8": 0.04, "nvfp4": 0.13}
"""The most that quantising costs, of the matrix's length: half a step."""


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_matrix_is_read_as_comfyui_reads_it(tmp_path: Path, case: str) -> None:
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        pytest.skip("needs ComfyUI: set COMFYUI_PATH to its checkout")
    layout = case.split()[0]
    written, numbers = tmp_path / "a.safetensors", tmp_path / "numbers.safetensors"
    command = [sys.executable, "-c", THEIRS, comfyui, layout, LAYOUTS[case], str(written), str(numbers)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    if ran.returncode == 3:
        pytest.skip(f"this ComfyUI knows no {layout}")
    assert ran.returncode == 0, ran.stderr[-2000:]
    source, theirs = DequantisedSource(SafetensorsSource(written)), load_file(numbers)
    ours = source.read("a.weight")
    torch.testing.assert_close(ours, theirs["meant"], atol=1e-6 if "turned" in case else 0, rtol=0)
    assert (ours - theirs["weight"]).norm() < ERROR[layout] * theirs["weight"].norm()
