"""Training the transformer: every denoising step, in block-causal rollouts, on scenes encoded beforehand.

The talk is a function of the sound, so each step can be taught its answer directly: the clean latents it should lead
to. Late in training the input of a step is what the network itself made of the steps before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from ...errors import MissingFilesError
from ...model.transformer import CausalS2VTransformer, Part
from ...schedule import Schedule
from .loop import train_steps
from .recipe import Recipe
from .rollout import Rollout, Scene
from .scenes import SceneFolder

NETWORK, EARLY = "network.pt", "network_early.pt"
"""Checkpoints in the working folder: the training, and the weights kept aside for the LoRA."""
STEPS = 4
_STEP_CHANCES = (0.4, 0.25, 0.25, 0.1)
_OWN_SHARE = 0.6
"""Of the later steps, at the end of training, those that go on from the network's own earlier steps."""
_BLOCKS = 6
"""Blocks of a scene that one optimiser step sees."""
_FARTHEST_BLOCK = 3000
_SINK_NOISE = 0.05
"""Standard deviation of what is added to the second reference, which at inference is generated, not encoded."""
_LOSS_FLOOR = 0.05
"""Added to sigma^2 in the weight of a step; the last step hardly moves the latent and must not dominate."""


@dataclasses.dataclass(frozen=True)
class Draw:
    """What one optimiser step learns from; follows from its number alone.

    Attributes:
        scene: index of the scene.
        first_block: its place in an endless video.
        window: the first of its blocks that is used.
        step: the denoising step that is taught.
        own: whether the steps before are the network's own.
        generator: for noise.
    """

    scene: int
    first_block: int
    window: int
    step: int
    own: bool
    generator: torch.Generator

    @classmethod
    def of(cls, number: int, scenes: int, share: float, seed: int) -> Draw:
        """Draw for optimiser step `number`; `share` is how much of training is done."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        step = int(torch.multinomial(torch.tensor(_STEP_CHANCES), 1, generator=generator))
        chance = torch.rand(3, generator=generator).tolist()
        first = 0 if chance[0] < 0.35 else 4 + int(chance[1] * (_FARTHEST_BLOCK - 4))
        scene = int(torch.randint(scenes, (1,), generator=generator))
        window = int(torch.randint(3, (1,), generator=generator)) if first else 0
        return cls(scene, first, window, step, step > 0 and chance[2] < share * _OWN_SHARE, generator)


def new_network(recipe: Recipe) -> CausalS2VTransformer:
    """The network before training; the seed decides its weights."""
    torch.manual_seed(recipe.seed)
    net = CausalS2VTransformer(recipe.network, Part.whole(recipe.network))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("modulation") or name == "trainable_cond_mask.weight":
                parameter.normal_(std=0.02)
        # Gates that start open let gradients through every layer from the first step on.
        for layer in net.blocks.values():
            layer.modulation[0, [2, 5]] += 1.0  # type: ignore[operator, index]
    return net


def scene_loss(net: CausalS2VTransformer, scene: Scene, draw: Draw, schedule: Schedule) -> torch.Tensor:
    """How far one denoising step leads from the clean latents, where they move counting more."""
    scene = scene.window(draw.window, _BLOCKS)
    noise = torch.randn(scene.latents.shape, generator=draw.generator).to(scene.latents.device)
    second = scene.latents[:, :1]
    second = second + _SINK_NOISE * torch.randn(second.shape, generator=draw.generator).to(second.device)
    rollout = Rollout(net, scene, draw.first_block, draw.scene, schedule.timesteps)
    sigma = schedule.sigmas[draw.step]
    noisy = (1 - sigma) * scene.latents + sigma * noise
    if draw.own:
        with torch.no_grad():
            noisy = noise
            for step in range(draw.step):
                noisy = schedule.euler(step, noisy, rollout.velocities(step, noisy, second))
        rollout = Rollout(net, scene, draw.first_block, draw.scene, schedule.timesteps)
    clean = noisy - sigma * rollout.velocities(draw.step, noisy, second)
    return (motion_weight(scene.latents) * (clean - scene.latents).square()).mean() / (sigma**2 + _LOSS_FLOOR)


def motion_weight(latents: torch.Tensor, strength: float = 4.0) -> torch.Tensor:
    """Weight [1, 1, h, w] of each place: 1 where the latents [16, n, h, w] stand still, more where they move."""
    movement = latents.std(1).mean(0)
    weight = 1 + strength * movement / movement.max().clamp_min(1e-6)
    return (weight / weight.mean())[None, None]


def train_network(recipe: Recipe, work: Path, minutes: float | None, log: Callable[[str], None]) -> bool:
    """Train on the scenes that are there; more may appear meanwhile. Resumable.

    Returns:
        Whether all steps are done.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net, scenes, schedule = new_network(recipe).to(device), SceneFolder(work / "scenes"), Schedule.of(STEPS)
    early = round(recipe.network_steps * recipe.early_share)

    def loss_of(number: int) -> torch.Tensor:
        if number == early:
            torch.save({"model": net.state_dict()}, work / EARLY)
        draw = Draw.of(number, scenes.count(), number / recipe.network_steps, recipe.seed)
        return scene_loss(net, scenes.read(draw.scene, device), draw, schedule)

    if not scenes.count():
        raise MissingFilesError(f"There are no scenes in {work}.", "Run the stage 'scenes' first.")
    return train_steps(
        work / NETWORK, net, loss_of, steps=recipe.network_steps, rate=recipe.network_rate, minutes=minutes, log=log
    )
