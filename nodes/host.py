"""The border to a running ComfyUI: progress, preview, cancel, temporary files, devices."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy.cli_args import args
from comfy_api.v0_0_2 import InputImpl, io, ui
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..liveavatar.attention_choice import set_host_kernel
from ..liveavatar.components import Components
from ..liveavatar.config import FPS
from ..liveavatar.engine.backend import Backend, LocalBackend
from ..liveavatar.errors import Cancelled, LiveAvatarError, OutputError
from ..liveavatar.events import GENERATING, WHOLE_RUN, Event, RunProgress
from ..liveavatar.files import write_file
from ..liveavatar.live.hosted import HostedRoom
from ..liveavatar.pipeline import LiveAvatarPipeline, VideoJob
from ..liveavatar.placement import Placement, all_devices, devices_named
from ..liveavatar.receipt import receipt_text
from ..liveavatar.task_graph import Denoise
from . import paths, runs, talks
from .patcher import manage
from .runs import latest_messages, workflow_of
from .words import refused_in_widgets

EVENT, TALK_EVENT = "liveavatar.progress", "liveavatar.talk"
_UNITS = 1000
"""Of a progress bar."""
_PREVIEW_SIDE = 512
_MESSAGE_SECONDS = 0.1
_LAST_SECONDS, _LOOK_SECONDS = 20.0, 0.1
"""How long the end of the process waits for a prompt (longer than most tasks, shorter than patience); how often it
looks."""
_PREFIX = "LiveAvatar"
"""Of the ids of all nodes here."""
_CANCELLED = "cancelled"
"""How the files of states of cancelled videos begin."""
_log = logging.getLogger("liveavatar")


def default_device() -> str:
    """ComfyUI's own device, where this library knows it, else the CPU."""
    own = mm.get_torch_device()
    return str(own) if own.type == "cuda" else "cpu"


_ATTENTION_CHOICES = ("use_sage_attention", "use_flash_attention", "use_ck_attention")
"""Of ComfyUI's own options, those by which its user chooses a faster attention."""


def share_attention() -> None:
    """Let the library attend with what ComfyUI does, where it is asked to or the user has chosen it at the start."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        from comfy.ldm.modules.attention import optimized_attention

        return optimized_attention(q, k, v, heads=q.shape[1], skip_reshape=True, skip_output_reshape=True)

    set_host_kernel(attend, any(getattr(args, name, False) for name in _ATTENTION_CHOICES))


share_attention()


def device_memory(name: str) -> int | None:
    """Bytes of memory of a GPU; None of the CPU."""
    own = torch.device(name)
    return None if own.type == "cpu" else int(mm.get_total_memory(own))


def open_pipeline(components: Components, backend: Backend | None, dtype: str | None) -> LiveAvatarPipeline:
    """A pipeline that ComfyUI may evict; `dtype` None leaves it to the backend."""
    backend = backend or LocalBackend(Placement((default_device(),)))
    placement = dataclasses.replace(backend.placement, dtype=dtype or backend.placement.dtype)
    pipeline = LiveAvatarPipeline(components, backend, placement)
    manage(pipeline)
    return pipeline


_leaving = threading.Event()
"""Set when the process ends."""


@atexit.register
def end_runs() -> None:
    """Stop the prompt that is executed, where it has nodes of this pack, and wait for that, but not for ever.

    ComfyUI executes prompts in a thread that Python breaks off where it is when the server ends (Ctrl-C). In the midst
    of a computation that aborts the process.
    """
    queue = _prompt_queue()
    if queue is None or not _is_running():
        return
    _leaving.set()
    queue.wipe_queue()
    mm.interrupt_current_processing(True)
    until = time.monotonic() + _LAST_SECONDS
    while _is_running() and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
    time.sleep(_LOOK_SECONDS)  # core tidies up after a prompt


def serve_pages() -> None:
    """Let browsers ask for what the nodes told last, and join talks; tools that import nodes have no server."""
    if (server := getattr(PromptServer, "instance", None)) is not None:
        runs.register(server.routes)
        talks.register(server.routes, tuple(filter(None, [getattr(args, "enable_cors_header", None)])))


def invite(room: HostedRoom, node: str, prompt: str, message: dict[str, Any]) -> bool:
    """Tell the page that has queued the graph how to join a room; False where none has.

    Nobody else is told: whoever knows the token may listen and speak.
    """
    server = PromptServer.instance
    if server.client_id is None:
        return False
    server.send_sync(TALK_EVENT, {"node": node, "prompt": prompt, "token": room.token, **message}, server.client_id)
    return True


def executing_node() -> tuple[str, str]:
    """Execution id of the node that is executed now, and the id of its prompt."""
    context = get_executing_context()
    return (context.node_id, context.prompt_id) if context else ("", "")


def server_loop() -> asyncio.AbstractEventLoop:
    """Of ComfyUI's server, which has a thread of its own."""
    loop: asyncio.AbstractEventLoop = PromptServer.instance.loop
    return loop


