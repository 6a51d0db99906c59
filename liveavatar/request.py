"""What the user asked for, and what that really means."""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeGuard

from .config import (
    BLOCK_FRAMES,
    BLOCK_LATENTS,
    CLIP_BLOCKS,
    FPS,
    MAX_CLIP_BLOCKS,
    MAX_SINK_DISTANCE,
    MIN_SINK_DISTANCE,
    REFERENCE_TIME_ID,
    SIZE_MULTIPLE,
    SPATIAL_STRIDE,
)
from .errors import AudioError, RequestError, SizeError, shown
from .timed_changes import BlockChanges, TimedChange, changes_by_block, check_timeline

_MASK64 = (1 << 64) - 1


@dataclasses.dataclass(frozen=True)
class SinkDistance:
    """How many latent frames ahead of a block the reference image stands.

    Attributes:
        kind: "seeded" (a hash of seed and block, uniform in 4..30, the same for all steps), "fixed", or "replay"
            (a recorded list per block and step, to repeat a run of the published implementation, which draws anew
            at every call).
        value: the distance when fixed.
        recorded: [blocks][steps] when replayed.
    """

    kind: str = "seeded"
    value: int = MAX_SINK_DISTANCE
    recorded: tuple[tuple[int, ...], ...] = ()

    def at(self, seed: int, block: int, step: int) -> int:
        """The distance of one task."""
        if self.kind == "fixed":
            return self.value
        if self.kind == "replay":
            return self.recorded[block][step]
        return MIN_SINK_DISTANCE + _hash(seed, block) % (MAX_SINK_DISTANCE - MIN_SINK_DISTANCE + 1)

    def reference_time_id(self, seed: int, block: int, step: int) -> int:
        """Time id of the reference: 30 until the block comes within the distance, then always that far ahead."""
        near = REFERENCE_TIME_ID - self.at(seed, block, step)
        return REFERENCE_TIME_ID + max(0, block * BLOCK_LATENTS - near)


