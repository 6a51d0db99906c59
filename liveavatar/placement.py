"""Where a user wants the work to run: the wish behind a plan."""

from __future__ import annotations

import dataclasses
import numbers
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, get_args

from .attention_choice import AttentionUse, check_attention, resolve_attention
from .compiler import check_compiler, missing_requirements
from .config import DecoderConfig, ModelConfig
from .device_names import DeviceName
from .errors import PlanError, shown
from .gpus import gpu_count
from .planner import (
    COMPILE_SECONDS,
    CUDA_CONTEXT_BYTES,
    GIB,
    Hardware,
    PackedSizes,
    Plan,
    PlanOptions,
    Preference,
    apply_plan_size,
    choose_live_plan,
    choose_plan,
    compiling_saves,
    make_plan,
)
from .planner.disk import TemporaryBytes
from .request import ResolvedRequest
from .storage import PLAIN, KVDtype, StorageConfig, WeightFormat
from .utils import cpu_has_bfloat16, format_bytes
from .vae.tile_grid import WHOLE, Tiles

_MOST_THREADS = 8
_MOST_MEMORY = 100_000
"""GB or GiB."""
_TEXT, _AMOUNT, _SWITCH = (str,), (numbers.Real,), (bool,)
_TYPES: Mapping[str, tuple[type, ...]] = {
    "stages": _TEXT,
    "dtype": (*_TEXT, type(None)),
    "threads": (numbers.Integral, type(None)),
    "keep_loaded": _SWITCH,
    "storage": (StorageConfig, type(None)),
    "fit": (*_SWITCH, type(None)),
    "prefer": _TEXT,
    "allow_smaller": _SWITCH,
    "vram_cap": (*_AMOUNT, type(None)),
    "host_ram": (*_AMOUNT, type(None)),
    "vae_tiles": (*_TEXT, type(None)),
    "processes": _SWITCH,
    "compile": (*_SWITCH, *_TEXT),
    "attention": _TEXT,
}
"""Of the fields of a `Placement`; those of its devices and its storage are looked at one by one."""
_WORDS: Mapping[type, str] = {
    str: "a text",
    bool: "True or False",
    type(None): "None",
    numbers.Integral: "a whole number",
    numbers.Real: "a number",
}
_STORAGE_WORDS: Mapping[str, tuple[object, ...]] = {
    "weights": get_args(WeightFormat),
    "kv_dtype": get_args(KVDtype),
    "kv_offload": (False, True),
    "offload_text_kv": (False, True),
}


