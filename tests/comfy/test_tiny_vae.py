"""ComfyUI's own classes of small VAEs give the same frames of the same random weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fakes
import pytest
import torch
from safetensors.torch import load_file, save_file

from liveavatar.components import load_tiny
from liveavatar.config import TinyConfig
from liveavatar.vae.decoding import DecodeState, decode_block
from liveavatar.vae.tiny import TinyDecoder

THEIRS = """
import sys
sys.path.insert(0, sys.argv[1])
weights, latents, out = sys.argv[2:5]
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import torch
from comfy.taesd.taehv import TAEHV
from safetensors.torch import load_file, save_file
vae = TAEHV(16)
found = vae.load_state_dict(load_file(weights), strict=False)
assert not found.unexpected_keys and all(key.startswith("encoder.") for key in found.missing_keys), found
with torch.no_grad():
    save_file({"frames": vae.decode(load_file(latents)["latents"][None])[0].contiguous()}, out)
"""

LIGHT = """
import sys
sys.path.insert(0, sys.argv[1])
weights, latents, out = sys.argv[2:5]
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import torch
from comfy.latent_formats import Wan21
from comfy.sd import VAE
from safetensors.torch import load_file, save_file
vae = VAE(sd=load_file(weights), dtype=torch.float32)
z = Wan21().process_out(load_file(latents)["latents"][None])
with torch.no_grad():
    save_file({"frames": vae.first_stage_model.decode(z)[0].contiguous()}, out)
"""


def test_frames_are_those_of_comfyui(tmp_path: Path) -> None:
    if not (Path(where()) / "comfy/taesd/taehv.py").is_file():
        pytest.skip("this ComfyUI has no tiny VAEs of videos")
    torch.manual_seed(1)
    decoder = TinyDecoder(TinyConfig()).requires_grad_(False)
    save_file({name: 1.7 * t for name, t in decoder.state_dict().items()}, tmp_path / "taew2_1.safetensors")
    ours, theirs = both(THEIRS, tmp_path / "taew2_1.safetensors")
    torch.testing.assert_close(ours, theirs.mul(2).sub(1).clamp(-1, 1), atol=2e-5, rtol=0)


def test_frames_of_a_pruned_vae_are_those_of_comfyui(tmp_path: Path) -> None:
    where()
    fakes.write_vae(tmp_path / "light.pth", 5, base_dim=24)
    save_file(torch.load(tmp_path / "light.pth"), tmp_path / "lightvaew2_1.safetensors")
    ours, theirs = both(LIGHT, tmp_path / "lightvaew2_1.safetensors")
    torch.testing.assert_close(ours, theirs.clamp(-1, 1), atol=2e-5, rtol=0)


def where() -> str:
    """ComfyUI's checkout."""
    if not (comfyui := os.environ.get("COMFYUI_PATH")):
        pytest.skip("needs ComfyUI: set COMFYUI_PATH to its checkout")
    return comfyui


def both(script: str, weights: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames of the same latents by this library, and as a script of ComfyUI's makes them."""
    latents, folder = torch.randn(16, 5, 6, 8, generator=torch.Generator().manual_seed(1)), weights.parent
    save_file({"latents": latents}, folder / "latents.safetensors")
    places = [str(weights), *(str(folder / name) for name in ("latents.safetensors", "frames.safetensors"))]
    command = [sys.executable, "-c", script, where(), *places]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if "size mismatch" in ran.stderr:
        pytest.skip("this ComfyUI loads VAEs of Wan in their published width only")
    assert ran.returncode == 0, ran.stderr[-2000:]
    decoder = load_tiny(weights, "cpu", torch.float32)
    with torch.inference_mode():
        ours = decode_block(decoder, DecodeState.empty(decoder), latents)
    theirs = load_file(places[2])["frames"]
    assert ours.shape == theirs.shape == (3, 17, 48, 64) and ours.std() > 0.02
    return ours, theirs
