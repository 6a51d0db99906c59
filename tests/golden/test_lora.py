"""The LoRA merge equals the original's, tensor by tensor; every naming of a file loads alike or is refused."""

import pytest
import torch
from golden.cases import assert_matches, cases

from liveavatar.config import ModelConfig
from liveavatar.errors import LoRAError
from liveavatar.weights.lora import LoRASource, distillation_lora, lora_targets
from liveavatar.weights.source import DictSource

CASES = cases("lora", "dit_weights")


def factors(case):
    return {k.removeprefix("lora."): case[k] for k in case.keys if k.startswith("lora.")}


def merge(case, tensors):
    base = DictSource(case.sibling("dit_weights").state_dict())
    targets, alpha = case.info["target_modules"], case.info["config"]["alpha"]
    return LoRASource(base, [distillation_lora(base, DictSource(tensors), targets, alpha=alpha)])


@pytest.mark.parametrize("case", CASES)
def test_targets_are_the_originals(case):
    config = ModelConfig.from_dict(case.info["dit_config"])
    assert sorted(lora_targets(config)) == sorted(case.info["target_modules"])


@pytest.mark.parametrize("case", CASES)
def test_merged_weights_are_the_originals(case):
    source = merge(case, factors(case))
    for key in sorted(k for k in case.keys if k.startswith("merged.")):
        assert_matches(source.read(key.removeprefix("merged.")), case[key], key, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_all_merged_weights_have_the_originals_sums(case):
    source = merge(case, factors(case))
    for module, (total, absolute) in case.info["merged_checksums"].items():
        weight = source.read(f"{module}.weight").double()
        bound = 1e-7 * absolute
        assert abs(weight.sum().item() - total) <= bound, module
        assert abs(weight.abs().sum().item() - absolute) <= bound, module


@pytest.mark.parametrize("case", CASES)
def test_every_file_naming_merges_alike_or_is_refused(case):
    tensors = factors(case)
    plain = merge(case, tensors)
    for naming, recorded in case.info["cases"].items():
        module = next(m for m in case.info["target_modules"] if f"{m}.lora" in recorded["first_key"])
        prefix, rest = recorded["first_key"].split(f"{module}.lora_")
        renamed = {f"{prefix}{key.replace('.default.weight', rest[1:])}": value for key, value in tensors.items()}
        assert recorded["first_key"] in renamed, naming
        try:
            source = merge(case, renamed)
        except LoRAError:
            continue
        for m in case.info["target_modules"]:
            assert torch.equal(source.read(f"{m}.weight"), plain.read(f"{m}.weight")), (naming, m)


@pytest.mark.parametrize("case", CASES)
def test_the_namings_in_use_do_merge(case):
    """None of the four is refused today; the one above only demands that none is ignored."""
    tensors = factors(case)
    for prefix in ("", "base_model.model.", "diffusion_model."):
        for infix in (".default", ""):
            source = merge(case, {f"{prefix}{k.replace('.default', infix)}": v for k, v in tensors.items()})
            assert source.pairs == len(case.info["target_modules"])
