"""The network's source of the published implementation, imported from a checkout beside this library.

None of it is part of this library, and its package has the name of ours. So its modules are imported under a name of
their own, and its `__init__` files, which import pipelines, decoders and training, are passed over: what the network
needs is torch, diffusers and einops. What is read is changed in these places and no others:

- imports from the package get its other name;
- the rotary table, made on "cuda", is made on the device of the weights;
- `torch.bfloat16`, to which activations are cast, becomes the dtype of the weights, and 5120, written for the width of
  the sink, the width of the network: nothing changes where the 14B model works in bfloat16;
- flash-attn and cuDNN's attention give way to `liveavatar.model.attention`, so that both networks use one kernel.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import importlib.machinery
import importlib.util
import io
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import torch

from ..errors import ModelError
from ..model.attention import attention

_PACKAGE = "liveavatar"
_NETWORK = "models.wan.causal_model_s2v"
_SWITCHES = "models.wan.inference_utils"
_ATTENTION = {_NETWORK: "attention", "models.wan.wan_2_2.modules.model": "flash_attention"}
"""Modules that the layers take an attention kernel from, and the kernel's name there."""
_WIDTH = 5120
_NEAREST = "Name a clone of Alibaba-Quark/LiveAvatar at the version this library follows."
_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class OriginalSource:
    """The network's code.

    Attributes:
        network: its class.
        recompile_limit: how often dynamo may compile a function again, as the code sets it.
    """

    network: Callable[..., torch.nn.Module]
    recompile_limit: int


def import_original(
    checkout: Path, dim: int, dtype: torch.dtype, device: torch.device, compiled: bool = False
) -> OriginalSource:
    """The code, imported anew; `liveavatar`, the import path and the settings of dynamo stay what they are.

    Args:
        checkout: folder of the published repository.
        dim, dtype, device: of the weights it will work with.
        compiled: whether it compiles what it does with ENABLE_COMPILE=true, or nothing.

    Raises:
        ModelError: not a checkout, or it cannot be imported.
    """
    check_checkout(checkout)
    package = f"{_PACKAGE}_original_{next(_numbers)}"
    finder = _Finder(package, checkout / _PACKAGE, _Adapted(package, dim, dtype, device))
    sys.meta_path.insert(0, finder)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _import(package, compiled)
    except Exception as error:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
        raise _cannot_import(checkout, package, error) from error
    finally:
        sys.meta_path.remove(finder)


def check_checkout(checkout: Path) -> None:
    """Refuse a folder that holds something else.

    Raises:
        ModelError: the network's source is not there.
    """
    source = Path(_PACKAGE, *_NETWORK.split(".")).with_suffix(".py")
    if not (checkout / source).is_file():
        raise ModelError(
            f"{checkout} is no checkout of the published implementation: {source.as_posix()} is missing.", _NEAREST
        )


def reason_of(error: Exception) -> str:
    """An error's kind and what it says, at most 200 characters of it, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(".: ")


@contextlib.contextmanager
def recompile_limit(limit: int | None = None) -> Iterator[None]:
    """Another limit of dynamo inside, by default the present one; afterwards it is what it was."""
    import torch._dynamo

    config: Any = torch._dynamo.config
    with config.patch(cache_size_limit=config.cache_size_limit if limit is None else limit):
        yield


def _import(package: str, compiled: bool) -> OriginalSource:
    with recompile_limit():
        switches: Any = importlib.import_module(f"{package}.{_SWITCHES}")
        limit = torch._dynamo.config.cache_size_limit
    switches.COMPILE = compiled  # read where functions are defined, so before the network is imported
    network: Any = importlib.import_module(f"{package}.{_NETWORK}")
    for module, kernel in _ATTENTION.items():
        setattr(sys.modules[f"{package}.{module}"], kernel, _attention)
    return OriginalSource(network.CausalWanModel_S2V, limit)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **ignored: Any) -> torch.Tensor:
    """[batch, tokens, heads, head_dim] each, and back; lengths say nothing where no row is padded."""
    return attention(q, [(k, v)]).unflatten(-1, q.shape[-2:])


def _cannot_import(checkout: Path, package: str, error: Exception) -> ModelError:
    if isinstance(error, ModuleNotFoundError) and error.name:
        name = error.name.replace(package, _PACKAGE, 1)
        why, nearest = f"the module {name} is missing", f"Install {name.partition('.')[0]}, or compare without it."
        return ModelError(
            f"The network in {checkout} cannot be imported: {why}.", _NEAREST if name.startswith(_PACKAGE) else nearest
        )
    return ModelError(f"The network in {checkout} cannot be imported ({reason_of(error)}).", _NEAREST)


class _Finder:
    """Finds modules under the name that the package gets; every folder is a package without code."""

    def __init__(self, package: str, folder: Path, adapted: _Adapted):
        self.package, self.folder, self.adapted = package, folder, adapted

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        package, *rest = name.split(".")
        if package != self.package:
            return None
        place = self.folder.joinpath(*rest)
        if place.is_dir():
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(place)]
            return spec
        source = place.with_suffix(".py")
        loader = _Loader(name, str(source), self.adapted)
        return importlib.util.spec_from_file_location(name, source, loader=loader) if source.is_file() else None


class _Loader(importlib.machinery.SourceFileLoader):
    """Takes no bytecode from the checkout, which was made of other source, and leaves none there."""

    def __init__(self, name: str, path: str, adapted: _Adapted):
        super().__init__(name, path)
        self._adapted = adapted

    def get_code(self, fullname: str) -> CodeType:
        tree = self._adapted.visit(ast.parse(self.get_data(self.path), self.path))
        return compile(tree, self.path, "exec", dont_inherit=True)


class _Adapted(ast.NodeTransformer):
    """The changes of the source."""

    def __init__(self, package: str, dim: int, dtype: torch.dtype, device: torch.device):
        self.package, self.dim, self.device = package, dim, str(device)
        self.dtype = str(dtype).removeprefix("torch.")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        package, *rest = (node.module or "").split(".")
        if package == _PACKAGE and not node.level:
            node.module = ".".join((self.package, *rest))
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        match node:
            case ast.Call(func=ast.Attribute(attr="to"), args=[ast.Constant("cuda") as place]):
                place.value = self.device
        return self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if node.attr == "bfloat16":
            node.attr = self.dtype
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if node.value == _WIDTH:
            node.value = self.dim
        return node
