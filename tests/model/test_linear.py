"""Layers in eight bits: how far they are from the plain ones, that nothing finite breaks them, and where they work."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from liveavatar.config import MINI
from liveavatar.errors import ModelError
from liveavatar.mini.seeded import SeededSource
from liveavatar.model import quantize
from liveavatar.model.quantize import (
    EightBitLinear,
    Float8Linear,
    TensorFloat8Linear,
    check_fp8_matmul,
    fp8_matmul_failure,
    quantize_linears,
    quantize_rows_fp8,
    quantize_rows_int8,
)
from liveavatar.model.transformer import ModelSlice, empty_transformer
from liveavatar.storage import WeightFormat
from liveavatar.weights.load import fill
from liveavatar.weights.source import DictSource

KINDS = [Float8Linear, TensorFloat8Linear, EightBitLinear]
BOUND = {Float8Linear: 0.045, TensorFloat8Linear: 0.045, EightBitLinear: 0.012}
"""Relative error of the output (Frobenius norm) where inputs and weights are normal; measured 0.037, 0.037, 0.008."""
FINITE = st.floats(-(2.0**127), 2.0**127, width=32)


def filled(kind: type[nn.Module], weight: torch.Tensor, bias: torch.Tensor | None = None, dtype=torch.float32):
    with torch.device("meta"):
        layer = kind(weight.shape[1], weight.shape[0], bias=bias is not None)
    tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})
    fill(layer, DictSource(tensors), dtype=dtype, device="cpu")
    return layer


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_output_is_close_to_the_plain_layers(kind, dtype) -> None:
    weight, bias, x = normal(192, 512) / 20, normal(192, seed=1), normal(3, 20, 512, seed=2)
    y = filled(kind, weight, bias, dtype)(x.to(dtype))
    assert y.dtype == dtype and y.shape == (3, 20, 192)
    product = x @ weight.t()
    assert error(y.float() - bias, product) < BOUND[kind]


@pytest.mark.parametrize("kind", [Float8Linear, EightBitLinear])
def test_rows_of_different_size_are_kept_better_than_with_one_scale(kind) -> None:
    sizes = torch.logspace(-6, 0, 64).unsqueeze(1)
    weight, x = normal(64, 128) * sizes, normal(40, 128, seed=1)

    def worst(layer: nn.Module) -> float:
        found, wanted = layer(x), x @ weight.t()
        return float(((found - wanted).norm(dim=0) / wanted.norm(dim=0)).max())

    assert worst(filled(kind, weight)) < 0.06
    assert worst(filled(TensorFloat8Linear, weight)) > 0.5


def test_inputs_of_different_size_are_kept_better_than_with_one_scale() -> None:
    sizes = torch.logspace(-6, 0, 64).unsqueeze(1)
    weight, x = normal(32, 128), normal(64, 128, seed=1) * sizes

    def worst(layer: nn.Module) -> float:
        found, wanted = layer(x), x @ weight.t()
        return float(((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max())

    assert worst(filled(Float8Linear, weight)) < 0.07
    assert worst(filled(TensorFloat8Linear, weight)) > 0.5


@given(st.lists(st.lists(FINITE, min_size=3, max_size=3), min_size=1, max_size=4))
def test_no_finite_row_is_lost(rows: list[list[float]]) -> None:
    x = torch.tensor(rows)
    largest = x.abs().amax(1, keepdim=True)
    for quantise, steps in ((quantize_rows_fp8, 2 * 448), (quantize_rows_int8, 2 * 127)):
        stored, scale = quantise(x)
        found = stored.double() * scale.double()
        assert found.isfinite().all() and (scale > 0).all()
        # Half a step of e4m3 is 1/16 of a number, or 1/1024 of a scale; numbers below 1e-12 count as zero.
        bound = x.abs() / 16 + largest / 448 / 1000 if quantise is quantize_rows_fp8 else largest / steps
        assert ((found - x).abs() <= bound * 1.001 + 1e-12).all()


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_and_huge_rows_give_finite_numbers(kind) -> None:
    weight, x = normal(32, 32), normal(4, 32, seed=1)
    weight[3], weight[5] = 0, weight[5] * 1e30
    x[1], x[2] = 0, x[2] * 1e5
    y = filled(kind, weight)(x)
    assert y.isfinite().all()
    assert (y[:, 3] == 0).all() and (y[1] == 0).all()
    assert filled(kind, torch.zeros(32, 32))(x).eq(0).all()


def without_the_kernel(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (0, 0)) -> None:
    """Let no device multiply e4m3 matrices, and forget what was tried."""

    def missing(*operands: object, **options: object) -> torch.Tensor:
        raise RuntimeError("no kernel for this card.\nSecond line")

    monkeypatch.setattr(torch, "_scaled_mm", missing)
    monkeypatch.setattr(quantize, "fp8_trials", {})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize("kind", [Float8Linear, TensorFloat8Linear])
def test_where_a_device_does_not_multiply_in_eight_bits_the_weights_alone_are_small(kind, monkeypatch) -> None:
    weight, bias, x = normal(48, 32), normal(48, seed=1), normal(5, 32, seed=2)
    layer = filled(kind, weight, bias)
    in_eight_bits = layer(x)
    without_the_kernel(monkeypatch)
    y = layer(x)
    unpacked = layer.weight.float() * layer.weight_scale
    assert torch.allclose(y, x @ unpacked.t() + bias, atol=1e-5)
    assert not torch.equal(y, in_eight_bits)
    assert error(y - bias, x @ weight.t()) < error(in_eight_bits - bias, x @ weight.t())


def test_a_device_without_numbers_does_not_multiply() -> None:
    """The trial tells failure from success; this CPU build has the operation, whatever the width."""
    assert fp8_matmul_failure(torch.device("meta"), True)
    assert [fp8_matmul_failure(torch.device("cpu"), by_row) for by_row in (True, False)] == ["", ""]


def test_a_trial_is_made_once_and_at_loading(monkeypatch) -> None:
    tried, real = [], torch._scaled_mm
    monkeypatch.setattr(torch, "_scaled_mm", lambda x, *rest, **named: tried.append(x.shape) or real(x, *rest, **named))
    monkeypatch.setattr(quantize, "fp8_trials", {})
    for shape in ((32, 32), (16, 48), (24, 32)):
        filled(Float8Linear, normal(*shape))
    assert tried == [(32, 32), (23, 23)]


def test_the_reason_of_a_failed_trial_is_one_line(monkeypatch) -> None:
    without_the_kernel(monkeypatch)
    assert fp8_matmul_failure(torch.device("cpu"), True) == "no kernel for this card"


@pytest.mark.parametrize(("capability", "refused"), [((8, 6), False), ((8, 9), True), ((9, 0), True)])
def test_a_card_that_should_multiply_in_eight_bits_and_does_not_is_refused(capability, refused, monkeypatch) -> None:
    without_the_kernel(monkeypatch, capability)
    card = torch.device("cuda:0")
    monkeypatch.setitem(quantize.fp8_trials, (card, True, True), "no kernel for this card")
    if refused:
        with pytest.raises(ModelError, match=f"{capability[0]}.{capability[1]}.* no kernel for this card"):
            check_fp8_matmul(card, by_row=True)
    else:
        check_fp8_matmul(card, by_row=True)
    check_fp8_matmul(torch.device("cpu"), by_row=True)


@pytest.mark.parametrize("weights", ["plain", "fp8", "fp8-tensor", "int8"])
def test_matrices_quantised_in_place_are_those_that_were_filled_so(weights) -> None:
    config = dataclasses.replace(MINI, num_layers=2, audio_inject_layers=(1,))

    def made(form: WeightFormat) -> nn.Module:
        net = empty_transformer(config, ModelSlice(range(2)), form)
        plain = empty_transformer(config, ModelSlice(range(2)))
        shapes = {key: tuple(tensor.shape) for key, tensor in plain.state_dict().items()}
        fill(net, SeededSource(shapes, 5), dtype=torch.float32, device="cpu")
        return net

    plain, wanted = made("plain"), made(weights)
    quantize_linears(plain, weights)
    found, named = plain.state_dict(), wanted.state_dict()
    assert found.keys() == named.keys()
    assert all(found[k].dtype == named[k].dtype and torch.equal(found[k], named[k]) for k in named)
    assert not any(p.requires_grad for p in plain.parameters() if p.dtype != torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_pass_is_one_graph(kind) -> None:
    layer, x = filled(kind, normal(32, 48), normal(32, seed=1)), normal(6, 48, seed=2)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_matrix_give_what_the_whole_gives(kind, monkeypatch) -> None:
    weight = normal(37, 32)
    whole = filled(kind, weight).state_dict()
    monkeypatch.setattr(quantize, "_CHUNK", (5 * 32, 5 * 32))
    parts = filled(kind, weight).state_dict()
    assert list(whole) == ["weight", "weight_scale"]
    assert all(torch.equal(whole[k].float(), parts[k].float()) for k in whole)
