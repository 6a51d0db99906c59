"""ComfyUI's own class of tiny VAEs gives the same frames of the same random weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def test_frames_are_those_of_comfyui(tmp_path: Path) -> None:
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        pytest.skip("needs ComfyUI: set COMFYUI_PATH to its checkout")
    if not (Path(comfyui) / "comfy/taesd/taehv.py").is_file():
        pytest.skip("this ComfyUI has no tiny VAEs of videos")
    torch.manual_seed(1)
    decoder = TinyDecoder(TinyConfig()).requires_grad_(False)
    save_file({name: 1.7 * t for name, t in decoder.state_dict().items()}, tmp_path / "taew2_1.safetensors")
    latents = torch.randn(16, 5, 6, 8)
    save_file({"latents": latents}, tmp_path / "latents.safetensors")
    places = [str(tmp_path / name) for name in ("taew2_1.safetensors", "latents.safetensors", "frames.safetensors")]
    ran = subprocess.run([sys.executable, "-c", THEIRS, comfyui, *places], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    theirs = load_file(places[2])["frames"].mul(2).sub(1).clamp(-1, 1)
    tiny = load_tiny(Path(places[0]), "cpu", torch.float32)
    with torch.inference_mode():
        ours = decode_block(tiny, DecodeState.empty(tiny), latents)
    assert ours.shape == theirs.shape == (3, 17, 48, 64) and ours.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
