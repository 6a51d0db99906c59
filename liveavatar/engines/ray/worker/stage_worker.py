"""What a worker process does for its caller. Only plain data goes in and comes out (see `plain`)."""

from __future__ import annotations

import datetime
import logging
import socket
from typing import Any

import torch

from ....components import Components
from ....config import SPATIAL_STRIDE
from ....memory.cap import hold_to
from ....model.layer import AS_WRITTEN, AudioTokens, Work
from ....model.transformer import CONDITIONS, CausalS2VTransformer, Part, TimeVectors
from ....session import cpu_threads
from ....storage import Storage, embeddings_of
from ...compiled import Compiled
from ...nets import Nets
from ..plain import Duty, Look, News, Orders, PlainModel, model_of, plain
from ..routes import Route
from .links import Link
from .living import Living
from .shared import leave, stock_of
from .shift import Shift
from .snapshots import complete_in, remove, stage_folder

_log = logging.getLogger("liveavatar.worker")
_MEET = datetime.timedelta(seconds=30)


class Worker(Living):
    """One stage at a time, with its weights; both stay warm between runs.

    Methods are called from several threads of Ray, so each sets its own thread's ways.

    Args:
        log: the file that gets all it says.
    """

    def __init__(self, log: str) -> None:
        super().__init__(log)
        self._nets = Nets()
        self._opened: tuple[PlainModel, Components] | None = None
        self._duty: Duty | None = None
        self._store: Any = None
        self._hosted: Any = None
        self._links: dict[tuple[int, int], Link] = {}
        self._number = 0
        self._shift: Shift | None = None

    def load(self, *fields: Any) -> tuple[dict[str, int], dict[str, int]]:
        """Take up a duty: load its weights, let go of others.

        Returns:
            Bytes of weights by device, and those of them that other workers of this machine can share, by name.
        """
        duty = Duty(*fields)
        if duty != self._duty:
            self._duty = None
            self._nets.release()
        if self._opened is None or self._opened[0] != duty.model:
            self._nets = Nets(stock_of(duty.model, self._log))
            self._opened = (duty.model, model_of(duty.model))
        self._duty = duty
        hold_to(duty.device, duty.cap)
        with torch.inference_mode(), cpu_threads(duty.threads):
            self._net()
            if duty.conditions:
                self._conditioner()
        _log.info("layers %s-%s are loaded on %s", duty.layers[0], duty.layers[1] - 1, duty.device)
        return self._nets.bytes_by_device, self._nets.shared_bytes

    def tidy(self) -> None:
        """See `Living.tidy`; what is shared with others is left to them."""
        super().tidy()
        self._nets.release()
        leave(self._log)

    def compile(self, size: tuple[int, int], compiler: str, clip_blocks: int, form: int) -> None:
        """Compile its layers for a width and height and a length of clips, and run them once, in one form of a task."""
        duty = self._on_duty
        with torch.inference_mode(), cpu_threads(duty.threads):
            self._compiled(size, compiler, clip_blocks).warm_up(self._net(), form, getattr(torch, duty.dtype))
        _log.info("form %s is compiled for %sx%s", form, *size)

    def host(self, here: str) -> int:
        """Have a store where links meet, on a free port of this address; the port."""
        import torch.distributed as dist

        if self._hosted is None or self._hosted.host != here:
            listening = socket.create_server((here, 0), backlog=64)
            port = listening.getsockname()[1]
            self._hosted = dist.TCPStore(
                here, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
            )
        return int(self._hosted.port)

    def wire(
        self, host: str, port: int, epoch: int, number: int, routes: tuple[tuple[Any, ...], ...], here: str
    ) -> None:
        """Meet the neighbours anew.

        Args:
            host, port: of the store where links meet.
            epoch: of the wiring, so that no end meets one of an older wiring.
            number: of this stage.
            routes: all links; every worker makes its own in this order, or two could wait for each other.
            here: the address to listen on.
        """
        import torch.distributed as dist

        for link in self._links.values():
            link.close()
        self._links.clear()
        self._number = number
        self._store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_MEET)
        for route in (Route(*fields) for fields in routes):
            if number in (route.sender, route.receiver):
                pair = (route.sender, route.receiver)
                name = f"{epoch}/{route.sender}-{route.receiver}"
                card = torch.device(self._on_duty.device) if route.nccl else None
                self._links[pair] = Link.meet(self._store, name, number == route.sender, here, card)

    def condition(self, context: torch.Tensor, timesteps: list[float]) -> tuple[torch.Tensor, ...]:
        """Embedded prompt and timesteps, for all stages."""
        with torch.inference_mode(), cpu_threads(self._on_duty.threads):
            net = self._conditioner()
            time = net.condition_time(timesteps)
            return net.condition_text(context).cpu(), time.head.cpu(), time.layers.cpu()

    def hear(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What a block [audio_layers, audio_dim, 12] sounds like to the layers, for all stages."""
        with torch.inference_mode(), cpu_threads(self._on_duty.threads):
            audio = self._conditioner().condition_audio(features[None])
            return audio.frame.cpu(), audio.tokens.cpu()

    def kept(self, folder: str, stage: int, steps: tuple[int, int]) -> tuple[int, ...]:
        """The boundaries at which this machine has whole snapshots of a stage, whoever wrote them."""
        return complete_in(stage_folder(folder, stage), range(*steps))

    def forget(self, folder: str) -> None:
        """End the run, and remove its snapshots."""
        self.stop()
        remove(folder)

    def begin(self, orders: tuple[Any, ...], conditions: tuple[torch.Tensor, ...]) -> None:
        """Start a run; it goes on by itself."""
        text, head, layers = conditions
        incoming = [link for (_, to), link in self._links.items() if to == self._number]
        outgoing = {to: link for (_, to), link in self._links.items() if to != self._number}
        given = Orders(*orders)
        _log.info("run %s: %s blocks of %sx%s", given.run, given.blocks, given.size[1] * 8, given.size[0] * 8)
        time, net = TimeVectors(head, layers), self._net()
        self._shift = Shift(self._on_duty, given, net, self._work(given), text, time, incoming, outgoing)

    def allow(self, run: int, block: int, audio: tuple[torch.Tensor, ...]) -> None:
        """A block of this run may be worked on."""
        if self._shift is not None and self._shift.orders.run == run:
            self._shift.allow(block, AudioTokens(*audio))

    def news(self, wait: float) -> tuple[Any, ...]:
        """See `Shift.news`."""
        idle = News("idle", (), (), 0.0, 0.0, None)
        return plain(self._shift.news(wait) if self._shift is not None else idle)

    def look(self) -> tuple[Any, ...]:
        """See `plain.Look`."""
        shift, duty = self._shift, self._duty
        so_far = shift.so_far() if shift is not None else ("idle", 0, 0.0)
        memory = (0, 0)
        if duty is not None and torch.device(duty.device).type == "cuda":
            memory = (torch.cuda.memory_allocated(duty.device), torch.cuda.memory_reserved(duty.device))
        return plain(Look(*so_far, *memory))

    def stop(self) -> None:
        """End the run before its next task, and return when nothing of it is left."""
        shift = self._shift
        if shift is not None:
            shift.stop()
            shift.join()
            _log.info("run %s is over", shift.orders.run)
            self._shift = None

    @property
    def _on_duty(self) -> Duty:
        if self._duty is None:
            raise RuntimeError("nothing is loaded")
        return self._duty

    def _work(self, orders: Orders) -> Work:
        height, width = (n * SPATIAL_STRIDE for n in orders.size)
        if not orders.compiler:
            return AS_WRITTEN
        return self._compiled((width, height), orders.compiler, orders.clip_blocks).work

    def _compiled(self, size: tuple[int, int], compiler: str, clip_blocks: int) -> Compiled:
        duty = self._on_duty
        return self._nets.compiled(duty.device, size, duty.threads, compiler, clip_blocks)

    def _net(self) -> CausalS2VTransformer:
        duty = self._on_duty
        return self._part(Part.of(range(*duty.layers), self._components.config), Storage(*duty.storage))

    def _conditioner(self) -> CausalS2VTransformer:
        return self._part(CONDITIONS, embeddings_of(Storage(*self._on_duty.storage)))

    def _part(self, part: Part, storage: Storage) -> CausalS2VTransformer:
        duty = self._on_duty
        return self._nets.get(self._components, duty.device, part, getattr(torch, duty.dtype), storage)

    @property
    def _components(self) -> Components:
        if self._opened is None:
            raise RuntimeError("no model is open")
        return self._opened[1]
