"""How long work takes on a device: what it computes, what it reads and writes beside that, and what it launches.

All that is not measured stands here, with where it comes from. Counts are of operations on tensors without memory
(`tests/planner/test_pace.py` counts again); what is assumed of devices is in `hardware`.
"""

from __future__ import annotations

import dataclasses
import math

from ..config import BLOCK_FRAMES, BLOCK_LATENTS, FPS, WINDOW_BLOCKS, ModelConfig
from ..storage import StorageConfig
from ..weights.block_types import UNPACKED_AT_ONCE
from .hardware import DeviceSpeed
from .memory import SINK_FRAMES

_HOST_COPY_GB = 80.0
"""GB/s that all devices together get from the host's memory, assumed."""
_LINK_GB = 10.0
"""GB/s between two stages, assumed: PCIe through the host."""
_TASK_SECONDS = 0.002
"""To launch a task, assumed."""
_LAUNCH_SECONDS = 5e-6
"""Of the host for one operation, assumed; the device computes meanwhile what was launched before."""
COMPILE_SECONDS = 90.0
"""To compile the layers for one size, assumed: it was a minute or more where it was seen."""
_LIVE_FEATURES, _LISTEN_LAUNCHES = 282, 450
"""Features of a live block's window of 5.64 s; operations of the audio encoder, some 17 in each of 24 layers."""
_VAE_SHARE = 0.43
"""Of the speed of matrices that the VAE's convolutions reach, assumed."""


@dataclasses.dataclass(frozen=True)
class LayerTraffic:
    """What a layer does besides products and attention.

    Attributes:
        layer, injector: bytes that are read and written per number of a block's tokens.
        launches, injector_launches: operations, products and attention among them.
        window: numbers that are read and written per number of the keys of earlier blocks, which lie in the KV cache.
        unpacking: bytes that are read and written per number of a matrix that is unpacked for its product.
        unpacking_launches: operations for each `UNPACKED_AT_ONCE` of them.
    """

    layer: float
    injector: float
    launches: int
    injector_launches: int
    window: float = 0.0
    unpacking: float = 0.0
    unpacking_launches: int = 0


EAGER = LayerTraffic(171, 40, 59, 26)
"""Counted: 2.78 GB in a layer of the 14B model at 704x384, 3.43 with an injector. Most are norms, products and sums
with the modulation, rotations and casts. The window is read by attention where it lies."""
EAGER_EIGHT_BITS = LayerTraffic(277, 66, 105, 55)
"""Counted: 4.40 and 5.48 GB, with one scale per tensor 4.60 and 5.67; inputs are rounded to fp8 for every product. Of
int8, whose weights are widened for each, it is within a tenth there, and half of what small videos take."""
COMPILED = LayerTraffic(88, 20, 30, 10)
"""Estimated from the passes that are left: norm and modulation, norm and rotation, gate and sum, and the joining of
attention to window and sink are one each."""
COMPILED_EIGHT_BITS = LayerTraffic(116, 26, 45, 15)
"""Estimated likewise, with a pass that finds the scale of a product's input and one that rounds it."""
UNPACKING, UNPACKING_COMPILED = (26, 22), (3, 1)
"""Bytes and operations to unpack packed matrices, counted of Q4_K; nvfp4 takes 26 bytes, too, mxfp8 and int8 21, others
13 (Q8_0) to 37. Compiled, what is packed is read and what is unpacked is written, estimated."""
FP8_KV_CACHE = LayerTraffic(31, 0, 20, 0, window=7)
"""Counted, in addition where the KV cache is in fp8: a block's rows are rounded, those of earlier ones are widened."""
INT4_KV_CACHE = LayerTraffic(58, 0, 80, 0, window=9.4)
"""Counted likewise: channels are brought to a mean and a spread first, and two numbers to a byte."""


