"""All conditions of a video, encoded: of one that begins, or of one that goes on from a state."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch

from .codec import Encoders
from .config import BLOCK_FRAMES, VAE_WARMUP_LATENTS
from .encoders.audio import WindowedAudioFeatures
from .encoders.block_features import (
    BlockFeatures,
    KnownFeatures,
    SharedAudioEncoder,
    ShiftedFeatures,
    StackedFeatures,
    StackedKnownFeatures,
)
from .events import ENCODING_AUDIO, Callback, Event, ignore, share_event
from .media.audio import AudioClip, mono_16k
from .media.image import fit_image, to_clip, to_pixels
from .media.pose_video import PoseSource, endless_pictures
from .pose import PoseLatents
from .request import Request, ResolvedRequest, prompt_to_encode
from .session import Conditioning
from .speakers import PlacedSpeakers
from .spool import Rows
from .stage import Changes, Portrait
from .timeline import Timeline
from .vae.tile_grid import WHOLE, Tiles
from .video_state import VideoState

Contexts = Mapping[str, torch.Tensor]
"""Features of prompts [n, text_dim], by their text."""
NO_CONTEXTS: Contexts = MappingProxyType({})
Portraits = Sequence[tuple[int, np.ndarray]]
"""Images uint8 [H, W, 3] that take the place of the first one, with the blocks they begin at."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What of a video is encoded already.

    Attributes:
        context: features of the request's prompt [n, text_dim].
        contexts: of prompts of its timeline, by their text.
        features: of its audio.
    """

    context: torch.Tensor | None = None
    contexts: Contexts = dataclasses.field(default_factory=dict)
    features: BlockFeatures | None = None


NOTHING_ENCODED = Encoded()


def encode_conditioning(
    encoders: Encoders,
    request: Request,
    resolved: ResolvedRequest,
    image: np.ndarray,
    audio: AudioClip,
    callback: Callback = ignore,
    tiles: Tiles = WHOLE,
    *,
    encoded: Encoded = NOTHING_ENCODED,
    portraits: Portraits = (),
    pose: PoseSource | None = None,
    tail: np.ndarray | None = None,
    speakers: PlacedSpeakers | None = None,
) -> Conditioning:
    """All conditions of the network, encoded; each encoder stays as long as it is needed.

    Args:
        encoders: of the model.
        request, resolved: what was asked, and what that means.
        image: uint8 [H, W, 3].
        audio: at any rate; only what `resolved` uses is encoded, all of it now or, where it is long, window by window
            while blocks are made.
        callback: called with the progress; what it raises ends the work.
        tiles: see `Plan.vae_tiles`.
        encoded: what is there already.
        portraits: images that take the place of the first one, with the blocks they begin at.
        pose: a pose video that is followed; it is encoded block by block, later.
        tail: the last frames of a video before this one, uint8 [73, H, W, 3], in the size of this one.
        speakers: whose sounds are encoded instead, where there are several.
    """
    known = encoded.context if resolved.prompt == request.prompt else None
    first, prompts = _encode_prompts(encoders, resolved, known, encoded.contexts, callback)
    features = encoded.features
    if features is None:
        features = _encode_used(encoders, request, resolved, _spoken(audio, speakers), callback)
    changes = Changes(prompts)
    try:
        images = (image, *(changed for _, changed in portraits))
        (reference, motion), *later = _encode_images(encoders, request, resolved, images, callback, tiles)
        if tail is not None:
            motion = encoders.encode_motion(to_clip(tail), callback, tiles)
    except BaseException:
        if features is not encoded.features:
            features.close()
        raise
    for (block, _), latents in zip(portraits, later, strict=True):
        changes.portraits.add(block, Portrait(*latents))
    before = None if tail is None else motion[:, VAE_WARMUP_LATENTS:]
    followed = _pose_latents(encoders, pose, request, resolved, tiles)
    mask = None if speakers is None else speakers.masks.of_block()
    return Conditioning(reference, motion, first, features, changes, before, followed, mask)


def _pose_latents(
    encoders: Encoders,
    pose: PoseSource | None,
    request: Request,
    resolved: ResolvedRequest,
    tiles: Tiles,
    before: np.ndarray | None = None,
) -> PoseLatents | None:
    """The latents of a pose video, fitted as the portrait is, from the video's first block on; see `PoseLatents`."""
    if pose is None:
        return None
    size = resolved.width, resolved.height
    pictures = functools.partial(endless_pictures, pose, request.pose_end, *size, request.fit)
    open_clip = encoders.pose_encoder(resolved.latent_size, tiles)
    return PoseLatents(pictures, open_clip, resolved.clip_blocks, resolved.first_block, before, request.keep_state)


