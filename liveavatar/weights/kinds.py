"""What a file of weights is, by the names of its tensors."""

from __future__ import annotations

import enum
import re

from ..errors import ModelError
from .header import AnotherKind
from .source import TensorSource

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "module.", "net.", "dit.")
"""What stands before the transformer's names: in files of ComfyUI, and as trainers keep it."""
_MARK, _AUDIO_MARK = "head.modulation", "casual_audio_encoder.encoder.final_linear.weight"
"""Tensors of every Wan transformer, and of sound-to-video alone."""
_LORA = re.compile(r".*\.(?:lora_(?:A|B|up|down)\b|lokr_w\d|hada_w\d|oft_).*|lora_unet_.*", re.DOTALL)
_BIAS = re.compile(r"encoder\.block\.\d+\..+\.relative_attention_bias\.weight")


class Kind(enum.Enum):
    """What a file of weights is: in words, and the files to use where one of this kind is wanted."""

    TRANSFORMER = (
        "a sound-to-video transformer of Wan 2.2",
        "wan2.2_s2v_14B_bf16, wan2.2_s2v_14B_fp8_scaled or a GGUF of Wan2.2-S2V-14B",
    )
    DIFFUSERS = "a Wan transformer in the names of diffusers", ""
    UNMERGED = "a transformer with a LoRA beside its matrices, not merged into them", ""
    OTHER_WAN = "a Wan transformer of another kind than sound-to-video", ""
    LORA = "a LoRA", "liveavatar.safetensors of Quark-Vision/Live-Avatar"
    VAE = "a VAE of Wan 2.1", "wan_2.1_vae.safetensors or Wan2.1_VAE.pth"
    VAE_2_2 = "a VAE of Wan 2.2", ""
    TINY_VAE = "a tiny VAE (TAEHV)", "taew2_1 or lighttaew2_1"
    TEXT = (
        "a UMT5 text encoder",
        "umt5_xxl_fp16, umt5_xxl_fp8_e4m3fn_scaled, a GGUF of them or models_t5_umt5-xxl-enc-bf16.pth",
    )
    T5 = "a T5 text encoder, which is older than UMT5", ""
    CLIP = "a CLIP text encoder", ""
    AUDIO = "a wav2vec2 audio encoder", "wav2vec2_large_english_fp16.safetensors"
    WHISPER = "a Whisper audio encoder", ""

    @property
    def words(self) -> str:
        return self.value[0]

    @property
    def nearest(self) -> str:
        """The sentence that names the right files."""
        return f"Use {self.value[1]}."


def kind_of(keys: frozenset[str]) -> Kind | None:
    """What a file is by the names of its tensors; None for one never seen."""
    prefix = transformer_prefix(keys)
    whole = f"{prefix}{_MARK}" in keys
    if any(_LORA.fullmatch(key) for key in keys):
        return Kind.UNMERGED if whole else Kind.LORA
    biases = [key for key in keys if _BIAS.fullmatch(key)]
    for kind, recognised in (
        (Kind.TRANSFORMER, f"{prefix}{_AUDIO_MARK}" in keys),
        (Kind.OTHER_WAN, whole),
        (Kind.DIFFUSERS, any(key.endswith("condition_embedder.time_embedder.linear_1.weight") for key in keys)),
        (Kind.VAE_2_2, "decoder.upsamples.0.upsamples.0.residual.2.weight" in keys),
        (Kind.VAE, "decoder.middle.0.residual.0.gamma" in keys),
        (Kind.VAE, in_diffusers_names(keys)),
        (Kind.TINY_VAE, {"decoder.1.weight", "decoder.3.conv.0.weight", "decoder.22.bias"} <= keys),
        (Kind.TEXT, "token_embedding.weight" in keys and "blocks.0.pos_embedding.embedding.weight" in keys),
        (Kind.TEXT, bool(biases) and len(biases) >= count_layers(keys, "encoder.block.")),
        (Kind.T5, bool(biases)),
        (Kind.CLIP, any(key.startswith("text_model.encoder.layers.") for key in keys)),
        (Kind.AUDIO, any(".pos_conv_embed.conv." in key for key in keys)),
        (Kind.WHISPER, "model.encoder.embed_positions.weight" in keys),
    ):
        if recognised:
            return kind
    return None


def in_diffusers_names(keys: frozenset[str]) -> bool:
    """Whether these are the tensors of a Wan 2.1 VAE under the names it has in diffusers."""
    return "decoder.mid_block.resnets.0.norm1.gamma" in keys and "decoder.up_blocks.0.resnets.0.conv1.weight" in keys


def refuse_another_kind(source: TensorSource, wanted: Kind) -> None:
    """Make sure that a file is not recognised as something else.

    Raises:
        AnotherKind: it is; with what it is and what to use.
    """
    kind = kind_of(source.keys())
    if kind and kind is not wanted:
        raise AnotherKind(f"{source.describe()} is {kind.words}, not {wanted.words}.", wanted.nearest)


def count_layers(keys: frozenset[str], stem: str) -> int:
    """How many numbers follow `stem` in names."""
    return len({key[len(stem) :].split(".")[0] for key in keys if key.startswith(stem)})


def transformer_prefix(keys: frozenset[str]) -> str:
    """What stands before the names of the transformer in this file: one of the known prefixes, or any other.

    Raises:
        ModelError: several networks lie in the file, under prefixes that are not known.
    """
    if _MARK in keys:
        return ""
    found = sorted(key.removesuffix(_MARK) for key in keys if key.endswith(f".{_MARK}"))
    known = [prefix for prefix in PREFIXES if prefix in found]
    if len(found) > 1 and not known:
        raise ModelError(f"The file holds {len(found)} networks ({', '.join(found[:3])}).", "Use a file of one.")
    return (known or found or [""])[0]
