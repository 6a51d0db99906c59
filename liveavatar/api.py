"""The front door from Python: `generate` makes a video, `look_ahead` says what it would be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from .components import open_components
from .config import PRESETS, ModelConfig
from .errors import OutputError, PlanError
from .media.picture import read_picture
from .media.sound import Sound, read_sound
from .media.video import check_writable
from .planner import Plan, make_plan
from .receipt import Receipt
from .recording import OnProgress, Progress, Prospect, Recording
from .request import Effective, Request, resolve

__all__ = ["OnProgress", "Progress", "Prospect", "default_devices", "foresee", "generate", "look_ahead"]

_MOST_THREADS = 8


def look_ahead(
    image: str | os.PathLike[str] | np.ndarray,
    audio: str | os.PathLike[str] | Sound,
    request: Request,
    *,
    model: str = "mini",
    stages: str = "1x1",
    devices: Sequence[str] | None = None,
    dtype: str | None = None,
    threads: int | None = None,
) -> Prospect:
    """Read the inputs, understand the request and lay out the work; loads no weights.

    Args:
        image: a file, or uint8 [H, W, 3].
        audio: a file, or a Sound.
        request: what to make.
        model: "mini", a model folder, or one safetensors file.
        stages: "SxP", groups of steps x parts of layers.
        devices: stages take them in turn; by default the first GPU, or the CPU.
        dtype: of the network; by default bfloat16 on a GPU and float32 on the CPU.
        threads: CPU threads per task; by default all there are, at most 8.

    Raises:
        LiveAvatarError: the first thing found wrong, with the nearest that works.
    """
    _check_devices(devices or ())
    components = open_components(model)
    picture = image if isinstance(image, np.ndarray) else read_picture(image)
    sound = audio if isinstance(audio, Sound) else read_sound(audio)
    size = (picture.shape[1], picture.shape[0])
    effective = resolve(request, size, len(sound.samples), sound.rate)
    plan = _lay_out(effective, components.config, components.name, stages, devices, dtype, threads)
    return Prospect(components, request, effective, plan, picture, sound)


def foresee(
    request: Request,
    picture: tuple[int, int],
    samples: int,
    rate: int,
    *,
    model: str = "mini",
    stages: str = "1x1",
    devices: Sequence[str] | None = None,
    dtype: str | None = None,
    threads: int | None = None,
) -> tuple[Effective, Plan]:
    """What a request would make, without inputs at hand; the model may be one of `PRESETS` that is not there.

    Args:
        request: what to make.
        picture: width and height of the picture.
        samples, rate: length of the sound.
        model, stages, devices, dtype, threads: as in `look_ahead`; the devices need not be here.

    Raises:
        LiveAvatarError: the first thing found wrong, with the nearest that works.
    """
    config = PRESETS[model] if model in PRESETS else open_components(model).config
    effective = resolve(request, picture, samples, rate)
    return effective, _lay_out(effective, config, model, stages, devices, dtype, threads)


def _lay_out(
    effective: Effective,
    config: ModelConfig,
    model: str,
    stages: str,
    devices: Sequence[str] | None,
    dtype: str | None,
    threads: int | None,
) -> Plan:
    devices = devices or default_devices()
    return make_plan(
        effective,
        config,
        model=model,
        stages=stages,
        devices=devices,
        dtype=dtype or ("float32" if devices[0] == "cpu" else "bfloat16"),
        threads=min(os.cpu_count() or 1, _MOST_THREADS) if threads is None else threads,
    )


def _check_devices(devices: Sequence[str]) -> None:
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    for device in devices:
        if device not in there:
            raise PlanError(f"There is no device {device!r} here.", f"There are {', '.join(there)}.")


def default_devices() -> tuple[str, ...]:
    """The first GPU if PyTorch sees one, else the CPU."""
    return ("cuda:0",) if torch.cuda.is_available() else ("cpu",)


def generate(
    prospect: Prospect,
    out: str | os.PathLike[str],
    *,
    receipt: str | os.PathLike[str] | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> Receipt:
    """Make the video and write its receipt beside it.

    Args:
        prospect: from `look_ahead`.
        out: the MP4; it grows while frames are made and plays at any moment.
        receipt: the JSON; by default the video's name with `.json`.
        on_progress: hears of the progress; may raise `Cancelled`.

    Returns:
        The receipt as written, with status "complete".

    Raises:
        OutputError: the files cannot be written; known before anything is loaded, but for a disk that fills up.
        Cancelled: on Ctrl-C or from `on_progress`; the file is playable and the receipt says so.
        LiveAvatarError: anything else that stopped the run; the receipt says so.
    """
    out = Path(out)
    receipt_path = Path(receipt) if receipt else out.with_suffix(".json")
    check_writable(out)
    if receipt_path.absolute() == out.absolute():
        raise OutputError(f"Video and receipt are both {out}.", f"Write the receipt to {out.with_suffix('.json')}.")
    return Recording(prospect, out, receipt_path, on_progress).run()
