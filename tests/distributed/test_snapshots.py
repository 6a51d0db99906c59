"""Snapshots are written beside the work, kept while they are of use, and found by whoever comes next."""

import logging
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.distributed import WorkerError, snapshots
from liveavatar.distributed.monitor import Restarts
from liveavatar.distributed.snapshots import Snapshots, complete_in, latest_common
from liveavatar.model.kv_cache import RollingKVCache, SinkKV
from liveavatar.stage import Changes, Stage

STEPS = range(2, 4)


def stage_with(number: float) -> Stage:
    """A stage of one layer whose memories hold one number."""
    stage = Stage.__new__(Stage)
    full = lambda rows: torch.full((rows, 2, 4), float(number))  # noqa: E731
    stage.kv_caches = {step: [RollingKVCache(full(24) + step, full(24) - step)] for step in STEPS}
    stage.sinks = {1: [SinkKV(full(2), full(3), full(5))]}
    stage.dtype, stage.device = torch.float32, torch.device("cpu")
    stage.grid, stage.net = SimpleNamespace(tokens=2), SimpleNamespace(slice=SimpleNamespace(layers=range(1)))
    stage.conditioning = SimpleNamespace(clip_blocks=4, changes=Changes())
    return stage


def save(kept: Snapshots, *boundaries: int, wait: bool = True) -> None:
    for boundary in boundaries:
        for step in STEPS:
            kept.save(boundary, step, stage_with(boundary))
        while wait and kept.waiting:
            time.sleep(0.01)


def test_the_latest_two_stay_and_come_back_as_they_were(tmp_path: Path) -> None:
    kept = Snapshots(tmp_path / "a" / "b", STEPS)
    save(kept, 6, 8, 10)
    kept.save(12, 2, stage_with(12))
    kept.close()
    assert complete_in(tmp_path / "a" / "b", STEPS) == (8, 10)
    names = {p.name.split("-")[0] for p in (tmp_path / "a" / "b").iterdir()}
    assert names == {"8", "10", "12"}, "what is unfinished may still become whole"
    again, stage, right = Snapshots(tmp_path / "a" / "b", STEPS, first=8), stage_with(0), stage_with(8)
    stage.sinks.clear()
    again.restore(8, stage)
    for step in STEPS:
        seen = torch.arange(24) >= 6  # the next block takes the place of the oldest
        assert torch.equal(stage.kv_caches[step][0].k[seen], right.kv_caches[step][0].k[seen])
        assert torch.equal(stage.kv_caches[step][0].v[seen], right.kv_caches[step][0].v[seen])
    assert all(torch.equal(getattr(stage.sinks[1][0], f), getattr(right.sinks[1][0], f)) for f in ("motion_k", "v"))
    assert complete_in(tmp_path / "a" / "b", STEPS) == (8,), "later blocks are made anew"
    save(again, 10)
    again.close()
    assert complete_in(tmp_path / "a" / "b", STEPS) == (8, 10)
    Snapshots(tmp_path / "a" / "b", STEPS).close()
    assert list((tmp_path / "a" / "b").iterdir()) == [], "from block 0 on nothing of before is of use"


def test_one_that_cannot_be_written_is_missing_and_the_rest_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Snapshots(tmp_path, STEPS)
    (tmp_path / "8-3.part").mkdir()
    with caplog.at_level(logging.WARNING):
        save(kept, 6, 8, 10)
        kept.close()
    assert complete_in(tmp_path, STEPS) == (6, 10)
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("no snapshot at block 8: ")


def test_a_slow_disk_gets_no_more_than_memory_may_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, write = threading.Event(), snapshots.write_safetensors
    monkeypatch.setattr(snapshots, "write_safetensors", lambda *given: released.wait() and write(*given))
    kept = Snapshots(tmp_path, STEPS)
    with caplog.at_level(logging.WARNING):
        save(kept, 6, 8, 10, wait=False)
        released.set()
        kept.close()
    assert complete_in(tmp_path, STEPS) == (6, 8)
    assert len(caplog.messages) == 1 and "block 10: the disk is too slow" in caplog.messages[0]


@pytest.mark.parametrize("what", ["disk", "memory"])
def test_what_is_full_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    kept = Snapshots(tmp_path, STEPS)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(snapshots, f"_free_{what}", lambda *folder: 100.0)
        save(kept, 6)
    save(kept, 8)
    kept.close()
    assert complete_in(tmp_path, STEPS) == (8,)
    assert len(caplog.messages) == 1 and f"the {what} has 1e-07 GB free" in caplog.messages[0]


def test_a_folder_that_went_away_stops_nothing(tmp_path: Path) -> None:
    kept = Snapshots(tmp_path / "gone", STEPS)
    (tmp_path / "gone").rmdir()
    save(kept, 6)
    kept.close()
    assert complete_in(tmp_path / "gone", STEPS) == ()
    (tmp_path / "file").write_text("no folder")
    kept = Snapshots(tmp_path / "file", STEPS)
    save(kept, 6)
    kept.close()
    assert complete_in(tmp_path / "file", STEPS) == ()


@given(st.lists(st.sets(st.integers(5, 40)), min_size=1, max_size=4), st.integers(0, 45))
def test_the_common_boundary_is_one_that_all_have(kept: list[set[int]], at_most: int) -> None:
    found = latest_common(kept, at_most)
    usable = [b for b in range(5, at_most + 1) if all(b in k for k in kept)]
    assert found == (usable[-1] if usable else 0)


def lost(stage: int, replaceable: bool = True) -> WorkerError:
    return WorkerError("lost", stage=stage, replaceable=replaceable)


def test_restarts_are_counted_and_need_progress() -> None:
    assert not Restarts(0).allow(lost(0), 0)
    assert not Restarts(3).allow(lost(0, replaceable=False), 0)
    restarts = Restarts(3)
    assert restarts.allow(lost(0), 4)
    assert not restarts.allow(lost(0), 4), "no block since"
    assert restarts.allow(lost(1), 4), "another stage"
    assert restarts.allow(lost(0), 5)
    assert not restarts.allow(lost(1), 9), "three times"


@pytest.mark.skipif(os.name != "posix", reason="this system has no modes of files")
def test_a_folder_that_others_can_write_is_neither_used_nor_believed(tmp_path: Path) -> None:
    kept = Snapshots(tmp_path / "a" / "b", STEPS)
    save(kept, 6)
    kept.close()
    assert (tmp_path / "a").stat().st_mode & 0o777 == (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "a" / "b").chmod(0o777)
    assert complete_in(tmp_path / "a" / "b", STEPS) == ()
    files = set((tmp_path / "a" / "b").iterdir())
    other = Snapshots(tmp_path / "a" / "b", STEPS, first=6)
    save(other, 8)
    other.close()
    assert set((tmp_path / "a" / "b").iterdir()) <= files
