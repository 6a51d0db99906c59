"""LoRAs, merged into the weights while they are read: the distillation LoRA, and others beside it.

W' = W + sum of strength * (alpha / rank) * B @ A, computed in float32 and rounded once (Hu et al. 2021, "LoRA: Low-Rank
Adaptation of Large Language Models"): to bfloat16 where W is stored so, as published; otherwise by whoever puts it into
a module.

The distillation LoRA is strict: it fits to the last tensor or is refused. The published file has rank 128 and does not
state its alpha, which is 64 in the training configuration published with it: scale 0.5. Other LoRAs (of a style, of a
person) change what the network has of what they name, and a report says what that is; without an alpha their scale
is 1. What the weights cannot tell is whether the network's own file has a LoRA in it already, unless its header says
so.
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
from .lora_names import flat_names, module_in_file, parse_key
from .source import PICKLED, WHOLE_NUMBERS, FileSource, TensorSource, open_weights

if TYPE_CHECKING:
    import torch

PUBLISHED_ALPHA = 64.0
"""Alpha of the published LoRA, used where neither the caller nor the file says otherwise."""

NO_LORA = "none"
"""In place of a file: the network is used as its file has it."""
_FIRST_FACTOR = re.compile(r"lora[._](?:A|down)\b")
_OTHER_ADAPTERS = (
    (re.compile(r"\.lokr_"), "a LoKr"),
    (re.compile(r"\.(?:hada_|loha_)"), "a LoHa"),
    (re.compile(r"\.oft_"), "an OFT adapter"),
    (re.compile(r"\.(?:dora_scale|lora_magnitude_vector)"), "a DoRA"),
    (re.compile(r"\.(?:lora_mid|lora_Q_A)\."), "a LoRA of three factors"),
)
_DIFFERENCES = (re.compile(r"\.diff(?:_[bm])?$"), "a LoRA with whole differences (.diff) beside its pairs")
_MERGED_KEYS = ("lora", "loras", "merged", "merged_from", "recipe", "prompt", "workflow", "description")
_OWN_NAME = re.compile(r"live[-_ ]?avatar", re.IGNORECASE)
_METADATA_ALPHA = ("alpha", "lora_alpha", "ss_network_alpha")
_NEAREST = "Use liveavatar.safetensors of Quark-Vision/Live-Avatar, whole and unconverted."
_NEAREST_EXTRA = "Use a LoRA for the 14B models of Wan 2.1 or 2.2, whole."
_STRONGEST = 100.0


def lora_targets(config: ModelConfig) -> list[str]:
    """The Linear modules the published LoRA changes: q, k, v, o of all three attentions, and both of each ffn."""
    attentions = [f"blocks.{i}.{kind}" for i in range(config.num_layers) for kind in ("self_attn", "cross_attn")]
    attentions += [f"audio_injector.injector.{j}" for j in range(len(config.audio_inject_layers))]
    ffns = [f"blocks.{i}.ffn.{n}" for i in range(config.num_layers) for n in (0, 2)]
    return [f"{a}.{name}" for a in attentions for name in "qkvo"] + ffns


@dataclasses.dataclass(frozen=True)
class ExtraLoRA:
    """A LoRA beside the distillation LoRA: its file, and by how much its change is multiplied."""

    path: Path
    strength: float = 1.0


@dataclasses.dataclass(frozen=True)
class LoRAReport:
    """What one LoRA changes.

    Attributes:
        file: where it is.
        strength: of the change.
        changed: tensors of the network that it changes.
        not_found: what it holds that the network has no place for, in the file's own words.
    """

    file: str
    strength: float
    changed: int
    not_found: tuple[str, ...] = ()

    def __str__(self) -> str:
        tensors = "1 tensor" if self.changed == 1 else f"{self.changed} tensors"
        what = f"changes {tensors}" if self.strength else f"changes nothing, of {tensors} that it could"
        rest = f"; not in this network: {len(self.not_found)}, {_few(self.not_found)}" if self.not_found else ""
        return f"the LoRA {Path(self.file).name} at strength {self.strength:g} {what}{rest}"


def parse_extra_lora(text: str) -> ExtraLoRA:
    """A further LoRA as it is written in one word: its file, and perhaps `:` and its strength."""
    path, colon, strength = text.rpartition(":")
    try:
        return ExtraLoRA(Path(path), float(strength)) if colon and path else ExtraLoRA(Path(text))
    except ValueError:  # a colon of the file's name
        return ExtraLoRA(Path(text))


class _WithMetadata(Protocol):
    def metadata(self) -> dict[str, str]: ...

    def describe(self) -> str: ...


def open_lora(base: TensorSource, path: str | Path, targets: Sequence[str], alpha: float | None = None) -> LoRA:
    """The distillation LoRA in a file; its metadata may state the alpha.

    Raises:
        LoRAError: no file of tensors, or it does not fit (see `distillation_lora`).
        MissingFilesError: no such file.
    """
    source = _open(Path(path), _NEAREST)
    stated = alpha if alpha is not None else _stated_alpha(source.metadata(), _NEAREST)
    return distillation_lora(base, source, targets, alpha=stated)


def open_extra_lora(base: TensorSource, extra: ExtraLoRA) -> LoRA:
    """A further LoRA in a file; its metadata may state the alpha of pairs that have none of their own.

    Raises:
        LoRAError: no file of tensors, or it does not fit (see `extra_lora`).
        MissingFilesError: no such file.
    """
    source = _open(extra.path, _NEAREST_EXTRA)
    return extra_lora(base, source, extra.strength, source.metadata())


def _open(path: Path, nearest: str) -> FileSource:
    """A file of a LoRA's tensors, of numbers that are not all zeros."""
    if path.suffix not in (".safetensors", *PICKLED):
        raise LoRAError(f"{path} is not a .safetensors file.", nearest)
    try:
        source = open_weights(path)
    except ModelError as e:
        if type(e) in (ModelError, AnotherKind):
            raise LoRAError(e.what, nearest) from e
        raise
    for key in sorted(source.keys()):
        if source.dtype(key) in WHOLE_NUMBERS and not key.endswith(".alpha"):
            raise LoRAError(f"{path} stores {shortened(key)} in whole numbers, without a scale.", nearest)
    first = [key for key in source.keys() if _FIRST_FACTOR.search(key)]  # noqa: SIM118 (not a mapping)
    for key in source.zeros(first):  # the second begins training as zeros
        raise LoRAError(f"{path} holds only zeros for {shortened(key)}, as unfinished downloads do.", FETCH_AGAIN)
    return source


