"""What changes while a video goes on: values that hold from a block on."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


class Timeline(Generic[T]):
    """Values that take the place of the first one, each from a block on. It may grow while it is read in other threads.

    Versions count them: 0 is what holds before the first change, which the timeline itself does not know.
    """

    def __init__(self) -> None:
        self.starts: list[int] = []
        """Blocks from which the values hold, ascending."""
        self._values: list[T | None] = []
        self._forgotten = 0

    def add(self, block: int, value: T) -> None:
        """Let a value hold from a block on; one that begins at the same block takes the other's place.

        Raises:
            ValueError: a later change is known already.
        """
        if self.starts and block < self.starts[-1]:
            raise ValueError(f"A change at block {block} after one at block {self.starts[-1]}.")
        if self.starts and block == self.starts[-1]:
            self._values[-1] = value
            return
        self._values.append(value)  # first, so that whoever sees the start finds the value
        self.starts.append(block)

    def skip(self, block: int) -> None:
        """Count a change at a block whose value nobody will ask for."""
        self._values.append(None)
        self.starts.append(block)

    def version(self, block: int) -> int:
        """How many changes there were up to and including a block."""
        return bisect.bisect_right(self.starts, block)

    def value(self, version: int) -> T:
        """The value of a version, from 1 on.

        Raises:
            ValueError: it is forgotten.
        """
        value = self._values[version - 1]
        if value is None:
            raise ValueError(f"Version {version} is forgotten.")
        return value

    def holding(self, block: int, first: T) -> T:
        """The value that holds at a block; `first` before the first change.

        Raises:
            ValueError: it is forgotten.
        """
        version = self.version(block)
        return self.value(version) if version else first

    def beginning(self, block: int) -> T | None:
        """The value that begins to hold at a block; None where none does.

        Raises:
            ValueError: it is forgotten.
        """
        version = self.version(block)
        return self.value(version) if version and self.starts[version - 1] == block else None

    def forget(self, block: int) -> None:
        """Let go of the values that hold at no block from this one on; it is not asked for them again."""
        for version in range(self._forgotten + 1, self.version(block)):
            self._values[version - 1] = None
            self._forgotten = version

    def map(self, function: Callable[[T], U]) -> Timeline[U]:
        """The same changes, of other values: each is made when it is asked for, and made again when asked again."""
        return _MappedTimeline(self, function)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[tuple[int, T]]:
        """Blocks and values that are not forgotten."""
        kept = zip(list(self.starts), self._values, strict=False)
        return ((start, value) for start, value in kept if value is not None)


class _MappedTimeline(Timeline[U], Generic[T, U]):
    """See `Timeline.map`; it grows with the other."""

    def __init__(self, source: Timeline[T], function: Callable[[T], U]):
        self.starts, self._source, self._function = source.starts, source, function

    def add(self, block: int, value: U) -> None:
        raise TypeError("Changes are added to the timeline that this one is made of.")

    def value(self, version: int) -> U:
        return self._function(self._source.value(version))

    def __iter__(self) -> Iterator[tuple[int, U]]:
        return ((start, self._function(value)) for start, value in self._source)
