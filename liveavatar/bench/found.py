"""What `bench model` finds, as data."""

from __future__ import annotations

import dataclasses

from ..storage import StorageConfig


@dataclasses.dataclass(frozen=True)
class Pace:
    """How fast blocks are made once the window is full.

    Attributes:
        seconds_per_block: from the end of one block to the end of the next, mean.
        fps: 12 frames in that time.
        seconds_per_task: of one step of a block in one part of the layers, median.
        phases: median seconds of a task's phases ("embed", "layers", "head"), where it has them.
        first_block_seconds: from the first task, the prefill, to the first finished block.
        prefill_seconds: of the sink, in all parts.
    """

    seconds_per_block: float
    fps: float
    seconds_per_task: float
    phases: dict[str, float]
    first_block_seconds: float
    prefill_seconds: float


@dataclasses.dataclass(frozen=True)
class Launching:
    """What the host spends on giving a device its work.

    Attributes:
        seconds_per_block: to send all steps of a block through all layers, the device being idle.
        share: of the seconds that the device works on a block. The device waits for the host only where it comes near
            1, and only there CUDA graphs, which send everything at once, gain anything.
    """

    seconds_per_block: float
    share: float


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations against what the device can.

    Attributes:
        tflop_per_block: 10^12 operations by the planner's count.
        tflops: of them per second.
        peak_tflops: the device's measured matrix product in the dtype the large matrices are worked in; None where
            that could not be measured, for lack of memory or because the probe does not know it.
        peak_dtype: which that is.
        share_of_peak: tflops / peak_tflops; None likewise.
        attention_tflops: the device's measured attention; None where it was not measured in the working dtype.
        share_of_possible: of the speed with matrices and attention each at their measured speed; None likewise.
    """

    tflop_per_block: float
    tflops: float
    peak_tflops: float | None
    peak_dtype: str
    share_of_peak: float | None
    attention_tflops: float | None
    share_of_possible: float | None


@dataclasses.dataclass(frozen=True)
class Moved:
    """Bytes between host and device, and whether the work hides them.

    Attributes:
        to_device, to_host: bytes per block.
        copy_gb: measured GB/s to the device.
        copy_seconds: `to_device` at that speed.
        resident_seconds_per_block: of the same work with nothing on the host; None where that does not fit.
        exposed_seconds: how much longer a block takes than that.
    """

    to_device: int
    to_host: int
    copy_gb: float
    copy_seconds: float
    resident_seconds_per_block: float | None
    exposed_seconds: float | None


@dataclasses.dataclass(frozen=True)
class Amount:
    """Bytes that were planned and bytes that were found; `difference` is the latter against the former, in percent."""

    planned: int
    found: int

    @property
    def difference(self) -> float:
        """Percent; 0 where nothing was planned."""
        return 100 * (self.found / self.planned - 1) if self.planned else 0.0


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on the device.

    Attributes:
        parts: what stays between tasks, by the plan's names, at the moment when it was most.
        held: their sum.
        peak: the most at once; planned is the plan's total, which sets aside more than most tasks need. On the CPU what
            lies on the host counts, too.
        difference_percent: of `peak`.
        held_difference_percent: of `held`.
        reserved: by CUDA's allocator, from the driver; None elsewhere.
        loading: the most at once while weights were made; None where it was not counted apart.
        host: what lies on the host for the device.
    """

    parts: dict[str, Amount]
    held: Amount
    peak: Amount
    difference_percent: float
    held_difference_percent: float
    reserved: int | None
    loading: int | None
    host: Amount


@dataclasses.dataclass(frozen=True)
class Decoding:
    """The VAE.

    Attributes:
        seconds_per_block: alone, with the copy of the frames to the host.
        warmup_seconds: of the latents that are decoded and thrown away before the first block.
        first_frames_seconds: prefill, the first block and its decode.
        beside_seconds_per_block: of a video that is made and decoded as for users, the network a block ahead and the
            VAE in a stream of its own; None on the CPU, where nothing runs ahead.
        beside_decode_seconds: of the VAE meanwhile; None likewise.
    """

    seconds_per_block: float
    warmup_seconds: float
    first_frames_seconds: float
    beside_seconds_per_block: float | None
    beside_decode_seconds: float | None


@dataclasses.dataclass(frozen=True)
class Compared:
    """Ours against the naive path, in turns.

    Attributes:
        ours, naive: seconds per block of each run.
        ratio: how many times longer the naive path takes, of the means.
        difference: the largest between their latents, as a share of the largest latent.
    """

    ours: tuple[float, ...]
    naive: tuple[float, ...]
    ratio: float
    difference: float


@dataclasses.dataclass(frozen=True)
class ModelBench:
    """What was measured.

    Attributes:
        model, device, device_name, dtype, size, steps, blocks, stages, storages, threads: of what.
        load_seconds: to make the weights.
        warmup_seconds: of the runs before the measured one, without compiling.
        compile_seconds: to compile; None where nothing was.
        compile_cache: where its results are kept for the next process; None likewise.
        finite: whether every latent is a number.
        pace, work, moved, memory: see there.
        launching: None on the CPU, where sending work is the work itself.
        decoding, compared: None where it was not asked.
    """

    model: str
    device: str
    device_name: str
    dtype: str
    size: tuple[int, int]
    steps: int
    blocks: int
    stages: str
    storages: tuple[StorageConfig, ...]
    threads: int
    load_seconds: float
    warmup_seconds: float
    compile_seconds: float | None
    compile_cache: str | None
    finite: bool
    pace: Pace
    work: Work
    moved: Moved
    memory: Memory
    launching: Launching | None
    decoding: Decoding | None
    compared: Compared | None
