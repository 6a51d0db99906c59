"""The border to a running ComfyUI: progress, preview, cancel, temporary files, devices."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.v0_0_2 import InputImpl, io, ui
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..liveavatar.components import Components
from ..liveavatar.config import FPS
from ..liveavatar.engine.backend import Backend, LocalBackend
from ..liveavatar.errors import Cancelled
from ..liveavatar.pipeline import LiveAvatarPipeline, VideoJob, receipt_text
from ..liveavatar.placement import Placement
from ..liveavatar.recorder import GENERATING, Progress
from ..liveavatar.task_graph import Denoise
from . import paths
from .patcher import manage

EVENT = "liveavatar.progress"
_UNITS = 1000
"""Of a progress bar."""
_PREVIEW_SIDE = 512
_MESSAGE_SECONDS = 0.1


def default_device() -> str:
    """ComfyUI's own device, where this library knows it, else the CPU."""
    own = mm.get_torch_device()
    return str(own) if own.type == "cuda" else "cpu"


def device_memory(name: str) -> int | None:
    """Bytes of memory of a GPU; None of the CPU."""
    own = torch.device(name)
    return None if own.type == "cpu" else int(mm.get_total_memory(own))


def open_pipeline(components: Components, backend: Backend | None, dtype: str | None) -> LiveAvatarPipeline:
    """A studio that ComfyUI may evict."""
    pipeline = LiveAvatarPipeline(components, backend or LocalBackend(Placement((default_device(),))), dtype=dtype)
    manage(pipeline)
    return pipeline


class NodeProgress:
    """What the user sees of one node's work, and how they stop it.

    Args:
        node: execution id of the node.

    Attributes:
        job: what is filmed, for the numbers in the messages; None before that.
        out: where it grows; the latest frame lies beside it while it does. A browser may play what is there.
    """

    def __init__(self, node: str):
        self.node = node
        self.job: VideoJob | None = None
        self.out: Path | None = None
        self.subfolder = ""
        self._bar = comfy.utils.ProgressBar(_UNITS)
        self._began = time.monotonic()
        self._since: float | None = None
        self._sent = 0.0
        self._phase = ""
        self._task: Denoise | None = None
        self._preview: dict[str, Any] | None = None
        self._shown = 0

    @classmethod
    @contextlib.contextmanager
    def current(cls) -> Iterator[NodeProgress]:
        """The watch of the node that is executed now; a cancelled run leaves as ComfyUI expects it."""
        context = get_executing_context()
        watch = cls(context.node_id if context else "")
        try:
            yield watch
        except Cancelled:
            watch.send("cancelled", 1.0)
            mm.interrupt_current_processing(False)  # core's own check may have taken the wish already, or not
            raise mm.InterruptProcessingException from None
        except BaseException:
            watch.send("failed", 1.0)
            raise
        watch.send("done", 1.0)

    @property
    def file(self) -> dict[str, str] | None:
        """The growing file as ComfyUI names it: filename, subfolder, type."""
        return None if self.out is None else {"filename": self.out.name, "subfolder": self.subfolder, "type": "temp"}

    def phase(self, name: str, share: float) -> None:
        """Something before the first task."""
        self._show(Progress(name, round(100 * share), 100))

    def __call__(self, progress: Progress) -> None:
        """A task, a block, or something before."""
        self._show(progress)

    def on_frames(self, frames: np.ndarray) -> None:
        """A finished block, uint8 [n, H, W, 3]; its last frame goes with the next message.

        Not through the progress bar: the frontend takes a node's preview for its video, and then plays neither.
        """
        from PIL import Image

        if self.out is None:
            return
        pixels = Image.fromarray(frames[-1])
        pixels.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
        beside = self.out.with_suffix(".part")
        pixels.save(beside, "JPEG", quality=80)
        beside.replace(self.out.with_suffix(".jpg"))  # a browser may be reading the old one
        self._shown += len(frames)
        self._preview = {**(self.file or {}), "filename": self.out.with_suffix(".jpg").name, "frames": self._shown}

    def send(self, phase: str, share: float, progress: Progress | None = None) -> None:
        """A message to the browser that asked for the run."""
        server = PromptServer.instance
        if server is None:
            return
        message: dict[str, Any] = {"node": self.node, "phase": phase, "share": share}
        if self.job is not None:
            message |= self._numbers(self.job, progress) | {
                "elapsed": time.monotonic() - self._began,
                "file": self.file,
            }
        if self._preview is not None:
            message["preview"], self._preview = self._preview, None
        server.send_sync(EVENT, message, server.client_id)

    def _show(self, progress: Progress) -> None:
        if mm.processing_interrupted():
            raise Cancelled("Cancelled.")
        share = progress.done / max(1, progress.total)
        now = time.monotonic()
        if progress.phase != self._phase or now - self._sent > _MESSAGE_SECONDS:
            self._phase, self._sent = progress.phase, now
            self.send(progress.phase, share, progress)
        if self.job is None or progress.phase == GENERATING:
            try:
                self._bar.update_absolute(round(_UNITS * share), _UNITS)
            except BaseException as error:  # core's own check of Cancel, which is no Exception in newer cores
                if mm.processing_interrupted() or type(error).__name__ == "InterruptProcessingException":
                    raise Cancelled("Cancelled.") from error
                raise

    def _numbers(self, take: VideoJob, progress: Progress | None) -> dict[str, Any]:
        resolved, plan = take.spec.resolved, take.spec.plan
        numbers: dict[str, Any] = {
            "blocks": resolved.blocks,
            "steps": resolved.steps,
            "total_frames": resolved.frames,
            "seconds": resolved.seconds,
        }
        if progress is None or progress.phase != GENERATING:
            return numbers
        now = time.monotonic()
        self._since = self._since or now
        spent = now - self._since
        self._task = task = progress.task if isinstance(progress.task, Denoise) else self._task
        busy = None if progress.stage is None else plan.stages[progress.stage].device
        names = dict.fromkeys([*(s.device for s in plan.stages), plan.vae_device])
        return numbers | {
            "block": task.block + 1 if task else 1,
            "step": task.step + 1 if task else 0,
            "frames": progress.frames,
            "seconds_ready": progress.frames / FPS,
            "fps": progress.frames / spent if spent > 1 and progress.frames else None,
            "eta": progress.seconds_left,
            "devices": [{"name": name, "busy": name == busy} for name in names],
        }


def save(progress: NodeProgress, job: VideoJob, prefix: str, vae: str) -> io.NodeOutput:
    """Film a video job into ComfyUI's temporary folder: the VIDEO, its receipt, and a player on the node."""
    resolved, plan = job.spec.resolved, job.spec.plan
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_temp_directory(), resolved.width, resolved.height
    )
    out = Path(folder) / f"{name}_{counter:05}_.mp4"
    receipt = out.with_suffix(".json")
    progress.job, progress.out, progress.subfolder = job, out, subfolder
    other = None
    if vae != paths.AUTOMATIC:
        other = paths.open_vae(vae, torch.device(plan.vae_device), getattr(torch, plan.dtype))
    try:
        job.save(out, receipt, progress, vae=other, on_block=progress.on_frames)
    finally:
        out.with_suffix(".jpg").unlink(missing_ok=True)
    shown = ui.PreviewVideo([ui.SavedResult(out.name, subfolder, io.FolderType.temp)])
    return io.NodeOutput(InputImpl.VideoFromFile(str(out)), receipt_text(receipt), ui=shown)


def with_devices(placement: Placement) -> Placement:
    """A placement whose devices are named."""
    return placement if placement.devices else dataclasses.replace(placement, devices=(default_device(),))
