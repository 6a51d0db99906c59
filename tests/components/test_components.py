"""From a name to modules: the embedded model, an official folder, a single file."""

import contextlib
import dataclasses
import inspect
import json
import os
import shutil

import diffusers
import fakes
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from liveavatar.components import MINI_FOLDER, Components, FolderComponents, open_components
from liveavatar.config import MINI, UNTRAINED, WAN2_2_S2V_14B
from liveavatar.encoders.audio import hidden_states
from liveavatar.encoders.text import encode_text
from liveavatar.errors import LoRAError, MissingFilesError, ModelError
from liveavatar.mini.seeded import SeededSource
from liveavatar.model.fused import checkpoint_paths
from liveavatar.model.quantize import EightBitLinear
from liveavatar.model.transformer import ModelSlice
from liveavatar.vae.decoding import DecodeState, decode_block
from liveavatar.vae.wan import encode
from liveavatar.weights.folder import find_model
from liveavatar.weights.formats import wav2vec2_key
from liveavatar.weights.settings import config_of_single_file

SMALL = dataclasses.replace(UNTRAINED, num_layers=2, audio_inject_layers=(0, 1), audio_layers=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fakes.write_official_folder(tmp_path_factory.mktemp("models") / "Wan2.2-S2V-14B", SMALL)


@pytest.fixture(scope="module")
def untrained():
    return open_components("untrained")


@pytest.fixture
def copy(folder, tmp_path):
    """A copy one test may spoil; hard links, so cheap: replace files, never write into them."""
    shutil.copytree(folder, tmp_path / "model", copy_function=os.link)
    return tmp_path / "model"


def whole(components):
    return components.transformer(ModelSlice.whole(components.config), "cpu", torch.float32)


# -- any model --


@pytest.fixture(params=["untrained", "folder"])
def components(request, untrained):
    return untrained if request.param == "untrained" else open_components(request.getfixturevalue("folder"))


def test_interface(components):
    for name in ("transformer", "vae", "text_encoder", "audio_encoder", "describe"):
        wanted = list(inspect.signature(getattr(Components, name)).parameters)[1:]
        assert list(inspect.signature(getattr(components, name)).parameters) == wanted
    assert components.describe()


def test_any_part_has_the_tensors_of_the_whole(components):
    state = whole(components).state_dict()
    last = components.config.num_layers - 1
    for part in (ModelSlice(range(last, last + 1), head=True), ModelSlice(range(0), embed=True, embedders=True)):
        owned = components.transformer(part, "cpu", torch.float32).state_dict()
        assert owned
        assert all(torch.equal(state[k], v) for k, v in owned.items())


@pytest.mark.parametrize("weights", ["fp8", "fp8-tensor", "int8"])
def test_a_format_is_made_of_the_same_numbers_part_by_part(components, weights):
    """Large matrices are those of the plain network, merged and then packed; all others are the same."""
    plain = whole(components)
    stored = torch.float32 if components.name == "untrained" else torch.bfloat16
    last = components.config.num_layers - 1
    for model_slice in (ModelSlice(range(last, last + 1), head=True), ModelSlice(range(0), embed=True, embedders=True)):
        net = components.transformer(model_slice, "cpu", torch.float32, weights)
        changed = {path: m for path, m in net.named_modules() if isinstance(m, EightBitLinear)}
        parts = [part for path, module in changed.items() for part in checkpoint_paths(path, module)]
        assert len(parts) == (15 if model_slice.layers else 0)
        for path, module in changed.items():
            weights_of_parts = plain.get_submodule(path).weight.to(stored).chunk(len(module.fused_from) or 1)
            for slot, tensor in module.quantize_parts(weights_of_parts).items():
                assert torch.equal(tensor.float(), getattr(module, slot).float())
        others = {k: v for k, v in net.state_dict().items() if k.rpartition(".")[0] not in parts}
        assert others and all(torch.equal(plain.state_dict()[k], v) for k, v in others.items())


def test_vae_encodes_and_decodes(components):
    vae = components.vae("cpu", torch.float32)
    latents = encode(vae, torch.rand(1, 3, 5, 64, 64) * 2 - 1)
    rgb = decode_block(vae, DecodeState.empty(vae), latents[0])
    assert rgb.shape == (3, 5, 64, 64)
    assert rgb.isfinite().all()


def test_text_encoder_reads_a_prompt(components):
    encoder, tokenizer = components.text_encoder("cpu", torch.float32)
    rows = encode_text(encoder, tokenizer, "A woman speaks.", length=40)
    assert rows.shape == (16, components.config.text_dim)  # one byte, one token; and the end mark
    assert 0.1 < rows.std() < 10


def test_audio_encoder_hears(components):
    states = hidden_states(components.audio_encoder("cpu", torch.float32), torch.randn(16000).numpy())
    assert len(states) == components.config.audio_layers
    assert states[0].shape == (49, components.config.audio_dim)
    assert all(0.05 < s.std() < 50 for s in states)


def test_code_beside_a_tokenizer_or_a_configuration_is_not_run(copy):
    """And nobody is asked whether it should be."""
    files = find_model(copy)
    for folder, config, kind in (
        (files.tokenizer, "tokenizer_config.json", "AutoTokenizer"),
        (files.audio_encoder, "config.json", "AutoConfig"),
    ):
        settings = json.loads((folder / config).read_text()) if (folder / config).exists() else {}
        theirs = ["evil.Evil", None] if kind == "AutoTokenizer" else "evil.Evil"
        (folder / config).unlink(missing_ok=True)
        (folder / config).write_text(json.dumps(settings | {"tokenizer_class": "Evil", "auto_map": {kind: theirs}}))
        (folder / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w').close()\nclass Evil: ...\n")
    components = open_components(copy)
    for part in (components.text_encoder, components.audio_encoder):
        with contextlib.suppress(ModelError):
            part("cpu", torch.float32)
    assert not (copy / "ran").exists()


# -- the embedded model --


def test_the_untrained_model_is_honest_and_repeatable(untrained):
    assert not untrained.trained
    assert "untrained" in untrained.describe()
    first, second = whole(untrained).state_dict(), whole(open_components("untrained")).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_untrained_pictures_neither_vanish_nor_saturate(untrained):
    vae = untrained.vae("cpu", torch.float32)
    rgb = decode_block(
        vae, DecodeState.empty(vae), torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    )
    assert 0.1 < rgb.std() < 0.7
    assert (rgb.abs() >= 1).float().mean() < 0.1


def test_seeded_tensors_depend_on_seed_and_name_only():
    one = SeededSource({"a.weight": (3, 3), "b.weight": (3, 3)}, 1)
    assert torch.equal(one.read("a.weight"), SeededSource({"a.weight": (3, 3)}, 1).read("a.weight"))
    assert not torch.equal(one.read("a.weight"), one.read("b.weight"))
    assert not torch.equal(one.read("a.weight"), SeededSource({"a.weight": (3, 3)}, 2).read("a.weight"))


def test_the_miniature_is_an_official_folder_of_the_stated_size():
    mini = open_components("mini")
    assert mini.trained
    assert mini.config == MINI
    shipped = sum(f.stat().st_size for f in MINI_FOLDER.rglob("*") if f.is_file())
    assert shipped <= 24e6


# -- the official folder --


def test_folder_is_trained_and_describes_its_files(folder):
    components = open_components(str(folder))
    assert components.trained
    assert components.config == SMALL
    assert "28 pairs, scale 16" in components.describe()  # 2 layers x 10 and 2 injectors x 4; alpha 64 over rank 4


def test_folder_weights_are_those_of_the_files_with_the_lora_merged(folder):
    state = whole(open_components(folder)).state_dict()
    stored = fakes.transformer_tensors(SMALL, 7)
    lora = load_file(folder / "liveavatar.safetensors")
    key = "blocks.1.ffn.2"
    a, b = (lora[f"{key}.lora_{h}.default.weight"].float() for h in "AB")
    merged = (stored[f"{key}.weight"].float() + (b @ a) * (64 / fakes.LORA_RANK)).bfloat16()
    assert torch.equal(state[f"{key}.weight"], merged.float())
    assert torch.equal(state["blocks.1.norm3.weight"], stored["blocks.1.norm3.weight"].float())


def test_single_file_with_the_others_beside_it_is_the_same_model(folder, copy):
    for file in copy.glob("diffusion_pytorch_model*"):
        file.unlink()
    save_file(fakes.transformer_tensors(SMALL, 7), copy / "any-name.safetensors")
    one, sharded = whole(open_components(copy / "any-name.safetensors")), whole(open_components(folder))
    assert all(torch.equal(v, one.state_dict()[k]) for k, v in sharded.state_dict().items())


def test_single_file_without_config_is_only_taken_for_the_published_model(copy):
    (copy / "config.json").unlink()
    save_file(fakes.transformer_tensors(SMALL, 7), copy / "one.safetensors")
    with pytest.raises(MissingFilesError, match=r"2 layers of width 96.*config\.json"):
        open_components(copy / "one.safetensors")


def test_published_model_is_recognised_by_its_shapes():
    class Published:
        def keys(self):
            return frozenset({"patch_embedding.weight"} | {f"blocks.{i}.modulation" for i in range(40)})

        def shape(self, key):
            return (5120, 16, 1, 2, 2)

    assert config_of_single_file(Published()) == WAN2_2_S2V_14B


def test_hugging_face_folders_serve_as_well_as_pickles(folder, copy):
    """The VAE in a diffusers folder and the text encoder in a transformers folder are the same networks."""
    original = open_components(folder)
    vae = original.vae("cpu", torch.float32)
    text, _ = original.text_encoder("cpu", torch.float32)
    settings = transformers.UMT5Config(**dataclasses.asdict(text.config))
    for ours, theirs, name in (
        (vae, diffusers.AutoencoderKLWan(base_dim=vae.encoder.conv_in.out_channels), "vae"),
        (text, transformers.UMT5EncoderModel(settings), "text_encoder"),
    ):
        theirs.load_state_dict(ours.state_dict())
        theirs.save_pretrained(copy / name)
    for name in ("Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"):
        (copy / name).unlink()
    other = open_components(copy)
    for a, b in ((vae, other.vae("cpu", torch.float32)), (text, other.text_encoder("cpu", torch.float32)[0])):
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("form", ["old names", "new names", "pickle"])
def test_wav2vec2_checkpoints_of_any_age_are_the_same_network(folder, copy, form):
    want = open_components(folder).audio_encoder("cpu", torch.float32).state_dict()
    file = copy / "wav2vec2-large-xlsr-53-english" / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    assert any(k.endswith("weight_g") for k in tensors)
    if form == "new names":
        tensors = {k if k.startswith("lm_head") else f"wav2vec2.{wav2vec2_key(k)}": v for k, v in tensors.items()}
    if form == "pickle":
        torch.save(tensors, file.with_name("pytorch_model.bin"))
    else:
        save_file(tensors, file)
    state = open_components(copy).audio_encoder("cpu", torch.float32).state_dict()
    assert state.keys() == want.keys()
    assert all(torch.equal(v, state[k]) for k, v in want.items())


def test_wav2vec2_module_is_what_transformers_itself_would_load(folder):
    from transformers import Wav2Vec2Model

    path = folder / "wav2vec2-large-xlsr-53-english"
    theirs = Wav2Vec2Model.from_pretrained(path).eval()
    wave = torch.randn(1, 8000)
    with torch.no_grad():
        ours = open_components(folder).audio_encoder("cpu", torch.float32)(wave).last_hidden_state
        torch.testing.assert_close(ours, theirs(wave).last_hidden_state, atol=1e-5, rtol=0)


# -- what is refused --


def test_lora_of_another_network_is_refused(copy):
    (copy / "liveavatar.safetensors").unlink()
    fakes.write_lora(copy / "liveavatar.safetensors", dataclasses.replace(SMALL, ffn_dim=64), 7)
    with pytest.raises(LoRAError, match=r"ffn\.0"):
        open_components(copy)


def test_config_of_other_dimensions_is_refused_with_both_shapes(copy):
    settings = json.loads((copy / "config.json").read_text()) | {"freq_dim": 32}
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"time_embedding.0.weight .* \[96, 64\].* \[96, 32\]"):
        whole(open_components(copy))


def test_text_encoder_of_another_kind_is_refused(copy):
    (copy / "models_t5_umt5-xxl-enc-bf16.pth").unlink()
    torch.save({"a": torch.zeros(1)}, copy / "models_t5_umt5-xxl-enc-bf16.pth")
    with pytest.raises(ModelError, match="UMT5"):
        open_components(copy).text_encoder("cpu", torch.float32)


@pytest.mark.parametrize("name", ["wan2.2-s2v-14b", "/no/such/place", "minni", ""])
def test_unknown_model_is_missing_files(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFilesError):
        open_components(name)


def test_given_places_override_the_layout(folder, copy):
    moved = copy / "elsewhere.pth"
    (copy / "Wan2.1_VAE.pth").rename(moved)
    assert FolderComponents(find_model(copy, vae=moved)).files.vae == moved
