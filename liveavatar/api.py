"""The front door from Python: `generate` makes a video, `describe_video` says what it would be."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Sequence

import numpy as np

from .components import open_components
from .config import PRESETS
from .engine.backend import Backend, LocalBackend
from .events import Callback, ignore
from .hardware_cache import DetectHardware, detect_hardware
from .media.audio import AudioClip
from .pipeline import LiveAvatarPipeline, VideoJob, read_inputs
from .placement import Placement, default_devices
from .planner import Hardware, Plan
from .receipt import Receipt
from .recorder import VideoSpec, check_outputs
from .request import Request, ResolvedRequest, check_request, prompt_to_encode, resolve

__all__ = [
    "VideoSpec",
    "check_outputs",
    "default_devices",
    "describe_video",
    "generate",
    "plan_request",
]


def describe_video(
    image: str | os.PathLike[str] | np.ndarray,
    audio: str | os.PathLike[str] | AudioClip,
    request: Request,
    *,
    model: str = "mini",
    stages: str = "auto",
    devices: Sequence[str] | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    placement: Placement | None = None,
    detect: DetectHardware = detect_hardware,
    processes: bool = False,
) -> VideoSpec:
    """Read the inputs, understand the request and lay out the work; loads no weights.

    Args:
        image: a file, or uint8 [H, W, 3].
        audio: a file, or a Sound.
        request: what to make.
        model: "mini", a model folder, or one safetensors file.
        stages: "SxP", groups of steps x parts of layers; "auto" leaves them to the placement.
        devices: stages take them in turn; by default the first GPU, or the CPU. Those of other machines are checked
            by the backend.
        dtype: of the network; by default bfloat16 on a GPU and float32 on the CPU.
        threads: CPU threads per task; by default all there are, at most 8.
        placement: all that can be wished of the place, instead of `stages`, `devices`, `dtype` and `threads`.
        detect: looks at the GPUs that a plan is chosen for, where it is.
        processes: whether worker processes will run the stages, which take more memory than this one alone.

    Raises:
        LiveAvatarError: the first thing found wrong, with the nearest that works.
    """
    check_request(request)
    prompt_to_encode(request.prompt)
    placement = placement or Placement(tuple(devices or ()), stages, dtype, threads, processes=processes)
    placement.check_devices(elsewhere=True)
    pixels, clip, inputs = read_inputs(image, audio)
    resolved = resolve(request, (pixels.shape[1], pixels.shape[0]), len(clip.samples), clip.rate)
    components = open_components(model)
    hardware = functools.partial(detect, {})
    resolved, plan = placement.plan(resolved, components.config, components.name, hardware)
    return VideoSpec(components, request, resolved, plan, pixels, clip, inputs)


def plan_request(
    request: Request,
    image_size: tuple[int, int],
    samples: int,
    rate: int,
    *,
    model: str = "mini",
    stages: str = "auto",
    devices: Sequence[str] | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    placement: Placement | None = None,
    processes: bool = False,
    hardware: Hardware | None = None,
) -> tuple[ResolvedRequest, Plan]:
    """What a request would make, without inputs at hand; the model may be one of `PRESETS` that is not there.

    Args:
        request: what to make.
        image_size: width and height of the image.
        samples, rate: length of the audio.
        model, stages, devices, dtype, threads, placement, processes: as in `describe_video`; the devices need not be
            here.
        hardware: choose stages and storage for all of these devices, whatever devices the placement names.

    Raises:
        LiveAvatarError: the first thing found wrong, with the nearest that works.
    """
    config = PRESETS[model] if model in PRESETS else open_components(model).config
    resolved = resolve(request, image_size, samples, rate)
    placement = placement or Placement(tuple(devices or ()), stages, dtype, threads, processes=processes)
    if hardware is None:
        return placement.plan(resolved, config, model, functools.partial(detect_hardware, {}))
    placement = dataclasses.replace(placement, devices=tuple(device.name for device in hardware.devices), fit=True)
    return placement.plan(resolved, config, model, lambda: hardware)


def generate(
    spec: VideoSpec,
    out: str | os.PathLike[str],
    *,
    receipt: str | os.PathLike[str] | None = None,
    on_progress: Callback = ignore,
    backend: Backend | None = None,
) -> Receipt:
    """Make the video and write its receipt beside it.

    Args:
        spec: from `describe_video`.
        out: the MP4; it grows while frames are made and plays at any moment.
        receipt: the JSON; by default the video's name with `.json`.
        on_progress: is called with the progress; may raise `Cancelled`.
        backend: who runs the stages, for example `engines.ray.RayBackend`; None: this process.

    Returns:
        The receipt as written, with status "complete".

    Raises:
        OutputError: see `check_outputs`, called before anything is loaded; or a disk that fills up meanwhile.
        Cancelled: on Ctrl-C or from `on_progress`; the file is playable and the receipt says so.
        LiveAvatarError: anything else that stopped the run; the receipt says so.
    """
    check_outputs(out, receipt, spec.inputs)
    if backend is None:
        plan = spec.plan
        Placement(tuple(stage.device for stage in plan.stages), compile=plan.compiled).check_devices()
    with contextlib.closing(VideoJob(LiveAvatarPipeline(spec.components, backend or LocalBackend()), spec)) as job:
        return job.save(out, receipt, on_progress)