def layer_traffic(storage: StorageConfig, compiled: bool) -> LayerTraffic:
    """Of layers that are stored in one way."""
    if storage.weights in ("plain", "packed"):
        network = COMPILED if compiled else EAGER
    else:
        network = COMPILED_EIGHT_BITS if compiled else EAGER_EIGHT_BITS
    if storage.weights == "packed":
        unpacking, launches = UNPACKING_COMPILED if compiled else UNPACKING
        network = dataclasses.replace(network, unpacking=unpacking, unpacking_launches=launches)
    if storage.kv_dtype == "plain":
        return network
    kv_cache = FP8_KV_CACHE if storage.kv_dtype == "fp8" else INT4_KV_CACHE
    return dataclasses.replace(
        network,
        layer=network.layer + kv_cache.layer,
        launches=network.launches + kv_cache.launches,
        window=kv_cache.window,
    )


@dataclasses.dataclass(frozen=True)
class Work:
    """What one block at one step takes in some layers.

    Attributes:
        matrices, attention: 10^12 operations.
        moved: bytes that everything else reads and writes.
        launches: operations that the host starts.
    """

    matrices: float = 0.0
    attention: float = 0.0
    moved: float = 0.0
    launches: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.matrices + other.matrices,
            self.attention + other.attention,
            self.moved + other.moved,
            self.launches + other.launches,
        )

    def __sub__(self, other: Work) -> Work:
        return Work(
            self.matrices - other.matrices,
            self.attention - other.attention,
            self.moved - other.moved,
            self.launches - other.launches,
        )


def layer_tflop(
    config: ModelConfig, frame_tokens: int, layer: int, window_blocks: int = WINDOW_BLOCKS, speakers: int = 1
) -> tuple[float, float]:
    """10^12 operations of one block at one step in one layer: in matrices, and in attention.

    The prompt's keys and values, and the conditions, are made once per video and do not count. Every speaker's sound is
    injected for itself.
    """
    d, tokens = config.dim, BLOCK_LATENTS * frame_tokens
    matrices = 2 * tokens * (6 * d * d + 2 * d * config.ffn_dim)
    if layer in config.audio_inject_layers:
        matrices += speakers * 4 * tokens * d * d
    seen = _keys_seen(frame_tokens, window_blocks) + config.text_len
    return matrices / 1e12, 4 * tokens * seen * d / 1e12


def layer_work(
    config: ModelConfig,
    frame_tokens: int,
    size: int,
    layer: int,
    traffic: LayerTraffic,
    window_blocks: int = WINDOW_BLOCKS,
    speakers: int = 1,
) -> Work:
    """Of one layer.

    Args:
        config: of the network.
        frame_tokens: tokens per latent frame.
        size: bytes per number of the working dtype.
        layer: its number.
        traffic: what such layers move.
        window_blocks: blocks that a block sees, itself among them.
        speakers: how many are heard in one picture.
    """
    injects = layer in config.audio_inject_layers
    block = BLOCK_LATENTS * frame_tokens * config.dim
    window = traffic.window * size * (window_blocks - 1) * block
    d = config.dim
    unpacked = 6 * d * d + 2 * d * config.ffn_dim + injects * 6 * d * d
    return Work(
        *layer_tflop(config, frame_tokens, layer, window_blocks, speakers),
        moved=block * (traffic.layer + injects * speakers * traffic.injector) + window + traffic.unpacking * unpacked,
        launches=traffic.launches
        + injects * traffic.injector_launches
        + math.ceil(traffic.unpacking_launches * unpacked / UNPACKED_AT_ONCE),
    )


def _keys_seen(frame_tokens: int, window_blocks: int) -> float:
    """Tokens of the window and the sink."""
    return (window_blocks * BLOCK_LATENTS + SINK_FRAMES) * frame_tokens


def compute_seconds(work: Work, storage: StorageConfig, speed: DeviceSpeed) -> float:
    """Of some layers; fp8 is worked as fp8 only where the device can. Packed matrices that are multiplied as they are
    are taken to be as fast as that: nobody has measured them.

    The device does one thing after the other. The host launches ahead of it, and is waited for where that takes longer.
    """
    fast = storage.weights in ("fp8", "fp8-tensor", "packed-native") and speed.supports_fp8
    matrices = work.matrices / (speed.fp8 if fast else speed.plain)
    device = matrices + work.attention / speed.attention + work.moved / 1e9 / speed.memory
    return max(device, work.launches * _LAUNCH_SECONDS)


