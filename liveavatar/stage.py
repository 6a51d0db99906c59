"""The heart: a slice of layers, for some steps, with its keys and values.

A stage runs tasks. What travels between stages is a `Flow`: the tokens on their way through the layers, and the latent
they came from. Everything else a stage knows from the task and from the conditions of the session.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from .config import CLIP_BLOCKS
from .distance import SinkDistance
from .memory.rings import RingShape, make_rings
from .model.kv import BlockMemory, SinkKV, SinkMemory, Window, window_tokens
from .model.layer import AS_WRITTEN, AudioTokens, Memory, Work
from .model.rope import RopeGrid
from .model.sending import sent
from .model.transformer import CausalS2VTransformer, TimeVectors
from .pipeline import Denoise, Prefill, Task, sink_version
from .schedule import Schedule, block_noise
from .storage import PLAIN, Storage


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What every stage knows of a session; constant while it lasts.

    Attributes:
        rows, columns: patch grid of a latent frame (height and width in pixels / 16).
        schedule: the denoising steps.
        seed, distance: where the reference stands at each block.
        text: embedded prompt [text_len, dim].
        time: embedded timesteps, one row per step and a last one for t = 0.
        motion: motion latents of the sink [16, 19, h, w].
        audio: block -> what it hears.
        clip_blocks: blocks of a clip: so many a KV ring holds, and after the first clip the second sink is in use.
    """

    rows: int
    columns: int
    schedule: Schedule
    seed: int
    distance: SinkDistance
    text: torch.Tensor
    time: TimeVectors
    motion: torch.Tensor
    audio: Callable[[int], AudioTokens]
    clip_blocks: int = CLIP_BLOCKS


@dataclasses.dataclass(frozen=True)
class Flow:
    """What one task hands to the next.

    Attributes:
        latent: the block's latent [16, 3, h, w], or the reference's [16, 1, h, w] while the sink is prefilled.
        tokens: [tokens, dim] between parts of the layers; None between steps.
    """

    latent: torch.Tensor
    tokens: torch.Tensor | None = None

    def handed(self, task: Task, follower: Task) -> Flow:
        """What `follower` takes up of what `task` left: a refreshed sink begins with the first latent frame alone."""
        refresh = isinstance(task, Denoise) and isinstance(follower, Prefill)
        return Flow(self.latent[:, :1]) if refresh else self

    def to(self, device: torch.device) -> Flow:
        """On another device, without waiting for it."""
        tokens = None if self.tokens is None else sent(self.tokens, device)
        return Flow(sent(self.latent, device), tokens)


@dataclasses.dataclass(frozen=True)
class Origin:
    """What the tasks begin with that no other task comes before.

    Attributes:
        reference: latent of the picture [16, 1, h, w].
        seed: of the noise.
        size: height and width of a latent frame.
        dtype: of the noise's latent.
        clip_blocks: blocks whose noise is drawn in one piece.
    """

    reference: torch.Tensor
    seed: int
    size: tuple[int, int]
    dtype: torch.dtype
    clip_blocks: int = CLIP_BLOCKS

    def flow(self, task: Task) -> Flow:
        """Of a task that `pipeline.begins`."""
        if isinstance(task, Prefill):
            return Flow(self.reference)
        noise = block_noise(self.seed, task.block, self.reference.shape[0], *self.size, self.clip_blocks)
        return Flow(noise.to(self.dtype))


