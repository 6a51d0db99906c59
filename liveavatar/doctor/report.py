"""What the doctor knows about a machine: plain data that survives the way through JSON and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

Level = Literal["good", "note", "problem"]
SCHEMA = 3
"""Rises when a field changes its meaning."""
FLOAT8_ROWS = "float8 rows"
"""Name of the product of e4m3 matrices with a scale per row and column, as fp8 weights are worked."""


@dataclasses.dataclass(frozen=True)
class Host:
    """The computer without its accelerators.

    Attributes:
        system: "Linux", "Windows" or "Darwin".
        release: of the kernel.
        wsl: whether Linux runs inside Windows.
        cpu: name of the processor.
        cores, usable_cores: logical cores; those this process may use.
        ram, ram_free: bytes, no more than a container's limit; None where the system does not tell.
        pinnable: bytes a process may lock in memory; None is no limit, or none that the system tells.
        load: processes that wanted to run at a time in the minute before; None where the system does not tell.
    """

    system: str
    release: str
    wsl: bool
    cpu: str
    cores: int
    usable_cores: int
    ram: int | None
    ram_free: int | None
    pinnable: int | None
    load: float | None = None


@dataclasses.dataclass(frozen=True)
class Disk:
    """A folder that videos pass through.

    Attributes:
        name: "temporary" (spooled latents) or "current" (where videos go that were given no folder).
        free: bytes; None where that cannot be told.
        writable: whether a file could be made.
        why_not: what went wrong.
        write, read: GB/s of one file; None where it was not measured.
    """

    name: str
    free: int | None
    writable: bool
    why_not: str = ""
    write: float | None = None
    read: float | None = None


@dataclasses.dataclass(frozen=True)
class Versions:
    """What is installed, told by its metadata: nothing is imported.

    Attributes:
        liveavatar, python: versions.
        libraries: by name; None where it is not installed.
        wanted: the lowest version that was tried, by name; "" where any will do.
    """

    liveavatar: str
    python: str
    libraries: Mapping[str, str | None]
    wanted: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Model:
    """Whether a model is there.

    Attributes:
        complete: everything is there and whole.
        parts: what each part is or what is wrong with it, by name.
        wrong: names of the parts that cannot be used.
    """

    complete: bool
    parts: Mapping[str, str]
    wrong: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Copies:
    """Speeds of copies between a device and the host, in GB/s; None does not exist there.

    Attributes:
        pinned_in, pinned_out: host to device and back, page-locked memory.
        pageable_in, pageable_out: the same with ordinary memory.
        memory: within the device's own memory; on the CPU that is a memcpy.
    """

    pinned_in: float | None
    pinned_out: float | None
    pageable_in: float | None
    pageable_out: float | None
    memory: float


@dataclasses.dataclass(frozen=True)
class AttentionSpeed:
    """A kernel of self-attention on a device.

    Attributes:
        backend, kernel: as plans name them.
        dtype: of queries, keys and values.
        error: distance from attention in float32 in its trial, relative to the norm; None where it does not run.
        tflops: of the queries of one block to the window and the sink; None where it is not used.
        why_not: one line; "" where it is used.
    """

    backend: str
    kernel: str
    dtype: str
    error: float | None
    tflops: float | None
    why_not: str = ""


@dataclasses.dataclass(frozen=True)
class Compute:
    """Speeds of a device, in TFLOP/s.

    Attributes:
        matmul: by dtype: "float32", "bfloat16", "float16", and where they work "float8" (one scale per tensor) and
            `FLOAT8_ROWS`.
        attention: each kernel that is here, the best of each backend first.
        failed: what does not work here and why, by dtype.
    """

    matmul: Mapping[str, float]
    attention: tuple[AttentionSpeed, ...]
    failed: Mapping[str, str]

    def attention_tflops(self, dtype: str) -> dict[str, float]:
        """By backend, PyTorch's own first: of the kernel that is used."""
        found: dict[str, float] = {}
        for kernel in self.attention:
            if kernel.dtype == dtype and kernel.tflops is not None:
                found.setdefault(kernel.backend, kernel.tflops)
        return found


@dataclasses.dataclass(frozen=True)
class Device:
    """One place where stages can run. The CPU is the last of them.

    Attributes:
        id: "cuda:0" or "cpu".
        name: of the card or processor.
        total, free: bytes of its memory; free is what any process could still take.
        capability: CUDA compute capability, "8.9"; empty on the CPU.
        compute, copies: None where they could not be measured.
    """

    id: str
    name: str
    total: int | None
    free: int | None
    capability: str
    compute: Compute | None = None
    copies: Copies | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether it is more than the CPU."""
        return self.id != "cpu"


@dataclasses.dataclass(frozen=True)
class Accelerators:
    """What PyTorch and the driver say of GPUs.

    Attributes:
        build: what PyTorch was built for: "CUDA 12.8", "ROCm 6.2" or "CPU".
        driver: version of the NVIDIA driver; empty where there is none.
        driver_gpus: names of the cards the driver knows.
        devices: those that PyTorch can use.
    """

    build: str
    driver: str
    driver_gpus: tuple[str, ...]
    devices: tuple[Device, ...]


@dataclasses.dataclass(frozen=True)
class Peer:
    """A copy from one GPU to another.

    Attributes:
        direct: whether it goes from card to card and not through the host.
        speed: GB/s.
    """

    source: str
    target: str
    direct: bool
    speed: float


@dataclasses.dataclass(frozen=True)
class Network:
    """What worker processes need of the network.

    Attributes:
        loopback: whether a free port could be listened on and reached.
        why_not: what went wrong.
        variables: names of environment variables that are set and can lead connections astray; never their values.
    """

    loopback: bool
    why_not: str
    variables: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Handshake:
    """Two processes met and exchanged a tensor.

    Attributes:
        backend: "gloo" or "nccl".
        worked: whether what was sent arrived.
        why_not: what went wrong.
        seconds: until they had met; both had loaded PyTorch before.
        speed: GB/s of a tensor from one to the other.
    """

    backend: str
    worked: bool
    why_not: str = ""
    seconds: float | None = None
    speed: float | None = None


@dataclasses.dataclass(frozen=True)
class Failure:
    """A probe that came to no result.

    Attributes:
        probe: what it was about.
        why: one line.
    """

    probe: str
    why: str


@dataclasses.dataclass(frozen=True)
class Finding:
    """What follows from the facts.

    Attributes:
        level: "good", "note" (works, but worth knowing) or "problem" (something does not work).
        what: one or two sentences.
        remedy: what to do; empty where nothing needs to be done.
    """

    level: Level
    what: str
    remedy: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """All that was found out. What a probe could not tell is None or empty, and is among the failures.

    Attributes:
        quick: measured briefly: speeds are rough.
        seconds: the whole examination took.
    """

    schema: int = SCHEMA
    quick: bool = False
    seconds: float = 0.0
    host: Host | None = None
    versions: Versions | None = None
    disks: tuple[Disk, ...] = ()
    accelerators: Accelerators | None = None
    devices: tuple[Device, ...] = ()
    peers: tuple[Peer, ...] = ()
    network: Network | None = None
    handshakes: tuple[Handshake, ...] = ()
    model: Model | None = None
    failures: tuple[Failure, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def gpus(self) -> tuple[Device, ...]:
        """The devices without the CPU."""
        return tuple(d for d in self.devices if d.is_gpu)

    @property
    def healthy(self) -> bool:
        """No problem was found."""
        return all(f.level != "problem" for f in self.findings)
