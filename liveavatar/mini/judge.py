"""Videos to judge the miniature by: made by the real engine, for people, voices and languages it never saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from ..codec import ExecConfig, LocalEncoders
from ..components import Components, FolderComponents, for_speakers
from ..conditioning import encode_conditioning
from ..config import BLOCK_FRAMES
from ..engine.local import LocalEngine
from ..media.audio import AudioClip
from ..media.image import fit_image, to_pixels
from ..model.transformer import CausalS2VTransformer
from ..planner import make_plan
from ..request import Request, ResolvedRequest, resolve
from ..session import Session, VideoTask, cpu_threads
from ..speakers import OpenedSpeakers, PlacedSpeakers, Speaker, open_audio
from ..storage import KVDtype, StorageConfig, WeightFormat
from ..streams import to_rgb24
from ..vae.decoding import decode_block, open_decode
from ..vae.wan import encode
from ..weights.folder import ModelFiles

FAULTS = ("", "no LoRA", "no sink", "other sound")
"""What may be done wrong on purpose; the figures must show it."""


@dataclasses.dataclass(frozen=True)
class VideoRequest:
    """One video to make.

    Attributes:
        picture: reference, uint8 [H, W, 3].
        wave: sound, float32 [n] at 16 kHz.
        prompt: what is asked.
        seed: of the run.
        fault: one of `FAULTS`.
        other_wave: heard instead, where the fault is "other sound"; as long as `wave`.
        further: sounds of further speakers, float32 [n] each.
        masks: where each speaker is, bool [speakers, H, W]; None where there is one.
    """

    picture: np.ndarray
    wave: np.ndarray
    prompt: str
    seed: int = 420
    fault: str = ""
    other_wave: np.ndarray | None = None
    further: tuple[np.ndarray, ...] = ()
    masks: np.ndarray | None = None


class Maker(Protocol):
    """Who makes videos to judge."""

    def frames(self, take: VideoRequest) -> Iterator[np.ndarray]:
        """The video, uint8 [n, H, W, 3] block by block."""

    def rebuilt(self, picture: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """What a perfect network would show: the frames as the VAE alone renders them, whole blocks only."""


class ExamEngine:
    """Makes takes with one model, by the real engine.

    Args:
        components: the miniature.
        threads: CPU threads per task.
        weights: how the network keeps its large matrices.
        kv_dtype: how it keeps the keys and values of earlier blocks.
    """

    def __init__(
        self,
        components: FolderComponents,
        threads: int = 2,
        weights: WeightFormat = "plain",
        kv_dtype: KVDtype = "plain",
    ):
        self.components, self.threads, self._storage = components, threads, StorageConfig(kv_dtype=kv_dtype)
        self._with_lora = InFormat(components.files, weights)
        self._without_lora = WithoutLoRA(components.files, weights)
        self.encoders = LocalEncoders(components, ExecConfig("cpu", "float32", threads))

    def frames(self, take: VideoRequest) -> Iterator[np.ndarray]:
        """The video, uint8 [n, H, W, 3] block by block."""
        wave = take.other_wave if take.fault == "other sound" and take.other_wave is not None else take.wave
        sound = AudioClip.from_array(wave, 16_000)
        height, width = take.picture.shape[:2]
        request = Request(size=f"{width}x{height}", prompt=take.prompt, seed=take.seed)
        effective = resolve(request, (width, height), len(sound.samples), sound.rate)
        speakers = self._speakers(take, effective)
        count = 1 if speakers is None else len(speakers.audio)
        effective = dataclasses.replace(effective, speaker_count=count)
        config = self.components.config
        plan = make_plan(effective, config, model="mini", threads=self.threads, storage=self._storage)
        material = encode_conditioning(self.encoders, request, effective, take.picture, sound, speakers=speakers)
        if take.fault == "no sink":
            material = dataclasses.replace(material, reference=material.reference * 0, motion=material.motion * 0)
        components: Components = self._without_lora if take.fault == "no LoRA" else self._with_lora
        components = for_speakers(components, count)
        job = VideoTask(effective, material, request.sink_distance)
        with Session(LocalEngine(components, plan), job, self.encoders.decoder) as session:
            for pixels in session.frames:
                yield to_rgb24(pixels)

    def _speakers(self, take: VideoRequest, resolved: ResolvedRequest) -> PlacedSpeakers | None:
        """Where each of several speakers is heard; None where there is one."""
        if take.masks is None:
            return None
        waves = (take.wave, *take.further)
        given = [Speaker(AudioClip.from_array(w, 16_000), mask) for w, mask in zip(waves, take.masks, strict=True)]
        opened = open_audio(given)
        assert isinstance(opened, OpenedSpeakers)
        size = resolved.width, resolved.height
        return opened.placed(size, *size, "cover")

    def rebuilt(self, picture: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """What the VAE alone makes of a video that begins after the picture stood still: uint8 like `frames`."""
        still = to_pixels(fit_image(picture, frames.shape[2], frames.shape[1]))
        whole = len(frames) // BLOCK_FRAMES * BLOCK_FRAMES
        video = torch.cat([to_pixels(f) for f in frames[:whole]], 2)
        with torch.inference_mode(), cpu_threads(self.threads):
            vae = self.encoders.vae
            latents = encode(vae, torch.cat((still.expand(-1, -1, 25, -1, -1), video), 2))[0]
            state = open_decode(vae, latents[None])
            return to_rgb24(decode_block(vae, state, latents[:, 7:]))


class InFormat(FolderComponents):
    """A model that keeps its large matrices in one format, whichever is asked for."""

    def __init__(self, files: ModelFiles, weights: WeightFormat):
        super().__init__(files)
        self.weights: WeightFormat = weights

    def transformer(self, model_slice: Any, device: Any, dtype: Any, weights: Any = None) -> CausalS2VTransformer:
        return super().transformer(model_slice, device, dtype, self.weights)

    def with_files(self, files: ModelFiles) -> InFormat:
        """The same with other files."""
        return InFormat(files, self.weights)


class WithoutLoRA(InFormat):
    """The mistake of forgetting the LoRA."""

    def __init__(self, files: ModelFiles, weights: WeightFormat):
        super().__init__(dataclasses.replace(files, lora=None), weights)
