"""What lives on the host is there once: for the devices of a process, and for the processes of a machine."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.tiny import TinyComponents, tiny_effective, tiny_job
from offload import sharer
from offload.drive import drive
from offload.sharer import STORAGES, Sharer, digest, open_memory

from liveavatar.engine.local import ModelCache
from liveavatar.offload import host_weights
from liveavatar.offload.host_weights import HostWeightCache
from liveavatar.offload.layers import LayerPrefetcher
from liveavatar.storage import PLAIN, StorageConfig

PROJECT = Path(__file__).parents[2]
LAYERS = STORAGES["layers"]
shares = pytest.mark.skipif(
    not host_weights.supports_shared_memory(), reason="this system has no memory without a name to share"
)


class Other:
    """A process that shares, from outside."""

    def __init__(self, folder: Path, storage: str, *stops: str):
        path = os.pathsep.join((str(PROJECT), str(PROJECT / "tests")))
        self.process = subprocess.Popen(
            [sys.executable, sharer.__file__, str(folder), storage, *stops],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )

    def hear(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def ask(self) -> Any:
        """What it has mapped now."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.hear()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


Start = Callable[..., Other]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts others that are ended with the test."""
    others: list[Other] = []

    def started(storage: str, *stops: str) -> Other:
        others.append(Other(tmp_path / "weights", storage, *stops))
        return others[-1]

    yield started
    for other in others:
        other.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "weights"


def named_memory() -> set[Path]:
    """Shared memory with a name that is of this library or of this process; others on the machine have theirs."""
    return {path for path in Path("/dev/shm").iterdir() if "liveavatar" in path.name or str(os.getpid()) in path.name}


def expected(storage: StorageConfig) -> str:
    return digest(Sharer(None).net(storage))


@pytest.mark.parametrize("storage", STORAGES.values(), ids=STORAGES)
def test_nets_on_two_devices_have_one_copy(storage: StorageConfig) -> None:
    here = Sharer(None)
    one = here.net(storage, "cpu")
    read, held = here.travelled(storage), here.nets.bytes_by_device["cpu"]
    two = here.net(storage, "cpu:0")
    assert here.travelled(storage) == read != []
    assert two is not one and digest(two) == digest(one) == expected(storage)
    homes = [
        {k: v.data_ptr() for k, v in net.state_dict().items() if sharer.lives_on_host(k, storage)} for net in (one, two)
    ]
    assert homes[0] == homes[1] != {}
    (copy,) = here.nets.shared_host_weights
    assert here.nets.bytes_by_device["cpu"] == held, "of the second only what stays is more"
    assert here.nets.bytes_by_device["cpu:0"] == held - copy.nbytes


def test_stages_on_two_devices_with_one_copy_make_the_same_numbers() -> None:
    config, components = sharer.CONFIG, TinyComponents(sharer.CONFIG)
    job, nets = tiny_job(config, tiny_effective(5, 2)), ModelCache()
    plain = drive(config, job, PLAIN, components=components).run().latents
    first, second = (drive(config, job, LAYERS, cut, nets, components) for cut in ("2x1", "2x1"))
    other = nets.get(components, "cpu:0", first.stages[0].net.slice, torch.float32, LAYERS)
    for driven in (first, second):
        driven.stages[1].net = other
        assert torch.equal(driven.run().latents, plain)
    leads = [stage.net.layers_on_device for stage in first.stages]
    assert all(isinstance(lead, LayerPrefetcher) for lead in leads)
    assert leads[0] is not leads[1] and leads[0].host_weights is leads[1].host_weights is not None
    assert all(lead.streams.transfer_stats.to_device for lead in leads)


def test_another_model_gets_nothing_of_one_that_is_still_in_use() -> None:
    other, here = TinyComponents(sharer.CONFIG), Sharer(None)
    for weight in other.weights.values():
        weight.neg_()
    net = here.net(LAYERS)
    changed = here.nets.get(other, "cpu", sharer.PART, torch.float32, LAYERS)
    assert digest(changed) == digest(ModelCache().get(other, "cpu", sharer.PART, torch.float32, LAYERS))
    assert digest(net) == expected(LAYERS) != digest(changed)


@shares
@pytest.mark.parametrize("name", ["layers", "both, int8"])
def test_processes_have_one_memory_and_read_it_once(folder: Path, start: Start, name: str) -> None:
    storage, here = STORAGES[name], Sharer(folder)
    net = here.net(storage)
    other = start(name)
    said = other.hear()
    assert here.travelled(storage) and said["travelled"] == []
    assert said["digest"] == digest(net) == expected(storage)
    assert said["names"] == open_memory() and len(said["names"]) == 1
    own = sharer.mapping()
    assert said["inode"] == own["inode"] != 0
    (copy,) = here.nets.shared_host_weights
    assert own["shared_kb"] >= copy.nbytes // 1024, "its pages are those of both"
    assert here.nets.shared_bytes == {copy.name: copy.nbytes}


@shares
def test_a_process_that_comes_again_finds_what_the_others_have(folder: Path, start: Start) -> None:
    """Whoever read it first may go: it stays with any of the others."""
    first = start("layers")
    said = first.hear()
    second = start("layers")
    assert second.hear()["inode"] == said["inode"]
    first.kill()
    again = start("layers")
    found = again.hear()
    assert (found["inode"], found["travelled"], found["digest"]) == (said["inode"], [], said["digest"])
    second.kill(), again.kill()
    here = Sharer(folder)
    assert digest(here.net(LAYERS)) == said["digest"]
    assert here.travelled(LAYERS), "with the last one it was gone"


@shares
@pytest.mark.parametrize("stops_in", ["reading", "filling"])
def test_what_was_left_half_done_is_done_anew(folder: Path, start: Start, stops_in: str) -> None:
    half = start("layers", stops_in)
    assert half.hear() == stops_in
    here, made = Sharer(folder), threading.Event()

    def load() -> None:
        with torch.inference_mode():
            here.net(LAYERS)
        made.set()

    thread = threading.Thread(target=load)
    thread.start()
    until = time.monotonic() + 60
    while not here.components.source.names and time.monotonic() < until:
        time.sleep(0.01)
    assert not made.wait(1.0), "another one is at it"
    assert here.components.source.names and not here.travelled(LAYERS), "what stays is read meanwhile"
    half.kill()
    assert made.wait(60)
    thread.join()
    net = here.net(LAYERS)
    assert here.travelled(LAYERS) and digest(net) == expected(LAYERS)
    other = start("layers").hear()
    assert other["travelled"] == [] and other["digest"] == digest(net)


@shares
def test_nothing_is_left_of_what_is_given_back(folder: Path) -> None:
    before = named_memory()
    one, two = Sharer(folder), Sharer(folder)
    for here in (one, two):
        here.net(LAYERS)
    assert two.travelled(LAYERS) == [] and len(open_memory()) == 1
    one.nets.release()
    gc.collect()
    assert len(list(folder.iterdir())) == 1, "the other has it yet"
    two.nets.release()
    assert open_memory() == [] and list(folder.iterdir()) == []
    assert named_memory() <= before


@shares
def test_other_models_formats_and_layers_are_never_mixed(folder: Path) -> None:
    there = [Sharer(folder), Sharer(folder, "another"), Sharer(folder), Sharer(folder), Sharer(folder)]
    kept = [
        LAYERS,
        LAYERS,
        StorageConfig("int8", offload_layers=3),
        StorageConfig(offload_layers=2),
        StorageConfig(offload_layers=3, offload_text_kv=True),
    ]
    for here, storage in zip(there, kept, strict=True):
        assert digest(here.net(storage)) == expected(storage)
        assert here.travelled(storage)
    assert len(open_memory()) == len({name for here in there for name in here.nets.shared_bytes}) == 5


@shares
@pytest.mark.parametrize(
    "said", [b"", b"{", b'{"name": "liveavatar-0"}\n', b'["x"]\n99999999 2\n', b"\xff\n\xff 1\n", None]
)
def test_a_notice_that_says_nothing_true_is_written_anew(folder: Path, said: bytes | None) -> None:
    """One that was cut off, and one of a process whose number another one has: here this one."""
    first = Sharer(folder)
    first.net(LAYERS)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    first.nets.release()
    gc.collect()
    assert not path.exists()
    path.write_bytes(whole if said is None else said)
    here = Sharer(folder)
    assert digest(here.net(LAYERS)) == expected(LAYERS) and here.travelled(LAYERS)
    after = Sharer(folder)
    after.net(LAYERS)
    assert not after.travelled(LAYERS)


@shares
def test_a_folder_is_cleared_of_what_was_left(folder: Path, start: Start) -> None:
    other, here = start("layers"), Sharer(folder)
    other.hear()
    other.kill()
    here.net(STORAGES["prompt"])
    with pytest.raises(OSError, match="not empty"):
        host_weights.remove_unused(folder)
    assert len(list(folder.iterdir())) == 1, "what is in use, and not that of the killed one"
    here.nets.release()
    gc.collect()
    host_weights.remove_unused(folder)
    assert not folder.exists()


def test_what_cannot_be_read_leaves_nothing_locked(folder: Path) -> None:
    def fail() -> Any:
        raise RuntimeError("cut off")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="cut off"):
            HostWeightCache(folder, "tiny").get("x", torch.device("cpu"), fail)
