"""Training the transformer: every denoising step, in block-causal rollouts, on scenes encoded beforehand.

The talk is a function of the sound, so each step can be taught its answer directly: the clean latents it should lead
to. Late in training the input of a step is what the network itself made of the steps before. AdamW brings it to talk;
Muon, on many faces at a time and then on long talk again, brings it to likeness.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from ...errors import MissingFilesError
from ...model.transformer import CausalS2VTransformer, ModelSlice
from ...noise_schedule import NoiseSchedule
from .loop import load_checkpoint, train_steps
from .optimiser import MuonAdamW
from .recipe import Recipe
from .rollout import Rollout, Scene
from .scenes import SceneFolder

NETWORK, EARLY, REFINED = "network.pt", "network_early.pt", "network_refined.pt"
"""Checkpoints in the working folder: the training, the weights kept aside for the LoRA, and the refinement."""
STEPS = 4
_REFINED_FACES = 0.6
"""Share of the refinement that looks at many faces."""
_FARTHEST_BLOCK = 3000
_SINK_NOISE = 0.05
"""Standard deviation of what is added to the second reference, which at inference is generated, not encoded."""
_LOSS_FLOOR = 0.05
"""Added to sigma^2 in the weight of a step; the last step hardly moves the latent and must not dominate."""


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What kind of draws an optimiser step learns from.

    Attributes:
        scenes, blocks: how many scenes, and blocks of each.
        own: share of the later steps that go on from the network's own earlier steps.
        chances: of each denoising step. The last one starts from next to no noise and hardly moves the latent.
    """

    scenes: int
    blocks: int
    own: float
    chances: tuple[float, ...]

    @classmethod
    def first(cls, share: float) -> Lesson:
        """Of the training, `share` of which is done."""
        return cls(1, 6, 0.6 * share, (0.4, 0.25, 0.25, 0.1))

    @classmethod
    def refined(cls, share: float) -> Lesson:
        """Of the refinement, `share` of which is done."""
        chances = (0.35, 0.25, 0.37, 0.03)
        return cls(3, 2, 0.3, chances) if share < _REFINED_FACES else cls(1, 6, 0.6, chances)


@dataclasses.dataclass(frozen=True)
class Draw:
    """One of the scenes that an optimiser step learns from.

    Attributes:
        scene: index of the scene.
        first_block: its place in an endless video.
        window, blocks: the first of its blocks that is used, and how many are.
        step: the denoising step that is taught.
        own: whether the steps before are the network's own.
        generator: for noise.
    """

    scene: int
    first_block: int
    window: int
    blocks: int
    step: int
    own: bool
    generator: torch.Generator

    @classmethod
    def of(cls, lesson: Lesson, number: int, scenes: int, scene_blocks: int, seed: int) -> list[Draw]:
        """Draws for optimiser step `number`, from which alone they follow, out of `scenes` of `scene_blocks`."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        windows = scene_blocks - lesson.blocks + 1
        return [cls._one(lesson, generator, scenes, windows) for _ in range(lesson.scenes)]

    @classmethod
    def _one(cls, lesson: Lesson, generator: torch.Generator, scenes: int, windows: int) -> Draw:
        step = int(torch.multinomial(torch.tensor(lesson.chances), 1, generator=generator))
        chance = torch.rand(3, generator=generator).tolist()
        first = 0 if chance[0] < 0.35 else 4 + int(chance[1] * (_FARTHEST_BLOCK - 4))
        scene = int(torch.randint(scenes, (1,), generator=generator))
        window = int(torch.randint(windows, (1,), generator=generator)) if first else 0
        return cls(scene, first, window, lesson.blocks, step, step > 0 and chance[2] < lesson.own, generator)


def new_network(recipe: Recipe) -> CausalS2VTransformer:
    """The network before training; the seed decides its weights."""
    torch.manual_seed(recipe.seed)
    net = CausalS2VTransformer(recipe.network, ModelSlice.whole(recipe.network))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("modulation") or name == "trainable_cond_mask.weight":
                parameter.normal_(std=0.02)
        # Gates that start open let gradients through every layer from the first step on.
        for layer in net.blocks.values():
            layer.modulation[0, [2, 5]] += 1.0  # type: ignore[operator, index]
    return net


def scene_loss(net: CausalS2VTransformer, scene: Scene, draw: Draw, schedule: NoiseSchedule) -> torch.Tensor:
    """How far one denoising step leads from the clean latents, where they move counting more."""
    scene = scene.window(draw.window, draw.blocks)
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

    Raises:
        MissingFilesError: there are no scenes.
    """
    net = new_network(recipe)
    loss_of = _loss(recipe, work, net, Lesson.first, recipe.network_steps)
    early = round(recipe.network_steps * recipe.early_share)

    def keeping_early(number: int) -> torch.Tensor:
        if number == early:
            torch.save({"model": net.state_dict()}, work / EARLY)
        return loss_of(number)

    steps, rate = recipe.network_steps, recipe.network_rate
    return train_steps(work / NETWORK, net, keeping_early, steps=steps, rate=rate, minutes=minutes, log=log)


def refine_network(recipe: Recipe, work: Path, minutes: float | None, log: Callable[[str], None]) -> bool:
    """Go on from `train_network` with Muon. Arguments, result and errors as there.

    Raises:
        MissingFilesError: no network has been trained.
    """
    trained = load_checkpoint(work / NETWORK)
    if trained is None:
        raise MissingFilesError(f"There is no trained network in {work}.", "Run the stage 'network' first.")
    net = new_network(recipe)
    net.load_state_dict(trained)
    loss_of = _loss(recipe, work, net, Lesson.refined, recipe.refine_steps)
    return train_steps(
        work / REFINED,
        net,
        loss_of,
        steps=recipe.refine_steps,
        rate=recipe.refine_rate,
        minutes=minutes,
        log=log,
        optimiser_of=MuonAdamW,
    )


def _loss(
    recipe: Recipe, work: Path, net: CausalS2VTransformer, lesson_of: Callable[[float], Lesson], steps: int
) -> Callable[[int], torch.Tensor]:
    """As `scene_loss_of`, of the scenes in the folder of the work."""
    scenes = SceneFolder(work / "scenes")
    if not scenes.count():
        raise MissingFilesError(f"There are no scenes in {work}.", "Run the stage 'scenes' first.")
    return scene_loss_of(recipe, scenes, net, lesson_of, steps)


def scene_loss_of(
    recipe: Recipe, scenes: SceneFolder, net: CausalS2VTransformer, lesson_of: Callable[[float], Lesson], steps: int
) -> Callable[[int], torch.Tensor]:
    """Number of an optimiser step -> its loss; moves the network to where it is trained."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net.to(device)
    schedule = NoiseSchedule.flow_matching(STEPS)

    def loss_of(number: int) -> torch.Tensor:
        draws = Draw.of(lesson_of(number / steps), number, scenes.count(), recipe.scene_blocks, recipe.seed)
        losses = [scene_loss(net, scenes.read(draw.scene, device), draw, schedule) for draw in draws]
        return torch.stack(losses).mean()

    return loss_of
