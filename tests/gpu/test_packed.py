"""On a GPU: blocks of GGUF files are unpacked to the same bits as on the CPU, and packed layers give their products."""

import pytest
import torch
from gpu.device import DEVICE, on_the_device
from weights.test_dequantise import random_blocks

from liveavatar.model.packed import PackedLinear
from liveavatar.weights.block_types import PACKED, PackedMatrix
from liveavatar.weights.dequantise import unpack_rows

pytestmark = on_the_device


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", PACKED)
def test_blocks_are_unpacked_as_on_the_cpu(kind, dtype):
    width = 4 * PACKED[kind].numbers
    packed = torch.from_numpy(random_blocks(kind, 96, 4)).flatten()
    here = unpack_rows(packed, kind, torch.empty(96, width, dtype=dtype))
    there = unpack_rows(packed.to(DEVICE), kind, torch.empty(96, width, dtype=dtype, device=DEVICE))
    assert torch.equal(there.cpu(), here)


def test_a_packed_layer_gives_the_product_of_its_numbers():
    parts = [PackedMatrix(PACKED[kind]) for kind in ("Q4_K", "Q6_K")]
    layer = PackedLinear(torch.nn.Linear(512, 192, bias=False, device=DEVICE), parts)
    rows = [torch.from_numpy(random_blocks(part.kind.name, 96, 2)).flatten() for part in parts]
    layer.weight = torch.nn.Parameter(torch.cat(rows).to(DEVICE), requires_grad=False)
    x = torch.randn(40, 512, device=DEVICE, dtype=torch.bfloat16)
    made = layer(x).float()
    wanted = x.float() @ layer.unpacked(torch.bfloat16).float().t()
    assert (made - wanted).norm() <= 0.01 * wanted.norm()
