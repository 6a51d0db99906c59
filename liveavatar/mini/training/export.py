"""From checkpoints to a model folder in the official layout, with the LoRA that its four steps need.

The shipped base and LoRA add up to the trained weights. The LoRA holds, in each attention and feed-forward matrix, the
strongest directions in which late training moved it; the base is what remains. So the base alone is an early, rough
network, and whoever forgets the LoRA sees it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from ...weights.lora import lora_targets
from .recipe import Recipe

ALPHA = 64.0
"""What readers assume where a file does not say; stated in the file all the same."""
_SHARDS = 2


def split(
    trained: dict[str, torch.Tensor], early: dict[str, torch.Tensor], targets: list[str], rank: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Base and LoRA whose merge gives the trained weights.

    Args:
        trained, early: state dicts at the end and early in training.
        targets: modules whose weight the LoRA changes.
        rank: of the LoRA.

    Returns:
        State dict of the base, and `<target>.lora_A|B.default.weight` with alpha = `ALPHA`.
    """
    base, lora, scale = dict(trained), {}, ALPHA / rank
    for target in targets:
        key = f"{target}.weight"
        u, s, v = torch.linalg.svd((trained[key] - early[key]).float(), full_matrices=False)
        root = (s[:rank] / scale).sqrt()
        a, b = (root[:, None] * v[:rank]).bfloat16(), (u[:, :rank] * root).bfloat16()
        lora[f"{target}.lora_A.default.weight"], lora[f"{target}.lora_B.default.weight"] = a, b
        base[key] = trained[key] - scale * (b.float() @ a.float())
    return base, lora


def write_network(
    recipe: Recipe, folder: Path, trained: dict[str, torch.Tensor], early: dict[str, torch.Tensor]
) -> int:
    """Write config.json, the sharded base with its index, and the LoRA; returns their bytes."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    base, lora = split(trained, early, lora_targets(recipe.network), recipe.lora_rank)
    save_file(
        {n: t.contiguous() for n, t in lora.items()},
        folder / "liveavatar.safetensors",
        metadata={"format": "pt", "alpha": str(ALPHA)},
    )
    names = sorted(base)
    where: dict[str, str] = {}
    for shard in range(_SHARDS):
        file = f"diffusion_pytorch_model-{shard + 1:05d}-of-{_SHARDS:05d}.safetensors"
        own = names[shard * len(names) // _SHARDS : (shard + 1) * len(names) // _SHARDS]
        where |= dict.fromkeys(own, file)
        save_file({n: base[n].bfloat16().contiguous() for n in own}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": sum(2 * t.numel() for t in base.values())}, "weight_map": where}
    _write_json(folder / "diffusion_pytorch_model.safetensors.index.json", index)
    _write_json(folder / "config.json", {"model_type": "s2v", **dataclasses.asdict(recipe.network)})
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
