"""A taste of `make fuzz`, and that it sees what it is for: inputs that crash, kill or hang their process."""

import sys

import pytest

from tools.fuzz import Worker, fuzz
from tools.fuzz_kinds import KINDS

ANSWERS = """
import json, os, sys
print("ready", flush=True)
for line in sys.stdin:
    kind, seed, index = line.split()
    if kind == "dies":
        os._exit(3)
    if kind == "hangs":
        sys.stdin.read()
    print(json.dumps(["read" if index == "0" else "refused", "", 7]), flush=True)
"""


def answering() -> Worker:
    return Worker([sys.executable, "-c", ANSWERS], seconds=1.0)


def test_all_kinds_end_in_success_or_in_a_refusal():
    tally = fuzz(KINDS, range(12), seed=20)
    assert not tally.faults, "\n".join(tally.faults)
    assert set(tally.counts) == set(KINDS)
    assert all(sum(counts.values()) == 12 for counts in tally.counts.values())
    assert sum(counts["read"] for counts in tally.counts.values()) > 12  # not all of them are damaged beyond use
    assert "model-json" in tally.table() and "hung" in tally.table()


@pytest.mark.parametrize(
    ("kind", "outcome", "said"), [("dies", "crashed", "ended with 3"), ("hangs", "hung", "no answer")]
)
def test_a_process_that_is_lost_is_counted_and_replaced(kind, outcome, said):
    tally = fuzz(["fine", kind, "other"], range(2), 7, answering)
    assert tally.counts["fine"] == tally.counts["other"] == {"read": 1, "refused": 1}
    assert tally.counts[kind] == {outcome: 2} and tally.most_bytes["fine"] == 7
    assert said in tally.faults[0] and f"--kinds {kind} --seed 7 --first 0 --count 1" in tally.faults[0]


def test_a_worker_that_does_not_start_is_an_error():
    ended = Worker([sys.executable, "-c", "raise SystemExit('no such thing')"])
    with ended as worker, pytest.raises(RuntimeError, match="no such thing"):
        worker.attempt("fine", 0, 0)
