"""Between ComfyUI's values and the library's. Pure functions; poor but workable input is made to work."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..liveavatar.config import FPS, ModelConfig
from ..liveavatar.continuation import VideoTail
from ..liveavatar.errors import AudioError, ImageError, PoseError, RequestError, SpeakerError, StateError
from ..liveavatar.media.audio import AudioClip
from ..liveavatar.media.pose_video import Pictures, PoseFile, PoseSource, check_pose_size
from ..liveavatar.speakers import OpenedSpeakers
from ..liveavatar.timed_changes import TimedChange

_MOST_WHITE, _LEAST_BLACK = 8.0, -0.5
"""Values beyond these are no overshoot of some filter, but of another range."""
_PROMPT, _TIMELINE = "liveavatar_prompt", "liveavatar_timeline"
"""Where a CONDITIONING keeps the text of its prompt, and what follows it."""


def image_array(image: Any, mask: Any = None) -> np.ndarray:
    """IMAGE float [B, H, W, C] in 0..1 -> uint8 [H, W, 3]: the first picture, over white where it is transparent.

    Args:
        image: C = 1 (grey), 2 (grey and alpha), 3 or 4 (with alpha).
        mask: MASK float [B, h, w] or [h, w], 1 where the picture is transparent, as core Load Image gives it; of any
            size, because that of an opaque picture is small.

    Values a little beyond black and white are clipped.

    Raises:
        ImageError: no picture or mask, another shape, or values that are not 0..1 (0..255, -1..1, NaN).
    """
    if image is None:
        raise ImageError("No picture came over the image input.", "Connect core Load Image.")
    if not isinstance(image, torch.Tensor) or image.ndim != 4 or not image.numel() or not 1 <= image.shape[-1] <= 4:
        shape = list(image.shape) if isinstance(image, torch.Tensor) else type(image).__name__
        raise ImageError(f"The image is {shape}, not [pictures, height, width, 3].", "Connect core Load Image.")
    first = image[0].detach().float().cpu()
    if not torch.isfinite(first).all():
        raise ImageError("The image holds values that are not numbers.", "Check the nodes before this one.")
    _check_range(first, image.dtype)
    colours = 1 if first.shape[-1] < 3 else 3
    rgb = first[..., :colours].expand(-1, -1, 3).clamp(0, 1)
    alpha = first[..., colours:].clamp(0, 1) if first.shape[-1] > colours else torch.ones(*rgb.shape[:2], 1)
    if mask is not None:
        alpha = alpha * (1 - _transparent(mask, (rgb.shape[0], rgb.shape[1])))
    rgb = rgb * alpha + (1 - alpha)
    return rgb.mul(255).round().to(torch.uint8).numpy()


def _check_range(first: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse a picture whose values are not 0..1."""
    low, high = float(first.min()), float(first.max())
    if high > _MOST_WHITE or low < _LEAST_BLACK or not dtype.is_floating_point:
        divide = "Divide it by 255" if high > _MOST_WHITE else "Bring it to 0..1"
        raise ImageError(
            f"The image holds {str(dtype).removeprefix('torch.')} values from {low:.4g} to {high:.4g}, not 0..1.",
            f"{divide}, or connect core Load Image.",
        )