def refuse_merged(base: _WithMetadata) -> None:
    """Make sure that a network's file does not say that the distillation LoRA is in it.

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


def check_lora(source: TensorSource, extra: bool = False) -> None:
    """Make sure that a file is not recognised as something else than a plain LoRA.

    Args:
        source: the file.
        extra: it stands beside the distillation LoRA, and may hold whole differences beside its pairs.

    Raises:
        OtherAdapterError: it is; with what it is and what to use.
    """
    keys, nearest = source.keys(), _NEAREST_EXTRA if extra else _NEAREST
    for pattern, words in (*_OTHER_ADAPTERS, *(() if extra else (_DIFFERENCES,))):
        if any(pattern.search(key) for key in keys):
            raise OtherAdapterError(f"{source.describe()} is {words}, which cannot be merged.", nearest)
    if (kind := kind_of(keys)) and kind is not Kind.LORA:
        nearest = _NEAREST_EXTRA if extra else Kind.LORA.nearest
        raise OtherAdapterError(f"{source.describe()} is {kind.words}, not {Kind.LORA.words}.", nearest)


@dataclasses.dataclass(frozen=True)
class _Change:
    """What is added to one tensor: scale * B @ A, or scale * a whole difference, by the names of its factors."""

    factors: tuple[str, ...]
    scale: float


class LoRA:
    """What one file adds to the tensors of a network.

    Attributes:
        report: what it changes.
    """

    def __init__(
        self,
        source: TensorSource,
        changes: Mapping[str, _Change],
        nearest: str,
        strength: float = 1.0,
        not_found: Sequence[str] = (),
    ):
        self._source, self._changes, self._nearest = source, changes, nearest
        self.report = LoRAReport(source.describe(), strength, len(changes), tuple(not_found))

    def changes(self, key: str) -> bool:
        """Whether a tensor becomes another one."""
        return key in self._changes and self.report.strength != 0

    def change(self, key: str, shape: Sequence[int]) -> torch.Tensor:
        """What is added to a tensor of this shape, in float32.

        Raises:
            LoRAError: whole numbers, or values that are not finite.
        """
        import torch

        change = self._changes[key]
        factors = self._read(key)
        if len(factors) == 1:
            added = factors[0].to(torch.float32, copy=True)
        else:
            b, a = (factor.float().flatten(1) for factor in factors)
            added = (b @ a).reshape(tuple(shape))
        if not added.sum().isfinite() and not added.isfinite().all():  # the sum is quick, and misses nothing
            raise LoRAError(f"{self._source.describe()} holds values for {key} that are not finite.", self._nearest)
        return added.mul_(change.scale * self.report.strength)

    def rank(self, key: str) -> int:
        """How many columns B has that are added to a tensor; 0 where it is a whole difference."""
        factors = self._changes[key].factors
        return self._source.shape(factors[1])[0] if len(factors) > 1 else 0

    def factors(self, key: str) -> tuple[torch.Tensor, torch.Tensor]:
        """B [out, rank], with all scales in it, and A [rank, in], whose product is the change of a matrix; float32.

        Raises:
            LoRAError: whole numbers, or values that are not finite.
        """
        b, a = (factor.float().flatten(1) for factor in self._read(key))
        if not (b.isfinite().all() and a.isfinite().all()):
            raise LoRAError(f"{self._source.describe()} holds values for {key} that are not finite.", self._nearest)
        return b * (self._changes[key].scale * self.report.strength), a

    def _read(self, key: str) -> list[torch.Tensor]:
        factors = [self._source.read(name) for name in self._changes[key].factors]
        if not all(factor.is_floating_point() for factor in factors):
            raise LoRAError(f"{self._source.describe()} stores {key} in whole numbers, without a scale.", self._nearest)
        return factors

    def describe(self) -> str:
        scales = sorted({change.scale * self.report.strength for change in self._changes.values()})
        shown = f"{scales[0]:g}" if len(scales) == 1 else f"{scales[0]:g} to {scales[-1]:g}"
        return f"{self._source.describe()} ({len(self._changes)} pairs, scale {shown})"


class LoRASource:
    """The tensors of a network with LoRAs merged in; each is read once, and rounded once.

    Args:
        base: the network's own weights.
        loras: in any order; their changes are added up.
    """

    def __init__(self, base: TensorSource, loras: Sequence[LoRA]):
        self._base, self._loras = base, tuple(loras)

    @property
    def pairs(self) -> int:
        """How many tensors the LoRAs change, each counted by itself."""
        return sum(lora.report.changed for lora in self._loras)

    def keys(self) -> frozenset[str]:
        return self._base.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._base.shape(key)

    def read(self, key: str) -> torch.Tensor:
        """A tensor; while reading, LoRAs raise what `LoRA.change` raises."""
        import torch

        weight = self._base.read(key)
        changes = (lora.change(key, weight.shape) for lora in self._loras if lora.changes(key))
        merged = next(changes, None)
        if merged is None:
            return weight
        for change in changes:
            merged.add_(change)
        merged.add_(weight)
        return merged.bfloat16() if weight.dtype == torch.bfloat16 else merged

    def describe(self) -> str:
        return " with ".join([self._base.describe(), *(lora.describe() for lora in self._loras)])


def distillation_lora(
    base: TensorSource, lora: TensorSource, targets: Sequence[str], alpha: float | None = None
) -> LoRA:
    """The LoRA that few steps need: it changes all of its targets, and nothing else.

    Args:
        base: the network's own weights.
        lora: the factors A [rank, in] and B [out, rank] of every target, in any known naming.
        targets: names of the modules to be changed.
        alpha: in place of the file's own `<module>.alpha` tensors or, without those, of 64.

    Raises:
        LoRAError: a target lacks a factor, a factor belongs to no target, a shape does not fit.
    """
    check_lora(lora)
    found, strangers = _by_module(lora, targets, frozenset(f"{target}.weight" for target in targets), _NEAREST)
    _refuse_incomplete(lora, {target: found.get(target, {}) for target in targets}, strangers)
    alphas = sum("alpha" in slots for slots in found.values())
    if alphas not in (0, len(found)):
        raise LoRAError(f"{lora.describe()} states an alpha for {alphas} of its {len(found)} pairs only.", _NEAREST)
    changes = {}
    for target in targets:
        own = _alpha(lora, target, found[target], _NEAREST)
        stated = alpha if alpha is not None else PUBLISHED_ALPHA if own is None else own
        changes[f"{target}.weight"] = _pair(base, lora, target, found[target], stated, _NEAREST)
    return LoRA(lora, changes, _NEAREST)


def extra_lora(
    base: TensorSource, lora: TensorSource, strength: float = 1.0, metadata: Mapping[str, str] | None = None
) -> LoRA:
    """A further LoRA: it changes what the network has of what it names.

    Args:
        base: the network's own weights.
        lora: pairs of factors and whole differences (`.diff`, `.diff_b`), in any known naming.
        strength: of the change; 0 changes nothing.
        metadata: of the file; may state the alpha of pairs without one, which else have the scale 1.

    Raises:
        LoRAError: nothing of it is in the network, half a pair, a shape that does not fit, an impossible strength.
    """
    if not math.isfinite(strength) or abs(strength) > _STRONGEST:
        raise LoRAError(f"{lora.describe()} cannot have the strength {strength:g}.", "Use 1, or a little more or less.")
    check_lora(lora, extra=True)
    keys = base.keys()
    modules = {key.rpartition(".")[0] for key in keys}
    found, strangers = _by_module(lora, modules, keys, _NEAREST_EXTRA)
    changes: dict[str, _Change] = {}
    for module, slots in found.items():
        if "A" in slots or "B" in slots:
            own = _alpha(lora, module, slots, _NEAREST_EXTRA)
            alpha = own if own is not None else _stated_alpha(metadata or {}, _NEAREST_EXTRA)
            changes[f"{module}.weight"] = _pair(base, lora, module, slots, alpha, _NEAREST_EXTRA)
        for slot, tensor in (("diff", "weight"), ("diff_b", "bias")):
            if slot in slots:
                _add_difference(changes, base, lora, f"{module}.{tensor}", slots[slot])
    not_found = tuple(dict.fromkeys(module_in_file(key) for key in strangers))
    if not changes:
        held = f"; it holds {_few(not_found)}" if not_found else ""
        raise LoRAError(f"{lora.describe()} changes nothing of this network{held}.", _NEAREST_EXTRA)
    return LoRA(lora, changes, _NEAREST_EXTRA, strength, not_found)


def _by_module(
    lora: TensorSource, modules: Iterable[str], known: frozenset[str], nearest: str
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Module -> what it is ("A", "B", "alpha", "diff", "diff_b") -> its name in the file; and the names left over."""
    modules = frozenset(modules)
    flat = flat_names(modules)
    found: dict[str, dict[str, str]] = {}
    strangers: list[str] = []
    for key in sorted(lora.keys()):
        module, slot = parse_key(key, flat)
        slots = found.get(module, {})
        if module not in modules or f"{module}.{'bias' if slot == 'diff_b' else 'weight'}" not in known:
            strangers.append(key)
        elif slot in slots:
            twice = f"{shortened(slots[slot])} and as {shortened(key)}"
            raise LoRAError(f"{lora.describe()} holds one tensor of {module} twice, as {twice}.", nearest)
        else:
            found.setdefault(module, {})[slot] = key
    return found, strangers


