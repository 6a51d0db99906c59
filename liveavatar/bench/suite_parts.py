"""The parts of the suite, in their order: peaks, parity, pace, VAE, small devices, and the published
network."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import compiler
from ..attention_choice import PYTORCH, AttentionUse
from ..config import BLOCK_LATENTS, MOTION_LATENTS, ModelConfig
from ..doctor import save_speeds
from ..doctor.devices import accelerators
from ..doctor.report import FLOAT8_ROWS, Device
from ..engine.local import ModelCache
from ..engine.prefetch import all_on_accelerators
from ..errors import ModelError, OutputError, PlanError
from ..model.quantize import check_fp8_matmul, supports_fp8_matmul
from ..planner import DeviceSpeed, Hardware, Plan, PlanOptions, apply_plan_size, choose_plan, make_plan
from ..planner.plan import check_dtype_and_threads
from ..request import ResolvedRequest
from ..storage import PLAIN, StorageConfig, WeightFormat
from ..utils import format_bytes
from ..vae.wan_decoder import CompiledActivation, WanDecoder
from .decoding import decode_alone, side_by_side
from .figures import bytes_needed, free_bytes
from .found import ModelBench
from .material import noise_effective, noise_job
from .model import Asked, DeviceSpeeds, ModelMeasurement, cap_device, check_fit, device_name, device_speeds
from .original import OriginalNetwork, original_bytes
from .prediction import assumed_speed, block_seconds, frames_per_second, measured_speed, vae_seconds
from .random_model import KeptComponents, RandomComponents
from .step_comparison import MEASURED_BLOCK, StepComparison, StepEngine, compare_steps, fill_window, relative_difference
from .suite import Figure, SuitePart, free_memory
from .watched import WatchedEngine

if TYPE_CHECKING:
    from ..codec import Decoder
    from ..model.transformer import CausalS2VTransformer, ModelSlice
    from ..weights.load import DType, TensorDevice

BLOCKS = 8
"""Of each measured video: four fill the window, four are timed."""
_FEWEST = 6
"""Of videos on capped devices, which are slow."""
_PARITY_LAYERS = 2
_KV_IN_FP8 = "KV cache in fp8: "
_NO_CHECKOUT = "no checkout of the published code was named (--original DIR)"


class SuiteState:
    """What the parts share: the device, the weights that are made once, and what earlier parts found.

    Args:
        model: name of the preset whose shapes are taken.
        device: "cuda:0" or "cpu".
        size: width x height.
        dtype: of weights and keys.
        threads: CPU threads.
        original: a checkout of the published code, to be measured beside ours.
        say: called with the part that has its turn.

    Attributes:
        speeds: of the device, once they were measured.
        latents: of the layers as they are written, by their storage, for those that are compiled.
        fastest: the storage with the best pace so far, and whether it was compiled.

    Raises:
        ModelError: no such preset. PlanError: no such dtype or thread count. SizeError, RequestError: no such size.
    """

    def __init__(
        self,
        model: str,
        device: str,
        size: str,
        dtype: str,
        threads: int,
        original: Path | None = None,
        say: Callable[[str], None] = lambda line: None,
    ):
        check_dtype_and_threads(dtype, threads)
        self.components = KeptComponents(model, device)
        self.config: ModelConfig = self.components.config
        self.device, self.dtype, self.threads = torch.device(device), dtype, threads
        self.original, self.say = original, say
        self.resolved: ResolvedRequest = noise_effective(BLOCKS, size=size)
        self.device_name = device_name(self.device)
        self.driver = accelerators().driver if self.device.type == "cuda" else ""
        self.nets = ModelCache()
        self.speeds: DeviceSpeeds | None = None
        self.latents: dict[StorageConfig, torch.Tensor] = {}
        self.fastest: tuple[float, StorageConfig, bool] | None = None

    def plan(self, storage: StorageConfig, compiled: bool = False, blocks: int = BLOCKS, steps: int = 4) -> Plan:
        """The plan of one stage on the device, kept as asked."""
        size = f"{self.resolved.width}x{self.resolved.height}"
        made = make_plan(
            noise_effective(blocks, steps, size),
            self.config,
            model=self.components.name,
            devices=(str(self.device),),
            dtype=self.dtype,
            threads=self.threads,
            storage=storage,
            snapshot_blocks=0,
        )
        return dataclasses.replace(made, compiled=compiled)

    def measure(self, plan: Plan, asked: Asked) -> tuple[ModelBench, torch.Tensor]:
        """Make a video of noise by a plan; its figures, and its latents [16, frames, h, w]."""
        measurement = ModelMeasurement(self.components, plan, asked, nets=self.nets, speeds=self.speeds)
        found = measurement.measured()
        if not found.finite:
            raise ModelError("Some latents are not finite: nothing measured here is to be trusted.")
        return found, torch.cat(measurement.latents, 1)

    def predicted(self, seconds: Callable[[DeviceSpeed], float]) -> tuple[float | None, str]:
        """Frames per second by the assumed speeds of such a device (on a CPU, by its measured ones), and by its own."""
        measured = measured_speed(self.speeds, self.dtype) if self.speeds else None
        assumed = assumed_speed(self.device) or measured
        own = f"{frames_per_second(seconds(measured)):.1f} foreseen from its own peaks" if measured else ""
        return (frames_per_second(seconds(assumed)) if assumed else None), own

    def clean_up(self) -> None:
        """Give back all but the kept weights; after this the device may be used as a whole again."""
        self.nets.release()
        if self.device.type == "cuda":
            cap_device(str(self.device), None)
        free_memory(self.device)

    def empty(self) -> None:
        """Give back the kept weights, too."""
        self.nets.release()
        self.components.forget()
        free_memory(self.device)


def peaks(state: SuiteState) -> Iterator[Figure]:
    """What the device reaches in matrices, each kernel of attention and copies, beside what the planner assumes of such
    a device; kept for plans on this machine."""
    state.speeds = found = device_speeds(state.device, quick=True)
    assumed = assumed_speed(state.device)
    expected = {} if assumed is None else {state.dtype: assumed.plain, FLOAT8_ROWS: assumed.fp8}
    for name, tflops in found.compute.matmul.items():
        yield Figure(f"matrices, {name}", tflops, "TFLOP/s", expected.get(name))
    for kernel in found.compute.attention:
        name = AttentionUse("", kernel.backend, kernel.kernel).name
        note = kernel.why_not or f"error {kernel.error:.1e}"
        foreseen = assumed.attention if assumed and kernel.backend == PYTORCH else None
        yield Figure(f"attention, {name}", kernel.tflops, "TFLOP/s", foreseen, note)
    for name, why in found.compute.failed.items():
        yield Figure(f"matrices, {name}", None, "TFLOP/s", expected.get(name), why)
    yield Figure("copies to the device", found.copy_gb, "GB/s", assumed.copy if assumed else None)
    device = Device(str(state.device), state.device_name, None, None, "", found.compute, found.copies)
    try:
        save_speeds([device], quick=True)
    except OutputError as error:
        yield Figure("these speeds are not kept for plans", None, note=error.what)


def parity(state: SuiteState) -> Iterator[Figure]:
    """Two layers in bfloat16 against the same weights in float32, over the blocks that fill the window."""
    few = dataclasses.replace(state.config, num_layers=_PARITY_LAYERS, audio_inject_layers=(0,))
    size = f"{state.resolved.width}x{state.resolved.height}"
    components = KeptComponents(state.components.name, state.device)
    components.config = few
    made = {}
    for dtype, source in (("bfloat16", components), ("float32", _WidenedComponents(components))):
        plan = make_plan(
            noise_effective(BLOCKS // 2 + 1, size=size),
            few,
            model=components.name,
            devices=(str(state.device),),
            dtype=dtype,
            threads=state.threads,
        )
        engine = WatchedEngine(source, plan, ModelCache())
        with torch.inference_mode():
            made[dtype] = torch.cat(engine.watch(noise_job(few, BLOCKS // 2 + 1, size=size)).latents, 1)
    narrow, wide = made["bfloat16"], made["float32"]
    error = float((narrow - wide).norm() / wide.norm())
    yield dataclasses.replace(_agreement("bfloat16 against float32", narrow, wide), note=f"error {error:.1e}")


class _WidenedComponents(RandomComponents):
    """The weights of other components, in float32."""

    def __init__(self, narrow: KeptComponents):
        super().__init__(narrow.name, narrow.maker)
        self.config, self._narrow = narrow.config, narrow

    def transformer(
        self, model_slice: ModelSlice, device: TensorDevice, dtype: DType, weights: WeightFormat = "plain"
    ) -> CausalS2VTransformer:
        return copy.deepcopy(self._narrow.transformer(model_slice, device, torch.bfloat16)).float()


def pace(weights: WeightFormat, kv: str, compiled: bool, state: SuiteState) -> Iterator[Figure]:
    """How fast blocks are made, and in how much memory.

    Args:
        weights: format of the large matrices.
        kv: "plain" or "fp8"; where plain keys and values do not fit beside the weights, fp8 is taken and reported.
        compiled: whether the layers are compiled.
        state: of the suite.
    """
    if weights == "fp8":
        check_fp8_matmul(state.device, by_row=True)
    plan, note = _fitting(state, StorageConfig(weights=weights, kv_dtype="fp8" if kv == "fp8" else "plain"), compiled)
    storage = plan.stages[0].storage
    found, latents = state.measure(plan, Asked(BLOCKS, warm=False, launch=not compiled))
    predicted, own = state.predicted(lambda speed: block_seconds(state.config, plan, speed))
    yield Figure("pace", found.pace.fps, "frames/s", predicted, "; ".join(filter(None, (note, own))))
    yield from _details(found)
    if weights == "fp8":
        how = "as they are" if supports_fp8_matmul(state.device, by_row=True) else f"widened to {state.dtype}"
        yield Figure("fp8 matrices are multiplied", None, note=how)
    if compiled and storage in state.latents:
        yield _agreement("latents against layers as written", latents, state.latents[storage])
    elif not compiled:
        state.latents[storage] = latents
    if state.fastest is None or found.pace.fps > state.fastest[0]:
        state.fastest = found.pace.fps, storage, compiled


def _fitting(state: SuiteState, storage: StorageConfig, compiled: bool) -> tuple[Plan, str]:
    """A plan that fits the device now, and what had to change for that."""
    plan = state.plan(storage, compiled)
    try:
        check_fit(plan, Asked(BLOCKS))
        return plan, ""
    except PlanError as error:
        if storage.kv_dtype == "fp8":
            raise
        plan = state.plan(dataclasses.replace(storage, kv_dtype="fp8"), compiled)
        check_fit(plan, Asked(BLOCKS))
        return plan, f"{_KV_IN_FP8}{error.what}"


def _details(found: ModelBench) -> Iterator[Figure]:
    """Notes on a pace."""
    work, memory, moved, launched = found.work, found.memory, found.moved, found.launching
    yield Figure("one step of a block", 1000 * found.pace.seconds_per_task, "ms")
    yield Figure("first block, cold", found.pace.first_block_seconds, "s")
    if work.share_of_peak is not None:
        yield Figure("of peak matrices", 100 * work.share_of_peak, "%", note=f"{work.peak_dtype}")
    if work.share_of_possible is not None:
        yield Figure(
            "of possible", 100 * work.share_of_possible, "%", note="matrices and attention at their own speeds"
        )
    yield Figure("memory, at most", memory.peak.found / 1e9, "GB", memory.peak.planned / 1e9)
    yield Figure("memory, what stays", memory.held.found / 1e9, "GB", memory.held.planned / 1e9)
    if memory.host.found or memory.host.planned:
        yield Figure("memory on the host", memory.host.found / 1e9, "GB", memory.host.planned / 1e9)
    if moved.to_device:
        yield Figure("copies to the device, a block", moved.to_device / 1e9, "GB")
    if launched is not None:
        yield Figure("launching, of the device's time", 100 * launched.share, "%")
    if found.compile_seconds is not None:
        yield Figure("compiling", found.compile_seconds, "s")


def vae(state: SuiteState) -> Iterator[Figure]:
    """Decoding a block with nothing beside it: as it is written, and compiled."""
    device, dtype = state.device, getattr(torch, state.dtype)
    height, width = state.resolved.latent_size
    generator = torch.Generator().manual_seed(7)
    motion = torch.randn((16, MOTION_LATENTS, height, width), generator=generator)
    blocks = torch.randn((4, 16, 3, height, width), generator=generator).unbind(0)
    module = state.components.vae(device, dtype)
    predicted, own = state.predicted(functools.partial(vae_seconds, state.config, state.resolved, state.plan(PLAIN)))
    seconds, before, frames = decode_alone(module, motion, blocks, state.threads)
    yield Figure("pace, as written", frames_per_second(seconds), "frames/s", predicted, own)
    yield Figure("before the first block", before, "s")
    compiler.check_compiler([str(device)])
    decoder = WanDecoder(module, CompiledActivation(compiler.COMPILER))
    begun = time.perf_counter()
    decode_alone(decoder, motion, blocks[:2], state.threads)
    yield Figure("compiling", time.perf_counter() - begun, "s")
    seconds, _, compiled = decode_alone(decoder, motion, blocks, state.threads)
    yield Figure("pace, compiled", frames_per_second(seconds), "frames/s", predicted)
    yield _agreement("frames against those as written", compiled, frames)


def beside(state: SuiteState) -> Iterator[Figure]:
    """A video as users get it: the network up to a block ahead, the VAE in a stream of its own."""
    _, storage, compiled = state.fastest or (0.0, StorageConfig(weights="fp8"), False)
    plan = state.plan(storage, compiled)
    check_fit(plan, Asked(BLOCKS, vae=True))
    engine = WatchedEngine(state.components, plan, state.nets).unwatched()
    decode: Decoder = _decoder(state, plan)
    with torch.inference_mode():
        seconds, decoding = side_by_side(engine, noise_job(state.config, BLOCKS, size=_size(state)), decode)
    predicted, own = state.predicted(
        lambda speed: block_seconds(state.config, plan, speed) + vae_seconds(state.config, state.resolved, plan, speed)
    )
    kept = f"{storage.weights} weights, {storage.kv_dtype} KV{', compiled' * compiled}"
    in_turn = "" if all_on_accelerators(plan) else "in turn, on a CPU"
    note = "; ".join(filter(None, (kept, in_turn, own)))
    yield Figure("pace", frames_per_second(seconds), "frames/s", predicted, note)
    yield Figure("decoding a block meanwhile", decoding, "s")


def capped(gigabytes: int, state: SuiteState) -> Iterator[Figure]:
    """The network with the memory of a smaller card, by the plan that is chosen for it."""
    state.empty()
    if state.device.type == "cuda":
        most = gigabytes * 10**9
        cap_device(str(state.device), most)
        resolved, plan = _planned_for(state, most)
        note = f"{resolved.width}x{resolved.height}, {_kept(plan)}"
        asked = Asked(_FEWEST, vae=True, most=most, warm=False, launch=False, resident=False)
    else:  # the path that copies take, with nothing to cap
        storage = StorageConfig("fp8", kv_offload=True, offload_layers=state.config.num_layers // 2)
        plan = state.plan(storage, blocks=_FEWEST)
        note = f"the memory of a CPU is not capped; {_kept(plan)}"
        asked = Asked(_FEWEST, warm=False, resident=False)
    try:
        found, _ = state.measure(plan, asked)
    finally:
        state.empty()
    predicted, own = state.predicted(lambda speed: block_seconds(state.config, plan, speed))
    yield Figure("pace", found.pace.fps, "frames/s", predicted, "; ".join(filter(None, (note, own))))
    yield from _details(found)
    if found.decoding is not None:
        yield Figure("decoding a block", found.decoding.seconds_per_block, "s")


def published(state: SuiteState) -> Iterator[Figure]:
    """One step of a block on the published network, with our weights and our attention, in turns with ours."""
    assert state.original is not None
    job = noise_job(state.config, _FEWEST, 1, _size(state))
    plan, compiled = (state.plan(PLAIN, way, _FEWEST, steps=1) for way in (False, True))
    _check_room_for_both(state, plan)
    with torch.inference_mode():
        ours = StepEngine(state.components, plan, state.nets)
        ours.load()
        theirs = OriginalNetwork(state.original, ours.nets())
        first = relative_difference(fill_window(ours, job), fill_window(theirs, job))
        yield Figure("difference in block 0", first, "of the largest")
        yield from _compared("as written", compare_steps(ours, theirs, job))
        begun = time.perf_counter()
        theirs.compile()
        theirs.denoise(MEASURED_BLOCK, job.conditioning.reference.expand(-1, BLOCK_LATENTS, -1, -1))
        yield Figure("compiling theirs", time.perf_counter() - begun, "s")
        del ours
        free_memory(state.device)
        ours = StepEngine(state.components, compiled, state.nets)
        begun = time.perf_counter()
        fill_window(ours, job)
        yield Figure("compiling ours", time.perf_counter() - begun, "s")
        yield from _compared("compiled", compare_steps(ours, theirs, job))


def _check_room_for_both(state: SuiteState, plan: Plan) -> None:
    """Refuse where the cache of the published network does not fit beside ours.

    Raises:
        PlanError: with the bytes.
    """
    check_fit(plan, Asked(_FEWEST))
    if state.device.type == "cpu":
        return
    needed = bytes_needed(plan, False) + original_bytes(state.config, plan.size)
    free = free_bytes(state.device)
    if needed > free:
        raise PlanError(
            f"Both networks take {format_bytes(needed)} of {state.device}, and {format_bytes(free)} are free."
        )


def _compared(how: str, found: StepComparison) -> Iterator[Figure]:
    """A step of ours, of theirs, and how many times longer theirs takes."""
    rounds = ", ".join(f"{ratio:.2f}" for ratio in found.ratios)
    yield Figure(f"ours, {how}", 1000 * found.seconds, "ms")
    yield Figure(f"theirs, {how}", 1000 * found.other_seconds, "ms")
    yield Figure(f"theirs / ours, {how}", found.ratio, "times", note=f"in turns: {rounds}")
    yield Figure(f"difference, {how}", found.difference, "of the largest")


def _planned_for(state: SuiteState, most: int) -> tuple[ResolvedRequest, Plan]:
    """What fits a device of so many bytes; a smaller video where nothing else does."""
    here = Hardware.detect().restricted_to([str(state.device)]).with_cap(most)
    options = PlanOptions(dtype=state.dtype, threads=state.threads, allow_smaller=True)
    resolved = noise_effective(_FEWEST, size=_size(state))
    plan = choose_plan(resolved, state.config, here, options, model=state.components.name)
    return apply_plan_size(resolved, plan), plan


def _decoder(state: SuiteState, plan: Plan) -> Decoder:
    from ..codec import vae_decoder

    motion = noise_job(state.config, 1, size=_size(state)).conditioning.motion
    return vae_decoder(state.components.vae(state.device, getattr(torch, state.dtype)), motion, state.threads)


def _size(state: SuiteState) -> str:
    return f"{state.resolved.width}x{state.resolved.height}"


def _kept(plan: Plan) -> str:
    s = plan.stages[0].storage
    words = (f"{s.weights} weights", f"{s.kv_dtype} KV", "KV on the host" * (s.kv_offload))
    return ", ".join(filter(None, (*words, f"{s.offload_layers} layers streamed" * (s.offload_layers > 0))))


def _agreement(name: str, made: torch.Tensor, true: torch.Tensor) -> Figure:
    """Peak signal against the difference, in decibels."""
    error = float((made.float() - true.float()).square().mean())
    if not error:
        return Figure(name, None, "dB", note="equal to the bit")
    return Figure(name, 10 * math.log10(float(true.float().abs().max()) ** 2 / error), "dB")


PARTS = (
    SuitePart("peaks", 35, peaks, quick=True),
    SuitePart("parity", 20, parity, quick=True),
    SuitePart("bf16", 35, functools.partial(pace, "plain", "plain", False), quick=True),
    SuitePart("bf16, compiled", 75, functools.partial(pace, "plain", "plain", True), quick=True),
    SuitePart("fp8", 25, functools.partial(pace, "fp8", "plain", False), quick=True),
    SuitePart("fp8, compiled", 75, functools.partial(pace, "fp8", "plain", True), quick=True),
    SuitePart("fp8, KV in fp8", 25, functools.partial(pace, "fp8", "fp8", False)),
    SuitePart("VAE", 50, vae),
    SuitePart("network and VAE", 25, beside),
    SuitePart("24 GB", 30, functools.partial(capped, 24)),
    SuitePart("16 GB", 30, functools.partial(capped, 16)),
    SuitePart("published network", 75, published, wanted=lambda s: "" if s.original else _NO_CHECKOUT),
)
"""Shares add up to about `BUDGET_SECONDS` with the published network."""
