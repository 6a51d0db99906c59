"""The worker process of a stage: the methods that its driver calls (see `wire` for what they take and give)."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..compiler import CompileError
from ..components import Components
from ..config import SPATIAL_STRIDE
from ..engine.compile import CompiledLayers
from ..engine.local import ModelCache
from ..model.attention_backends import ChosenAttention, choose_attention
from ..model.layer import EAGER, AudioTokens, LayerOps
from ..model.transformer import EMBEDDERS, CausalS2VTransformer, ModelSlice, TimestepEmbedding
from ..offload.host_weights import HostWeightCache, remove_unused
from ..offload.pinned_memory import PinnedPool
from ..offload.streams import limit_device_memory
from ..session import cpu_threads
from ..stage import Portrait
from ..storage import StorageConfig, embedder_storage
from . import cluster
from .links import Link
from .registry import last_lines
from .snapshots import complete_in, remove, stage_folder
from .stage_run import StageRun
from .task_queue import BlockInput
from .topology import LinkSpec
from .wire import Handshake, LoadSpec, ModelSpec, RunBegun, RunSpec, WorkerEvents, WorkerStats

_NAME = "weights"
EmbeddedConditions = tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]
"""Embedded prompts, and timesteps for head and layers."""
_READ = ("transformer", "config", "lora")
"""Files of a model that the network's weights come from."""


def host_weight_cache(model: ModelSpec, log: Path, pinned: PinnedPool | None = None) -> HostWeightCache:
    """For a worker's weights of a model, shared with the other workers on its machine.

    Args:
        model: as it is now: what was made of its files is not shared when they have changed.
        log: of the worker.
        pinned: page-locked memory of the worker, for what is not shared; None: a pool of its own.
    """
    return HostWeightCache(shared_folder(log), repr((model, tuple(_file_state(model)))), pinned)


def shared_folder(log: Path) -> Path:
    """The folder where workers of one machine list the weights they share; removed with Ray or the driver's folder.

    Where that is on another machine, a worker's log is in a folder of its own, and the one of all is of Ray's node.
    """
    if cluster.driver_pid(log.parent) == os.getpid():
        return cluster.short_folder() / f"la-{os.getppid()}-{_NAME}"
    return log.parent / _NAME


def remove_shared_folder(log: Path) -> None:
    """Remove the folder of all, unless others are in it yet."""
    with contextlib.suppress(OSError):
        remove_unused(shared_folder(log))


def _file_state(model: ModelSpec) -> Iterator[tuple[str, int, int, int]]:
    """What changes with the files that weights come from."""
    read = [named for part, named in model.files if part in _READ and named is not None]
    for path in map(Path, (*read, *(lora for lora, _ in model.extra_loras))):
        for file in (
            (path, *sorted(path.parent.glob("*.safetensors")))
            if path.suffix == ".json" or "-of-" in path.name
            else (path,)
        ):
            with contextlib.suppress(OSError):  # opening the model will say what is wrong
                found = file.stat()
                yield str(file), found.st_ino, found.st_size, found.st_mtime_ns


class BaseWorker:
    """A worker process.

    Args:
        log: the file that its output goes to.
    """

    def __init__(self, log: str) -> None:
        self._log = Path(log)

    def handshake(self) -> Handshake:
        """See `Handshake`. Removes what workers that were killed have left on this machine."""
        cluster.remove_leftovers()
        return Handshake.local()

    def last_lines(self) -> list[str]:
        """The end of its log."""
        return last_lines(self._log)

    def remove_log(self) -> None:
        """Remove its log, with the folder that was made for it; called before the worker is ended."""
        shutil.rmtree(self._log.parent, ignore_errors=True)


_log = logging.getLogger("liveavatar.worker")
_MEET = datetime.timedelta(seconds=30)


