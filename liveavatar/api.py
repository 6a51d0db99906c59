"""The front door from Python: `generate` makes a video, `describe_video` says what it would be."""

from __future__ import annotations

import dataclasses
import functools
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from .components import open_components
from .config import PRESETS
from .engine.backend import Backend
from .errors import OutputError
from .hardware_cache import DetectHardware, detect_hardware
from .media.audio import AudioClip, read_audio
from .media.image import check_image, read_image
from .media.video import check_writable
from .opening import VideoSpec, open_video
from .placement import Placement, default_devices
from .planner import Hardware, Plan
from .receipt import Receipt
from .recorder import OnProgress, Progress, VideoRecorder
from .request import Request, ResolvedRequest, check_request, prompt_to_encode, resolve

__all__ = [
    "OnProgress",
    "Progress",
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
    image_array = check_image(image) if isinstance(image, np.ndarray) else read_image(image)
    audio_data = audio if isinstance(audio, AudioClip) else read_audio(audio)
    size = (image_array.shape[1], image_array.shape[0])
    resolved = resolve(request, size, len(audio_data.samples), audio_data.rate)
    components = open_components(model)
    hardware = functools.partial(detect, {})
    resolved, plan = placement.plan(resolved, components.config, components.name, hardware)
    inputs = tuple(Path(given) for given in (image, audio) if isinstance(given, str | os.PathLike))
    return VideoSpec(components, request, resolved, plan, image_array, audio_data, inputs)


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
    on_progress: OnProgress = lambda progress: None,
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
    out = Path(out)
    if backend is None:
        plan = spec.plan
        Placement(tuple(stage.device for stage in plan.stages), compile=plan.compiled).check_devices()
    opener = functools.partial(open_video, backend=backend)
    return VideoRecorder(spec, out, check_outputs(out, receipt, spec.inputs), on_progress, opener).run()


def check_outputs(
    out: str | os.PathLike[str],
    receipt: str | os.PathLike[str] | None = None,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> Path:
    """Make sure that a video and its receipt can be written, and would replace neither each other nor an input.

    Nothing is created or changed.

    Args:
        out, receipt: as in `generate`.
        inputs: files that must stay.

    Returns:
        The place of the receipt.

    Raises:
        OutputError: what is wrong, and another name.
    """
    out = Path(out)
    receipt = Path(receipt) if receipt else out.with_suffix(".json")
    check_writable(out)
    if receipt.is_dir():
        raise OutputError(f"The receipt {receipt} is a folder.", f"Name a file in it: {receipt / 'receipt.json'}.")
    try:
        tempfile.TemporaryFile(dir=receipt.absolute().parent).close()
    except OSError as error:
        raise OutputError(
            f"The receipt {receipt} cannot be written ({error.strerror or error}).",
            f"Choose another folder, or leave it out: it is {out.with_suffix('.json')} then.",
        ) from error
    if receipt.resolve() == out.resolve():
        raise OutputError(f"Video and receipt are both {out}.", f"Write the receipt to {out.with_suffix('.json')}.")
    kept = {Path(given).resolve() for given in inputs}
    for name, path in (("video", out), ("receipt", receipt)):
        if path.resolve() in kept:
            raise OutputError(f"The {name} would replace {path}, which it is made from.", "Choose another name.")
    return receipt
