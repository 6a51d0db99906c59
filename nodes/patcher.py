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
    """What core keeps books about in place of a pipeline that manages its own weights."""

    def __init__(self, pipeline: LiveAvatarPipeline):
        super().__init__()
        self.pipeline = weakref.ref(pipeline)
        self.device: Any = None


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
            self.model.device = self.offload_device
            self.model.model_loaded_weight_memory = 0
        return self.model


def load_core_model(patcher: Any) -> None:
    """Bring one of core's own models to its device."""
    mm.load_models_gpu([patcher])


def manage(pipeline: LiveAvatarPipeline) -> None:
    """From now on ask core for room before the pipeline loads, and let core evict it."""
    device = mm.get_torch_device()
    patcher = PipelinePatcher(ModelStub(pipeline), load_device=device, offload_device=torch.device("cpu"), size=1)

    def make_room(plan: Plan) -> None:
        weights = plan.weights_by_device.get(plan.stages[0].device, 0)
        patcher.size = max(1, weights)
        mm.load_models_gpu([patcher], memory_required=plan.total_by_device[plan.stages[0].device] - weights)

    pipeline.make_room = make_room
