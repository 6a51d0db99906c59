"""GGUF files: every type that the gguf package writes is read to the bit as the package reads it."""

import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from weights.gguf_files import WRITTEN, mini_text_encoder, numbers, write_gguf
from weights.test_fill import FILL_AND_MEASURE

from liveavatar.components import MINI_FOLDER, open_components
from liveavatar.errors import MissingFilesError, ModelError
from liveavatar.model.transformer import ModelSlice
from liveavatar.weights.folder import format_inspection, inspect_model
from liveavatar.weights.formats import open_transformer
from liveavatar.weights.load import fill
from liveavatar.weights.settings import text_weights


@pytest.fixture
def folder(mini_folder):
    """The miniature without its transformer."""
    for file in mini_folder.glob("diffusion_pytorch_model*"):
        file.unlink()
    return mini_folder


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_type_is_read_to_the_bit_as_the_package_reads_it(tmp_path, mini_network, kind):
    wanted = write_gguf(tmp_path / "mini.gguf", mini_network, kind)
    source = open_transformer(tmp_path / "mini.gguf")
    assert source.keys() == wanted.keys()
    for key, numbers_ in wanted.items():
        assert source.shape(key) == numbers_.shape
        assert np.array_equal(numbers(source.read(key)), numbers_, equal_nan=True), key
    assert source.shape("patch_embedding.weight") == (192, 16, 1, 2, 2)


