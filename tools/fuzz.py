"""The fuzz tier: mutated files and odd requests, each of which must end in success or in a `LiveAvatarError`.

`python -m tools.fuzz` runs all kinds of `tools.fuzz_kinds` and prints a table of outcomes; `--kinds wav,png`,
`--count`, `--seed` and `--minutes` choose. Every input is tried in a worker process with a limit of memory, which is
replaced when an input kills or hangs it. What crashed or hung is printed with the words that repeat it.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).parents[1]
OUTCOMES = ("read", "refused", "crashed", "hung")
SECONDS = 20.0
"""The longest an input may take; a few seconds on an idle machine."""
START_SECONDS = 120.0
WORKER = (sys.executable, "-m", "tools.fuzz_kinds")


class Outcome(NamedTuple):
    """What became of one input.

    Attributes:
        name: one of `OUTCOMES`.
        why: the error, or how the process ended.
        nbytes: resident memory that it took on top, as far as known.
    """

    name: str
    why: str = ""
    nbytes: int = 0


class Worker:
    """A process that tries one input after another, and is replaced when one has ended it.

    Args:
        command: what is started; it answers each line "KIND SEED INDEX" with an `Outcome` as JSON, after a first line.
        seconds: the longest an input may take.
    """

    def __init__(self, command: Sequence[str] = WORKER, seconds: float = SECONDS):
        self._command, self._seconds = tuple(command), seconds
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._log.close()

    def attempt(self, kind: str, seed: int, index: int) -> Outcome:
        """What becomes of input `index` of a kind."""
        if self._process is None:
            self._start()
        assert self._process and self._process.stdin
        with contextlib.suppress(OSError):  # it is gone: the next line tells
            self._process.stdin.write(f"{kind} {seed} {index}\n")
            self._process.stdin.flush()
        try:
            line = self._lines.get(timeout=self._seconds)
        except queue.Empty:
            self._end()
            return Outcome("hung", f"no answer in {self._seconds:g} s")
        if line:
            return Outcome(*json.loads(line))
        code = self._process.wait()
        self._end()
        return Outcome("crashed", f"the process ended with {code}: {self._last_words()}")

    def _start(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "HF_HUB_OFFLINE": "1"}
        pipe, self._lines = subprocess.PIPE, queue.Queue()
        process = subprocess.Popen(
            self._command, cwd=PROJECT, env=environment, stdin=pipe, stdout=pipe, stderr=self._log, text=True
        )
        self._process = process
        threading.Thread(target=_pass_lines, args=(process, self._lines), daemon=True).start()
        try:
            ready = self._lines.get(timeout=START_SECONDS)
        except queue.Empty:
            ready = ""
        if not ready:
            self._end()
            raise RuntimeError(f"The worker of the fuzz tier does not start: {self._last_words()}")

    def _last_words(self) -> str:
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 2000))
        return self._log.read().decode(errors="replace").strip()[-300:]

    def _end(self) -> None:
        process, self._process = self._process, None
        if process:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # of what it did not read
                    pipe.close()  # type: ignore[union-attr]


def _pass_lines(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    with contextlib.suppress(ValueError):  # closed meanwhile
        for line in process.stdout or ():
            lines.put(line)
    lines.put("")


class Tally:
    """Counts of outcomes by kind, and what was found wrong."""

    def __init__(self) -> None:
        self.counts: dict[str, collections.Counter[str]] = {}
        self.faults: list[str] = []
        self.most_bytes: collections.Counter[str] = collections.Counter()

    def add(self, kind: str, seed: int, index: int, outcome: Outcome) -> None:
        """Count an outcome."""
        self.counts.setdefault(kind, collections.Counter())[outcome.name] += 1
        self.most_bytes[kind] = max(self.most_bytes[kind], outcome.nbytes)
        if outcome.name in OUTCOMES[2:]:
            again = f"python -m tools.fuzz --kinds {kind} --seed {seed} --first {index} --count 1"
            self.faults.append(f"{kind} {outcome.name}: {outcome.why}\n    {again}")

    def table(self) -> str:
        """The counts, a line per kind."""
        lines = [f"{'kind':14}" + "".join(f"{name:>9}" for name in OUTCOMES) + f"{'most MB':>9}"]
        for kind, counts in sorted(self.counts.items()):
            numbers = "".join(f"{counts[name]:9}" for name in OUTCOMES)
            lines.append(f"{kind:14}{numbers}{self.most_bytes[kind] / 1e6:9.0f}")
        return "\n".join(lines)


def fuzz(
    kinds: Iterable[str],
    inputs: range,
    seed: int,
    worker: Callable[[], Worker] = Worker,
    processes: int = 1,
    until: float = float("inf"),
) -> Tally:
    """Try inputs of each kind.

    Args:
        kinds: names in `tools.fuzz_kinds.KINDS`.
        inputs: indices; each makes one input, together with the seed.
        seed: of all of them.
        worker: makes the process that tries them.
        processes: at a time.
        until: moment of `time.monotonic` after which no more is begun.
    """
    tally, lock = Tally(), threading.Lock()
    pieces = 4 if processes > 1 else 1
    names = tuple(kinds)
    parts = [(kind, inputs[start::pieces]) for start in range(pieces) for kind in names]
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()

    def one_part(kind: str, indices: range) -> None:
        process = idle.get()
        try:
            for index in indices:
                if time.monotonic() > until:
                    return
                outcome = process.attempt(kind, seed, index)
                with lock:
                    tally.add(kind, seed, index, outcome)
        finally:
            idle.put(process)

    with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(processes) as threads:
        for _ in range(processes):
            idle.put(stack.enter_context(worker()))
        for done in [threads.submit(one_part, *part) for part in parts]:
            done.result()
    return tally


def main() -> int:
    """The command; 0 where nothing crashed or hung."""
    from .fuzz_kinds import KINDS

    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", default=",".join(KINDS), help="names, with commas between (default: all)")
    parser.add_argument("--count", type=int, default=2000, help="inputs of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=None, help="default: another one every time")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no more inputs after so long")
    parser.add_argument("--processes", type=int, default=min(4, os.cpu_count() or 1))
    given = parser.parse_args()
    seed = int.from_bytes(os.urandom(3), "big") if given.seed is None else given.seed
    inputs, until = range(given.first, given.first + given.count), time.monotonic() + 60 * given.minutes
    print(f"seed {seed}, {given.count} inputs of each kind", flush=True)
    tally = fuzz(given.kinds.split(","), inputs, seed, processes=given.processes, until=until)
    print(tally.table(), *tally.faults, sep="\n")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
