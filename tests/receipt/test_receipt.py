"""The receipt is whole at any moment and turns everything it is given into JSON, or refuses it."""

import dataclasses
import enum
import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from liveavatar.errors import OutputError
from liveavatar.receipt import PeakMemory, Receipt, json_ready, overload_notice, peak_memory, versions, write_receipt


class Mode(enum.Enum):
    FAST = "fast"


@dataclasses.dataclass(frozen=True)
class Part:
    layers: range
    path: Path
    inner: tuple


def receipt(**changes) -> Receipt:
    part = Part(range(10), Path("a") / "b", (Fraction(25), Mode.FAST))
    values = Receipt("running", Path("out.mp4"), part, part, {"stages": [part]}, 2, versions(), "2026-01-01T00:00:00Z")
    return dataclasses.replace(values, **changes)


def test_it_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "out.json"
    write_receipt(path, receipt())
    first = json.loads(path.read_text(encoding="utf-8"))
    assert first["status"] == "running" and first["finished"] is None and first["frames_sha256"] is None
    assert first["plan"] == {
        "stages": [{"layers": {"start": 0, "stop": 10}, "path": str(Path("a/b")), "inner": ["25", "fast"]}]
    }
    write_receipt(path, receipt(status="failed", error="ü", peak_memory=PeakMemory(5, {"cuda:0": 7})))
    second = json.loads(path.read_text(encoding="utf-8"))
    assert second["status"] == "failed" and second["peak_memory"] == {"host": 5, "devices": {"cuda:0": 7}}
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_one_from_before_there_was_a_mark_is_replaced_too(tmp_path):
    path = tmp_path / "out.json"
    path.write_text(json.dumps(json_ready(receipt())), encoding="utf-8")
    write_receipt(path, receipt(status="complete"))
    assert json.loads(path.read_text(encoding="utf-8"))["status"] == "complete"
    path.write_text(json.dumps({**json_ready(receipt()), "schema": "of somebody else"}), encoding="utf-8")
    with pytest.raises(OutputError, match="is there already"):
        write_receipt(path, receipt())


def test_a_link_in_a_shared_folder_is_not_written_through(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "shared" / "out.json"
    victim.write_text("mine")
    path.parent.mkdir(mode=0o777)
    path.symlink_to(victim)
    with pytest.raises(OutputError, match="is there already"):
        write_receipt(path, receipt())
    assert victim.read_text() == "mine"


def test_a_failure_to_write_keeps_the_older_one(tmp_path, monkeypatch):
    path = tmp_path / "out.json"
    write_receipt(path, receipt())

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_receipt(path, receipt(status="complete"))
    assert json.loads(path.read_text(encoding="utf-8"))["status"] == "running"
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    with pytest.raises(OutputError):
        write_receipt(tmp_path / "missing" / "out.json", receipt())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (range(0, 8, 2), {"start": 0, "stop": 8, "step": 2}),
        ({"b", "a"}, ["a", "b"]),
        (torch.bfloat16, "torch.bfloat16"),
        (torch.device("cpu"), "cpu"),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        ({1: True}, {"1": True}),
        (Fraction(1, 3), "1/3"),
    ],
)
def test_what_json_lacks_gets_a_form(value, expected):
    assert json_ready(value) == expected
    json.dumps(json_ready(value), allow_nan=False)


@pytest.mark.parametrize("value", [object(), torch.zeros(2), b"bytes"])
def test_what_has_no_form_is_refused(value):
    with pytest.raises(TypeError, match="no form"):
        json_ready({"x": [value]})


def test_versions_and_memory_are_known():
    found = versions()
    assert found["torch"].startswith("2.") and {"liveavatar", "python", "av", "transformers"} <= set(found)
    peak = peak_memory()
    assert peak.host is None or peak.host > 50 * 2**20


def test_an_overloaded_machine_is_told():
    cores = os.cpu_count() or 1
    assert overload_notice(None, None) == overload_notice(0.0, float(cores)) == ""
    told = overload_notice(None, 4.0 * cores), overload_notice(4.0 * cores, 0.5)
    assert all(f"{4.0 * cores:.1f} processes" in text and f"{cores} cores" in text for text in told)
