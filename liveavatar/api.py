"""The front door from Python: `generate` makes a video, `look_ahead` says what it would be."""

from __future__ import annotations

import dataclasses
import functools
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from .at_hand import Cards, hardware_here
from .components import open_components
from .config import PRESETS
from .engines.backend import Backend
from .errors import OutputError
from .media.picture import check_picture, read_picture
from .media.sound import Sound, read_sound
from .media.video import check_writable
from .opening import Prospect, fresh_session
from .placement import Placement, default_devices
from .planner import Hardware, Plan
from .receipt import Receipt
from .recording import OnProgress, Progress, Recording
from .request import Effective, Request, check_request, prompt_to_encode, resolve

__all__ = [
    "OnProgress",
    "Progress",
    "Prospect",
    "check_outputs",
    "default_devices",
    "foresee",
    "generate",
    "look_ahead",
]


def look_ahead(
    image: str | os.PathLike[str] | np.ndarray,
    audio: str | os.PathLike[str] | Sound,
    request: Request,
    *,
    model: str = "mini",
    stages: str = "auto",
    devices: Sequence[str] | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    placement: Placement | None = None,
    cards: Cards = hardware_here,
    processes: bool = False,
) -> Prospect:
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
        cards: looks at the GPUs that a plan is chosen for, where it is.
        processes: whether worker processes will run the stages, which take more memory than this one alone.

    Raises:
        LiveAvatarError: the first thing found wrong, with the nearest that works.
    """
    check_request(request)
    prompt_to_encode(request.prompt)
    placement = placement or Placement(tuple(devices or ()), stages, dtype, threads, processes=processes)
    placement.check_devices(elsewhere=True)
    picture = check_picture(image) if isinstance(image, np.ndarray) else read_picture(image)
    sound = audio if isinstance(audio, Sound) else read_sound(audio)
    size = (picture.shape[1], picture.shape[0])
    effective = resolve(request, size, len(sound.samples), sound.rate)
    components = open_components(model)
    looked = functools.partial(cards, {})
    effective, plan = placement.foresee(effective, components.config, components.name, looked)
    inputs = tuple(Path(given) for given in (image, audio) if isinstance(given, str | os.PathLike))
    return Prospect(components, request, effective, plan, picture, sound, inputs)


def foresee(
    request: Request,
    picture: tuple[int, int],
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
) -> tuple[Effective, Plan]:
    """What a request would make, without inputs at hand; the model may be one of `PRESETS` that is not there.

    Args:
        request: what to make.
        picture: width and height of the picture.
        samples, rate: length of the sound.
        model, stages, devices, dtype, threads, placement, processes: as in `look_ahead`; the devices need not be here.
        hardware: choose stages and storage for all of these cards, whatever devices the placement names.

    Raises:
        LiveAvatarError: the first thing found wrong, with the nearest that works.
    """
    config = PRESETS[model] if model in PRESETS else open_components(model).config
    effective = resolve(request, picture, samples, rate)
    placement = placement or Placement(tuple(devices or ()), stages, dtype, threads, processes=processes)
    if hardware is None:
        return placement.foresee(effective, config, model, functools.partial(hardware_here, {}))
    placement = dataclasses.replace(placement, devices=tuple(card.name for card in hardware.cards), fit=True)
    return placement.foresee(effective, config, model, lambda: hardware)


def generate(
    prospect: Prospect,
    out: str | os.PathLike[str],
    *,
    receipt: str | os.PathLike[str] | None = None,
    on_progress: OnProgress = lambda progress: None,
    backend: Backend | None = None,
) -> Receipt:
    """Make the video and write its receipt beside it.

    Args:
        prospect: from `look_ahead`.
        out: the MP4; it grows while frames are made and plays at any moment.
        receipt: the JSON; by default the video's name with `.json`.
        on_progress: hears of the progress; may raise `Cancelled`.
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
        plan = prospect.plan
        Placement(tuple(stage.device for stage in plan.stages), compile=plan.compiled).check_devices()
    opening = functools.partial(fresh_session, backend=backend)
    return Recording(prospect, out, check_outputs(out, receipt, prospect.inputs), on_progress, opening).run()


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
