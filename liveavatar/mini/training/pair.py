"""Two people in one picture: what the finished network learns of it, kept apart from it in a LoRA.

The network has seen square pictures of one person. Beside another person, in a picture twice as wide, each should move
to the own sound only, which is heard where the own mask says. The network itself stays as it is, so that alone nobody
changes; the factors of a LoRA of its self-attention, audio and feed-forward layers are trained where they will work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...components import Components
from ...config import BLOCK_FRAMES, BLOCK_LATENTS
from ...errors import MissingFilesError
from ...media.masks import hearing_tokens, owned_tokens
from ...model.transformer import CausalS2VTransformer, ModelSlice
from ...weights.lora import lora_targets
from ..world.pair import MASKS, Pair, pair
from .loop import load_checkpoint, train_steps
from .network import Lesson, scene_loss_of
from .optimiser import MuonAdamW
from .recipe import Recipe
from .rollout import Scene
from .scenes import SceneFolder, encode_scene, hear, write_missing

CHECKPOINT, SCENES = "pair.pt", "pair_scenes"
"""Names in the folder of the work."""
_SEEDS = 50_000
"""Added to the seeds of the scenes of one person: other people, other sounds."""
_SHORT = 0.7
"""Share of the steps that see two blocks of two scenes; the others see five blocks of one."""


class PairLoRA(nn.Module):
    """The factors of a LoRA, at work in a network that stays as it is.

    Args:
        net: the network; its targets give what they gave before, and what the factors add.
        targets: names of its Linear modules.
        rank: of the factors; the scale is 1.
    """

    def __init__(self, net: CausalS2VTransformer, targets: list[str], rank: int):
        super().__init__()
        net.requires_grad_(False)
        self.targets = targets
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for target in targets:
            linear = net.get_submodule(target)
            assert isinstance(linear, nn.Linear)
            down = nn.Linear(linear.in_features, rank, bias=False)
            up = nn.Linear(rank, linear.out_features, bias=False)
            nn.init.zeros_(up.weight)
            self.down.append(down)
            self.up.append(up)
            linear.register_forward_hook(lambda _, given, made, down=down, up=up: made + up(down(given[0])))

    def factors(self) -> dict[str, torch.Tensor]:
        """`<target>.lora_A|B.weight`, in bfloat16."""
        found = {}
        for target, down, up in zip(self.targets, self.down, self.up, strict=True):
            for name, factor in (("A", down), ("B", up)):
                weight = factor.get_parameter("weight").detach()
                found[f"{target}.lora_{name}.weight"] = weight.bfloat16().contiguous()
        return found


def pair_targets(recipe: Recipe) -> list[str]:
    """What the LoRA changes: all that the distillation LoRA does, but for what reads the prompt."""
    return [target for target in lora_targets(recipe.network) if ".cross_attn." not in target]


def trained_network(components: Components) -> CausalS2VTransformer:
    """The finished network, LoRA and all, with layers that gradients pass."""
    whole = ModelSlice.whole(components.config)
    filled = components.transformer(whole, torch.device("cpu"), torch.float32)
    net = CausalS2VTransformer(components.config, whole)
    net.load_state_dict(filled.state_dict())
    return net


def encode_pair(vae: Any, encoder: Any, reader: tuple[Any, Any], example: Pair, masks: np.ndarray) -> Scene:
    """Encode a pair's video as inference would have its parts; see `encode_scene`.

    Args:
        masks: where each of them is, bool [2, H, W].
    """
    left, right = (one.sound.samples for one in example.people)
    frames = example.drawn[: len(example.drawn) // BLOCK_FRAMES * BLOCK_FRAMES]
    scene = encode_scene(vae, encoder, reader, example.reference, frames, left, example.prompt.text)
    audio = torch.stack([scene.audio, hear(encoder, right, scene.blocks)])
    return dataclasses.replace(scene, audio=audio, masks=token_masks(masks))


def token_masks(masks: np.ndarray) -> torch.Tensor:
    """Where each speaker is heard, as of `Scene`, from where each is: bool [speakers, H, W]."""
    hears = torch.from_numpy(hearing_tokens(owned_tokens(np.where(masks, 255, 0).astype(np.uint8))))
    return hears[:, None, :, :, None].expand(-1, BLOCK_LATENTS, -1, -1, -1).float()


def make_pair_scenes(
    recipe: Recipe,
    work: Path,
    parts: tuple[Any, Any, tuple[Any, Any]],
    first: int,
    stride: int,
    log: Callable[[str], None],
) -> None:
    """Encode the pairs `first`, `first + stride`, ... that are missing; several processes may share the work."""
    seconds = recipe.scene_blocks * BLOCK_FRAMES / 25

    def encoded(index: int) -> Scene:
        example = pair(recipe.seed * 100_000 + _SEEDS + index, seconds, size=recipe.size)
        return encode_pair(*parts, example, example.masks(MASKS[index % len(MASKS)]))

    write_missing(SceneFolder(work / SCENES), range(first, recipe.pair_scenes, stride), encoded, log)


def lesson(share: float) -> Lesson:
    """Of the training, `share` of which is done."""
    chances = (0.35, 0.25, 0.35, 0.05)
    return Lesson(2, 2, 0.4, chances) if share < _SHORT else Lesson(1, 5, 0.6, chances)


def train_pair(
    recipe: Recipe, work: Path, components: Components, minutes: float | None, log: Callable[[str], None]
) -> bool:
    """Train the LoRA, or go on with it.

    Args:
        components: of the model with the finished network.
        minutes: after so many the training pauses.

    Returns:
        Whether all steps are done.

    Raises:
        MissingFilesError: there are no scenes of pairs.
    """
    net = trained_network(components)
    torch.manual_seed(recipe.seed)
    lora = PairLoRA(net, pair_targets(recipe), recipe.pair_rank)
    folder = SceneFolder(work / SCENES)
    if not folder.count():
        raise MissingFilesError(f"There are no scenes of pairs in {work}.", "Run the stage 'pair_scenes' first.")
    loss_of = scene_loss_of(recipe, folder, net, lesson, recipe.pair_steps)
    return train_steps(
        work / CHECKPOINT,
        lora.to(next(net.parameters()).device),
        loss_of,
        steps=recipe.pair_steps,
        rate=recipe.pair_rate,
        minutes=minutes,
        log=log,
        optimiser_of=MuonAdamW,
    )


def write_pair(recipe: Recipe, work: Path, components: Components, path: Path) -> int:
    """Write the trained LoRA; returns its bytes.

    Raises:
        MissingFilesError: none has been trained.
    """
    from safetensors.torch import save_file

    trained = load_checkpoint(work / CHECKPOINT)
    if trained is None:
        raise MissingFilesError(f"There is no LoRA of pairs in {work}.", "Run the stage 'pair' first.")
    lora = PairLoRA(trained_network(components), pair_targets(recipe), recipe.pair_rank)
    lora.load_state_dict(trained)
    save_file(lora.factors(), path, metadata={"format": "pt", "alpha": str(recipe.pair_rank)})
    return path.stat().st_size
