"""Writing transformers folders that the model folder reader understands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


def write_part(folder: Path, model: Any, settings: dict[str, Any], architecture: str) -> int:
    """Write `config.json` and `model.safetensors` (bfloat16, only what the state dict holds, no shared memory).

    Args:
        folder: made where it is missing.
        settings: the whole config.json but for its `architectures`; must name its `model_type`.

    Returns:
        Bytes of the weights.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    kept: dict[str, torch.Tensor] = {}
    seen: set[torch.Tensor] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor not in seen:
            kept[name] = tensor.detach().to("cpu", torch.bfloat16).contiguous().clone()
            seen.add(tensor)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps({"architectures": [architecture], "torch_dtype": "bfloat16", **settings}, indent=2) + "\n",
        encoding="utf-8",
    )
    return (folder / "model.safetensors").stat().st_size
