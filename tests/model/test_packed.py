"""Matrices that stay packed: the same products as of the numbers that are meant, with LoRAs beside them."""

import pytest
import torch
from weights.layout_files import LAYOUTS, is_inside, write_packed

from liveavatar.components import MINI_FOLDER, open_components
from liveavatar.errors import LoRAError, ModelError
from liveavatar.model.packed import PackedLinear
from liveavatar.model.transformer import ModelSlice, empty_transformer
from liveavatar.weights.lora import ExtraLoRA

G = torch.Generator().manual_seed(5)
KINDS = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")


def mixed(mini_network):
    """As files have it whose values are in more bits than queries and keys, and whose first layer is in floats."""
    kinds = {name: "Q4_0" for name in mini_network if name.startswith(("blocks.", "audio_injector."))}
    kinds |= {name: "Q8_0" for name in mini_network if name.endswith((".v.weight", "ffn.2.weight"))}
    kinds |= {name: "F16" for name in mini_network if "blocks.1.self_attn.k" in name}
    return kinds | {name: "F16" for name in mini_network if name.startswith("blocks.0.self_attn")}


def nets(mini_folder, mini_network, kind, dtype=torch.float32, **parts):
    """The packed network, and that of the same numbers."""
    model = open_components(write_packed(mini_folder / "mini", mini_network, kind), **parts)
    whole = ModelSlice.whole(model.config)
    return [model.transformer(whole, "cpu", dtype, weights) for weights in ("packed", "plain")]


def mixed_layouts(mini_network):
    """As files have it whose values are in more bits than queries and keys, and whose first layer is in floats."""
    inside = [name for name, value in mini_network.items() if is_inside(name, torch.from_numpy(value))]
    kinds = {name: "fp8" if name.endswith(".v.weight") else "nvfp4" for name in inside}
    kinds |= {name: "int8 by rows" for name in inside if name.endswith("ffn.2.weight")}
    kinds |= {name: "nvfp4 with factors" for name in inside if "blocks.2.ffn.0" in name}
    floats = ("blocks.0.self_attn", "blocks.1.self_attn.k")
    return kinds | {name: "" for name in inside if name.startswith(floats)}


MIXED = {"mixed": mixed, "mixed layouts": mixed_layouts}


def linears(net):
    return {path: m for path, m in net.named_modules() if hasattr(m, "in_features")}


@pytest.mark.parametrize("kind", [*KINDS, *LAYOUTS, *MIXED])
def test_matrices_are_the_numbers_that_are_meant_and_stay_packed(mini_folder, mini_network, kind):
    packed, plain = nets(mini_folder, mini_network, MIXED[kind](mini_network) if kind in MIXED else kind, lora="none")
    found = {path: m for path, m in linears(packed).items() if isinstance(m, PackedLinear)}
    assert len(found) == len([p for p in linears(plain) if p.startswith(("blocks", "audio_inj"))]) - 2 * (kind in MIXED)
    for path, module in found.items():
        assert torch.equal(module.unpacked(torch.float32), plain.get_submodule(path).weight), path
        assert module.weight.dtype == torch.uint8 and module.weight.ndim == 1


@pytest.mark.parametrize("kind", MIXED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lora_beside_a_matrix_gives_the_product_of_the_merged_one(mini_folder, mini_network, dtype, kind):
    a, b = torch.randn(3, 192, generator=G) / 14, torch.randn(192, 3, generator=G)
    pair = {"blocks.2.self_attn.v.lora_A.weight": a, "blocks.2.self_attn.v.lora_B.weight": b}
    torch.save(pair | {"blocks.2.norm3.diff_b": torch.ones(192)}, mini_folder / "style.pt")
    extra = (ExtraLoRA(mini_folder / "style.pt", 0.7),)
    packed, plain = nets(mini_folder, mini_network, MIXED[kind](mini_network), dtype, extra_loras=extra)
    for path, module in linears(packed).items():
        # Merged into bfloat16 it is rounded to that.
        slack = 0.02 if dtype == torch.bfloat16 or "BF16" in repr(module) else 1e-5
        x = torch.randn(7, module.in_features, generator=G).to(dtype)
        wanted = plain.get_submodule(path)(x)
        assert (module(x) - wanted).abs().max() <= slack * wanted.abs().max(), path
    fused, other = packed.blocks["2"].self_attn.qkv, packed.blocks["3"].self_attn.qkv
    assert fused.lora_a.shape[1] == other.lora_a.shape[1] + 3
    assert torch.equal(packed.blocks["2"].norm3.bias, plain.blocks["2"].norm3.bias)


def test_a_whole_difference_is_merged_and_its_matrix_is_not_packed(mini_folder, mini_network):
    torch.save({"blocks.2.ffn.0.diff": torch.ones(512, 192)}, mini_folder / "style.pt")
    packed, plain = nets(mini_folder, mini_network, "Q4_0", extra_loras=(ExtraLoRA(mini_folder / "style.pt"),))
    assert not isinstance(packed.blocks["2"].ffn[0], PackedLinear)
    assert torch.equal(packed.blocks["2"].ffn[0].weight, plain.blocks["2"].ffn[0].weight)
    assert isinstance(packed.blocks["1"].ffn[0], PackedLinear)


def test_numbers_that_are_not_finite_are_refused_by_name(mini_folder, mini_network):
    spoilt = mini_network | {"blocks.1.ffn.2.weight": mini_network["blocks.1.ffn.2.weight"] * 1e9}
    with pytest.raises(ModelError, match=r"blocks\.1\.ffn\.2\.weight .* not finite"):
        nets(mini_folder, spoilt, "Q8_0", lora="none")


def test_factors_that_are_not_finite_are_refused(mini_folder, mini_network):
    pair = {f"blocks.2.ffn.0.lora_{h}.weight": torch.full(s, torch.nan) for h, s in (("A", (2, 192)), ("B", (512, 2)))}
    torch.save(pair, mini_folder / "style.pt")
    with pytest.raises(LoRAError, match="not finite"):
        nets(mini_folder, mini_network, "Q8_0", extra_loras=(ExtraLoRA(mini_folder / "style.pt"),))


def test_only_a_gguf_file_has_packed_matrices():
    model = open_components(MINI_FOLDER)
    with pytest.raises(ModelError, match=r"--weights packed\) only where the model.s file has them in few bits"):
        model.transformer(ModelSlice.whole(model.config), "cpu", torch.float32, "packed")
    with pytest.raises(ModelError, match="GGUF"):
        empty_transformer(model.config, ModelSlice.whole(model.config), "packed")
