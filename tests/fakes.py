"""Small stand-ins for what users download: a model folder in the official layout, with random weights."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

from liveavatar.config import UNTRAINED, ModelConfig
from liveavatar.errors import ModelError
from liveavatar.mini.seeded import SeededSource
from liveavatar.mini.untrained import UMT5, WAV2VEC2
from liveavatar.weights import folder as names
from liveavatar.weights.formats import umt5_to_transformers, vae_to_diffusers
from liveavatar.weights.lora import lora_targets

VAE_BASE_DIM = 4
LORA_RANK = 4


def random_tensors(build, seed: int, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """The state dict of a module, with random values."""
    with torch.device("meta"):
        module = build()
    shapes = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    source = SeededSource(shapes, seed)
    return {k: source.read(k).to(dtype) for k in sorted(shapes)}


def write_official_folder(path: Path, config: ModelConfig = UNTRAINED, seed: int = 7, lora: bool = True) -> Path:
    """Write every file of Wan2.2-S2V-14B, at the size of `config`, in the names and dtypes of the published ones.

    The transformer is in two bfloat16 shards, the VAE and the text encoder in pickles under their original names, the
    audio encoder a CTC checkpoint, the LoRA of rank 4 beside them.
    """
    path.mkdir(parents=True, exist_ok=True)
    write_transformer(path, config, seed)
    write_vae(path / names.VAE_FILE, seed)
    write_text_encoder(path, config, seed)
    write_audio_encoder(path / names.AUDIO_FOLDER, config, seed)
    if lora:
        write_lora(path / names.LORA_FILE, config, seed)
    return path


def transformer_tensors(config: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
    from liveavatar.model.transformer import CausalS2VTransformer, ModelSlice

    return random_tensors(lambda: CausalS2VTransformer(config, ModelSlice.whole(config)), seed, torch.bfloat16)


def write_transformer(path: Path, config: ModelConfig, seed: int) -> None:
    tensors = transformer_tensors(config, seed)
    keys = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 :]), 1):
        shard = f"diffusion_pytorch_model-{i:05d}-of-00002.safetensors"
        save_file({k: tensors[k] for k in part}, path / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    total = sum(t.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    settings = dataclasses.asdict(config) | {"model_type": "s2v", "enable_adain": True, "adain_mode": "attn_norm"}
    settings |= {"enable_framepack": True, "enable_motioner": False, "enable_tsm": False, "zero_timestep": True}
    (path / "config.json").write_text(json.dumps(settings))


def write_lora(path: Path, config: ModelConfig, seed: int) -> None:
    tensors = transformer_tensors(config, seed)
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for target in lora_targets(config):
        rows, columns = tensors[f"{target}.weight"].shape
        lora[f"{target}.lora_A.default.weight"] = torch.randn(LORA_RANK, columns, generator=generator).bfloat16() / 16
        lora[f"{target}.lora_B.default.weight"] = torch.randn(rows, LORA_RANK, generator=generator).bfloat16() / 256
    save_file(lora, path)


def write_vae(path: Path, seed: int, base_dim: int = VAE_BASE_DIM) -> None:
    from liveavatar.vae.wan import build_vae

    tensors = random_tensors(lambda: build_vae(base_dim=base_dim), seed)
    halves = [f"{half}.{place}" for half in ("encoder", "decoder") for place in _vae_places()]
    torch.save(_originals(tensors, [*halves, "conv1", "conv2"], vae_to_diffusers), path)


def write_text_encoder(path: Path, config: ModelConfig, seed: int) -> None:
    from transformers import ByT5Tokenizer, UMT5Config, UMT5EncoderModel

    settings = UMT5Config(**(UMT5 | {"d_model": config.text_dim}))
    tensors = random_tensors(lambda: UMT5EncoderModel(settings), seed, torch.bfloat16)
    inner = ("norm1", "norm2", "attn.q", "attn.k", "attn.v", "attn.o", "pos_embedding.embedding")
    inner += ("ffn.gate.0", "ffn.fc1", "ffn.fc2")
    places = [f"blocks.{i}.{name}" for i in range(settings.num_layers) for name in inner]
    torch.save(_originals(tensors, ["token_embedding", "norm", *places], umt5_to_transformers), path / names.TEXT_FILE)
    ByT5Tokenizer().save_pretrained(path / names.TOKENIZER_FOLDER)


def write_audio_encoder(path: Path, config: ModelConfig, seed: int) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    layers = {"hidden_size": config.audio_dim, "num_hidden_layers": config.audio_layers - 1, "mask_time_prob": 0.05}
    shared = ("num_attention_heads", "num_conv_pos_embedding_groups")
    layers |= {name: math.gcd(WAV2VEC2[name], config.audio_dim) for name in shared}
    settings = Wav2Vec2Config(**(WAV2VEC2 | layers))
    tensors = random_tensors(lambda: Wav2Vec2ForCTC(settings), seed)
    settings.save_pretrained(path)
    old = "wav2vec2.encoder.pos_conv_embed.conv"
    for i, letter in enumerate("gv"):
        tensors[f"{old}.weight_{letter}"] = tensors.pop(f"{old}.parametrizations.weight.original{i}")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def _originals(tensors, places, rename) -> dict[str, torch.Tensor]:
    """The same tensors under their original names."""
    found = {}
    for key in (f"{place}.{kind}" for place in places for kind in ("weight", "bias", "gamma")):
        try:
            new = rename(key)
        except ModelError:
            continue
        if new in tensors:
            found[key] = tensors[new].clone()
    missing = set(tensors) - {rename(k) for k in found} - {"encoder.embed_tokens.weight"}
    assert not missing, sorted(missing)[:3]
    return found


def _vae_places() -> list[str]:
    inside = ["residual.0", "residual.2", "residual.3", "residual.6", "shortcut", "resample.1", "time_conv"]
    levels = [f"{way}samples.{n}" for way in ("down", "up") for n in range(15)] + ["middle.0", "middle.2"]
    places = [f"{level}.{name}" for level in levels for name in inside]
    return [*places, "conv1", "head.0", "head.2", "middle.1.norm", "middle.1.to_qkv", "middle.1.proj"]
