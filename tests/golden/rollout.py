"""Drives the network call by call, as the recordings were made: explicit blocks, distances and pose conditions."""

from __future__ import annotations

import torch
from golden.cases import Case

from liveavatar.config import ModelConfig
from liveavatar.model.kv_cache import BlockCache, RollingKVCache, SinkKV, SinkRecorder, Window
from liveavatar.model.layer import AudioTokens
from liveavatar.model.rope import RopeGrid
from liveavatar.model.transformer import CausalS2VTransformer, ModelSlice, empty_transformer
from liveavatar.request import SinkDistance
from liveavatar.weights.load import fill
from liveavatar.weights.source import DictSource

PER_BLOCK = 3
AUDIO_PER_BLOCK = 12


def config_of(values: dict, weights: Case) -> ModelConfig:
    """Dimensions of a case; the number of audio layers is known from the weights only."""
    return ModelConfig.from_dict({**values, "audio_layers": weights["casual_audio_encoder.weights"].shape[1]})


def load_network(weights: Case, values: dict, replaced: dict[str, torch.Tensor] | None = None) -> CausalS2VTransformer:
    """The whole network with a case's weights, some of them replaced."""
    config = config_of(values, weights)
    net = empty_transformer(config, ModelSlice.whole(config))
    fill(net, DictSource({**weights.state_dict(), **(replaced or {})}), dtype=torch.float32, device="cpu")
    return net


class Rollout:
    """One network, its rings and its sink.

    Args:
        case: family "dit".
        net: the network, by default with the case's weights.
    """

    def __init__(self, case: Case, net: CausalS2VTransformer | None = None):
        self.case, cfg = case, case.info["config"]
        self.net = net or load_network(case.sibling("dit_weights"), cfg["model"])
        self.config = self.net.config
        self.cache_blocks = cfg["cache_blocks"]
        self.rows, self.columns = (n // 2 for n in cfg["lat_hw"])
        self.grid = RopeGrid(self.rows, self.columns, self.config.head_dim)
        self.text = self.net.text_kv(self.net.embed_text(case["in.context"]))
        self.timesteps = case["timesteps"].tolist()
        self.time = self.net.embed_timesteps([*self.timesteps, 0.0])
        self.clear_rings()

    def clear_rings(self) -> None:
        """Forget every block."""
        shape = (self.grid.tokens, self.config.num_heads, self.config.head_dim, torch.float32, torch.device("cpu"))
        self.rings = [
            [RollingKVCache.empty(*shape, self.cache_blocks) for _ in range(self.config.num_layers)]
            for _ in self.timesteps
        ]

    def prefill(self, reference: torch.Tensor, motion: torch.Tensor) -> list[SinkKV]:
        """Fill the sink from [1,16,1,h,w] and [1,16,19,h,w]."""
        rope = self.grid.reference() + self.grid.motion()
        memories = [SinkRecorder(self.grid.tokens) for _ in range(self.config.num_layers)]
        x = self.net.embed_sink(reference[0], motion[0])
        self.net.run_layers(x, self.net.modulation(self.time.layers[-1]), rope, self.text, memories, None)
        self.sinks = [m.sink for m in memories]
        return self.sinks

    def memories(self, block: int, step: int, distance: int) -> list[BlockCache]:
        """What the layers look back to in one call."""
        time_id = SinkDistance("fixed", distance).reference_time_id(0, block, step)
        window = Window.of(block, self.grid.tokens, self.cache_blocks)
        reference = self.grid.reference(time_id)
        return [
            BlockCache(ring, window, sink, reference) for ring, sink in zip(self.rings[step], self.sinks, strict=True)
        ]

    def audio(self, inputs_of: int, actors: bool = False) -> AudioTokens:
        """What block `inputs_of` hears."""
        part = slice(inputs_of * AUDIO_PER_BLOCK, (inputs_of + 1) * AUDIO_PER_BLOCK)
        names = ("in.audio", "in.audio_b") if actors else ("in.audio",)
        features = torch.cat([self.case[n][..., part] for n in names])
        return self.net.embed_audio(features, self.case["in.mask"] if actors else None)

    def velocity(
        self, block: int, step: int, latent: torch.Tensor, distance: int, inputs_of: int | None = None, actors=False
    ) -> torch.Tensor:
        """One call of the network at one block and step: [16,3,h,w]"""
        source = block if inputs_of is None else inputs_of
        pose = self.case["in.cond_states"][0, :, source * PER_BLOCK : (source + 1) * PER_BLOCK]
        x = self.net.run_layers(
            self.net.embed_block(latent, pose),
            self.net.modulation(self.time.layers[step]),
            self.grid.block(block),
            self.text,
            self.memories(block, step, distance),
            self.audio(source, actors),
        )
        return self.net.velocity(x, self.time.head[step], self.rows, self.columns)

    def noise(self, inputs_of: int) -> torch.Tensor:
        """Recorded noise of a block: [16,3,h,w]"""
        return self.case["in.noise"][:, inputs_of * PER_BLOCK : (inputs_of + 1) * PER_BLOCK]
