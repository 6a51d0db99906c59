"""A further LoRA on the command line: the video of a network that has it merged, however that is stored."""

import shutil

import pytest
import torch
from cli.runs import generate, receipt, run, write_inputs
from safetensors.torch import load_file, save_file

from liveavatar.components import MINI_FOLDER
from liveavatar.config import MINI
from liveavatar.weights.lora import lora_targets

STRENGTH, RANK = 0.5, 2
MISSING = "diffusion_model.blocks.0.cross_attn.k_img"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The miniature, a style for it, and the miniature that has the style in its file."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("model", "merged"):
        shutil.copytree(MINI_FOLDER, folder / name)
    shards = {shard: load_file(shard) for shard in (folder / "merged").glob("diffusion_pytorch_model*.safetensors")}
    place = {key: network for network in shards.values() for key in network}
    chance, style = torch.Generator().manual_seed(1), {}
    for target in lora_targets(MINI):
        network = place[f"{target}.weight"]
        weight = network[f"{target}.weight"]
        a, b = (0.2 * torch.randn(s, generator=chance) for s in ((RANK, weight.shape[1]), (weight.shape[0], RANK)))
        style |= {f"diffusion_model.{target}.lora_A.weight": a, f"diffusion_model.{target}.lora_B.weight": b}
        network[f"{target}.weight"] = (b @ a).mul_(STRENGTH).add_(weight).to(weight.dtype)
    extra = {f"{MISSING}.lora_{half}.weight": torch.ones(4, 4) for half in "AB"}
    save_file(style | extra, folder / "style.safetensors")
    for shard, network in shards.items():
        save_file(network, shard)
    return folder


def made(inputs, *options, **named):
    """The receipt of a video."""
    ran = generate(inputs, *options, steps=2, seconds=0.5, **named)
    assert ran.code == 0, ran.err
    return receipt(inputs) | {"said": ran.out}


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--weights", "fp8"),
        pytest.param(("--weights", "int8"), marks=pytest.mark.slow),
        ("--offload-layers", 3),
        pytest.param(("--stages", "1x2", "--devices", "cpu,cpu"), marks=pytest.mark.slow),
        pytest.param(("--engine", "ray"), marks=pytest.mark.slow),
    ],
)
def test_every_storage_makes_the_video_of_the_merged_network(inputs, files, options):
    style = f"{files / 'style.safetensors'}:{STRENGTH}"
    told = made(inputs, "--lora", "none", "--extra-lora", style, *options, model=files / "model")
    merged = made(inputs, "--lora", "none", *options, model=files / "merged")
    assert told["frames_sha256"] == merged["frames_sha256"]


def test_the_receipt_the_plan_and_inspect_say_what_it_changed(inputs, files):
    style = f"{files / 'style.safetensors'}:{STRENGTH}"
    targets = len(lora_targets(MINI))
    sentence = (
        f"the LoRA style.safetensors at strength 0.5 changes {targets} tensors; not in this network: 1, {MISSING}"
    )
    told = made(inputs, "--extra-lora", style)
    assert sentence in told["said"] and sentence in told["plan"]["notes"]
    published, extra = told["loras"]
    assert published["changed"] == targets and published["file"].endswith("liveavatar.safetensors")
    assert (extra["strength"], extra["changed"], extra["not_found"]) == (STRENGTH, targets, [MISSING])
    assert told["frames_sha256"] != made(inputs)["frames_sha256"]
    assert sentence in run("plan", "--extra-lora", style, "--size", "64x64").out
    inspected = run("inspect", files / "model", "--extra-lora", style)
    assert inspected.code == 0 and sentence in inspected.out and "extra LoRA" in inspected.out


def test_strength_0_is_the_video_without_it(inputs, files):
    told = made(inputs, "--extra-lora", f"{files / 'style.safetensors'}:0")
    assert told["frames_sha256"] == made(inputs)["frames_sha256"]
    assert told["loras"][1]["strength"] == 0


def test_without_the_distillation_lora_it_is_said_what_4_steps_are_for(inputs, files):
    said = made(inputs, "--lora", "none", model=files / "model")["said"]
    assert "no Live Avatar LoRA is merged" in said and "4 steps are not what it was made for" in said


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ("absent.safetensors", "no absent.safetensors"),
        ("model/liveavatar.safetensors", "is merged as the Live Avatar LoRA already"),
        ("style.safetensors:1000", "cannot have the strength 1000"),
        ("model/vae/diffusion_pytorch_model.safetensors", "is a VAE of Wan 2.1, not a LoRA"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_anything_is_made(inputs, files, lora, words):
    named = f"{files}/{lora}" if (files / lora.partition(":")[0]).exists() else lora
    refused = generate(inputs, "--extra-lora", named, model=files / "model", out=inputs / "none.mp4")
    assert refused.code == 2 and words in refused.err
    assert not (inputs / "none.mp4").exists()
