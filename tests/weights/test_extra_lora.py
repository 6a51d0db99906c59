"""Further LoRAs beside the distillation LoRA: what they name and the network has is changed, and the rest is told."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from liveavatar.errors import LoRAError, MissingFilesError
from liveavatar.weights.lora import (
    ExtraLoRA,
    LoRASource,
    distillation_lora,
    extra_lora,
    open_extra_lora,
    parse_extra_lora,
)
from liveavatar.weights.lora_names import to_diffusers
from liveavatar.weights.source import DictSource

G = torch.Generator().manual_seed(5)
SHAPES = {
    "blocks.0.self_attn.q": (6, 6),
    "blocks.0.cross_attn.o": (6, 6),
    "blocks.1.ffn.0": (10, 6),
    "blocks.1.ffn.2": (6, 10),
    "time_embedding.0": (6, 4),
    "head.head": (8, 6),
    "patch_embedding": (6, 3, 1, 2, 2),
}
BASE = {f"{module}.weight": torch.randn(shape, generator=G) for module, shape in SHAPES.items()}
BASE |= {f"{module}.bias": torch.randn(shape[0], generator=G) for module, shape in SHAPES.items()}
BASE |= {"blocks.0.norm3.weight": torch.randn(6, generator=G), "blocks.0.modulation": torch.randn(1, 6, 6, generator=G)}
Q = "blocks.0.self_attn.q"


def pairs(modules=SHAPES, rank=2):
    """Module -> its factors B [out, rank] and A [rank, in]."""
    shapes = {m: SHAPES[m] for m in modules}
    return {
        m: (torch.randn(s[0], rank, *[1] * (len(s) - 2), generator=G), torch.randn(rank, *s[1:], generator=G))
        for m, s in shapes.items()
    }


def named(factors, naming="comfyui"):
    """The pairs as a published file holds them."""
    out = {}
    for module, (b, a) in factors.items():
        flat, diffusers = module.replace(".", "_"), to_diffusers(module)
        stem, first, second = {
            "original": (module, "lora_A", "lora_B"),
            "comfyui": (f"diffusion_model.{module}", "lora_A", "lora_B"),
            "trainers": (f"diffusion_model.{module}", "lora_down", "lora_up"),
            "older": (module, "lora.down", "lora.up"),
            "peft": (f"base_model.model.{module}", "lora_A", "lora_B"),
            "diffsynth": (f"pipe.dit.{module}", "lora_A.default", "lora_B.default"),
            "diffusers": (f"transformer.{diffusers}", "lora_A", "lora_B"),
            "kohya": (f"lora_unet_{flat}", "lora_down", "lora_up"),
            "kohya in diffusers' names": (f"lora_transformer_{diffusers.replace('.', '_')}", "lora_down", "lora_up"),
            "lycoris": (f"lycoris_{flat}", "lora_down", "lora_up"),
        }[naming]
        out |= {f"{stem}.{first}.weight": a, f"{stem}.{second}.weight": b}
    return out


NAMINGS = ["original", "comfyui", "trainers", "older", "peft", "diffsynth", "diffusers", "kohya", "lycoris"]
NAMINGS.append("kohya in diffusers' names")


def lora_of(tensors, strength=1.0, metadata=None, base=BASE):
    return extra_lora(DictSource(base), DictSource(tensors, "style.safetensors"), strength, metadata)


def merged(*loras, base=BASE):
    return LoRASource(DictSource(base), loras)


def product(factors, module):
    b, a = factors[module]
    return (b.flatten(1) @ a.flatten(1)).reshape(SHAPES[module])


@pytest.mark.parametrize("alpha", [None, 1.0])
@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_adds_strength_times_the_product(naming, alpha):
    factors = pairs()
    tensors = named(factors, naming)
    if alpha is not None:
        tensors |= {f"{key.partition('.lora')[0]}.alpha": torch.tensor(alpha) for key in tensors}
    lora = lora_of(tensors, 0.8)
    source = merged(lora)
    assert (lora.report.changed, lora.report.not_found) == (len(SHAPES), ())
    scale = 0.8 * (1.0 if alpha is None else alpha / 2)
    for module in SHAPES:
        key = f"{module}.weight"
        wanted = BASE[key] + scale * product(factors, module)
        torch.testing.assert_close(source.read(key), wanted, atol=1e-5, rtol=0)
        assert source.read(f"{module}.bias") is BASE[f"{module}.bias"]
    assert source.read("blocks.0.modulation") is BASE["blocks.0.modulation"]


def test_the_alpha_of_a_pair_counts_before_that_of_the_header():
    factors = pairs([Q])
    own = named(factors) | {f"diffusion_model.{Q}.alpha": torch.tensor(1.0)}
    for tensors, scale in ((own, 0.5), (named(factors), 2.0)):
        read = merged(lora_of(tensors, metadata={"ss_network_alpha": "4"})).read(f"{Q}.weight")
        torch.testing.assert_close(read, BASE[f"{Q}.weight"] + scale * product(factors, Q))


def test_whole_differences_are_added_to_weights_and_biases():
    tensors = {
        f"diffusion_model.{Q}.diff": torch.ones(6, 6),
        f"diffusion_model.{Q}.diff_b": torch.ones(6),
        "diffusion_model.blocks.0.norm3.diff": torch.ones(6),
    }
    lora = lora_of(tensors, 0.5)
    assert lora.report.changed == 3
    for key in (f"{Q}.weight", f"{Q}.bias", "blocks.0.norm3.weight"):
        torch.testing.assert_close(merged(lora).read(key), BASE[key] + 0.5)


def test_a_stack_adds_up_in_any_order():
    first, second, third = (lora_of(named(pairs()), strength) for strength in (0.3, -1.2, 2.0))
    one, other = merged(first, second, third), merged(third, first, second)
    for key in BASE:
        torch.testing.assert_close(one.read(key), other.read(key), atol=1e-5, rtol=0)
    exact = merged(first).read(f"{Q}.weight").double()
    for lora in (second, third):
        exact += merged(lora).read(f"{Q}.weight").double() - BASE[f"{Q}.weight"].double()
    torch.testing.assert_close(one.read(f"{Q}.weight").double(), exact, atol=1e-5, rtol=0)


def test_a_stack_beside_the_distillation_lora_is_rounded_once():
    base = {key: tensor.bfloat16() for key, tensor in BASE.items()}
    published, style = pairs([Q]), pairs()
    loras = [
        distillation_lora(DictSource(base), DictSource(named(published)), [Q], alpha=1.0),
        lora_of(named(style), 0.7, base=base),
    ]
    read = merged(*loras, base=base).read(f"{Q}.weight")
    wanted = base[f"{Q}.weight"].float() + 0.5 * product(published, Q) + 0.7 * product(style, Q)
    assert read.dtype == torch.bfloat16
    torch.testing.assert_close(read.float(), wanted, atol=0, rtol=2**-8)


def test_strength_0_is_no_lora_to_the_last_bit():
    lora = lora_of(named(pairs()), 0.0)
    source = merged(lora)
    assert all(source.read(key) is BASE[key] for key in BASE)
    assert str(lora.report).endswith("at strength 0 changes nothing, of 7 tensors that it could")


def test_each_tensor_is_read_once():
    reads = []

    class Counted(DictSource):
        def read(self, key):
            reads.append(key)
            return super().read(key)

    base = Counted(BASE)
    loras = [extra_lora(base, Counted(named(pairs(), naming)), 1.0) for naming in ("comfyui", "kohya")]
    reads.clear()
    source = LoRASource(base, loras)
    source.read(f"{Q}.weight")
    assert len(reads) == len(set(reads)) == 5


def test_what_the_network_lacks_is_told_and_the_rest_is_merged():
    stem = "diffusion_model.blocks.{}.cross_attn.k_img"
    image = {f"{stem.format(i)}.lora_{half}.weight": torch.ones(6, 6) for i in (0, 1) for half in "AB"}
    report = lora_of(named(pairs([Q])) | image, 0.5).report
    assert (report.changed, report.not_found) == (1, (stem.format(0), stem.format(1)))
    told = "the LoRA style.safetensors at strength 0.5 changes 1 tensor; not in this network: 2, "
    assert str(report).startswith(told + stem.format(0))


REFUSED = {
    "another width": (
        {f"{Q}.lora_A.weight": torch.ones(2, 7), f"{Q}.lora_B.weight": torch.ones(6, 2)},
        r"A \[2, 7\] and B \[6, 2\] for blocks.0.self_attn.q, of shape \[6, 6\]",
    ),
    "a larger kernel": (
        {"patch_embedding.lora_A.weight": torch.ones(2, 9, 1, 2, 2), "patch_embedding.lora_B.weight": torch.ones(6, 2)},
        r"\[2, 9, 1, 2, 2\].*patch_embedding, of shape \[6, 3, 1, 2, 2\]",
    ),
    "half a pair": ({f"{Q}.lora_A.weight": torch.ones(2, 6)}, "half a pair for .*lora_B is missing"),
    "an alpha alone": ({f"{Q}.alpha": torch.ones(())}, "changes nothing"),
    "another network": (
        {"lora_te_text_model_encoder_layers_0.lora_down.weight": torch.ones(2, 6)},
        "changes nothing of this network; it holds lora_te_text",
    ),
    "twice": (named(pairs([Q])) | named(pairs([Q]), "kohya"), "twice, as"),
    "a pair and a difference": (named(pairs([Q])) | {f"{Q}.diff": torch.ones(6, 6)}, "a pair and a whole difference"),
    "a difference of another shape": ({f"{Q}.diff": torch.ones(6, 5)}, r"difference \[6, 5\].*\[6, 6\]"),
    "DoRA": (named(pairs([Q])) | {f"{Q}.dora_scale": torch.ones(6, 1)}, "is a DoRA"),
    "LoKr": ({f"{Q}.lokr_w1": torch.ones(6, 6)}, "is a LoKr"),
    "alpha 0": (named(pairs([Q])) | {f"diffusion_model.{Q}.alpha": torch.tensor(0.0)}, "or 0"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_merged_is_refused_by_name(what):
    tensors, words = REFUSED[what]
    with pytest.raises(LoRAError, match=words) as refused:
        lora_of(tensors)
    assert "14B models of Wan" in refused.value.nearest


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), 101.0])
def test_impossible_strengths_are_refused(strength):
    with pytest.raises(LoRAError, match="cannot have the strength"):
        lora_of(named(pairs([Q])), strength)


def test_values_that_are_not_finite_are_refused_when_read():
    factors = pairs([Q])
    factors[Q][0][0, 0] = float("nan")
    with pytest.raises(LoRAError, match=r"q\.weight that are not finite"):
        merged(lora_of(named(factors))).read(f"{Q}.weight")


def test_a_file_is_opened_with_what_its_header_states(tmp_path):
    factors, path = pairs([Q]), tmp_path / "style.safetensors"
    save_file(named(factors), path, metadata={"lora_adapter_metadata": '{"transformer.lora_alpha": 4}'})
    read = merged(open_extra_lora(DictSource(BASE), ExtraLoRA(path, 0.5))).read(f"{Q}.weight")
    torch.testing.assert_close(read, BASE[f"{Q}.weight"] + product(factors, Q))
    with pytest.raises(MissingFilesError):
        open_extra_lora(DictSource(BASE), ExtraLoRA(tmp_path / "other.safetensors"))
    (tmp_path / "style.gguf").touch()
    with pytest.raises(LoRAError, match=r"not a \.safetensors"):
        open_extra_lora(DictSource(BASE), ExtraLoRA(tmp_path / "style.gguf"))


@pytest.mark.parametrize(
    ("text", "path", "strength"),
    [
        ("style.safetensors", "style.safetensors", 1.0),
        ("style.safetensors:0.8", "style.safetensors", 0.8),
        ("wan/style.safetensors:-1", "wan/style.safetensors", -1.0),
        ("C:\\loras\\style.safetensors", "C:\\loras\\style.safetensors", 1.0),
        ("odd:name.safetensors", "odd:name.safetensors", 1.0),
        (":0.5", ":0.5", 1.0),
    ],
)
def test_a_file_and_its_strength_in_one_word(text, path, strength):
    assert parse_extra_lora(text) == ExtraLoRA(Path(path), strength)
