"""The bytes of a format are those that real modules hold."""

from typing import get_args

import pytest
import torch

from liveavatar.config import MINI, UNTRAINED, WAN2_2_S2V_14B, ModelConfig
from liveavatar.model.transformer import EMBEDDERS, ModelSlice, empty_transformer
from liveavatar.planner import layer_parameters
from liveavatar.planner.memory import layer_matrices, layer_saved_bytes, linear_bytes
from liveavatar.storage import PACKED_FORMATS, WeightFormat

FORMATS = tuple(form for form in get_args(WeightFormat) if form not in PACKED_FORMATS)
"""Those that are made of any weight; of what stays packed, see test_packed_bytes.py."""


def held(config: ModelConfig, part: ModelSlice, weights: WeightFormat, dtype: torch.dtype) -> int:
    """Bytes of a part without memory, as it would be filled: float32 stands for the working dtype but in scales."""
    tensors = empty_transformer(config, part, weights).state_dict()
    size = {k: v.itemsize if v.dtype != torch.float32 or "scale" in k else dtype.itemsize for k, v in tensors.items()}
    return sum(v.numel() * size[k] for k, v in tensors.items())


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("config", [UNTRAINED, MINI, WAN2_2_S2V_14B], ids=["untrained", "mini", "14b"])
def test_layers_take_what_is_said(config: ModelConfig, dtype: torch.dtype, weights: WeightFormat) -> None:
    for layer in {0, 1, config.num_layers - 1}:
        bytes_ = layer_parameters(config, layer) * dtype.itemsize - layer_saved_bytes(
            config, layer, weights, dtype.itemsize
        )
        assert bytes_ == held(config, ModelSlice(range(layer, layer + 1)), weights, dtype)
        matrices = sum(linear_bytes(*shape, weights, dtype.itemsize) for shape in layer_matrices(config, layer))
        assert bytes_ >= matrices > 0.9 * bytes_


@pytest.mark.parametrize("weights", FORMATS)
def test_the_ends_of_the_network_take_the_same_in_every_format(weights: WeightFormat) -> None:
    for part in (EMBEDDERS, ModelSlice(range(0), embed=True, head=True)):
        assert held(MINI, part, weights, torch.bfloat16) == held(MINI, part, "plain", torch.bfloat16)


def test_filled_modules_hold_it_too() -> None:
    from liveavatar.components import open_components

    plain, small = (
        sum(
            p.nbytes
            for p in open_components("untrained")
            .transformer(ModelSlice.whole(UNTRAINED), "cpu", torch.bfloat16, w)
            .parameters()
        )
        for w in ("plain", "int8")
    )
    assert plain - small == sum(layer_saved_bytes(UNTRAINED, i, "int8", 2) for i in range(UNTRAINED.num_layers))


def test_the_published_model_halves() -> None:
    """15,938,355,200 weights of 16,295,755,609 become one byte each."""
    config = WAN2_2_S2V_14B
    saved = {w: sum(layer_saved_bytes(config, i, w, 2) for i in range(config.num_layers)) for w in FORMATS}
    assert saved["plain"] == 0
    assert saved["fp8-tensor"] == 15_938_355_200 - 4 * 460
    assert saved["fp8"] == saved["int8"] == pytest.approx(15.93e9, rel=1e-3)
