"""Products of matrices as they are packed, by comfy-kitchen: near those of their numbers, on devices that can.

The CPU multiplies int8. Of nvfp4 and mxfp8 it rounds inputs; the product of both is made here of their numbers, as
comfy-kitchen unpacks them, in the place of the kernel.
"""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from weights.layout_files import is_inside, write_layouts, write_packed

from liveavatar.components import open_components
from liveavatar.errors import ModelError
from liveavatar.model import native
from liveavatar.model.packed import NativeLinear
from liveavatar.model.transformer import ModelSlice

KINDS = {"int8": 0.015, "int8 by rows": 0.015, "int8 turned": 0.015, "mxfp8": 0.035, "nvfp4": 0.12}
"""The most that rounding an input changes a product, of its length."""
G = torch.Generator().manual_seed(7)
CPU = torch.device("cpu")
needs_kitchen = pytest.mark.skipif(
    importlib.util.find_spec("comfy_kitchen") is None, reason="needs comfy-kitchen (pip install comfy-kitchen)"
)


@pytest.fixture
def kernels():
    """Products of nvfp4 and mxfp8 on the CPU."""
    import comfy_kitchen
    from comfy_kitchen.registry import registry

    def product(a, b, bias, dtype):
        made = a @ b.t()
        return (made if bias is None else made + bias.float()).to(dtype)

    def nvfp4(a, b, tensor_scale_a, tensor_scale_b, block_scale_a, block_scale_b, bias, out_dtype, alpha):
        numbers = [
            comfy_kitchen.dequantize_nvfp4(*one, torch.float32)
            for one in ((a, tensor_scale_a, block_scale_a), (b, tensor_scale_b, block_scale_b))
        ]
        return product(*numbers, bias, out_dtype)

    def mxfp8(a, b, block_scale_a, block_scale_b, bias, out_dtype):
        numbers = [
            comfy_kitchen.dequantize_mxfp8(*one, torch.float32) for one in ((a, block_scale_a), (b, block_scale_b))
        ]
        return product(*numbers, bias, out_dtype)

    native.native_trials.clear()
    here = SimpleNamespace(scaled_mm_nvfp4=nvfp4, scaled_mm_mxfp8=mxfp8)
    registry.register("here", here, {name: registry.get_constraints("eager", name) for name in vars(here)})
    registry.enable("here")
    registry.set_priority(["here", "eager"])
    yield
    registry.set_priority(["cuda", "triton", "eager"])
    registry.disable("here")
    native.native_trials.clear()


def nets(mini_folder, mini_network, kind, dtype=torch.float32, **parts):
    model = open_components(write_packed(mini_folder / "mini", mini_network, kind), **parts)
    whole = ModelSlice.whole(model.config)
    return [model.transformer(whole, "cpu", dtype, weights) for weights in ("packed-native", "packed")]


def packed_layers(net):
    return {path: m for path, m in net.named_modules() if isinstance(m, NativeLinear)}


def inputs(layer, dtype):
    """As layers see them: channels of unequal size; rows that fill no tile."""
    x = torch.randn(2, 21, layer.in_features, generator=G) * (1 + 3 * torch.rand(layer.in_features, generator=G))
    return x.to(dtype)


@needs_kitchen
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_products_differ_by_the_rounding_of_their_inputs(mini_folder, mini_network, kind, dtype):
    made, exact = nets(mini_folder, mini_network, kind, dtype)
    assert packed_layers(made)
    for path, layer in packed_layers(made).items():
        x = inputs(layer, dtype)
        product, wanted = layer(x), exact.get_submodule(path)(x).float()
        off = (product.float() - wanted).norm() / wanted.norm()
        assert product.dtype == dtype and product.shape == wanted.shape
        assert 1e-3 < off < KINDS[kind] + 0.005, (path, off)


@needs_kitchen
@pytest.mark.usefixtures("kernels")
def test_factors_of_inputs_are_applied_before_they_are_rounded(mini_folder, mini_network):
    made, exact = nets(mini_folder, mini_network, "nvfp4 with factors", lora="none")
    layer = made.blocks["0"].ffn[0]
    x = inputs(layer, torch.float32)
    wanted = exact.blocks["0"].ffn[0](x)
    assert 1e-3 < (layer(x) - wanted).norm() / wanted.norm() < 0.12


@needs_kitchen
@pytest.mark.usefixtures("kernels")
def test_inputs_of_zeros_give_the_bias(mini_folder, mini_network):
    made, _ = nets(mini_folder, mini_network, "nvfp4", lora="none")
    layer = made.blocks["0"].ffn[0]
    assert torch.equal(layer(torch.zeros(3, layer.in_features)), layer.bias.bfloat16().float().expand(3, -1))


@needs_kitchen
def test_what_cannot_be_multiplied_is_unpacked(mini_folder, mini_network):
    """Layers that ask for full precision, other formats beside those that can be, and floats."""
    names = [name for name, value in mini_network.items() if is_inside(name, torch.from_numpy(value))]
    kinds = {name: "int8" if "ffn" in name else "fp8" for name in names}
    made, exact = nets(mini_folder, mini_network, kinds, lora="none")
    for path, layer in packed_layers(made).items():
        x = inputs(layer, torch.float32)
        assert torch.equal(layer(x), exact.get_submodule(path)(x)) == ("ffn" not in path), path
    path = write_layouts(
        mini_folder / "exact.safetensors", mini_network, "int8", further={"full_precision_matrix_mult": True}
    )
    net = open_components(path, lora="none").transformer(ModelSlice(range(1)), "cpu", torch.float32, "packed-native")
    layer = net.blocks["0"].ffn[0]
    x = inputs(layer, torch.float32)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.unpacked(torch.float32), layer.bias))


@needs_kitchen
def test_a_device_says_what_it_cannot_multiply():
    native.native_trials.clear()
    assert native.native_failure(CPU, "int8") == ""
    assert "swizzle" in native.native_failure(CPU, "nvfp4") and native.native_failure(CPU, "Q4_0")
    assert native.multiplied_formats(CPU, ["nvfp4", "int8"]) == ["int8"]
    with pytest.raises(ModelError, match=r"cpu multiplies none .*\(mxfp8: .*; nvfp4: .*--weights packed"):
        native.multiplied_formats(CPU, ["nvfp4", "mxfp8"])


@needs_kitchen
def test_layers_are_compiled_whole(mini_folder, mini_network):
    made, _ = nets(mini_folder, mini_network, "int8 by rows", lora="none")
    ffn = made.blocks["0"].ffn
    x = inputs(ffn[0], torch.float32)[0]
    with torch.inference_mode():
        compiled = torch.compile(ffn, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), ffn(x))


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "comfy_kitchen", None)
    with pytest.raises(ModelError, match="comfy-kitchen, which is not installed"):
        native.check_native()
