"""Quantised files: matrices of eight bits are read as the numbers that were meant, or refused; never as they lie.

Any file may hold matrices in fp8: W = stored * scale, where the scale is one number or a column with one per row. In
the older form of ComfyUI the file has a tensor `scaled_fp8`, and layers have `scale_weight` and perhaps `scale_input`;
in the newer one layers have `weight_scale` and perhaps `input_scale`, and their format is said in JSON, in a tensor
`comfy_quant` of each or in the header's `_quantization_metadata`. Scales of inputs serve products in fp8, and none
happen here. A file whose fp8 matrices have no scales at all means what it says. Everything else is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from .header import FETCH_AGAIN, AnotherKind, shortened
from .source import WHOLE_NUMBERS, FileSource

if TYPE_CHECKING:
    import torch

SPIECE = "spiece_model"
"""The tensor (uint8) in which a text encoder carries its sentencepiece model."""
ZERO_AT_FIRST = ("trainable_cond_mask.", "cond_encoder.", "audio_injector.", "lora_")
"""Parts whose matrices begin training as zeros, and may have stayed so."""
_FP8_FORMATS = ("float8_e4m3fn", "float8_e5m2")
"""As a layer states it."""
_FP8, _FLOATS = ("F8_E4M3", "F8_E5M2"), ("F32", "F16", "BF16")
"""Types as the file states them."""
_SCALES = ("scale_weight", "weight_scale")
_MARKS = ("scale_weight", "weight_scale", "scale_input", "input_scale", "comfy_quant")
_BOOKKEEPING = re.compile(r"(?:.+\.)?(?:scaled_fp8|scale_weight|weight_scale|scale_input|input_scale|comfy_quant)")
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
    """A file whose fp8 matrices are read as numbers; every other tensor is read as it is stored.

    With a scale they are multiplied in float32 and stay float32, so that whoever rounds does so once; without one they
    become bfloat16, which holds every fp8 number. Scales and marks are not among the keys.

    Args:
        source: the file; its scales and marks are read at once, they are small.
        prefix: what to take off the names; tensors without it belong to other models and are left out.

    Raises:
        AnotherKind: quantised in another way than fp8, or in one that is not understood to the last tensor.
        ModelError: a scale and its matrix do not fit, or one of them is missing; a scale is no positive number; a
            matrix holds nothing but zeros.
    """

    def __init__(self, source: FileSource, prefix: str = ""):
        self._source = source
        self._stored = {key.removeprefix(prefix): key for key in source.keys() if key.startswith(prefix)}  # noqa: SIM118
        self._order = sorted(self._stored)
        self._scale: dict[str, str] = {}
        self._refuse_other_formats()
        for key in self._order:
            layer, _, last = key.rpartition(".")
            if last in _SCALES:
                self._add_scale(layer, key)
        self._check_formats(prefix)
        self._refuse_left_over()
        self._refuse_without_scale()
        self._check_values()
        self._keys = frozenset(key for key in self._stored if not _BOOKKEEPING.fullmatch(key))

    @property
    def scaled(self) -> int:
        """How many matrices have a scale."""
        return len(self._scale)

    def keys(self) -> frozenset[str]:
        return self._keys

    def shape(self, key: str) -> tuple[int, ...]:
        return self._source.shape(self._stored.get(key, key))

    def metadata(self) -> dict[str, str]:
        """The free text entries of the file."""
        return self._source.metadata()

    def read(self, key: str) -> torch.Tensor:
        import torch

        tensor = self._source.read(self._stored.get(key, key))
        if key not in self._scale:
            return tensor.bfloat16() if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) else tensor
        scale = self._source.read(self._stored[self._scale[key]]).float()
        return tensor.to(torch.float32, copy=True).mul_(scale.reshape(-1, *[1] * (tensor.ndim - 1)))

    def describe(self) -> str:
        return self._source.describe() + (f" ({self.scaled} matrices in fp8)" if self.scaled else "")

    def _dtype(self, key: str) -> str:
        return self._source.dtype(self._stored[key])

    def _refuse_other_formats(self) -> None:
        """Matrices that others quantised, by the names beside them; and all in whole numbers, whatever they mean."""
        for key in self._order:
            layer, _, last = key.rpartition(".")
            if layer and last in _OTHER_FORMATS:
                raise self._refusal(layer.removesuffix(".quant_state").removesuffix(".weight"), _OTHER_FORMATS[last])
        for key in self._order:
            weight = key.endswith((".weight", ".bias")) or len(self.shape(key)) > 1
            if weight and key != SPIECE and self._dtype(key) in WHOLE_NUMBERS and not _BOOKKEEPING.fullmatch(key):
                raise self._refusal(key.removesuffix(".weight"), f"whole numbers ({self._dtype(key)})")

    def _add_scale(self, layer: str, key: str) -> None:
        weight = f"{layer}.weight"
        if weight not in self._stored or weight in self._scale:
            what = "two scales" if weight in self._scale else "a scale but no matrix"
            raise ModelError(f"{self._source.describe()} holds {what} for {shortened(layer)}.", _NEAREST)
        shape, scale = self.shape(weight), self.shape(key)
        stored = self._dtype(weight)
        if stored not in (*_FP8, *_FLOATS) or self._dtype(key) not in _FLOATS:
            raise self._refusal(layer, f"{stored} with scales of {self._dtype(key)}")
        if scale not in ((), (1,), (1,) * len(shape), (*shape[:1], *[1] * (len(shape) - 1))):
            raise self._refusal(layer, f"parts (scales {list(scale)} for {list(shape)})")
        self._scale[weight] = key

    def _check_formats(self, prefix: str) -> None:
        """That layers said to be quantised have a scale, and those that state their format are in fp8."""
        header = self._source.metadata().get("_quantization_metadata")
        stated = _json(header).get("layers") if header else {}
        if not isinstance(stated, dict):
            raise ModelError(f"The header of {self._source.describe()} is damaged (_quantization_metadata).", _NEAREST)
        stated = {str(layer).removeprefix(prefix): how for layer, how in stated.items()}
        for layer, how in stated.items():
            if f"{layer}.weight" in self._stored:
                self._check_format(layer, how)
        marked = {key.rpartition(".")[0] for key in self._stored if key.rpartition(".")[2] in _MARKS}
        for layer in sorted(marked | set(stated)):
            if (weight := f"{layer}.weight") in self._stored and weight not in self._scale:
                raise ModelError(f"{self._source.describe()} lacks the scale of {shortened(layer)}.", _NEAREST)
        for layer in sorted(marked):
            if (mark := f"{layer}.comfy_quant") in self._stored:
                self._check_format(layer, self._mark(layer, mark))

    def _mark(self, layer: str, key: str) -> dict[str, Any]:
        """What a layer states of itself."""
        shape = self.shape(key)
        if (found := self._dtype(key)) != "U8":
            raise self._refusal(layer, f"a format that is not said in bytes but in {found}")
        if len(shape) != 1 or shape[0] > _LONGEST_MARK:
            raise self._refusal(layer, f"a format that is said in a tensor {list(shape)}")
        return _json(self._source.read(self._stored[key]).numpy().tobytes())

    def _check_format(self, layer: str, how: Any) -> None:
        name = how.get("format") if isinstance(how, dict) else how
        if name not in _FP8_FORMATS:
            raise self._refusal(layer, shortened(str(name)))

    def _refuse_left_over(self) -> None:
        """Every tensor beside an fp8 matrix is understood, or the matrix is not."""
        eight_bit = {key.removesuffix(".weight") for key in self._stored if self._dtype(key) in _FP8}
        known = {"weight", "bias", *_MARKS}
        for key in self._order:
            for stem, rest in _stems(key):
                if stem in eight_bit and rest not in known:
                    raise self._refusal(stem, f"fp8 with {shortened(rest)} beside it")

    def _refuse_without_scale(self) -> None:
        """Where one matrix is scaled, all in fp8 are."""
        if not self._scale and "scaled_fp8" not in self._stored:
            return
        lacking = [
            key.removesuffix(".weight")
            for key in self._order
            if key not in self._scale and self._dtype(key) in _FP8 and len(self.shape(key)) == 2
        ]
        if lacking:
            more = f" and of {len(lacking) - 1} more" if lacking[1:] else ""
            raise ModelError(f"{self._source.describe()} lacks the scale of {shortened(lacking[0])}{more}.", _NEAREST)

    def _check_values(self) -> None:
        """Scales are positive numbers, and no matrix is all zeros."""
        for weight, key in sorted(self._scale.items()):
            scale = self._source.read(self._stored[key]).float()
            wrong = "not finite" if not scale.isfinite().all() else "negative" if (scale < 0).any() else "0"
            if wrong != "0" or (scale == 0).any():
                raise ModelError(
                    f"{self._source.describe()} holds a scale for {shortened(weight)} that is {wrong}.", FETCH_AGAIN
                )
        names = {stored: key for key, stored in self._stored.items() if not any(part in key for part in ZERO_AT_FIRST)}
        for stored in self._source.zeros(names):
            raise ModelError(
                f"{self._source.describe()} holds only zeros for {shortened(names[stored])}: "
                "a download that has not finished leaves such a file.",
                FETCH_AGAIN,
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
