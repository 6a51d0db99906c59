"""The untrained model: the same architecture at a ten-thousandth of the size, with seeded random weights.

It is made in code in a moment, for tests and measurements. What it draws means nothing, but every step on the way is
the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ..config import UNTRAINED
from ..storage import WeightFormat
from ..utils import without_memory

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..encoders.umt5 import UMT5EncoderModel
    from ..encoders.wav2vec2 import Wav2Vec2Model
    from ..model.transformer import CausalS2VTransformer, ModelSlice
    from ..vae.autoencoder import AutoencoderKLWan
    from ..weights.load import DType, TensorDevice

M = TypeVar("M", bound="nn.Module")

SEED = 20
"""Of all weights of the embedded model."""
VAE: dict[str, Any] = {"base_dim": 8, "num_res_blocks": 1, "dim_mult": [1, 1, 2, 2]}
"""Chosen for speed: 0.1 s for a block of 128x128 on one core."""
UMT5: dict[str, Any] = {
    "vocab_size": 384,
    "d_model": UNTRAINED.text_dim,
    "d_kv": 16,
    "d_ff": 96,
    "num_heads": 3,
    "num_layers": 2,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "dropout_rate": 0.0,
}
WAV2VEC2: dict[str, Any] = {
    "hidden_size": UNTRAINED.audio_dim,
    "num_hidden_layers": UNTRAINED.audio_layers - 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "vocab_size": 33,
}


_PAD, _END, _FIRST_BYTE = 0, 1, 3
"""Tokens of ByT5."""


class ByteTokenizer:
    """Text to its bytes in UTF-8, as ByT5 reads them; called as `liveavatar.weights.tokenizer.JsonTokenizer` is."""

    def __call__(self, texts: Sequence[str], *, max_length: int, **_: object) -> dict[str, torch.Tensor]:
        """Texts -> "input_ids" and "attention_mask", int64 [texts, max_length]; what is too long loses its end."""
        import torch

        rows = [[*(byte + _FIRST_BYTE for byte in text.encode()[: max_length - 1]), _END] for text in texts]
        return {
            "input_ids": torch.tensor([row + [_PAD] * (max_length - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (max_length - len(row)) for row in rows]),
        }

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text that tokens stand for."""
        return bytes(int(i) - _FIRST_BYTE for i in ids if int(i) >= _FIRST_BYTE).decode(errors="ignore")


class UntrainedComponents:
    """The parts of the untrained model (see `liveavatar.components.Components`)."""

    name = "untrained"
    config = UNTRAINED
    trained = False

    @property
    def numbers(self) -> tuple[float, ...]:
        """What it was made with: with its name, enough to make the same model in another process."""
        return ()

    def transformer(
        self, model_slice: ModelSlice, device: TensorDevice, dtype: DType, weights: WeightFormat = "plain"
    ) -> CausalS2VTransformer:
        from ..model.transformer import empty_transformer

        return _seeded(lambda: empty_transformer(UNTRAINED, model_slice, weights), device, dtype)

    def vae(self, device: torch.device | str, dtype: torch.dtype) -> AutoencoderKLWan:
        from ..vae.wan import build_vae, optimize_layout

        # Pictures in [-1, 1] with few pixels at the limits, and latents of about unit size, like a trained VAE.
        scales = {"decoder.conv_out.weight": 0.8, "quant_conv.weight": 1.5}
        return optimize_layout(_seeded(lambda: build_vae(**VAE), device, dtype, scales))

    def text_encoder(self, device: torch.device | str, dtype: torch.dtype) -> tuple[UMT5EncoderModel, ByteTokenizer]:
        """A small UMT5 that reads bytes: its tokenizer needs no file."""
        from ..encoders.umt5 import UMT5Config, UMT5EncoderModel

        return _seeded(lambda: UMT5EncoderModel(UMT5Config.of(UMT5)), device, dtype), self.tokenizer()

    def tokenizer(self) -> ByteTokenizer:
        return ByteTokenizer()

    def audio_encoder(self, device: torch.device | str, dtype: torch.dtype) -> Wav2Vec2Model:
        from ..encoders.wav2vec2 import Wav2Vec2Config, Wav2Vec2Model

        return _seeded(lambda: Wav2Vec2Model(Wav2Vec2Config.of(WAV2VEC2)), device, dtype)

    def describe(self) -> str:
        return f"untrained: random weights of seed {SEED}, made in code"


def _seeded(build: Callable[[], M], device: TensorDevice, dtype: DType, scales: dict[str, float] | None = None) -> M:
    from ..weights.load import fill
    from .seeded import SeededSource

    with without_memory():
        module = build()
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    fill(module, SeededSource(shapes, SEED, scales), dtype=dtype, device=device)
    return module
