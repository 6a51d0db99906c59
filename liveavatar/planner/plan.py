"""The plan: what every stage owns and holds, and what that takes on every device."""

from __future__ import annotations

import dataclasses

from ..config import CLIP_BLOCKS
from ..pipeline import Cut
from ..storage import PLAIN, Storage, weights_of
from ..vae.tiling import WHOLE, Tiles
from .bytes import SINK_VERSIONS
from .hardware import CONTEXT
from .speed import Forecast

THIS_MACHINE = "this machine"


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One stage: what it owns and the bytes it needs, on its device unless said otherwise.

    Attributes:
        device: where it runs.
        steps, layers: what it owns.
        weights: of its layers, and of the ends on the first and last part, as far as they are there at once: streamed
            layers take the two slots that they pass through.
        rings: keys and values of its steps.
        sink: keys and values of the sink, twice, because two versions overlap at the refresh.
        text: keys and values of the prompt.
        workspace: what one task needs besides (an upper estimate).
        storage: how all of that is kept.
        slots: keys and values that lie on the host pass through these.
        host_weights, host_rings: pinned on the host.
        handed: tokens of a block, on their way to another stage.
    """

    device: str
    steps: range
    layers: range
    weights: int
    rings: int
    sink: int
    text: int
    workspace: int
    storage: Storage = PLAIN
    slots: int = 0
    host_weights: int = 0
    host_rings: int = 0
    handed: int = 0

    @property
    def total(self) -> int:
        """Bytes of the stage on its device."""
        return self.weights + self.rings + self.sink + self.text + self.workspace + self.slots

    @property
    def snapshot(self) -> int:
        """Bytes of one snapshot: what cannot be computed again without the blocks before."""
        return self.rings + self.host_rings + self.sink // SINK_VERSIONS


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a video will be made.

    Attributes:
        model: name of the model.
        cut: groups of steps x parts of layers.
        stages: group by group, part by part.
        dtype: of weights, keys, values and tokens.
        vae_device: where the VAE and, while they are needed, the encoders are.
        conditions: bytes of the embeddings of text, time and sound, which stay on the first device.
        threads: CPU threads a task may use; bits are equal only at equal counts.
        size: width and height it is for; smaller than what was asked only where that was allowed.
        vae: bytes of the VAE on its device: weights, decode caches and the activations of a decode.
        vae_tiles: rows and columns in which it decodes and encodes; (1, 1): the whole picture at once.
        vae_host: decode caches of tiles, pinned on the host of its device.
        encoders: bytes of the largest encoder, which works beside the VAE before the network is there.
        usable: bytes that may be used per device, where that was looked at.
        forecast: how fast it will probably be, where that was looked at.
        notes: what else is worth knowing, one sentence each.
        snapshot_blocks: worker processes save what they hold every so many blocks, so that the video can go on from
            there when one of them is lost; 0: never.
        cap: bytes that the tensors of one process may take on a GPU; 0: as many as there are.
        processes: whether every stage, and the VAE, works in a process of its own; else all are in one.
        compiled: whether layers are compiled before the first block.
        clip_blocks: blocks of a clip, and of every KV ring.
    """

    model: str
    cut: Cut
    stages: tuple[StagePlan, ...]
    dtype: str
    vae_device: str
    conditions: int
    threads: int
    size: tuple[int, int] = (0, 0)
    vae: int = 0
    vae_tiles: Tiles = WHOLE
    vae_host: int = 0
    encoders: int = 0
    usable: tuple[tuple[str, int], ...] = ()
    forecast: Forecast | None = None
    notes: tuple[str, ...] = ()
    snapshot_blocks: int = 0
    cap: int = 0
    processes: bool = False
    compiled: bool = False
    clip_blocks: int = CLIP_BLOCKS

    @property
    def _owners(self) -> list[StagePlan]:
        """Stages whose weights count: in one process those share that own the same layers on one device."""
        shared = {(stage.device, stage.layers, weights_of(stage.storage)): stage for stage in self.stages}
        return list(self.stages if self.processes else shared.values())

    @property
    def weights_by_device(self) -> dict[str, int]:
        """Bytes of weights per device; stages of one process that own the same layers on one device share them."""
        held: dict[str, int] = {}
        for stage in self._owners:
            held[stage.device] = held.get(stage.device, 0) + stage.weights
        return held

    @property
    def terms_by_device(self) -> dict[str, dict[str, int]]:
        """What takes how many bytes per device: the weights, every stage's memories, and the rest.

        In one process stages of a device work in turns: the largest workspace is enough, and a block may wait for each
        of the others. Each further process on a card has a context there.
        """
        weights, first = self.weights_by_device, self.stages[0].device
        terms: dict[str, dict[str, int]] = {}
        for device in dict.fromkeys([*weights, self.vae_device]):
            here = [s for s in self.stages if s.device == device]
            work, waiting = [s.workspace for s in here], sum(s.handed for s in here[1:])
            sharers = len(here) + (device == self.vae_device) if self.processes and is_card(device) else 1
            terms[device] = {
                "weights": weights.get(device, 0),
                "KV rings": sum(s.rings for s in here),
                "sink": sum(s.sink for s in here),
                "text": sum(s.text for s in here),
                "slots": sum(s.slots for s in here),
                "workspace": sum(work) if self.processes else max(work, default=0) + waiting,
                "conditions": self.conditions if device == first else 0,
                "VAE": self.vae if device == self.vae_device else 0,
                "contexts": (sharers - 1) * CONTEXT,
            }
        return terms

    @property
    def total_by_device(self) -> dict[str, int]:
        """Bytes per device while the video is made."""
        return {device: sum(terms.values()) for device, terms in self.terms_by_device.items()}

    @property
    def host_bytes_by_machine(self) -> dict[str, int]:
        """Bytes of pinned memory per machine; layers that stages keep alike are there once (processes: on Linux)."""
        totals: dict[str, int] = {}
        weights = {(machine_of(s.device), s.layers, weights_of(s.storage)): s.host_weights for s in self.stages}
        held = [(machine, nbytes) for (machine, *_), nbytes in weights.items()]
        held += [(machine_of(s.device), s.host_rings) for s in self.stages]
        for machine, nbytes in (*held, (machine_of(self.vae_device), self.vae_host)):
            totals[machine] = totals.get(machine, 0) + nbytes
        return totals


def machine_of(device: str) -> str:
    """The machine of a device: "node2" of "node2/cuda:0"."""
    return device.rpartition("/")[0] or THIS_MACHINE


def is_card(device: str) -> bool:
    """Whether a device, of any machine, is a GPU."""
    return device.rpartition("/")[2].startswith("cuda")
