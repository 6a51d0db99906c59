"""Finding a model's files: whole, or refused with what is missing and the command that fetches it."""

import collections
import dataclasses
import os
import shutil

import fakes
import pytest
import torch

from liveavatar.components import open_components
from liveavatar.config import UNTRAINED
from liveavatar.errors import MissingFilesError, ModelError
from liveavatar.weights import source
from liveavatar.weights.folder import find_model, format_inspection, inspect_model

SMALL = dataclasses.replace(UNTRAINED, num_layers=1, audio_inject_layers=(0,), audio_layers=2)
SHARD = "diffusion_pytorch_model-00002-of-00002.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
WAV2VEC2 = "wav2vec2-large-xlsr-53-english"
T5 = "models_t5_umt5-xxl-enc-bf16.pth"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return fakes.write_official_folder(tmp_path_factory.mktemp("models") / "Wan2.2-S2V-14B", SMALL)


@pytest.fixture
def folder(original, tmp_path):
    shutil.copytree(original, tmp_path / "all" / "base", copy_function=os.link)
    return tmp_path / "all" / "base"


def cut(path, keep):
    """Replace a file by its beginning (the original is a hard link and stays)."""
    content = path.read_bytes()[:keep]
    path.unlink()
    path.write_bytes(content)


def test_official_layout_is_found(folder):
    files = find_model(folder)
    assert files.transformer == folder / INDEX
    assert files.vae == folder / "Wan2.1_VAE.pth"
    assert files.tokenizer == folder / "google" / "umt5-xxl"
    assert files.lora == folder / "liveavatar.safetensors"


def test_inspection_of_a_whole_folder_says_so(folder):
    found = inspect_model(folder)
    assert found.complete
    assert found.commands == ()
    text = format_inspection(found)
    assert "tensors in 2 shards" in text
    assert text.endswith("Complete.")
    assert all(item.nbytes > 0 for item in found.items)


@pytest.mark.parametrize("opening", [open_components, find_model, inspect_model])
def test_each_file_is_opened_once_while_a_model_is_opened(folder, monkeypatch, opening):
    """Whoever looks at it: the search for files, the checks, the loader."""
    opened, read, load = collections.Counter(), source.read_header, torch.load

    def counted_read(path):
        opened[path.name] += 1
        return read(path)

    def counted_load(path, *arguments, **options):
        opened[path.name] += 1
        return load(path, *arguments, **options)

    monkeypatch.setattr(source, "read_header", counted_read)
    monkeypatch.setattr(torch, "load", counted_load)
    opening(folder)
    weights = {path.name for path in folder.rglob("*") if path.suffix in (".safetensors", ".pth")}
    assert opened == dict.fromkeys(weights, 1)


@pytest.mark.parametrize("place", ["base/sub", "", "Live-Avatar"])
def test_lora_is_found_below_and_beside_the_folder(folder, place):
    (folder.parent / place).mkdir(exist_ok=True)
    (folder / "liveavatar.safetensors").rename(folder.parent / place / "liveavatar.safetensors")
    assert find_model(folder).lora.resolve() == (folder.parent / place / "liveavatar.safetensors").resolve()


MISSING = {
    INDEX: ("transformer", "hf download Wan-AI/Wan2.2-S2V-14B --include 'diffusion_pytorch_model*' --local-dir"),
    "config.json": ("configuration", "--include 'config.json'"),
    "Wan2.1_VAE.pth": ("VAE", "--include 'Wan2.1_VAE.pth'"),
    T5: ("text encoder", f"--include '{T5}'"),
    "google": ("tokenizer", "--include 'google/*'"),
    WAV2VEC2: ("audio encoder", f"--include '{WAV2VEC2}/*'"),
    "liveavatar.safetensors": ("LoRA", "hf download Quark-Vision/Live-Avatar liveavatar.safetensors --local-dir"),
}


@pytest.mark.parametrize("name", MISSING)
def test_each_missing_part_is_named_with_its_command(folder, name):
    part, command = MISSING[name]
    shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    if name == INDEX:
        (folder / SHARD).rename(folder.parent / SHARD)
        (folder / SHARD.replace("00002-of", "00001-of")).unlink()
    found = inspect_model(folder)
    assert [item.name for item in found.items if not item.usable] == [part]
    assert len(found.commands) == 1
    assert command in found.commands[0]
    assert found.commands[0].endswith(str(folder))
    with pytest.raises(MissingFilesError, match=part) as refusal:
        find_model(folder)
    assert command in refusal.value.nearest


DAMAGE = {
    "missing shard": lambda f: (f / SHARD).unlink(),
    "cut shard": lambda f: cut(f / SHARD, 5000),
    "empty shard": lambda f: cut(f / SHARD, 0),
    "cut index": lambda f: cut(f / INDEX, 100),
    "cut VAE": lambda f: cut(f / "Wan2.1_VAE.pth", 9000),
    "empty text encoder": lambda f: cut(f / T5, 0),
    "cut audio encoder": lambda f: cut(f / WAV2VEC2 / "model.safetensors", 3000),
    "audio encoder without settings": lambda f: (f / WAV2VEC2 / "config.json").unlink(),
    "empty tokenizer": lambda f: (f / "google" / "umt5-xxl" / "tokenizer_config.json").unlink(),
    "cut LoRA": lambda f: cut(f / "liveavatar.safetensors", 3000),
    "cut config": lambda f: cut(f / "config.json", 10),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found_before_anything_is_loaded(folder, what):
    DAMAGE[what](folder)
    found = inspect_model(folder)
    assert not found.complete
    assert "damaged" in format_inspection(found)
    assert len(found.commands) == 1
    with pytest.raises(ModelError, match="not complete"):
        find_model(folder)


def test_nothing_there_names_both_downloads(tmp_path):
    path = tmp_path / "my models"
    with pytest.raises(MissingFilesError, match="does not exist") as refusal:
        find_model(path)
    assert f"hf download Wan-AI/Wan2.2-S2V-14B --local-dir '{path}'" in refusal.value.nearest
    assert f"hf download Quark-Vision/Live-Avatar liveavatar.safetensors --local-dir '{path}'" in refusal.value.nearest


def test_empty_folder_is_refused_with_the_whole_download(tmp_path):
    (tmp_path / "deep").mkdir()
    with pytest.raises(MissingFilesError) as refusal:
        find_model(tmp_path / "deep")
    assert f"hf download Wan-AI/Wan2.2-S2V-14B --local-dir {tmp_path / 'deep'}" in refusal.value.nearest
    assert "missing" in format_inspection(inspect_model(tmp_path / "deep"))


def test_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"x")
    with pytest.raises(MissingFilesError, match="is a file"):
        find_model(tmp_path / "picture.png")


def test_nothing_is_written_while_looking(folder):
    before = sorted(p for p in folder.rglob("*"))
    inspect_model(folder)
    assert sorted(p for p in folder.rglob("*")) == before
