"""A layer of the 14B model at 704x384 moves no more bytes, in no more operations, than it has to: all counted."""

import pytest
import torch

from liveavatar.bench.tracked import MemoryTraffic
from liveavatar.config import WAN2_2_S2V_14B as BIG
from liveavatar.model import attention, quantize
from liveavatar.model.attention import AttentionKernel
from liveavatar.model.kv_cache import BlockCache, RollingKVCache, SinkKV, Window
from liveavatar.model.layer import AudioTokens, TextKV
from liveavatar.model.rope import Rope
from liveavatar.model.transformer import CausalS2VTransformer, ModelSlice, empty_transformer
from liveavatar.storage import WeightFormat

META, FRAME = torch.device("meta"), 24 * 44
HEADS, WIDTH = BIG.num_heads, BIG.head_dim
GB = 1e9


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def turns(tokens: int) -> Rope:
    made = Rope(*(empty(tokens, WIDTH // 2, dtype=torch.float32) for _ in range(2)))
    assert made.turns.shape == (tokens, 1, WIDTH // 2)  # made once for all layers
    return made


def layer_of(number: int, weights: WeightFormat) -> CausalS2VTransformer:
    net = empty_transformer(BIG, ModelSlice(range(number, number + 1)), weights).requires_grad_(False)
    for module in net.modules():
        for name, held in module._parameters.items():
            if held is not None and held.is_floating_point() and held.itemsize > 1 and not name.endswith("_scale"):
                module._parameters[name] = torch.nn.Parameter(held.to(torch.bfloat16), requires_grad=False)
    return net


def kernel_that_tells_sums() -> AttentionKernel:
    with_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return AttentionKernel("counted", lambda q, k, v: with_lse(q, k, v)[0], with_lse)


@pytest.mark.parametrize(
    ("weights", "layer", "gigabytes", "operations"),
    [("plain", 1, 3.0, 60), ("fp8", 1, 4.6, 100), ("plain", 0, 3.7, 90), ("fp8", 0, 5.7, 150)],
    ids=["plain", "fp8", "plain with injector", "fp8 with injector"],
)
def test_bytes_and_operations_of_a_layer(
    weights: WeightFormat, layer: int, gigabytes: float, operations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(quantize.fp8_trials, (META, True, True), "")
    monkeypatch.setattr(attention, "default_kernel", lambda device: kernel_that_tells_sums())
    net = layer_of(layer, weights)
    kv_cache = RollingKVCache.empty(FRAME, HEADS, WIDTH, torch.bfloat16, META)
    sink = SinkKV(*(empty(rows, HEADS, WIDTH) for rows in (FRAME, FRAME * 3 // 2, FRAME * 5 // 2)))
    memory = BlockCache(kv_cache, Window.of(4, FRAME), sink, turns(FRAME))
    text = TextKV(empty(BIG.text_len, HEADS, WIDTH), empty(BIG.text_len, HEADS, WIDTH))
    audio, rope = AudioTokens(empty(1, 3, BIG.dim), empty(1, 3, 5, BIG.dim)), turns(3 * FRAME)
    x, modulation = empty(3 * FRAME, BIG.dim), empty(1, 6, BIG.dim, dtype=torch.float32)
    with torch.no_grad(), MemoryTraffic() as moved:
        net.run_layers(x, modulation, rope, [text], [memory], audio)
    print(f"{moved.total / GB:.2f} GB in {moved.operations} operations", dict(moved.nbytes.most_common(6)))
    assert gigabytes / 2 < moved.total / GB <= gigabytes
    assert moved.operations <= operations
