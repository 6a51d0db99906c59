"""Quantised files: matrices of few bits are read as the numbers that were meant, packed with what belongs to them, or
refused.

Any file may hold matrices in fp8. In the older form of ComfyUI the file has a tensor `scaled_fp8`, and layers have
`scale_weight` and perhaps `scale_input`; in the newer one layers have `weight_scale` and perhaps `input_scale`, and
state their layout (see `layouts`) in JSON, in a tensor `comfy_quant` of each or in the header's
`_quantization_metadata`. Scales of inputs are not used: products in few bits find their own. A file whose fp8 matrices
have no scales at all means what it says. Everything else is refused.
"""

from __future__ import annotations

import collections
import json
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from .block_types import FLOATS as FLOATS_AS_THEY_ARE
from .block_types import PackedFormat
from .header import FETCH_AGAIN, AnotherKind, shortened
from .layouts import FLOAT8, FLOATS, FP8, INPUT_FACTORS, SCALE, SCALE_2, STORED, Layout, LayoutFormat, layout_of
from .source import WHOLE_NUMBERS, FileSource, PackedFile

if TYPE_CHECKING:
    import torch

SPIECE = "spiece_model"
"""The tensor (uint8) in which a text encoder carries its sentencepiece model."""
ZERO_AT_FIRST = ("trainable_cond_mask.", "cond_encoder.", "audio_injector.", "lora_")
"""Parts whose matrices begin training as zeros, and may have stayed so."""
_SCALES = ("scale_weight", SCALE)
_MARKS = (*_SCALES, "scale_input", "input_scale", "comfy_quant")
_BOOKKEEPING = re.compile(rf"(?:.+\.)?(?:scaled_fp8|{'|'.join((*_MARKS, SCALE_2, INPUT_FACTORS))})")
_LONGEST_MARK = 4096
"""Bytes in which a layer states its format."""
_NEAREST = "Use the bf16, fp16 or fp8_scaled file of this model."
_OTHER_FORMATS = {
    **dict.fromkeys(("absmax", "quant_map", "bitsandbytes__nf4", "bitsandbytes__fp4"), "4 bits by bitsandbytes"),
    **dict.fromkeys(("SCB", "weight_format"), "8 bits by bitsandbytes"),
    **dict.fromkeys(("qweight", "qzeros", "g_idx"), "few bits by GPTQ or AWQ"),
    **dict.fromkeys(("wscales", "smooth_factor", "smooth_factor_orig"), "4 bits by SVDQuant"),
    **dict.fromkeys(("_data", "_scale", "_shift"), "few bits by quanto"),
    "weight_scale_2": "another way than fp8 (NVFP4)",
    **dict.fromkeys(("pre_quant_scale", "weight_s_rel", "weight_s_channel", "weight_codebook"), "another way than fp8"),
}
"""The last words of names beside matrices that others quantised, and what that is."""


