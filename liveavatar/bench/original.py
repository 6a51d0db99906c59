"""The published network on our weights, working at one denoising step: what a step of ours is compared with."""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..config import (
    BLOCK_LATENTS,
    MAX_SINK_DISTANCE,
    MIN_SINK_DISTANCE,
    MOTION_FRAMES,
    MOTION_LATENTS,
    SPATIAL_STRIDE,
    WINDOW_BLOCKS,
    ModelConfig,
)
from ..errors import LiveAvatarError, ModelError
from ..model.transformer import CausalS2VTransformer
from ..noise_schedule import NoiseSchedule
from ..session import VideoTask
from .original_source import OriginalSource, import_original, reason_of, recompile_limit

_SINK_FRAMES = 2.5
"""Latent frames whose tokens the sink has: the reference, and the packed motion."""
_PEAK = 100
"""Bytes of activations at most, per token of a block and channel; allocations of a layer add up to 87 to 96."""


class OriginalNetwork:
    """The published network; it shares every weight with ours.

    In every step it embeds audio, prompt and timestep, makes its rotary tables and computes keys and values of the
    prompt anew, as published. Its KV cache, of this one step, is laid out as by the published pipelines and filled by
    its own prefill. At 704x384 the 14B model in bfloat16 takes 12.5 GB for that and 1.6 GB for activations, besides the
    weights that are there already; `original_bytes` counts both.

    Args:
        checkout: folder of the published repository.
        nets: loaded parts that make up our network; weights plain, on one device, float32 on a CPU.

    Attributes:
        network: the published module.
        config, device, dtype: of the weights.

    Raises:
        ModelError: not a checkout; it imports a module that is missing; the weights do not fit it.
    """

    def __init__(self, checkout: Path, nets: Sequence[CausalS2VTransformer]):
        self.config, self._checkout = nets[0].config, checkout
        self._weights = {key: tensor for net in nets for key, tensor in net.state_dict().items()}
        self.device, self.dtype = _place(self._weights)
        self._source, self._compiled = self._imported(compiled=False), False
        self.network = self._filled(self._source)
        self._given: dict[str, Any] = {}

    def compile(self) -> None:
        """Compile from now on as the published scripts do (ENABLE_COMPILE=true), which the next step waits for.

        What `begin` and the steps since have left is kept.
        """
        begun = self.network.rope_cache
        self._source, self._compiled = self._imported(compiled=True), True
        self.network = self._filled(self._source)
        self.network.rope_cache = begun  # where the sink stands, which its prefill noted

    def begin(self, job: VideoTask, step: int = 0) -> None:
        """An empty KV cache and a sink of the job's reference.

        Args:
            job: whose material and distances are taken.
            step: the denoising step at which every block is worked on.
        """
        self._given.clear()  # the KV cache of another job
        height, width = job.resolved.latent_size
        self._job, self._step, self._frame_tokens = job, step, height * width // 4
        timestep = NoiseSchedule.flow_matching(job.resolved.steps).timesteps[step]
        self._timestep = torch.full((1, BLOCK_LATENTS), timestep, device=self.device)
        self._audio: dict[int, torch.Tensor] = {}
        self._given |= {
            "context": [self._put(job.conditioning.prompt)],
            "seq_len": None,
            "motion_latents": self._put(job.conditioning.motion)[None],
            "cond_states": self._zeros(1, self.config.cond_dim, BLOCK_LATENTS, height, width),
            "motion_frames": [MOTION_FRAMES, MOTION_LATENTS],
            "kv_cache": self._empty_cache(),
            "crossattn_cache": [None] * self.config.num_layers,
        }
        self.renew_sink(job.conditioning.reference)

    def renew_sink(self, reference: torch.Tensor) -> None:
        """A sink of another reference latent [16, 1, h, w], as before block 4."""
        self._given["ref_latents"] = self._put(reference)[None]
        sizes = list(self._given["cond_states"])  # the latents' size is all that is taken of them here
        self._run(sizes, torch.zeros_like(self._timestep), sink_flag=True)

    def denoise(self, block: int, latent: torch.Tensor) -> torch.Tensor:
        """One step of a block: latent -> velocity, [16, 3, h, w] each.

        The blocks before it must have been worked on; it may be repeated.

        Raises:
            ModelError: it was to be compiled, and cannot be.
        """
        if block not in self._audio:
            self._audio = {block: self._put(self._job.conditioning.audio.block(block))}
        start = block * BLOCK_LATENTS * self._frame_tokens
        distance = self._job.distance.at(self._job.resolved.seed, block, self._step)
        with _drawn(distance):
            return self._run([latent], self._timestep, audio_input=self._audio[block], current_start=start)[0]

    def _run(self, latents: list[torch.Tensor], timestep: torch.Tensor, **given: Any) -> list[torch.Tensor]:
        """Once through the network, with what is around it in the published pipelines."""
        autocast = torch.autocast("cuda", torch.bfloat16, enabled=self.dtype is torch.bfloat16)
        with torch.inference_mode(), autocast, warnings.catch_warnings(), self._compiling():
            warnings.simplefilter("ignore")  # it uses names that torch has given up, in every layer
            return self.network(latents, t=timestep, **self._given, **given)

    @contextlib.contextmanager
    def _compiling(self) -> Iterator[None]:
        if not self._compiled:
            yield
            return
        try:
            with recompile_limit(self._source.recompile_limit):
                yield
        except (LiveAvatarError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # compilers raise errors of many kinds, and start programs that do
            raise ModelError(
                f"The network in {self._checkout} cannot be compiled here ({reason_of(error)}).",
                "Compare without compiling.",
            ) from error

    def _imported(self, compiled: bool) -> OriginalSource:
        return import_original(self._checkout, self.config.dim, self.dtype, self.device, compiled)

    def _filled(self, source: OriginalSource) -> Any:
        """A network of that code, with the weights themselves in it."""
        try:
            with _ParametersOnMeta():
                net: Any = source.network(**_settings(self.config))
                # It knows one number of audio layers, that of the 14B model.
                net.casual_audio_encoder.weights = nn.Parameter(torch.empty(1, self.config.audio_layers, 1, 1))
            net.requires_grad_(False).eval().load_state_dict(self._weights, assign=True)
        except (RuntimeError, TypeError) as error:
            raise ModelError(
                f"The network in {self._checkout} does not take these weights ({reason_of(error)}).",
                "Compare at a version of it that this library follows.",
            ) from error
        return net

    def _empty_cache(self) -> list[dict[str, torch.Tensor]]:
        """Keys and values of each layer: a window of blocks, and the sink."""
        window = WINDOW_BLOCKS * BLOCK_LATENTS * self._frame_tokens
        rows = {"k": window, "v": window, "cond_k": self._sink_tokens, "cond_v": self._sink_tokens}
        heads = (self.config.num_heads, self.config.head_dim)
        return [
            {name: self._zeros(1, n, *heads) for name, n in rows.items()}
            | {"cond_end": torch.zeros(1, dtype=torch.long, device=self.device)}
            for _ in range(self.config.num_layers)
        ]

    @property
    def _sink_tokens(self) -> int:
        return int(_SINK_FRAMES * self._frame_tokens)

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _put(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, self.dtype)


def original_bytes(config: ModelConfig, size: tuple[int, int]) -> int:
    """What a step takes in bfloat16 besides the weights: the KV cache, and activations as they are counted.

    Args:
        config: of the network.
        size: width and height in pixels.
    """
    frame_tokens = size[0] * size[1] // (2 * SPATIAL_STRIDE) ** 2
    kept = 4 * config.num_layers * (WINDOW_BLOCKS * BLOCK_LATENTS + _SINK_FRAMES)
    return int((kept + _PEAK * BLOCK_LATENTS) * frame_tokens * config.dim)


class _ParametersOnMeta(TorchFunctionMode):
    """Parameters take no memory; every other tensor is what it is written to be."""

    _FACTORIES = (torch.empty, torch.ones, torch.zeros, torch.randn)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        place = {"device": "meta"} if func in self._FACTORIES else {}
        return func(*args, **{**(kwargs or {}), **place})


def _place(weights: Mapping[str, torch.Tensor]) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of all weights.

    Raises:
        ModelError: they have several, or some that the published network does not work in.
    """
    devices, dtypes = {t.device for t in weights.values()}, {t.dtype for t in weights.values()}
    device, dtype = next(iter(devices)), next(iter(dtypes))
    if len(devices) > 1 or len(dtypes) > 1:
        raise ModelError(
            "The published network shares weights of one dtype on one device.",
            "Keep all weights plain and on the device.",
        )
    if dtype not in (torch.float32, torch.bfloat16) or (device.type == "cpu" and dtype != torch.float32):
        raise ModelError(f"The published network does not work in {dtype} on {device}.", "Use float32 there.")
    return device, dtype


def _settings(config: ModelConfig) -> dict[str, Any]:
    """Arguments of the network as its config.json gives them."""
    return {
        "cond_dim": config.cond_dim,
        "audio_dim": config.audio_dim,
        "num_audio_token": config.num_audio_token,
        "enable_adain": True,
        "audio_inject_layers": list(config.audio_inject_layers),
        "zero_timestep": True,
        "enable_motioner": False,
        "enable_framepack": True,
        "framepack_drop_mode": "padd",
        "text_len": config.text_len,
        "in_dim": config.in_dim,
        "dim": config.dim,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "text_dim": config.text_dim,
        "out_dim": config.out_dim,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "eps": config.eps,
    }


@functools.cache
def _seed_of(distance: int) -> int:
    """A seed after which the first number drawn from all distances is this one."""
    drawn = (random.Random(seed).randint(MIN_SINK_DISTANCE, MAX_SINK_DISTANCE) for seed in itertools.count())
    return next(seed for seed, number in enumerate(drawn) if number == distance)


@contextlib.contextmanager
def _drawn(distance: int) -> Iterator[None]:
    """The network, which draws a distance in every step, draws this one inside."""
    before = random.getstate()
    random.seed(_seed_of(distance))
    try:
        yield
    finally:
        random.setstate(before)
