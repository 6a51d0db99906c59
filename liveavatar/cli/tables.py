"""What people read: the effective values and the plan in words and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..config import BLOCK_FRAMES, FPS
from ..planner import BLOCK_SECONDS
from ..utils import format_bytes

if TYPE_CHECKING:
    from ..attention_choice import AttentionUse
    from ..distributed.registry import Driver
    from ..planner import LiveForecast, Plan
    from ..receipt import Receipt
    from ..request import ResolvedRequest
    from ..task_graph import Simulation

_WORKER_COLUMNS = ("worker", "stage", "device", "state", "memory", "age")
_PLAN_COLUMNS = ("stage", "device", "steps", "layers", "weights", "KV cache", "sink", "text", "slots", "work", "sum")
_BESIDE = ("conditions", "VAE", "audio encoder", "contexts")


def resolved_lines(resolved: ResolvedRequest) -> list[str]:
    """What will be made."""
    e = resolved
    speakers = "" if e.speaker_count == 1 else f", {e.speaker_count} speakers"
    if e.is_open:
        return [
            f"video   {e.width}x{e.height}, live, at 25 fps",
            f"work    blocks of 12 frames, {counted(e.steps, 'step')} each, seed {e.seed}{speakers}",
        ]
    changes = [(block, f"prompt: {text}") for block, text in e.prompt_changes]
    changes += [(block, f"portrait: {file}") for block, file in e.portrait_changes]
    return [
        f"video   {e.width}x{e.height}, {counted(e.frames, 'frame')} at 25 fps, {e.seconds:.2f} s",
        f"work    {counted(e.blocks, 'block')} of 12 frames, {counted(e.steps, 'step')} each, seed {e.seed}{speakers}",
        *(f"change  at {(BLOCK_FRAMES * b - e.drop) / FPS:.2f} s (block {b}), {what}" for b, what in sorted(changes)),
    ]


def note_lines(notes: Iterable[str]) -> list[str]:
    """Where that differs from what was asked, and what else is worth knowing."""
    return [f"note    {note}" for note in notes]


def plan_lines(plan: Plan) -> list[str]:
    """Which stage runs where, how it is kept, the bytes per device, and an estimate of the speed."""
    worked = f"{counted(plan.threads, 'CPU thread')} per task{', layers compiled' * plan.compiled}"
    lines = [f"model   {plan.model}, {plan.dtype}, stages {plan.partition}, {worked}"]
    rows: list[tuple[str, ...]] = [_PLAN_COLUMNS]
    for number, s in enumerate(plan.stages):
        sizes = (s.weights, s.kv_cache, s.sink, s.text, s.offload_slots, s.workspace, s.total)
        rows.append((str(number), s.device, _span(s.steps), _span(s.layers), *map(gigabytes, sizes)))
    lines += aligned(rows)
    usable = dict(plan.usable)
    for device, total in plan.total_by_device.items():
        beside = "".join(
            f", {name} {gigabytes(size)}"
            for name, size in plan.terms_by_device[device].items()
            if name in _BESIDE and size
        )
        room = f" of {gigabytes(usable[device])} usable, {gigabytes(usable[device] - total)} rest" if usable else ""
        lines.append(f"memory  {device}: {gigabytes(total)}{room}{beside and ' (with' + beside[1:] + ')'}")
    lines += attention_lines(plan.attention_uses)
    lines += [f"kept    {kept}" for kept in _kept(plan)]
    if plan.tiny_decoder:
        lines.append("kept    VAE: a small decoder makes the frames, the VAE encodes the portrait")
    if plan.vae_tiles != (1, 1):
        rows_of, columns = plan.vae_tiles
        rest = f", what they remember on the host ({gigabytes(plan.vae_host)})" if plan.vae_host else ""
        lines.append(f"kept    VAE: {rows_of}x{columns} tiles{rest}")
    lines += [
        f"host    {gigabytes(size)} pinned on {name}" for name, size in plan.host_bytes_by_machine.items() if size
    ]
    if plan.forecast:
        f = plan.forecast
        lines.append(
            f"pace    {f.fps:.1f} frames per second, a block every {f.seconds_per_block:.2f} s, the first frames after "
            f"{f.first_frames_seconds:.1f} s of work (an estimate from {f.source} speeds, layers "
            f"{'compiled' if plan.compiled else 'not compiled'}, stages side by side)"
        )
    lines.append(f"        (the encoders come and go before the network, {gigabytes(plan.encoders)} at most)")
    return [*lines, *_snapshot_lines(plan)]


def live_lines(live: LiveForecast | None, lookahead: float) -> list[str]:
    """Whether a live talk keeps the pace of speech, how long a sample waits for its picture, and what would do."""
    least = BLOCK_SECONDS + lookahead
    if live is None:
        return [
            f"live    25 fps hold where a block is made in {BLOCK_SECONDS:g} s; whether it is, is estimated of plans "
            "that are chosen for GPUs, and measured in the talk",
            f"delay   {least:.2f} s (a block of sound and the look-ahead), and the time that a block takes to be made",
        ]
    parts = f"block {BLOCK_SECONDS:g} s, look-ahead {lookahead:g} s, pipeline {live.pipeline_seconds:.2f} s"
    made = f"a block of {BLOCK_SECONDS:g} s is made in {live.seconds_per_block:.2f} s (from {live.source} speeds)"
    latency = f"{live.latency(lookahead):.2f} s from a sample to its picture"
    if live.holds:
        return [f"live    25 fps hold: {made}", f"delay   {latency}: {parts}"]
    behind = live.seconds_per_block - BLOCK_SECONDS
    return [
        f"live    25 fps do not hold: {made}, which is {live.fps:.1f} fps; the picture will stand and the sound wait",
        f"delay   {latency} at first: {parts}; {behind:.2f} s more with every block that is spoken",
        f"nearest {'; '.join(live.nearest) or 'nothing was found that keeps the pace'}",
    ]


def attention_lines(uses: Iterable[AttentionUse]) -> list[str]:
    """What self-attention is done with, how far that is from float32, and how fast the forecast takes it to be; devices
    that do the same stand together."""
    alike: dict[str, list[str]] = {}
    for use in uses:
        error = "tried when the network is loaded" if use.error is None else f"{use.error:.1e} off float32 in its trial"
        speed = f"; planned with {use.tflops:.0f} TFLOP/s, {use.source}" if use.tflops else ""
        alike.setdefault(f"{use.name}, {error}{speed}", []).append(use.device)
    return [f"attends {', '.join(devices)}: {how}" for how, devices in alike.items()]


def _snapshot_lines(plan: Plan) -> list[str]:
    """How much is lost with a worker process, where there are some, and what that takes on disk."""
    if not plan.snapshot_blocks or not plan.processes:
        return []
    seconds, nbytes = plan.snapshot_blocks * BLOCK_FRAMES / FPS, sum(stage.snapshot_bytes for stage in plan.stages)
    every = f"every {plan.snapshot_blocks} blocks ({seconds:.0f} s of video)"
    return [f"resume  worker processes keep a snapshot {every}, {gigabytes(nbytes)} on disk, the latest two"]


def _kept(plan: Plan) -> list[str]:
    """How stages keep what they hold, where that is not plain; stages that do the same stand together."""
    alike: dict[str, list[str]] = {}
    for number, stage in enumerate(plan.stages):
        s = stage.storage
        words = [
            f"{s.weights} weights" * (s.weights != "plain"),
            f"{s.kv_dtype} KV cache" * (s.kv_dtype != "plain"),
            "KV cache offloaded" * s.kv_offload,
            "text KV weights offloaded" * s.offload_text_kv,
            f"{s.offload_layers} of {len(stage.layers)} layers offloaded" * (s.offload_layers > 0),
        ]
        alike.setdefault(", ".join(filter(None, words)), []).append(str(number))
    return [f"stage {', '.join(numbers)}: {how}" for how, numbers in alike.items() if how]


def simulation_lines(simulation: Simulation) -> list[str]:
    """What the pipeline delivers in virtual time."""
    s = simulation
    busy = " ".join(f"{100 * share:.0f}" for share in s.busy)
    return [
        f"pace    a block every {s.period:.3f} s, {12 / s.period:.1f} frames per second; "
        f"{100 * s.efficiency:.0f} % of what these stages could",
        f"delay   first block after {s.first_block:.3f} s, a block takes at most {s.latency:.3f} s, "
        f"{s.most_open} under way at once",
        f"waiting {s.start_bubble:.2f} blocks' time lost at the start; stages busy {busy} % of the time",
    ]


def receipt_lines(receipt: Receipt) -> list[str]:
    """What was really made, read back from the file, and what it cost."""
    p, memory = receipt.probed, receipt.peak_memory
    lines = [f"done    {receipt.video}"]
    if p:
        spent = max(receipt.seconds.get("generate", 0.0), 1e-9)
        before = sum(receipt.seconds.get(phase, 0.0) for phase in ("prepare", "load network"))
        lines.append(
            f"holds   {p.width}x{p.height}, {counted(p.frames, 'frame')} at {p.fps:g} fps, {p.video_seconds:.2f} s"
        )
        if p.audio_rate is not None and p.av_difference is not None:
            lines.append(f"sound   {p.audio_rate} Hz, ends {_ending(p.av_difference)}")
        lines.append(f"time    {before:.1f} s to load and encode, {spent:.1f} s to generate")
        lines.append(f"speed   {p.frames / spent:.1f} frames per second, {p.video_seconds / spent:.2f} x real time")
    if memory and memory.host:
        devices = "".join(f", {gigabytes(n)} on {name}" for name, n in memory.devices.items())
        lines.append(f"peak    {gigabytes(memory.host)} of host memory{devices}")
    return [*lines, *attention_lines(receipt.attention), *note_lines(receipt.notices)]


def worker_lines(drivers: Sequence[Driver], now: float) -> list[str]:
    """All workers of this machine, by the process they work for."""
    lines = []
    for d in drivers:
        what = f"left over in {d.folder}, its process has ended" if d.left_over else d.command
        lines.append(f"process {d.pid}  {what}".rstrip())
        if not d.workers:
            lines.append("        no workers")
            continue
        rows: list[tuple[str, ...]] = [_WORKER_COLUMNS]
        for w in d.workers:
            memory = "-" if w.memory is None else gigabytes(w.memory)
            rows.append(
                (
                    str(w.pid),
                    "codec" if w.stage is None else str(w.stage),
                    w.device,
                    w.state,
                    memory,
                    clock(now - w.since),
                )
            )
        shown = aligned(rows)
        lines += [shown[0] + "  log", *(f"{row}  {w.log}" for row, w in zip(shown[1:], d.workers, strict=True))]
    return lines or ["No worker processes on this machine."]


def clock(seconds: float) -> str:
    """Minutes and seconds, and hours where there are any."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def counted(count: int, noun: str) -> str:
    """1 frame, 2 frames."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def gigabytes(count: int) -> str:
    """Decimal gigabytes, or megabytes below one."""
    return format_bytes(count, ".2f") if count >= 1e9 else format_bytes(count, unit="MB")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal length as a table, flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["        " + "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]


def _ending(difference: float) -> str:
    """End of the audio against the end of the image, in words."""
    ms = round(1000 * difference)
    return "with the picture" if ms == 0 else f"{abs(ms)} ms {'after' if ms > 0 else 'before'} the picture"


def _span(r: range) -> str:
    return f"{r.start}" if len(r) == 1 else f"{r.start}-{r.stop - 1}"
