"""Blocks of GGUF files are unpacked to the bit as the gguf package unpacks them."""

import gguf
import numpy as np
import pytest
import torch

from liveavatar.weights.block_types import FLOATS, PACKED
from liveavatar.weights.dequantise import unpack_rows, unpacked


def random_blocks(kind: str, rows: int, blocks: int) -> np.ndarray:
    """Bytes of any value, but for the float16 numbers among them, which are finite."""
    rng, size = np.random.default_rng(5), PACKED[kind].nbytes
    made = rng.integers(0, 256, (rows * blocks, size), dtype=np.uint8)
    scale = rng.normal(size=(rows * blocks, 2)).astype(np.float16).view(np.uint8)
    places = {"Q2_K": (80, 4), "Q3_K": (108, 2), "Q6_K": (208, 2)}
    two = kind.endswith("_1") or kind in ("Q4_K", "Q5_K")
    start, count = places.get(kind, (0, 4 if two else 2))
    made[:, start : start + count] = scale[:, :count]
    return made.reshape(rows, -1)


@pytest.mark.parametrize("kind", PACKED)
def test_numbers_are_those_of_the_package_to_the_bit(kind):
    packed = random_blocks(kind, 48, 5)
    wanted = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind])
    found = unpacked(torch.from_numpy(packed), kind, wanted.shape)
    assert np.array_equal(found.numpy().view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", PACKED)
def test_a_matrix_is_rounded_once_in_parts_or_whole(kind, dtype):
    packed = torch.from_numpy(random_blocks(kind, 300, 4))
    wanted = unpacked(packed, kind, (300, 4 * PACKED[kind].numbers)).to(dtype)
    for whole in (False, True):
        assert torch.equal(unpack_rows(packed.flatten(), kind, torch.empty_like(wanted), whole), wanted)


@pytest.mark.parametrize("kind", [*PACKED.values(), *FLOATS.values()], ids=lambda kind: kind.name)
def test_blocks_are_as_large_as_the_package_says(kind):
    assert (kind.numbers, kind.nbytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.name]]


def test_nothing_of_a_compiled_graph_is_left_to_python():
    import torch._dynamo as dynamo

    for kind in PACKED:
        packed = torch.from_numpy(random_blocks(kind, 3, 1))
        out = torch.empty(3, PACKED[kind].numbers)
        explained = dynamo.explain(lambda p, kind=kind, out=out: unpack_rows(p, kind, out, whole=True))(packed)
        assert explained.graph_break_count == 0, kind