def _pair(
    base: TensorSource, lora: TensorSource, module: str, slots: Mapping[str, str], alpha: float | None, nearest: str
) -> _Change:
    """The change by a pair of factors; `alpha` None stands for the rank.

    A is [rank, in] and B [out, rank]; those of a convolution have the axes of its kernel behind, in A.
    """
    if not {"A", "B"} <= slots.keys():
        half = "A" if "A" not in slots else "B"
        raise LoRAError(f"{lora.describe()} holds half a pair for {module}: lora_{half} is missing.", nearest)
    a, b = lora.shape(slots["A"]), lora.shape(slots["B"])
    weight = base.shape(key) if (key := f"{module}.weight") in base.keys() else None  # noqa: SIM118 (not a mapping)
    whole = len(a) > 1 and len(b) > 1 and a[0] == b[1] != 0 and math.prod(b[2:]) == 1
    if not whole or weight is None or (b[0], math.prod(a[1:])) != (weight[0], math.prod(weight[1:])):
        expected = "which the network lacks" if weight is None else f"of shape {list(weight)}"
        raise LoRAError(f"{lora.describe()} has A {list(a)} and B {list(b)} for {module}, {expected}.", nearest)
    alpha = float(a[0]) if alpha is None else alpha
    if not math.isfinite(alpha) or not alpha:
        raise LoRAError(f"The alpha {alpha} for {module} is not finite, or 0.", nearest)
    return _Change((slots["B"], slots["A"]), alpha / a[0])


