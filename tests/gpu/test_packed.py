"""On a GPU: packed matrices are unpacked to the same bits as on the CPU, and packed layers give their products."""

import pytest
import torch
from gpu.device import DEVICE, on_the_device
from weights.layout_files import quantised
from weights.test_dequantise import random_blocks

from liveavatar.model.native import native_failure, native_product
from liveavatar.model.packed import PackedLinear
from liveavatar.weights.block_types import PACKED, PackedMatrix
from liveavatar.weights.dequantise import unpack_rows
from liveavatar.weights.layouts import FORMATS

pytestmark = on_the_device


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", PACKED)
def test_blocks_are_unpacked_as_on_the_cpu(kind, dtype):
    width = 4 * PACKED[kind].numbers
    packed = torch.from_numpy(random_blocks(kind, 96, 4)).flatten()
    here = unpack_rows(packed, kind, torch.empty(96, width, dtype=dtype))
    there = unpack_rows(packed.to(DEVICE), kind, torch.empty(96, width, dtype=dtype, device=DEVICE))
    assert torch.equal(there.cpu(), here)


def packed_layout(name):
    """A matrix [160, 256] in a layout of ComfyUI, and its bytes."""
    tensors, _ = quantised(torch.randn(160, 256), {"int8": "int8 by rows"}.get(name, name))
    packed = torch.zeros(FORMATS[name].bytes_of((160, 256)), dtype=torch.uint8)
    FORMATS[name].pack(tensors, packed, (160, 256))
    return FORMATS[name], packed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FORMATS)
def test_layouts_of_comfyui_are_unpacked_as_on_the_cpu(name, dtype):
    kind, packed = packed_layout(name)
    here = kind.unpack(packed, torch.empty(160, 256, dtype=dtype))
    there = kind.unpack(packed.to(DEVICE), torch.empty(160, 256, dtype=dtype, device=DEVICE))
    assert torch.equal(there.cpu(), here)


@pytest.mark.parametrize("name", FORMATS)
def test_layouts_are_multiplied_as_they_are_or_it_is_said_why_not(name):
    kind, packed = packed_layout(name)
    if why := native_failure(torch.device(DEVICE), name):
        pytest.skip(f"{name} is not multiplied here: {why}")
    product, x = native_product(kind, 160, 256), torch.randn(70, 256, device=DEVICE, dtype=torch.bfloat16)
    wanted = x.float() @ kind.unpack(packed.to(DEVICE), torch.empty(160, 256, device=DEVICE)).t()
    off = (product(x, packed.to(DEVICE), None).float() - wanted).norm() / wanted.norm()
    assert 1e-4 < off < {"int8": 0.03, "mxfp8": 0.05, "nvfp4": 0.15}[name]


def test_a_packed_layer_gives_the_product_of_its_numbers():
    parts = [PackedMatrix(PACKED[kind]) for kind in ("Q4_K", "Q6_K")]
    layer = PackedLinear(torch.nn.Linear(512, 192, bias=False, device=DEVICE), parts)
    rows = [torch.from_numpy(random_blocks(part.kind.name, 96, 2)).flatten() for part in parts]
    layer.weight = torch.nn.Parameter(torch.cat(rows).to(DEVICE), requires_grad=False)
    x = torch.randn(40, 512, device=DEVICE, dtype=torch.bfloat16)
    made = layer(x).float()
    wanted = x.float() @ layer.unpacked(torch.bfloat16).float().t()
    assert (made - wanted).norm() <= 0.01 * wanted.norm()