class Stage:
    """Layers of the network, for some steps, during one session.

    Args:
        net: the part of the network; shared with other sessions and with stages of other steps.
        steps: the denoising steps this stage runs; one KV ring each.
        conditions: of the session, moved to the stage's device as needed.
        device, dtype: where and in what the stage works.
        storage: how the keys and values of blocks are kept; the weights are kept as the net was loaded.
        work: how layers do what they do.

    Raises:
        HostMemoryError: they are to lie in the host's memory, and it cannot hold them.
    """

    def __init__(
        self,
        net: CausalS2VTransformer,
        steps: range,
        conditions: Conditions,
        device: torch.device,
        dtype: torch.dtype,
        storage: Storage = PLAIN,
        work: Work = AS_WRITTEN,
    ):
        self.net, self.conditions, self.device, self.dtype, self.work = net, conditions, device, dtype, work
        config = net.config
        self.grid = RopeGrid(conditions.rows, conditions.columns, config.head_dim, device)
        self.time = TimeVectors(_own(conditions.time.head.to(device)), _own(conditions.time.layers.to(device)))
        self.text = net.text_kv(conditions.text.to(device, dtype))
        self._motion_rope = self.grid.motion()
        window = window_tokens(self.grid.tokens, conditions.clip_blocks)
        shape = RingShape(window, config.num_heads, config.head_dim, dtype)
        made = make_rings(storage, steps, len(net.part.layers), shape, device)
        self.rings, self.traffic = made.by_step, made.traffic
        """One ring per layer for each step, and what they copied between host and device."""
        self.sinks: dict[int, list[SinkKV]] = {}
        """By version; at most two are kept, the one in use and the one to come."""

    def run(self, task: Task, flow: Flow) -> Flow:
        """Run one task on what the task before it left."""
        flow = flow.to(self.device)
        if flow.tokens is not None:
            flow = dataclasses.replace(flow, tokens=_own(flow.tokens))
        return self._prefill(task, flow) if isinstance(task, Prefill) else self._denoise(task, flow)

    def _prefill(self, task: Prefill, flow: Flow) -> Flow:
        tokens = flow.tokens
        if tokens is None:
            tokens = self.net.embed_sink(flow.latent, sent(self.conditions.motion, self.device))
        memories = [SinkMemory(self.grid.tokens) for _ in self.net.part.layers]
        rope = self.grid.reference() + self._motion_rope
        tokens = self.net.run_layers(tokens, self.time.layers[-1], rope, self.text, memories, None, self.work)
        self.sinks[task.version] = [m.sink for m in memories if m.sink is not None]
        return Flow(flow.latent, tokens)

    def _denoise(self, task: Denoise, flow: Flow) -> Flow:
        step = task.step
        memories = self._memories(task)
        tokens = self.net.embed_block(flow.latent) if flow.tokens is None else flow.tokens
        audio = self.conditions.audio(task.block).to(self.device)
        audio = AudioTokens(_own(audio.frame), _own(audio.tokens), audio.mask)
        rope, time = self.grid.block(task.block), self.time.layers[step]
        tokens = self.net.run_layers(tokens, time, rope, self.text, memories, audio, self.work)
        if not self.net.part.head:
            return Flow(flow.latent, tokens)
        velocity = self.net.velocity(tokens, self.time.head[step], self.grid.rows, self.grid.columns)
        return Flow(self.conditions.schedule.euler(step, flow.latent, velocity))

    def _memories(self, task: Denoise) -> Sequence[Memory]:
        clip_blocks = self.conditions.clip_blocks
        version = sink_version(task.block, clip_blocks)
        for old in [v for v in self.sinks if v < version and task.step == self._last_step]:
            del self.sinks[old]
        time_id = self.conditions.distance.reference_time_id(self.conditions.seed, task.block, task.step)
        window, reference = Window.of(task.block, self.grid.tokens, clip_blocks), self.grid.reference(time_id)
        rings = self.rings[task.step]
        for ring in rings[:1]:  # the others are fetched while the one before them works
            ring.fetch(window)
        return [
            BlockMemory(ring, window, sink, reference, self.work.rotate)
            for ring, sink in zip(rings, self.sinks[version], strict=True)
        ]

    def saved_rings(self, step: int) -> tuple[torch.Tensor, ...]:
        """The keys and values of a step as they are now: as many tensors as a ring has (see `BlockRing.tensors`), each
        [layers, rows, heads, ...], copies on the CPU."""
        held = [ring.tensors() for ring in self.rings[step]]
        return tuple(_copied(kind) for kind in zip(*held, strict=True))

    def saved_sink(self, version: int) -> tuple[torch.Tensor, ...]:
        """A version of the sink: its keys and its values, [layers, 2.5 S, heads, head_dim] each, copies on the CPU."""
        sinks = self.sinks[version]
        return _copied([torch.cat((s.reference_k, s.motion_k)) for s in sinks]), _copied([s.v for s in sinks])

    def restore_rings(self, step: int, saved: Sequence[torch.Tensor]) -> None:
        """Take back what `saved_rings` gave."""
        for ring, *kept in zip(self.rings[step], *saved, strict=True):
            for tensor, value in zip(ring.tensors(), kept, strict=True):
                tensor.copy_(value)

    def restore_sink(self, version: int, saved: Sequence[torch.Tensor]) -> None:
        """Take back what `saved_sink` gave."""
        frame, (keys, values) = self.grid.tokens, (t.to(self.device) for t in saved)
        self.sinks[version] = [
            SinkKV(k[:frame].clone(), k[frame:].clone(), v.clone()) for k, v in zip(keys, values, strict=True)
        ]

    @property
    def _last_step(self) -> int:
        return max(self.rings)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers as inference has them: what came from another process or thread is copied.

    To autograd the two are of different kinds, and compiled layers know one of them.
    """
    return tensor if tensor.is_inference() or not torch.is_inference_mode_enabled() else tensor.clone()


def _copied(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Equal tensors of any device, side by side on the CPU."""
    copied = torch.empty((len(tensors), *tensors[0].shape), dtype=tensors[0].dtype)
    for copy, tensor in zip(copied, tensors, strict=True):
        copy.copy_(tensor)
    return copied