@dataclasses.dataclass(frozen=True)
class Placement:
    """Devices and how the work is cut over them; everything may be left to the library.

    Attributes:
        devices: in order; stages take them in turn, encoders and the VAE work on the last one (alone there, if there is
            one more than stages). "MACHINE/DEVICE" is one of another machine. Empty: all GPUs of this machine where a
            plan is chosen for them, else the first; or the CPU.
        stages: "SxP", groups of steps x parts of layers; "auto" cuts the layers into as many parts as devices.
        dtype: of weights and keys; None: bfloat16 on a GPU, float32 on the CPU.
        threads: CPU threads per task; None: all there are, at most 8.
        keep_loaded: whether weights stay for the next run.
        storage: how all stages keep what they hold; None: plain, or as it is chosen.
        fit: whether stages and storage are chosen so that they fit the devices; None: where these are GPUs that are
            here, and neither `stages` nor `storage` was named.
        prefer: what is chosen: see `PlanOptions`.
        allow_smaller: whether a smaller video may be chosen where nothing else fits.
        vram_cap: GB (10^9 bytes) of each GPU that are used at most, by the plan and by every single process.
        host_ram: GiB of the host's memory that are reckoned with; None: all there is.
        vae_tiles: "RxC", rows and columns of tiles in which the VAE works; None: whole, or as it is chosen.
        processes: whether every stage works in a process of its own, which takes more memory; the backend says.
        compile: whether layers are compiled before the first block; it takes a minute or more once, and a compiler.
            "auto": where a plan is chosen for GPUs that can, and the video is so long that it probably pays; where it
            fails all the same, the video is made without.
        attention: backend of self-attention (see `liveavatar.attention_choice`).

    Raises:
        PlanError: a value is of another type, or a word that is not known. Whether it is possible, the plan says.
    """

    devices: tuple[str, ...] = ()
    stages: str = "auto"
    dtype: str | None = None
    threads: int | None = None
    keep_loaded: bool = True
    storage: StorageConfig | None = None
    fit: bool | None = None
    prefer: Preference = "quality"
    allow_smaller: bool = False
    vram_cap: float | None = None
    host_ram: float | None = None
    vae_tiles: str | None = None
    processes: bool = False
    compile: bool | Literal["auto"] = "auto"
    attention: str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.devices, tuple) or not all(isinstance(name, str) for name in self.devices):
            raise PlanError(
                f"The devices {shown(self.devices)} are not understood.", "Give a tuple of names: ('cpu',)."
            )
        for name, types in _TYPES.items():
            value = getattr(self, name)
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                wanted = " or ".join(_WORDS.get(kind, kind.__name__) for kind in types)
                raise PlanError(f"{name} = {shown(value)} is of type {type(value).__name__}.", f"Give {wanted}.")
        if self.prefer not in get_args(Preference):
            raise PlanError(f"The preference {shown(self.prefer)} is not known.", "Use quality or speed.")
        if self.compile not in (True, False, "auto"):
            raise PlanError(f"compile = {shown(self.compile)} is not known.", "Use True, False or auto.")
        for name, words in _STORAGE_WORDS.items() if self.storage else ():
            value = getattr(self.storage, name)
            if not any(type(value) is type(word) and value == word for word in words):
                raise PlanError(f"{name} = {shown(value)} is not known.", f"Use {', '.join(map(str, words))}.")
        if self.storage and type(self.storage.offload_layers) is not int:
            raise PlanError(f"{shown(self.storage.offload_layers)} layers cannot be offloaded.", "Give a whole number.")

    @property
    def last_device(self) -> str:
        """Where encoders and the VAE run: no device has fewer stages, because stages take devices in turn."""
        return (self.devices or default_devices())[-1]

    @property
    def resolved_dtype(self) -> str:
        """The dtype that will be used."""
        first = DeviceName.parse((self.devices or default_devices())[0])
        return self.dtype or ("float32" if first.device == "cpu" else "bfloat16")

    @property
    def cap(self) -> int:
        """Bytes that the tensors of one process may take on a GPU; 0: as many as there are."""
        return 0 if self.vram_cap is None else int(self.vram_cap * 1e9) - CUDA_CONTEXT_BYTES

    @property
    def resolved_threads(self) -> int:
        """The CPU threads that will be used."""
        return min(os.cpu_count() or 1, _MOST_THREADS) if self.threads is None else self.threads

    @property
    def tiles(self) -> Tiles | None:
        """Rows and columns of tiles of the VAE, where they were given.

        Raises:
            PlanError: they are not understood.
        """
        if self.vae_tiles is None:
            return None
        read = re.fullmatch(r"\s*(\d{1,3})\s*[xX×]\s*(\d{1,3})\s*", self.vae_tiles)
        if not read:
            raise PlanError(
                f"The tiles {shown(self.vae_tiles)} are not understood.", "Write rows x columns, such as 2x2."
            )
        return int(read[1]), int(read[2])

    def check_devices(self, elsewhere: bool = False) -> None:
        """Refuse devices that are not here, and to compile for them where the machine lacks what that takes.

        Args:
            elsewhere: whether devices of other machines are somebody else's to check; else they are refused.

        Raises:
            PlanError: naming those that are.
            ModelError: naming what is missing: of a compiler, or the package of an attention backend.
        """
        check_attention(self.attention)
        refuse_multi_gpu_windows(sys.platform, self.devices)
        there = ["cpu", *(f"cuda:{i}" for i in range(gpu_count()))]
        for device in self.devices:
            if DeviceName.parse(device).machine is not None:
                if not elsewhere:
                    raise PlanError(
                        f"The device {device!r} is not of this machine.",
                        "Other machines need worker processes (engine 'ray') and the address of their Ray cluster.",
                    )
            elif device not in there:
                raise PlanError(f"There is no device {device!r} here.", f"There are {', '.join(there)}.")
        if self.compile is True:
            names = map(DeviceName.parse, self.devices or default_devices())
            check_compiler(name.device for name in names if name.machine is None)

    def for_cards(self, hardware: Hardware) -> Placement:
        """This placement on cards that need not be here; stages and storage are chosen for them.

        Raises:
            PlanError: it names stages, devices or storage.
        """
        if self.storage is not None or self.stages != "auto" or self.devices:
            raise PlanError(
                "With --gpus, stages, devices and storage are chosen.",
                "Leave out --stages, --devices and the ways to keep stages, or leave out --gpus.",
            )
        return dataclasses.replace(self, devices=tuple(device.name for device in hardware.devices), fit=True)

    def plan(
        self,
        resolved: ResolvedRequest,
        config: ModelConfig,
        model: str,
        hardware: Callable[[], Hardware] = Hardware.detect,
        tiny: DecoderConfig | None = None,
        packed: PackedSizes | None = None,
    ) -> tuple[ResolvedRequest, Plan]:
        """The plan of one video, and what it will be by that plan; as `make_plan`."""
        plan = self.make_plan(resolved, config, model, hardware, tiny, packed)
        return apply_plan_size(resolved, plan), plan

    def make_plan(
        self,
        resolved: ResolvedRequest,
        config: ModelConfig,
        model: str,
        hardware: Callable[[], Hardware] = Hardware.detect,
        tiny: DecoderConfig | None = None,
        packed: PackedSizes | None = None,
    ) -> Plan:
        """The plan of one video; the devices need not be here.

        Args:
            resolved: what will be made, or something smaller where that is allowed: see `apply_plan_size`.
            config: of the network.
            model: its name, for the reader.
            hardware: the devices at hand; asked only where something is chosen for them.
            tiny: the decoder that works in place of the VAE's own.
            packed: of the matrices that may stay packed.

        Raises:
            PlanError: an impossible cut, storage, dtype, thread count or number of tiles; nothing fits; options that
                nobody would heed.
            ModelError: the attention, or the products of packed matrices, that were asked for are not there, on devices
                that are.
        """
        self._check_memory()
        available = self._chosen_hardware(hardware)
        plan = self._make_plan(resolved, config, model, available, tiny, packed)
        if available is not None and available.source == "asked":
            return plan  # of devices that are not here nothing can be tried
        room = TemporaryBytes.of(resolved, config).note()
        told = (*_float8_notes(plan), *_native_notes(plan, packed), *_bfloat16_notes(plan), *([room] if room else []))
        return dataclasses.replace(plan, notes=(*plan.notes, *told))

    def _make_plan(
        self,
        resolved: ResolvedRequest,
        config: ModelConfig,
        model: str,
        available: Hardware | None,
        tiny: DecoderConfig | None,
        packed: PackedSizes | None,
    ) -> Plan:
        """Chosen for devices, or laid out as asked where there are none."""
        if available is not None:
            options = PlanOptions(
                prefer=self.prefer,
                allow_smaller=self.allow_smaller,
                dtype=self.resolved_dtype,
                threads=self.resolved_threads,
                processes=self.processes,
                vae_tiles=self.tiles,
                compiled=self.compile is True,
                tiny=tiny,
                packed=packed,
            )
            attends = self._attention(available, config)
            available = available.with_attention({name: use.backend for name, use in attends.items()})
            choose = choose_live_plan if resolved.is_open else choose_plan
            chosen = choose(resolved, config, available, options, model=model)
            if self.compile == "auto" and not _lacks_compiler(available):
                compiled = dataclasses.replace(options, compiled=True)
                chosen = _sooner(resolved, chosen, choose(resolved, config, available, compiled, model=model))
            uses = tuple(
                dataclasses.replace(attends[use.device], tflops=use.tflops, source=use.source)
                for use in chosen.attention_uses
            )
            return dataclasses.replace(chosen, cap=self.cap, attention=self.attention, attention_uses=uses)
        if self.prefer != "quality" or self.allow_smaller or self.host_ram is not None:
            raise PlanError(
                "A preference, a smaller video and the host's memory matter only where a plan is chosen.",
                "Leave stages and storage to the library, on GPUs that are here (to plan for others: --gpus 1x24), or "
                "leave the wish out.",
            )
        devices = self.devices or default_devices()
        parts = min(len(devices), config.num_layers)
        plan = make_plan(
            resolved,
            config,
            model=model,
            stages=f"1x{parts}" if self.stages == "auto" else self.stages,
            devices=devices,
            dtype=self.resolved_dtype,
            threads=self.resolved_threads,
            storage=self.storage or PLAIN,
            processes=self.processes,
            vae_tiles=self.tiles or WHOLE,
            tiny=tiny,
            packed=packed,
        )
        return self._capped(plan)

    def _chosen_hardware(self, hardware: Callable[[], Hardware]) -> Hardware | None:
        """The devices that a plan is chosen for; None where it is laid out as asked."""
        devices = tuple(map(DeviceName.parse, self.devices or all_devices()))
        explicit = self.stages != "auto" or self.storage is not None
        if self.fit and (explicit or any(d.machine for d in devices)):
            raise PlanError(
                "A plan is chosen for GPUs of this machine, and then nobody else names its stages or its storage.",
                "Leave stages, storage and other machines out, or let nothing be chosen.",
            )
        if not self.fit and (self.fit is False or explicit or any(d.machine or d.device == "cpu" for d in devices)):
            return None
        names = [d.device for d in devices]
        try:
            available = hardware().restricted_to(names)
            missing = set(names) - {spec.name for spec in available.devices}
            if missing:
                raise PlanError(f"Nothing is known of {', '.join(sorted(missing))}.", "Name GPUs that are here.")
        except PlanError:
            if self.fit:
                raise
            return None  # a plan for devices that are not here
        if self.host_ram is not None:
            available = dataclasses.replace(available, host=int(self.host_ram * GIB))
        return available if self.vram_cap is None else available.with_cap(int(self.vram_cap * 1e9))

    def _check_memory(self) -> None:
        """Refuse amounts that make no sense, and a cap where there is nothing to cap."""
        for given, what in ((self.vram_cap, "A cap of {} GB"), (self.host_ram, "{} GiB of host memory")):
            if given is not None and not 0 < given < _MOST_MEMORY:
                amount = f"{given:g}" if isinstance(given, float) else shown(given)
                raise PlanError(
                    f"{what.format(amount)} is not possible.", f"Give more than 0 and less than {_MOST_MEMORY}."
                )
        if self.vram_cap is None:
            return
        cpus = [d for d in self.devices or default_devices() if DeviceName.parse(d).device == "cpu"]
        if cpus:
            raise PlanError(
                f"A cap of {float(self.vram_cap):g} GB is for the memory of GPUs, and {cpus[0]} is none.",
                "Leave the cap out, or name GPUs alone.",
            )
        if self.cap <= 0:
            raise PlanError(
                f"A cap of {float(self.vram_cap):g} GB leaves nothing: a GPU's driver alone takes "
                f"{format_bytes(CUDA_CONTEXT_BYTES, 'g')}.",
                "Allow at least 1 GB.",
            )

    def _capped(self, plan: Plan) -> Plan:
        """A plan that was laid out as asked, held to the cap."""
        over = {device: total for device, total in plan.total_by_device.items() if self.cap and total > self.cap}
        if over:
            device, total = max(over.items(), key=lambda pair: pair[1])
            raise PlanError(
                f"The plan takes {format_bytes(total)} on {device}, where a cap of {float(self.vram_cap or 0):g} GB "
                f"leaves {format_bytes(self.cap)} to it.",
                "Leave stages and storage to the library, keep less on the device, or raise the cap.",
            )
        backend = resolve_attention(self.attention)
        uses = tuple(AttentionUse(device, backend) for device in dict.fromkeys(stage.device for stage in plan.stages))
        return dataclasses.replace(
            plan, cap=self.cap, compiled=self.compile is True, attention=self.attention, attention_uses=uses
        )

    def _attention(self, hardware: Hardware, config: ModelConfig) -> dict[str, AttentionUse]:
        """What each device will attend with, by name: what passes its trial on those that are here, else as asked."""
        here = {f"cuda:{index}" for index in range(gpu_count())} if hardware.source == "measured" else set()
        found = {}
        for device in hardware.devices:
            found[device.name] = AttentionUse(device.name, resolve_attention(self.attention))
            if device.name in here:
                import torch

                from .model.attention_backends import choose_attention

                dtype = getattr(torch, self.resolved_dtype)
                chosen = choose_attention(self.attention, torch.device(device.name), dtype, config.head_dim)
                found[device.name] = chosen.use(device.name)
        return found


