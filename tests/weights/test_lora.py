"""Merging the LoRA while reading: complete and fitting, or refused with what is wrong."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from liveavatar.config import UNTRAINED
from liveavatar.errors import LoRAError, MissingFilesError
from liveavatar.weights.lora import LoRASource, distillation_lora, lora_targets, open_lora
from liveavatar.weights.source import DictSource

TARGETS = ["blocks.0.self_attn.q", "blocks.0.ffn.0", "audio_injector.injector.0.k"]
SHAPES = [(6, 6), (10, 6), (6, 6)]
BASE = {
    f"{t}.weight": torch.randn(s, generator=torch.Generator().manual_seed(1))
    for t, s in zip(TARGETS, SHAPES, strict=True)
}
BASE["head.head.weight"] = torch.ones(2, 6)


def factors(rank=4, prefix="", infix=".default"):
    g = torch.Generator().manual_seed(rank)
    out = {}
    for t, (rows, columns) in zip(TARGETS, SHAPES, strict=True):
        out[f"{prefix}{t}.lora_A{infix}.weight"] = torch.randn(rank, columns, generator=g)
        out[f"{prefix}{t}.lora_B{infix}.weight"] = torch.randn(rows, rank, generator=g)
    return out


def merged(lora, alpha=None, base=BASE):
    source = DictSource(base)
    return LoRASource(source, [distillation_lora(source, DictSource(lora, "the.safetensors"), TARGETS, alpha=alpha)])


def merged_file(path, alpha=None):
    source = DictSource(BASE)
    return LoRASource(source, [open_lora(source, path, TARGETS, alpha=alpha)])


def expected(target, scale, lora):
    return (
        BASE[f"{target}.weight"]
        + scale * lora[f"{target}.lora_B.default.weight"] @ lora[f"{target}.lora_A.default.weight"]
    )


def test_targets_follow_the_config():
    assert len(lora_targets(UNTRAINED)) == 4 * 10 + 3 * 4


def test_merge_is_exact_in_float32_and_leaves_the_rest():
    lora = factors()
    source = merged(lora, alpha=2.0)
    for t in TARGETS:
        torch.testing.assert_close(source.read(f"{t}.weight"), expected(t, 0.5, lora), atol=1e-6, rtol=0)
    assert source.read("head.head.weight") is BASE["head.head.weight"]
    assert source.keys() == set(BASE)
    assert "(3 pairs, scale 0.5)" in source.describe()


def test_bfloat16_weights_are_rounded_once():
    base = {k: v.bfloat16() for k, v in BASE.items()}
    lora = {k: v.bfloat16() for k, v in factors().items()}
    t = TARGETS[1]
    a, b = (lora[f"{t}.lora_{h}.default.weight"].float() for h in "AB")
    want = ((b @ a) * 0.5 + base[f"{t}.weight"].float()).bfloat16()
    assert torch.equal(merged(lora, alpha=2.0, base=base).read(f"{t}.weight"), want)


def test_without_a_word_alpha_is_the_published_64():
    lora = factors(rank=128)
    torch.testing.assert_close(merged(lora).read(f"{TARGETS[0]}.weight"), expected(TARGETS[0], 0.5, lora))


def test_alpha_tensors_in_the_file_are_honoured():
    lora = factors(rank=4)
    stated = lora | {f"{t}.alpha": torch.tensor(1.0) for t in TARGETS}
    torch.testing.assert_close(merged(stated).read(f"{TARGETS[0]}.weight"), expected(TARGETS[0], 0.25, lora))


@pytest.mark.parametrize(
    "metadata", [{"alpha": "8"}, {"lora_adapter_metadata": '{"transformer.lora_alpha": 8, "transformer.r": 4}'}]
)
def test_alpha_in_the_metadata_is_honoured(tmp_path, metadata):
    lora = factors()
    save_file(lora, tmp_path / "l.safetensors", metadata=metadata)
    source = merged_file(tmp_path / "l.safetensors")
    torch.testing.assert_close(source.read(f"{TARGETS[0]}.weight"), expected(TARGETS[0], 2.0, lora))


def in_words_of(naming):
    """The same pairs as other trainers name them."""
    peft = {"lora_A.default": "lora_A", "lora_B.default": "lora_B"}
    trainers = {"lora_A.default": "lora_down", "lora_B.default": "lora_up"}
    older = {"lora_A.default": "lora.down", "lora_B.default": "lora.up"}
    renamed = {}
    for key, tensor in factors().items():
        for old, new in {"trainers": trainers, "kohya": trainers, "older": older}.get(naming, peft).items():
            key = key.replace(old, new)
        if naming == "kohya":
            module, half = key.split(".lora_")
            key = f"lora_unet_{module.replace('.', '_')}.lora_{half}"
        if naming == "diffusers":
            key = key.replace("self_attn.q", "attn1.to_q").replace("ffn.0", "ffn.net.0.proj")
        renamed[key] = tensor
    return renamed


@given(
    prefix=st.sampled_from(
        ["", "base_model.model.", "diffusion_model.", "transformer.", "module.", "base_model.model.diffusion_model."]
    ),
    naming=st.sampled_from(["peft", "trainers", "older", "diffusers", "kohya"]),
    stated=st.booleans(),
)
def test_all_known_namings_merge_alike(prefix, naming, stated):
    lora = in_words_of(naming)
    if stated:
        lora |= {f"{key.partition('.lora')[0]}.alpha": torch.tensor(2.0) for key in lora}
    lora = {key if naming == "kohya" else prefix + key: tensor for key, tensor in lora.items()}
    actual = merged(lora, alpha=None if stated else 2.0).read(f"{TARGETS[0]}.weight")
    torch.testing.assert_close(actual, expected(TARGETS[0], 0.5, factors()), atol=1e-6, rtol=0)


def without(lora, part):
    return {k: v for k, v in lora.items() if part not in k}


def changed(lora, part, change):
    return {k: change(v) if part in k else v for k, v in lora.items()}


Q_A, FFN_B = "self_attn.q.lora_A", "ffn.0.lora_B"
WRONG = {
    "none at all": ({}, "0 of the 3 pairs.*6 tensors"),
    "one half missing": (without(factors(), Q_A), r"2 of the 3 pairs.*1 tensors: blocks.0.self_attn.q.lora_A"),
    "one pair missing": (without(factors(), "ffn.0"), "2 of the 3 pairs.*2 tensors"),
    "a stranger": (factors() | {"blocks.9.self_attn.q.lora_A.weight": torch.zeros(4, 6)}, r"no place.*blocks\.9"),
    "a tensor twice": (factors() | factors(infix=""), "twice, as"),
    "wrong width": (changed(factors(), Q_A, lambda v: torch.zeros(4, 7)), r"A \[4, 7\].*\[6, 6\]"),
    "ranks differ": (changed(factors(), FFN_B, lambda v: torch.zeros(10, 3)), r"B \[10, 3\]"),
    "rank 0": (changed(changed(factors(), Q_A, lambda v: v[:0]), "q.lora_B", lambda v: v[:, :0]), r"A \[0, 6\]"),
    "two adapters": (factors() | factors(infix=".second"), "twice, as"),
    "alpha 0": (factors() | {f"{t}.alpha": torch.tensor(0.0) for t in TARGETS}, "or 0"),
    "alpha for some": (factors() | {f"{TARGETS[0]}.alpha": torch.tensor(2.0)}, "alpha for 1 of its 3 pairs"),
    "many alphas": (factors() | {f"{t}.alpha": torch.ones(4) for t in TARGETS}, "not one number"),
    "DoRA": (factors() | {f"{TARGETS[0]}.dora_scale": torch.ones(6, 1)}, "is a DoRA, which cannot be merged"),
    "LoKr": ({f"{TARGETS[0]}.lokr_w1": torch.ones(6, 6)}, "is a LoKr"),
    "LoHa": ({f"{TARGETS[0]}.hada_w1_a": torch.ones(6, 6)}, "is a LoHa"),
    "differences": (factors() | {"blocks.0.norm3.diff": torch.ones(6)}, "whole differences"),
    "alpha not finite": (factors() | {f"{t}.alpha": torch.tensor(float("nan")) for t in TARGETS}, "not finite"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_lora_is_refused(what):
    lora, message = WRONG[what]
    with pytest.raises(LoRAError, match=message):
        merged(lora)


def test_target_the_network_lacks_is_refused():
    with pytest.raises(LoRAError, match="network lacks"):
        merged(factors(), base={k: v for k, v in BASE.items() if "ffn" not in k})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_when_read(value):
    source = merged(changed(factors(), FFN_B, lambda v: v * value))
    source.read(f"{TARGETS[0]}.weight")
    with pytest.raises(LoRAError, match=r"ffn\.0\.weight that are not finite"):
        source.read(f"{TARGETS[1]}.weight")


@pytest.mark.parametrize("name", ["lora.pt", "lora.bin", "lora.pth", "lora.ckpt"])
def test_pickled_loras_are_read_as_data(tmp_path, name):
    torch.save(factors() if name != "lora.ckpt" else {"state_dict": factors()}, tmp_path / name)
    source = merged_file(tmp_path / name, alpha=2.0)
    torch.testing.assert_close(source.read(f"{TARGETS[0]}.weight"), expected(TARGETS[0], 0.5, factors()))


def test_other_files_are_no_loras(tmp_path):
    torch.save(factors(), tmp_path / "lora.gguf")
    with pytest.raises(LoRAError, match=r"not a \.safetensors"):
        open_lora(DictSource(BASE), tmp_path / "lora.gguf", TARGETS)
    torch.save(factors(), tmp_path / "lora.safetensors")
    with pytest.raises(LoRAError, match=r"lora\.safetensors is a PyTorch archive"):
        open_lora(DictSource(BASE), tmp_path / "lora.safetensors", TARGETS)


def test_whole_numbers_are_no_factors(tmp_path):
    lora = changed(factors(), FFN_B, lambda v: v.to(torch.int8))
    with pytest.raises(LoRAError, match=r"ffn\.0\.weight in whole numbers, without a scale"):
        merged(lora).read(f"{TARGETS[1]}.weight")
    save_file(lora, tmp_path / "l.safetensors")
    with pytest.raises(LoRAError, match="whole numbers, without a scale"):
        open_lora(DictSource(BASE), tmp_path / "l.safetensors", TARGETS)


def test_a_lora_of_zeros_is_an_unfinished_download(tmp_path):
    wide = {f"{t}.weight": torch.ones(64, 64) for t in TARGETS}
    pairs = {
        f"{t}.lora_{half}.weight": torch.zeros(8, 64)[:, :].reshape(shape)
        for t in TARGETS
        for half, shape in (("A", (8, 64)), ("B", (64, 8)))
    }
    save_file(pairs, tmp_path / "l.safetensors")
    with pytest.raises(LoRAError, match="only zeros"):
        open_lora(DictSource(wide), tmp_path / "l.safetensors", TARGETS)


def test_absent_lora_is_missing_files(tmp_path):
    with pytest.raises(MissingFilesError):
        open_lora(DictSource(BASE), tmp_path / "none.safetensors", TARGETS)


@pytest.mark.parametrize(
    "metadata", [{"alpha": "much"}, {"lora_adapter_metadata": "[]"}, {"alpha": "1", "lora_alpha": "2"}]
)
def test_unclear_alpha_in_the_metadata_is_refused(tmp_path, metadata):
    save_file(factors(), tmp_path / "l.safetensors", metadata=metadata)
    with pytest.raises(LoRAError, match="alpha"):
        open_lora(DictSource(BASE), tmp_path / "l.safetensors", TARGETS)