def _transparent(mask: Any, size: tuple[int, int]) -> torch.Tensor:
    """The first mask at the size of the picture, [H, W, 1] in 0..1."""
    first = _first_mask(mask, "mask")
    if tuple(first.shape) != size:
        first = torch.nn.functional.interpolate(first[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    return first.clamp(0, 1)[..., None]


def _first_mask(mask: Any, socket: str) -> torch.Tensor:
    """MASK float [B, H, W] or [H, W] -> the first one, [H, W]."""
    if not isinstance(mask, torch.Tensor) or mask.ndim not in (2, 3) or not mask.numel():
        shape = list(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ImageError(f"The {socket} is {shape}, not [pictures, height, width].", "Connect that of core Load Image.")
    first = (mask if mask.ndim == 2 else mask[0]).detach().float().cpu()
    if not torch.isfinite(first).all():
        raise ImageError(f"The {socket} holds values that are not numbers.", "Check the nodes before this one.")
    return first


def speaker_mask(mask: Any, socket: str) -> np.ndarray:
    """MASK of a speaker, 1 where that one is, -> float32 [H, W] in 0..1.

    Raises:
        ImageError: no mask, another shape, or values that are not numbers.
        SpeakerError: nobody is in it.
    """
    first = _first_mask(mask, socket).clamp(0, 1)
    if first.max() < 0.5:
        raise SpeakerError(
            f"The {socket} is empty: nothing of it is white.",
            "Paint the speaker in the Mask Editor of core Load Image; core Invert Mask turns a mask round.",
        )
    return first.numpy()


def mask_notes(mask: Any) -> tuple[str, ...]:
    """What is to be told of a MASK that `speaker_mask` takes."""
    return (f"the first of {len(mask)} masks is used",) if mask.ndim == 3 and len(mask) > 1 else ()


class PoseImages:
    """An IMAGE batch as a pose video, 25 pictures a second; each is converted when it is read.

    Raises:
        PoseError: no picture, or one that cannot be used.
    """

    def __init__(self, images: torch.Tensor):
        if not images.numel():
            raise PoseError("The pose holds no picture.", "Connect core Load Video, or an IMAGE batch.")
        try:
            check_pose_size(image_array(images))
        except ImageError as error:
            raise PoseError(f"Of the pose: {error.what}", error.nearest) from error
        self._images = images

    @property
    def seconds(self) -> float:
        """How long they last."""
        return len(self._images) / FPS

    def pictures(self) -> Pictures:
        """The pictures, uint8 [H, W, 3]."""
        return (image_array(self._images[i : i + 1]) for i in range(len(self._images)))


def pose_source(pose: Any) -> PoseSource | None:
    """IMAGE batch or VIDEO -> pose video; None where nothing is connected.

    A VIDEO of core is read from its file, and only the part that it was trimmed to.

    Raises:
        PoseError, ImageError: it cannot be read.
    """
    if pose is None or isinstance(pose, torch.Tensor):
        return None if pose is None else PoseImages(pose)
    if (found := video_source(pose)) is None:
        raise PoseError(f"The pose is of type {type(pose).__name__}.", "Connect core Load Video, or an IMAGE batch.")
    return PoseFile(*found)


def video_source(video: Any) -> tuple[str | io.BytesIO, float, float | None] | None:
    """VIDEO of core -> its file, by name or in memory, and the part that it was trimmed to: start and length in
    seconds, None for all of the rest. None: it is no VIDEO."""
    if not callable(getattr(video, "get_stream_source", None)):
        return None
    start, length = video.get_active_trim_window() if hasattr(video, "get_active_trim_window") else (0.0, 0.0)
    return _stream_source(video), start, length or None


class _NamedMemory(io.BytesIO):
    """A file in memory whose name tells the format to be written."""

    name = "video.mp4"


def _stream_source(video: Any) -> str | io.BytesIO:
    try:
        return video.get_stream_source()
    except ValueError:  # ComfyUI 0.3 does not say in which format a video goes into memory
        video.save_to(written := _NamedMemory())
        written.seek(0)
        return written


def video_tail(video: Any, folder: Path) -> VideoTail:
    """VIDEO -> its last frames, from which another one goes on approximately.

    Args:
        video: of core; one that is no file, or a part of one, is written to a file first.
        folder: for that file, which does not stay.

    Raises:
        StateError: it cannot be read.
    """
    if (found := video_source(video)) is None:
        raise StateError(f"The video is of type {type(video).__name__}.", "Connect core Load Video.")
    source, start, length = found
    if isinstance(source, str) and not start and length is None:
        return VideoTail(source)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        file = Path(place) / "the connected video.mp4"
        video.save_to(str(file))
        return VideoTail(file)


def image_notes(image: Any) -> tuple[str, ...]:
    """What is to be told of an IMAGE that `image_array` takes."""
    return (f"the first of {len(image)} connected pictures is used",) if len(image) > 1 else ()


def audio_clip(audio: Any) -> AudioClip:
    """AUDIO {"waveform": [1, C, T], "sample_rate"} -> the sound.

    The waveform is a tensor or an array: floats with full scale -1..1, or integers with the full scale of their type.

    Raises:
        AudioError: no sound, several, no rate, another shape, or samples that are not numbers.
    """
    waveform, rate = _waveform(audio)
    if len(waveform) > 1:
        raise AudioError(
            f"The audio holds {len(waveform)} sounds, and a video has one.",
            "Put Audio Batch to List (Live Avatar) before this node: then a video is made for each of them.",
        )
    return AudioClip.from_array(waveform[0].T, rate, "The connected audio")


def spoken_by(audio: Any, seconds: float | None = None) -> AudioClip | OpenedSpeakers:
    """AUDIO, or what Speakers gives -> one voice or several speakers, or the first seconds of them.

    Raises:
        AudioError: as `audio_clip`.
    """
    spoken = audio if isinstance(audio, AudioClip | OpenedSpeakers) else audio_clip(audio)
    return spoken if seconds is None else spoken.limited(seconds)


def split_audio(audio: Any) -> list[dict[str, Any]]:
    """AUDIO of a batch -> one AUDIO for each of its sounds, with what else it carries.

    Raises:
        AudioError: as `audio_clip`.
    """
    _waveform(audio)
    return [{**audio, "waveform": audio["waveform"][i : i + 1]} for i in range(len(audio["waveform"]))]


def _waveform(audio: Any) -> tuple[np.ndarray, Any]:
    """The samples [B >= 1, C >= 1, T] of an AUDIO, and its rate."""
    if audio is None:
        raise AudioError(
            "No sound came over the audio input: a video without sound has none.",
            "Connect core Load Audio, or a video with sound.",
        )
    if not isinstance(audio, Mapping) or "waveform" not in audio:
        raise AudioError(f"The audio is {type(audio).__name__}, not sound.", "Connect core Load Audio.")
    if (rate := audio.get("sample_rate")) is None:
        raise AudioError("The audio has no sample_rate.", "Connect core Load Audio, or set it where the audio is made.")
    waveform = audio["waveform"]
    if isinstance(waveform, torch.Tensor):
        waveform = waveform.detach().cpu()
        waveform = (waveform.float() if waveform.is_floating_point() else waveform).numpy()
    if not isinstance(waveform, np.ndarray):
        raise AudioError(
            f"The audio's waveform is {type(waveform).__name__}, not a tensor.", "Connect core Load Audio."
        )
    if waveform.ndim != 3 or not waveform.shape[0] or not waveform.shape[1]:
        raise AudioError(f"The audio is {list(waveform.shape)}, not [1, channels, samples].", "Connect Load Audio.")
    return waveform, rate.item() if isinstance(rate, torch.Tensor) and rate.numel() == 1 else rate


def prompt_embedding(positive: Any, config: ModelConfig) -> torch.Tensor:
    """CONDITIONING [[tensor [1, n, text_dim], {}], ...] -> the first one, [n <= text_len, text_dim] float32.

    Core pads with rows of zeros, as this library does itself.

    Raises:
        RequestError: no conditioning; whether its width fits is for the pipeline to say.
    """
    try:
        rows = positive[0][0]
        return rows[0, : config.text_len].detach().float().cpu()
    except (TypeError, IndexError, KeyError) as error:
        raise RequestError(
            f"The conditioning is {type(positive).__name__} without any prompt.",
            "Connect Text Encode (Live Avatar), or core CLIP Text Encode with a CLIP of type wan.",
        ) from error


def prompt_notes(positive: Any, config: ModelConfig) -> tuple[str, ...]:
    """What is to be told of a CONDITIONING that `prompt_embedding` takes."""
    notes = []
    if len(positive) > 1:
        notes.append(f"the first of {len(positive)} prompts in the conditioning is used")
    beyond = positive[0][0][0, config.text_len :]
    if rows := int(beyond.any(dim=-1).sum()):
        notes.append(
            f"the encoded prompt has {config.text_len + rows} tokens and the model reads {config.text_len}: the "
            "rest has no effect"
        )
    return tuple(notes)


def conditioning_of(
    prompt: str, contexts: Mapping[str, torch.Tensor], timeline: Sequence[TimedChange] = ()
) -> list[list[Any]]:
    """A prompt and those that follow -> CONDITIONING that `prompt_of` and `timeline_of` find them in.

    Core's nodes copy what stands beside an embedding, also where they change it: so the prompt stands there together
    with the embedding that it was encoded to.

    Args:
        prompt: the first one.
        contexts: embeddings of all of them [n, text_dim], by their text.
        timeline: of those that follow.
    """
    embedding = contexts[prompt][None]
    beside: dict[str, Any] = {_PROMPT: (prompt, embedding)}
    if timeline:
        beside[_TIMELINE] = (tuple(timeline), {text: contexts[text] for text in prompts_of(timeline)})
    return [[embedding, beside]]


def prompts_of(timeline: Sequence[TimedChange]) -> list[str]:
    """The prompts of a timeline."""
    return [change.prompt for change in timeline if change.prompt is not None]


def timeline_of(positive: Any) -> tuple[tuple[TimedChange, ...], Mapping[str, torch.Tensor]]:
    """The prompts that follow the first one of a CONDITIONING, and their embeddings; nothing where there are none.

    Raises:
        RequestError: its embedding was changed since, and those of the prompts that follow were not.
    """
    beside = positive[0][1] if len(positive[0]) > 1 else {}
    if _TIMELINE not in beside:
        return (), {}
    if prompt_of(positive) is None:
        raise RequestError(
            "The conditioning was changed behind Text Encode, but the prompts of its timeline were not.",
            "Connect Text Encode (Live Avatar) itself, or leave its timeline empty.",
        )
    timeline: tuple[tuple[TimedChange, ...], Mapping[str, torch.Tensor]] = beside[_TIMELINE]
    return timeline


def prompt_of(positive: Any) -> str | None:
    """The text of the first prompt of a CONDITIONING; None where it is not known.

    It is not where core encoded it, nor where the embedding has been changed since it was encoded.
    """
    embedding, *beside = positive[0]
    prompt, encoded = beside[0].get(_PROMPT, (None, None)) if beside else (None, None)
    if encoded is None or encoded.shape != embedding.shape:
        return None
    return prompt if torch.equal(encoded.float().cpu(), embedding.float().cpu()) else None


def audio_states(output: Any) -> Sequence[torch.Tensor]:
    """AUDIO_ENCODER_OUTPUT -> hidden states [n, channels], one per layer.

    Raises:
        AudioError: an output without the hidden states of all layers.
    """
    layers = output.get("encoded_audio_all_layers") if isinstance(output, Mapping) else None
    if not layers:
        raise AudioError(
            "The audio encoder output has no hidden states of all layers.",
            "Use core Audio Encoder Encode with a wav2vec2 encoder.",
        )
    return [layer[0] for layer in layers]


class CoreAudioEncoder:
    """Core's AUDIO_ENCODER as an audio encoder. Samples come normalised, so its own normalisation is left out.

    Raises:
        AudioError: not a wav2vec2 model.
    """

    def __init__(self, audio_encoder: Any):
        self._model: Any = getattr(audio_encoder, "model", None)
        self._encoder = audio_encoder
        if not all(hasattr(self._model, part) for part in ("feature_extractor", "feature_projection", "encoder")):
            raise AudioError("The audio encoder is no wav2vec2 model.", "Load wav2vec2_large_english with core's node.")

    @property
    def layers(self) -> int:
        """Hidden states, the input of the first layer included."""
        return len(self._model.encoder.layers) + 1

    @property
    def channels(self) -> int:
        """Width of a hidden state."""
        return int(self._model.encoder.layer_norm.weight.shape[0])

    def states(self, samples: np.ndarray, rows: slice = slice(None)) -> list[torch.Tensor]:
        """Normalised 16 kHz samples [n] -> these rows of the hidden states [features, channels]."""
        from .patcher import load_core_model

        load_core_model(self._encoder.patcher)
        values = torch.from_numpy(np.ascontiguousarray(samples))[None].to(self._encoder.load_device)
        features = self._model.feature_projection(self._model.feature_extractor(values))
        return [state[0][rows].float() for state in self._model.encoder(features)[1]]


def core_audio_encoder(audio_encoder: Any) -> CoreAudioEncoder:
    """See `CoreAudioEncoder`."""
    return CoreAudioEncoder(audio_encoder)
