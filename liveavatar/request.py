"""What the user asked for, and what that really means.

`resolve` is the only way from one to the other: it needs the size of the picture and the length of the sound, touches
no file and loads nothing.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from typing import Literal

from .config import BLOCK_FRAMES, CLIP_BLOCKS, FPS, MAX_CLIP_BLOCKS, SPATIAL_STRIDE
from .distance import SinkDistance
from .errors import AudioError, RequestError
from .size import effective_size, parse_size

Fit = Literal["cover", "pad"]
Tail = Literal["silence", "zeros"]
Lead = Literal["sync", "original"]

MAX_STEPS = 100
MIN_SOUND_SECONDS = 0.025
_MIN_SECONDS_WITHOUT_SILENCE = 0.045
"""Two features of the audio encoder: without silence after it, the sound itself has to make them."""
MAX_SEED = 2**64 - 1
DEFAULT_PROMPT = "A person looks at the camera and talks."
_ORIGINAL_DROP = 3
"""Frames of block 0 the published implementation drops, which puts its picture 120 ms ahead of the sound."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        size: "704x384" and its like; an area, because width and height follow the picture's aspect.
        prompt: what the video shows, in words. None: it comes already encoded, and its text is not known.
        steps: denoising steps per block.
        seed: 0..2^64-1; the same seed gives the same video. -1 draws one, which the receipt then names.
        seconds: stop after so much sound; None for all of it.
        fit: "cover" fills the frame and crops; "pad" is the published black padding, for parity.
        tail: what is heard after the sound ends: "silence" as it is encoded, or "zeros" as published, for parity.
        lead: "sync" keeps all 12 frames of block 0; "original" drops three, as published, for parity.
        sink_distance: how far ahead of a block the reference picture stands.
        clip_blocks: blocks of one clip, 1 to 20; the published `infer_frames` divided by 12. Noise is drawn clip by
            clip, a block attends to the last `clip_blocks` blocks including itself, and after the first clip the sink
            is renewed from the first generated latent frame. The model was trained with 4.
    """

    size: str = "704x384"
    prompt: str | None = DEFAULT_PROMPT
    steps: int = 4
    seed: int = 420
    seconds: float | None = None
    fit: Fit = "cover"
    tail: Tail = "silence"
    lead: Lead = "sync"
    sink_distance: SinkDistance = dataclasses.field(default_factory=SinkDistance)
    clip_blocks: int = CLIP_BLOCKS


@dataclasses.dataclass(frozen=True)
class Effective:
    """What will really happen.

    Attributes:
        width, height: pixels of the video, multiples of 64.
        frames: of the video, at 25 per second.
        blocks: of 12 frames, made to cover them.
        drop: frames of block 0 that are thrown away.
        steps, seed, prompt: as they will be used.
        seconds: of sound that is used, and so of video.
        samples: of sound that are used, at the sound's own rate.
        notes: every difference between what was asked and this, one sentence each.
        clip_blocks: as in `Request`.
    """

    width: int
    height: int
    frames: int
    blocks: int
    drop: int
    steps: int
    seed: int
    prompt: str | None
    seconds: float
    samples: int
    notes: tuple[str, ...]
    clip_blocks: int = CLIP_BLOCKS

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of a latent frame."""
        return self.height // SPATIAL_STRIDE, self.width // SPATIAL_STRIDE

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame (T = H/16 x W/16)."""
        return self.height * self.width // (2 * SPATIAL_STRIDE) ** 2

    @property
    def clips(self) -> int:
        """Clips that noise is drawn for."""
        return -(-self.blocks // self.clip_blocks)


def resolve(request: Request, picture: tuple[int, int], samples: int, rate: int) -> Effective:
    """Understand a request or refuse it.

    Args:
        request: what was asked.
        picture: width and height of the reference picture in pixels.
        samples, rate: length of the sound and its samples per second.

    Raises:
        RequestError: SizeError, AudioError or the like, naming the nearest thing that works.
    """
    check_request(request)
    asked = parse_size(request.size)
    width, height = effective_size(picture, asked[0] * asked[1])
    used = used_samples(request, samples, rate)
    frames = frames_of(used, rate)
    drop = _ORIGINAL_DROP if request.lead == "original" else 0
    seed = secrets.randbits(63) if request.seed == -1 else request.seed
    effective = Effective(
        width=width,
        height=height,
        frames=frames,
        blocks=-(-(frames + drop) // BLOCK_FRAMES),
        drop=drop,
        steps=request.steps,
        seed=seed,
        prompt=request.prompt,
        seconds=used / rate,
        samples=used,
        notes=(),
        clip_blocks=request.clip_blocks,
    )
    return dataclasses.replace(effective, notes=tuple(_notes(request, effective, asked, picture, samples / rate)))


def check_request(request: Request) -> None:
    """Refuse what no picture and no sound can make possible.

    Raises:
        RequestError: naming the nearest thing that works.
    """
    parse_size(request.size)
    steps, seed, seconds = request.steps, request.seed, request.seconds
    if not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        near = MAX_STEPS if isinstance(steps, int) and steps > MAX_STEPS else 1 if isinstance(steps, int) else 4
        raise RequestError(f"{steps} denoising steps are not possible.", f"The nearest is {near}; the model is for 4.")
    if not isinstance(seed, int) or not -1 <= seed <= MAX_SEED:
        raise RequestError(f"The seed {seed} is out of range.", f"Use 0 to {MAX_SEED}, or -1 to draw one.")
    _check_clip(request.clip_blocks)
    if seconds is not None and not (math.isfinite(seconds) and seconds >= MIN_SOUND_SECONDS):
        raise RequestError(
            f"{seconds} seconds of video cannot be made.",
            f"Ask for at least {MIN_SOUND_SECONDS} seconds, or leave it out to use all of the sound.",
        )
    if any("\ud800" <= letter <= "\udfff" for letter in request.prompt or ""):  # what Python makes of undecodable bytes
        raise RequestError("The prompt holds bytes that are no text.", "Write it in UTF-8.")
    for name, allowed in (("fit", Fit), ("tail", Tail), ("lead", Lead)):
        given, choices = getattr(request, name), allowed.__args__  # type: ignore[attr-defined]
        if given not in choices:
            raise RequestError(f"{name} = {given!r} is not known.", f"Use {' or '.join(choices)}.")


def prompt_to_encode(prompt: str | None) -> str:
    """The text of a prompt, for whoever has to encode it.

    Raises:
        RequestError: it is not known.
    """
    if prompt is None:
        raise RequestError("The text of the prompt is not known.", f"Give a prompt, for example: {DEFAULT_PROMPT}")
    return prompt


def clip_blocks_of(frames: int) -> int:
    """Blocks of a clip of so many video frames.

    Raises:
        RequestError: no multiple of 12 from 12 to 240; it names the nearest that is.
    """
    blocks, rest = divmod(frames, BLOCK_FRAMES)
    if rest or not 1 <= blocks <= MAX_CLIP_BLOCKS:
        nearest = min(max(blocks + round(rest / BLOCK_FRAMES), 1), MAX_CLIP_BLOCKS) * BLOCK_FRAMES
        raise RequestError(
            f"A clip of {frames} frames is not possible: clips are whole blocks of {BLOCK_FRAMES} frames, "
            f"at most {MAX_CLIP_BLOCKS}.",
            f"The nearest is {nearest} frames; the model was trained with {CLIP_BLOCKS * BLOCK_FRAMES}.",
        )
    return blocks


def _check_clip(blocks: int) -> None:
    if not isinstance(blocks, int) or not 1 <= blocks <= MAX_CLIP_BLOCKS:
        near = min(max(blocks, 1), MAX_CLIP_BLOCKS) if isinstance(blocks, int) else CLIP_BLOCKS
        raise RequestError(
            f"A clip of {blocks} blocks is not possible.", f"The nearest is {near}; the model was trained with 4."
        )


def frames_of(samples: int, rate: int) -> int:
    """Video frames that cover so much sound, at least 1."""
    return max(1, math.ceil(samples * FPS / rate))


def used_samples(request: Request, samples: int, rate: int) -> int:
    """How much of a sound is used.

    Raises:
        AudioError: too little.
    """
    seconds = request.seconds
    used = samples if seconds is None else min(samples, math.ceil(seconds * rate - 1e-6))
    least, filling = MIN_SOUND_SECONDS, "silence"
    if request.tail == "zeros":
        least, filling = _MIN_SECONDS_WITHOUT_SILENCE, "zeros"
    if used < least * rate - 1e-6:
        raise AudioError(
            f"The sound is {used / rate:.3f} s long, too short to be heard by the model.",
            f"Give at least {least} s; anything under one block of 0.48 s is filled up with {filling}.",
        )
    return used


def _notes(
    request: Request, effective: Effective, asked: tuple[int, int], picture: tuple[int, int], sound_seconds: float
) -> list[str]:
    notes = []
    if (effective.width, effective.height) != asked:
        notes.append(
            f"size {asked[0]}x{asked[1]} is an area; a {picture[0]}x{picture[1]} picture makes it "
            f"{effective.width}x{effective.height}"
        )
    made = effective.blocks * BLOCK_FRAMES
    if made != effective.frames:
        notes.append(
            f"{effective.blocks} whole blocks make {made} frames; {effective.frames} are kept, as long as the sound"
        )
    if request.seconds is not None and request.seconds > sound_seconds:
        notes.append(f"{request.seconds:g} s were asked for, but the sound ends after {sound_seconds:.2f} s")
    if request.prompt is None:
        notes.append("the prompt came already encoded; its text is not known")
    if request.steps != 4:
        notes.append(f"{request.steps} steps; the 4-step LoRA was trained for 4, other counts are less sharp")
    if request.clip_blocks != CLIP_BLOCKS:
        notes.append(
            f"clips of {request.clip_blocks * BLOCK_FRAMES} frames; the model was trained with clips of "
            f"{CLIP_BLOCKS * BLOCK_FRAMES}, and other lengths change how far back a block attends"
        )
    if request.seed == -1:
        notes.append(f"seed {effective.seed} was drawn")
    if request.lead == "original":
        notes.append("the first 3 frames are dropped as published, so the picture runs 120 ms ahead of the sound")
    return notes
