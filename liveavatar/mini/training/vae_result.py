"""The trained VAE: taking it out of a checkpoint, its latents' scale, how well it redraws, and its folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...config import FRAMES_PER_LATENT
from ...errors import MissingFilesError
from ...vae.decoding import DecodeState, decode_block
from ...vae.wan import build_vae, encode, use_mkldnn
from .loop import load_checkpoint
from .vae import CHECKPOINT, DECODER, LATENT_CHANNELS, vae_settings
from .vae_clips import Clips, draw_clips

if TYPE_CHECKING:
    from ...vae.autoencoder import AutoencoderKLWan
    from .recipe import Recipe

SCALE = "vae_scale.json"
"""Name in the folder of the work."""
_DECODER_KEYS = ("average.decoder.", "average.post_quant_conv.")


@dataclasses.dataclass(frozen=True)
class TrainedVAE:
    """A trained VAE.

    Attributes:
        weights: by their names in `diffusers.AutoencoderKLWan`, float32.
        settings: arguments of `build_vae`, with the latents' mean and standard deviation.
    """

    weights: dict[str, torch.Tensor]
    settings: dict[str, Any]

    def build(self) -> AutoencoderKLWan:
        """The VAE on the CPU, for inference."""
        vae = build_vae(**self.settings)
        vae.load_state_dict(self.weights)
        return use_mkldnn(vae)


@torch.inference_mode()
def measure_scale(vae: AutoencoderKLWan, clips: Clips) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every latent channel over whole clips."""
    latents = []
    for i in range(len(clips.frames)):
        latents.append(encode(vae, pixels_of(clips, i))[0].flatten(1))
    values = torch.cat(latents, 1).double()
    return values.mean(1).tolist(), values.std(1).tolist()


def load_vae(recipe: Recipe, work: Path, people: int = 24) -> TrainedVAE:
    """The averaged weights of the checkpoint, with the latents' scale measured on `people` of the training.

    Where the decoder was trained further, it is the later one. The scale is kept beside the checkpoint.

    Raises:
        MissingFilesError: the VAE has not been trained there.
    """
    state = load_checkpoint(work / CHECKPOINT)
    if state is None:
        raise MissingFilesError(f"There is no trained VAE in {work}.", "Run the stage 'vae' first.")
    weights = {k.removeprefix("average."): v for k, v in state.items() if k.startswith("average.")}
    decoder = load_checkpoint(work / DECODER) or {}
    weights |= {k.removeprefix("average."): v for k, v in decoder.items() if k.startswith(_DECODER_KEYS)}
    settings = vae_settings(recipe)
    scale = _kept_scale(work / SCALE, _fingerprint(weights), people)
    if scale is None:
        plain = {"latents_mean": [0.0] * LATENT_CHANNELS, "latents_std": [1.0] * LATENT_CHANNELS}
        vae = TrainedVAE(weights, {**settings, **plain}).build()
        scale = measure_scale(vae, draw_clips(people, lambda line: None))
        kept = {"weights": _fingerprint(weights), "people": people, "mean": scale[0], "std": scale[1]}
        (work / SCALE).write_text(json.dumps(kept), encoding="utf-8")
    return TrainedVAE(weights, {**settings, "latents_mean": scale[0], "latents_std": scale[1]})


def _kept_scale(path: Path, weights: str, people: int) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation measured before with these weights, if they were."""
    if not path.is_file():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    return (kept["mean"], kept["std"]) if (kept["weights"], kept["people"]) == (weights, people) else None


def _fingerprint(weights: dict[str, torch.Tensor]) -> str:
    """Of what latents depend on."""
    digest = hashlib.sha256()
    for key in sorted(k for k in weights if k.startswith(("encoder.", "quant_conv."))):
        digest.update(weights[key].numpy().tobytes())
    return digest.hexdigest()


def write_vae(folder: Path, trained: TrainedVAE) -> int:
    """Write a diffusers folder with bfloat16 weights; returns the bytes of the weights."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.to(torch.bfloat16).contiguous() for k, v in trained.weights.items()}
    path = folder / "diffusion_pytorch_model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    settings = {"_class_name": "AutoencoderKLWan", **trained.settings}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return path.stat().st_size


@dataclasses.dataclass(frozen=True)
class Redrawing:
    """How close decoded pictures are to the encoded ones.

    Attributes:
        psnr, mouth_psnr: peak signal to noise of whole pictures and of the mouth's box, in dB.
        noisy_psnr: of whole pictures whose normalised latents were wrong by a standard deviation of 0.1.
        stillness: mean change between the last two latents of a still video, in standard deviations.
    """

    psnr: float
    mouth_psnr: float
    noisy_psnr: float
    stillness: float


@torch.inference_mode()
def measure_redrawing(vae: AutoencoderKLWan, clips: Clips) -> Redrawing:
    """Encode and decode every person's frames, and their resting picture standing still.

    Args:
        clips: people who were not in training, for honest figures.
    """
    whole, mouth, noisy, change = [], [], [], []
    generator = torch.Generator().manual_seed(0)
    for i, (left, top, right, bottom) in enumerate(clips.mouths.tolist()):
        pixels = pixels_of(clips, i)
        latents = encode(vae, pixels)[0]
        error = (redraw(vae, latents) - pixels[0]).square()
        whole.append(float(error.mean()))
        mouth.append(float(error[..., top:bottom, left:right].mean()))
        wrong = latents + 0.1 * torch.randn(latents.shape, generator=generator)
        noisy.append(float((redraw(vae, wrong) - pixels[0]).square().mean()))
        still = encode(vae, pixels[:, :, :1].expand(-1, -1, 17, -1, -1))[0]
        change.append(float((still[:, -1] - still[:, -2]).abs().mean()))
    return Redrawing(_psnr(whole), _psnr(mouth), _psnr(noisy), sum(change) / len(change))


def redraw(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents [16, n, h, w] from the start of a video: [3, 1 + 4 (n - 1), 8h, 8w] in [-1, 1]."""
    return decode_block(vae, DecodeState.empty(vae), latents)


def pixels_of(clips: Clips, i: int) -> torch.Tensor:
    """One person's frames as the VAE takes them: [1, 3, 1 + 4n, height, width] in [-1, 1]."""
    frames = clips.frames[i, : 1 + (clips.frames.shape[1] - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT]
    return torch.from_numpy(frames.copy()).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def _psnr(errors: list[float]) -> float:
    """dB of the mean squared error of values in [-1, 1]."""
    return 10 * math.log10(4 / (sum(errors) / len(errors)))
