"""Compiled layers: one graph for each shape of a task, shared by all layers, made before the work begins.

What is compiled are functions of a layer and its inputs, so that layers of one kind share their graphs; nothing of a
network is changed, and whoever works with the same network as it is written notices nothing. A graph is kept by the
code it was made from. Each `CompiledLayers` has code of its own: it serves one device, one image size and one length of
clips, and goes with all its graphs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from ..compiler import CompileError
from ..config import BLOCK_LATENTS, SPATIAL_STRIDE
from ..errors import LiveAvatarError
from ..events import Callback, notice_event
from ..model.attention import AttentionKernel
from ..model.kv_cache import BlockCache, RollingKVCache, SinkKV, SinkRecorder, Window
from ..model.layer import EAGER, AudioTokens, KVCache, LayerOps, TextKV
from ..model.quantize import supports_fp8_matmul
from ..model.rope import RopeGrid
from ..model.transformer import CausalS2VTransformer
from ..planner import Plan

_PATCH = 2 * SPATIAL_STRIDE
"""Pixels of a token's side."""


def forms(window_blocks: int) -> int:
    """Forms of a task: the sink, and a block with 1 to `window_blocks` blocks in its window."""
    return 1 + window_blocks


class CompiledLayers:
    """The functions of layers, compiled for one device, one image size and one number of threads.

    Args:
        device: where the layers work.
        size: width and height of the image.
        compiler: backend of `torch.compile`.
        window_blocks: blocks a KV cache holds.
        speakers: how many are heard in one picture.

    Attributes:
        forms: of a task (see `forms`).
    """

    def __init__(
        self, device: torch.device, size: tuple[int, int], compiler: str, window_blocks: int, speakers: int = 1
    ):
        self.window_blocks, self.forms, self.speakers = window_blocks, forms(window_blocks), speakers
        self.device, self.columns, self.rows = device, *(n // _PATCH for n in size)
        self._compiler = compiler
        self._compiled: weakref.WeakKeyDictionary[CausalS2VTransformer, set[tuple[int, str]]] = (
            weakref.WeakKeyDictionary()
        )

    @functools.cached_property
    def ops(self) -> LayerOps:
        """For stages and networks that have been warmed up."""

        def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(_with_own_code(function), dynamic=False, fullgraph=True, backend=self._compiler)

        # Whether a device multiplies e4m3 is tried on it, once: graphs know the answer and never ask.
        torch.compiler.assume_constant_result(supports_fp8_matmul)
        return LayerOps(**{part.name: compiled(getattr(EAGER, part.name)) for part in dataclasses.fields(LayerOps)})

    def is_compiled_for(self, net: CausalS2VTransformer, kernel: AttentionKernel) -> bool:
        """Whether a network can work with a kernel of self-attention without anything being compiled for it."""
        forms = [form for form, name in self._compiled.get(net, ()) if name == kernel.name]
        return len(forms) == self.forms or not net.slice.layers

    def warm_up(self, net: CausalS2VTransformer, shape: int, dtype: torch.dtype, kernel: AttentionKernel) -> None:
        """Run all layers of a network once on made-up data, in one form; what is new is compiled.

        Args:
            net: whose layers.
            shape: 0 to `forms` - 1.
            dtype: of the tokens.
            kernel: of self-attention.

        Raises:
            CompileError: it cannot be compiled here.
        """
        if (shape, kernel.name) in (known := self._compiled.setdefault(net, set())) or not net.slice.layers:
            return
        try:
            grid = RopeGrid(self.rows, self.columns, net.config.head_dim, self.device)
            with _room_for(self.forms):
                ops = self.ops.attending(kernel)
                _run_once(net, grid, shape, dtype, ops, self.window_blocks, self.speakers)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        except (LiveAvatarError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # compilers raise errors of many kinds, and start programs that do
            raise CompileError.of(error) from error
        known.add((shape, kernel.name))


def _room_for(forms: int) -> AbstractContextManager[Any]:
    """Where long clips have more forms than PyTorch makes graphs of one piece of code, it makes more inside."""
    from torch._dynamo import config

    few = forms <= getattr(config, "recompile_limit", forms)
    return contextlib.nullcontext() if few else config.patch(recompile_limit=2 * forms)


def without_compiling(plan: Plan, problem: LiveAvatarError, callback: Callback) -> Plan:
    """The plan with layers as they are written, where compiling them was nobody's wish.

    Args:
        plan: of compiled layers.
        problem: why they cannot be compiled.
        callback: called with a notice that says so.

    Raises:
        LiveAvatarError: the problem, where they must be.
    """
    if not plan.compile_optional:
        raise problem
    callback(notice_event(f"It goes on without compiled layers. {problem.what}"))
    return dataclasses.replace(plan, compiled=False, compile_optional=False, forecast=None)


def compiling_notice() -> str:
    """What is said while it is done; always the same."""
    return f"Compiling the layers, once per size (what was compiled before is in {cache_folder()})."


def compiled_notice(seconds: float) -> str:
    """What is said when it is done."""
    return f"The layers were compiled and warmed up in {seconds:.1f} s; {cache_folder()} keeps it for the next process."


def cache_folder() -> str:
    """Where compiled kernels are kept for the next process."""
    from torch._inductor.codecache import cache_dir

    return str(cache_dir())


def _run_once(
    net: CausalS2VTransformer,
    grid: RopeGrid,
    shape: int,
    dtype: torch.dtype,
    ops: LayerOps,
    window_blocks: int,
    speakers: int,
) -> None:
    config, frame, device = net.config, grid.tokens, grid.device

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    def heads(rows: int) -> torch.Tensor:
        return zeros(rows, config.num_heads, config.head_dim)

    layers = len(net.slice.layers)
    text_kv = [TextKV(heads(config.text_len), heads(config.text_len))] * layers
    modulation = torch.zeros(layers, 6, config.dim, device=device)
    rope = grid.reference() + grid.motion()
    sink_tokens = len(rope.cos)
    caches: list[KVCache]
    if not shape:
        caches = [SinkRecorder(frame) for _ in range(layers)]
        net.run_layers(zeros(sink_tokens, config.dim), modulation, rope, text_kv, caches, None, ops)
        return
    block = shape - 1
    kv_cache = RollingKVCache.empty(frame, config.num_heads, config.head_dim, dtype, device, window_blocks)
    sink = SinkKV(heads(frame), heads(sink_tokens - frame), heads(sink_tokens))
    window = Window.of(block, frame, window_blocks)
    caches = [BlockCache(kv_cache, window, sink, grid.reference(), ops.apply_rope)] * layers
    audio = AudioTokens(
        zeros(speakers, BLOCK_LATENTS, config.dim),
        zeros(speakers, BLOCK_LATENTS, config.num_audio_token + 1, config.dim),
        zeros(speakers, BLOCK_LATENTS * frame, 1) if speakers > 1 else None,
    )
    tokens = zeros(BLOCK_LATENTS * frame, config.dim)
    net.run_layers(tokens, modulation, grid.block(block), text_kv, caches, audio, ops)


def _with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which shares no compiled graphs with any other."""
    assert isinstance(function, types.FunctionType)
    return types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__
    )
