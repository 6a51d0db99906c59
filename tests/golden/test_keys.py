"""The checkpoint names of the real models, translated to the library classes' names, all of them."""

import json

import pytest
from golden.cases import folders

from liveavatar.config import WAN2_2_S2V_14B
from liveavatar.errors import ModelError
from liveavatar.weights.formats import umt5_to_transformers, vae_to_diffusers
from liveavatar.weights.lora import lora_targets


def holding(*entries: str) -> list:
    """The key lists that have all of `entries`."""
    found = []
    for folder in folders():
        path = folder / "keys_14b.json"
        info = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if all(e in info for e in entries):
            found.append(pytest.param(info, id=folder.name))
    return found


@pytest.mark.parametrize("info", holding("vae", "map_vae_to_diffusers"))
def test_every_vae_name_maps_to_diffusers(info):
    assert {k: vae_to_diffusers(k) for k in info["vae"]} == info["map_vae_to_diffusers"]


@pytest.mark.parametrize("info", holding("umt5", "map_umt5_to_transformers"))
def test_every_umt5_name_maps_to_transformers(info):
    assert {k: umt5_to_transformers(k) for k in info["umt5"]} == info["map_umt5_to_transformers"]


@pytest.mark.parametrize("info", holding("lora"))
def test_lora_targets_are_those_of_the_published_model(info):
    targets = lora_targets(WAN2_2_S2V_14B)
    assert sorted(targets) == sorted(info["lora"]["modules"])
    assert len(targets) == info["lora"]["num_modules"]


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
