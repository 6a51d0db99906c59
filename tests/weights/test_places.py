"""Where the parts of a model are looked for: beside it, and in ComfyUI's folders; and where missing ones belong."""

import dataclasses
import json
import os
import shutil

import fakes
import pytest
import torch
from safetensors.torch import load_file, save_file
from weights.core_files import write_core_files

from liveavatar.components import FolderComponents, open_components
from liveavatar.config import UNTRAINED, TinyConfig
from liveavatar.errors import LoRAError, MissingFilesError, ModelError
from liveavatar.vae.tiny import TinyDecoder
from liveavatar.weights.folder import find_model, format_inspection, inspect_model
from liveavatar.weights.lora import ExtraLoRA

SMALL = dataclasses.replace(UNTRAINED, num_layers=1, audio_inject_layers=(0,), audio_layers=2, audio_dim=64)
SHARDS = "diffusion_pytorch_model*"
LORA, VAE = "liveavatar.safetensors", "Wan2.1_VAE.pth"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return fakes.write_official_folder(tmp_path_factory.mktemp("models") / "Wan2.2-S2V-14B", SMALL)


@pytest.fixture
def folder(original, tmp_path):
    shutil.copytree(original, tmp_path / "all" / "base", copy_function=os.link)
    return tmp_path / "all" / "base"


@pytest.fixture
def core(original, tmp_path):
    """Single files in ComfyUI's folders, each under a name it has there; a config.json as it is a small network."""
    models = tmp_path / "models"
    files = write_core_files(models, original)
    for part, name in (("lora", LORA), ("text_encoder", "umt5_xxl_fp16.safetensors")):
        path = getattr(files, part)
        files = dataclasses.replace(files, **{part: path.rename(path.with_name(name))})
    shutil.copy(original / "config.json", files.transformer.parent)
    return files


def network(path):
    """The transformer's tensors of an official folder."""
    return {key: tensor for shard in sorted(path.glob("*-of-*")) for key, tensor in load_file(shard).items()}


@pytest.mark.parametrize("named", ["tiny", "taew2_1.safetensors"])
@pytest.mark.parametrize("further", [0, 1])
def test_a_tiny_vae_works_beside_the_full_one(folder, original, named, further, monkeypatch):
    with torch.device("meta"):
        shapes = {key: t.shape for key, t in TinyDecoder(TinyConfig((8, 8, 4, 4))).state_dict().items()}
    save_file({key: torch.ones(shape) for key, shape in shapes.items()}, folder / "taew2_1.safetensors")
    monkeypatch.chdir(folder)
    loras = [ExtraLoRA(folder / LORA, 0.5)] * further
    found = find_model(folder, vae=named, extra_loras=loras)
    assert (found.vae, found.tiny_vae.resolve()) == (folder / VAE, folder / "taew2_1.safetensors")
    assert [lora.strength for lora in found.extra_loras] == [0.5] * further
    assert find_model(folder, vae="full").tiny_vae is None and find_model(folder).tiny_vae is None


# -- ComfyUI's folders --


def test_parts_are_found_in_the_folders_of_comfyui(core):
    found = find_model(core.transformer)
    assert dataclasses.asdict(found) | core.beside == dataclasses.asdict(found)
    assert inspect_model(core.transformer).complete


def test_parts_are_found_from_folders_inside_those(core):
    deep = core.transformer.parent / "wan" / "s2v.safetensors"
    deep.parent.mkdir()
    core.transformer.rename(deep)
    (core.transformer.parent / "config.json").rename(deep.parent / "config.json")
    inner = core.vae.parent / "split_files" / core.vae.name
    inner.parent.mkdir()
    core.vae.rename(inner)
    assert find_model(deep).vae == inner


def test_parts_can_be_named_as_comfyui_lists_them(core):
    other = core.lora.with_name("another.safetensors")
    shutil.copy(core.lora, other)
    assert find_model(core.transformer, lora="another.safetensors").lora == other
    with pytest.raises(MissingFilesError, match="no yet_another"):
        find_model(core.transformer, lora="yet_another.safetensors")


