"""What `bench model` found, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .tables import aligned, counted, gigabytes

if TYPE_CHECKING:
    from ..bench.found import Compared, Decoding, Launching, Memory, ModelBench, Moved, Work

_BUSY = 70
"""Percent of the device's time from which on the host's launching is too near to it."""


def model_lines(found: ModelBench) -> list[str]:
    """Speed, work, traffic and memory."""
    b, p = found, found.pace
    compiled = (
        "" if b.compile_seconds is None else f", {b.compile_seconds:.1f} s to compile (kept in {b.compile_cache})"
    )
    phases = ", ".join(f"{name} {1000 * seconds:.2f}" for name, seconds in p.phases.items())
    lines = [
        f"model   {b.model}, random weights, {b.dtype}, stages {b.stages} on {b.device} ({b.device_name})",
        f"video   {b.size[0]}x{b.size[1]}, {counted(b.blocks, 'block')}, {counted(b.steps, 'step')} each",
        f"before  {b.load_seconds:.1f} s to make weights, {b.warmup_seconds:.1f} s to warm up{compiled}",
        f"pace    {p.fps:.2f} frames per second, a block every {p.seconds_per_block:.3f} s",
        f"tasks   {1000 * p.seconds_per_task:.2f} ms each ({phases}), prefill {1000 * p.prefill_seconds:.2f}",
        f"first   block after {p.first_block_seconds:.3f} s of work",
        *_work_lines(b.work),
        *_launching_lines(b.launching),
        *_moved_lines(b.moved),
        *_memory_lines(b.memory),
    ]
    if b.decoding:
        lines += _decoding_lines(b.decoding)
    if b.compared:
        lines += _compared_lines(b.compared)
    return lines if b.finite else [*lines, "wrong   some latents are not finite: nothing here is to be trusted"]


def _work_lines(w: Work) -> list[str]:
    done = f"work    {w.tflop_per_block:.4g} TFLOP per block, {w.tflops:.4g} TFLOP/s"
    if w.peak_tflops is None or w.share_of_peak is None:
        return [f"{done} (what {w.peak_dtype} matrices reach here could not be measured)"]
    share = f"{100 * w.share_of_peak:.1f} % of the {w.peak_tflops:.4g} that {w.peak_dtype} matrices reach here"
    lines = [f"{done}: {share}"]
    if w.share_of_possible is not None:
        possible = f"{100 * w.share_of_possible:.1f} % of what is possible"
        lines.append(f"        {possible}, with attention at its own {w.attention_tflops:.4g}")
    return lines


def _launching_lines(launched: Launching | None) -> list[str]:
    if launched is None:
        return []
    share = 100 * launched.share
    reading = "the device is never kept waiting" if share < _BUSY else "the host may keep the device waiting"
    return [
        f"launch  {launched.seconds_per_block:.3f} s of the host per block, {share:.1f} % of the device's: {reading}"
    ]


def _moved_lines(m: Moved) -> list[str]:
    if not m.to_device + m.to_host:
        return ["copies  nothing moves between host and device"]
    lines = [
        f"copies  {gigabytes(m.to_device)} in and {gigabytes(m.to_host)} out per block; "
        f"{m.copy_seconds:.3f} s in at {m.copy_gb:.1f} GB/s"
    ]
    if m.resident_seconds_per_block is None or m.exposed_seconds is None:
        return [*lines, "        (with nothing on the host it does not fit, so what they cost cannot be told)"]
    return [
        *lines,
        f"        with nothing on the host a block takes {m.resident_seconds_per_block:.3f} s: "
        f"{m.exposed_seconds:+.3f} s are not hidden",
    ]


def _memory_lines(m: Memory) -> list[str]:
    rows: list[tuple[str, ...]] = [("bytes", "planned", "found", "difference")]
    named = {**m.parts, "all that stays": m.held, "most at once": m.peak}
    if m.host.planned or m.host.found:
        named["on the host"] = m.host
    for name, amount in named.items():
        shown = gigabytes(amount.planned), gigabytes(amount.found), f"{amount.difference:+.2f} %"
        rows.append((name, *shown))
    lines = ["memory", *aligned(rows)]
    if m.reserved is not None:
        lines.append(f"        {gigabytes(m.reserved)} reserved by the allocator")
    return lines


def _decoding_lines(d: Decoding) -> list[str]:
    lines = [
        f"VAE     {d.seconds_per_block:.3f} s per block alone, {d.warmup_seconds:.2f} s before the first; "
        f"first frames after {d.first_frames_seconds:.3f} s"
    ]
    if d.beside_seconds_per_block is not None and d.beside_decode_seconds is not None:
        lines.append(
            f"        side by side: a block every {d.beside_seconds_per_block:.3f} s, decoded in "
            f"{d.beside_decode_seconds:.3f} s"
        )
    return lines


def _compared_lines(c: Compared) -> list[str]:
    def shown(seconds: tuple[float, ...]) -> str:
        return ", ".join(f"{s:.3f}" for s in seconds)

    return [
        f"naive   {c.ratio:.2f} times as long: {shown(c.naive)} s per block, ours {shown(c.ours)}, in turns; "
        f"latents differ by {c.difference:.1e} of the largest"
    ]
