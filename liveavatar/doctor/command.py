"""Say what this machine can do, what is wrong and what to do about it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..attention_choice import AttentionUse
from ..cli.tables import aligned, counted, gigabytes
from ..cli.terminal import ProgressLine, say
from ..errors import OutputError
from ..files import path_of, refuse_foreign_json

if TYPE_CHECKING:
    from . import Device, Report

_LABELS = {"problem": "PROBLEM", "note": "note", "good": "good"}
_PROBLEMS = 1
_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float8": "fp8", "float8 rows": "fp8 rows"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `doctor`."""
    parser.add_argument("--json", action="store_true", help="for an issue; names no user, computer or folder")
    parser.add_argument("--quick", action="store_true", help="measure briefly; speeds are rough")
    parser.add_argument("--model", metavar="DIR", help="look at this model folder, too")
    parser.add_argument("--out", metavar="FILE", help="write the JSON into this file, too")
    parser.add_argument("--save", action="store_true", help=argparse.SUPPRESS)  # of older versions: it is always done


def run(arguments: argparse.Namespace) -> int:
    """Examine; 0 when there is no problem, 1 when there is one."""
    from . import examine
    from .known import write_json
    from .plain import plain

    out = path_of(arguments.out, "The doctor's report") if arguments.out else None
    if out:
        refuse_foreign_json(out, "The doctor's report", lambda content: content.keys() >= {"schema", "findings"})
    line = ProgressLine()
    try:
        report = examine(
            arguments.quick,
            arguments.model,
            lambda what, done, total: line.show(what, f"{100 * done // max(total, 1):3d} %  {what}"),
        )
    finally:
        line.end()
    if out:
        write_json(out, plain(report))
    kept = _keep(report)
    say([json.dumps(plain(report), indent=2)] if arguments.json else [*report_lines(report), kept])
    return 0 if report.healthy else _PROBLEMS


def _keep(report: Report) -> str:
    """Keep the speeds for plans on this machine; where, or why not."""
    from . import save_speeds

    try:
        return f"kept    for plans on this machine: {save_speeds(report.devices, report.quick)}"
    except OutputError as error:
        return f"note    the speeds are not kept for plans: {error}"


def report_lines(report: Report) -> Iterator[str]:
    """The facts as a table, then what follows from them."""
    yield from _machine(report)
    if report.devices:
        yield from aligned(_device_rows(report.devices))
        yield "        (products and attention in TFLOP/s, copies in GB/s: to and from the device, and within it)"
    for d in report.devices:
        yield from _attention(d)
    for p in report.peers:
        yield f"copies  {p.source} to {p.target}: {p.speed:.1f} GB/s, {'direct' if p.direct else 'through the host'}"
    yield f"took    {report.seconds:.0f} s{', measured briefly' if report.quick else ''}"
    for f in report.findings:
        yield f"{_LABELS[f.level]:<7} {f.what}{' ' + f.remedy if f.remedy else ''}"
    wrong = sum(f.level == "problem" for f in report.findings)
    yield f"{counted(wrong, 'problem')} found." if wrong else "No problem found."


def _machine(report: Report) -> Iterator[str]:
    if h := report.host:
        yield f"host    {h.system} {h.release}{' in Windows' if h.wsl else ''}, {h.cpu}, {counted(h.cores, 'core')}" + (
            f" ({h.usable_cores} usable)" if h.usable_cores != h.cores else ""
        )
        if h.ram is not None and h.ram_free is not None:
            locked = "" if h.pinnable is None else f", {gigabytes(h.pinnable)} may be locked"
            yield f"memory  {gigabytes(h.ram_free)} of {gigabytes(h.ram)} free{locked}"
    for d in report.disks:
        speed = f", writes {d.write:.2f} GB/s" if d.write else ""
        speed += f", reads {d.read:.2f} GB/s" if d.read else ""
        yield f"disk    {d.name} folder: {gigabytes(d.free) + ' free' if d.free is not None else 'unknown'}{speed}"
    if v := report.versions:
        libraries = ", ".join(f"{name} {has}" for name, has in v.libraries.items() if has)
        yield f"version liveavatar {v.liveavatar}, Python {v.python}, {libraries}"
    if a := report.accelerators:
        yield f"torch   built for {a.build}, {f'NVIDIA driver {a.driver}' if a.driver else 'no NVIDIA driver'}"


def _device_rows(devices: Sequence[Device]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("device", "memory", "free", *_DTYPES.values(), "attention", "in", "out", "within")]
    for d in devices:
        products = [_number(d.compute.matmul.get(name) if d.compute else None) for name in _DTYPES]
        best = max((k.tflops for k in d.compute.attention if k.tflops), default=None) if d.compute else None
        moved = (d.copies.pinned_in, d.copies.pinned_out, d.copies.memory) if d.copies else (None, None, None)
        sizes = [gigabytes(size) if size is not None else "-" for size in (d.total, d.free)]
        rows.append((d.id, *sizes, *products, _number(best), *map(_number, moved)))
    return rows


def _attention(device: Device) -> Iterator[str]:
    """Each kernel of self-attention: how fast, and how far from float32; or why it is not used."""
    for k in device.compute.attention if device.compute else ():
        name = AttentionUse(device.id, k.backend, k.kernel).name
        error = "" if k.error is None else f", {k.error:.1e} off float32"
        found = f"not used: {k.why_not}" if k.tflops is None else f"{_number(k.tflops)} TFLOP/s in {k.dtype}{error}"
        yield f"attends {device.id}: {name}, {found}"


def _number(value: float | None) -> str:
    """Three digits are as many as a measurement is worth."""
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"
