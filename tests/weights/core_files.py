"""A model folder in the official layout, rewritten as ComfyUI's own loaders take it: one file per part."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from liveavatar.weights import folder as names
from liveavatar.weights.formats import umt5_to_transformers
from liveavatar.weights.quantised import SPIECE

FORMS = ("bf16", "fp16", "old fp8", "old fp8 per row", "fp8 by marks", "fp8 by header", "plain fp8")
LARGEST = 448.0
"""Of float8_e4m3fn."""
SENTENCES = (
    "A woman speaks to the camera and smiles.",
    "The man in the blue shirt nods slowly, then he laughs.",
    "Quiet light, a plain wall; she looks happy, sad, or very surprised!",
    "Dunkle Wand, helles Licht, 0123456789.",
)


@dataclasses.dataclass(frozen=True)
class CoreFiles:
    """Where the parts lie: arguments of `find_model`."""

    transformer: Path
    lora: Path
    vae: Path
    text_encoder: Path
    audio_encoder: Path

    @property
    def beside(self) -> dict[str, Path]:
        """All but the transformer."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[1:]}


def write_core_files(models: Path, official: Path, form: str = "bf16", prefix: str = "") -> CoreFiles:
    """Convert an official folder; the folders are those of ComfyUI, with every part in its own."""
    places = ("diffusion_models/s2v", "loras/live", "vae/wan_2.1_vae", "text_encoders/umt5", "audio_encoders/wav2vec2")
    files = CoreFiles(*(models / f"{place}.safetensors" for place in places))
    for path in (files.transformer, *files.beside.values()):
        path.parent.mkdir(parents=True, exist_ok=True)
    shards = sorted(official.glob("diffusion_pytorch_model*.safetensors"))
    network = {key: tensor for shard in shards for key, tensor in load_file(shard).items()}
    save(files.transformer, network, form, prefix)
    save_file(load_file(official / names.LORA_FILE), files.lora)
    save_file(torch.load(official / names.VAE_FILE), files.vae)
    text = {umt5_to_transformers(key): tensor for key, tensor in torch.load(official / names.TEXT_FILE).items()}
    save(files.text_encoder, text, form, extra={SPIECE: as_bytes(sentencepiece_model())})
    audio = load_file(official / names.AUDIO_FOLDER / "model.safetensors")
    save(files.audio_encoder, audio, "fp16")
    return files


def save(path: Path, tensors: dict[str, torch.Tensor], form: str, prefix: str = "", extra=None) -> None:
    """Write tensors in one of the `FORMS`."""
    stored, metadata = quantise(tensors, form, prefix)
    stored = {f"{prefix}{key}": tensor.contiguous() for key, tensor in (stored | (extra or {})).items()}
    save_file(stored, path, metadata=metadata)


def quantise(tensors: dict[str, torch.Tensor], form: str, prefix: str = "") -> tuple[dict, dict[str, str]]:
    """The tensors as files of this form hold them, with bookkeeping, and the header's entries."""
    if form in ("bf16", "fp16"):
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[form]
        return {key: tensor.to(dtype) for key, tensor in tensors.items()}, {"format": "pt"}
    if form == "plain fp8":
        small = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in tensors.items() if key in matrices(tensors)}
        return tensors | small, {}
    old = form.startswith("old")
    out = dict(tensors) | ({"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)} if old else {})
    layers = {}
    for key in matrices(tensors):
        layer, weight = key.removesuffix(".weight"), tensors[key].float()
        scale = (
            weight.abs().amax(1, keepdim=True) / LARGEST if form.endswith("per row") else weight.abs().max() / LARGEST
        )
        out[key] = (weight / scale).to(torch.float8_e4m3fn)
        out[f"{layer}.{'scale_weight' if old else 'weight_scale'}"] = scale
        out[f"{layer}.{'scale_input' if old else 'input_scale'}"] = torch.ones(())
        layers[f"{prefix}{layer}"] = {"format": "float8_e4m3fn"}
        if form == "fp8 by marks":
            out[f"{layer}.comfy_quant"] = as_bytes(json.dumps({"format": "float8_e4m3fn"}).encode())
    header = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    return out, header if form == "fp8 by header" else {}


def matrices(tensors: Iterable[str]) -> list[str]:
    """The weights that quantised files hold in fp8: those of linear layers inside the blocks."""
    inside = ("self_attn", "cross_attn", "ffn", "injector.", "SelfAttention.", "DenseReluDense")
    linear = [key for key in tensors if key.endswith(".weight") and any(name in key for name in inside)]
    return [key for key in linear if "norm" not in key and "bias" not in key]


def as_bytes(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def sentencepiece_model(size: int = 60, end: int = 1, pad: int = 0) -> bytes:
    """A small tokenizer of the T5 kind, learnt from a few sentences."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=size,
        pad_id=pad,
        eos_id=end,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