@pytest.mark.parametrize("weights", ["plain", "fp8", "int8"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_network_of_a_gguf_file_is_filled_in_any_format(folder, mini_network, kind, weights):
    wanted = write_gguf(folder / "mini.gguf", mini_network, kind)
    assert f" {kind}, " in format_inspection(inspect_model(folder / "mini.gguf"))
    model = open_components(folder / "mini.gguf", lora="none")
    net = model.transformer(ModelSlice.whole(model.config), "cpu", torch.float32, weights)
    state = net.state_dict()
    key = "blocks.3.ffn.0"
    found = state[f"{key}.weight"].float() * state.get(f"{key}.weight_scale", torch.ones(()))
    slack = {"plain": 0.0, "fp8": 1 / 16, "int8": 1 / 64}[weights]
    meant = torch.from_numpy(wanted[f"{key}.weight"])
    assert (found - meant).abs().max() <= slack * meant.abs().max()


def test_a_lora_is_merged_into_what_was_unpacked(folder, mini_network):
    write_gguf(folder / "mini.gguf", mini_network, "Q8_0")
    with_lora, without = (open_components(folder / "mini.gguf", lora=lora) for lora in (None, "none"))
    merged, plain = (
        m.transformer(ModelSlice.whole(m.config), "cpu", torch.float32).state_dict() for m in (with_lora, without)
    )
    assert not torch.equal(merged["blocks.0.self_attn.q.weight"], plain["blocks.0.self_attn.q.weight"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_is_what_stays_and_one_tensor(tmp_path):
    """28 MB of Q4_0 become 101 MB of bfloat16; the peak is a 17 MB tensor more."""
    tensor = np.ones((2048, 2048), np.float32)
    write_gguf(tmp_path / "large.gguf", {f"{i}.weight": tensor for i in range(12)}, "Q4_0")
    command = [sys.executable, "-c", FILL_AND_MEASURE, str(tmp_path / "large.gguf"), "plain"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    peak, kept = map(int, done.stdout.split())
    assert kept < 101e6 + 18e6
    assert peak < 101e6 + 2048 * 2048 * 4 + 18e6


def test_five_dimensions_that_a_converter_has_flattened_come_back(tmp_path, mini_network):
    flat = dict(mini_network)
    shape = flat["patch_embedding.weight"].shape
    flat["patch_embedding.weight"] = flat["patch_embedding.weight"].reshape(-1, 256)
    write_gguf(
        tmp_path / "mini.gguf",
        flat,
        {"patch_embedding.weight": "Q8_0"},
        entries={"comfy.gguf.orig_shape.patch_embedding.weight": list(shape)},
    )
    source = open_transformer(tmp_path / "mini.gguf")
    assert source.shape("patch_embedding.weight") == shape == source.read("patch_embedding.weight").shape


# -- what is refused --


def test_a_network_of_another_architecture_is_named(tmp_path):
    write_gguf(
        tmp_path / "a.gguf", {"double_blocks.0.img_attn.proj.weight": np.ones((32, 32), np.float32)}, "Q8_0", "flux"
    )
    with pytest.raises(ModelError, match=r"GGUF of flux\) is not a sound-to-video transformer") as refusal:
        open_transformer(tmp_path / "a.gguf")
    assert "a GGUF of Wan2.2-S2V-14B" in refusal.value.nearest


def test_another_wan_transformer_is_named(tmp_path, mini_network):
    rest = {key: value for key, value in mini_network.items() if not key.startswith("casual_audio_encoder")}
    write_gguf(tmp_path / "a.gguf", rest, "F16")
    with pytest.raises(ModelError, match="of another kind than sound-to-video"):
        open_transformer(tmp_path / "a.gguf")


@pytest.mark.parametrize("lacking", ["blocks.2.ffn.0.weight", "head.modulation"])
def test_missing_tensors_are_named(folder, mini_network, lacking):
    write_gguf(folder / "mini.gguf", {key: value for key, value in mini_network.items() if key != lacking}, "Q8_0")
    with pytest.raises(MissingFilesError, match=rf"lacks 1 of the tensors this model needs: {lacking}"):
        open_components(folder / "mini.gguf", lora="none")


def test_a_matrix_of_zeros_is_an_unfinished_download(tmp_path, mini_network):
    write_gguf(tmp_path / "a.gguf", mini_network | {"blocks.1.ffn.2.weight": np.zeros((192, 512), np.float32)}, "Q8_0")
    with pytest.raises(ModelError, match=r"only zeros for blocks\.1\.ffn\.2\.weight"):
        open_transformer(tmp_path / "a.gguf")


def test_a_gguf_file_by_another_name_is_named(tmp_path, mini_network):
    write_gguf(tmp_path / "a.gguf", mini_network, "Q8_0")
    (tmp_path / "a.gguf").rename(tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"is a GGUF file by another name \(theirs end in \.gguf\)"):
        open_transformer(tmp_path / "a.safetensors")


# -- text encoders --


@pytest.mark.parametrize("arch", ["t5", "t5encoder", "umt5"])
def test_a_text_encoder_in_the_names_of_llama_cpp_gives_the_same_features(tmp_path, arch):
    given = mini_text_encoder()
    write_gguf(tmp_path / "umt5.gguf", given, "F32", arch)
    source, own = text_weights(tmp_path / "umt5.gguf"), text_weights(MINI_FOLDER / "text_encoder")
    assert all(torch.equal(source.read(key).float(), own.read(key).float()) for key in source.keys())  # noqa: SIM118
    names = {name for names in gguf.constants.MODEL_TENSORS.values() for name in names}
    assert {gguf.MODEL_TENSOR.ENC_ATTN_REL_B, gguf.MODEL_TENSOR.ENC_ATTN_OUT} <= names
    known = {gguf.TENSOR_NAMES[name].format(bid=0) for name in names}
    assert {name.removesuffix(".weight").replace(".1.", ".0.") for name in given} <= known


def test_a_packed_text_encoder_is_a_part_of_a_model(folder):
    wanted = write_gguf(folder / "umt5-xxl-Q8_0.gguf", mini_text_encoder(), "Q8_0", "t5encoder")
    model = open_components(MINI_FOLDER, text_encoder=folder / "umt5-xxl-Q8_0.gguf")
    encoder, tokenizer = model.text_encoder("cpu", torch.float32)
    assert np.array_equal(numbers(encoder.shared.weight), wanted["token_embd.weight"])
    assert tokenizer is not None


def test_a_decoder_of_words_is_no_text_encoder(tmp_path):
    write_gguf(tmp_path / "a.gguf", {"blk.0.attn_q.weight": np.ones((32, 32), np.float32)}, "Q8_0", "llama")
    with pytest.raises(ModelError, match=r"GGUF of llama\) is not a UMT5 text encoder"):
        text_weights(tmp_path / "a.gguf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_text_encoder_stays_packed_and_gives_the_same_features_to_the_bit(folder, dtype):
    """What is unpacked for a product is rounded as what is unpacked while it is read."""
    write_gguf(folder / "umt5-Q8_0.gguf", mini_text_encoder(), "Q8_0", "t5encoder")
    model = open_components(MINI_FOLDER, text_encoder=folder / "umt5-Q8_0.gguf")
    packed, _ = model.text_encoder("cpu", dtype)
    plain, _ = open_components(MINI_FOLDER).text_encoder("cpu", dtype)
    fill(plain, text_weights(folder / "umt5-Q8_0.gguf"), dtype=dtype, device="cpu")
    ids = torch.arange(1, 13)[None]
    found, wanted = (net(ids, torch.ones_like(ids)).last_hidden_state for net in (packed, plain))
    assert torch.equal(found, wanted)
    saved = sum(p.nbytes for p in plain.parameters()) - sum(p.nbytes for p in packed.parameters())
    assert saved == model.packed_text_encoder.saved(dtype.itemsize) > 0
