"""What is learned of two people stays in a LoRA: it changes nothing at first, and merged it does the same."""

import dataclasses

import torch
from engine.tiny import TinyComponents

from liveavatar.mini.training.network import Draw, scene_loss
from liveavatar.mini.training.optimiser import MuonAdamW
from liveavatar.mini.training.pair import PairLoRA, lesson, pair_targets, token_masks, trained_network
from liveavatar.mini.training.recipe import Recipe
from liveavatar.mini.training.rollout import Rollout, Scene
from liveavatar.mini.training.scenes import SceneFolder
from liveavatar.mini.world.pair import pair
from liveavatar.noise_schedule import NoiseSchedule
from liveavatar.weights.lora import LoRASource, extra_lora
from liveavatar.weights.source import DictSource

SMALL = Recipe(
    dim=24, ffn_dim=32, num_heads=2, num_layers=2, audio_inject_layers=(0,), text_dim=8, audio_dim=8, pair_rank=3
)
SCHEDULE = NoiseSchedule.flow_matching(4)


def scene(blocks: int = 8) -> Scene:
    torch.manual_seed(1)
    shapes = {"reference": (16, 1, 8, 16), "motion": (16, 19, 8, 16), "latents": (16, 3 * blocks, 8, 16)}
    parts = {name: torch.randn(shape) for name, shape in shapes.items()}
    masks = torch.zeros(2, 3, 4, 8, 1)
    masks[0, :, :, :4] = masks[1, :, :, 4:] = 1
    audio = torch.randn(2, 12 * blocks, SMALL.audio_layers, SMALL.audio_dim)
    return Scene(**parts, context=torch.randn(3, SMALL.text_dim), audio=audio, masks=masks)


def velocity(net: torch.nn.Module, shown: Scene) -> torch.Tensor:
    rollout = Rollout(net, shown.window(0, 2), 0, 3, SCHEDULE.timesteps)
    return rollout.velocities(1, shown.latents[:, :6], shown.latents[:, :1])


def test_a_lora_changes_nothing_until_it_learns_and_then_a_merge_does_the_same() -> None:
    components, shown = TinyComponents(SMALL.network), scene()
    net = trained_network(components)
    before = velocity(net, shown)
    lora = PairLoRA(net, pair_targets(SMALL), SMALL.pair_rank)
    assert torch.equal(velocity(net, shown), before)
    for up in lora.up:
        torch.nn.init.normal_(up.weight, std=0.1)
    for part in (*lora.down, *lora.up):
        part.weight.data = part.weight.bfloat16().float()  # as the file has them
    learned = velocity(net, shown)
    assert not torch.allclose(learned, before, atol=1e-3)
    base = DictSource({key: value.float() for key, value in components.weights.items()})
    merged = LoRASource(base, [extra_lora(base, DictSource(lora.factors()), 1.0, {"alpha": str(SMALL.pair_rank)})])
    plain = trained_network(components)
    plain.load_state_dict({key: merged.read(key) for key in merged.keys()})  # noqa: SIM118 (not a mapping)
    assert torch.allclose(velocity(plain, shown), learned, atol=1e-4)


def test_a_few_steps_lower_the_loss_and_leave_the_network_alone() -> None:
    components, shown = TinyComponents(SMALL.network), scene()
    net = trained_network(components)
    lora = PairLoRA(net, pair_targets(SMALL), SMALL.pair_rank)
    optimiser, losses = MuonAdamW(lora, 1e-2), []
    draw = dataclasses.replace(Draw.of(lesson(0.0), 1, 1, 8, 0)[0], step=1, own=False, first_block=0)
    for _ in range(15):
        draw.generator.manual_seed(2)
        loss = scene_loss(net, shown, draw, SCHEDULE)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for key, value in net.state_dict().items():
        assert torch.equal(value, components.weights[key])


def test_scenes_of_two_survive_their_file_and_windows_cut_both_sounds(tmp_path) -> None:
    folder, written = SceneFolder(tmp_path), scene()
    folder.write(0, written)
    read = folder.read(0, torch.device("cpu"))
    assert torch.equal(read.masks, written.masks)
    assert torch.allclose(read.window(2, 3).audio, written.audio[:, 24:60], atol=2e-3)


def test_each_is_heard_in_the_own_face_alone(speech) -> None:
    heard = token_masks(pair(4, 0.2, draw=False).masks("heads"))
    assert heard.shape == (2, 3, 8, 16, 1)
    left, right = heard[..., 0].unbind()
    assert left[:, 5, 3:5].all() and not right[:, 5, 3:5].any()
    assert right[:, 5, 11:13].all() and not left[:, 5, 11:13].any()
    assert ((left + right) > 0).all()