def _lacks_compiler(hardware: Hardware) -> bool:
    """Whether nothing can be compiled for GPUs that are here; of others it is taken for granted that it can."""
    return hardware.source != "asked" and bool(missing_requirements("cuda"))


def _sooner(resolved: ResolvedRequest, eager: Plan, compiled: Plan) -> Plan:
    """Of two plans of one video the one by which it is probably sooner ready, compiling included; with a note. Of live
    talk the one that keeps the pace of speech."""
    compiled = dataclasses.replace(compiled, compile_optional=True)
    if eager.live and compiled.live:
        if eager.live.holds or compiled.live.holds:
            return eager if eager.live.holds else compiled
        nearest = compiled.live.nearest  # there, layers will be compiled if need be
        return dataclasses.replace(eager, live=dataclasses.replace(eager.live, nearest=nearest))
    if eager.forecast is None or compiled.forecast is None:
        return eager
    saved = compiling_saves(eager.forecast, compiled.forecast, apply_plan_size(resolved, eager).blocks)
    if saved <= 0:
        return eager
    note = (
        f"compiling the layers takes about {COMPILE_SECONDS:.0f} s once; with that the video is probably ready "
        f"{saved:.0f} s sooner, all in all"
    )
    return dataclasses.replace(compiled, notes=(*compiled.notes, note))