class StageWorker(BaseWorker):
    """One stage at a time, with its weights; both stay warm between runs.

    Methods are called from several threads of Ray, so each sets inference mode and threads for its own.

    Args:
        log: the file that its output goes to.
    """

    def __init__(self, log: str) -> None:
        super().__init__(log)
        self._models = ModelCache()
        self._opened: tuple[ModelSpec, Components] | None = None
        self._load_spec: LoadSpec | None = None
        self._store: Any = None
        self._hosted: Any = None
        self._links: dict[tuple[int, int], Link] = {}
        self._number = 0
        self._run: StageRun | None = None

    def load(self, spec: LoadSpec) -> tuple[dict[str, int], dict[str, int]]:
        """Load the weights of a load spec, and release others.

        Returns:
            Bytes of weights by device, and those of them that other workers of this machine can share, by name.
        """
        if spec != self._load_spec:
            self._load_spec = None
            self._models.unload()
        if self._opened is None or self._opened[0] != spec.model:
            self._models = ModelCache(host_weight_cache(spec.model, self._log, self._models.pinned))
            self._opened = (spec.model, spec.model.open())
        self._load_spec = spec
        limit_device_memory(spec.device, spec.cap)
        with torch.inference_mode(), cpu_threads(spec.threads):
            self._net()
            if spec.embedders:
                self._embedders()
        _log.info("layers %s-%s are loaded on %s", spec.layers.start, spec.layers.stop - 1, spec.device)
        return self._models.bytes_by_device, self._models.shared_bytes

    def remove_log(self) -> None:
        """See `BaseWorker.remove_log`; what is shared with others is left to them."""
        super().remove_log()
        self._models.release()
        remove_shared_folder(self._log)

    def compile(
        self, size: tuple[int, int], compiler: str, clip_blocks: int, attention: str, speakers: int, form: int
    ) -> str:
        """Compile its layers for a width and height, a length of clips and so many speakers, and run them once, in one
        form of a task; why that cannot be done, "" where it was."""
        spec = self._loaded_spec
        with torch.inference_mode(), cpu_threads(spec.threads):
            compiled, dtype = self._compiled(size, compiler, clip_blocks, speakers), getattr(torch, spec.dtype)
            try:
                compiled.warm_up(self._net(), form, dtype, self._attention(attention).kernel)
            except CompileError as error:
                _log.exception("form %s could not be compiled", form)
                return error.what
        _log.info("form %s is compiled for %sx%s", form, *size)
        return ""

    def host(self, here: str) -> int:
        """Host the store where links connect, on a free port of this address; returns the port."""
        import torch.distributed as dist

        if self._hosted is None or self._hosted.host != here:
            listening = socket.create_server((here, 0), backlog=64)
            port = listening.getsockname()[1]
            self._hosted = dist.TCPStore(
                here, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
            )
        return int(self._hosted.port)

    def wire(self, host: str, port: int, epoch: int, number: int, specs: tuple[LinkSpec, ...], here: str) -> None:
        """Connect all links of this stage anew.

        Args:
            host, port: of the store where links connect.
            epoch: of the wiring, so that no end connects to one of an older wiring.
            number: of this stage.
            specs: of all links; every worker makes its own in this order, or two could wait for each other.
            here: the address to listen on.
        """
        import torch.distributed as dist

        for link in self._links.values():
            link.close()
        self._links.clear()
        self._number = number
        self._store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_MEET)
        for spec in specs:
            pair = (spec.sender, spec.receiver)
            if number in pair:
                name = f"{epoch}/{spec.sender}-{spec.receiver}"
                device = torch.device(self._loaded_spec.device) if spec.nccl else None
                self._links[pair] = Link.connect(self._store, name, number == spec.sender, here, device)

    def embed(self, contexts: list[torch.Tensor], timesteps: list[float]) -> EmbeddedConditions:
        """Embedded prompts, and timesteps for head and layers, for all stages."""
        with torch.inference_mode(), cpu_threads(self._loaded_spec.threads):
            net = self._embedders()
            time = net.embed_timesteps(timesteps)
            return [net.embed_text(context).cpu() for context in contexts], time.head.cpu(), time.layers.cpu()

    def embed_block(
        self, features: torch.Tensor, context: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Embedded audio of a block for all stages, and the embedded prompt that holds from it on, if one does.

        Args:
            features: of the audio [speakers, audio_layers, audio_dim, 12].
            context: features of the prompt [n, text_dim].
        """
        with torch.inference_mode(), cpu_threads(self._loaded_spec.threads):
            net = self._embedders()
            audio, text = net.embed_audio(features), None if context is None else net.embed_text(context).cpu()
            return audio.frame.cpu(), audio.tokens.cpu(), text

    def complete_snapshots(self, folder: str, stage: int, steps: tuple[int, int]) -> tuple[int, ...]:
        """The boundaries at which this machine has whole snapshots of a stage, whoever wrote them."""
        return complete_in(stage_folder(folder, stage), range(*steps))

    def remove_snapshots(self, folder: str) -> None:
        """End the run, and remove its snapshots."""
        self.stop()
        remove(folder)

    def begin(self, spec: RunSpec, conditioning: EmbeddedConditions) -> RunBegun:
        """Start a run; it goes on by itself."""
        texts, head, layers = conditioning
        incoming = [link for (_, to), link in self._links.items() if to == self._number]
        outgoing = {to: link for (_, to), link in self._links.items() if to != self._number}
        blocks = "an open number of" if spec.blocks is None else spec.blocks
        _log.info("run %s: %s blocks of %sx%s", spec.run, blocks, spec.size[1] * 8, spec.size[0] * 8)
        time, net = TimestepEmbedding(head, layers), self._net()
        pinned = self._models.pinned
        self._run = StageRun(self._loaded_spec, spec, net, self._ops(spec), texts, time, incoming, outgoing, pinned)
        attention = self._attention(spec.attention)
        return RunBegun(attention.use(self._loaded_spec.device), attention.notice)

    def allow(
        self,
        run: int,
        block: int,
        embedded: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
        portrait: Portrait | None,
        pose: torch.Tensor | None,
    ) -> None:
        """Allow a block of this run, with what `embed_block` gave, the portrait that holds from it on, and its pose."""
        if (known := self._run_of(run)) is not None:
            frame, tokens, prompt = embedded
            known.allow(block, BlockInput(AudioTokens(frame, tokens), prompt, portrait, pose))

    def limit(self, run: int, blocks: int) -> None:
        """Let this run end before a block that was not allowed."""
        if (known := self._run_of(run)) is not None:
            known.limit(blocks)

    def restore(self, run: int, piece: str, tensors: list[torch.Tensor]) -> None:
        """Take a piece of the state that this run begins with."""
        if (known := self._run_of(run)) is not None:
            known.restore(piece, tensors)

    def state(self, run: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shapes and types of the tensors that this run has left, by name."""
        known = self._run_of(run)
        kept = {} if known is None else known.state()
        return {name: (lazy.shape, str(lazy.dtype)) for name, lazy in kept.items()}

    def state_tensor(self, run: int, name: str) -> torch.Tensor | None:
        """One of them; None where it is gone."""
        known = self._run_of(run)
        with torch.inference_mode(), cpu_threads(self._loaded_spec.threads):
            lazy = None if known is None else known.state().get(name)
            return None if lazy is None else lazy.read().cpu()

    def events(self, wait: float) -> WorkerEvents:
        """See `StageRun.events`."""
        idle = WorkerEvents("idle", (), (), 0.0, 0.0, None)
        return self._run.events(wait) if self._run is not None else idle

    def stats(self) -> WorkerStats:
        """See `WorkerStats`."""
        run, spec = self._run, self._load_spec
        so_far = run.stats() if run is not None else ("idle", 0, 0.0)
        memory = (0, 0)
        if spec is not None and torch.device(spec.device).type == "cuda":
            memory = (torch.cuda.memory_allocated(spec.device), torch.cuda.memory_reserved(spec.device))
        return WorkerStats(*so_far, *memory)

    def stop(self) -> None:
        """End the run before its next task, and return when nothing of it is left."""
        run = self._run
        if run is not None:
            run.stop()
            run.join()
            _log.info("run %s is over", run.spec.run)
            self._run = None

    def _run_of(self, number: int) -> StageRun | None:
        """The present run, where it has this number."""
        return self._run if self._run is not None and self._run.spec.run == number else None

    @property
    def _loaded_spec(self) -> LoadSpec:
        if self._load_spec is None:
            raise RuntimeError("nothing is loaded")
        return self._load_spec

    def _ops(self, spec: RunSpec) -> LayerOps:
        height, width = (n * SPATIAL_STRIDE for n in spec.size)
        speakers = 1 if spec.speaker_mask is None else len(spec.speaker_mask)
        ops = EAGER
        if spec.compiler:
            ops = self._compiled((width, height), spec.compiler, spec.clip_blocks, speakers).ops
        return ops.attending(self._attention(spec.attention).kernel)

    def _attention(self, name: str) -> ChosenAttention:
        """The kernel of self-attention, which is right on this worker's device."""
        spec, head_dim = self._loaded_spec, self._net().config.head_dim
        return choose_attention(name, torch.device(spec.device), getattr(torch, spec.dtype), head_dim)

    def _compiled(self, size: tuple[int, int], compiler: str, clip_blocks: int, speakers: int) -> CompiledLayers:
        spec = self._loaded_spec
        return self._models.compiled(spec.device, size, spec.threads, compiler, clip_blocks, speakers)

    def _net(self) -> CausalS2VTransformer:
        spec = self._loaded_spec
        return self._slice(ModelSlice.of(spec.layers, self._components.config), spec.storage)

    def _embedders(self) -> CausalS2VTransformer:
        return self._slice(EMBEDDERS, embedder_storage(self._loaded_spec.storage))

    def _slice(self, part: ModelSlice, storage: StorageConfig) -> CausalS2VTransformer:
        spec = self._loaded_spec
        return self._models.get(self._components, spec.device, part, getattr(torch, spec.dtype), storage)

    @property
    def _components(self) -> Components:
        if self._opened is None:
            raise RuntimeError("no model is open")
        return self._opened[1]