PLACES = {
    "lora": "hf download Quark-Vision/Live-Avatar liveavatar.safetensors --local-dir {models}/loras",
    "vae": "split_files/vae/wan_2.1_vae.safetensors --local-dir {models}/vae",
    "text_encoder": "split_files/text_encoders/umt5_xxl_fp16.safetensors --local-dir {models}/text_encoders",
    "audio_encoder": "wav2vec2_large_english_fp16.safetensors --local-dir {models}/audio_encoders",
}


@pytest.mark.parametrize("part", PLACES)
def test_each_missing_part_goes_to_its_own_folder(core, part):
    getattr(core, part).unlink()
    models = core.vae.parents[1]
    with pytest.raises(MissingFilesError) as refusal:
        find_model(core.transformer)
    assert PLACES[part].format(models=models) in refusal.value.nearest
    assert "diffusion_models" not in refusal.value.nearest
    assert refusal.value.nearest.count("hf download") == 1


def test_a_missing_transformer_goes_to_its_own_folder(tmp_path):
    path = tmp_path / "models" / "diffusion_models" / "wan2.2_s2v_14B_bf16.safetensors"
    with pytest.raises(MissingFilesError, match="does not exist") as refusal:
        find_model(path)
    for category in ("diffusion_models", "loras", "vae", "text_encoders", "audio_encoders"):
        assert refusal.value.nearest.count(f"--local-dir {tmp_path}/models/{category}") == 1
    assert "Wan2.2-S2V-14B" not in refusal.value.nearest


def test_the_lora_of_a_folder_in_comfyui_goes_to_loras(folder, tmp_path):
    place = tmp_path / "models" / "liveavatar" / "Wan"
    place.parent.mkdir(parents=True)
    folder.rename(place)
    (place / LORA).unlink()
    with pytest.raises(MissingFilesError) as refusal:
        find_model(place)
    assert f"liveavatar.safetensors --local-dir {tmp_path}/models/loras" in refusal.value.nearest


# -- the LoRA --


def test_no_lora_is_merged_where_none_is_wanted(folder, original):
    (folder / LORA).unlink()
    found = find_model(folder, lora="none")
    assert found.lora is None
    components = FolderComponents(found)
    assert "no Live Avatar LoRA is merged" in components.notes[0]
    from liveavatar.model.transformer import ModelSlice

    weights = components.transformer(ModelSlice.whole(SMALL), "cpu", torch.bfloat16).state_dict()
    assert all(torch.equal(weights[key], tensor) for key, tensor in network(original).items())
    assert "none: the network is used as its file has it" in format_inspection(inspect_model(folder, lora="none"))


def test_a_lora_beside_the_folder_is_named(folder):
    assert open_components(folder).notes == ()
    (folder.parent / "Live-Avatar").mkdir()
    (folder / LORA).rename(folder.parent / "Live-Avatar" / LORA)
    (note,) = open_components(folder).notes
    assert str(folder.parent / "Live-Avatar" / LORA) in note and "--lora" in note


def test_one_of_several_neighbours_is_not_taken_by_itself(folder):
    for name in ("one", "two"):
        (folder.parent / name).mkdir()
        shutil.copy(folder / LORA, folder.parent / name / LORA)
    assert find_model(folder).lora == folder / LORA
    (folder / LORA).unlink()
    with pytest.raises(MissingFilesError, match=r"several beside the model: .*one.*two") as refusal:
        find_model(folder)
    assert "--lora FILE" in refusal.value.nearest
    assert find_model(folder, lora=folder.parent / "two" / LORA).lora == folder.parent / "two" / LORA