def continued_conditioning(
    encoders: Encoders,
    request: Request,
    resolved: ResolvedRequest,
    state: VideoState,
    audio: AudioClip,
    callback: Callback = ignore,
    tiles: Tiles = WHOLE,
    *,
    encoded: Encoded = NOTHING_ENCODED,
    portraits: Portraits = (),
    pose: PoseSource | None = None,
    speakers: PlacedSpeakers | None = None,
) -> Conditioning:
    """As `encode_conditioning`, for a video that goes on from a state: it has the portrait of the video before, and its
    prompt as long as it is not given another one. Changes and pose of its own are counted from its own first block."""
    changes, first_block = Changes(), state.info.block
    for start in state.info.portraits:
        changes.portraits.skip(start)
    before = state.read("prompt").clone()
    if state.info.prompt_start:
        changes.prompts.add(state.info.prompt_start, before)
    known = encoded.contexts.get(resolved.prompt or "")
    if known is None:
        goes_on = encoded.context is None and resolved.prompt == state.info.prompt
        known = before if goes_on else encoded.context
    first, prompts = _encode_prompts(encoders, resolved, known, encoded.contexts, callback)
    if not torch.equal(first, before):
        changes.prompts.add(first_block, first)
    for block, features_of_prompt in prompts:
        changes.prompts.add(first_block + block, features_of_prompt)
    images = [image for _, image in portraits]
    later = _encode_images(encoders, request, resolved, images, callback, tiles)
    for (block, _), latents in zip(portraits, later, strict=True):
        changes.portraits.add(first_block + block, Portrait(*latents))
    features = encoded.features
    if features is None:
        features = _encode_used(encoders, request, resolved, _spoken(audio, speakers), callback)
    return Conditioning(
        state.read("first_frame").clone(),
        state.read("motion").clone(),
        state.read("first_prompt").clone(),
        ShiftedFeatures(features, first_block),
        changes,
        state.read("latents").clone(),
        _pose_latents(encoders, pose, request, resolved, tiles, state.pose_pictures()),
        None if speakers is None else speakers.masks.of_block(),
    )


def _encode_images(
    encoders: Encoders,
    request: Request,
    resolved: ResolvedRequest,
    images: Sequence[np.ndarray],
    callback: Callback,
    tiles: Tiles,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Reference and motion latents of portraits, uint8 [H, W, 3] each."""
    fitted = (to_pixels(fit_image(image, resolved.width, resolved.height, request.fit)) for image in images)
    return [encoders.encode_image(pixels, callback, tiles) for pixels in fitted]


EncodeAudio = Callable[[np.ndarray | Rows, int, Callback], KnownFeatures]
"""Encodes samples at 16 kHz for so many video frames."""


def encode_clips(
    encode: EncodeAudio, clips: Sequence[AudioClip], seconds: float, frames: int, callback: Callback = ignore
) -> KnownFeatures:
    """Features of one voice, or of several speakers side by side; the shorter ones are silent at their end.

    Args:
        encode: one of them.
        clips: at any rate.
        seconds: of each that are used, at most.
        frames: video frames.
        callback: called with the progress of all.
    """
    made: list[KnownFeatures] = []
    try:
        for number, clip in enumerate(clips):
            part = _part_of(callback, number, len(clips))
            made.append(encode(mono_16k(clip.limited(seconds)), frames, part))
    except BaseException:
        for features in made:
            features.close()
        raise
    return made[0] if len(made) == 1 else StackedKnownFeatures(made)


def _part_of(callback: Callback, number: int, count: int) -> Callback:
    """A callback for one of several equal parts of a phase."""

    def on_event(event: Event) -> None:
        if event.phase == ENCODING_AUDIO and event.total:
            event = dataclasses.replace(event, done=number * event.total + event.done, total=count * event.total)
        callback(event)

    return callback if count == 1 else on_event


def _spoken(audio: AudioClip, speakers: PlacedSpeakers | None) -> tuple[AudioClip, ...]:
    """What is encoded: the one voice, or the sound of each speaker."""
    return (audio,) if speakers is None else speakers.audio


def _encode_used(
    encoders: Encoders, request: Request, resolved: ResolvedRequest, clips: Sequence[AudioClip], callback: Callback
) -> BlockFeatures:
    """Features of the part of the audio that is used; of long audio they are made when a block is asked for."""
    frames = resolved.blocks * BLOCK_FRAMES
    if not resolved.long_audio:

        def encode(used: np.ndarray | Rows, frames: int, callback: Callback) -> KnownFeatures:
            return encoders.encode_audio(used, frames, request.tail, callback)

        return encode_clips(encode, clips, resolved.seconds, frames, callback)
    callback(share_event(ENCODING_AUDIO, 0.0))
    shared = SharedAudioEncoder(encoders.audio_encoder)
    each = [
        WindowedAudioFeatures(shared.open, mono_16k(clip.limited(resolved.seconds)), frames, request.tail)
        for clip in clips
    ]
    callback(share_event(ENCODING_AUDIO, 1.0))
    return each[0] if len(each) == 1 else StackedFeatures(each)


def _encode_prompts(
    encoders: Encoders,
    resolved: ResolvedRequest,
    context: torch.Tensor | None,
    contexts: Contexts,
    callback: Callback,
) -> tuple[torch.Tensor, Timeline[torch.Tensor]]:
    """Features of the first prompt, and of those that take its place; the text encoder is loaded at most once."""
    texts = [text for _, text in resolved.prompt_changes]
    if context is None:
        texts.insert(0, prompt_to_encode(resolved.prompt))
    found, unknown = dict(contexts), [text for text in dict.fromkeys(texts) if text not in contexts]
    if unknown:
        found.update(zip(unknown, encoders.encode_prompts(unknown, callback), strict=True))
    prompts: Timeline[torch.Tensor] = Timeline()
    for block, text in resolved.prompt_changes:
        prompts.add(block, found[text])
    return found[texts[0]] if context is None else context, prompts
