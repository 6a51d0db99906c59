"""Core's own VAE and CLIP in place of the model's parts. Their memory stays core's business."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..liveavatar.conditioning_cache import PROMPTS, LatestResults
from ..liveavatar.encoders.text import clean_prompt
from ..liveavatar.errors import ModelError, OutputError, RequestError
from ..liveavatar.events import ENCODING_PROMPT, Callback, share_event
from ..liveavatar.pipeline import LiveAvatarPipeline
from ..liveavatar.weights.kinds import Kind
from ..liveavatar.weights.settings import vae_tensors
from ..liveavatar.weights.source import DictSource
from . import paths

_TOKENS = "umt5xxl"
"""What core's tokenizer calls the tokens of a CLIP of the type wan."""
_NEAREST_CLIP = "Connect core Load CLIP with umt5_xxl_fp16 or umt5_xxl_fp8_e4m3fn_scaled, and the type wan."
_encoded: weakref.WeakKeyDictionary[Any, LatestResults[torch.Tensor]] = weakref.WeakKeyDictionary()
"""The latest prompts that each CLIP has encoded, as long as core keeps it."""


def vae_file(vae: Any) -> Path:
    """A VAE of core's Load VAE as a file in ComfyUI's temporary folder, which is emptied when ComfyUI starts.

    The weights are read out of core's object, because core's decoder keeps no state from block to block; and into a
    file, because worker processes read it too. The same weights are written once.

    Raises:
        ModelError: no VAE, or none of Wan 2.1.
        OutputError: the file cannot be written.
    """
    tensors = _tensors_of(vae)
    vae_tensors(DictSource(tensors, "The connected VAE"))
    path = paths.temporary_folder() / f"liveavatar-vae-{_digest(tensors)}.safetensors"
    if path.is_file():
        return path
    from safetensors.torch import save_file

    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, unfinished)
        unfinished.replace(path)
    except Exception as error:  # safetensors has an error of its own for a full disk
        unfinished.unlink(missing_ok=True)
        raise OutputError(
            f"The connected VAE cannot be written to {path.parent} ({error}).",
            "Make room there, or choose the file in Load Model's vae.",
        ) from error
    return path


def _tensors_of(vae: Any) -> dict[str, torch.Tensor]:
    """The weights of core's object, on the CPU, under the names it has for them."""
    try:
        found: Mapping[str, torch.Tensor] = vae.get_sd()
    except AttributeError as error:
        raise ModelError(f"The connected VAE is {type(vae).__name__}.", Kind.VAE.nearest) from error
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def read_prompts(
    model: LiveAvatarPipeline, prompts: Sequence[str], clip: Any, callback: Callback
) -> dict[str, torch.Tensor]:
    """Features of prompts [n, text_dim], by core's CLIP where one is connected, else by the model's own encoder.

    Raises:
        RequestError: a CLIP of another type.
    """
    texts = list(dict.fromkeys(prompts))
    if clip is None:
        return dict(zip(texts, model.encode_prompts(texts, callback), strict=True))
    contexts = {}
    for number, text in enumerate(texts):
        callback(share_event(ENCODING_PROMPT, number / len(texts)))
        contexts[text] = _encode_by(clip, text, model.config.text_len)
    callback(share_event(ENCODING_PROMPT, 1.0))
    return contexts


def _encode_by(clip: Any, prompt: str, length: int) -> torch.Tensor:
    """A prompt as core's CLIP of the type wan encodes it: rows [n <= length, width], float32, zeros behind the words.

    Core loads the CLIP and takes its memory back. A prompt that the same CLIP encoded lately is not encoded again.

    Raises:
        RequestError: a CLIP of another type.
    """
    try:
        tokens = clip.tokenize(clean_prompt(prompt))
    except AttributeError as error:
        raise RequestError(f"The connected CLIP is {type(clip).__name__}.", _NEAREST_CLIP) from error
    if set(tokens) != {_TOKENS}:
        raise RequestError(f"The connected CLIP is of another type: it reads {', '.join(tokens)}.", _NEAREST_CLIP)
    latest = _encoded.setdefault(clip, LatestResults(PROMPTS))
    rows = latest.get((prompt,))
    if rows is None:
        rows = clip.encode_from_tokens(tokens)[0].detach().float().cpu()
        latest.put((prompt,), rows)
    return rows[:length]
