"""The distillation LoRA, merged into the weights while they are read.

W' = W + (alpha / rank) * B @ A, computed in float32 and rounded once (Hu et al. 2021, "LoRA: Low-Rank Adaptation of
Large Language Models"): to bfloat16 where W is stored so, as published; otherwise by whoever puts it into a module. The
published file has rank 128 and does not state its alpha, which is 64 in the training configuration published with it:
scale 0.5.

Files name the same pairs in several ways: PEFT's lora_A and lora_B, lora_down and lora_up of trainers, kohya's names
with underscores, prefixes, the names that modules have in diffusers. All of them are read. What the weights cannot tell
is whether the network's own file has the LoRA in it already, unless its header says so.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..config import ModelConfig
from ..errors import LoRAError, ModelError
from .header import FETCH_AGAIN, AnotherKind, shortened
from .kinds import Kind, kind_of
from .source import PICKLED, WHOLE_NUMBERS, TensorSource, open_weights

if TYPE_CHECKING:
    import torch

PUBLISHED_ALPHA = 64.0
"""Alpha of the published LoRA, used where neither the caller nor the file says otherwise."""

NO_LORA = "none"
"""In place of a file: the network is used as its file has it."""
_PREFIX = re.compile(r"(?:(?:base_model|model|diffusion_model|transformer|module|net|dit)\.)+")
_KEY = re.compile(
    r"(?P<module>.+?)\.(?:lora[._](?P<half>A|B|down|up)(?:\.[A-Za-z0-9_-]+)?\.weight|(?P<alpha>alpha))", re.DOTALL
)
_FIRST_FACTOR = re.compile(r"lora[._](?:A|down)\b")
_HALVES = {"A": "A", "down": "A", "B": "B", "up": "B"}
_KOHYA = "lora_unet_"
"""Before names of kohya's trainers, which have underscores in place of all dots."""
_DIFFUSERS = (
    (".attn1.", ".self_attn."),
    (".attn2.", ".cross_attn."),
    (".to_out.0", ".o"),
    (".to_q", ".q"),
    (".to_k", ".k"),
    (".to_v", ".v"),
    (".ffn.net.0.proj", ".ffn.0"),
    (".ffn.net.2", ".ffn.2"),
)
_OTHER_ADAPTERS = (
    (re.compile(r"\.lokr_"), "a LoKr"),
    (re.compile(r"\.(?:hada_|loha_)"), "a LoHa"),
    (re.compile(r"\.oft_"), "an OFT adapter"),
    (re.compile(r"\.(?:dora_scale|lora_magnitude_vector)"), "a DoRA"),
    (re.compile(r"\.(?:lora_mid|lora_Q_A)\."), "a LoRA of three factors"),
    (re.compile(r"\.diff(?:_[bm])?$"), "a LoRA with whole differences (.diff) beside its pairs"),
)
_MERGED_KEYS = ("lora", "loras", "merged", "merged_from", "recipe", "prompt", "workflow", "description")
_OWN_NAME = re.compile(r"live[-_ ]?avatar", re.IGNORECASE)
_METADATA_ALPHA = ("alpha", "lora_alpha", "ss_network_alpha")
_NEAREST = "Use liveavatar.safetensors of Quark-Vision/Live-Avatar, whole and unconverted."


def lora_targets(config: ModelConfig) -> list[str]:
    """The Linear modules the published LoRA changes: q, k, v, o of all three attentions, and both of each ffn."""
    attentions = [f"blocks.{i}.{kind}" for i in range(config.num_layers) for kind in ("self_attn", "cross_attn")]
    attentions += [f"audio_injector.injector.{j}" for j in range(len(config.audio_inject_layers))]
    ffns = [f"blocks.{i}.ffn.{n}" for i in range(config.num_layers) for n in (0, 2)]
    return [f"{a}.{name}" for a in attentions for name in "qkvo"] + ffns


class _WithMetadata(Protocol):
    def metadata(self) -> dict[str, str]: ...

    def describe(self) -> str: ...


def open_lora(base: TensorSource, path: str | Path, targets: Sequence[str], alpha: float | None = None) -> LoRASource:
    """Merge a LoRA file into `base`; its metadata may state the alpha.

    Raises:
        LoRAError: no file of tensors, or it does not fit (see `LoRASource`).
        MissingFilesError: no such file.
    """
    if Path(path).suffix not in (".safetensors", *PICKLED):
        raise LoRAError(f"{path} is not a .safetensors file.", _NEAREST)
    try:
        source = open_weights(Path(path))
    except ModelError as e:
        if type(e) in (ModelError, AnotherKind):
            raise LoRAError(e.what, _NEAREST) from e
        raise
    for key in sorted(source.keys()):
        if source.dtype(key) in WHOLE_NUMBERS and not key.endswith(".alpha"):
            raise LoRAError(f"{path} stores {shortened(key)} in whole numbers, without a scale.", _NEAREST)
    first = [key for key in source.keys() if _FIRST_FACTOR.search(key)]  # noqa: SIM118 (not a mapping)
    for key in source.zeros(first):  # the second begins training as zeros
        raise LoRAError(f"{path} holds only zeros for {shortened(key)}, as unfinished downloads do.", FETCH_AGAIN)
    return LoRASource(base, source, targets, alpha=alpha if alpha is not None else _stated_alpha(source.metadata()))


def refuse_merged(base: _WithMetadata) -> None:
    """Make sure that a network's file does not say that this LoRA is in it.

    Raises:
        LoRAError: it does; merged twice it would count twice.
    """
    for key, value in sorted(base.metadata().items()):
        if key.lower().rpartition(".")[2].removeprefix("ss_") in _MERGED_KEYS and _OWN_NAME.search(value):
            raise LoRAError(
                f"{base.describe()} has the Live Avatar LoRA merged into it already, as its header says ({key}).",
                "Use it without a LoRA: --lora none, or none in Load Model.",
            )


