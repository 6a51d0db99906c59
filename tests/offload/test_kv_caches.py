"""Every kind of cache shows a block what the plain one shows it, and moves no byte too many."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.config import BLOCK_LATENTS, WINDOW_BLOCKS
from liveavatar.errors import HostMemoryError
from liveavatar.model.kv_cache import Window, window_tokens
from liveavatar.model.quantize import quantize_rows_fp8
from liveavatar.offload.kv_cache import OffloadedKVCache, StageKVCaches, allocate_kv_caches
from liveavatar.offload.kv_formats import (
    KVCacheShape,
    as_kv_format,
    dequantize_blocks_int4,
    kv_tensors,
    quantize_block_int4,
)
from liveavatar.offload.pinned_memory import PinnedBuffer
from liveavatar.planner.memory import kv_cache_bytes, kv_cache_transfer_bytes
from liveavatar.storage import KVDtype, StorageConfig

FRAME, HEADS, WIDTH, LAYERS = 4, 2, 6, 3
TOKENS = BLOCK_LATENTS * FRAME
CPU = torch.device("cpu")
FORMATS: tuple[KVDtype, ...] = get_args(KVDtype)


def caches(storage: StorageConfig, dtype: torch.dtype = torch.float32) -> StageKVCaches:
    return allocate_kv_caches(storage, range(2), LAYERS, KVCacheShape(window_tokens(FRAME), HEADS, WIDTH, dtype), CPU)


def rows(seed: int, tokens: int = TOKENS, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(tokens, HEADS, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


def passed(made: StageKVCaches, block: int, step: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """What every layer attends to when a block passes."""
    window = Window.of(block, FRAME)
    made.by_step[step][0].prefetch(window)
    seen: list[torch.Tensor] = []
    for layer, cache in enumerate(made.by_step[step]):
        k, v = (rows(100 * block + 10 * layer + i, dtype=dtype) for i in range(2))
        seen += [shown.clone() for shown in cache.update(window, k, v)]  # it is theirs again after `release`
        cache.release()
    return seen


@given(st.integers(0, 100_000), st.integers(1, 50), st.integers(1, 6))
def test_own_and_earlier_rows_are_the_window(block: int, frame: int, blocks: int) -> None:
    window = Window.of(block, frame, blocks)
    listed = [i for s in (window.own, *window.earlier) for i in range(s.start, s.stop)]
    assert sorted(listed) == list(range(window.valid))
    assert len(listed) - window.tokens == min(block, blocks - 1) * window.tokens


@given(st.integers(0, 2**32), st.floats(-30, 15), st.sampled_from([torch.float32, torch.bfloat16]))
def test_quantised_rows_are_near(seed: int, scale: float, dtype: torch.dtype) -> None:
    exact = (rows(seed) * 10.0**scale).to(dtype)
    small, scales = quantize_rows_fp8(exact)
    assert small.dtype == torch.float8_e4m3fn and scales.shape == (TOKENS, HEADS, 1)
    largest = exact.float().abs().amax(-1, keepdim=True)
    bound = torch.maximum(exact.float().abs() / 16, largest / 2**18).clamp_min(1e-15)
    assert ((small.float() * scales - exact.float()).abs() <= bound * 1.001).all()


def test_rows_of_zeros_stay_zeros() -> None:
    small, scales = quantize_rows_fp8(torch.zeros(2, 1, 4))
    assert torch.equal(small.float() * scales, torch.zeros(2, 1, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_caches_show_own_rows_exactly_and_earlier_ones_rounded(dtype: torch.dtype) -> None:
    plain, fp8 = caches(StorageConfig(), dtype), caches(StorageConfig(kv_dtype="fp8"), dtype)
    for block in range(2 * WINDOW_BLOCKS + 1):
        window = Window.of(block, FRAME)
        for exact, rounded in zip(passed(plain, block, 0, dtype), passed(fp8, block, 0, dtype), strict=True):
            assert rounded.dtype == dtype
            assert torch.equal(rounded[window.own], exact[window.own])
            assert len(rounded) == window.valid
            for earlier in window.earlier:
                small, scales = quantize_rows_fp8(exact[earlier])
                assert torch.equal(rounded[earlier], (small.float() * scales).to(dtype))


def through_int4(x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A block, rounded and widened again."""
    out = torch.empty(x.shape, dtype=dtype or x.dtype)
    dequantize_blocks_int4(quantize_block_int4(x), out)
    return out


