"""Lets ComfyUI's model management see a pipeline and take its memory back."""

from __future__ import annotations

import weakref
from typing import Any

import comfy.model_management as mm
import torch
from comfy.model_patcher import ModelPatcher

from ..liveavatar.pipeline import LiveAvatarPipeline
from ..liveavatar.planner import Plan


class ModelStub(torch.nn.Module):
    """What core keeps books about on one device, in place of a pipeline that manages its own weights.

    Attributes:
        siblings: all stubs of the pipeline; they lose their weights together.
    """

    def __init__(self, pipeline: weakref.ref[LiveAvatarPipeline], siblings: list[ModelStub]):
        super().__init__()
        self.pipeline = pipeline
        self.siblings = siblings
        self.device: Any = None
        self.model_loaded_weight_memory = 0


class PipelinePatcher(ModelPatcher):
    """A pipeline as a model: loading only registers it, because engines load what they own; evicting releases it."""

    def load(self, device_to: Any = None, *args: Any, **kwargs: Any) -> None:
        """Booked as loaded."""
        self.model.device = device_to
        self.model.model_loaded_weight_memory = self.model_size()

    def partially_load(self, device_to: Any, *args: Any, **kwargs: Any) -> int:
        """All or nothing."""
        self.load(device_to)
        return 0

    def partially_unload(self, *args: Any, **kwargs: Any) -> int:
        """All or nothing."""
        return 0

    def detach(self, unpatch_all: bool = True) -> Any:
        """Core wants the memory back; without `unpatch_all` it only changes its books."""
        if unpatch_all:
            pipeline = self.model.pipeline()
            if pipeline is not None:
                pipeline.release()
            for stub in self.model.siblings:
                stub.device, stub.model_loaded_weight_memory = self.offload_device, 0
        return self.model


def load_core_model(patcher: Any) -> None:
    """Bring one of core's own models to its device."""
    mm.load_models_gpu([patcher])


def manage(pipeline: LiveAvatarPipeline) -> None:
    """From now on ask core for room on every device before the pipeline loads, and let core evict it."""
    patchers: dict[str, PipelinePatcher] = {}
    stubs: list[ModelStub] = []
    owner = weakref.ref(pipeline)  # what is kept here lives as long as the pipeline, and must not keep it

    def patcher_of(name: str) -> PipelinePatcher:
        if name not in patchers:
            stubs.append(ModelStub(owner, stubs))
            patchers[name] = PipelinePatcher(
                stubs[-1], load_device=torch.device(name), offload_device=torch.device("cpu"), size=1
            )
        return patchers[name]

    def make_room(plan: Plan) -> None:
        for name, total in plan.total_by_device.items():
            if not _is_cores(name):
                continue
            patcher, weights = patcher_of(name), plan.weights_by_device.get(name, 0)
            patcher.size = max(1, weights)
            mm.load_models_gpu([patcher], memory_required=total - weights)

    pipeline.make_room = make_room


def _is_cores(name: str) -> bool:
    """Whether core keeps books about a device: GPUs of this machine, and the CPU where core itself works on it."""
    return name.startswith("cuda") or (name == "cpu" and mm.get_torch_device().type == "cpu")
