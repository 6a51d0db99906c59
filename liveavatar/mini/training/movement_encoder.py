"""The small wav2vec2: what it is, what is read off it while it learns, and how it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from ...encoders import audio

if TYPE_CHECKING:
    from .recipe import Recipe

SETTINGS: dict[str, Any] = {
    "num_attention_heads": 4,
    "conv_dim": [16, 16, 32, 32, 32, 32, 32],
    "conv_kernel": list(audio.CONV_KERNELS),
    "conv_stride": list(audio.CONV_STRIDES),
    "num_conv_pos_embeddings": 64,
    "num_conv_pos_embedding_groups": 4,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "layerdrop": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "vocab_size": 33,
}
"""What the official layout's config.json says besides widths; nothing is masked or dropped, so that it only listens."""


def wav2vec2_settings(recipe: Recipe) -> dict[str, Any]:
    """Arguments of `transformers.Wav2Vec2Config`."""
    width = recipe.audio_dim
    widths = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": recipe.audio_layers - 1}
    return {**SETTINGS, **widths}


class MovementEncoder(nn.Module):
    """wav2vec2 with a head that reads the mouth off its hidden states, per video frame at 25 a second.

    The hidden states are mixed as the network does it: by SiLU of one weight per layer, divided by the weights' sum.

    Attributes:
        encoder: `transformers.Wav2Vec2Model`; all that is kept after training.
    """

    def __init__(self, recipe: Recipe, targets: int):
        super().__init__()
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        encoder: Any = Wav2Vec2Model(Wav2Vec2Config(**wav2vec2_settings(recipe)))
        self.encoder = encoder
        self.weights = nn.Parameter(torch.ones(recipe.audio_layers, 1, 1, 1))
        self.head = nn.Linear(recipe.audio_dim, targets)
        # The first norm takes loudness out wherever the sound outweighs the bias; with none it could not be heard.
        nn.init.normal_(encoder.feature_extractor.conv_layers[0].conv.bias)

    def forward(self, waves: torch.Tensor, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What is read off normalised 16 kHz waves [b, n].

        Returns:
            Targets [b, frames, targets], and the mixed features [b, frames, audio_dim] they are read from.
        """
        out = self.encoder(waves, output_hidden_states=True)
        states = torch.stack([*out.hidden_states[:-1], out.last_hidden_state])
        return self.read(torch.stack([at_frames(state, frames) for state in states]))

    def read(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `forward`, from hidden states [layers, b, frames, audio_dim]."""
        weights = F.silu(self.weights)
        rows = (states * weights).sum(0) / weights.sum()
        return self.head(rows), rows


def at_frames(states: torch.Tensor, frames: int) -> torch.Tensor:
    """Rows [b, n, c] at 50 a second -> the row each video frame hears [b, frames, c], as `encode_audio` picks them."""
    steps = audio.resampled_count(states.shape[1])
    stretched = F.interpolate(states.transpose(1, 2), size=steps, mode="linear", align_corners=True)
    indices = torch.from_numpy(audio.feature_indices(frames)).to(states.device)
    return stretched.transpose(1, 2)[:, indices]


def samples_for(frames: int) -> int:
    """The fewest 16 kHz samples with which each of so many video frames hears a feature."""
    return audio.samples_of(audio.features_needed(frames))