def _prompt_queue() -> Any:
    return getattr(getattr(PromptServer, "instance", None), "prompt_queue", None)


def _running_prompts() -> list[Any]:
    """What core keeps of the prompts that are executed: number, id, graph, extra data and more of each."""
    queue = _prompt_queue()
    return [] if queue is None else queue.get_current_queue()[0]


def _is_running() -> bool:
    """Whether a prompt with a node of this pack is executed."""
    nodes = (node for item in _running_prompts() for node in item[2].values())
    return any(str(node.get("class_type", "")).startswith(_PREFIX) for node in nodes)


class NodeProgress:
    """What the user sees of one node's work, and how they stop it.

    Args:
        node: execution id of the node.
        phases: that its work may consist of.
        seconds: that generating will take, where that is known.
        workflow: the id of its workflow; None where no browser has queued it.

    Attributes:
        job: the video that is made, for the numbers in the messages; None before that.
        details: what else every message says.
        out: where it grows; the latest frame lies beside it while it does. A browser may play what is there.
    """

    def __init__(
        self,
        node: str,
        phases: Sequence[str] = WHOLE_RUN,
        seconds: float | None = None,
        workflow: str | None = None,
    ):
        self.node, self.workflow = node, workflow
        self.job: VideoJob | None = None
        self.details: dict[str, Any] = {}
        self.out: Path | None = None
        self.subfolder = ""
        self._bar, self._units = comfy.utils.ProgressBar(_UNITS), 0
        self._run = RunProgress(phases, seconds)
        self._began = time.monotonic()
        self._since: float | None = None
        self._sent = 0.0
        self._phase = ""
        self._task: Denoise | None = None
        self._preview: dict[str, Any] | None = None
        self._shown = 0

    @classmethod
    @contextlib.contextmanager
    def current(cls, phases: Sequence[str] = WHOLE_RUN, seconds: float | None = None) -> Iterator[NodeProgress]:
        """The progress of the node that is executed now; a cancelled run leaves as ComfyUI expects it."""
        context = get_executing_context()
        workflow = workflow_of(_running_prompts(), context.prompt_id) if context else None
        progress = cls(context.node_id if context else "", phases, seconds, workflow)
        try:
            progress.check()
            with refused_in_widgets():
                yield progress
            progress._move_bar(_UNITS)
        except Cancelled:
            progress.send("cancelled", 1.0)
            # core's own check may have taken the wish already, or not; at the end of the process it stays
            mm.interrupt_current_processing(_leaving.is_set())
            raise mm.InterruptProcessingException from None
        except BaseException:
            progress.send("failed", 1.0)
            raise
        progress.send("done", 1.0)

    @property
    def file(self) -> dict[str, str] | None:
        """The growing file as ComfyUI names it: filename, subfolder, type."""
        return None if self.out is None else {"filename": self.out.name, "subfolder": self.subfolder, "type": "temp"}

    def __call__(self, event: Event) -> None:
        """The callback of the library: shows the event, and cancels when the user wants that."""
        if event.images is not None:
            self._keep_preview(event.images)
        self.check()
        now, share = time.monotonic(), self._run.update(event)
        if event.phase != self._phase or now - self._sent > _MESSAGE_SECONDS:
            self._phase, self._sent = event.phase, now
            self.send(event.phase, share, event)
        self._move_bar(min(int(_UNITS * share), _UNITS - 1))  # the end comes when the node's work is done

    def _move_bar(self, units: int) -> None:
        """Core's bar, on the node and above the graph."""
        if units <= self._units:
            return
        self._units = units
        try:
            self._bar.update_absolute(units, _UNITS)
        except BaseException as error:  # core's own check of Cancel, which is no Exception in newer cores
            if mm.processing_interrupted() or type(error).__name__ == "InterruptProcessingException":
                raise Cancelled("Cancelled.") from error
            raise

    def check(self) -> None:
        """Whether the user wants the work, or ComfyUI as a whole, to end.

        Raises:
            Cancelled: they do.
        """
        if _leaving.is_set() or mm.processing_interrupted():
            raise Cancelled("Cancelled.")

    def _keep_preview(self, frames: np.ndarray) -> None:
        """The last frame of a block, uint8 [n, H, W, 3], goes with the next message.

        Not through the progress bar: the frontend takes a node's preview for its video, and then plays neither.
        """
        from PIL import Image

        if self.out is None:
            return
        pixels = Image.fromarray(frames[-1])
        pixels.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
        data = BytesIO()
        pixels.save(data, "JPEG", quality=80)
        write_file(self.out.with_suffix(".jpg"), data.getvalue())  # in one step: a browser may be reading the old one
        self._shown += len(frames)
        self._preview = {**(self.file or {}), "filename": self.out.with_suffix(".jpg").name, "frames": self._shown}

    def send(self, phase: str, share: float, event: Event | None = None) -> None:
        """A message to the browser that asked for the run."""
        server = PromptServer.instance
        if server is None:
            return
        message: dict[str, Any] = {"node": self.node, "phase": phase, "share": share, **_list_item(), **self.details}
        if self.job is not None:
            message |= self._numbers(self.job, event) | {
                "elapsed": time.monotonic() - self._began,
                "file": self.file,
            }
        if self._preview is not None:
            message["preview"], self._preview = self._preview, None
        if self.workflow is not None:
            latest_messages.put(self.workflow, message)
        server.send_sync(EVENT, message, server.client_id)

    def _numbers(self, job: VideoJob, event: Event | None) -> dict[str, Any]:
        resolved, plan = job.spec.resolved, job.spec.plan
        numbers: dict[str, Any] = {
            "blocks": resolved.blocks,
            "steps": resolved.steps,
            "total_frames": resolved.frames,
            "seconds": resolved.seconds,
        }
        if event is None or event.phase != GENERATING:
            return numbers
        now = time.monotonic()
        self._since = self._since or now
        spent = now - self._since
        self._task = task = event.task if isinstance(event.task, Denoise) else self._task
        busy = None if event.stage is None else plan.stages[event.stage].device
        names = dict.fromkeys([*(s.device for s in plan.stages), plan.vae_device])
        return numbers | {
            "block": task.block - resolved.first_block + 1 if task else 1,
            "step": task.step + 1 if task else 0,
            "frames": event.frames,
            "seconds_ready": event.frames / FPS,
            "fps": event.frames / spent if spent > 1 and event.frames else None,
            "eta": event.seconds_left,
            "devices": [{"name": name, "busy": name == busy} for name in names],
        }


