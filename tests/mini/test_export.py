"""The exported folder is an official one: base and LoRA add up to what was trained, and scenes survive their file."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from liveavatar.config import MINI, ModelConfig
from liveavatar.mini.training.export import split, write_network
from liveavatar.mini.training.network import Draw, Lesson, new_network, scene_loss
from liveavatar.mini.training.optimiser import MuonAdamW
from liveavatar.mini.training.recipe import Recipe
from liveavatar.mini.training.rollout import Scene
from liveavatar.mini.training.scenes import SceneFolder
from liveavatar.noise_schedule import NoiseSchedule
from liveavatar.weights.lora import LoRASource, lora_targets, open_lora
from liveavatar.weights.source import SafetensorsSource

SMALL = Recipe(
    dim=24, ffn_dim=32, num_heads=2, num_layers=2, audio_inject_layers=(0,), text_dim=8, audio_dim=8, lora_rank=4
)


def scene(recipe: Recipe, blocks: int = 8) -> Scene:
    torch.manual_seed(1)
    shapes = {"reference": (16, 1, 8, 8), "motion": (16, 19, 8, 8), "latents": (16, 3 * blocks, 8, 8)}
    parts = {name: torch.randn(shape) for name, shape in shapes.items()}
    audio = torch.randn(12 * blocks, recipe.audio_layers, recipe.audio_dim)
    return Scene(**parts, context=torch.randn(3, recipe.text_dim), audio=audio)


def trained_and_early() -> tuple[dict, dict]:
    net = new_network(SMALL)
    early = {k: v.clone() for k, v in net.state_dict().items()}
    targets = {f"{t}.weight" for t in lora_targets(SMALL.network)}
    late = {k: v + (0.1 * torch.randn_like(v) if k in targets else 0) for k, v in early.items()}
    return late, early


def test_base_and_lora_add_up_to_what_was_trained() -> None:
    trained, early = trained_and_early()
    targets = lora_targets(SMALL.network)
    base, lora = split(trained, early, targets, SMALL.lora_rank)
    assert len(lora) == 2 * len(targets)
    for target in targets:
        a, b = (lora[f"{target}.lora_{x}.default.weight"].float() for x in "AB")
        merged = base[f"{target}.weight"] + 64 / SMALL.lora_rank * (b @ a)
        assert torch.allclose(merged, trained[f"{target}.weight"], atol=1e-5)
        assert not torch.allclose(base[f"{target}.weight"], trained[f"{target}.weight"], atol=1e-3)


def test_the_loader_merges_the_folder_back(tmp_path) -> None:
    trained, early = trained_and_early()
    size = write_network(SMALL, tmp_path, trained, early)
    config = ModelConfig.from_file(tmp_path / "config.json")
    assert config == SMALL.network
    base = SafetensorsSource(tmp_path)
    source = LoRASource(base, [open_lora(base, tmp_path / "liveavatar.safetensors", lora_targets(config))])
    for key, value in trained.items():
        assert torch.allclose(source.read(key).float(), value, atol=0.02, rtol=0.02), key
    assert size < 4 * sum(v.numel() for v in trained.values())


def test_the_shipped_miniature_has_the_dimensions_of_the_recipe() -> None:
    assert Recipe().network == MINI


def test_scenes_survive_their_file(tmp_path) -> None:
    folder, written = SceneFolder(tmp_path / "scenes"), scene(SMALL)
    folder.write(0, written)
    folder.write(2, written)
    assert folder.count() == 1
    read = folder.read(0, torch.device("cpu"))
    for field in dataclasses.fields(Scene):
        if field.name == "masks":  # one speaker has none
            assert read.masks is written.masks is None
        else:
            assert torch.allclose(getattr(read, field.name), getattr(written, field.name), atol=2e-3)


@pytest.mark.parametrize("lesson", [Lesson.first(0.0), Lesson.first(1.0), Lesson.refined(0.0), Lesson.refined(1.0)])
def test_what_a_step_learns_from_follows_from_its_number(lesson: Lesson) -> None:
    for number in range(50):
        first, again = (Draw.of(lesson, number, 9, 8, 3) for _ in range(2))
        assert len(first) == len(again) == lesson.scenes
        for a, b in zip(first, again, strict=True):
            assert dataclasses.replace(a, generator=b.generator) == b
            assert a.window + a.blocks <= 8
            assert not (a.own and lesson.own == 0)
        a, b = first[-1], again[-1]
        assert torch.equal(torch.randn(3, generator=a.generator), torch.randn(3, generator=b.generator))


def test_muon_goes_on_where_it_was_saved() -> None:
    """Two steps in a row, and one step, a save, a load and another, end with the same weights."""

    def moved(net: nn.Module, optimiser: MuonAdamW, times: int) -> None:
        for _ in range(times):
            optimiser.zero_grad()
            sum(p.square().sum() for p in net.parameters()).backward()
            optimiser.step()

    nets = [nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    before = nets[0][0].weight.detach().clone()
    moved(nets[0], MuonAdamW(nets[0], 1e-2), 2)
    halfway = MuonAdamW(nets[1], 1e-2)
    moved(nets[1], halfway, 1)
    resumed = MuonAdamW(nets[1], 1e-2)
    resumed.load_state_dict(copy.deepcopy(halfway.state_dict()))
    moved(nets[1], resumed, 1)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.allclose(nets[0][0].weight, before)


def test_a_few_steps_lower_the_loss() -> None:
    net, video, schedule = new_network(SMALL), scene(SMALL), NoiseSchedule.flow_matching(4)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        loss = scene_loss(
            net,
            video,
            dataclasses.replace(Draw.of(Lesson.first(0.0), 1, 1, 8, 0)[0], step=1, own=False, first_block=0),
            schedule,
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
