"""A model in files: a folder in the official layout works from end to end, a spoilt one is refused by name."""

import dataclasses
import json
import os
import pickle
import shutil

import fakes
import pytest
import torch
from cli.runs import generate, receipt, run, write_inputs
from safetensors.torch import load_file, save_file

from liveavatar.config import UNTRAINED
from liveavatar.media.video import probe

SMALL = dataclasses.replace(UNTRAINED, num_layers=3, audio_inject_layers=(0, 2), audio_layers=3)
SHARDS = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
VAE, TEXT = "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"
AUDIO, LORA = "wav2vec2-large-xlsr-53-english", "liveavatar.safetensors"


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    return fakes.write_official_folder(tmp_path_factory.mktemp("models") / "Wan2.2-S2V-14B", SMALL)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"), 0.6)


@pytest.fixture
def copy(official, tmp_path):
    """A copy one test may spoil; hard links, so cheap: replace files, never write into them."""
    shutil.copytree(official, tmp_path / "model", copy_function=os.link)
    return tmp_path / "model"


def test_a_folder_works_and_equals_itself_in_every_cut(official, inputs, tmp_path):
    signed = set()
    for cut in ("1x1", "4x3", "2x2"):
        ran = generate(inputs, model=official, stages=cut, out=tmp_path / f"{cut}.mp4")
        assert ran.code == 0, ran.err
        assert "untrained" not in ran.out
        signed.add(receipt(tmp_path, f"{cut}.json")["frames_sha256"])
    assert len(signed) == 1
    assert probe(tmp_path / "1x1.mp4").frames == 15
    assert receipt(tmp_path, "1x1.json")["plan"]["model"] == str(official)


def test_a_single_file_is_the_same_model(official, copy, inputs, tmp_path):
    for file in copy.glob("diffusion_pytorch_model*"):
        file.unlink()
    save_file(fakes.transformer_tensors(SMALL, 7), copy / "any-name.safetensors")
    for name, model in (("shards", official), ("file", copy / "any-name.safetensors")):
        ran = generate(inputs, model=model, seconds=0.3, out=tmp_path / f"{name}.mp4")
        assert ran.code == 0, ran.err
    assert receipt(tmp_path, "shards.json")["frames_sha256"] == receipt(tmp_path, "file.json")["frames_sha256"]


def test_inspect_a_complete_folder(official):
    ran = run("inspect", official)
    assert (ran.code, ran.err) == (0, "")
    for words in ("transformer", "in 2 shards", "3 layers", "LoRA", "VAE", "tokenizer", "Complete."):
        assert words in ran.out, ran.out


def test_inspect_says_what_is_missing_and_damaged_and_how_to_fetch_it(copy):
    (copy / VAE).unlink()
    damage(copy / SHARDS[1])
    ran = run("inspect", copy)
    assert ran.code == 1
    lines = {line.split()[1]: line for line in ran.out.splitlines() if line.startswith("  ") and "hf" not in line}
    assert lines["VAE"].split()[0] == "missing" and lines["transformer"].split()[0] == "damaged"
    assert SHARDS[1] in lines["transformer"]
    assert f"hf download Wan-AI/Wan2.2-S2V-14B --include '{VAE}' --local-dir {copy}" in ran.out


