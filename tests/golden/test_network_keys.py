"""The network's parameters are those of the published checkpoint, names and shapes."""

import json

import pytest
import torch
from golden.cases import folders

from liveavatar.config import WAN2_2_S2V_14B, ModelConfig
from liveavatar.model.transformer import CausalS2VTransformer, ModelSlice

LISTS = [pytest.param(f / "keys_14b.json", id=f.name) for f in folders() if (f / "keys_14b.json").exists()]


@pytest.mark.parametrize("path", LISTS)
def test_names_and_shapes_of_the_14b_model(path):
    info = json.loads(path.read_text(encoding="utf-8"))
    config = ModelConfig.from_dict(info["dit_config"])
    assert config == WAN2_2_S2V_14B
    with torch.device("meta"):
        net = CausalS2VTransformer(config, ModelSlice.whole(config))
    assert {k: list(v.shape) for k, v in net.state_dict().items()} == {k: v[0] for k, v in info["dit"].items()}
    assert sum(p.numel() for p in net.parameters()) == info["params"]["dit"]
