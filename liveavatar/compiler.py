"""What a compiler needs of the machine, looked at before anything is loaded."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from .errors import ModelError

COMPILER = "inductor"
"""Name of the backend of `torch.compile` that layers are compiled with."""
COMPILE_CHOICES: Mapping[str, bool | Literal["auto"]] = {"auto": "auto", "off": False, "on": True}
"""What users say of compiling, and what it is in a placement."""
WITHOUT_COMPILE = "Use --compile off (in ComfyUI: compile off in the Backend node)."
_CPU_COMPILERS = ("c++", "g++", "clang++")
_LAUNCHERS = ("cc", "gcc", "clang")
"""Any of them builds what starts a GPU's kernels."""


def check_compiler(devices: Iterable[str]) -> None:
    """Refuse to compile where what it takes is not there.

    Args:
        devices: of this machine, by name.

    Raises:
        CompileError: naming what is missing.
    """
    missing = sorted({what for device in devices for what in missing_requirements(device.partition(":")[0])})
    if missing:
        raise CompileError(f"{', '.join(missing)} missing on this machine")


def missing_requirements(kind: str) -> list[str]:
    """What is not there of all that compiling for "cpu" or "cuda" takes."""
    if COMPILER != "inductor":
        return []
    missing = []
    if kind == "cuda" and importlib.util.find_spec("triton") is None:
        missing.append("the package triton")
    if kind == "cuda" and sys.platform == "win32":
        return missing  # Triton for Windows brings its own compiler
    names = _LAUNCHERS if kind == "cuda" else ("cl",) if sys.platform == "win32" else _CPU_COMPILERS
    named = os.environ.get("CC" if kind == "cuda" else "CXX")
    if not any(map(shutil.which, [named] if named else names)):
        missing.append(f"a C{'' if kind == 'cuda' else '++'} compiler ({' or '.join([named] if named else names)})")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing.append("Python.h (the package python3-dev)")
    if kind == "cpu" and sys.platform != "win32" and " " in _torch_folder():
        missing.append("a path to PyTorch without spaces")  # it stands unquoted in the compiler's command line
    return missing


def _torch_folder() -> str:
    """Where PyTorch is installed, without importing it."""
    spec = importlib.util.find_spec("torch")
    return str(Path(spec.origin).parent) if spec is not None and spec.origin else ""


class CompileError(ModelError):
    """What is said where it cannot be done, or fails."""

    def __init__(self, why: str):
        super().__init__(f"The layers cannot be compiled here: {why}.", WITHOUT_COMPILE)

    @classmethod
    def of(cls, error: Exception) -> CompileError:
        """In one line: what failed, not that it failed while compiling."""
        cause = getattr(error, "inner_exception", error)
        return cls((str(cause).strip().splitlines() or [""])[0][:200].rstrip(".:") or type(cause).__name__)