def test_inspect_mini(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("inspect", "mini").code == 0 and "untrained" in run("inspect", "untrained").out


def damage(path, keep=0.7):
    """Cut a file off, without writing into the linked original."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: int(keep * len(data))])


def replace(path, tensors):
    path.unlink()
    torch.save(tensors, path) if path.suffix == ".pth" else save_file(tensors, path)


def settings(path, **changed):
    values = json.loads(path.read_text()) | changed
    path.unlink()
    path.write_text(json.dumps(values))


class Code:
    """When it is unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def carry_code(folder):
    (folder / VAE).unlink()
    with (folder / VAE).open("wb") as file:
        pickle.dump({"encoder.conv1.weight": Code(folder.parent / "code ran")}, file)


def other_network(folder):
    """A whole and valid safetensors file of something else."""
    for shard in folder.glob("diffusion_pytorch_model*"):
        shard.unlink()
    save_file({"unet.conv_in.weight": torch.zeros(4, 4)}, folder / "diffusion_pytorch_model.safetensors")


def other_lora(folder):
    (folder / LORA).unlink()
    fakes.write_lora(folder / LORA, dataclasses.replace(SMALL, dim=64), 7)


def half_a_lora(folder):
    tensors = load_file(folder / LORA)
    replace(folder / LORA, {k: v for i, (k, v) in enumerate(sorted(tensors.items())) if i > 1})


SPOILT = {
    "empty": (lambda f: [shutil.rmtree(f), f.mkdir()], ["not complete", "transformer", "hf download"]),
    "no shard": (lambda f: (f / SHARDS[0]).unlink(), [SHARDS[0], "hf download"]),
    "half a shard": (lambda f: damage(f / SHARDS[1]), [SHARDS[1], "cut off"]),
    "no header": (lambda f: damage(f / SHARDS[1], 0), [SHARDS[1], "cut off"]),
    "another network": (other_network, ["lacks", "tensors this model needs"]),
    "no VAE": (lambda f: (f / VAE).unlink(), [VAE, "hf download"]),
    "half a VAE": (lambda f: damage(f / VAE), [VAE, "cut off"]),
    "a VAE with code": (carry_code, [VAE, "files that run code are refused"]),
    "another VAE": (lambda f: replace(f / VAE, {"a.weight": torch.zeros(3)}), ["'a.weight'", VAE]),
    "a VAE without tensors": (lambda f: replace(f / VAE, {}), ["no VAE of Wan 2.1"]),
    "another text encoder": (lambda f: replace(f / TEXT, {"a": torch.zeros(3)}), [TEXT, "no UMT5 encoder"]),
    "half an audio encoder": (lambda f: damage(f / AUDIO / "model.safetensors"), [AUDIO, "cut off"]),
    "a small audio encoder": (
        lambda f: settings(f / AUDIO / "config.json", hidden_size=24),
        [AUDIO, "24 numbers, not of 32"],
    ),
    "a shallow audio encoder": (
        lambda f: settings(f / AUDIO / "config.json", num_hidden_layers=1),
        [AUDIO, "2 hidden states, not 3"],
    ),
    "a broken audio encoder": (lambda f: damage(f / AUDIO / "config.json"), [AUDIO, "config.json"]),
    "another LoRA": (other_lora, [LORA, "blocks.0.", "Quark-Vision/Live-Avatar"]),
    "half a LoRA": (half_a_lora, [LORA, "37 of the 38 pairs", "missing"]),
    "no LoRA": (lambda f: (f / LORA).unlink(), [LORA, "hf download Quark-Vision/Live-Avatar"]),
    "the LoRA is the model": (
        lambda f: [(f / LORA).unlink(), os.link(f / SHARDS[0], f / LORA)],
        [LORA, "0 of the 38 pairs"],
    ),
    "another config": (
        lambda f: settings(f / "config.json", model_type="t2v"),
        ["model_type = 't2v'", "another network", "config.json"],
    ),
    "a larger config": (lambda f: settings(f / "config.json", ffn_dim=512), ["ffn.0", "config.json"]),
    "a config with words": (lambda f: settings(f / "config.json", dim="wide"), ["dim = 'wide'"]),
    "half a config": (lambda f: damage(f / "config.json"), ["config.json", "JSON"]),
}


def rewritten(folder, change):
    """The transformer as one file, with changed tensors."""
    shards = sorted(folder.glob("*-of-00002.safetensors"))
    tensors = {key: tensor for shard in shards for key, tensor in load_file(shard).items()}
    for file in folder.glob("diffusion_pytorch_model*"):
        file.unlink()
    save_file(change(tensors), folder / "diffusion_pytorch_model.safetensors")


Q = "blocks.1.self_attn.q.weight"
QUANTISED = {
    "whole numbers": (lambda t: t | {Q: t[Q].to(torch.int8)}, "blocks.1.self_attn.q in whole numbers"),
    "a scale of 0": (
        lambda t: t | {Q: t[Q].to(torch.float8_e4m3fn), Q.replace("weight", "scale_weight"): torch.zeros(())},
        "that is 0",
    ),
    "a word unknown": (
        lambda t: t | {Q: t[Q].to(torch.float8_e4m3fn), f"{Q}_offset": torch.zeros(())},
        "weight_offset beside it",
    ),
    "zeros": (lambda t: t | {Q: torch.zeros_like(t[Q])}, f"only zeros for {Q}"),
}
"""Beside those that are spoilt: files that would be read as numbers, and are none."""
AGREE = ["another LoRA", "half a LoRA", "a larger config", "a small audio encoder", "a shallow audio encoder", "no VAE"]


@pytest.mark.parametrize("what", [*QUANTISED, *AGREE])
def test_inspect_refuses_what_generate_refuses_and_says_the_same(copy, inputs, what):
    if what in QUANTISED:
        rewritten(copy, QUANTISED[what][0])
    else:
        SPOILT[what][0](copy)
    made, seen = generate(inputs, model=copy), run("inspect", copy)
    assert made.code == 2 and seen.code == 1
    why = QUANTISED[what][1] if what in QUANTISED else SPOILT[what][1][0]
    assert why in made.err and why in seen.out, (made.err, seen.out)
    if "not complete" not in made.err:
        assert made.err.removeprefix("liveavatar: ").strip() in seen.out


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named_while_they_load(copy, inputs, value):
    key = "blocks.2.ffn.2.bias"
    rewritten(copy, lambda tensors: tensors | {key: torch.full_like(tensors[key], value)})
    ran = generate(inputs, model=copy, seconds=0.3)
    assert ran.code in (1, 2) and f"{key} in " in ran.err and "not finite" in ran.err, ran.err


def test_a_merged_network_needs_no_lora(copy, inputs, tmp_path):
    lora = tmp_path / "elsewhere" / "lora.safetensors"
    lora.parent.mkdir()
    (copy / LORA).rename(lora)
    assert run("inspect", copy).code == 1
    signed = {}
    for given in ("none", lora):
        assert run("inspect", copy, "--lora", given).code == 0
        planned = run("plan", "--model", copy, "--lora", given, "--size", "64x64")
        words = "no Live Avatar LoRA is merged" if given == "none" else f"the LoRA is {lora}"
        assert planned.code == 0 and words in planned.out
        ran = generate(inputs, model=copy, lora=given, seconds=0.3, out=tmp_path / "out.mp4")
        assert ran.code == 0, ran.err
        told = receipt(tmp_path)
        assert any("LoRA" in note for note in told["plan"]["notes"])
        signed[given] = told["frames_sha256"]
    assert len(set(signed.values())) == 2


def test_parts_can_be_named_one_by_one(copy, tmp_path):
    moved = {}
    for option, name in (("vae", VAE), ("text-encoder", TEXT), ("audio-encoder", AUDIO)):
        moved[f"--{option}"] = (copy / name).rename(tmp_path / name)
    assert run("inspect", copy).code == 1
    assert run("inspect", copy, *(x for pair in moved.items() for x in pair)).code == 0
    refused = run("plan", "--model", copy, "--vae", tmp_path / "nothing.pth")
    assert refused.code == 2 and "VAE (no " in refused.err
    assert run("plan", "--model", "mini", "--lora", "none").code == 2


@pytest.mark.parametrize(("spoil", "words"), SPOILT.values(), ids=SPOILT.keys())
def test_spoilt_models_are_refused_before_anything_runs(copy, inputs, tmp_path, spoil, words):
    spoil(copy)
    before = sorted(tmp_path.iterdir())
    ran = generate(inputs, model=copy, out=tmp_path / "out.mp4")
    assert ran.code == 2, (ran.code, ran.err)
    assert ran.err.startswith("liveavatar: ") and ran.err.count("\n") == 1 and not ran.out, ran.err
    for word in words:
        assert word in ran.err, f"{word!r} is not in: {ran.err}"
    assert sorted(tmp_path.iterdir()) == before


def test_a_broken_tokenizer_is_refused_when_it_is_read(copy, inputs, tmp_path):
    damage(copy / "google" / "umt5-xxl" / "tokenizer_config.json", 0.3)
    (tmp_path / "out.mp4").write_bytes(b"an earlier video")
    ran = generate(inputs, model=copy, out=tmp_path / "out.mp4")
    assert ran.code == 2 and "umt5-xxl cannot be read" in ran.err and "Traceback" not in ran.err, ran.err
    assert (tmp_path / "out.mp4").read_bytes() == b"an earlier video"
    told = receipt(tmp_path)
    assert told["status"] == "failed" and "umt5-xxl" in told["error"] and told["probed"] is None
