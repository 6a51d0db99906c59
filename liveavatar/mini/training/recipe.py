"""Every number the miniature is trained with."""

from __future__ import annotations

import dataclasses

from ...config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Sizes and schedules of all parts; the defaults made the shipped miniature.

    Attributes:
        seed: of all data and weights.
        size: pixels of the square training pictures.
        vae_base_dim, vae_dim_mult, vae_res_blocks: of the VAE.
        vae_decoder_steps, vae_decoder_rate: steps of its decoder alone afterwards, and their highest learning rate.
        vae_still_steps: of its steps, those at the start that see single pictures.
        vae_people: drawn for its pictures.
        vae_whole_share: share of its steps with one whole picture; the others see four quarters.
        vae_noise: highest standard deviation of the noise on its latents, of 1.
        tiny_widths: channels of the tiny decoder's three levels and of its last layer.
        tiny_people: whose latents it learns from.
        tiny_steps, tiny_rate: its steps and their highest learning rate.
        dim, ffn_dim, num_heads, num_layers, audio_inject_layers: of the network.
        text_dim, text_len, text_layers, vocabulary: of the text encoder.
        audio_dim, audio_layers: hidden states of the sound encoder: their width, and their number with the input's.
        scenes, scene_blocks: encoded training videos, and blocks in each.
        vae_steps, sound_steps, words_steps, network_steps: optimiser steps of each part.
        vae_rate, sound_rate, words_rate, network_rate: their highest learning rates.
        refine_steps, refine_rate: of the network's refinement, and its highest learning rate.
        early_share: share of the network's steps after which the weights are kept aside; the LoRA is what came later.
        lora_rank: of the shipped LoRA.
        pair_scenes, pair_steps, pair_rate, pair_rank: encoded videos of two people, steps of the LoRA that learns from
            them, its highest learning rate and its rank.
    """

    seed: int = 20
    size: int = 128
    vae_base_dim: int = 16
    vae_dim_mult: tuple[int, ...] = (1, 2, 2, 4)
    vae_res_blocks: int = 1
    vae_people: int = 400
    vae_whole_share: float = 0.2
    vae_noise: float = 0.1
    vae_still_steps: int = 9500
    vae_decoder_steps: int = 3700
    vae_decoder_rate: float = 8e-4
    tiny_widths: tuple[int, int, int, int] = (64, 64, 32, 16)
    tiny_people: int = 160
    tiny_steps: int = 4000
    tiny_rate: float = 2e-3
    dim: int = 192
    ffn_dim: int = 512
    num_heads: int = 4
    num_layers: int = 6
    audio_inject_layers: tuple[int, ...] = (0, 2, 4)
    text_dim: int = 64
    text_len: int = 32
    text_layers: int = 2
    vocabulary: int = 768
    audio_dim: int = 64
    audio_layers: int = 5
    scenes: int = 600
    scene_blocks: int = 8
    vae_steps: int = 10850
    sound_steps: int = 1500
    words_steps: int = 2000
    network_steps: int = 3400
    vae_rate: float = 2e-3
    sound_rate: float = 2e-3
    words_rate: float = 2e-3
    network_rate: float = 1e-3
    refine_steps: int = 7000
    refine_rate: float = 1e-3
    early_share: float = 0.3
    lora_rank: int = 32
    pair_scenes: int = 32
    pair_steps: int = 360
    pair_rate: float = 2e-3
    pair_rank: int = 16

    @property
    def network(self) -> ModelConfig:
        """Dimensions of the transformer."""
        return ModelConfig(
            dim=self.dim,
            ffn_dim=self.ffn_dim,
            freq_dim=64,
            num_heads=self.num_heads,
            num_layers=self.num_layers,
            text_dim=self.text_dim,
            text_len=self.text_len,
            audio_dim=self.audio_dim,
            audio_layers=self.audio_layers,
            audio_inject_layers=self.audio_inject_layers,
        )
