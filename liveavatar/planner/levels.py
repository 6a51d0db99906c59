"""Fidelity levels: the ways to store a stage, from what rounds and moves nothing to what takes least."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..storage import StorageConfig


@dataclasses.dataclass(frozen=True)
class FidelityLevel:
    """A fidelity level: one way to store a stage.

    Attributes:
        name: for people.
        storage: what it means; how many layers are offloaded is found for each stage.
        offloads_layers: whether layers may be streamed.
    """

    name: str
    storage: StorageConfig
    offloads_layers: bool = False

    @property
    def last_resort(self) -> bool:
        """Whether it is taken only where no other fits: nobody has measured what it costs the 14B model."""
        return self.storage.kv_dtype == "int4"


def _level_family(name: str, storage: StorageConfig) -> list[FidelityLevel]:
    """All on the device, then keys and values on the host, then layers, too."""
    away = dataclasses.replace(storage, kv_offload=True)
    return [
        FidelityLevel(name, storage),
        FidelityLevel(f"{name}, KV cache offloaded", away),
        FidelityLevel(f"{name}, KV cache offloaded, layers offloaded", away, offloads_layers=True),
    ]


FIDELITY_LEVELS: tuple[FidelityLevel, ...] = (
    FidelityLevel("unrounded", StorageConfig()),
    *_level_family("unrounded, text KV weights offloaded", StorageConfig(offload_text_kv=True)),
    *_level_family("fp8 weights", StorageConfig(weights="fp8", offload_text_kv=True)),
    *_level_family("fp8 weights and KV cache", StorageConfig(weights="fp8", kv_dtype="fp8", offload_text_kv=True)),
    *_level_family(
        "fp8 weights, KV cache in int4", StorageConfig(weights="fp8", kv_dtype="int4", offload_text_kv=True)
    ),
)
"""Best first: nothing rounded before anything rounded, and within that nothing moved before anything moved."""
FIRST_FP8 = next(i for i, level in enumerate(FIDELITY_LEVELS) if level.storage.weights == "fp8")
_AS_IN_FILE = "packed as in the file"
PACKED_LEVELS: tuple[FidelityLevel, ...] = (
    FIDELITY_LEVELS[0],
    FidelityLevel(_AS_IN_FILE, StorageConfig(weights="packed")),
    *_level_family(f"{_AS_IN_FILE}, text KV weights offloaded", StorageConfig(weights="packed", offload_text_kv=True)),
    *_level_family(
        f"{_AS_IN_FILE}, KV cache in fp8", StorageConfig(weights="packed", kv_dtype="fp8", offload_text_kv=True)
    ),
    *_level_family(
        f"{_AS_IN_FILE}, KV cache in int4", StorageConfig(weights="packed", kv_dtype="int4", offload_text_kv=True)
    ),
)
"""Of a model whose file is packed, best first: its matrices are rounded already and lose nothing where they stay so."""


def levels_of(packed: bool) -> tuple[FidelityLevel, ...]:
    """All levels of a model, best first; where it is packed, those in fp8 follow, which round what is rounded. Last
    resorts come last."""
    levels = (*PACKED_LEVELS, *FIDELITY_LEVELS[FIRST_FP8:]) if packed else FIDELITY_LEVELS
    return tuple(sorted(levels, key=lambda level: level.last_resort))


def gentler_levels(levels: Sequence[FidelityLevel], level: int) -> tuple[FidelityLevel, ...]:
    """What a stage with room to spare may take instead: the levels above that round the same, best first, and
    itself."""
    wanted = (levels[level].storage.weights, levels[level].storage.kv_dtype)
    return tuple(r for r in levels[: level + 1] if (r.storage.weights, r.storage.kv_dtype) == wanted)


def _ladder(storages: tuple[StorageConfig, ...]) -> tuple[FidelityLevel, ...]:
    """The levels that storages stand on."""
    return PACKED_LEVELS if any(storage.packed for storage in storages) else FIDELITY_LEVELS


def level_of(storages: tuple[StorageConfig, ...]) -> int:
    """The lowest level that any of these storages stands on, as an index into `FIDELITY_LEVELS`, or into
    `PACKED_LEVELS` where matrices stay packed.

    Raises:
        ValueError: a storage stands on none.
    """
    known = {(level.storage, level.offloads_layers): i for i, level in enumerate(_ladder(storages))}
    found = [known.get((dataclasses.replace(s, offload_layers=0), s.offload_layers > 0)) for s in storages]
    if None in found:
        raise ValueError(f"{storages[found.index(None)]} is no fidelity level.")
    return max(i for i in found if i is not None)


def lowest_level(storages: tuple[StorageConfig, ...]) -> FidelityLevel:
    """The level of `level_of`."""
    return _ladder(storages)[level_of(storages)]


def next_level_down(storages: tuple[StorageConfig, ...], layers: int) -> tuple[FidelityLevel, StorageConfig] | None:
    """What to try where stages did not fit: the next level, and a storage of it that any stage can have.

    Args:
        storages: of the stages, as they were planned.
        layers: of the smallest stage, all of which are offloaded where a level streams.

    Returns:
        The first level below them, or theirs with all layers offloaded; the last one where they stand on none; None
        where there is none. No last resort, unless they stand on one: it spares the host, not the device.
    """
    on_last = any(storage.kv_dtype == "int4" for storage in storages)
    levels = [level for level in _ladder(storages) if on_last or not level.last_resort]
    try:
        place = level_of(storages)
    except ValueError:
        place = len(levels) - 2
    if not levels[place].offloads_layers or min(s.offload_layers for s in storages) >= layers:
        place += 1
    if place == len(levels):
        return None
    level = levels[place]
    return level, dataclasses.replace(level.storage, offload_layers=layers if level.offloads_layers else 0)
