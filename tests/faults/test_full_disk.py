"""A disk that fills up in mid-run: exit code 1, what was written plays, and the receipt says what went wrong."""

import contextlib
import errno
import io
import os
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
import torch
from cli.runs import generate, receipt, run, write_inputs

from liveavatar import streams
from liveavatar.errors import OutputError
from liveavatar.media import mp4

resource = pytest.importorskip("resource", reason="limits on file sizes")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"), 4.0)


def frames_in(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def broken_off(ran, folder: Path, *words: str) -> dict:
    """Exit code, one paragraph, and a receipt that does not claim more than there is."""
    assert ran.code == 1, (ran.code, ran.err)
    last = ran.err.splitlines()[-1]
    assert last.startswith("liveavatar: ") and "Traceback" not in ran.err, ran.err
    told = receipt(folder)
    assert told["status"] == "failed" and told["error"] in last and told["finished"]
    for word in words:
        assert word in last, last
    return told


class Full(io.BytesIO):
    """A temporary file on a disk that takes four blocks."""

    def write(self, data) -> int:
        if self.tell() > 40_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_the_folder_for_temporary_files_fills_up(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(streams.tempfile, "TemporaryFile", lambda **options: Full())
    ran = generate(inputs, out=tmp_path / "out.mp4")
    told = broken_off(ran, tmp_path, "temporary file", "No space left", "Free some space")
    assert told["probed"]["frames"] == frames_in(tmp_path / "out.mp4") == 48
    assert told["frames_sha256"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.json", "out.mp4"]


@contextlib.contextmanager
def largest_file(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_disk_of_the_video_fills_up(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(streams.tempfile, "TemporaryFile", lambda **options: io.BytesIO())
    with largest_file(60_000):
        ran = generate(inputs, model="untrained", out=tmp_path / "out.mp4")
    told = broken_off(ran, tmp_path, "no room left", "out.mp4", "Free some space")
    frames = frames_in(tmp_path / "out.mp4")
    assert told["probed"]["frames"] == frames >= 12 and frames % 12 == 0
    assert told["frames_sha256"] is None  # more frames were made than the file holds
    assert (tmp_path / "out.mp4").stat().st_size <= 60_000


def test_not_even_the_first_block_fits(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(streams.tempfile, "TemporaryFile", lambda **options: io.BytesIO())
    (tmp_path / "out.mp4").write_bytes(b"an earlier video")
    with largest_file(9_000):  # a receipt fits
        ran = generate(inputs, model="untrained", out=tmp_path / "out.mp4")
    assert broken_off(ran, tmp_path, "no room left")["probed"] is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.json", "out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"an earlier video"


def test_a_disk_that_does_not_hold_both_keeps_the_fragments_and_says_so(inputs, tmp_path, monkeypatch):
    asked = mp4.shutil.disk_usage
    full = SimpleNamespace(free=20_000)
    monkeypatch.setattr(mp4.shutil, "disk_usage", lambda folder: full if Path(folder) == tmp_path else asked(folder))
    ran = generate(inputs, seconds=1, out=tmp_path / "out.mp4")
    assert ran.code == 0 and "liveavatar repair" in ran.out, ran
    told = receipt(tmp_path)
    assert told["status"] == "complete" and "No space left" in told["notices"][-1]
    assert told["probed"]["frames"] == frames_in(tmp_path / "out.mp4") == 25
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.json", "out.mp4"]
    refused = run("repair", tmp_path / "out.mp4")
    assert refused.code == 2 and "No space left" in refused.err and "Free some space" in refused.err
    monkeypatch.undo()
    assert run("repair", tmp_path / "out.mp4").code == 0
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].frames == 25 and container.duration == 1_000_000


def test_the_receipt_does_not_fit_at_the_end(inputs, tmp_path, monkeypatch):
    """The video is whole, but nothing says so: that is not success, and the receipt goes on saying "running"."""
    from liveavatar import recorder

    write = recorder.write_receipt

    def full(path, told, claim):
        if told.status != "running":
            raise OutputError(f"The receipt {path} cannot be written (No space left on device).", "Free space.")
        write(path, told, claim)

    monkeypatch.setattr(recorder, "write_receipt", full)
    ran = generate(inputs, seconds=0.3, out=tmp_path / "out.mp4")
    assert ran.code == 1 and "receipt" in ran.err.splitlines()[-1]
    assert receipt(tmp_path)["status"] == "running" and frames_in(tmp_path / "out.mp4") == 8


def test_frames_that_are_no_numbers_end_the_run(inputs, tmp_path, monkeypatch):
    from liveavatar.vae import tiling

    decode = tiling.decode_block
    calls = []

    def overflow(*arguments) -> torch.Tensor:
        calls.append(1)
        return decode(*arguments) * (torch.nan if len(calls) > 4 else 1)

    monkeypatch.setattr(tiling, "decode_block", overflow)
    ran = generate(inputs, out=tmp_path / "out.mp4")
    told = broken_off(ran, tmp_path, "NaN", "bfloat16")
    assert told["probed"]["frames"] == frames_in(tmp_path / "out.mp4") > 0


def test_somebody_else_replaces_the_video(inputs, tmp_path, monkeypatch):
    from liveavatar.media import video

    close = video.VideoWriter.close

    def close_and_lose(writer) -> None:
        close(writer)
        writer.path.unlink(missing_ok=True)

    monkeypatch.setattr(video.VideoWriter, "close", close_and_lose)
    ran = generate(inputs, seconds=0.3, out=tmp_path / "out.mp4")
    assert broken_off(ran, tmp_path, "out.mp4", "removed or changed")["probed"] is None
