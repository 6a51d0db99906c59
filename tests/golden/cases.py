"""Golden cases: numbers recorded from the original implementation, and how closely we must meet them.

A case is a folder of `<family>.json` + `<family>.safetensors` pairs. Folders come from the environment variable
LIVEAVATAR_GOLDEN (a path list); without it, from the cut case committed beside this file and from the shared one next
to the project. Tests read every dimension from the case's JSON; a family or tensor a folder lacks is not collected.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

HERE = Path(__file__).parent
DEFAULT_FOLDERS = (HERE / "cut", HERE.parents[1].parent / "shared" / "golden")


def folders() -> list[Path]:
    """The case folders in force."""
    named = os.environ.get("LIVEAVATAR_GOLDEN", "")
    chosen = [Path(p) for p in named.split(os.pathsep) if p] or [p for p in DEFAULT_FOLDERS if p.is_dir()]
    return [p for p in chosen if p.is_dir()]


@dataclasses.dataclass(frozen=True)
class Case:
    """One family of one folder.

    Attributes:
        folder: where it lies; families of one folder share weights.
        family: file stem, for example "dit".
    """

    folder: Path
    family: str

    @functools.cached_property
    def info(self) -> dict:
        """The JSON of the family."""
        return json.loads((self.folder / f"{self.family}.json").read_text(encoding="utf-8"))

    @functools.cached_property
    def keys(self) -> set[str]:
        """Names of the tensors that are really there."""
        path = self.folder / f"{self.family}.safetensors"
        if not path.exists():
            return set()
        with safe_open(path, "pt") as f:
            return set(f.keys())

    def __contains__(self, key: str) -> bool:
        return key in self.keys

    def __getitem__(self, key: str) -> torch.Tensor:
        with safe_open(self.folder / f"{self.family}.safetensors", "pt") as f:
            return f.get_tensor(key)

    def sibling(self, family: str) -> Case:
        """Another family of the same folder."""
        return Case(self.folder, family)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All tensors (for the `*_weights` families)."""
        return {k: self[k] for k in sorted(self.keys)}


def cases(family: str, *needs: str, holds: Callable[[Case], bool] = lambda case: True) -> list:
    """pytest parameters: the folders that hold `family` (beside it every family in `needs`, in it what is asked)."""
    found = []
    for folder in folders():
        files = [folder / f"{name}.json" for name in (family, *needs)]
        if all(f.exists() for f in files) and holds(Case(folder, family)):
            found.append(pytest.param(Case(folder, family), id=folder.name))
    return found


def assert_matches(actual: torch.Tensor, expected: torch.Tensor, what: str, atol: float = 1e-5) -> None:
    """Equal shapes and |difference| <= atol + 1e-6 x max|expected|, in float32."""
    assert tuple(actual.shape) == tuple(expected.shape), (
        f"{what}: shape {tuple(actual.shape)} != {tuple(expected.shape)}"
    )
    expected = expected.float()
    bound = atol + 1e-6 * expected.abs().max().item()
    worst = (actual.float() - expected).abs().max().item()
    assert worst <= bound, f"{what}: |difference| {worst:.3g} > {bound:.3g}"
