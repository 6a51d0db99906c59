"""The checkpoint names of the real models, translated to the library classes' names, all of them."""

import json
from pathlib import Path

import pytest
from golden.cases import folders

from liveavatar.errors import ModelError
from liveavatar.weights.keymaps import umt5_to_transformers, vae_to_diffusers

KEY_FILES = [
    pytest.param(path, id=path.parent.name) for path in (f / "keys_14b.json" for f in folders()) if path.exists()
]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", KEY_FILES)
def test_every_vae_name_maps_to_diffusers(path):
    info = read(path)
    assert {k: vae_to_diffusers(k) for k in info["vae"]} == info["map_vae_to_diffusers"]


@pytest.mark.parametrize("path", KEY_FILES)
def test_every_umt5_name_maps_to_transformers(path):
    info = read(path)
    assert {k: umt5_to_transformers(k) for k in info["umt5"]} == info["map_umt5_to_transformers"]


@pytest.mark.parametrize(
    "key", ["", "conv3.weight", "encoder.upsamples.0.shortcut.bias", "decoder.middle.3.norm.gamma"]
)
def test_foreign_vae_name_is_refused(key):
    with pytest.raises(ModelError, match="VAE"):
        vae_to_diffusers(key)


@pytest.mark.parametrize("key", ["", "blocks.x.norm1.weight", "blocks.0.attn.q.bias", "lm_head.weight"])
def test_foreign_umt5_name_is_refused(key):
    with pytest.raises(ModelError, match="UMT5"):
        umt5_to_transformers(key)
