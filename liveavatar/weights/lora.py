"""The distillation LoRA, merged into the weights while they are read.

W' = W + (alpha / rank) * B @ A, computed in float32 and rounded once (Hu et al. 2021, "LoRA: Low-Rank Adaptation of
Large Language Models"): to bfloat16 where W is stored so, as published; otherwise by whoever puts it into a module. The
published file has rank 128 and does not state its alpha, which is 64 in the training configuration published with it:
scale 0.5.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from ..config import ModelConfig
from ..errors import LoRAError, ModelError
from .source import SafetensorsSource, TensorSource

PUBLISHED_ALPHA = 64.0
"""Alpha of the published LoRA, used where neither the caller nor the file says otherwise."""

_KEY = re.compile(
    r"(?:base_model\.model\.|diffusion_model\.)*(?P<module>.+?)\.(?:lora_(?P<half>[AB])(?:\.default)?\.weight|(?P<alpha>alpha))"
)
_METADATA_ALPHA = ("alpha", "lora_alpha", "ss_network_alpha")
_NEAREST = "Use liveavatar.safetensors of Quark-Vision/Live-Avatar, whole and unconverted."


def lora_targets(config: ModelConfig) -> list[str]:
    """The Linear modules the published LoRA changes: q, k, v, o of all three attentions, and both of each ffn."""
    attentions = [f"blocks.{i}.{kind}" for i in range(config.num_layers) for kind in ("self_attn", "cross_attn")]
    attentions += [f"audio_injector.injector.{j}" for j in range(len(config.audio_inject_layers))]
    ffns = [f"blocks.{i}.ffn.{n}" for i in range(config.num_layers) for n in (0, 2)]
    return [f"{a}.{name}" for a in attentions for name in "qkvo"] + ffns


def open_lora(base: TensorSource, path: str | Path, targets: Sequence[str], alpha: float | None = None) -> LoRASource:
    """Merge a LoRA file into `base`; its metadata may state the alpha.

    Raises:
        LoRAError: no safetensors file, or it does not fit (see `LoRASource`).
        MissingFilesError: no such file.
    """
    if Path(path).suffix != ".safetensors":
        raise LoRAError(f"{path} is not a .safetensors file.", _NEAREST)
    try:
        source = SafetensorsSource(path)
    except ModelError as e:
        if type(e) is ModelError:
            raise LoRAError(e.what, _NEAREST) from e
        raise
    return LoRASource(base, source, targets, alpha=alpha if alpha is not None else _stated_alpha(source.metadata()))


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Names of the two factors of one module, and the factor in front of their product."""

    a: str
    b: str
    scale: float


