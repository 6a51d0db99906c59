"""The network with the LoRA merged while reading gives the velocity of the original."""

import pytest
import torch
from golden.cases import Case, assert_matches, cases
from golden.rollout import Rollout, config_of

from liveavatar.model.transformer import CausalS2VTransformer, ModelSlice
from liveavatar.weights.load import fill
from liveavatar.weights.lora import LoRASource, distillation_lora
from liveavatar.weights.source import DictSource

KEY = "merged_noise_pred.block0.t1000"
DISTANCE = 30
CASES = [p for p in cases("lora", "dit", "dit_weights") if KEY in p.values[0]]


@pytest.mark.parametrize("case", CASES)
def test_merged_velocity(case: Case) -> None:
    weights, dit = case.sibling("dit_weights"), case.sibling("dit")
    adapters = DictSource({k.removeprefix("lora."): case[k] for k in case.keys if k.startswith("lora.")})
    base = DictSource(weights.state_dict())
    targets, alpha = case.info["target_modules"], case.info["config"]["alpha"]
    merged = LoRASource(base, [distillation_lora(base, adapters, targets, alpha=alpha)])
    config = config_of(case.info["dit_config"], weights)
    with torch.device("meta"):
        net = CausalS2VTransformer(config, ModelSlice.whole(config))
    fill(net, merged, dtype=torch.float32, device="cpu")
    rollout = Rollout(dit, net)
    rollout.prefill(dit["in.ref_latents"], dit["in.motion_latents"])
    velocity = rollout.velocity(0, 0, rollout.noise(0), DISTANCE)
    assert_matches(velocity, case[KEY].view(velocity.shape), KEY)
