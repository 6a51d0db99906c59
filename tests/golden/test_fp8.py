"""The format "fp8-tensor" is the original's: its numbers, its scales, its products, and which layers it touches."""

import json

import pytest
import torch
from golden.cases import Case, cases, folders

from liveavatar.config import WAN2_2_S2V_14B
from liveavatar.model.fused import checkpoint_paths
from liveavatar.model.quantize import EightBitLinear, TensorFloat8Linear, cast_fp8, fp8_tensor_scale, is_quantized
from liveavatar.model.transformer import ModelSlice, empty_transformer
from liveavatar.storage import WeightFormat
from liveavatar.weights.load import fill
from liveavatar.weights.source import DictSource

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
LISTS = [
    pytest.param(info["fp8"], id=folder.name)
    for folder in folders()
    if (folder / "keys_14b.json").exists()
    and "fp8" in (info := json.loads((folder / "keys_14b.json").read_text(encoding="utf-8")))
]
MATRICES = [
    pytest.param(case.values[0], row, id=f"{case.id}-{row['case']}-{row['dtype']}")
    for case in cases("fp8")
    for row in case.values[0].info["cases"]
    if f"{row['case']}.{row['dtype']}.weight" in case.values[0]
]


@pytest.mark.parametrize(("case", "row"), MATRICES)
def test_a_layer_has_the_bytes_scales_and_outputs_of_the_original(case: Case, row: dict) -> None:
    name, dtype = f"{row['case']}.{row['dtype']}", DTYPES[row["dtype"]]
    with torch.device("meta"):
        layer = TensorFloat8Linear(row["in_features"], row["out_features"])
    tensors = {slot: case[f"{name}.{slot}"].to(dtype) for slot in ("weight", "bias")}
    fill(layer, DictSource(tensors), dtype=dtype, device="cpu")
    assert torch.equal(layer.weight.view(torch.uint8), case[f"{name}.weight_fp8_bytes"])
    assert torch.equal(layer.weight_scale, case[f"{name}.weight_scale"])

    x = case[f"{name}.input"].to(dtype)
    scale = fp8_tensor_scale(x)
    found = cast_fp8(x, scale).view(torch.uint8).reshape(row["rows"], row["in_features"])
    assert torch.equal(found, case[f"{name}.input_fp8_bytes"])
    assert torch.equal(1 / scale, case[f"{name}.input_scale"])

    y, wanted = layer(x), case[f"{name}.output"]
    assert y.dtype == dtype and y.shape == wanted.shape
    # Sums in another order may fall to the other side of a bfloat16 number.
    step = wanted.abs() * 2**-7 + row["maxabs_vs_emulation"]
    assert ((y.float() - wanted).abs() <= step).all()
    assert (y.float() == wanted).float().mean() > 0.99


@pytest.mark.parametrize("case", cases("fp8"))
def test_scales_of_every_size_of_tensor(case: Case) -> None:
    for row in case.info["scale_cases"]:
        x = torch.tensor([1.0, -0.5, 1 / 3, 0.0]) * row["amax"]
        scale = fp8_tensor_scale(x)
        assert float(1 / scale) == row["reciprocal_scale"], row
        assert cast_fp8(x, scale).float().tolist() == row["q"], row


@pytest.mark.parametrize("listed", LISTS)
@pytest.mark.parametrize("weights", ["fp8", "fp8-tensor", "int8"])
def test_formats_change_the_layers_of_the_14b_model_that_the_original_changes(
    listed: dict, weights: WeightFormat
) -> None:
    net = empty_transformer(WAN2_2_S2V_14B, ModelSlice.whole(WAN2_2_S2V_14B), weights)
    eight_bit = [(path, module) for path, module in net.named_modules() if isinstance(module, EightBitLinear)]
    changed = [part for path, module in eight_bit for part in checkpoint_paths(path, module)]
    plain = [path for path, module in net.named_modules() if isinstance(module, torch.nn.Linear)]
    assert len(changed) == 460 and sorted(changed) == sorted(listed["quantised"])
    assert sorted(plain) == sorted(listed["kept"])
    assert all(is_quantized(path) for path, _ in eight_bit) and not any(map(is_quantized, plain))
