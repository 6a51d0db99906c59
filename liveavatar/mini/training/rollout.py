"""Blocks in sequence, as at inference, but differentiable.

The layers are the real ones and so is the order of tokens, positions, sinks and steps; only the ring is a list that
remembers gradients instead of a buffer that is written into.
"""

from __future__ import annotations

import dataclasses

import torch

from ...config import WINDOW_BLOCKS
from ...model.attention import KeyValue
from ...model.kv_cache import SinkKV, SinkRecorder
from ...model.layer import AudioTokens, TextKV
from ...model.rope import Rope, RopeGrid, apply_rope
from ...model.transformer import CausalS2VTransformer, TimestepEmbedding
from ...request import SinkDistance
from ...task_graph import sink_version


@dataclasses.dataclass
class TrainingKVCache:
    """A noise pass' memory for training: earlier blocks' keys and values in a list, with their gradients.

    Attributes:
        past: of the blocks before, oldest first; grows by this block's.
        sink, reference: as in `model.kv.BlockCache`.
    """

    past: list[KeyValue]
    sink: SinkKV
    reference: Rope

    def update(self, k: torch.Tensor, v: torch.Tensor, rope: Rope) -> tuple[KeyValue]:
        """Remember the block's own keys and values, then list all it attends to."""
        self.past.append((apply_rope(k, rope), v))
        del self.past[:-WINDOW_BLOCKS]
        keys = [k for k, _ in self.past] + [apply_rope(self.sink.reference_k, self.reference), self.sink.motion_k]
        return ((torch.cat(keys), torch.cat([v for _, v in self.past] + [self.sink.v])),)

    def release(self) -> None:
        """Nothing to do."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """One training video, encoded.

    Attributes:
        reference: latent of the reference picture [16, 1, h, w].
        motion: latents of the picture standing still [16, 19, h, w].
        latents: of the video [16, 3 blocks, h, w].
        context: prompt features [n, text_dim].
        audio: features of every frame [12 blocks, layers, channels]; of several speakers [speakers, 12 blocks, ...].
        masks: where each of several speakers is heard [speakers, 3, h / 2, w / 2, 1]; None of one.
    """

    reference: torch.Tensor
    motion: torch.Tensor
    latents: torch.Tensor
    context: torch.Tensor
    audio: torch.Tensor
    masks: torch.Tensor | None = None

    @property
    def blocks(self) -> int:
        """Blocks of the video."""
        return self.latents.shape[1] // 3

    def window(self, first: int, blocks: int) -> Scene:
        """Some of its blocks."""
        latents, audio = (
            self.latents[:, 3 * first : 3 * (first + blocks)],
            self.audio[..., 12 * first : 12 * (first + blocks), :, :],
        )
        return dataclasses.replace(self, latents=latents, audio=audio)

    def block_audio(self, net: CausalS2VTransformer, index: int) -> AudioTokens:
        """Audio tokens of one block."""
        heard = self.audio[..., 12 * index : 12 * index + 12, :, :].movedim(-3, -1)
        return net.embed_audio(heard.reshape(-1, *heard.shape[-3:]), self.masks)


class Rollout:
    """A scene passing a network at one step after another.

    Args:
        net: the whole network.
        scene: what is seen and heard.
        first_block: the scene's place in an endless video; from clip 1 on the sink is the scene's own first latent.
        seed: of the sink distances.
        timesteps: of the steps.
    """

    def __init__(
        self, net: CausalS2VTransformer, scene: Scene, first_block: int, seed: int, timesteps: tuple[float, ...]
    ):
        self.net, self.scene, self.first_block, self.seed = net, scene, first_block, seed
        height, width = scene.latents.shape[-2:]
        self.grid = RopeGrid(height // 2, width // 2, net.config.head_dim, scene.latents.device)
        self.text: list[TextKV] = net.text_kv(net.embed_text(scene.context))
        self.time: TimestepEmbedding = net.embed_timesteps([*timesteps, 0.0])
        self._sinks: dict[int, list[SinkKV]] = {}
        self._audio = [scene.block_audio(net, i) for i in range(scene.blocks)]

    def velocities(self, step: int, noisy: torch.Tensor, second_reference: torch.Tensor) -> torch.Tensor:
        """All blocks at one step.

        Args:
            step: which denoising step.
            noisy: latents at the step's noise level [16, 3 blocks, h, w].
            second_reference: first latent frame of block 0 [16, 1, h, w], the sink of clip 1 and later.

        Returns:
            Velocities of the shape of `noisy`.
        """
        past: list[list[KeyValue]] = [[] for _ in self.net.slice.layers]
        return torch.cat(
            [
                self._velocity(i, step, noisy[:, 3 * i : 3 * i + 3], second_reference, past)
                for i in range(self.scene.blocks)
            ],
            1,
        )

    def _velocity(
        self, index: int, step: int, noisy: torch.Tensor, second_reference: torch.Tensor, past: list[list[KeyValue]]
    ) -> torch.Tensor:
        block = self.first_block + index
        time_id = SinkDistance().reference_time_id(self.seed, block, step)
        reference = self.grid.reference(time_id)
        sinks = self._sink(sink_version(block), second_reference)
        memories = [TrainingKVCache(p, s, reference) for p, s in zip(past, sinks, strict=True)]
        tokens = self.net.run_layers(
            self.net.embed_block(noisy),
            self.net.modulation(self.time.layers[step]),
            self.grid.block(block),
            self.text,
            memories,
            self._audio[index],
        )
        return self.net.velocity(tokens, self.time.head[step], self.grid.rows, self.grid.columns)

    def _sink(self, version: int, second_reference: torch.Tensor) -> list[SinkKV]:
        if version not in self._sinks:
            reference = second_reference if version else self.scene.reference
            memories = [SinkRecorder(self.grid.tokens) for _ in self.net.slice.layers]
            rope = self.grid.reference() + self.grid.motion()
            tokens = self.net.embed_sink(reference, self.scene.motion)
            self.net.run_layers(tokens, self.net.modulation(self.time.layers[-1]), rope, self.text, memories, None)
            self._sinks[version] = [m.sink for m in memories if m.sink is not None]
        return self._sinks[version]
