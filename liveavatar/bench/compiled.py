"""Layers compiled one by one: what a compiler gains on the same machinery."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import torch

from ..errors import ModelError
from ..model.layer import Memory, TextKV
from ..model.rope import Rope
from ..model.transformer import CausalS2VTransformer

_SHAPES = 64
"""Forms of one function at most: windows that fill up, the sink, and formats of weights."""


class _Apart:
    """A memory that the compiler does not look into: it moves bytes and waits for copies."""

    def __init__(self, memory: Memory):
        self._extend = memory.extend

    @torch.compiler.disable
    def extend(self, k: torch.Tensor, v: torch.Tensor, rope: Rope) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Memory.extend`."""
        return self._extend(k, v, rope)


def compile_layers(nets: Iterable[CausalS2VTransformer], backend: str = "inductor") -> None:
    """Let every layer be compiled when it first works, for each shape by itself.

    Args:
        nets: whose layers; they stay compiled.
        backend: of `torch.compile`.

    Raises:
        ModelError: this PyTorch has no compiler.
    """
    try:
        import torch._dynamo as dynamo

        for name in ("recompile_limit", "cache_size_limit"):
            if hasattr(dynamo.config, name):
                setattr(dynamo.config, name, _SHAPES)
        for net in nets:
            for _, layer in net.numbered_layers():
                whole = torch.compile(layer.forward, dynamic=False, backend=backend)
                layer.forward = functools.partial(_work, whole)  # type: ignore[method-assign]
    except (ImportError, RuntimeError) as error:
        raise cannot_compile(error) from error


def cannot_compile(error: Exception) -> ModelError:
    """What is said where it fails."""
    why = (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__
    return ModelError(f"The layers cannot be compiled here ({why}).", "Measure without --compile.")


def compile_cache() -> str:
    """Where compiled kernels are kept for the next process."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return str(cache_dir())


def _work(
    whole: Callable[..., torch.Tensor], x: torch.Tensor, time: torch.Tensor, rope: Rope, text: TextKV, memory: Memory
) -> torch.Tensor:
    return whole(x, time, rope, text, _Apart(memory))