@pytest.mark.parametrize(("key", "value"), [("lora", "Live-Avatar 1.0"), ("modelspec.merged_from", "x + liveavatar")])
def test_a_network_that_says_it_is_merged_gets_no_lora(folder, original, key, value):
    for file in folder.glob(SHARDS):
        file.unlink()
    save_file(network(original), folder / "diffusion_pytorch_model.safetensors", {key: value})
    with pytest.raises(LoRAError, match="merged into it already") as refusal:
        open_components(folder)
    assert "--lora none" in refusal.value.nearest
    assert open_components(folder, lora="none").notes


# -- other layouts of the transformer --


def test_shards_without_their_index_are_read(folder, original):
    (folder / "diffusion_pytorch_model.safetensors.index.json").unlink()
    assert "tensors in 2 shards" in format_inspection(inspect_model(folder))
    assert find_model(folder / "diffusion_pytorch_model-00002-of-00002.safetensors").transformer.name.endswith(
        "2.safetensors"
    )
    assert open_components(folder).config == SMALL
    (folder / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks diffusion_pytorch_model-00002-of-00002\.safetensors"):
        find_model(folder)


def test_shards_that_hold_a_tensor_twice_are_refused(folder):
    (folder / "diffusion_pytorch_model.safetensors.index.json").unlink()
    one, two = (folder / f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2))
    two.unlink()
    shutil.copy(one, two)
    with pytest.raises(ModelError, match="and so does"):
        find_model(folder)


@pytest.mark.parametrize("prefix", ["module.", "net.", "dit.", "model.diffusion_model."])
@pytest.mark.parametrize("name", ["any.safetensors", "any.pt"])
def test_one_file_behind_any_prefix_is_read(folder, original, prefix, name):
    renamed = {prefix + key: tensor for key, tensor in network(original).items()}
    for file in folder.glob(SHARDS):
        file.unlink()
    torch.save(renamed, folder / name) if name.endswith(".pt") else save_file(renamed, folder / name)
    assert open_components(folder / name).config == SMALL


def test_diffusers_folders_are_looked_into(folder):
    (folder / "transformer").mkdir()
    for file in [*folder.glob(SHARDS), folder / "config.json"]:
        file.rename(folder / "transformer" / file.name)
    assert open_components(folder).config == SMALL


UNREADABLE = {
    "a damaged GGUF file": (lambda p, t: p.write_bytes(b"GGUF" + b"\3" * 99), "model.safetensors", "is a GGUF file"),
    "diffusers": (
        lambda p, t: save_file({"condition_embedder.time_embedder.linear_1.weight": torch.ones(2)}, p),
        "model.safetensors",
        "in the names of diffusers",
    ),
    "bitsandbytes": (
        lambda p, t: save_file(t | {"blocks.0.ffn.0.weight.absmax": torch.ones(2)}, p),
        "model.safetensors",
        "4 bits by bitsandbytes",
    ),
    "PEFT": (
        lambda p, t: save_file(t | {"blocks.0.ffn.0.lora_A.default.weight": torch.ones(2, 2)}, p),
        "model.safetensors",
        "not merged into them",
    ),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_cannot_be_read_is_named_with_what_to_get(folder, original, what):
    make, name, words = UNREADABLE[what]
    make(folder / name, network(original))
    with pytest.raises(ModelError, match=words) as refusal:
        find_model(folder / name)
    assert "fp8_scaled" in refusal.value.nearest
    assert "another" in format_inspection(inspect_model(folder / name))


def test_a_vae_in_the_names_of_diffusers_is_read(folder):
    from liveavatar.weights.formats import vae_to_diffusers

    tensors = {vae_to_diffusers(key): tensor for key, tensor in torch.load(folder / VAE).items()}
    save_file(tensors, folder / "vae.safetensors")
    given, own = (open_components(folder, vae=path) for path in (folder / "vae.safetensors", None))
    theirs, ours = (model.vae("cpu", torch.float32).state_dict() for model in (given, own))
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)


def test_a_config_of_other_layers_is_refused_before_a_network_is_laid_out(folder):
    values = json.loads((folder / "config.json").read_text()) | {"num_layers": 200}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match=r"has 1 layers; its config\.json says 200"):
        open_components(folder)
