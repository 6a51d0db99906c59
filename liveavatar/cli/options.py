"""Options that several commands share, and how they become a request."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from ..attention_choice import ATTENTION_BACKENDS
from ..compiler import COMPILE_CHOICES
from ..config import BLOCK_FRAMES, CLIP_BLOCKS, MAX_SINK_DISTANCE, MIN_SINK_DISTANCE
from ..errors import RequestError, shown
from ..request import DEFAULT_PROMPT, Request, SinkDistance, clip_blocks_of
from ..storage import OLDER_WEIGHTS, PLAIN, KVDtype, StorageConfig, WeightFormat
from ..timed_changes import read_timeline
from .parser import number, whole_number

if TYPE_CHECKING:
    from ..placement import Placement

_DEFAULT_SIZES = {"mini": "128x128", "untrained": "128x128"}
_DEFAULT_SIZE = "704x384"
_LONGEST_DISTANCE = 9
"""Digits; Python refuses to read some thousand of them."""
ENGINES = ("local", "ray")
PREFERENCES = ("quality", "speed")
STORAGE_CHOICES: Mapping[str, tuple[str, ...]] = {"weights": get_args(WeightFormat), "kv_dtype": get_args(KVDtype)}
"""What the fields of a storage may be that are given in words."""


def add_request_arguments(parser: argparse.ArgumentParser) -> None:
    """What is asked for, and where it runs."""
    parser.add_argument("--model", default="mini", metavar="mini|DIR|FILE", help="the model (default: mini)")
    add_part_arguments(parser)
    parser.add_argument(
        "--size", metavar="WxH", help=f"width x height, an area (default: {_DEFAULT_SIZE}; mini: 128x128)"
    )
    parser.add_argument(
        "--steps", type=whole_number(4), default=4, metavar="N", help="denoising steps per block (default: 4)"
    )
    parser.add_argument(
        "--seed",
        type=whole_number(420),
        default=420,
        metavar="N",
        help="the same seed gives the same video; -1 draws one (default: 420)",
    )
    parser.add_argument("--seconds", type=number(10), metavar="N", help="stop after so much sound (default: all of it)")
    parser.add_argument(
        "--stages",
        default="auto",
        metavar="SxP",
        help="groups of steps x parts of layers (default: auto, chosen for GPUs, else a part for each device)",
    )
    parser.add_argument(
        "--devices",
        metavar="D,D,...|all",
        help="stages take these in turn (default: all GPUs that help; the first one where stages or storage are named; "
        "cpu where there is none)",
    )
    parser.add_argument(
        "--engine",
        default="local",
        metavar="local|ray",
        help="who runs the stages: this process (default), or a worker process for each of them",
    )
    parser.add_argument(
        "--dtype", metavar="T", help="float32, bfloat16 or float16 (default: bfloat16 on GPUs, float32 on the CPU)"
    )
    parser.add_argument(
        "--threads", type=whole_number(1), metavar="N", help="CPU threads per task (default: all, at most 8)"
    )
    parser.add_argument(
        "--compile",
        nargs="?",
        const="on",
        default="auto",
        metavar="|".join(COMPILE_CHOICES),
        help="compile the layers before the first block: a minute or more once per size, for blocks that may be faster "
        "(alone: on); auto, the default: on GPUs that can, where the video is so long that it probably pays",
    )
    parser.add_argument(
        "--attention",
        default="auto",
        metavar="|".join(ATTENTION_BACKENDS[:-1]),
        help="what self-attention is done with: PyTorch's own kernels (auto, sdpa), or those of a package that is "
        "installed; each is tried on its device first",
    )
    _add_timeline_argument(parser)
    _add_memory_arguments(parser)
    _add_parity_arguments(parser)


def _add_timeline_argument(parser: argparse.ArgumentParser) -> None:
    """What changes on the way."""
    parser.add_argument(
        "--timeline",
        metavar="FILE",
        help='prompts and portraits by time, a line each: "12.5: She laughs.", "1:05: image: other.png"',
    )


def add_pose_arguments(parser: argparse.ArgumentParser) -> None:
    """What the body does."""
    parser.add_argument("--pose", metavar="FILE", help="a video of a body (DWPose) whose movements are followed")
    parser.add_argument(
        "--pose-end",
        default="hold",
        metavar="hold|loop|black",
        help="when it ends before the sound: hold its last picture (default), loop it, or black as published",
    )


def add_part_arguments(parser: argparse.ArgumentParser) -> None:
    """Parts of the model that are named one by one."""
    parts = parser.add_argument_group("parts of the model that are not beside it: files, or their names in ComfyUI")
    parts.add_argument("--lora", metavar="FILE|none", help="the LoRA; none for a network that has it merged already")
    parts.add_argument(
        "--extra-lora",
        action="append",
        metavar="FILE[:N]",
        help="a further LoRA, such as one of a style, with its strength (default: 1); may be given several times",
    )
    parts.add_argument(
        "--vae",
        metavar="FILE|tiny|full",
        help="the VAE of Wan 2.1; or what decodes in its place: the file of a tiny one (taew2_1, lighttaew2_1) or "
        "of a pruned one (lightvaew2_1), tiny for the tiny one beside the model or in "
        "ComfyUI's vae_approx, full for none",
    )
    parts.add_argument("--text-encoder", metavar="FILE", help="UMT5-XXL")
    parts.add_argument("--tokenizer", metavar="DIR", help="of the text encoder, where its file has none")
    parts.add_argument("--audio-encoder", metavar="FILE", help="wav2vec2")


def parts_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The parts that were named, by their fields of `ModelFiles`."""
    names = ("lora", "vae", "text_encoder", "tokenizer", "audio_encoder")
    parts = {name: found for name in names if (found := getattr(arguments, name, None)) is not None}
    if extra := getattr(arguments, "extra_lora", None):
        from ..weights.lora import parse_extra_lora

        parts["extra_loras"] = tuple(map(parse_extra_lora, extra))
    return parts


