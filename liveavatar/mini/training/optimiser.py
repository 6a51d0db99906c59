"""The optimiser of a transformer: Muon for the matrices inside, AdamW for all else."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class MuonAdamW:
    """Two optimisers with one learning rate.

    Muon (Jordan et al. 2024) moves a matrix in all its directions alike, so rare things such as a colour named in a
    prompt are learned with the common ones. Its update is scaled to the size of AdamW's (Liu et al. 2025), so both use
    the same rate.

    Args:
        model: what is trained; two-dimensional weights of its linear layers go to Muon.
        rate: the learning rate.
    """

    def __init__(self, model: nn.Module, rate: float):
        matrices = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
        inside = {id(w) for w in matrices}
        rest = [p for p in model.parameters() if id(p) not in inside]
        muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        self._parts: list[torch.optim.Optimizer] = [muon]
        if rest:
            self._parts.append(torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.01))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Of both."""
        return [group for part in self._parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """Move all weights."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same model."""
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(saved)