def _add_difference(changes: dict[str, _Change], base: TensorSource, lora: TensorSource, key: str, name: str) -> None:
    """The change by a whole difference, of a tensor that no pair changes."""
    if key in changes:
        raise LoRAError(f"{lora.describe()} holds a pair and a whole difference for {key}.", _NEAREST_EXTRA)
    shape, wanted = lora.shape(name), base.shape(key)
    if shape != wanted:
        raise LoRAError(
            f"{lora.describe()} has a difference {list(shape)} for {key}, of shape {list(wanted)}.", _NEAREST_EXTRA
        )
    changes[key] = _Change((name,), 1.0)


def _alpha(lora: TensorSource, module: str, slots: Mapping[str, str], nearest: str) -> float | None:
    """The alpha that a file has for a module; None where it has none."""
    if "alpha" not in slots:
        return None
    if math.prod(lora.shape(slots["alpha"])) != 1:
        raise LoRAError(f"The alpha for {module} in {lora.describe()} is not one number.", nearest)
    return float(lora.read(slots["alpha"]))


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


def _stated_alpha(metadata: Mapping[str, str], nearest: str) -> float | None:
    """The one alpha a file's metadata states, directly or in PEFT's JSON entry."""
    entries = dict(metadata)
    try:
        peft = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        entries |= {k.rsplit(".", 1)[-1]: str(v) for k, v in peft.items() if k.rsplit(".", 1)[-1] == "lora_alpha"}
        stated = {float(entries[k]) for k in _METADATA_ALPHA if k in entries}
    except (ValueError, AttributeError, RecursionError) as e:
        raise LoRAError(f"The LoRA's metadata states an alpha that is no number ({e}).", nearest) from e
    if len(stated) > 1:
        raise LoRAError(f"The LoRA's metadata states several alphas: {sorted(stated)}.", nearest)
    return stated.pop() if stated else None


def _few(names: Iterable[str]) -> str:
    names = [shortened(name) for name in names]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
