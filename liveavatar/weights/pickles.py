"""PyTorch's own files (`.pt`, `.pth`, `.bin`): named tensors, read without running code and within bounds.

A file is looked over before PyTorch opens it: what it would call, how deep it is nested, whether it unfolds into more
than it holds. What is left for PyTorch is what PyTorch itself writes.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MissingFilesError, ModelError
from .header import FETCH_AGAIN, damage, reason, refuse_another_format, shortened

if TYPE_CHECKING:
    import torch

_MAX_PICKLE = 1 << 20
"""Bytes of the part that names the tensors: that of 5,000 tensors."""
_MAX_DEPTH = 12
_PICKLES = 5
"""In the older form, before the numbers: magic number, version, system, tensors, keys of their storages."""
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Under which trainers keep the tensors of a checkpoint."""
_HARMLESS = re.compile(
    r"collections OrderedDict|torch (?:\w*Storage|Size|device|(?:b?float|u?int|complex|float8_)\w+|bool)"
    r"|torch\.storage (?:Untyped|Typed)Storage"
    r"|torch\._utils _rebuild_(?:tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)"
)
"""What the pickles of tensors call."""
_USE_PUBLISHED = "Use the published file."


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a PyTorch file, mapped where the format allows it (archives), copied where not.

    Raises:
        MissingFilesError: no such file.
        ModelError: no such file of PyTorch, cut off, of something else than named tensors, or one that would run code.
    """
    if not path.is_file():
        raise MissingFilesError(f"There is no file {path}.")
    try:
        content = _load(path)
    except _RunsCodeError as e:
        raise ModelError(
            f"{path} carries more than tensors, or none: files that run code are refused ({reason(e)}).",
            _USE_PUBLISHED,
        ) from e
    except Exception as e:  # what damaged bytes make the parsers raise has no common base
        refuse_another_format(path, "a PyTorch file")
        why = damage(path) or reason(e)
        raise ModelError(f"{path} is cut off or no PyTorch file ({why}).", FETCH_AGAIN) from e
    tensors = _named_tensors(content)
    if tensors is None:
        raise ModelError(f"{path} is not a flat list of named tensors.", _USE_PUBLISHED)
    import torch

    for name, tensor in tensors.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise ModelError(f"{path} does not hold all numbers of {shortened(name)}.", _USE_PUBLISHED)
    return tensors


class _RunsCodeError(Exception):
    """A pickle that would call something."""


def _named_tensors(content: Any) -> dict[str, torch.Tensor] | None:
    """The tensors of a file, perhaps under one of the names trainers use; None where there is something else."""
    import torch

    if not isinstance(content, Mapping):
        return None
    inner = [content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
    found = inner[0] if inner else content
    whole = all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in found.items())
    return {key: value.detach() for key, value in found.items()} if whole else None


def _load(path: Path) -> Any:
    archive = zipfile.is_zipfile(path)
    (_check_archive if archive else _check_older_form)(path)
    import torch

    try:
        if archive:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the pickle's age, where an error says more
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise _RunsCodeError(reason(e)) from e


def _check_archive(path: Path) -> None:
    """Nothing in it is compressed, as PyTorch never does, so that it holds what its size says."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if squeezed := [e for e in entries if e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size]:
            raise ValueError(f"{shortened(squeezed[0].filename)} is compressed")
        pickles = [e for e in entries if e.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("no data.pkl" if not pickles else "several data.pkl")
        if pickles[0].file_size > _MAX_PICKLE:
            raise ValueError(f"data.pkl has {pickles[0].file_size} bytes")
        _check_pickle(io.BytesIO(archive.read(pickles[0])))


def _check_older_form(path: Path) -> None:
    with path.open("rb") as file:
        begins = io.BytesIO(file.read(_MAX_PICKLE))
    if begins.read(1) != pickle.PROTO:
        raise ValueError("it does not begin as a pickle does")
    begins.seek(0)
    for _ in range(_PICKLES):
        _check_pickle(begins)


def _check_pickle(content: io.BytesIO) -> None:
    """Follow a pickle without building what it describes.

    Raises:
        ValueError: damaged, or nested so deep, or with such keys, that reading it would not end.
        _RunsCodeError: it would call something that tensors do not need.
    """
    stack: list[tuple[int, Any]] = []
    memo: dict[int, tuple[int, Any]] = {}
    for op, argument, _ in pickletools.genops(content):
        if op.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
            continue
        if op.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument or 0])
            continue
        taken = _take(stack, op)
        _check_step(op.name, argument, [value for _, value in taken])
        depth = 1 + max((d for d, _ in taken), default=-1)
        if depth > _MAX_DEPTH and op.name not in _GROWS:
            raise ValueError("nested without end")
        for made in op.stack_after:
            grown = taken[0][0] if op.name in _GROWS and taken else depth
            value = argument if isinstance(argument, str) else made
            stack.append((0, _MARK) if made is _MARK else (grown, value))


_MARK = pickletools.markobject
_GROWS = ("SETITEM", "SETITEMS", "APPEND", "APPENDS", "BUILD")
"""Operations that put more into what is there already."""


def _take(stack: list[tuple[int, Any]], op: pickletools.OpcodeInfo) -> list[tuple[int, Any]]:
    """What an operation takes off the stack, without its mark."""
    count = len(op.stack_before)
    above: list[tuple[int, Any]] = []
    if _MARK in op.stack_before:
        count = op.stack_before.index(_MARK)
        while stack[-1][1] is not _MARK:
            above.append(stack.pop())
        stack.pop()
    below = [stack.pop() for _ in range(count)]
    return [*reversed(below), *reversed(above)]


def _check_step(name: str, argument: Any, taken: list[Any]) -> None:
    """One operation: what it names may be called, and what it uses as a key is no nest of tuples."""
    called = argument if name == "GLOBAL" else " ".join(map(str, taken)) if name == "STACK_GLOBAL" else None
    if called is not None and not _HARMLESS.fullmatch(called):
        raise _RunsCodeError(shortened(called.replace(" ", ".")))
    if name in ("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
        raise _RunsCodeError(name)
    if name in ("SETITEM", "SETITEMS") and pickletools.pytuple in taken[1::2]:
        raise ValueError("a name that is no text")