def seconds_of(job: VideoJob) -> float | None:
    """What generating a video will take, where that is known."""
    return job.pipeline.foreseen_seconds(job.spec.resolved, job.spec.plan)


def _list_item() -> dict[str, int]:
    """Which video of a list is made, from the second on. Core runs a node once for each, and says not of how many."""
    index = getattr(get_executing_context(), "list_index", None)
    return {"item": index + 1} if index else {}


def place_video(progress: NodeProgress, prefix: str, width: int, height: int) -> Path:
    """A new name in ComfyUI's temporary folder for the video that a node makes."""
    folder, name, counter, progress.subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_temp_directory(), width, height
    )
    progress.out = Path(folder) / f"{name}_{counter:05}_.mp4"
    return progress.out


def video_output(progress: NodeProgress, receipt: str) -> io.NodeOutput:
    """The video that a node has made: the VIDEO, its receipt, and a player on the node."""
    assert progress.out is not None
    shown = ui.PreviewVideo([ui.SavedResult(progress.out.name, progress.subfolder, io.FolderType.temp)])
    return io.NodeOutput(InputImpl.VideoFromFile(str(progress.out)), receipt, ui=shown)


@contextlib.contextmanager
def keeping_cancelled(progress: NodeProgress, job: VideoJob) -> Iterator[Path | None]:
    """The file that the state of a video goes to where it is cancelled inside, which the panel and the log then name;
    None where it keeps none."""
    state = paths.new_state(_CANCELLED) if job.spec.request.keep_state else None
    try:
        yield state
    except Cancelled:
        if state is not None and state.is_file():
            progress.details["state"] = state.name
            _log.info("The cancelled video can be continued: choose %s in Load State.", state.name)
        raise


def save(progress: NodeProgress, job: VideoJob, prefix: str, vae: str) -> io.NodeOutput:
    """Write a video job into ComfyUI's temporary folder; see `video_output`."""
    resolved, plan = job.spec.resolved, job.spec.plan
    out = place_video(progress, prefix, resolved.width, resolved.height)
    receipt = out.with_suffix(".json")
    progress.job = job
    other = None
    if vae != paths.AUTOMATIC:
        other = paths.open_vae(vae, torch.device(plan.vae_device), getattr(torch, plan.dtype))
    try:
        with keeping_cancelled(progress, job) as state:
            job.save(out, receipt, progress, vae=other, cancelled_state=state)
    except (LiveAvatarError, OSError) as error:
        if isinstance(error, Cancelled) or out.parent.is_dir():
            raise
        raise OutputError(
            f"The temporary folder {out.parent} was removed while the video was written to it.",
            "ComfyUI removes it when it ends: start it again and queue the graph once more.",
        ) from error
    finally:
        out.with_suffix(".jpg").unlink(missing_ok=True)
    return video_output(progress, receipt_text(receipt))


def named_devices(text: str) -> tuple[str, ...]:
    """The devices that a widget names: "auto" is ComfyUI's own and all others that may help it, "this card" its own.

    ComfyUI that was told to work on the CPU stays there.
    """
    text = text.strip() or "auto"
    own = default_device()
    if text == "this card" or (text in ("auto", "all") and own == "cpu"):
        return (own,)
    if text in ("auto", "all"):
        return tuple(dict.fromkeys((own, *all_devices())))
    return devices_named(text)