def _float8_notes(plan: Plan) -> Iterator[str]:
    """Of each device of this machine that holds fp8 weights: whether it multiplies them as they are."""
    here = {"cpu", *(f"cuda:{i}" for i in range(gpu_count()))}
    for device in dict.fromkeys(s.device for s in plan.stages if s.storage.weights in ("fp8", "fp8-tensor")):
        if device not in here:
            continue
        import torch

        from .model.quantize import fp8_matmul_failure

        by_row = any(s.storage.weights == "fp8" for s in plan.stages if s.device == device)
        if why := fp8_matmul_failure(torch.device(device), by_row):
            yield f"{device} widens fp8 weights to {plan.dtype} for each product, for it cannot multiply them: {why}"
        else:
            yield f"{device} multiplies fp8 weights as they are, with one scale per {'row' if by_row else 'tensor'}"


def _native_notes(plan: Plan, packed: PackedSizes | None) -> Iterator[str]:
    """Of each device of this machine that multiplies matrices as they are packed: which.

    Raises:
        ModelError: it multiplies none of them.
    """
    here = {"cpu", *(f"cuda:{i}" for i in range(gpu_count()))}
    for device in dict.fromkeys(s.device for s in plan.stages if s.storage.weights == "packed-native"):
        if packed is None or device not in here:
            continue
        import torch

        from .model.native import multiplied_formats

        names = multiplied_formats(torch.device(device), [name for name, _ in packed.formats])
        yield f"{device} multiplies {', '.join(names)} matrices as they are, with inputs rounded likewise"


