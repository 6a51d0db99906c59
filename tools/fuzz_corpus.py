"""Small whole files for `tools.fuzz` to damage, made here in code: audio, images, a video, tensors."""

from __future__ import annotations

import functools
import io
import tempfile
from pathlib import Path
from typing import Any

AUDIO = ("wav", "mp3", "ogg", "m4a", "flac")
IMAGES = ("png", "jpg", "tif", "webp", "gif")
TENSORS = (
    "liveavatar.safetensors",
    "text_encoder/model.safetensors",
    "wav2vec2-large-xlsr-53-english/model.safetensors",
)
"""Files of the miniature whose headers are changed."""
_CODECS = {"wav": "pcm_s16le", "mp3": "mp3", "ogg": "libopus", "m4a": "aac", "flac": "flac"}
_CONTAINERS = {"m4a": "mp4"}
_RATE = 16_000


@functools.cache
def audio_file(ending: str) -> bytes:
    """Two seconds of a hum."""
    import av
    import numpy as np

    file = io.BytesIO()
    with av.open(file, "w", format=_CONTAINERS.get(ending, ending)) as container:
        stream: Any = container.add_stream(_CODECS[ending], rate=_RATE)
        stream.layout = "mono"
        hum = np.sin(np.arange(2 * _RATE) * 0.07)[None]
        frame: Any = av.AudioFrame.from_ndarray((hum * 9000).astype("int16"), format="s16", layout="mono")
        frame.sample_rate = _RATE
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=_RATE)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return file.getvalue()


@functools.cache
def image_files(ending: str) -> list[bytes]:
    """A drawn picture in the modes and compressions of a format."""
    kinds: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "png": [("RGB", {}), ("P", {}), ("RGBA", {}), ("I;16", {}), ("1", {})],
        "jpg": [("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True})],
        "tif": [
            ("RGB", {}),
            ("RGB", {"compression": "tiff_lzw"}),
            ("L", {"compression": "tiff_deflate"}),
            ("CMYK", {}),
        ],
        "webp": [("RGB", {}), ("RGBA", {"lossless": True})],
        "gif": [("P", {})],
    }
    return [_image(ending, mode, options) for mode, options in kinds[ending]]


def _image(ending: str, mode: str, options: dict[str, Any]) -> bytes:
    import numpy as np
    from PIL import Image

    rows, columns = np.mgrid[0:40, 0:48]
    image = Image.fromarray(np.stack([rows * 6, columns * 5, rows + columns], 2).astype("uint8"))
    if mode == "I;16":
        image = Image.fromarray((rows * 1500).astype("uint16"))
    elif mode != "RGB":
        image = image.convert(mode)
    exif = Image.Exif()
    exif[274] = 6  # lies on its side
    file = io.BytesIO()
    image.save(
        file,
        {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending),
        **options,
        **({"exif": exif} if ending != "gif" else {}),
    )
    return file.getvalue()


@functools.cache
def video_file() -> bytes:
    """A fragmented MP4 as a crash leaves it, of a second and a half."""
    import av
    import numpy as np

    file = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    with av.open(file, "w", format="mp4", options=options) as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"g": "12", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for index in range(36):
            rgb = np.full((64, 64, 3), index * 6, "uint8")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


@functools.cache
def tensor_file() -> bytes:
    """A safetensors file with tensors of several types."""
    import torch
    from safetensors.torch import save

    tensors = {f"layer.{i}.weight": torch.ones(4, 6, dtype=dtype) for i, dtype in enumerate(_dtypes())}
    return bytes(save(tensors, {"format": "pt", "alpha": "8"}))


@functools.cache
def state_file() -> bytes:
    """The state of a video of two blocks of 64x64, all zeros, of a network whose fingerprint is "network"."""
    import torch

    from liveavatar.config import BLOCK_LATENTS, MOTION_LATENTS, UNTRAINED
    from liveavatar.request import SinkDistance
    from liveavatar.stage_state import state_shapes
    from liveavatar.video_state import StateInfo, write_state
    from liveavatar.weights.writing import LazyTensor

    info = StateInfo(
        2, "untrained", "network", 64, 64, 1, 4, 3, SinkDistance(), "A person.", 0, (), "float32", 1, "plain", "plain"
    )
    shapes = dict(state_shapes(UNTRAINED, 1, 4, 16, 2, "plain"))
    shapes |= {"first_frame": (16, 1, 8, 8), "motion": (16, MOTION_LATENTS, 8, 8)}
    shapes |= {"latents": (16, 2 * BLOCK_LATENTS, 8, 8)}
    shapes |= dict.fromkeys(("prompt", "first_prompt"), (3, UNTRAINED.text_dim))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        write_state(path, info, {name: LazyTensor.of(torch.zeros(shape)) for name, shape in shapes.items()})
        return path.read_bytes()


@functools.cache
def pickled_files() -> list[bytes]:
    """The same in both of PyTorch's own forms."""
    import torch

    files = []
    for as_archive in (True, False):
        file = io.BytesIO()
        tensors = {f"layer.{i}.weight": torch.ones(4, 6, dtype=dtype) for i, dtype in enumerate(_dtypes())}
        torch.save({"state_dict": tensors}, file, _use_new_zipfile_serialization=as_archive)
        files.append(file.getvalue())
    return files


def _dtypes() -> list[Any]:
    import torch

    return [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8, torch.int64]
