"""Probes of the devices: which there are, how fast they copy and how fast they compute."""

from __future__ import annotations

import functools
import math
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..config import BLOCK_LATENTS, CLIP_BLOCKS, WAN2_2_S2V_14B
from ..model.attention import AttentionKernel, attention
from ..model.attention_backends import kernels, try_kernel
from ..utils import format_bytes
from .host import host
from .report import FLOAT8_ROWS, Accelerators, AttentionSpeed, Compute, Copies, Device, Peer

_TOKENS = 1056
"""Tokens of a latent frame at 704x384."""
_QUERIES = BLOCK_LATENTS * _TOKENS
_WINDOW, _SINK = CLIP_BLOCKS * _QUERIES, 5 * _TOKENS // 2
"""Keys of the window of blocks and of the sink."""
_SMALLER = 12
"""By which widths and numbers of tokens are divided on a CPU."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SLOW_FLOAT8 = 64, 256, 64
"""Shape of a product in fp8 with one scale on a CPU, which needs seconds for larger ones."""
_LEAST_FREE = 2 * 10**9
"""Bytes free on a GPU that the measurements need."""


def accelerators() -> Accelerators:
    """The GPUs that PyTorch can use, those that the driver knows, and the CPU."""
    driver, known = driver_said(_ask_driver())
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        free, _ = torch.cuda.mem_get_info(index)
        capability = f"{properties.major}.{properties.minor}"
        found.append(Device(f"cuda:{index}", properties.name, properties.total_memory, free, capability))
    computer = host()
    found.append(Device("cpu", computer.cpu, computer.ram, computer.ram_free, ""))
    hip = getattr(torch.version, "hip", None)
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {hip}" if hip else "CPU"
    return Accelerators(build, driver, known, tuple(found))


def identities() -> tuple[tuple[str, str], ...]:
    """Id and name of each device of this machine."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return (*((f"cuda:{i}", torch.cuda.get_device_properties(i).name) for i in range(count)), ("cpu", host().cpu))


def driver_said(text: str) -> tuple[str, tuple[str, ...]]:
    """Version of the NVIDIA driver and names of the cards, from lines of "name, version"."""
    pairs = [re.fullmatch(r"\s*(.+?)\s*,\s*(\d[\d.]*)\s*", line) for line in text.splitlines()]
    cards = [pair for pair in pairs if pair]
    return (cards[0][2] if cards else ""), tuple(card[1] for card in cards)


def copies(device: str, quick: bool) -> Copies:
    """Copies between a device and the host, and within its memory."""
    rounds = 3 if quick else 7
    size = (32 if quick or device == "cpu" else 256) * 2**20
    if device == "cpu":
        a, b = torch.ones(size, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8)
        return Copies(None, None, None, None, _copied(b, a, rounds))
    _check_room(device)
    near = torch.empty(size, dtype=torch.uint8, device=device)
    other = torch.empty_like(near)
    pageable = torch.ones(size, dtype=torch.uint8)
    pinned = torch.ones(size, dtype=torch.uint8, pin_memory=True)
    return Copies(
        pinned_in=_copied(near, pinned, rounds),
        pinned_out=_copied(pinned, near, rounds),
        pageable_in=_copied(near, pageable, rounds),
        pageable_out=_copied(pageable, near, rounds),
        memory=_copied(other, near, rounds),
    )


def peers(quick: bool) -> tuple[Peer, ...]:
    """Copies between each ordered pair of GPUs."""
    count, size = torch.cuda.device_count(), (32 if quick else 256) * 2**20
    found = []
    for i in range(count):
        source = torch.ones(size, dtype=torch.uint8, device=f"cuda:{i}")
        for j in range(count):
            if i != j:
                target = torch.empty(size, dtype=torch.uint8, device=f"cuda:{j}")
                speed = _copied(target, source, 3 if quick else 7)
                found.append(Peer(f"cuda:{i}", f"cuda:{j}", torch.cuda.can_device_access_peer(i, j), speed))
    return tuple(found)


def compute(device: str, quick: bool) -> Compute:
    """Matrix products and attention in the shapes of one task, scaled down on a CPU."""
    if device != "cpu":
        _check_room(device)
        torch.cuda.set_device(device)
    seconds = (0.1 if quick else 0.4) * (1 if device == "cpu" else 0.5)
    matmul: dict[str, float] = {}
    failed: dict[str, str] = {}
    for dtype in _DTYPES:
        name = str(dtype).removeprefix("torch.")
        _try(matmul, failed, name, functools.partial(_matmul, device, dtype, seconds))
    for name, by_row in (("float8", False), (FLOAT8_ROWS, True)):
        _try(matmul, failed, name, functools.partial(_float8, device, seconds, by_row))
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return Compute(matmul, tuple(attention_speeds(torch.device(device), dtype, seconds)), failed)