def _add_parity_arguments(parser: argparse.ArgumentParser) -> None:
    """What the published implementation does otherwise."""
    parity = parser.add_argument_group("to repeat the published implementation exactly")
    parity.add_argument("--fit", default="cover", metavar="F", help="cover (crop; the default), or pad (black bars)")
    parity.add_argument("--tail", default="silence", metavar="T", help="after the sound: silence (default), or zeros")
    parity.add_argument(
        "--lead", default="sync", metavar="L", help="sync (default), or original (3 frames dropped, 120 ms ahead)"
    )
    parity.add_argument(
        "--sink-distance",
        default="seeded",
        metavar="seeded|N",
        help="latent frames the reference stands ahead (default: seeded, drawn per block)",
    )
    trained = CLIP_BLOCKS * BLOCK_FRAMES
    parity.add_argument(
        "--clip-frames",
        type=whole_number(trained),
        default=trained,
        metavar="N",
        help="frames of a clip, a multiple of 12: noise is drawn for one at a time, a block attends to as many frames, "
        f"and the sink is renewed after the first (default: {trained}, as the model was trained)",
    )


def request_of(arguments: argparse.Namespace) -> Request:
    """The request that the options make.

    Raises:
        RequestError: one of them cannot be understood, or the timeline not be read.
    """
    return Request(
        size=arguments.size or _DEFAULT_SIZES.get(arguments.model, _DEFAULT_SIZE),
        prompt=getattr(arguments, "prompt", DEFAULT_PROMPT),
        steps=arguments.steps,
        seed=arguments.seed,
        seconds=arguments.seconds,
        fit=arguments.fit,
        tail=arguments.tail,
        lead=arguments.lead,
        sink_distance=_distance(arguments.sink_distance),
        clip_blocks=clip_blocks_of(arguments.clip_frames),
        timeline=read_timeline(arguments.timeline) if arguments.timeline else (),
        pose_end=getattr(arguments, "pose_end", "hold"),
    )


def _add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    """How stages store weights and KV caches: as asked, or chosen on GPUs where nothing of it is asked."""
    add_storage_arguments(parser.add_argument_group("storage of the stages (default: what fits the GPUs best)"))
    chosen = parser.add_argument_group("to choose for GPUs")
    chosen.add_argument("--prefer", default="quality", metavar="W", help="quality (default), or speed")
    chosen.add_argument("--vram-cap", type=number(20), metavar="GB", help="use no more of each GPU")
    chosen.add_argument(
        "--host-ram", type=number(64), metavar="GiB", help="memory of the host to reckon with (default: what there is)"
    )
    chosen.add_argument(
        "--vae-tiles",
        metavar="RxC",
        help="let the VAE work in tiles, which takes less memory: 2x2 (default: whole, or as many as are needed)",
    )
    chosen.add_argument("--allow-smaller", action="store_true", help="make a smaller video where nothing else fits")