def _hash(seed: int, block: int) -> int:
    """A counter-based 64-bit hash (the finaliser of SplitMix64, Steele et al. 2014)."""
    z = (seed + (block + 1) * 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


MAX_AREA = 1920 * 1088
"""Pixels of the largest frame; nothing above has ever been tried."""


def parse_size(text: str) -> tuple[int, int]:
    """Read a size: 704*384, 704x384, 704X384, 704×384, 704,384 or 704 384, with spaces anywhere.

    Returns:
        Width and height as written.

    Raises:
        SizeError: not two whole numbers, or an area out of range.
    """
    given = text if isinstance(text, str) else ""
    sides = re.fullmatch(r"\s*(\d{1,6})\s*(?:[xX×*,;]|\s)\s*(\d{1,6})\s*", given)
    if not sides:
        raise SizeError(f"The size {shown(text)} is not understood.", f"Write width x height, such as {_guess(given)}.")
    width, height = int(sides[1]), int(sides[2])
    if width * height < SIZE_MULTIPLE**2:
        raise SizeError(f"The size {width}x{height} is too small.", "The smallest is 64x64.")
    if width * height > MAX_AREA:
        nearest = "x".join(map(str, _largest_like(width, height)))
        raise SizeError(f"The size {width}x{height} is too large.", f"The nearest that works is {nearest}.")
    return width, height


def resolve_size(image_size: tuple[int, int], area: int) -> tuple[int, int]:
    """Width and height, multiples of 64, of at most `area`, in the image's aspect; never larger than needed.

    The search of the published implementation: scales are tried from large to small in a hundred steps, both sides
    rounded up, and the first product that fits wins. Small pictures are not enlarged.

    Args:
        image_size: width and height of the image.
        area: largest product of the result.

    Raises:
        SizeError: the image is too elongated for the area.
    """
    image_width, image_height = image_size
    found = _search_size(image_height, image_width, area) or _fallback_size(image_height, image_width, area)
    height, width = found
    if min(height, width) < SIZE_MULTIPLE:
        longest = max(image_size) / min(image_size)
        needed = SIZE_MULTIPLE * SIZE_MULTIPLE * math.ceil(longest)
        side = SIZE_MULTIPLE * math.ceil(longest)
        raise SizeError(
            f"A picture of {image_width}x{image_height} is too elongated for an area of {area} pixels.",
            f"Crop the picture, or ask for at least {side}x64." if needed <= MAX_AREA else "Crop the picture.",
        )
    return width, height


def image_size_for(size: str) -> tuple[int, int]:
    """Width and height of an image of the asked aspect, large enough that nothing of the area is lost.

    Raises:
        SizeError: as `parse_size`.
    """
    width, height = parse_size(size)
    factor = -(-1920 // min(width, height))
    return width * factor, height * factor


def _largest_like(width: int, height: int) -> tuple[int, int]:
    """The largest size in about this aspect."""
    scale = math.sqrt(MAX_AREA / (width * height))
    short = max(SIZE_MULTIPLE, int(min(width, height) * scale) // SIZE_MULTIPLE * SIZE_MULTIPLE)
    long = min(int(max(width, height) * scale), MAX_AREA // short) // SIZE_MULTIPLE * SIZE_MULTIPLE
    return (long, short) if width >= height else (short, long)


def _search_size(image_height: int, image_width: int, area: int) -> tuple[int, int] | None:
    pixels, margin = image_height * image_width, SIZE_MULTIPLE - 1
    if pixels <= area:
        low, high = 0.1, 1.0
    else:
        high = math.sqrt(area / pixels)
        b, c = margin * (image_height + image_width), margin**2 - area
        # Only a bound of the search; the factor 2 (not 4) under the root is how it was published.
        low = (-b + math.sqrt(b * b - 2 * pixels * c)) / (2 * pixels)
    for i in range(100):
        scale = high - (high - low) * i / 100
        sides = [_round_up(int(n * scale)) for n in (image_height, image_width)]
        if sides[0] * sides[1] <= area:
            return sides[0], sides[1]
    return None


def _fallback_size(image_height: int, image_width: int, area: int) -> tuple[int, int]:
    ratio = image_width / image_height
    height, width = (int(math.sqrt(x) // SIZE_MULTIPLE * SIZE_MULTIPLE) for x in (area / ratio, area * ratio))
    if width >= image_width or height >= image_height:
        height, width = (n // SIZE_MULTIPLE * SIZE_MULTIPLE for n in (image_height, image_width))
    return height, width


def _round_up(n: int) -> int:
    return -(-n // SIZE_MULTIPLE) * SIZE_MULTIPLE


def _guess(text: str) -> str:
    """A size near what was probably meant."""
    numbers = [int(n) for n in re.findall(r"\d{1,6}", str(text))]
    sides = [min(1920, max(SIZE_MULTIPLE, round(n / SIZE_MULTIPLE) * SIZE_MULTIPLE)) for n in numbers[:2]]
    if len(sides) == 2:
        return f"{sides[0]}x{sides[1]}"
    return f"{sides[0]}x{max(SIZE_MULTIPLE, sides[0] * 9 // 16 // 64 * 64)}" if sides else "704x384"


Fit = Literal["cover", "pad"]
Tail = Literal["silence", "zeros"]
Lead = Literal["sync", "original"]
PoseEnd = Literal["hold", "loop", "black"]

MAX_STEPS = 100
LONG_AUDIO_SECONDS = 600.0
"""Audio up to this long is encoded before block 0, and its features are kept: a new seed encodes nothing again."""
MIN_SOUND_SECONDS = 0.025
_ENDLESS = 1e9
"""Seconds above which a length is a mistake."""
_MIN_SECONDS_WITHOUT_SILENCE = 0.045
"""Two features of the audio encoder: without silence after it, the audio itself has to make them."""
MAX_SEED = 2**64 - 1
DEFAULT_PROMPT = "A person looks at the camera and talks."
_ORIGINAL_DROP = 3
"""Frames of block 0 the published implementation drops, which puts its picture 120 ms ahead of the audio."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        size: "704x384" and its like; an area, because width and height follow the image's aspect.
        prompt: what the video shows, in words. None: it comes already encoded, and its text is not known.
        steps: denoising steps per block.
        seed: 0..2^64-1; the same seed gives the same video. -1 draws one, which the receipt then names.
        seconds: stop after so much sound; None for all of it.
        fit: "cover" fills the frame and crops; "pad" is the published black padding, for parity.
        tail: features after the audio ends: "silence" as it is encoded, or "zeros" as published, for parity.
        pose_end: what follows when a pose video ends before the sound: "hold" its last picture, "loop" all of it again,
            or "black" as published, for parity.
        lead: "sync" keeps all 12 frames of block 0; "original" drops three, as published, for parity.
        sink_distance: how far ahead of a block the reference image stands.
        clip_blocks: blocks of one clip, 1 to 20; the published `infer_frames` divided by 12. Noise is drawn clip by
            clip, a block attends to the last `clip_blocks` blocks including itself, and after the first clip the sink
            is renewed from the first generated latent frame. The model was trained with 4.
        keep_state: whether the video shall be continued: it ends with a whole block then, up to 11 frames later, and
            what that needs is kept until it is saved.
        timeline: prompts and portraits that take the place of the first ones, by time; see `parse_timeline`.
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
    keep_state: bool = False
    timeline: tuple[TimedChange, ...] = ()
    pose_end: PoseEnd = "hold"


@dataclasses.dataclass(frozen=True)
class VideoShape:
    """What of a video decides how much memory and work a block takes: equal for all videos that can be planned alike.

    Attributes:
        width, height: pixels.
        steps, clip_blocks: as in `Request`.
        changes_prompt: whether another prompt may be read on the way.
        keeps_audio_encoder: whether the audio encoder works while blocks are made.
        live: whether blocks are to be made at the pace of speech, and soon.
        pose: whether a pose video is encoded beside the blocks.
        speaker_count: how many speakers are heard in one picture.
    """

    width: int
    height: int
    steps: int
    clip_blocks: int = CLIP_BLOCKS
    changes_prompt: bool = False
    keeps_audio_encoder: bool = False
    live: bool = False
    pose: bool = False
    speaker_count: int = 1

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of a latent frame."""
        return self.height // SPATIAL_STRIDE, self.width // SPATIAL_STRIDE

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame (T = H/16 x W/16)."""
        return self.height * self.width // (2 * SPATIAL_STRIDE) ** 2


@dataclasses.dataclass(frozen=True)
class ResolvedRequest:
    """What will really happen.

    Attributes:
        width, height: pixels of the video, multiples of 64.
        frames: of the video, at 25 per second.
        blocks: of 12 frames, made to cover them.
        drop: frames of block 0 that are thrown away.
        steps, seed, prompt: as they will be used.
        seconds: of sound that is used, and so of video.
        samples: of sound that are used, at the audio's own rate.
        notes: what is to be told of the inputs, and every difference between what was asked and this, a sentence each.
        clip_blocks: as in `Request`.
        first_block: the number of its first block; not 0 where it continues another video.
        prompt_changes, portrait_changes: `(block, what)`: prompts, and files of portraits, that take the place of the
            first ones; blocks are counted from its own first one.
        pose: whether it follows a pose video.
        speaker_count: how many speak in it.
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
    first_block: int = 0
    prompt_changes: tuple[tuple[int, str], ...] = ()
    portrait_changes: tuple[tuple[int, Path], ...] = ()
    pose: bool = False
    speaker_count: int = 1

    @property
    def shape(self) -> VideoShape:
        """What a plan depends on."""
        return VideoShape(
            self.width,
            self.height,
            self.steps,
            self.clip_blocks,
            changes_prompt=self.is_open or bool(self.prompt_changes),
            keeps_audio_encoder=self.is_open or self.long_audio,
            live=self.is_open,
            pose=self.pose,
            speaker_count=self.speaker_count,
        )

    @property
    def is_open(self) -> bool:
        """Whether nobody knows its length: it is spoken live."""
        return self.blocks == 0

    @property
    def long_audio(self) -> bool:
        """Whether its audio is encoded window by window, while blocks are made."""
        return is_long_audio(self.seconds, 1)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of a latent frame."""
        return self.shape.latent_size

    def prompt_before(self, block: int) -> str | None:
        """The prompt that holds last before a block of the video; blocks count from the first of a continued one."""
        changed = [text for start, text in self.prompt_changes if self.first_block + start < block]
        return changed[-1] if changed else self.prompt

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame (T = H/16 x W/16)."""
        return self.shape.frame_tokens

    @property
    def clips(self) -> int:
        """Clips that noise is drawn for."""
        return -(-self.blocks // self.clip_blocks)


def resolve(
    request: Request, image_size: tuple[int, int], samples: int, rate: int, notes: Sequence[str] = ()
) -> ResolvedRequest:
    """Understand a request or refuse it.

    Args:
        request: what was asked.
        image_size: width and height of the reference image in pixels.
        samples, rate: length of the audio and its samples per second.
        notes: what is to be told of the inputs, a sentence each.

    Raises:
        RequestError: SizeError, AudioError or the like, naming the nearest thing that works.
    """
    check_request(request)
    asked = parse_size(request.size)
    width, height = resolve_size(image_size, asked[0] * asked[1])
    used = sample_count(request, samples, rate)
    frames = frame_count(used, rate)
    drop = _ORIGINAL_DROP if request.lead == "original" else 0
    blocks = -(-(frames + drop) // BLOCK_FRAMES)
    changes = changes_by_block(request.timeline, blocks, drop)
    resolved = ResolvedRequest(
        width=width,
        height=height,
        frames=blocks * BLOCK_FRAMES if request.keep_state else frames,
        blocks=blocks,
        drop=drop,
        steps=request.steps,
        seed=secrets.randbits(63) if request.seed == -1 else request.seed,
        prompt=request.prompt if changes.first_prompt is None else changes.first_prompt,
        seconds=used / rate,
        samples=used,
        notes=(),
        clip_blocks=request.clip_blocks,
        prompt_changes=changes.prompts,
        portrait_changes=changes.images,
    )
    differences = [*_notes(request, resolved, asked, image_size, samples / rate), *_timeline_notes(request, changes)]
    return dataclasses.replace(resolved, notes=(*notes, *differences))


def resolve_open(request: Request, image_size: tuple[int, int], notes: Sequence[str] = ()) -> ResolvedRequest:
    """Understand a request for a video whose length nobody knows yet: frames, blocks, seconds and samples are 0.

    Args:
        request, image_size, notes: as in `resolve`; `seconds` and `timeline` are not looked at.

    Raises:
        RequestError: as `resolve`.
    """
    block = resolve(dataclasses.replace(request, seconds=None, timeline=()), image_size, BLOCK_FRAMES, FPS, notes)
    return dataclasses.replace(block, frames=0, blocks=0, seconds=0.0, samples=0)


def check_request(request: Request) -> None:
    """Refuse what no picture and no sound can make possible.

    Raises:
        RequestError: naming the nearest thing that works.
    """
    parse_size(request.size)
    steps, seed, seconds = request.steps, request.seed, request.seconds
    if not _is_whole(steps) or not 1 <= steps <= MAX_STEPS:
        near = MAX_STEPS if _is_whole(steps) and steps > MAX_STEPS else 1 if _is_whole(steps) else 4
        raise RequestError(
            f"{shown(steps)} denoising steps are not possible.", f"The nearest is {near}; the model is for 4."
        )
    if not _is_whole(seed) or not -1 <= seed <= MAX_SEED:
        raise RequestError(f"The seed {shown(seed)} is out of range.", f"Use 0 to {MAX_SEED}, or -1 to draw one.")
    _check_clip(request.clip_blocks)
    if isinstance(seconds, bool) or not isinstance(seconds, numbers.Real | None):
        raise _wrong_type("seconds", seconds, "a number")
    if seconds is not None and not _is_length(seconds):
        raise RequestError(
            f"{shown(seconds)} seconds of video cannot be made.",
            f"Ask for at least {MIN_SOUND_SECONDS} seconds, or leave it out to use all of the sound.",
        )
    if request.keep_state and request.lead == "original":
        raise RequestError(
            "A video whose first 3 frames are dropped, as published, cannot be continued.", "Use --lead sync."
        )
    if not isinstance(request.prompt, str | None):
        raise _wrong_type("prompt", request.prompt, "a text")
    if not isinstance(request.sink_distance, SinkDistance):
        raise RequestError(
            f"The sink distance is {shown(request.sink_distance)}.", "Give a SinkDistance, or leave it out."
        )
    check_timeline(request.timeline)
    for prompt in (request.prompt, *(change.prompt for change in request.timeline)):
        if any("\ud800" <= letter <= "\udfff" for letter in prompt or ""):  # what Python makes of undecodable bytes
            raise RequestError("The prompt holds bytes that are no text.", "Write it in UTF-8.")
    for name, allowed in (("fit", Fit), ("tail", Tail), ("lead", Lead), ("pose_end", PoseEnd)):
        given, choices = getattr(request, name), allowed.__args__  # type: ignore[attr-defined]
        if not isinstance(given, str) or given not in choices:
            raise RequestError(f"{name} = {shown(given)} is not known.", f"Use {' or '.join(choices)}.")


def _wrong_type(name: str, value: object, wanted: str) -> RequestError:
    return RequestError(f"{name} = {shown(value)} is of type {type(value).__name__}.", f"Give {wanted}.")


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_length(seconds: float) -> bool:
    """Whether so many seconds may be asked for. They may be more than the sound has."""
    return MIN_SOUND_SECONDS <= seconds <= _ENDLESS


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
    if not _is_whole(blocks) or not 1 <= blocks <= MAX_CLIP_BLOCKS:
        near = min(max(blocks, 1), MAX_CLIP_BLOCKS) if _is_whole(blocks) else CLIP_BLOCKS
        raise RequestError(
            f"A clip of {shown(blocks)} blocks is not possible.",
            f"The nearest is {near}; the model was trained with 4.",
        )


def is_long_audio(samples: float, rate: int) -> bool:
    """Whether so much audio is encoded window by window, while blocks are made."""
    return samples / rate > LONG_AUDIO_SECONDS


def frame_count(samples: int, rate: int) -> int:
    """Video frames that cover so much sound, at least 1."""
    return max(1, math.ceil(samples * FPS / rate))


def sample_count(request: Request, samples: int, rate: int) -> int:
    """How much of audio is used.

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


def _timeline_notes(request: Request, changes: BlockChanges) -> Iterator[str]:
    if changes.first_prompt is not None and request.prompt not in (None, DEFAULT_PROMPT, changes.first_prompt):
        yield "the prompt at 0 s of the timeline takes the place of the other one"
    yield from changes.notes


_TOLD_CUT = 0.1
"""Less than this of a picture is cut off without a word: sides are multiples of 64."""


def _cut_share(image_size: tuple[int, int], size: tuple[int, int]) -> float:
    """How much of an image lies outside of the largest part of it that has the shape of a video, 0 to 1."""
    shape, wanted = image_size[0] / image_size[1], size[0] / size[1]
    return 1 - min(shape / wanted, wanted / shape)


def _notes(
    request: Request,
    resolved: ResolvedRequest,
    asked: tuple[int, int],
    image_size: tuple[int, int],
    sound_seconds: float,
) -> list[str]:
    notes = []
    if (resolved.width, resolved.height) != asked:
        notes.append(
            f"size {asked[0]}x{asked[1]} is an area; a {image_size[0]}x{image_size[1]} picture makes it "
            f"{resolved.width}x{resolved.height}"
        )
    if request.fit == "cover" and (cut := _cut_share(image_size, (resolved.width, resolved.height))) >= _TOLD_CUT:
        side = "width" if image_size[0] * resolved.height > resolved.width * image_size[1] else "height"
        notes.append(
            f"{cut:.0%} of the picture's {side} is cut off: it has {image_size[0]}x{image_size[1]} pixels, the video "
            f"{resolved.width}x{resolved.height}; crop it yourself to choose what is seen"
        )
    made = resolved.blocks * BLOCK_FRAMES
    if made != resolved.frames:
        notes.append(
            f"{resolved.blocks} whole blocks make {made} frames; {resolved.frames} are kept, as long as the sound"
        )
    if request.keep_state and (silent := made / FPS - resolved.seconds) > 1 / FPS:
        notes.append(f"the video ends with a whole block, {silent:.2f} s after the sound, so that it can be continued")
    if request.seconds is not None and request.seconds > sound_seconds + 1e-6:
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
    if resolved.long_audio:
        notes.append(
            f"the sound is longer than {LONG_AUDIO_SECONDS / 60:g} minutes: it is encoded window by window, while the "
            "video is made"
        )
    if request.seed == -1:
        notes.append(f"seed {resolved.seed} was drawn")
    if request.lead == "original":
        notes.append("the first 3 frames are dropped as published, so the picture runs 120 ms ahead of the sound")
    return notes
