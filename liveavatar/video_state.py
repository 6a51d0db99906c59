"""The state of a video at the end of a block, as a safetensors file: enough to continue it as if it had never ended.

    kv.{step}.{layer}.k, v         rows that later blocks attend to, in fp8 with k_scale and v_scale, in int4 with
                                   k_channels and v_channels, too
    sink.{layer}.k, v              the sink in use
    latents                        of the latest blocks: what the decoder remembers is made again of them
    first_frame, motion            of which the sink is renewed after the first clip
    prompt, first_prompt           features of the prompt in use, and of the first one
    pose                           pictures of the clip that the next block goes on with, where a pose is followed

The header says what it belongs to (`StateInfo`). Partition and place of the KV cache are not part of it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import torch

from .config import (
    BLOCK_FRAMES,
    BLOCK_LATENTS,
    FPS,
    MAX_CLIP_BLOCKS,
    MOTION_LATENTS,
    SIZE_MULTIPLE,
    SPATIAL_STRIDE,
    ModelConfig,
)
from .errors import LiveAvatarError, OutputError, RequestError, SizeError, StateError, shown
from .events import Callback, ignore
from .files import OutputClaim, path_of, refusal, replacement, target_of
from .planner import Plan
from .planner.memory import kv_cache_bytes
from .receipt import json_ready
from .request import (
    DEFAULT_PROMPT,
    MAX_AREA,
    MAX_SEED,
    MAX_STEPS,
    Request,
    ResolvedRequest,
    SinkDistance,
    VideoShape,
    parse_size,
    resolve_size,
)
from .stage_state import earlier_tokens, state_shapes
from .storage import KVDtype
from .utils import check_input_file, format_bytes
from .vae.decoding import CONTEXT_LATENTS
from .weights.source import SafetensorsSource
from .weights.writing import DTYPE_NAMES, LazyTensor, write_safetensors

_KIND = "liveavatar state "
FORMAT = _KIND + "1"
"""The mark by which a state is known from any other safetensors file, its metadata `format`."""
CHANNELS = 16
_MOST_BLOCKS = 1 << 40
_KV_DTYPES: Mapping[str, KVDtype] = {"F8_E4M3": "fp8", "I8": "int4"}
"""Formats of the KV cache, by what the file says of its keys."""
_OLDER = {"speaker_count": 1, "speaker_mask": ""}
"""What states are taken to say that were written before it was kept."""
_NEAREST = "Give a file that --save-state has written, or an MP4 to continue from its last frames."
_INHERITED = ("steps", "clip_blocks", "sink_distance")
"""Fields of a request that a continued video has from the state."""
_WORDS = {"steps": "steps", "clip_blocks": "blocks in a clip", "sink_distance": "sink distance"}


@dataclasses.dataclass(frozen=True)
class StateInfo:
    """What a state belongs to.

    Attributes:
        block: the number of the next block; so many were made.
        model: its name, as it was given.
        network: fingerprint of the files of the network, its LoRAs included.
        width, height, steps, clip_blocks, seed, sink_distance: of the video.
        prompt: text of the prompt in use; None: not known.
        prompt_start: the block from which it has been in use.
        portraits: blocks at which another portrait has taken the first one's place.
        dtype, threads, weights, kv_dtype: what it was computed with; with others the numbers differ a little.
        speaker_count, speaker_mask: how many spoke, and what tells where; "" of one.
    """

    block: int
    model: str
    network: str
    width: int
    height: int
    steps: int
    clip_blocks: int
    seed: int
    sink_distance: SinkDistance
    prompt: str | None
    prompt_start: int
    portraits: tuple[int, ...]
    dtype: str
    threads: int
    weights: str
    kv_dtype: str
    speaker_count: int = 1
    speaker_mask: str = ""

    @property
    def seconds(self) -> float:
        """Length of the video so far."""
        return self.block * BLOCK_FRAMES / FPS

    def request_for(self, request: Request, image_size: tuple[int, int] | None = None) -> Request:
        """The request of a video that continues this one: what it leaves at its default is as in this one.

        Args:
            request: what was asked.
            image_size: width and height of an image that was given, which decides the size that is meant.

        Raises:
            SizeError: another size is asked for.
            RequestError: another number of steps or the like is.
        """
        if request.lead == "original":
            raise RequestError("A video that is continued loses no frames at its start.", "Use --lead sync.")
        own = (self.width, self.height)
        asked = parse_size(request.size)
        if (meant := resolve_size(image_size or own, asked[0] * asked[1])) != own:
            raise SizeError(
                f"The video that is to be continued is {own[0]}x{own[1]}, not {meant[0]}x{meant[1]}.",
                f"Use --size {own[0]}x{own[1]}" + (", and a picture of that shape." if image_size else "."),
            )
        standard = Request()
        for name in _INHERITED:
            given, mine = getattr(request, name), getattr(self, name)
            if given not in (mine, getattr(standard, name)):
                raise RequestError(
                    f"The video that is to be continued has {_value(mine)} {_WORDS[name]}, not {_value(given)}.",
                    f"Use {_value(mine)}, as in the video before.",
                )
        prompt = self.prompt if request.prompt == DEFAULT_PROMPT else request.prompt
        inherited = {name: getattr(self, name) for name in _INHERITED}
        return dataclasses.replace(request, size=f"{own[0]}x{own[1]}", seed=self.seed, prompt=prompt, **inherited)

    def notes(self, request: Request, plan: Plan, name: str) -> tuple[str, ...]:
        """What is to be told of a video that continues this one: where it begins, and what makes a difference.

        Args:
            request: as it was asked.
            plan: where it would run.
            name: of the state.
        """
        told = [f"it goes on from {name}, after {self.seconds:.2f} s ({self.block} blocks)"]
        if request.seed not in (self.seed, Request().seed):
            told.append(f"the seed is {self.seed}, that of the video before; {request.seed} is not used")
        if request.size != Request().size and math.prod(parse_size(request.size)) != self.width * self.height:
            told.append(f"the size is {self.width}x{self.height}, that of the video before")
        if request.steps != self.steps:
            told.append(f"{self.steps} steps, as in the video before")
        now = _computed_with(plan)
        other = [
            f"{before} {what} ({now[name]} now)"
            for name, what in (("dtype", "numbers"), ("threads", "CPU threads"), ("weights", "weights"))
            if (before := str(getattr(self, name))) != now[name]
        ]
        if self.kv_dtype != now["kv_dtype"]:
            other.append(f"a KV cache in {self.kv_dtype} form (now {now['kv_dtype']})")
        if other:
            little = "a little" if "int4" in self.kv_dtype + now["kv_dtype"] else "in their last bits"
            told.append(f"the video before was computed with {', '.join(other)}: the numbers differ {little}")
        return tuple(told)


def _value(value: object) -> object:
    if isinstance(value, SinkDistance):
        return value.value if value.kind == "fixed" else value.kind
    return value


def _computed_with(plan: Plan) -> dict[str, str]:
    """Of a plan what decides the last bits, in words."""
    weights, kv_dtypes = ({getattr(s.storage, name) for s in plan.stages} for name in ("weights", "kv_dtype"))
    return {
        "dtype": plan.dtype,
        "threads": str(plan.threads),
        "weights": ", ".join(sorted(weights)),
        "kv_dtype": ", ".join(sorted(kv_dtypes)),
    }


def info_of(
    resolved: ResolvedRequest,
    distance: SinkDistance,
    plan: Plan,
    network: str,
    block: int,
    prompt_start: int = 0,
    portraits: tuple[int, ...] = (),
    speaker_mask: str = "",
) -> StateInfo:
    """The header of what a video has left before a block."""
    e, computed = resolved, _computed_with(plan)
    return StateInfo(
        block=block,
        model=plan.model,
        network=network,
        width=e.width,
        height=e.height,
        steps=e.steps,
        clip_blocks=e.clip_blocks,
        seed=e.seed,
        sink_distance=distance,
        prompt=e.prompt_before(block),
        prompt_start=prompt_start,
        portraits=portraits,
        dtype=plan.dtype,
        threads=plan.threads,
        weights=computed["weights"],
        kv_dtype=computed["kv_dtype"],
        speaker_count=e.speaker_count,
        speaker_mask=speaker_mask,
    )


class StateSource(Protocol):
    """What a video can go on from: a state, or a video that will leave one.

    Attributes:
        info: what it belongs to.
        name: for people.
    """

    @property
    def info(self) -> StateInfo: ...

    @property
    def name(self) -> str: ...

    def check(self, config: ModelConfig, network: str, model: str) -> None:
        """Make sure that a network can go on from it, before that is loaded.

        Raises:
            StateError: it is of another network, or lacks something.
        """

    def open(self, callback: Callback = ignore) -> VideoState:
        """The state, which is made now where it is not there yet."""
        ...


def check_network(info: StateInfo, network: str, model: str, name: str) -> None:
    """Make sure that a state is of a network.

    Raises:
        StateError: it is not.
    """
    if info.network != network:
        raise StateError(
            f"{name} is of another network: {info.model}, with its LoRAs; here it is {model}.",
            "Use the model and the LoRAs of the video that is to be continued.",
        )


class VideoState:
    """The state in a file (see `StateSource`).

    Args:
        path: of its file, whose header is read; tensors are read when they are asked for.

    Raises:
        StateError: no such file, damaged, or of another kind.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = check_input_file(path, "state", StateError)
        self._identity = _identity(self.path)
        try:
            self.tensors = SafetensorsSource(self.path)
            metadata = self.tensors.metadata()
        except LiveAvatarError as error:
            raise StateError(
                f"{self.path} is no state of a video, or damaged ({error.what.rstrip('.')}).", _NEAREST
            ) from error
        if (found := str(metadata.get("format", ""))) != FORMAT:
            if found.startswith(_KIND):
                raise StateError(
                    f"{self.path} is a state of another version of this program: {shown(found)}, not {shown(FORMAT)}.",
                    "Continue it with the version that wrote it, or update this one.",
                )
            raise StateError(f"{self.path} is a safetensors file, but no state of a video.", _NEAREST)
        try:
            self.info = _info(json.loads(metadata["state"]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise StateError(f"The header of the state {self.path} is damaged.", _NEAREST) from error

    @property
    def name(self) -> str:
        """For people."""
        return self.path.name

    def open(self, callback: Callback = ignore) -> VideoState:
        """See `StateSource`; it is there."""
        return self

    def copied(self, path: Path) -> VideoState:
        """The same state in another file, too.

        Raises:
            OutputError: it cannot be written.
        """
        kinds = {name: dtype for dtype, name in DTYPE_NAMES.items()}
        held = self.tensors
        write_state(
            path,
            self.info,
            {
                name: LazyTensor(held.shape(name), kinds[held.dtype(name)], functools.partial(self.read, name))
                for name in sorted(held.keys())
            },
        )
        return VideoState(path)

    def check(self, config: ModelConfig, network: str, model: str) -> None:
        """See `StateSource`."""
        check_network(self.info, network, model, f"The state {self.path}")
        held, i = self.tensors.keys(), self.info
        size = i.steps, i.clip_blocks, VideoShape(i.width, i.height, i.steps).frame_tokens, i.block
        known = self._own_shapes(config) | {
            name: shape
            for form in get_args(KVDtype)
            for name, shape in state_shapes(config, *size, form)
            if form == self._kv_dtype(name)
        }
        optional = {"pose": self._pose_shape}
        wrong = [name for name in held if not self._belongs(name, known | optional)]
        if wrong or not known.keys() <= held:
            name = min(wrong or known.keys() - held)
            raise StateError(
                f"The state {self.path} {'has another' if wrong else 'lacks'} {name}.",
                "Write it again, from the video.",
            )

    def keys(self) -> frozenset[str]:
        """Names of its tensors."""
        return self.tensors.keys()

    def read(self, key: str) -> torch.Tensor:
        """A tensor, as a view of the file.

        Raises:
            StateError: the file was replaced since its header was read, for example by the state of a later block.
            ModelError: it cannot be read.
        """
        if _identity(self.path) != self._identity:
            raise StateError(f"The state {self.path} was replaced meanwhile.", "Continue from it anew.")
        return self.tensors.read(key)

    def pose_pictures(self) -> np.ndarray | None:
        """Of the blocks before the next one in its clip, uint8 [12 n, H, W, 3]; None where no pose was followed, or the
        next block begins a clip."""
        return self.read("pose").clone().numpy() if "pose" in self.keys() else None

    def _kv_dtype(self, name: str) -> KVDtype:
        """Format of the KV cache that a tensor is of, by its keys; "plain" of what is of none."""
        keys = f"{name.rpartition('.')[0]}.k"
        return _KV_DTYPES.get(self.tensors.dtype(keys), "plain") if keys in self.keys() else "plain"

    def _belongs(self, name: str, known: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether a tensor is as it should be, or nothing that anybody reads."""
        return _fits(self.tensors.shape(name), known[name]) if name in known else not name.startswith("kv.")

    def _own_shapes(self, config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Of what is no part of a stage; -n is any multiple of n."""
        height, width = self.info.height // SPATIAL_STRIDE, self.info.width // SPATIAL_STRIDE
        return {
            "first_frame": (CHANNELS, 1, height, width),
            "motion": (CHANNELS, MOTION_LATENTS, height, width),
            "latents": (CHANNELS, -BLOCK_LATENTS, height, width),
            "prompt": (-1, config.text_dim),
            "first_prompt": (-1, config.text_dim),
        }

    @property
    def _pose_shape(self) -> tuple[int, ...]:
        """Of what is there only where a pose was followed; -n as above."""
        return -BLOCK_FRAMES, self.info.height, self.info.width, 3


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Changes when a file is replaced or written to."""
    try:
        there = path.stat()
    except OSError:
        return None
    return there.st_ino, there.st_size, there.st_mtime_ns


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    both = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(n == w or (w < 0 < n and n % w == 0) for n, w in both)


def _info(saved: Any) -> StateInfo:
    """A header as it was written.

    Raises:
        KeyError, TypeError, ValueError: it was not written so.
    """
    saved = {**_OLDER, **saved}
    given = {field.name: saved[field.name] for field in dataclasses.fields(StateInfo)}
    distance = given["sink_distance"]
    recorded = tuple(tuple(map(int, steps)) for steps in distance["recorded"])
    given["sink_distance"] = SinkDistance(str(distance["kind"]), int(distance["value"]), recorded)
    given["portraits"] = tuple(map(int, given["portraits"]))
    info = StateInfo(**given)
    limits = {
        info.block: _MOST_BLOCKS,
        info.steps: MAX_STEPS,
        info.clip_blocks: MAX_CLIP_BLOCKS,
        info.width: MAX_AREA,
        info.height: MAX_AREA // max(1, info.width),
        info.speaker_count: _MOST_BLOCKS,
    }
    whole = all(type(n) is int and 0 < n <= most for n, most in limits.items())
    whole = whole and all(type(n) is int and 0 <= n <= MAX_SEED for n in (info.seed, info.prompt_start))
    if not whole or info.width % SIZE_MULTIPLE or info.height % SIZE_MULTIPLE:
        raise ValueError("numbers that no video has")
    if not isinstance(info.prompt, str | None) or not isinstance(info.speaker_mask, str):
        raise TypeError("a prompt or a fingerprint that is no text")
    return info


def state_bytes(config: ModelConfig, resolved: ResolvedRequest, plan: Plan) -> int:
    """Bytes of the state that a video leaves at its end."""
    e, number = resolved, getattr(torch, plan.dtype).itemsize
    block = e.first_block + e.blocks
    tokens = BLOCK_LATENTS * e.frame_tokens
    blocks, size = earlier_tokens(block, e.frame_tokens, e.clip_blocks) // tokens, (config.num_heads, config.head_dim)
    kv = sum(
        len(s.layers) * len(s.steps) * blocks * kv_cache_bytes(s.storage.kv_dtype, tokens, *size, number)
        for s in plan.stages
    )
    sink = 2 * config.num_layers * (5 * e.frame_tokens // 2) * config.dim * number
    latents = BLOCK_LATENTS * min(block, CONTEXT_LATENTS) + MOTION_LATENTS + 1
    pose = BLOCK_FRAMES * (block % e.clip_blocks) * 3 * e.width * e.height * e.pose
    return kv + sink + 4 * CHANNELS * latents * math.prod(e.latent_size) + pose


def is_state(path: Path) -> bool:
    """Whether a file is the state of a video, by its header."""
    try:
        VideoState(path)
    except LiveAvatarError:
        return False
    return True


def check_state_room(folder: Path, nbytes: int) -> None:
    """Make sure that a folder has room for a state.

    Raises:
        OutputError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise OutputError(
            f"The state takes {format_bytes(nbytes)}, and {folder} has {format_bytes(free)} free.",
            "Free some space, choose another disk, or keep the KV cache in fp8 (--kv-dtype fp8), half of it.",
        )


def check_state_output(path: str | os.PathLike[str], nbytes: int) -> Path:
    """Make sure that a state can be written, before anything is loaded.

    Args:
        path: where to.
        nbytes: of it.

    Raises:
        OutputError: what is there is no state, cannot be replaced, or there is no room.
    """
    place = path_of(path, "The state")
    with _claimed(place) as claim:
        check_state_room(claim.target.parent, nbytes)
    return place


def write_state(path: Path, info: StateInfo, tensors: Mapping[str, LazyTensor]) -> None:
    """Write or replace a state in one step: the same file whatever the partition was.

    Raises:
        OutputError: see `check_state_output`; an older state is still there.
    """
    metadata = {"format": FORMAT, "state": json.dumps(json_ready(info), ensure_ascii=False)}
    try:
        with _claimed(path) as claim, replacement(claim) as (_, file):
            write_safetensors(file, dict(sorted(tensors.items())), metadata)
            os.fsync(file.fileno())
    except OSError as error:
        raise refusal(path, error) from error


def _claimed(path: Path) -> OutputClaim:
    target = target_of(path, "The state")
    if target.exists() and target.stat().st_size and not is_state(target):
        raise OutputError(f"{path} is there already, and is no state of a video.", "Choose another name.")
    return OutputClaim(path, "The state")