def _try(into: dict[str, float], failed: dict[str, str], name: str, measure: Callable[[], float]) -> None:
    """A dtype that a device does not know is a result, not the end of the probe."""
    try:
        into[name] = measure()
    except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        failed[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


def _matmul(device: str, dtype: torch.dtype, seconds: float) -> float:
    m, k, n = _matrix(device)
    a = torch.randn(m, k, device=device).to(dtype)
    b = torch.randn(k, n, device=device).to(dtype)
    return 2 * m * k * n / median_seconds(lambda: a @ b, device, seconds) / 1e12


def _float8(device: str, seconds: float, by_row: bool) -> float:
    """The product of e4m3 matrices, one scale per tensor or per row; checked: a wrong kernel is worse than none."""
    m, k, n = _SLOW_FLOAT8 if device == "cpu" and not by_row else _matrix(device)
    a = torch.randint(-4, 5, (m, k), device=device, dtype=torch.float32).to(torch.float8_e4m3fn)
    b = torch.randint(-4, 5, (n, k), device=device, dtype=torch.float32).to(torch.float8_e4m3fn).t()
    scale_a, scale_b = (torch.ones(shape if by_row else (), device=device) for shape in ((m, 1), (1, n)))
    scaled_mm: Any = torch._scaled_mm

    def product() -> torch.Tensor:
        return scaled_mm(a, b, scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16, use_fast_accum=True)

    expected = a[:16].float() @ b[:, :16].float()
    if not torch.allclose(product()[:16, :16].float(), expected, rtol=0.02, atol=1.0):
        raise RuntimeError("the product is wrong")
    return 2 * m * k * n / median_seconds(product, device, seconds) / 1e12


def attention_speeds(device: torch.device, dtype: torch.dtype, seconds: float = 0.1) -> Iterator[AttentionSpeed]:
    """Each kernel of self-attention as layers of the 14B model use it at 704x384, the best of each backend first.

    Args:
        device: where; on a CPU with two heads and fewer tokens.
        dtype: of queries, keys and values.
        seconds: that each is repeated for, about.
    """
    for kernel in kernels(device):
        tflops = None
        error, why = try_kernel(kernel, device, dtype, WAN2_2_S2V_14B.head_dim)
        if not why:
            try:
                tflops = _attention(kernel, device, dtype, seconds)
            except Exception as failure:  # what passed with a few tokens may fail with so many
                why = f"{type(failure).__name__}: {(str(failure).strip().splitlines() or [''])[0][:120]}"
        known = error if math.isfinite(error) else None
        yield AttentionSpeed(kernel.name, kernel.variant, str(dtype).removeprefix("torch."), known, tflops, why)


def _attention(kernel: AttentionKernel, device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """To keys in two parts, window and sink, as the KV cache holds them."""
    heads, less = (2, _SMALLER) if device.type == "cpu" else (WAN2_2_S2V_14B.num_heads, 1)
    width = WAN2_2_S2V_14B.head_dim

    def rows(tokens: int) -> torch.Tensor:
        return torch.randn(tokens // less, heads, width, device=device).to(dtype)

    q, parts = rows(_QUERIES), [(rows(tokens), rows(tokens)) for tokens in (_WINDOW, _SINK)]
    work = 4 * heads * len(q) * sum(len(k) for k, _ in parts) * width / 1e12
    return work / median_seconds(functools.partial(attention, q, parts, kernel), str(device), seconds)


def _matrix(device: str) -> tuple[int, int, int]:
    """Tokens of a block, width and feed-forward width of the 14B model; less of each on a CPU."""
    sizes = (_QUERIES, WAN2_2_S2V_14B.dim, WAN2_2_S2V_14B.ffn_dim)
    m, k, n = (size // _SMALLER // 16 * 16 for size in sizes) if device == "cpu" else sizes
    return m, k, n


def median_seconds(work: Callable[[], Any], device: str, seconds: float) -> float:
    """Of one call: warmed up, then at least three times and for about so many seconds."""
    for _ in range(1 if device == "cpu" else 3):
        work()
    taken: list[float] = []
    while len(taken) < 3 or (sum(taken) < seconds and len(taken) < 1000):
        taken.append(_time(work, device))
        if sum(taken) > 3 * seconds:  # slow at this: one or two times tell enough
            break
    return max(statistics.median(taken), 1e-9)


def _time(work: Callable[[], Any], device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    work()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


def _copied(to: torch.Tensor, source: torch.Tensor, rounds: int) -> float:
    """GB/s; waits for both devices, so the clock of the host is right for all kinds of copies."""
    taken = []
    for number in range(rounds + 1):
        _wait(to, source)
        start = time.perf_counter()
        to.copy_(source, non_blocking=True)
        _wait(to, source)
        if number:  # the first one warms up
            taken.append(time.perf_counter() - start)
    return source.numel() / max(statistics.median(taken), 1e-9) / 1e9


def _wait(*tensors: torch.Tensor) -> None:
    for tensor in tensors:
        if tensor.is_cuda:
            torch.cuda.synchronize(tensor.device)


def _check_room(device: str) -> None:
    free, _ = torch.cuda.mem_get_info(device)
    if free < _LEAST_FREE:
        raise MemoryError(
            f"only {format_bytes(free)} are free on {device}; measuring needs {format_bytes(_LEAST_FREE, '.0f')}"
        )


def _ask_driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
