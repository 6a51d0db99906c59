"""The dimensions of the network, and the few constants the model family was trained with.

The field names of `ModelConfig` are those of the published `config.json`, so a model folder of any size describes
itself. Constants that no published file varies stand here once, under their own names.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ModelError

FPS = 25
"""Video frames per second the model was trained at."""
FRAMES_PER_LATENT = 4
"""Video frames in one latent frame (temporal stride of the VAE)."""
BLOCK_LATENTS = 3
"""Latent frames denoised together: one block."""
BLOCK_FRAMES = BLOCK_LATENTS * FRAMES_PER_LATENT
"""Video frames of one block: 12, or 0.48 s."""
CLIP_BLOCKS = 4
"""Blocks of one clip, by default: the length the model was trained with (see `Request.clip_blocks`)."""
MAX_CLIP_BLOCKS = 20
"""Most blocks of a clip: 240 frames, whose KV cache take five times what those of the trained length take."""
WINDOW_BLOCKS = CLIP_BLOCKS
"""Blocks a KV cache holds, by default: the block itself and the three before it. It is always as many as a clip has."""
MOTION_LATENTS = 19
"""Latent frames of motion context in the sink: 16 + 2 + 1, packed 4x, 2x and 1x."""
MOTION_FRAMES = 73
"""Video frames those latents encode: 4 x 18 + 1."""
VAE_WARMUP_LATENTS = 7
"""Motion latents decoded and thrown away before block 0, so that every block yields 12 frames."""
SPATIAL_STRIDE = 8
"""Pixels per latent pixel in each direction."""
SIZE_MULTIPLE = 64
"""Width and height of the video are multiples of this."""
AUDIO_FEATURE_RATE = 30
"""Rate, per second, to which the 50 Hz audio features are resampled before frames pick theirs."""
AUDIO_SAMPLE_RATE = 16_000
"""Samples per second of the input of wav2vec2."""
REFERENCE_TIME_ID = 30
"""Rotary time position of the reference image while the sink is prefilled."""
MIN_SINK_DISTANCE, MAX_SINK_DISTANCE = 4, 30
"""Range of the distance, in latent frames, at which the reference image stands ahead of the block."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Dimensions of the causal sound-to-video transformer (field names of the published config.json).

    Attributes:
        dim, ffn_dim: width of the tokens and of the feed-forward layers.
        freq_dim: width of the sinusoid of the timestep.
        num_heads, num_layers: attention heads per layer, transformer layers.
        in_dim, out_dim, cond_dim: channels of the latent, of the velocity, of the pose latent.
        text_dim, text_len: width of a text feature, rows the network always attends to.
        audio_dim, audio_layers: width of an audio feature, hidden states mixed per frame.
        num_audio_token: audio tokens per latent frame before the learned padding token.
        audio_inject_layers: layers after which sound is injected, in order.
        eps: epsilon of every normalisation but the injector's.
    """

    dim: int = 5120
    ffn_dim: int = 13824
    freq_dim: int = 256
    num_heads: int = 40
    num_layers: int = 40
    in_dim: int = 16
    out_dim: int = 16
    cond_dim: int = 16
    text_dim: int = 4096
    text_len: int = 512
    audio_dim: int = 1024
    audio_layers: int = 25
    num_audio_token: int = 4
    audio_inject_layers: tuple[int, ...] = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "audio_inject_layers", tuple(self.audio_inject_layers))
        for wrong, why in _impossible(self):
            if wrong:
                raise ModelError(f"The model configuration is not usable: {why}.", "Check the folder's config.json.")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build from the content of a config.json; keys this network has no use for are ignored.

        Raises:
            ModelError: the file describes another kind of network.
        """
        for key, expected in _FIXED_BY_ARCHITECTURE.items():
            if key in values and values[key] not in expected:
                raise ModelError(
                    f"config.json says {key} = {values[key]!r:.60}, which is another network.",
                    f"Live Avatar needs {key} = {expected[0]!r}.",
                )
        known = {f.name for f in dataclasses.fields(cls)}
        try:
            return cls(**{k: v for k, v in values.items() if k in known})
        except TypeError as e:
            raise ModelError(f"config.json holds a value of the wrong type ({e}).", "Restore the file.") from e

    @classmethod
    def from_file(cls, path: Path) -> ModelConfig:
        """Read a config.json.

        Raises:
            ModelError: not readable, not JSON, or of another network.
        """
        try:
            if path.stat().st_size > _LARGEST_FILE:
                raise ValueError(f"{path.stat().st_size} bytes")
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as e:
            raise ModelError(f"{path} cannot be read as JSON ({e}).", "Restore the published config.json.") from e
        if not isinstance(values, dict):
            raise ModelError(f"{path} is not a JSON object.", "Restore the published config.json.")
        return cls.from_dict(values)


