"""The receipt of a run: what was asked, what was made, and what it cost, as JSON beside the video."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import importlib.metadata
import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

from . import __version__
from .files import OutputClaim, is_stream, refuse_foreign_json, write_file
from .media.video import Probed
from .utils import is_overloaded

if TYPE_CHECKING:
    from .attention_choice import AttentionUse
    from .speakers import SpeakerReport
    from .weights.lora import LoRAReport

Status = Literal["running", "complete", "cancelled", "failed"]
RECEIPT_SCHEMA = "liveavatar receipt 1"
"""The mark by which a receipt is known from any other JSON, its key `schema`."""
_UNMARKED = {"status", "video", "requested", "effective", "plan", "frames_sha256", "versions"}
"""Keys by which a receipt is known that was written before there was a mark."""
LIBRARIES = ("torch", "transformers", "av")


SAVED_NAMES: Mapping[str, Mapping[str, str]] = {
    "StagePlan": {"kv_cache": "rings", "offload_slots": "slots", "host_kv_cache": "host_rings", "hop_bytes": "handed"},
    "Plan": {"partition": "cut", "embedders": "conditions"},
    "Partition": {"step_groups": "steps", "layer_shards": "layers"},
    "StorageConfig": {
        "kv_dtype": "keys",
        "kv_offload": "keys_home",
        "offload_text_kv": "prompt_weights",
        "offload_layers": "streamed",
    },
}
"""Class -> field -> its key in JSON, where files that users keep have an older word for it."""
SAVED_WORDS = {"keys_home": ("device", "host"), "prompt_weights": ("stay", "leave")}
"""Key in JSON -> the words for False and True."""


@dataclasses.dataclass(frozen=True)
class PeakMemory:
    """The most memory this process has held so far, in bytes.

    Attributes:
        host: resident memory of the process; None where the system does not tell.
        devices: tensors allocated on each accelerator that was used, by its name ("cuda:0").
    """

    host: int | None
    devices: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Receipt:
    """One run. Written as "running" before the first frame and replaced at the end: a run that was killed never looks
    complete.

    Attributes:
        status: running, complete, cancelled or failed.
        video: the file it is about.
        requested, effective, plan: dataclasses or mappings of JSON-ready values, of what the user asked, of what that
            really means, and of where it runs. Paths, enumerations, fractions, ranges, sets, dtypes and devices are
            understood.
        threads: CPU threads per stage; frames are bit-equal only at equal counts.
        versions: see `versions`.
        started, finished: ISO 8601 with time zone; `finished` is None while running.
        error: one readable paragraph, where the status is failed or cancelled.
        probed: what the written file holds.
        frames_sha256: over the raw RGB24 frames in the file, in order, before encoding; None where a failure lost some.
        seconds: wall seconds per phase.
        notices: what happened out of the ordinary, a sentence each.
        peak_memory: see `peak_memory`.
        attention: what self-attention was done with on each device, and how far that is from float32.
        loras: what each LoRA that was merged into the network changed, the distillation LoRA first.
        speakers: where there are several.
    """

    status: Status
    video: Path
    requested: Any
    effective: Any
    plan: Any
    threads: int
    versions: Mapping[str, str]
    started: str
    finished: str | None = None
    error: str | None = None
    probed: Probed | None = None
    frames_sha256: str | None = None
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notices: tuple[str, ...] = ()
    peak_memory: PeakMemory | None = None
    loras: tuple[LoRAReport, ...] = ()
    attention: tuple[AttentionUse, ...] = ()
    speakers: tuple[SpeakerReport, ...] = ()


def write_receipt(path: Path, receipt: Receipt, claim: OutputClaim | None = None) -> None:
    """Write or replace a receipt in one step: a reader sees the old one or the new one, whole.

    A device or the standard output (`-`) gets it once, when the run has ended.

    Args:
        path: where to.
        receipt: what it says.
        claim: on the file, from `claim_receipt`; None: it is claimed for a moment.

    Raises:
        OutputError: it cannot be written; an older receipt is still there. Without a claim, also as `claim_receipt`.
        TypeError: a value has no form in JSON.
    """
    content = {"schema": RECEIPT_SCHEMA, **json_ready(receipt)}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if is_stream(path) and receipt.status == "running":
        return
    own = None if claim or is_stream(path) else claim_receipt(path)
    with own or contextlib.nullcontext():
        write_file(path, text.encode(), "The receipt", claim or own)


def claim_receipt(path: Path) -> OutputClaim:
    """A claim on the file of a receipt.

    Raises:
        OutputError: see `OutputClaim`; or a file of that name holds something else than a receipt.
    """
    refuse_foreign_json(path, "The receipt", _is_receipt)
    return OutputClaim(path, "The receipt")


def _is_receipt(content: dict[str, Any]) -> bool:
    return content.get("schema") == RECEIPT_SCHEMA or ("schema" not in content and content.keys() >= _UNMARKED)


def json_ready(value: Any) -> Any:
    """The value in types that JSON has. Numbers that JSON lacks (NaN, infinity) become their names.

    Raises:
        TypeError: no form is known; nothing is turned into text on a guess.
    """
    if isinstance(value, enum.Enum):
        return json_ready(value.value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):  # what Python makes of undecodable bytes in a path has no form in UTF-8
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dict(_saved_field(value, field.name) for field in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return {str(json_ready(k)): json_ready(v) for k, v in value.items()}
    if isinstance(value, range):
        return {"start": value.start, "stop": value.stop} | ({"step": value.step} if value.step != 1 else {})
    if isinstance(value, list | tuple):
        return [json_ready(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted((json_ready(v) for v in value), key=repr)
    if isinstance(value, PurePath | Fraction) or _is_torch_name(value):
        return json_ready(str(value))
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a scalar of numpy or torch
        return json_ready(value.item())
    raise TypeError(f"A receipt has no form for {type(value).__name__}: {value!r}")


def _is_torch_name(value: Any) -> bool:
    """Whether it is a dtype or a device of PyTorch, which is not imported for this."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.dtype | torch.device)


def _saved_field(value: Any, name: str) -> tuple[str, Any]:
    """Key and value in JSON of a dataclass's field."""
    key, content = SAVED_NAMES.get(type(value).__name__, {}).get(name, name), getattr(value, name)
    return key, SAVED_WORDS[key][content] if key in SAVED_WORDS else json_ready(content)


def now() -> str:
    """This moment, as a receipt writes it."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def peak_memory() -> PeakMemory:
    """The peak of this process until now, and of the accelerators it has used."""
    devices = {}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        used = {f"cuda:{i}": torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())}
        devices = {name: peak for name, peak in used.items() if peak}
    return PeakMemory(host=_host_peak(), devices=devices)


def overload_notice(*loads: float | None) -> str:
    """What is to be told of a machine that has too much to do; "" of any other.

    Args:
        loads: processes that wanted to run at a time, from `load_average`, before the video and at its end.
    """
    most = max((load for load in loads if load is not None), default=None)
    if not is_overloaded(most):
        return ""
    return (
        f"the machine was overloaded: {most:.1f} processes wanted to run, and it has {os.cpu_count() or 1} cores; "
        "the video took longer than it would alone"
    )


def versions() -> dict[str, str]:
    """Versions of this library, Python, the system and the libraries whose numbers matter. Imports none of them."""
    found = {"liveavatar": __version__, "python": platform.python_version(), "system": platform.platform(terse=True)}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _host_peak() -> int | None:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def receipt_text(receipt: Path) -> str:
    """A receipt as it was written."""
    return json.dumps(json.loads(receipt.read_text(encoding="utf-8")), indent=2, ensure_ascii=False)
