"""A process that shares what lives on the host; run as: sharer.py FOLDER STORAGE [reading | filling], where it stops.

Says on standard output, a line of JSON each, what it has; goes on with every line of its input, and ends with that.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from engine.tiny import TinyComponents, tiny_config
from torch import nn

from liveavatar.engine.local import ModelCache
from liveavatar.model.transformer import ModelSlice, empty_transformer
from liveavatar.offload.host_weights import HostWeightCache, PackedModule
from liveavatar.offload.layers import read_devices
from liveavatar.storage import StorageConfig, WeightFormat
from liveavatar.weights.load import TensorDevice, fill
from liveavatar.weights.source import DictSource

CONFIG = tiny_config(4)
PART = ModelSlice.whole(CONFIG)
STORAGES = {
    "layers": StorageConfig(offload_layers=3),
    "prompt": StorageConfig(offload_text_kv=True),
    "both, int8": StorageConfig("int8", offload_text_kv=True, offload_layers=2),
    "both, fp8": StorageConfig("fp8", offload_text_kv=True, offload_layers=4),
}


class Recording(DictSource):
    """Knows what was read.

    Attributes:
        names: of it, in order.
        hear: called with each name before.
    """

    def __init__(self, tensors: dict[str, torch.Tensor]):
        super().__init__(tensors)
        self.names: list[str] = []
        self.hear: Callable[[str], None] = lambda name: None

    def read(self, key: str) -> torch.Tensor:
        self.hear(key)
        self.names.append(key)
        return super().read(key)


class RecordingComponents(TinyComponents):
    """Its parts are read from one recording source."""

    def __init__(self) -> None:
        super().__init__(CONFIG)
        self.source = Recording(self.weights)

    def transformer(
        self, model_slice: ModelSlice, device: TensorDevice, dtype: torch.dtype, weights: WeightFormat = "plain"
    ) -> Any:
        net = empty_transformer(self.config, model_slice, weights)
        fill(net, self.source, dtype=dtype, device=device)
        return net


class Sharer:
    """Nets of this process that have what lives on the host from a folder.

    Attributes:
        components: where they are read from.
        nets: as an engine has them.
    """

    def __init__(self, folder: Path | None, model: str = "tiny"):
        self.components, self.nets = RecordingComponents(), ModelCache(HostWeightCache(folder, model))

    def net(self, storage: StorageConfig, device: str = "cpu") -> Any:
        return self.nets.get(self.components, device, PART, torch.float32, storage)

    def travelled(self, storage: StorageConfig) -> list[str]:
        """Names of tensors that live on the host, of those that were read."""
        return [name for name in self.components.source.names if lives_on_host(name, storage)]


def lives_on_host(name: str, storage: StorageConfig) -> bool:
    where = read_devices(PART.layers, torch.device("meta"), storage)
    assert callable(where)
    return torch.device(where(name)).type == "cpu"


def digest(net: nn.Module) -> str:
    """Of all its numbers."""
    made = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        made.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def open_memory() -> list[str]:
    """Shared memory that this process has open or mapped: names in the system's lists."""
    gc.collect()
    files = [str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    mapped = [
        line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines() if "/memfd" in line
    ]
    return sorted({name for name in (*files, *mapped) if name.startswith("/memfd:liveavatar-")})


def mapping() -> dict[str, int]:
    """inode of the shared memory that is mapped here, and kB of it that several processes have at once."""
    found, inside = {"inode": 0, "shared_kb": 0}, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if "-" in fields[0]:
            inside = len(fields) > 5 and fields[5].startswith("/memfd:liveavatar-")
            found["inode"] = int(fields[4]) if inside else found["inode"]
        elif inside and fields[0] in ("Shared_Clean:", "Shared_Dirty:"):
            found["shared_kb"] += int(fields[1])
    return found


def stop_in(what: str, sharer: Sharer, storage: StorageConfig) -> None:
    """Say so and stay, once a part of the tensors is read, or moved into the shared memory."""

    def stay(done: int) -> None:
        if done == 2:
            say(what)
            time.sleep(120)

    if what == "reading":

        def hear(name: str) -> None:
            stay(len(sharer.travelled(storage)))

        sharer.components.source.hear = hear
        return
    settle, settled = PackedModule.move_to_host, []

    def slow(self: PackedModule, packed: torch.Tensor) -> None:
        settle(self, packed)
        settled.append(self)
        stay(len(settled))

    PackedModule.move_to_host = slow  # type: ignore[method-assign]


def say(said: Any) -> None:
    print(json.dumps(said), flush=True)


def main(folder: str, name: str, stops_in: str = "") -> None:
    torch.set_num_threads(1)
    sharer, storage = Sharer(Path(folder)), STORAGES[name]
    if stops_in:
        stop_in(stops_in, sharer, storage)
    net = sharer.net(storage)
    say({"digest": digest(net), "travelled": sharer.travelled(storage), "names": open_memory(), **mapping()})
    for _ in sys.stdin:
        say(mapping())


if __name__ == "__main__":
    main(*sys.argv[1:])