def add_storage_arguments(group: argparse._ArgumentGroup) -> None:
    """The options of a `StorageConfig`, and the names they had before, which mean the same and are not listed."""
    group.add_argument(
        "--weights",
        type=lambda word: OLDER_WEIGHTS.get(word, word),
        metavar="F",
        help="plain, fp8, fp8-tensor (as published), int8, packed (as the model's file has them), or packed-native "
        "(multiplied so, by comfy-kitchen, where the GPU can)",
    )
    group.add_argument("--kv-dtype", metavar="F", help="KV cache: plain, fp8 or int4")
    group.add_argument("--kv-offload", action="store_true", default=None, help="keep the KV cache in host memory")
    group.add_argument(
        "--offload-text-kv",
        action="store_true",
        default=None,
        help="move the weights that only encode the prompt to host memory once it is encoded",
    )
    group.add_argument(
        "--offload-layers", type=whole_number(5), metavar="N", help="layers of each stage kept in host memory"
    )
    group.add_argument("--keys", dest="kv_dtype", help=argparse.SUPPRESS)
    group.add_argument("--keys-home", dest="kv_offload", type=_older("device", "host"), help=argparse.SUPPRESS)
    group.add_argument("--prompt-weights", dest="offload_text_kv", type=_older("stay", "leave"), help=argparse.SUPPRESS)
    group.add_argument("--stream", dest="offload_layers", type=whole_number(5), help=argparse.SUPPRESS)


def _older(off: str, on: str) -> Callable[[str], bool]:
    """A `type` for an older option that named two ways; now one of them is a flag."""

    def parse(text: str) -> bool:
        if text not in (off, on):
            raise argparse.ArgumentTypeError(f"{text} is not known; use {off} or {on}")
        return text == on

    return parse


def placement_of(arguments: argparse.Namespace) -> Placement:
    """Where and how it runs; as `check_placement_options`."""
    from ..placement import Placement, devices_named

    check_placement_options(arguments)
    return Placement(
        devices=devices_named(arguments.devices or ""),
        stages=arguments.stages.strip(),
        dtype=arguments.dtype,
        threads=arguments.threads,
        storage=storage_of(arguments),
        prefer=arguments.prefer,
        allow_smaller=arguments.allow_smaller,
        vram_cap=arguments.vram_cap,
        host_ram=arguments.host_ram,
        vae_tiles=arguments.vae_tiles,
        processes=arguments.engine == "ray",
        compile=COMPILE_CHOICES[arguments.compile],
        attention=arguments.attention,
    )


def check_placement_options(arguments: argparse.Namespace) -> None:
    """Refuse words that are not known; loads nothing for it.

    Raises:
        RequestError: an engine, a way to keep something or a preference that is not known.
    """
    check_engine(arguments.engine)
    if arguments.prefer not in PREFERENCES:
        raise RequestError(f"The preference {arguments.prefer!r} is not known.", f"Use {_one_of(PREFERENCES)}.")
    if arguments.compile not in COMPILE_CHOICES:
        raise RequestError(
            f"--compile {shown(arguments.compile)} is not known.", f"Use {_one_of(tuple(COMPILE_CHOICES))}."
        )
    if arguments.attention not in ATTENTION_BACKENDS:
        raise RequestError(
            f"The attention {arguments.attention!r} is not known.", f"Use {_one_of(ATTENTION_BACKENDS[:-1])}."
        )
    storage_of(arguments)


def storage_of(arguments: argparse.Namespace) -> StorageConfig | None:
    """How stages keep what they hold; None where nothing of it was said.

    Raises:
        RequestError: a way that is not known.
    """
    for name, ways in STORAGE_CHOICES.items():
        if getattr(arguments, name) not in (None, *ways):
            option = "--" + name.replace("_", "-")
            raise RequestError(f"{option} {getattr(arguments, name)} is not known.", f"Use {_one_of(ways)}.")
    fields = (field.name for field in dataclasses.fields(StorageConfig))
    given = {name: getattr(arguments, name) for name in fields if getattr(arguments, name) is not None}
    return dataclasses.replace(PLAIN, **given) if given else None


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def check_engine(name: str) -> None:
    """Refuse an engine that is not known.

    Raises:
        RequestError: naming those that are.
    """
    if name not in ENGINES:
        raise RequestError(f"The engine {name!r} is not known.", f"Use {' or '.join(ENGINES)}.")


def _distance(text: str) -> SinkDistance:
    if text == "seeded":
        return SinkDistance()
    if text.isdecimal() and len(text) <= _LONGEST_DISTANCE and MIN_SINK_DISTANCE <= int(text) <= MAX_SINK_DISTANCE:
        return SinkDistance("fixed", int(text))
    raise RequestError(
        f"The sink distance {shown(text)} is not known.",
        f"Use seeded, or a number from {MIN_SINK_DISTANCE} to {MAX_SINK_DISTANCE}.",
    )
