"""A stage: a slice of layers, for some steps, with its KV caches.

A stage runs tasks. What travels between stages is a `StageInput`: the tokens on their way through the layers, and the
latent they came from. Everything else a stage knows from the task and from the conditioning of the session.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from .config import CLIP_BLOCKS
from .model.kv_cache import BlockCache, SinkKV, SinkRecorder, Window, window_tokens
from .model.layer import EAGER, AudioTokens, KVCache, LayerOps, TextKV
from .model.rope import RopeGrid
from .model.transformer import CausalS2VTransformer, TimestepEmbedding
from .noise_schedule import NoiseSchedule, block_noise
from .offload.kv_cache import allocate_kv_caches
from .offload.kv_formats import KVCacheShape
from .offload.pinned_memory import PinnedPool
from .request import SinkDistance
from .storage import PLAIN, StorageConfig
from .task_graph import Denoise, Prefill, Task, sink_version
from .timeline import Timeline
from .utils import to_device_async


@dataclasses.dataclass(frozen=True)
class Portrait:
    """A reference image, encoded.

    Attributes:
        reference: its latent [16, 1, h, w].
        motion: latents of it standing still for 73 frames [16, 19, h, w].
    """

    reference: torch.Tensor
    motion: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Changes:
    """What takes the place of the first prompt and the first portrait, from a block on.

    Attributes:
        prompts: features [n, text_dim], or [text_len, dim] where they are embedded.
        portraits: of the same size as the first.
    """

    prompts: Timeline[torch.Tensor] = dataclasses.field(default_factory=Timeline)
    portraits: Timeline[Portrait] = dataclasses.field(default_factory=Timeline)


@dataclasses.dataclass(frozen=True)
class StageConditioning:
    """The conditioning of a session, the same for all its stages and tasks.

    Attributes:
        rows, columns: patch grid of a latent frame (height and width in pixels / 16).
        schedule: the denoising steps.
        seed, distance: where the reference stands at each block.
        prompt: embedded prompt [text_len, dim] of the first block.
        time: embedded timesteps, one row per step and a last one for t = 0.
        motion: motion latents of the sink [16, 19, h, w].
        audio: block -> its audio tokens.
        clip_blocks: blocks of a clip: so many a KV cache holds, and after the first clip the second sink is in use.
        changes: of prompt (embedded) and portrait.
        pose: block -> its pose latents [16, 3, h, w], or None where no pose is followed.
        speaker_mask: who is heard in which token [speakers, 3 S, 1], in every block; None for a single speaker.
    """

    rows: int
    columns: int
    schedule: NoiseSchedule
    seed: int
    distance: SinkDistance
    prompt: torch.Tensor
    time: TimestepEmbedding
    motion: torch.Tensor
    audio: Callable[[int], AudioTokens]
    clip_blocks: int = CLIP_BLOCKS
    changes: Changes = dataclasses.field(default_factory=Changes)
    pose: Callable[[int], torch.Tensor | None] = lambda block: None
    speaker_mask: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True)
class StageInput:
    """The input of a task: what the task before it made.

    Attributes:
        latent: the block's latent [16, 3, h, w], or the reference's [16, 1, h, w] while the sink is prefilled.
        tokens: [tokens, dim] between parts of the layers; None between steps.
    """

    latent: torch.Tensor
    tokens: torch.Tensor | None = None

    def for_follower(self, task: Task, follower: Task) -> StageInput:
        """What `follower` takes up of what `task` left: a refreshed sink begins with the first latent frame alone."""
        refresh = isinstance(task, Denoise) and isinstance(follower, Prefill)
        return StageInput(self.latent[:, :1]) if refresh else self

    def to(self, device: torch.device) -> StageInput:
        """On another device, without waiting for it."""
        tokens = None if self.tokens is None else to_device_async(self.tokens, device)
        return StageInput(to_device_async(self.latent, device), tokens)


@dataclasses.dataclass(frozen=True)
class InitialInputs:
    """The inputs of tasks that come first: noise, or an image.

    Attributes:
        reference: latent of the first image [16, 1, h, w].
        seed: of the noise.
        size: height and width of a latent frame.
        dtype: of the noise's latent.
        clip_blocks: blocks whose noise is drawn in one piece.
        portraits: that take the first one's place; see `Changes`.
    """

    reference: torch.Tensor
    seed: int
    size: tuple[int, int]
    dtype: torch.dtype
    clip_blocks: int = CLIP_BLOCKS
    portraits: Timeline[Portrait] = dataclasses.field(default_factory=Timeline)

    def stage_input(self, task: Task) -> StageInput:
        """Of a task that `task_graph.is_first`."""
        if isinstance(task, Prefill):
            return StageInput(self.portraits.value(task.version - 1).reference if task.version else self.reference)
        noise = block_noise(self.seed, task.block, self.reference.shape[0], *self.size, self.clip_blocks)
        return StageInput(noise.to(self.dtype))


class Stage:
    """Layers of the network, for some steps, during one session.

    Args:
        net: the part of the network; shared with other sessions and with stages of other steps.
        steps: the denoising steps this stage runs; one KV cache each.
        conditioning: of the session, moved to the stage's device as needed.
        device, dtype: where and in what the stage works.
        storage: how the keys and values of blocks are kept; the weights are kept as the net was loaded.
        ops: eager or compiled functions of the layers.
        pinned: where memory of the host is from, for what lies there; None: it is made for this stage.

    Raises:
        HostMemoryError: they are to lie in the host's memory, and it cannot hold them.
    """

    def __init__(
        self,
        net: CausalS2VTransformer,
        steps: range,
        conditioning: StageConditioning,
        device: torch.device,
        dtype: torch.dtype,
        storage: StorageConfig = PLAIN,
        ops: LayerOps = EAGER,
        pinned: PinnedPool | None = None,
    ):
        self.net, self.conditioning, self.device, self.dtype, self.ops = net, conditioning, device, dtype, ops
        config = net.config
        self.grid = RopeGrid(conditioning.rows, conditioning.columns, config.head_dim, device)
        self.head_time = _own(conditioning.time.head.to(device))
        self.modulation = net.modulation(_own(conditioning.time.layers.to(device))).unbind(1)
        """Of each step, and of t = 0: what modulates the layers [layers, 6, dim]"""
        self.text_kv: dict[int, list[TextKV]] = {}
        """By version of the prompt; at most two are kept."""
        self._text_kv_of(0)
        self._motion_rope = self.grid.motion()
        given = conditioning.speaker_mask
        self._speaker_mask = None if given is None else _own(given.to(device, dtype))
        window = window_tokens(self.grid.tokens, conditioning.clip_blocks)
        shape = KVCacheShape(window, config.num_heads, config.head_dim, dtype, conditioning.clip_blocks)
        caches = allocate_kv_caches(storage, steps, len(net.slice.layers), shape, device, pinned)
        self.kv_caches, self.traffic = caches.by_step, caches.transfer_stats
        """One cache per layer for each step, and what they copied between host and device."""
        self.sinks: dict[int, list[SinkKV]] = {}
        """By version; at most two are kept, the one in use and the one to come."""

    def run(self, task: Task, inputs: StageInput) -> StageInput:
        """Run one task on what the task before it left."""
        inputs = inputs.to(self.device)
        if inputs.tokens is not None:
            inputs = dataclasses.replace(inputs, tokens=_own(inputs.tokens))
        return self._prefill(task, inputs) if isinstance(task, Prefill) else self._denoise(task, inputs)

    def _text_kv_of(self, version: int) -> list[TextKV]:
        """Keys and values of a version of the prompt; of all but the latest two they are made again."""
        kept, given = self.text_kv, self.conditioning
        if version not in kept:
            for old in sorted(kept)[:-1]:
                del kept[old]
            prompt = given.changes.prompts.value(version) if version else given.prompt
            kept[version] = self.net.text_kv(_own(prompt.to(self.device, self.dtype)))
        return kept[version]

    def _prefill(self, task: Prefill, inputs: StageInput) -> StageInput:
        tokens, changes = inputs.tokens, self.conditioning.changes
        # The second version is made right after block 0, when nobody knows yet with what prompt it will be used.
        block, motion = 0, self.conditioning.motion
        if task.version > 1:
            block, motion = changes.portraits.starts[task.version - 2], changes.portraits.value(task.version - 1).motion
        text_kv = self._text_kv_of(changes.prompts.version(block))
        if tokens is None:
            tokens = self.net.embed_sink(inputs.latent, to_device_async(motion, self.device))
        recorders = [SinkRecorder(self.grid.tokens) for _ in self.net.slice.layers]
        rope = self.grid.reference() + self._motion_rope
        tokens = self.net.run_layers(tokens, self.modulation[-1], rope, text_kv, recorders, None, self.ops)
        self.sinks[task.version] = [m.sink for m in recorders if m.sink is not None]
        return StageInput(inputs.latent, tokens)

    def _denoise(self, task: Denoise, inputs: StageInput) -> StageInput:
        step = task.step
        caches = self._block_caches(task)
        tokens = self._embedded(task.block, inputs.latent) if inputs.tokens is None else inputs.tokens
        audio = self.conditioning.audio(task.block).to(self.device)
        audio = AudioTokens(_own(audio.frame), _own(audio.tokens), self._speaker_mask)
        rope = self.grid.block(task.block)
        text_kv = self._text_kv_of(self.conditioning.changes.prompts.version(task.block))
        tokens = self.net.run_layers(tokens, self.modulation[step], rope, text_kv, caches, audio, self.ops)
        if not self.net.slice.head:
            return StageInput(inputs.latent, tokens)
        velocity = self.net.velocity(tokens, self.head_time[step], self.grid.rows, self.grid.columns)
        return StageInput(self.conditioning.schedule.euler(step, inputs.latent, velocity))

    def _embedded(self, block: int, latent: torch.Tensor) -> torch.Tensor:
        """The tokens of a block, with the pose that it follows."""
        pose = self.conditioning.pose(block)
        return self.net.embed_block(latent, None if pose is None else to_device_async(pose, self.device))

    def _block_caches(self, task: Denoise) -> Sequence[KVCache]:
        clip_blocks = self.conditioning.clip_blocks
        version = sink_version(task.block, clip_blocks, self.conditioning.changes.portraits.starts)
        for old in [v for v in self.sinks if v < version and task.step == self._last_step]:
            del self.sinks[old]
        time_id = self.conditioning.distance.reference_time_id(self.conditioning.seed, task.block, task.step)
        window, reference = Window.of(task.block, self.grid.tokens, clip_blocks), self.grid.reference(time_id)
        kv_caches = self.kv_caches[task.step]
        for kv_cache in kv_caches[:1]:  # the others are fetched while the one before them works
            kv_cache.prefetch(window)
        return [
            BlockCache(kv_cache, window, sink, reference, self.ops.apply_rope)
            for kv_cache, sink in zip(kv_caches, self.sinks[version], strict=True)
        ]

    @property
    def _last_step(self) -> int:
        return max(self.kv_caches)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers as inference has them: what came from another process or thread is copied.

    To autograd the two are of different kinds, and compiled layers know one of them.
    """
    return tensor if tensor.is_inference() or not torch.is_inference_mode_enabled() else tensor.clone()
