"""A training loop that may end at any moment and goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

SAVE_SECONDS = 60.0
"""Between checkpoints: what a run that is killed loses at most."""
LOG_SECONDS = 15.0
_SMOOTHING = 0.98


class Optimiser(Protocol):
    """What the loop needs of an optimiser."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def step(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def train_steps(
    path: Path,
    model: nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    *,
    steps: int,
    rate: float,
    minutes: float | None,
    log: Callable[[str], None],
    share: Callable[[int, int], float] | None = None,
    optimiser_of: Callable[[nn.Module, float], Optimiser] | None = None,
) -> bool:
    """AdamW (or another optimiser) over `steps` steps.

    The rate rises over the first twentieth and then falls to 0 along a cosine.

    The state (weights, optimiser, step) lies in `path` after every minute and at the end; if it is there at the start,
    training goes on from it. What a step learns from must follow from its number, so an interrupted run ends with the
    weights of an uninterrupted one.

    Args:
        path: the checkpoint.
        model: what is trained; holds the result afterwards.
        loss_of: step number, from 0 -> loss.
        rate: the highest learning rate.
        minutes: after so many, the run ends early; the schedule is not shortened.
        log: called with a line about every 15 s.
        share: step, steps -> share of the rate, instead of `rate_share`.
        optimiser_of: model, rate -> optimiser, instead of AdamW.

    Returns:
        Whether all steps are done.
    """
    optimiser = (optimiser_of or _adamw)(model, rate)
    step = _resume(path, model, optimiser)
    begun = saved = logged = time.monotonic()
    smooth: float | None = None
    while step < steps and (minutes is None or time.monotonic() - begun < 60 * minutes):
        for group in optimiser.param_groups:
            group["lr"] = rate * (share or rate_share)(step, steps)
        loss = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        value = float(loss.detach())
        smooth = value if smooth is None else _SMOOTHING * smooth + (1 - _SMOOTHING) * value
        now = time.monotonic()
        if now - logged >= LOG_SECONDS or step == steps:
            log(f"{path.stem}: step {step}/{steps}, loss {smooth:.4f}, {now - begun:.0f} s")
            logged = now
        if now - saved >= SAVE_SECONDS:
            _save(path, model, optimiser, step)
            saved = now
    _save(path, model, optimiser, step)
    return step >= steps


@torch.no_grad()
def follow_average(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move averaged weights towards the present ones; they remember about 200 steps."""
    keep = min(0.995, step / (step + 10))
    for kept, now in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(now, 1 - keep)


def rate_share(step: int, steps: int) -> float:
    """Share (0 to 1) of the highest learning rate that a step uses."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    progress = torch.tensor((step - warm) / max(1, steps - warm))
    return float(0.5 * (1 + torch.cos(torch.pi * progress)))


def load_checkpoint(path: Path) -> dict[str, torch.Tensor] | None:
    """The weights in a checkpoint of `train_steps`, or None where there is none."""
    if not path.is_file():
        return None
    return dict(torch.load(path, map_location="cpu", weights_only=True)["model"])


def _adamw(model: nn.Module, rate: float) -> Optimiser:
    return torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)


def _resume(path: Path, model: nn.Module, optimiser: Optimiser) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _save(path: Path, model: nn.Module, optimiser: Optimiser, step: int) -> None:
    """Whole or not at all: written beside its place, then moved there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}, beside)
    beside.replace(path)