class DequantisedSource:
    """A file whose matrices of few bits are read as numbers; every other tensor is read as it is stored.

    What has a scale becomes float32, so that whoever rounds does so once; fp8 without one becomes bfloat16, which holds
    every fp8 number. Scales and marks are not among the keys.

    Args:
        source: the file; its scales and marks are read at once, they are small.
        prefix: what to take off the names; tensors without it belong to other models and are left out.

    Raises:
        AnotherKind: quantised in another way, or in one that is not understood to the last tensor.
        ModelError: a scale and its matrix do not fit, or one of them is missing; a scale is no positive number; a
            matrix holds nothing but zeros.
    """

    def __init__(self, source: FileSource, prefix: str = ""):
        self._source = source
        self._stored = {key.removeprefix(prefix): key for key in source.keys() if key.startswith(prefix)}  # noqa: SIM118
        self._order = sorted(self._stored)
        self._layouts = self._stated_layouts(prefix)
        self._scale: dict[str, str] = {}
        self._refuse_other_formats()
        for key in self._order:
            layer, _, last = key.rpartition(".")
            if last in _SCALES:
                self._add_scale(layer, key)
        self._refuse_without_scale()
        self._refuse_left_over()
        self._check_values()
        self._keys = frozenset(key for key in self._stored if not _BOOKKEEPING.fullmatch(key))

    def keys(self) -> frozenset[str]:
        return self._keys

    def shape(self, key: str) -> tuple[int, ...]:
        shape = self._source.shape(self._stored.get(key, key))
        return self._layout(key).shape(shape) if key in self._scale else shape

    def metadata(self) -> dict[str, str]:
        """The free text entries of the file."""
        return self._source.metadata()

    def read(self, key: str) -> torch.Tensor:
        import torch

        if key in self._scale:
            return self._layout(key).numbers(self._tensors(key), torch.empty(self.shape(key)))
        tensor = self._source.read(self._stored.get(key, key))
        return tensor.bfloat16() if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) else tensor

    def packed_format(self, key: str) -> PackedFormat | None:
        """How a matrix lies in the file, where it may stay so; None where it is read as numbers only."""
        if isinstance(self._source, PackedFile):
            return self._source.packed_format(self._stored.get(key, key))
        if key not in self._scale:
            return FLOATS_AS_THEY_ARE.get(self._dtype(key))
        layout, beside = self._layout(key), self._tensor_names(key)
        by_row = not layout.block and math.prod(self._source.shape(beside[SCALE])) > 1
        return LayoutFormat(layout, self._dtype(key), by_row, INPUT_FACTORS in beside)

    def read_packed(self, key: str, place: torch.Tensor) -> None:
        """Bring a matrix, and all that belongs to it, to a place as they are.

        Args:
            key: of a matrix that has a `packed_format`.
            place: uint8, as many bytes as that says.
        """
        kind = self.packed_format(key)
        if isinstance(kind, LayoutFormat):
            kind.pack(self._tensors(key), place, self.shape(key))
        elif isinstance(self._source, PackedFile):
            self._source.read_packed(self._stored.get(key, key), place)
        else:
            import torch

            place.copy_(self.read(key).flatten().view(torch.uint8))

    def describe(self) -> str:
        layouts = self.layouts()
        return self._source.describe() + (f" ({layouts})" if layouts else "")

    def layouts(self) -> str:
        """How many of its matrices are in which layout: "70 matrices in nvfp4"; "" where none has a scale."""
        count = collections.Counter(self._layout(key).name for key in self._scale)
        return ", ".join(f"{n} matrices in {name}" for name, n in sorted(count.items()))

    def _layout(self, weight: str) -> Layout:
        """Of a matrix that has a scale."""
        return self._layouts.get(weight.removesuffix(".weight"), FLOAT8)

    def _tensor_names(self, weight: str) -> dict[str, str]:
        """The stored names of a scaled matrix and what its layout has beside it, by their last words."""
        stem = weight.removesuffix("weight")
        names = {STORED: weight, SCALE: self._scale[weight]}
        names |= {name: f"{stem}{name}" for name in self._layout(weight).beside}
        return {name: self._stored[key] for name, key in names.items() if key in self._stored}

    def _tensors(self, weight: str) -> dict[str, torch.Tensor]:
        return {name: self._source.read(key) for name, key in self._tensor_names(weight).items()}

    def _dtype(self, key: str) -> str:
        return self._source.dtype(self._stored[key])

    def _stated_layouts(self, prefix: str) -> dict[str, Layout]:
        """By layer, what header and marks state."""
        header = self._source.metadata().get("_quantization_metadata")
        stated = _json(header).get("layers") if header else {}
        if not isinstance(stated, dict):
            raise ModelError(f"The header of {self._source.describe()} is damaged (_quantization_metadata).", _NEAREST)
        stated = {str(layer).removeprefix(prefix): how for layer, how in stated.items()}
        for key in self._order:
            layer, _, last = key.rpartition(".")
            if last == "comfy_quant":
                stated[layer] = self._mark(layer, key)
        return {layer: self._known(layer, how) for layer, how in stated.items() if f"{layer}.weight" in self._stored}

    def _mark(self, layer: str, key: str) -> dict[str, Any]:
        """What a layer states of itself."""
        shape = self._source.shape(self._stored[key])
        if (found := self._dtype(key)) != "U8":
            raise self._refusal(layer, f"a format that is not said in bytes but in {found}")
        if len(shape) != 1 or shape[0] > _LONGEST_MARK:
            raise self._refusal(layer, f"a format that is said in a tensor {list(shape)}")
        return _json(self._source.read(self._stored[key]).numpy().tobytes())

    def _known(self, layer: str, how: Any) -> Layout:
        if (layout := layout_of(how)) is None:
            named = how.get("format") if isinstance(how, dict) else how
            odd = " with another rotation" if isinstance(how, dict) and layout_of(named) else ""
            raise self._refusal(layer, f"{shortened(str(named))}{odd}")
        return layout

    def _refuse_other_formats(self) -> None:
        """Matrices that others quantised, by the names beside them; and all in whole numbers that state nothing."""
        for key in self._order:
            layer, _, last = key.rpartition(".")
            stated = layer in self._layouts and last in self._layouts[layer].beside
            if layer and last in _OTHER_FORMATS and not stated:
                raise self._refusal(layer.removesuffix(".quant_state").removesuffix(".weight"), _OTHER_FORMATS[last])
        for key in self._order:
            weight = key.endswith((".weight", ".bias")) or len(self._source.shape(self._stored[key])) > 1
            if not weight or key == SPIECE or _BOOKKEEPING.fullmatch(key):
                continue
            layout = self._layouts.get(key.removesuffix(".weight"), FLOAT8)
            if (found := self._dtype(key)) in WHOLE_NUMBERS and found not in layout.stored:
                raise self._refusal(key.removesuffix(".weight"), f"whole numbers ({found})")

    def _add_scale(self, layer: str, key: str) -> None:
        weight = f"{layer}.weight"
        if weight not in self._stored or weight in self._scale:
            what = "two scales" if weight in self._scale else "a scale but no matrix"
            raise ModelError(f"{self._source.describe()} holds {what} for {shortened(layer)}.", _NEAREST)
        layout, of = self._layouts.get(layer, FLOAT8), f"{self._layouts[layer].name} " if layer in self._layouts else ""
        stored, kind = self._dtype(weight), self._dtype(key)
        if stored not in layout.stored or kind not in layout.scales:
            raise self._refusal(layer, f"{of}{stored} with scales of {kind}")
        shapes = [self._source.shape(self._stored[name]) for name in (weight, key)]
        if not layout.fits(*shapes):
            raise self._refusal(layer, f"{of}parts (scales {list(shapes[1])} for {list(shapes[0])})")
        self._scale[weight] = key
        self._check_beside(layer, layout)

    def _check_beside(self, layer: str, layout: Layout) -> None:
        """That the further tensors of a layout are there, and of the right form."""
        columns = layout.shape(self._source.shape(self._stored[f"{layer}.weight"]))[-1:]
        for name, needed in layout.beside.items():
            if (key := f"{layer}.{name}") not in self._stored:
                if needed:
                    raise ModelError(f"{self._source.describe()} lacks {name} of {shortened(layer)}.", _NEAREST)
                continue
            shape, allowed = self._source.shape(self._stored[key]), ((), (1,)) if needed else (columns,)
            if self._dtype(key) not in FLOATS or shape not in allowed:
                raise self._refusal(layer, f"{layout.name} with {name} {self._dtype(key)} {list(shape)}")

    def _refuse_left_over(self) -> None:
        """Every tensor beside a matrix of few bits is understood, or the matrix is not."""
        few = {key.removesuffix(".weight") for key in self._stored if self._dtype(key) in FP8} | set(self._layouts)
        few = {stem for stem in few if not _BOOKKEEPING.fullmatch(stem)}
        for key in self._order:
            for stem, rest in _stems(key):
                layout = self._layouts.get(stem, FLOAT8)
                if stem in few and rest not in {"weight", "bias", *_MARKS, *layout.beside}:
                    raise self._refusal(stem, f"{layout.name} with {shortened(rest)} beside it")

    def _refuse_without_scale(self) -> None:
        """Where one matrix is scaled, all of few bits are; and where a layer has any mark, its matrix is."""
        marked = {key.rpartition(".")[0] for key in self._stored if key.rpartition(".")[2] in _MARKS}
        lacking = [layer for layer in sorted(marked | set(self._layouts)) if self._lacks(f"{layer}.weight")]
        if not lacking and (self._scale or "scaled_fp8" in self._stored):
            matrices = (key for key in self._order if self._dtype(key) in FP8 and len(self.shape(key)) == 2)
            lacking = [key.removesuffix(".weight") for key in matrices if self._lacks(key)]
        if lacking:
            more = f" and of {len(lacking) - 1} more" if lacking[1:] else ""
            raise ModelError(f"{self._source.describe()} lacks the scale of {shortened(lacking[0])}{more}.", _NEAREST)

    def _lacks(self, key: str) -> bool:
        """Whether a tensor is there and no matrix with a scale, and no scale itself."""
        return key in self._stored and key not in self._scale and not _BOOKKEEPING.fullmatch(key)

    def _check_values(self) -> None:
        """Scales are positive numbers (those of blocks are not looked at here), and no matrix is all zeros."""
        for weight in sorted(self._scale):
            for name in self._layout(weight).small_scales():
                self._check_scale(weight, name)
        names = {stored: key for key, stored in self._stored.items() if not any(part in key for part in ZERO_AT_FIRST)}
        names = {stored: key for stored, key in names.items() if not _BOOKKEEPING.fullmatch(key)}
        for stored in self._source.zeros(names):
            raise ModelError(
                f"{self._source.describe()} holds only zeros for {shortened(names[stored])}: "
                "a download that has not finished leaves such a file.",
                FETCH_AGAIN,
            )

    def _check_scale(self, weight: str, name: str) -> None:
        scale = self._source.read(self._tensor_names(weight)[name]).float()
        wrong = "not finite" if not scale.isfinite().all() else "negative" if (scale < 0).any() else "0"
        if wrong != "0" or (scale == 0).any():
            raise ModelError(
                f"{self._source.describe()} holds a scale for {shortened(weight)} that is {wrong}.", FETCH_AGAIN
            )

    def _refusal(self, layer: str, how: str) -> ModelError:
        what = f"{self._source.describe()} stores {shortened(layer)} in {how}, which cannot be read."
        return AnotherKind(what, _NEAREST)


def _stems(key: str) -> Iterator[tuple[str, str]]:
    """The ways to part a name into a matrix's and what stands behind it: at each dot, and in its last word."""
    at = key.find(".")
    while at >= 0:
        yield key[:at], key[at + 1 :]
        at = key.find(".", at + 1)
    start = key.rfind(".") + 1
    at = key.find("_", start)
    while at >= 0:
        yield key[:at], key[at:]
        at = key.find("_", at + 1)


def _json(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