class LoRASource:
    """The tensors of `base`, those of the target modules with the LoRA merged in.

    Names in the LoRA are `<module>.lora_A[.default].weight`, also behind `base_model.model.` or `diffusion_model.`.

    Args:
        base: the network's own weights.
        lora: the factors A [rank, in] and B [out, rank] of every target, and of nothing else.
        targets: names of the modules to be changed.
        alpha: in place of the file's own `<module>.alpha` tensors or, without those, of 64.

    Raises:
        LoRAError: a target lacks a factor, a factor belongs to no target, a shape does not fit; while reading: a
            value is not finite.
    """

    def __init__(self, base: TensorSource, lora: TensorSource, targets: Sequence[str], alpha: float | None = None):
        self._base = base
        self._base_keys = base.keys()
        self._lora = lora
        factors = _parse(lora, targets)
        self._pairs = {f"{t}.weight": self._pair(t, factors[t], alpha) for t in targets}

    @property
    def pairs(self) -> int:
        """How many modules are changed."""
        return len(self._pairs)

    def keys(self) -> frozenset[str]:
        return self._base.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._base.shape(key)

    def read(self, key: str) -> torch.Tensor:
        weight = self._base.read(key)
        pair = self._pairs.get(key)
        if pair is None:
            return weight
        merged = self._lora.read(pair.b).float() @ self._lora.read(pair.a).float()
        if not merged.sum().isfinite() and not merged.isfinite().all():  # the sum is quick, and misses nothing
            raise LoRAError(f"{self._lora.describe()} holds values for {key} that are not finite.", _NEAREST)
        merged.mul_(pair.scale).add_(weight)
        return merged.bfloat16() if weight.dtype == torch.bfloat16 else merged

    def describe(self) -> str:
        scales = sorted({p.scale for p in self._pairs.values()})
        shown = f"{scales[0]:g}" if len(scales) == 1 else f"{scales[0]:g} to {scales[-1]:g}"
        return f"{self._base.describe()} with {self._lora.describe()} ({self.pairs} pairs, scale {shown})"

    def _pair(self, target: str, factors: Mapping[str, str], alpha: float | None) -> _Pair:
        a, b = self._lora.shape(factors["A"]), self._lora.shape(factors["B"])
        key = f"{target}.weight"
        weight = self._base.shape(key) if key in self._base_keys else None
        if len(a) != 2 or len(b) != 2 or a[0] == 0 or a[0] != b[1] or (b[0], a[1]) != weight:
            expected = "which the network lacks" if weight is None else f"of shape {list(weight)}"
            raise LoRAError(
                f"{self._lora.describe()} has A {list(a)} and B {list(b)} for {target}, {expected}.", _NEAREST
            )
        if alpha is None:
            alpha = float(self._lora.read(factors["alpha"])) if "alpha" in factors else PUBLISHED_ALPHA
        if not math.isfinite(alpha):
            raise LoRAError(f"The alpha {alpha} for {target} is not finite.", _NEAREST)
        return _Pair(factors["A"], factors["B"], alpha / a[0])


def _parse(lora: TensorSource, targets: Sequence[str]) -> dict[str, dict[str, str]]:
    """Target -> {"A": name, "B": name, and perhaps "alpha": name}; complete and without strangers."""
    found: dict[str, dict[str, str]] = {t: {} for t in targets}
    strangers: list[str] = []
    for key in sorted(lora.keys()):
        m = _KEY.fullmatch(key)
        slot = m and (m["half"] or m["alpha"])
        if not m or not slot or m["module"] not in found or slot in found[m["module"]]:
            strangers.append(key)
        else:
            found[m["module"]][slot] = key
    missing = [f"{t}.lora_{half}" for t in targets for half in "AB" if half not in found[t]]
    if missing:
        whole = sum("A" in f and "B" in f for f in found.values())
        unknown = f" It holds {len(strangers)} others: {_few(strangers)}." if strangers else ""
        raise LoRAError(
            f"{lora.describe()} holds {whole} of the {len(targets)} pairs this network needs; "
            f"missing are {len(missing)} tensors: {_few(missing)}.{unknown}",
            _NEAREST,
        )
    if strangers:
        raise LoRAError(
            f"{lora.describe()} holds {len(strangers)} tensors this network has no place for: {_few(strangers)}.",
            _NEAREST,
        )
    return found


def _stated_alpha(metadata: Mapping[str, str]) -> float | None:
    """The one alpha a file's metadata states, directly or in PEFT's JSON entry."""
    entries = dict(metadata)
    try:
        peft = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        entries |= {k.rsplit(".", 1)[-1]: str(v) for k, v in peft.items() if k.rsplit(".", 1)[-1] == "lora_alpha"}
        stated = {float(entries[k]) for k in _METADATA_ALPHA if k in entries}
    except (ValueError, AttributeError) as e:
        raise LoRAError(f"The LoRA's metadata states an alpha that is no number ({e}).", _NEAREST) from e
    if len(stated) > 1:
        raise LoRAError(f"The LoRA's metadata states several alphas: {sorted(stated)}.", _NEAREST)
    return stated.pop() if stated else None


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
