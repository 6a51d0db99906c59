"""The memory ladder: ways to keep a stage, from the most faithful and fastest down."""

from __future__ import annotations

import dataclasses

from ..storage import Storage


@dataclasses.dataclass(frozen=True)
class Rung:
    """One way to keep a stage.

    Attributes:
        name: for people.
        storage: what it means; how many layers are streamed is found for each stage.
        streams: whether layers may be streamed.
    """

    name: str
    storage: Storage
    streams: bool = False


def _family(name: str, storage: Storage) -> list[Rung]:
    """All on the device, then keys and values on the host, then layers, too."""
    away = dataclasses.replace(storage, keys_home="host")
    return [
        Rung(name, storage),
        Rung(f"{name}, KV on the host", away),
        Rung(f"{name}, KV on the host, layers streamed", away, streams=True),
    ]


LADDER: tuple[Rung, ...] = (
    Rung("unrounded", Storage()),
    *_family("unrounded, prompt weights leave", Storage(prompt_weights="leave")),
    *_family("fp8 weights", Storage(weights="fp8", prompt_weights="leave")),
    *_family("fp8 weights and KV", Storage(weights="fp8", keys="fp8", prompt_weights="leave")),
)
"""Best first: nothing rounded before anything rounded, and within that nothing moved before anything moved."""
FIRST_FP8 = next(i for i, rung in enumerate(LADDER) if rung.storage.weights == "fp8")


def gentler(rung: int) -> tuple[Rung, ...]:
    """What a stage with room to spare may take instead: the rungs above that round the same, best first, and itself."""
    wanted = (LADDER[rung].storage.weights, LADDER[rung].storage.keys)
    return tuple(r for r in LADDER[: rung + 1] if (r.storage.weights, r.storage.keys) == wanted)


def rung_of(storages: tuple[Storage, ...]) -> int:
    """The lowest rung that any of these storages stands on, as an index into `LADDER`.

    Raises:
        ValueError: a storage stands on none.
    """
    known = {(rung.storage, rung.streams): i for i, rung in enumerate(LADDER)}
    found = [known.get((dataclasses.replace(s, streamed=0), s.streamed > 0)) for s in storages]
    if None in found:
        raise ValueError(f"{storages[found.index(None)]} stands on no rung.")
    return max(i for i in found if i is not None)


def next_down(storages: tuple[Storage, ...], layers: int) -> tuple[Rung, Storage] | None:
    """What to try where stages did not fit: the next rung, and a storage of it that any stage can have.

    Args:
        storages: of the stages, as they were planned.
        layers: of the smallest stage, all of which are streamed where a rung streams.

    Returns:
        The first rung below them, or theirs with all layers streamed; the last one where they stand on none; None where
        there is none.
    """
    try:
        place = rung_of(storages)
    except ValueError:
        place = len(LADDER) - 2
    if not LADDER[place].streams or min(s.streamed for s in storages) >= layers:
        place += 1
    if place == len(LADDER):
        return None
    rung = LADDER[place]
    return rung, dataclasses.replace(rung.storage, streamed=layers if rung.streams else 0)