def task_seconds(compute: float, copied: int, layers: int, speed: DeviceSpeed, device_count: int) -> float:
    """Of one task: copies hide behind the work of the layers before, but for the first layer's.

    Args:
        compute: seconds of the layers.
        copied: bytes from the host.
        layers: of the stage.
        speed: of its device.
        device_count: that copy at the same time, at most.
    """
    copies = copied / 1e9 / min(speed.copy, _HOST_COPY_GB / device_count)
    return max(compute, copies) + copies / layers + _TASK_SECONDS


def link_seconds(config: ModelConfig, frame_tokens: int, size: int, stages: int) -> float:
    """Of sending a block's tokens to the next stage; nothing where there is none."""
    return BLOCK_LATENTS * frame_tokens * config.dim * size / 1e9 / _LINK_GB if stages > 1 else 0.0


def decode_seconds(tflop: float, moved: float, speed: DeviceSpeed, resting: int = 0) -> float:
    """Of decoding a block.

    Args:
        tflop: 10^12 operations.
        moved: bytes that all but the convolutions read and write.
        speed: of the device.
        resting: bytes on the host, which come to the device and go back once a block.
    """
    computing = tflop / (speed.plain * _VAE_SHARE) + moved / 1e9 / speed.memory
    return computing + 2 * resting / 1e9 / min(speed.copy, _HOST_COPY_GB)


@dataclasses.dataclass(frozen=True)
class Forecast:
    """How fast a plan will probably be, with its stages side by side.

    Attributes:
        seconds_per_block: of 12 frames, once the pipeline is full.
        fps: frames per second then.
        first_frames_seconds: from the first task to the first finished block; loading and encoding come before.
        source: whose speeds it rests on: "measured", or "assumed" where any was not measured.
    """

    seconds_per_block: float
    first_frames_seconds: float
    source: str

    @property
    def fps(self) -> float:
        """Frames per second in the full pipeline."""
        return BLOCK_FRAMES / self.seconds_per_block

    def seconds(self, blocks: int) -> float:
        """Of the work on so many blocks."""
        return self.first_frames_seconds + (blocks - 1) * self.seconds_per_block


BLOCK_SECONDS = BLOCK_FRAMES / FPS
"""Of speech in one block: who makes a block in less keeps pace."""


@dataclasses.dataclass(frozen=True)
class LiveForecast:
    """How a live talk will probably go.

    Attributes:
        seconds_per_block: that making a block takes in the full pipeline.
        pipeline_seconds: from a block's sound to its images, where the pace of speech is kept; else of the first block.
        source: as of `Forecast`; "given" where the speeds were.
        nearest: options with which the pace is kept, where it is not.
    """

    seconds_per_block: float
    pipeline_seconds: float
    source: str
    nearest: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether 25 frames per second are made."""
        return self.seconds_per_block <= BLOCK_SECONDS

    @property
    def fps(self) -> float:
        """Frames per second that could be made."""
        return BLOCK_FRAMES / self.seconds_per_block

    def latency(self, lookahead: float) -> float:
        """Seconds from a sample of sound to its image, at most; its block is known when its last sample and the
        look-ahead are there. Encoding and sending the video come on top."""
        return BLOCK_SECONDS + lookahead + self.pipeline_seconds


def listen_seconds(parameters: int, speed: DeviceSpeed) -> float:
    """Of encoding the audio of a live block of one speaker, with what it knows of before; estimated from the encoder's
    parameters."""
    computing = 2 * parameters * _LIVE_FEATURES / 1e12 / speed.plain
    return computing + 2 * parameters / 1e9 / speed.memory + _LISTEN_LAUNCHES * _LAUNCH_SECONDS


def compiling_saves(eager: Forecast, compiled: Forecast, blocks: int) -> float:
    """Seconds by which so many blocks are probably sooner ready if the layers are compiled first; below 0: later."""
    return eager.seconds(blocks) - compiled.seconds(blocks) - COMPILE_SECONDS