@given(
    st.integers(0, 2**32),
    st.integers(1, 50),
    st.sampled_from([2, 6, 48, 128]),
    st.floats(-9, 9),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_numbers_in_four_bits_are_within_a_step(
    seed: int, tokens: int, width: int, magnitude: float, dtype: torch.dtype
) -> None:
    """A step is an eighth of the largest of a group, counted in factors of its channels."""
    drawn = torch.Generator().manual_seed(seed)
    channels = torch.exp(2 * torch.randn(2, HEADS, width, generator=drawn))
    exact = (torch.randn(tokens, HEADS, width, generator=drawn) * channels[0] + channels[1]) * 10.0**magnitude
    exact = exact.to(dtype).float()
    packed, scale, kept = quantize_block_int4(exact)
    groups = scale.shape[-1]
    assert packed.shape == (tokens, HEADS, width // 2) and kept.shape == (1, 2, HEADS, width)
    assert width % groups == 0 and width // groups <= 32
    mean, factor = kept[0]
    largest = ((exact - mean) / factor).abs().unflatten(-1, (groups, -1)).amax(-1)
    assert (scale.float().abs() <= 1.01 * largest / 8 + (largest < 1e-6)).all()
    error, step = (through_int4(exact) - exact).abs(), factor * (largest / 8).repeat_interleave(width // groups, -1)
    assert (error <= 1.02 * step + 1e-5 * (exact.abs() + factor)).all()


def test_what_is_the_same_in_all_tokens_is_kept() -> None:
    for x in (torch.zeros(7, HEADS, WIDTH), rows(1)[:1].expand(7, -1, -1) * 1e4):
        torch.testing.assert_close(through_int4(x), x, rtol=1e-5, atol=0.0)


def test_large_channels_take_few_bits_from_others() -> None:
    """As keys of transformers have them: far from zero, or many times as large, also where they are rotated."""
    exact = torch.randn(512, 1, 128, generator=torch.Generator().manual_seed(3))
    alone = (through_int4(exact) - exact).norm()
    wide, turned = 30 * exact[:, 0, 5], 30 * torch.linspace(0, 20, 512).cos()
    for large, most in ((exact[:, 0, 5] + 30, 1.05), (wide, 3), (turned, 3)):
        exact[:, 0, 5] = large
        error = through_int4(exact) - exact
        error[:, 0, 5] = 0
        assert error.norm() < most * alone
    assert torch.equal(exact[:, 0, 5], turned)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int4_caches_show_own_rows_exactly_and_earlier_blocks_rounded_one_by_one(dtype: torch.dtype) -> None:
    plain, int4 = caches(StorageConfig(), dtype), caches(StorageConfig(kv_dtype="int4"), dtype)
    for block in range(2 * WINDOW_BLOCKS + 1):
        window = Window.of(block, FRAME)
        for exact, rounded in zip(passed(plain, block, 0, dtype), passed(int4, block, 0, dtype), strict=True):
            assert rounded.dtype == dtype and len(rounded) == window.valid
            assert torch.equal(rounded[window.own], exact[window.own])
            for start in {*range(0, window.valid, TOKENS)} - {window.start}:
                assert torch.equal(rounded[start : start + TOKENS], through_int4(exact[start : start + TOKENS]))


@pytest.mark.parametrize("keys", FORMATS)
def test_rows_of_one_format_are_brought_to_another(keys: KVDtype) -> None:
    shape = KVCacheShape(3 * TOKENS, HEADS, WIDTH, torch.float32, 3)
    exact = rows(1, 3 * TOKENS), rows(2, 3 * TOKENS)
    made = as_kv_format(exact, len(kv_tensors(keys, shape)), TOKENS)
    assert [(tuple(t.shape), t.dtype) for t in made] == list(kv_tensors(keys, shape))
    for other in FORMATS:
        count = len(kv_tensors(other, shape))
        again = as_kv_format(made, count, TOKENS)
        if other == keys:
            assert all(a is b for a, b in zip(made, again, strict=True))
        for x, y in zip(exact, as_kv_format(again, 2, TOKENS), strict=True):
            assert (x - y).norm() < 0.2 * x.norm()


@pytest.mark.parametrize("keys", FORMATS)
def test_caches_on_the_host_show_what_caches_on_the_device_show(keys: KVDtype) -> None:
    near, far = caches(StorageConfig(kv_dtype=keys)), caches(StorageConfig(kv_dtype=keys, kv_offload=True))
    cache = far.by_step[0][0]
    assert isinstance(cache, OffloadedKVCache)
    for block in range(2 * WINDOW_BLOCKS + 1):
        for step in range(2):
            for slot in cache.double_buffer.slots:  # what a slot was left with is never seen again
                for tensor in slot.buffer.tensors():
                    tensor.fill_(float("nan") if tensor.is_floating_point() else 77)
            for a, b in zip(passed(near, block, step), passed(far, block, step), strict=True):
                assert torch.equal(a, b)
    for step in range(2):
        for a, b in zip(near.by_step[step], far.by_step[step], strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))


@pytest.mark.parametrize("keys", FORMATS)
def test_only_rows_of_earlier_blocks_come_and_only_new_ones_go(keys: KVDtype) -> None:
    storage = StorageConfig(kv_dtype=keys, kv_offload=True)
    made, row = caches(storage), kv_cache_bytes(keys, TOKENS, HEADS, WIDTH, 4)
    for block in range(7):
        before = made.transfer_stats.to_device, made.transfer_stats.to_host
        passed(made, block)
        carried = made.transfer_stats.to_device - before[0], made.transfer_stats.to_host - before[1]
        earlier = min(block, WINDOW_BLOCKS - 1)
        assert (
            carried == kv_cache_transfer_bytes(storage, row, LAYERS, earlier) == (earlier * row * LAYERS, row * LAYERS)
        )
    assert kv_cache_transfer_bytes(StorageConfig(kv_dtype=keys), row, LAYERS, 3) == (0, 0)


@pytest.mark.parametrize("home", [False, True])
@pytest.mark.parametrize("keys", FORMATS)
def test_caches_give_and_take_what_they_keep(keys: KVDtype, home: str) -> None:
    storage = StorageConfig(kv_dtype=keys, kv_offload=home)
    made, other = caches(storage), caches(storage)
    for block in range(5):
        passed(made, block)
    for block in range(2):
        passed(other, block)
    other.by_step[0][0].prefetch(Window.of(5, FRAME))  # of rows that are about to be replaced
    for cache, target in zip(made.by_step[0], other.by_step[0], strict=True):
        for mine, its in zip(cache.tensors(), target.tensors(), strict=True):
            its.copy_(mine)
    assert all(torch.equal(a, b) for a, b in zip(passed(made, 5), passed(other, 5), strict=True))


def test_a_task_that_was_broken_off_leaves_nothing_behind() -> None:
    near, far = caches(StorageConfig()), caches(StorageConfig(kv_offload=True))
    for block in range(4):
        passed(near, block)
        passed(far, block)
    window = Window.of(4, FRAME)
    far.by_step[0][0].prefetch(window)
    far.by_step[0][0].update(window, rows(1), rows(2))  # and the second layer is on its way
    for cache, target in zip(near.by_step[0], far.by_step[0], strict=True):
        for mine, its in zip(cache.tensors(), target.tensors(), strict=True):
            its.copy_(mine)
    for block in (4, 5):
        assert all(torch.equal(a, b) for a, b in zip(passed(near, block), passed(far, block), strict=True))


def test_host_memory_that_is_not_there_is_refused_in_words() -> None:
    with pytest.raises(HostMemoryError, match=r"1152921504\.6 GB of pinned host memory are needed") as e:
        PinnedBuffer(2**60, CPU)
    assert "keep more on the device" in e.value.nearest


def test_tensors_in_host_memory_do_not_overlap() -> None:
    memory = PinnedBuffer(1024, CPU)
    a, b = memory.allocate((3, 5), torch.float8_e4m3fn), memory.allocate((7,), torch.float32)
    a.copy_(torch.full((3, 5), 2.0))
    b.fill_(3.0)
    assert torch.equal(a.float(), torch.full((3, 5), 2.0)) and b.data_ptr() % 64 == 0


@pytest.mark.parametrize("keys", FORMATS)
def test_a_cache_takes_what_is_counted(keys: KVDtype) -> None:
    shape = KVCacheShape(window_tokens(96, 3), 4, 48, torch.bfloat16, 3)
    held = sum(math.prod(size) * dtype.itemsize for size, dtype in kv_tensors(keys, shape))
    assert held == 3 * kv_cache_bytes(keys, BLOCK_LATENTS * 96, 4, 48, 2)
