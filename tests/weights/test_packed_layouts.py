"""Matrices in ComfyUI's layouts that stay packed: the numbers that reading gives, in as many bytes as is said."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from weights.layout_files import write_layouts
from weights.test_layouts import CASES, COLUMNS, ROWS, opened

from liveavatar.components import MINI_FOLDER, open_components, packed_of
from liveavatar.errors import ModelError
from liveavatar.model.packed import PackedLinear
from liveavatar.model.transformer import ModelSlice
from liveavatar.weights.block_types import FLOATS
from liveavatar.weights.folder import format_inspection, inspect_model
from liveavatar.weights.formats import open_file
from liveavatar.weights.settings import text_weights


def packed(source, name="a.weight"):
    kind = source.packed_format(name)
    place = torch.full((kind.bytes_of(source.shape(name)),), 255, dtype=torch.uint8)
    source.read_packed(name, place)
    return kind, place


@pytest.mark.parametrize("marked", ["mark", "header"])
@pytest.mark.parametrize("case", CASES)
def test_packed_matrices_are_the_numbers_that_are_read(tmp_path, case, marked):
    tensors, _, how = CASES[case]()
    source = opened(tmp_path, tensors, how, marked, "model.diffusion_model.")
    kind, place = packed(source)
    assert kind.name == case.split()[0].strip(",") and kind.is_rounded and len(place) % 16 == 0
    assert all(view.data_ptr() % 16 == place.data_ptr() % 16 for view in kind.views(place, (ROWS, COLUMNS)).values())
    read = source.read("a.weight")
    for whole in (False, True):
        made = kind.unpack(place, torch.empty(ROWS, COLUMNS), whole)
        torch.testing.assert_close(made, read, atol=1e-5 if "turned" in case else 0, rtol=0)
    assert torch.equal(kind.unpack(place, torch.empty(ROWS, COLUMNS).bfloat16()), read.bfloat16()) or "turned" in case
    assert kind.is_finite(place, (ROWS, COLUMNS))
    assert len(place) < 1.25 * sum(tensor.nbytes for tensor in tensors.values())


ONE = [("fp8", "weight_scale"), ("int8", "weight_scale"), ("nvfp4", "weight_scale_2")]
"""Layouts, and which of their tensors is a single number."""


@pytest.mark.parametrize(
    ("layout", "name", "shape"),
    [*((*one, shape) for one in ONE for shape in ((), (1,))), *((*one, (1, 1)) for one in ONE[:2])],
)
def test_a_single_scale_may_have_dimensions(tmp_path, mini_network, layout, name, shape):
    path, matrix = tmp_path / "a.safetensors", {"a.weight": mini_network["blocks.0.ffn.0.weight"]}
    tensors = load_file(write_layouts(path, matrix, {"a.weight": layout}))
    save_file(tensors | {f"a.{name}": tensors[f"a.{name}"].reshape(shape)}, path)
    source = open_file(path)
    kind, place = packed(source)
    assert torch.equal(kind.unpack(place, torch.empty(source.shape("a.weight"))), source.read("a.weight"))


def test_matrices_in_floats_are_packed_as_they_are(tmp_path):
    tensors, _, how = CASES["nvfp4"]()
    source = opened(tmp_path, tensors | {"b.weight": torch.randn(8, 4).bfloat16(), "b.bias": torch.zeros(8)}, how)
    kind, place = packed(source, "b.weight")
    assert kind == FLOATS["BF16"]
    assert torch.equal(kind.unpack(place, torch.empty(8, 4)), source.read("b.weight").float())


SPOILT = {
    "nvfp4, a scale": ("nvfp4", "weight_scale", 0x7F, "not finite"),
    "mxfp8, an exponent": ("mxfp8", "weight_scale", 0xFF, "not finite"),
    "mxfp8, a number": ("mxfp8", "weight", 0x7F, "not finite"),
    "fp8, a number": ("fp8", "weight", 0xFF, "not finite"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_numbers_that_are_not_finite_are_refused_by_name(mini_folder, mini_network, what):
    layout, last, byte, message = SPOILT[what]
    kinds = {f"blocks.0.ffn.{n}.weight": layout if n == 0 else "nvfp4" for n in (0, 2)}
    tensors = load_file(write_layouts(mini_folder / "mini.safetensors", mini_network, kinds))
    tensors[f"blocks.0.ffn.0.{last}"].view(torch.uint8).view(-1)[0] = byte
    save_file(tensors, mini_folder / "mini.safetensors")
    model = open_components(mini_folder / "mini.safetensors", lora="none")
    with pytest.raises(ModelError, match=rf"blocks\.0\.ffn\.0\.weight .*{message}"):
        model.transformer(ModelSlice(range(1)), "cpu", torch.float32, "packed")


@pytest.mark.parametrize("lost", ["weight", "weight_scale", "weight_scale_2"])
def test_what_a_matrix_lacks_is_named(mini_folder, mini_network, lost):
    path = write_layouts(mini_folder / "mini.safetensors", mini_network, "nvfp4")
    tensors = load_file(path)
    del tensors[f"blocks.2.self_attn.k.{lost}"]
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"blocks\.2\.self_attn\.k") as refusal:
        open_components(path)
    assert "mini.safetensors" in str(refusal.value)


def test_a_file_in_fp8_alone_is_no_packed_one(mini_folder, mini_network):
    model = open_components(write_layouts(mini_folder / "mini.safetensors", mini_network, "fp8"))
    assert model.packed is None and packed_of(model) is None
    with pytest.raises(ModelError, match=r"--weights packed\) only where"):
        model.transformer(ModelSlice(range(1)), "cpu", torch.float32, "packed")


def test_a_file_behind_a_prefix_with_its_layouts_in_the_header_stays_packed(mini_folder, mini_network):
    path = mini_folder / "mini.safetensors"
    write_layouts(path, mini_network, "nvfp4", prefix="model.diffusion_model.", marked="header")
    model = open_components(path)
    net = model.transformer(ModelSlice.whole(model.config), "cpu", torch.float32, "packed")
    names = {kind.kind.name for m in net.modules() if isinstance(m, PackedLinear) for kind in m.parts}
    assert "matrices in nvfp4" in format_inspection(inspect_model(path))
    assert names == {"nvfp4"} and packed_of(model).formats == (("nvfp4", sum(map(len, parts_of(net)))),)


def parts_of(net):
    return [m.parts for m in net.modules() if isinstance(m, PackedLinear)]


def test_a_text_encoder_stays_packed(tmp_path):
    own = text_weights(MINI_FOLDER / "text_encoder")
    tensors = {key: own.read(key).float().numpy() for key in own.keys() if "embed_tokens" not in key}  # noqa: SIM118
    path = write_layouts(tmp_path / "umt5_xxl_int8.safetensors", tensors, "int8 by rows")
    model, numbers = open_components(MINI_FOLDER, text_encoder=path), text_weights(path)
    encoder, _ = model.text_encoder("cpu", torch.float32)
    layers = {name: m for name, m in encoder.named_modules() if isinstance(m, PackedLinear)}
    assert len(layers) == sum("SelfAttention." in key or "Dense" in key for key in tensors if "bias" not in key)
    for name, layer in layers.items():
        assert torch.equal(layer.unpacked(torch.float32), numbers.read(f"{name}.weight"))
    assert packed_of(model).text_encoder.stored == sum(layer.weight.nbytes for layer in layers.values())