_FIXED_BY_ARCHITECTURE: dict[str, tuple[Any, ...]] = {
    "model_type": ("s2v",),
    "adain_mode": ("attn_norm",),
    "enable_adain": (True,),
    "enable_framepack": (True,),
    "enable_motioner": (False,),
    "enable_tsm": (False,),
    "zero_timestep": (True,),
    "patch_size": ([1, 2, 2], (1, 2, 2)),
}


_LARGEST_FILE = 1 << 20
_MOST_LAYERS, _LARGEST = 256, 1 << 17
"""Far beyond every network of this kind, and still no work to lay out."""


def _impossible(c: ModelConfig) -> list[tuple[bool, str]]:
    """The ways in which dimensions can contradict each other, each with its sentence."""
    sizes = [f.name for f in dataclasses.fields(c) if f.type == "int"]
    bad = [n for n in sizes if type(getattr(c, n)) is not int or getattr(c, n) < 1]
    if bad:
        return [(True, f"{bad[0]} = {getattr(c, bad[0])!r:.60} is not a positive whole number")]
    large = [n for n in sizes if getattr(c, n) > (_MOST_LAYERS if n.endswith("layers") else _LARGEST)]
    if large:
        return [(True, f"{large[0]} = {getattr(c, large[0])!r:.60} is more than any network of this kind has")]
    layers = c.audio_inject_layers
    if any(type(i) is not int for i in layers):
        return [(True, f"audio_inject_layers {list(layers)!r:.60} are not whole numbers")]
    if type(c.eps) not in (int, float) or not 0 < c.eps < 1:
        return [(True, f"eps = {c.eps!r:.60} is not a small number")]
    return [
        (c.dim % c.num_heads != 0, f"dim {c.dim} is not a multiple of num_heads {c.num_heads}"),
        (c.head_dim % 2 != 0, f"the head width {c.head_dim} is odd"),
        (c.dim % 4 != 0, f"dim {c.dim} is not a multiple of 4"),
        (c.freq_dim % 2 != 0, f"freq_dim {c.freq_dim} is odd"),
        (list(layers) != sorted(set(layers)), f"audio_inject_layers {list(layers)!r:.60} are not in rising order"),
        (any(not 0 <= i < c.num_layers for i in layers), f"audio_inject_layers {list(layers)!r:.60} exceed the layers"),
    ]


WAN2_2_S2V_14B = ModelConfig()
MINI = ModelConfig(
    dim=192,
    ffn_dim=512,
    freq_dim=64,
    num_heads=4,
    num_layers=6,
    text_dim=64,
    text_len=32,
    audio_dim=64,
    audio_layers=5,
    audio_inject_layers=(0, 2, 4),
)
"""The shipped miniature, which was trained on drawn people."""
UNTRAINED = ModelConfig(
    dim=96,
    ffn_dim=256,
    freq_dim=64,
    num_heads=4,
    num_layers=4,
    text_dim=48,
    text_len=64,
    audio_dim=32,
    audio_inject_layers=(0, 2, 3),
)
"""Random weights, made in code: for tests of speed and memory, whose frames are noise."""
PRESETS: dict[str, ModelConfig] = {"wan2.2-s2v-14b": WAN2_2_S2V_14B, "mini": MINI, "untrained": UNTRAINED}


WAN_LATENT_SCALE = (
    (
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    ),
    (
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    ),
)
"""Mean and standard deviation of the published VAE's latents."""


@dataclasses.dataclass(frozen=True)
class TinyConfig:
    """Dimensions of a tiny decoder of the VAE's latents (TAEHV); the defaults are the published ones.

    Attributes:
        widths: channels of the three levels and of the picture-sized layer after them.
        latent_scale: mean and standard deviation of the 16 channels, which are put back before it decodes; None where
            it reads latents as the network makes them.
    """

    widths: tuple[int, int, int, int] = (256, 128, 64, 64)
    latent_scale: tuple[tuple[float, ...], tuple[float, ...]] | None = None


@dataclasses.dataclass(frozen=True)
class LightConfig:
    """Dimensions of a pruned VAE (lightvaew2_1): the network of the VAE, of the same latents, with fewer channels.

    Attributes:
        base_dim: channels of its widest-in-space level; 96 in the VAE that it stands for.
    """

    base_dim: int = 24


DecoderConfig = TinyConfig | LightConfig
"""Of a decoder that works in place of the VAE's own."""
