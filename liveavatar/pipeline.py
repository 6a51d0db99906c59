"""The front door: `LiveAvatarPipeline`, one model on one backend.

What a graph of nodes does in steps (encode the prompt, encode the audio, sample, decode) happens here step by step, and
every result can be kept and used again.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch

from .codec import Encoders, ExecConfig
from .components import (
    Components,
    files_of,
    for_speakers,
    network_fingerprint,
    notes_of,
    open_components,
    packed_of,
    tiny_config,
)
from .conditioning import NO_CONTEXTS, Contexts, encode_clips
from .conditioning_cache import CachedEncoders, ConditioningCache
from .config import BLOCK_FRAMES, ModelConfig
from .continuation import ContinueFrom, Start, VideoTail, speaker_notes, start_of, with_state
from .encoders.audio import AudioEncoder, encode_audio, gather_frame_features
from .encoders.block_features import KnownFeatures
from .encoders.text import prompt_notes
from .engine.backend import Backend, LocalBackend
from .errors import AudioError, ImageError, ModelError, RequestError
from .events import Callback, ignore
from .hardware_cache import CachedHardware, DetectHardware, detect_hardware
from .inputs import (
    GivenLoRA,
    GivenPose,
    devices_of,
    extra_lora_of,
    path_given,
    pose_files,
    read_inputs,
    read_portraits,
    request_with,
    used_audio,
    with_pose,
)
from .media.audio import AudioClip
from .media.image import check_image
from .media.pose_video import PoseSource, open_pose
from .placement import Placement
from .planner import Hardware, Plan
from .recorder import VideoSpec
from .request import (
    Request,
    ResolvedRequest,
    check_request,
    is_long_audio,
    prompt_to_encode,
    resolve,
    resolve_open,
)
from .speakers import GivenAudio, GivenSpeakers, OpenedSpeakers, PlacedSpeakers, open_audio, spoken_notes
from .spool import Rows
from .video_job import AudioInput, VideoJob
from .video_state import VideoState


class LiveAvatarPipeline:
    """One model on one backend.

    Args:
        components: the model.
        backend: lends the engines.
        placement: which devices, and how work is cut over them; None: the backend's.
        make_room: called with the plan before anything is loaded for it; frees memory that others hold.
        hardware: looks at the devices that plans are chosen for, where they are chosen.
    """

    def __init__(
        self,
        components: Components,
        backend: Backend,
        placement: Placement | None = None,
        make_room: Callable[[Plan], None] = lambda plan: None,
        hardware: DetectHardware = detect_hardware,
    ):
        self.components, self.backend, self.make_room = components, backend, make_room
        self.placement = dataclasses.replace(placement or backend.placement, processes=backend.placement.processes)
        self._hardware = CachedHardware(hardware)
        self._conditioning = ConditioningCache()
        self._seconds_per_block: dict[Hashable, float] = {}
        """By what decides how much a block costs: what the latest complete video needed."""

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = "mini",
        *,
        devices: str | Sequence[str] = (),
        stages: str = "auto",
        dtype: str | None = None,
        threads: int | None = None,
        placement: Placement | None = None,
        backend: Backend | None = None,
        extra_loras: Sequence[GivenLoRA] = (),
        **parts: str | os.PathLike[str] | None,
    ) -> LiveAvatarPipeline:
        """A pipeline of a model that is on this machine; its files are found and checked, no weights are loaded.

        Args:
            model: "mini", "untrained", a model folder, or one safetensors file with the other parts beside it.
            devices, stages, dtype, threads: as of `Placement`; all may be left to the library. Devices may also be a
                text: "cuda:0,cuda:1", or "all".
            placement: everything that can be wished of the place, instead of these.
            backend: who runs the stages, such as `liveavatar.distributed.RayBackend`; by default this process. Where
                nothing else is said of the place, it is the backend's.
            extra_loras: files of further LoRAs, such as one of a style; each alone, or with its strength.
            parts: files that are not beside the model: lora ("none" for a network that needs none), vae, text_encoder,
                tokenizer, audio_encoder.

        Raises:
            ModelError: no such model, or an incomplete one, with the command that fetches what is missing.
            PlanError: a device that is not here.
        """
        named = Placement(devices_of(devices), stages, dtype, threads)
        placement = placement or (None if backend and named == Placement() else named)
        place = path_given(model, "The model", ModelError)
        given = {part: path_given(file, f"The {part}", ModelError) for part, file in parts.items() if file is not None}
        loras = [extra_loras] if isinstance(extra_loras, str | os.PathLike) else extra_loras
        components = open_components(place, extra_loras=[extra_lora_of(lora) for lora in loras], **given)
        return cls(components, backend or LocalBackend(placement), placement)

    def __call__(
        self,
        image: str | os.PathLike[str] | np.ndarray | None,
        audio: GivenAudio,
        prompt: str | None = None,
        *,
        request: Request | None = None,
        continue_from: ContinueFrom | None = None,
        pose: GivenPose | None = None,
        **options: Any,
    ) -> VideoJob:
        """A video that waits to be watched or saved: inputs are read and the work is planned, nothing is loaded.

        Args:
            image: a file, or uint8 [H, W, 3]. A video that goes on from a state needs none.
            audio: a file or an `AudioClip`; or several speakers in one picture, each with a mask (see `Speaker`).
            prompt: what the video shows; None: that of the request.
            request: what to make; by default `Request()`.
            continue_from: what another video has left: the file of a state, or `VideoJob.left`; or an MP4, from whose
                last frames it goes on approximately.
            pose: a video of a body whose movements are followed: a file, or pictures uint8 [n, H, W, 3], 25 a second.
            options: fields of `Request` in place of the request's: size, steps, seed, seconds...

        Raises:
            LiveAvatarError: the first thing found wrong, with the nearest that works.
        """
        if prompt is not None:
            options["prompt"] = prompt
        request = request_with(Request() if request is None else request, options)
        start = start_of(continue_from)
        return VideoJob(self, self.describe(image, audio, request, start, pose), start=start)

    def describe(
        self,
        image: str | os.PathLike[str] | np.ndarray | None,
        audio: GivenAudio,
        request: Request,
        start: Start | None = None,
        pose: GivenPose | None = None,
    ) -> VideoSpec:
        """Read the inputs, and say what a request would really make of them (`resolved`) and where (`plan`).

        Args:
            image, audio, pose: as in `__call__`.
            request: what to make.
            start: what it goes on from.

        Raises:
            LiveAvatarError: as `__call__`.
        """
        check_request(request)
        prompt_to_encode(request.prompt)
        notes: list[str] = []
        if image is None and start is None:
            raise ImageError("No portrait was given.", "Give a picture, or a video to go on from.")
        if image is None and isinstance(start, VideoTail):
            image = start.first
        portraits = read_portraits(request.timeline, notes)
        pixels, spoken, inputs = read_inputs(image, audio, request.seconds, notes)
        size = None if pixels is None else (pixels.shape[1], pixels.shape[0])
        source = open_pose(pose)
        notes += spoken_notes(spoken)
        resolved, plan, clip, speakers = self._placed(request, size, spoken, notes, start, source)
        model = for_speakers(self.components, resolved.speaker_count)
        inputs += (*portraits, *files_of(model), *pose_files(source))
        inputs += (start.path,) if isinstance(start, VideoState | VideoTail) else ()
        changed = tuple((block, portraits[file]) for block, file in resolved.portrait_changes)
        return VideoSpec(model, request, resolved, plan, pixels, clip, inputs, changed, source, speakers)

    @property
    def config(self) -> ModelConfig:
        """Dimensions of the network."""
        return self.components.config

    @property
    def loaded_bytes(self) -> int:
        """Bytes of weights that are loaded now."""
        return sum(self.backend.bytes_by_device().values())

    def plan(
        self,
        request: Request,
        image_size: tuple[int, int],
        samples: int,
        rate: int,
        notes: Sequence[str] = (),
        *,
        pose: PoseSource | None = None,
        speaker_count: int = 1,
    ) -> tuple[ResolvedRequest, Plan]:
        """What a request would really make; loads nothing.

        Args:
            image_size: width and height.
            samples, rate: length of the audio.
            notes: what is to be told of the inputs, a sentence each.
            pose: the pose video that is followed.
            speaker_count: how many speak.

        Raises:
            RequestError: the first thing found wrong, with the nearest that works.
        """
        notes = (*notes, *self._checked(request))
        resolved = resolve(request, image_size, samples, rate, notes)
        resolved = dataclasses.replace(resolved, speaker_count=speaker_count)
        return self._planned(resolved if pose is None else with_pose(resolved, request, pose))

    def _placed(
        self,
        request: Request,
        image_size: tuple[int, int] | None,
        spoken: AudioClip | OpenedSpeakers,
        notes: Sequence[str],
        start: Start | None,
        pose: PoseSource | None = None,
    ) -> tuple[ResolvedRequest, Plan, AudioClip, PlacedSpeakers | None]:
        """As `_plan`, of one voice or of several speakers; with the audio of the file, and where speakers are.

        Without an image their masks lie over the frame of the video before.
        """
        audio, several = (spoken, None) if isinstance(spoken, AudioClip) else (spoken.audio, spoken)
        if several is not None:
            several.check_lengths(request)
        count = 1 if several is None else len(several)
        resolved, plan = self._plan(request, image_size, audio, notes, start, pose, count)
        frame = resolved.width, resolved.height
        speakers = None if several is None else several.placed(image_size or frame, *frame, request.fit)
        placed = () if speakers is None else speakers.masks.notes
        notes = (*resolved.notes, *placed, *speaker_notes(start, speakers))
        return dataclasses.replace(resolved, notes=notes), plan, audio, speakers

    def _plan(
        self,
        request: Request,
        image_size: tuple[int, int] | None,
        audio: AudioClip,
        notes: Sequence[str],
        start: Start | None,
        pose: PoseSource | None = None,
        speaker_count: int = 1,
    ) -> tuple[ResolvedRequest, Plan]:
        """As `plan`, also of a video that goes on from what another one left; its image may be left out."""
        asked = request
        if not isinstance(start, VideoTail | None):
            check_request(request)
            start.check(self.config, self.network, self.components.name)
            request = start.info.request_for(request, image_size)
            image_size = start.info.width, start.info.height
        assert image_size is not None
        length = len(audio.samples), audio.rate
        resolved, plan = self.plan(request, image_size, *length, notes, pose=pose, speaker_count=speaker_count)
        return with_state(resolved, plan, self.config, asked, start), plan

    @functools.cached_property
    def network(self) -> str:
        """What tells the network from another one; see `network_fingerprint`."""
        return network_fingerprint(self.components)

    def plan_open(
        self, request: Request, image_size: tuple[int, int], speaker_count: int = 1
    ) -> tuple[ResolvedRequest, Plan]:
        """What a request would really make where nobody knows how long the sound will be; as `plan`."""
        resolved = resolve_open(request, image_size, self._checked(request))
        return self._planned(dataclasses.replace(resolved, speaker_count=speaker_count))

    def _checked(self, request: Request) -> tuple[str, ...]:
        """What is to be told of the prompts of a request that can be made."""
        check_request(request)
        prompts = dict.fromkeys([request.prompt, *(change.prompt for change in request.timeline)])
        notes = (prompt_notes(self.components.tokenizer, prompt, self.config.text_len) for prompt in prompts)
        return tuple(note for found in notes for note in found)

    def _planned(self, resolved: ResolvedRequest) -> tuple[ResolvedRequest, Plan]:
        model = for_speakers(self.components, resolved.speaker_count)
        name, loaded = model.name, self.backend.bytes_by_device
        tiny, packed = tiny_config(model), packed_of(model)
        hardware = lambda: self._hardware.hardware(loaded())  # noqa: E731
        planned = self.placement.plan(resolved, self.config, name, hardware, tiny, packed)
        return planned[0], dataclasses.replace(planned[1], notes=(*planned[1].notes, *notes_of(model)))

    def planned_for(self, hardware: Hardware) -> LiveAvatarPipeline:
        """A pipeline of this model whose plans are for other cards; it cannot work there.

        Raises:
            PlanError: the placement names stages or storage, which are chosen for cards.
        """
        placement = dataclasses.replace(self.placement, devices=()).for_cards(hardware)
        return LiveAvatarPipeline(self.components, self.backend, placement, hardware=lambda held: hardware)

    def expected_seconds(self, resolved: ResolvedRequest) -> float | None:
        """Seconds the video will take, from the latest one whose blocks cost as much; None where there was none."""
        pace = self._seconds_per_block.get(_cost_of_block(resolved))
        return None if pace is None else pace * resolved.blocks

    def remember_seconds(self, resolved: ResolvedRequest, seconds: float) -> None:
        """Keep what a complete video took, for `expected_seconds` of the next ones."""
        self._seconds_per_block[_cost_of_block(resolved)] = seconds / resolved.blocks

    def foreseen_seconds(self, resolved: ResolvedRequest, plan: Plan) -> float | None:
        """The same, else what the plan's forecast says; None where there is neither."""
        expected = self.expected_seconds(resolved)
        if expected is None and plan.forecast is not None:
            return plan.forecast.seconds_per_block * resolved.blocks
        return expected

    def encode_prompt(self, prompt: str, callback: Callback = ignore) -> torch.Tensor:
        """Prompt features [n, text_dim]; the text encoder comes and goes. A known prompt is not encoded again."""
        return self.encode_prompts([prompt], callback)[0]

    def encode_prompts(self, prompts: Sequence[str], callback: Callback = ignore) -> list[torch.Tensor]:
        """The features of several prompts, with the text encoder loaded once."""
        return self.encoders().encode_prompts(prompts, callback)

    def encode_audio(
        self,
        audio: AudioClip | GivenSpeakers | OpenedSpeakers,
        seconds: float | None = None,
        callback: Callback = ignore,
        audio_encoder: AudioEncoder | None = None,
    ) -> AudioInput:
        """Encode (the first seconds of) audio; the audio encoder comes and goes. Long audio waits for its video.

        Args:
            audio: at any rate; or several speakers, whose masks are only read (see `prepare`).
            seconds: of it that are used; None: all.
            callback: called with the progress; what it raises ends the work.
            audio_encoder: encodes instead of the model's own.

        Raises:
            AudioError: too short; the audio encoder is another one than the network was trained with.
            SpeakerError: as `open_audio`.
        """
        spoken = audio if isinstance(audio, AudioClip) else open_audio(audio, seconds)
        speakers = None if isinstance(spoken, AudioClip) else spoken
        if speakers is not None:
            speakers.check_lengths(Request(seconds=seconds))
        used, blocks = used_audio(spoken if isinstance(spoken, AudioClip) else spoken.audio, seconds)
        notes = spoken_notes(used if speakers is None else speakers)
        if audio_encoder is None and is_long_audio(len(used.samples), used.rate):
            return AudioInput(used, None, notes, speakers)
        if audio_encoder is not None:
            self._check_audio_encoder(audio_encoder.layers, audio_encoder.channels)

        def encode(samples: np.ndarray | Rows, frames: int, callback: Callback) -> KnownFeatures:
            if audio_encoder is None:
                return self.encoders().encode_audio(samples, frames, "silence", callback)
            return encode_audio(audio_encoder, samples, frames, callback=callback)

        clips = (used,) if speakers is None else speakers.each
        features = encode_clips(encode, clips, used.seconds, blocks * BLOCK_FRAMES, callback)
        return AudioInput(used, features, notes, speakers)

    def from_audio_states(
        self, audio: AudioClip, states: Sequence[torch.Tensor], seconds: float | None = None
    ) -> AudioInput:
        """A voice that somebody else encoded: hidden states [n, channels] at 50 a second, one per layer.

        Raises:
            AudioError: as `encode_audio`, and as `gather_frame_features`.
        """
        used, blocks = used_audio(audio, seconds)
        self._check_audio_encoder(len(states), states[0].shape[-1] if len(states) else 0)
        return AudioInput(used, gather_frame_features(states, blocks * BLOCK_FRAMES), used.notes)

    def prepare(
        self,
        request: Request,
        image: np.ndarray,
        audio: AudioInput,
        context: torch.Tensor,
        notes: Sequence[str] = (),
        continue_from: ContinueFrom | None = None,
        contexts: Contexts = NO_CONTEXTS,
        pose: GivenPose | None = None,
    ) -> VideoJob:
        """A video that waits to be watched; nothing is loaded.

        Args:
            request: its prompt is what `context` was encoded from (None: not known); its seconds are not looked at.
            image: uint8 [H, W, 3].
            audio: from `encode_audio` or `from_audio_states`.
            context: from `encode_prompt` [n, text_dim].
            notes: what is to be told of image and prompt, a sentence each.
            continue_from: as in `__call__`; the image only says what size is meant then.
            contexts: of prompts of the request's timeline, by their text; the others are encoded when the video is
                made.
            pose: as in `__call__`.

        Raises:
            RequestError: the first thing found wrong, with the nearest that works.
        """
        check_image(image)
        for found in (context, *contexts.values()):
            self._check_context(found)
        size, start, source = (image.shape[1], image.shape[0]), start_of(continue_from), open_pose(pose)
        spoken, told = audio.speakers or audio.audio, (*audio.notes, *notes)
        resolved, plan, clip, speakers = self._placed(request, size, spoken, told, start, source)
        if (features := audio.features) is not None:
            if features.blocks < resolved.blocks:
                raise AudioError(
                    f"The voice was listened to for {features.blocks} blocks; the video has {resolved.blocks}.",
                    "Encode all of the audio that the video uses.",
                )
            self._check_audio_encoder(features.layers, features.channels)
        model = for_speakers(self.components, resolved.speaker_count)
        files = (*files_of(model), *pose_files(source))
        spec = VideoSpec(model, request, resolved, plan, image, clip, files, (), source, speakers)
        return VideoJob(self, spec, audio, context, contexts, start)

    def encoders(self, plan: Plan | None = None) -> Encoders:
        """Who encodes and decodes; where there is no plan yet, at the place that plans will have."""
        p = self.placement
        exec_config = ExecConfig(p.last_device, p.resolved_dtype, p.resolved_threads, p.cap)
        if plan is not None:
            exec_config = ExecConfig(
                plan.vae_device, plan.dtype, plan.threads, plan.cap, plan.compiled, plan.compile_optional
            )
        return CachedEncoders(self.backend.codec(self.components, exec_config), exec_config, self._conditioning)

    def release_weights(self) -> None:
        """Give back the memory of all weights; the next video loads again, but encodes nothing that it knows."""
        self.backend.release()
        self._hardware.clear()

    def release(self) -> None:
        """Give back all memory; the next video loads and encodes again."""
        self.release_weights()
        self._conditioning.clear()

    def _check_context(self, context: torch.Tensor) -> None:
        if context.ndim != 2 or context.shape[1] != self.config.text_dim:
            raise RequestError(
                f"The prompt was encoded as {list(context.shape)}; this model reads [n, {self.config.text_dim}].",
                "Encode it with this model's own text encoder, or with the UMT5-XXL it was trained with.",
            )

    def _check_audio_encoder(self, layers: int, channels: int) -> None:
        if (layers, channels) != (self.config.audio_layers, self.config.audio_dim):
            raise AudioError(
                f"The voice was encoded as {layers} hidden states of {channels} numbers; this model hears "
                f"{self.config.audio_layers} of {self.config.audio_dim}.",
                "Use the model's own audio encoder, or the wav2vec2 it was trained with.",
            )


def _cost_of_block(resolved: ResolvedRequest) -> Hashable:
    """What decides how much a block costs, with one model at one place."""
    r = resolved
    return r.frame_tokens, r.steps, r.clip_blocks, r.speaker_count, r.pose