class OtherAdapterError(AnotherKind, LoRAError):
    """A LoRA's relative, or another file, where a plain LoRA is wanted."""


def check_lora(source: TensorSource) -> None:
    """Make sure that a file is not recognised as something else than a plain LoRA.

    Raises:
        OtherAdapterError: it is; with what it is and what to use.
    """
    keys = source.keys()
    for pattern, words in _OTHER_ADAPTERS:
        if any(pattern.search(key) for key in keys):
            raise OtherAdapterError(f"{source.describe()} is {words}, which cannot be merged.", _NEAREST)
    if (kind := kind_of(keys)) and kind is not Kind.LORA:
        raise OtherAdapterError(f"{source.describe()} is {kind.words}, not {Kind.LORA.words}.", Kind.LORA.nearest)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Names of the two factors of one module, and the factor in front of their product."""

    a: str
    b: str
    scale: float


class LoRASource:
    """The tensors of `base`, those of the target modules with the LoRA merged in.

    Names in the LoRA are `<module>.lora_A[.default].weight`, and those that other trainers have for the same tensors.

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
        check_lora(lora)
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
        import torch

        weight = self._base.read(key)
        pair = self._pairs.get(key)
        if pair is None:
            return weight
        a, b = self._lora.read(pair.a), self._lora.read(pair.b)
        if not a.is_floating_point() or not b.is_floating_point():
            raise LoRAError(f"{self._lora.describe()} stores {key} in whole numbers, without a scale.", _NEAREST)
        merged = b.float() @ a.float()
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
            alpha = self._alpha(target, factors["alpha"]) if "alpha" in factors else PUBLISHED_ALPHA
        if not math.isfinite(alpha) or not alpha:
            raise LoRAError(f"The alpha {alpha} for {target} is not finite, or 0.", _NEAREST)
        return _Pair(factors["A"], factors["B"], alpha / a[0])

    def _alpha(self, target: str, key: str) -> float:
        if math.prod(self._lora.shape(key)) != 1:
            raise LoRAError(f"The alpha for {target} in {self._lora.describe()} is not one number.", _NEAREST)
        return float(self._lora.read(key))


def _parse(lora: TensorSource, targets: Sequence[str]) -> dict[str, dict[str, str]]:
    """Target -> {"A": name, "B": name, and perhaps "alpha": name}; complete and without strangers."""
    found: dict[str, dict[str, str]] = {t: {} for t in targets}
    by_kohya = {t.replace(".", "_"): t for t in targets}
    strangers: list[str] = []
    for key in sorted(lora.keys()):
        target, slot = _target(key, by_kohya)
        if target not in found:
            strangers.append(key)
        elif slot in found[target]:
            twice = f"{shortened(found[target][slot])} and as {shortened(key)}"
            raise LoRAError(f"{lora.describe()} holds one tensor of {target} twice, as {twice}.", _NEAREST)
        else:
            found[target][slot] = key
    _refuse_incomplete(lora, found, strangers)
    alphas = sum("alpha" in factors for factors in found.values())
    if alphas not in (0, len(found)):
        raise LoRAError(f"{lora.describe()} states an alpha for {alphas} of its {len(found)} pairs only.", _NEAREST)
    return found


def _target(key: str, by_kohya: Mapping[str, str]) -> tuple[str, str]:
    """The module a tensor of a LoRA belongs to, as the network names it, and its slot; "" for a stranger."""
    m = _KEY.fullmatch(key)
    if not m:
        return "", ""
    module, slot = m["module"], _HALVES.get(m["half"], "alpha")
    if module.startswith(_KOHYA):
        return by_kohya.get(module.removeprefix(_KOHYA), ""), slot
    module = module[prefix.end() :] if (prefix := _PREFIX.match(module)) else module
    for theirs, ours in _DIFFUSERS:
        module = module.replace(theirs, ours)
    return module, slot


def _refuse_incomplete(lora: TensorSource, found: Mapping[str, Mapping[str, str]], strangers: Sequence[str]) -> None:
    """Every target has both factors, and nothing is left over."""
    missing = [f"{t}.lora_{half}" for t in found for half in "AB" if half not in found[t]]
    if missing:
        whole = sum("A" in f and "B" in f for f in found.values())
        unknown = f" It holds {len(strangers)} others: {_few(strangers)}." if strangers else ""
        raise LoRAError(
            f"{lora.describe()} holds {whole} of the {len(found)} pairs this network needs; "
            f"missing are {len(missing)} tensors: {_few(missing)}.{unknown}",
            _NEAREST,
        )
    if strangers:
        raise LoRAError(
            f"{lora.describe()} holds {len(strangers)} tensors this network has no place for: {_few(strangers)}.",
            _NEAREST,
        )


def _stated_alpha(metadata: Mapping[str, str]) -> float | None:
    """The one alpha a file's metadata states, directly or in PEFT's JSON entry."""
    entries = dict(metadata)
    try:
        peft = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        entries |= {k.rsplit(".", 1)[-1]: str(v) for k, v in peft.items() if k.rsplit(".", 1)[-1] == "lora_alpha"}
        stated = {float(entries[k]) for k in _METADATA_ALPHA if k in entries}
    except (ValueError, AttributeError, RecursionError) as e:
        raise LoRAError(f"The LoRA's metadata states an alpha that is no number ({e}).", _NEAREST) from e
    if len(stated) > 1:
        raise LoRAError(f"The LoRA's metadata states several alphas: {sorted(stated)}.", _NEAREST)
    return stated.pop() if stated else None


def _few(names: Iterable[str]) -> str:
    names = [shortened(name) for name in names]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