def _bfloat16_notes(plan: Plan) -> Iterator[str]:
    """Of the processor of this machine, where it is to work in bfloat16 and cannot well."""
    on_cpu = "cpu" in {plan.vae_device, *(stage.device for stage in plan.stages)}
    if on_cpu and plan.dtype == "bfloat16" and cpu_has_bfloat16() is False:
        yield (
            "this processor has no instructions for bfloat16 (AVX512-BF16 or AMX): it takes many times as long as in "
            "float32"
        )


def default_devices() -> tuple[str, ...]:
    """The first GPU if PyTorch sees one, else the CPU."""
    return ("cuda:0",) if gpu_count() else ("cpu",)


def devices_named(text: str) -> tuple[str, ...]:
    """The devices of a list with commas; "all" are all of this machine, and an empty text names none."""
    if text.strip() == "all":
        return all_devices()
    return tuple(name.strip() for name in text.split(",")) if text.strip() else ()


def all_devices() -> tuple[str, ...]:
    """All GPUs that PyTorch sees and that can work together, else the CPU."""
    count = gpu_count()
    if sys.platform == "win32":
        count = min(count, 1)
    return tuple(f"cuda:{index}" for index in range(count)) or ("cpu",)


def refuse_multi_gpu_windows(system: str, devices: Sequence[str]) -> None:
    """Refuse several GPUs on native Windows, where there is no NCCL.

    Args:
        system: as `sys.platform`.
        devices: by name.

    Raises:
        PlanError: naming the way that works.
    """
    gpus = {d for d in devices if DeviceName.parse(d).device.startswith("cuda")}
    if system == "win32" and len(gpus) > 1:
        raise PlanError(
            f"Several GPUs ({', '.join(sorted(gpus))}) cannot work together on native Windows, which has no NCCL.",
            "Run it in WSL2 (Linux on the same machine), or use one GPU.",
        )
