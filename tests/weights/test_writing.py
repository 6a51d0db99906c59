"""Safetensors files that are written tensor by tensor are those that everybody reads."""

from __future__ import annotations

import io

import pytest
import torch
from safetensors import safe_open

from liveavatar.weights.source import SafetensorsSource
from liveavatar.weights.writing import LazyTensor, write_safetensors


def test_what_is_written_is_read_by_the_library_and_by_ours(tmp_path):
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "a": torch.randn(3, 5, generator=generator),
        "empty": torch.zeros(0, 4),
        "b": torch.randn(7, generator=generator).bfloat16(),
        "c.ü": torch.randn(9, generator=generator).to(torch.float8_e4m3fn),
        "bytes": torch.arange(3, dtype=torch.uint8),
        "strided": torch.randn(4, 6, generator=generator).T,
    }
    path = tmp_path / "x.safetensors"
    with path.open("wb", buffering=0) as file:
        write_safetensors(file, {k: LazyTensor.of(v) for k, v in tensors.items()}, {"format": "words"})
    with safe_open(path, "pt") as read:
        assert read.metadata() == {"format": "words"}
        found = {k: read.get_tensor(k) for k in read.keys()}  # noqa: SIM118
    ours = SafetensorsSource(path)
    assert found.keys() == tensors.keys() == ours.keys()
    for name, tensor in tensors.items():
        for got in (found[name], ours.read(name)):
            assert got.dtype == tensor.dtype and torch.equal(got.float(), tensor.float())


def test_each_tensor_is_written_before_the_next_is_made():
    file, written = io.BytesIO(), []

    def read() -> torch.Tensor:
        written.append(len(file.getvalue()))
        return torch.zeros(2)

    write_safetensors(file, {name: LazyTensor((2,), torch.float32, read) for name in "abc"}, {})
    assert written == [written[0] + 8 * number for number in range(3)]


def test_another_tensor_than_was_said_is_refused():
    with pytest.raises(ValueError, match="not"):
        write_safetensors(io.BytesIO(), {"a": LazyTensor((3,), torch.float32, lambda: torch.zeros(2))}, {})
