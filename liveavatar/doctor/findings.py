"""What follows from the facts: rules, each a pure function of the report."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from ..attention_choice import PYTORCH
from ..config import BLOCK_LATENTS, WAN2_2_S2V_14B, WINDOW_BLOCKS
from ..storage import FP8_CAPABILITY
from ..utils import format_bytes, is_overloaded
from .report import FLOAT8_ROWS, Device, Finding, Level, Report

_LEAST_VRAM = 15e9
"""Bytes of the smallest card for the whole 14B model, with fp8 weights of which some are streamed."""
_HELD = 1.5e9
"""Bytes of a GPU that other programs may hold without being mentioned; a desktop takes one."""
_FOUR_LANES = 8.0
"""GB/s that PCIe 4.0 does not reach with 4 lanes."""
_HOST_KEYS = 4 * WINDOW_BLOCKS * BLOCK_LATENTS * 1056 * WAN2_2_S2V_14B.dim * 2 * WAN2_2_S2V_14B.num_layers
"""Bytes of keys and values in fp8: 4 steps at 704x384."""
_FULL, _TIGHT = 1e9, 5e9
"""Bytes free on the disk of spooled latents; an hour of video takes 3 GB."""
_PROXIES = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY"}


def findings(report: Report) -> tuple[Finding, ...]:
    """All findings; problems first, then notes, then what is good."""
    found = [finding for rule in RULES for finding in rule(report)]
    return tuple(sorted(found, key=lambda f: ("problem", "note", "good").index(f.level)))


def _failures(r: Report) -> Iterator[Finding]:
    for failure in r.failures:
        yield Finding(
            "problem",
            f"Looking at {failure.probe} failed. {_sentence(failure.why)}",
            "Check the folder that was given."
            if failure.probe == "the model"
            else "If nothing else here explains it, paste this report into an issue.",
        )


def _libraries(r: Report) -> Iterator[Finding]:
    if not r.versions:
        return
    known = r.versions.libraries
    if known.get("torch") is None:
        yield Finding("problem", "PyTorch is not installed.", "Install the build of PyTorch that fits this machine.")
    wanted = {name: least for name, least in r.versions.wanted.items() if name != "ray"}
    missing = [name for name in wanted if known.get(name) is None]
    if missing:
        yield Finding(
            "problem", f"Not installed: {', '.join(missing)}.", "Install what requirements.txt names into this Python."
        )
    for name, least in wanted.items():
        has = known.get(name)
        if has and _older(has, least):
            yield Finding("problem", f"{name} {has} is older than {least}, the oldest tried.", f"Update {name}.")


def _workers(r: Report) -> Iterator[Finding]:
    if not r.versions:
        return
    has, least = r.versions.libraries.get("ray"), r.versions.wanted.get("ray", "")
    install = f"Install the extra 'ray' of this package (ray>={least}); one GPU does not need it."
    if has is None:
        yield Finding("note", "Worker processes are not available: Ray is not installed.", install)
    elif _older(has, least):
        yield Finding("note", f"Ray {has} is older than {least}, the oldest tried.", "Update ray.")
    else:
        yield Finding("good", f"Ray {has} is installed: stages can run as worker processes.")


def _meter(r: Report) -> Iterator[Finding]:
    if r.versions and r.versions.libraries.get("dlib") is None:
        yield Finding(
            "note",
            "`meter` cannot read faces: dlib is not installed.",
            "Install the extra 'meter' of this package to measure lip sync of finished videos.",
        )


def _no_gpu(r: Report) -> Iterator[Finding]:
    a = r.accelerators
    if a is None or r.gpus:
        return
    cards = f"The NVIDIA driver {a.driver} knows {', '.join(a.driver_gpus)}" if a.driver_gpus else ""
    if cards and a.build == "CPU":
        yield Finding(
            "problem", f"{cards}, but this PyTorch was built for the CPU only.", "Install the CUDA build of PyTorch."
        )
    elif cards and r.network and "CUDA_VISIBLE_DEVICES" in r.network.variables:
        yield Finding(
            "problem", f"{cards}, but CUDA_VISIBLE_DEVICES hides it.", "Unset CUDA_VISIBLE_DEVICES, or name the card."
        )
    elif cards:
        yield Finding(
            "problem",
            f"{cards}, but PyTorch for {a.build} finds no GPU.",
            "Update the driver; an old one does not know this version of CUDA.",
        )
    elif a.build != "CPU":
        yield Finding(
            "problem",
            f"PyTorch was built for {a.build}, but no driver shows it a GPU.",
            "Install the driver of the card; in a container, pass the GPU in.",
        )
    else:
        yield Finding(
            "note",
            "There is no GPU: the miniature runs here, the 14B model would take hours.",
            "For the 14B model use a machine with an NVIDIA GPU.",
        )


def _room(r: Report) -> Iterator[Finding]:
    for d in r.gpus:
        if d.total is None or d.free is None:
            continue
        held, of = d.total - d.free, f"{d.id} ({d.name})"
        amounts = f"{d.free / 1e9:.1f} of {format_bytes(d.total)} are free"
        if d.total < _LEAST_VRAM:
            yield Finding(
                "note",
                f"{of} has {format_bytes(d.total)}, too little for the whole 14B model.",
                "Share its layers between several cards, or use the miniature.",
            )
        elif d.free < _LEAST_VRAM:
            yield Finding(
                "problem", f"On {of} only {amounts}: other programs hold the rest.", "End them, or use another card."
            )
        elif held > max(_HELD, 0.05 * d.total):
            yield Finding("note", f"On {of} {amounts}: other programs hold the rest.", "End them for larger videos.")


def _dtypes(r: Report) -> Iterator[Finding]:
    for d in r.gpus:
        if d.compute is None:
            continue
        speed, of = d.compute.matmul, f"{d.id} ({d.name})"
        speeds = ", ".join(f"{name} {speed[name]:.0f}" for name in speed)
        yield (
            Finding("good", f"{of} computes: {speeds} TFLOP/s.")
            if speed
            else Finding("problem", f"{of} multiplies no matrices: {_first(d)}", "Update the driver and PyTorch.")
        )
        if speed and FLOAT8_ROWS not in speed:
            yield _without_float8(d)
        if speed and speed.get("bfloat16", 0.0) < 0.5 * speed.get("float16", 0.0):
            yield Finding("note", f"{of} is much slower in bfloat16 than in float16.", "Use --dtype float16.")


def _attention(r: Report) -> Iterator[Finding]:
    """Of packages with a kernel that is not right on a device."""
    for d in r.devices:
        for kernel in d.compute.attention if d.compute else ():
            if kernel.why_not and kernel.backend != PYTORCH:
                what = f"The attention of {kernel.backend} is not used on {d.id} ({d.name}): {kernel.why_not}"
                yield Finding("note", _sentence(what), "Update its package, or leave --attention at auto.")


def _cpu_dtypes(r: Report) -> Iterator[Finding]:
    """Of a machine without a GPU, whose processor does the work."""
    for d in r.devices if not r.gpus else ():
        speed = d.compute.matmul if d.compute else {}
        plain, short = speed.get("float32", 0.0), speed.get("bfloat16", 0.0)
        if 0.0 < short < 0.5 * plain:
            yield Finding(
                "note",
                f"The processor is {plain / short:.0f} times slower in bfloat16 than in float32: it has no "
                "instructions for it (AVX512-BF16 or AMX).",
                "Use float32 on it, as is done where nothing else is said.",
            )


def _without_float8(d: Device) -> Finding:
    """A card whose fp8 weights are widened: an old one cannot do otherwise, a new one should."""
    of = f"{d.id} ({d.name})"
    if d.capability and tuple(map(int, d.capability.split("."))) >= FP8_CAPABILITY:
        why = d.compute.failed.get(FLOAT8_ROWS, "no reason was given") if d.compute else ""
        return Finding(
            "problem",
            f"{of} has compute capability {d.capability} and does not multiply fp8 matrices: {_sentence(why)}",
            "Update PyTorch; until then fp8 weights save memory there and no time.",
        )
    return Finding(
        "note",
        f"{of} does not compute in fp8 (compute capability {d.capability}): fp8 saves memory there, no time.",
        "Nothing to do: fp8 weights are widened where they are used.",
    )


def _links(r: Report) -> Iterator[Finding]:
    for d in r.gpus:
        slow = min(d.copies.pinned_in or 0.0, d.copies.pinned_out or 0.0) if d.copies else _FOUR_LANES
        if slow < _FOUR_LANES:
            yield Finding(
                "note",
                f"Copies between the host and {d.id} run at {slow:.1f} GB/s, as in a slot with 4 lanes: what is "
                "streamed from the host makes it wait.",
                "Put the card into a slot with 16 lanes and check the riser and the BIOS.",
            )
    indirect = sorted({f"{p.source} and {p.target}" for p in r.peers if not p.direct and p.source < p.target})
    if indirect:
        yield Finding(
            "note",
            f"No direct copies between {', '.join(indirect)}: what passes between them takes the way through the host.",
            "Cut layers (1xP), not steps: little passes between the parts of a layer.",
        )
    elif r.peers:
        yield Finding("good", "All GPUs copy to each other directly.")


def _memory(r: Report) -> Iterator[Finding]:
    if r.host and r.gpus and r.host.ram_free is not None and r.host.ram_free < _HOST_KEYS:
        yield Finding(
            "note",
            f"{format_bytes(r.host.ram_free)} of host memory are free; the keys and values of the 14B model at 704x384 "
            f"take {format_bytes(_HOST_KEYS)}, where a card has no room for them.",
            "End other programs, add memory, or make smaller videos.",
        )


def _load(r: Report) -> Iterator[Finding]:
    if r.host and r.host.load is not None and is_overloaded(r.host.load, r.host.cores):
        yield Finding(
            "note",
            f"The machine is overloaded: {r.host.load:.1f} processes want to run on {r.host.cores} cores. Everything "
            "takes longer, and the speeds measured here are too low.",
            "End other programs, and call doctor again.",
        )


def _disks(r: Report) -> Iterator[Finding]:
    for d in r.disks:
        elsewhere = (
            "Point the environment variable TMPDIR (on Windows TEMP) at another folder."
            if d.name == "temporary"
            else "Name the video with --out in another folder."
        )
        bad: Level = "problem" if d.name == "temporary" else "note"
        if not d.writable:
            why = f" ({d.why_not})" if d.why_not else ""
            yield Finding(bad, f"Nothing can be written in the {d.name} folder{why}.", elsewhere)
        elif d.free is not None and d.free < _TIGHT:
            yield Finding(
                bad if d.free < _FULL else "note",
                f"The disk of the {d.name} folder has only {format_bytes(d.free)} free.",
                elsewhere,
            )


def _network(r: Report) -> Iterator[Finding]:
    n = r.network
    if n and not n.loopback:
        yield Finding(
            "problem",
            f"This machine cannot connect to itself on 127.0.0.1: {_sentence(n.why_not)}",
            "Allow Python local connections in the firewall or security program.",
        )
    for h in r.handshakes:
        if h.worked:
            yield Finding("good", f"Two processes met over {h.backend}: {h.speed or 0:.2f} GB/s from one to the other.")
            continue
        prefix = f"{h.backend.upper()}_"
        astray = [v for v in (n.variables if n else ()) if v.startswith(prefix) or v in _PROXIES]
        yield Finding(
            "problem" if h.backend == "gloo" else "note",
            f"Two processes could not meet over {h.backend}: {_sentence(h.why_not)}",
            f"Try without the environment variable {' and '.join(astray)}."
            if astray
            else "Allow Python local connections in the firewall or security program; run in one process until then.",
        )


def _windows(r: Report) -> Iterator[Finding]:
    if r.host and r.host.system == "Windows" and len(r.gpus) > 1:
        yield Finding(
            "note",
            f"Windows itself cannot share a video between its {len(r.gpus)} GPUs.",
            "Run it in WSL2, or use one GPU.",
        )


def _model(r: Report) -> Iterator[Finding]:
    if r.model and r.model.complete:
        yield Finding("good", "The model is complete.")
    elif r.model:
        listed = "; ".join(f"{name} ({r.model.parts.get(name, '')})" for name in r.model.wrong)
        yield Finding(
            "problem",
            f"The model is not complete: {_sentence(listed)}",
            "The command `inspect` with the same folder says how to fetch what is missing.",
        )


RULES: tuple[Callable[[Report], Iterator[Finding]], ...] = (
    _failures,
    _libraries,
    _no_gpu,
    _room,
    _dtypes,
    _attention,
    _cpu_dtypes,
    _memory,
    _load,
    _links,
    _disks,
    _network,
    _windows,
    _workers,
    _meter,
    _model,
)


def _older(has: str, least: str) -> bool:
    """By the numbers at the start of each version; "2.13.0+cpu" and "1.0rc1" are read as 2.13.0 and 1.0."""

    def numbers(version: str) -> list[int]:
        found = re.match(r"\d+(?:\.\d+)*", version)
        return [int(n) for n in found[0].split(".")] if found else []

    a, b = numbers(has), numbers(least)
    length = max(len(a), len(b))
    return a + [0] * (length - len(a)) < b + [0] * (length - len(b)) if a else False


def _first(d: Device) -> str:
    return _sentence(next(iter(d.compute.failed.values()), "")) if d.compute else ""


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
