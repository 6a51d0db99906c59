"""A file that could not be finished plays as far as it goes; one that cannot be begun is refused early."""

import os
import signal
import subprocess
import sys

import pytest
from media.videos import PROJECT, decoded, frames_of, sound_of, write_film

from liveavatar.errors import OutputError
from liveavatar.media.mp4 import end_of_whole_fragments
from liveavatar.media.video import VideoWriter, check_writable, probe

KILLED = """
import os, signal, sys
sys.path.insert(0, "tests")
from pathlib import Path
from media.videos import frames_of, sound_of
from liveavatar.media.video import VideoWriter
writer = VideoWriter(Path(sys.argv[1]), 64, 64, sound_of(80 * int(sys.argv[3]), int(sys.argv[3])), 2000, {})
for i in range(int(sys.argv[2])):
    writer.write(frames_of(12, start=12 * i))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("blocks", "rate"), [(2, 48000), (3, 8000), (20, 22050)])
def test_kill_9_leaves_all_but_the_last_two_blocks(tmp_path, blocks, rate):
    path = tmp_path / "a.mp4"
    command = [sys.executable, "-c", KILLED, str(path), str(blocks), str(rate)]
    assert subprocess.run(command, cwd=PROJECT, timeout=60, check=False).returncode == -9
    frames = decoded(path)
    assert 12 * (blocks - 2) < len(frames) <= 12 * blocks and len(frames) >= 12
    found = probe(path)
    assert found.frames == len(frames)
    assert abs(found.video_start) < 1e-3 and abs(found.audio_start) < 1e-3 and abs(found.av_difference) < 0.3


def test_the_file_plays_while_it_grows(tmp_path):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 64, 64, sound_of(5 * 16000, 16000), 120, {}) as writer:
        for block in range(8):
            writer.write(frames_of(12, start=12 * block))
            if block >= 2:
                assert len(decoded(path)) >= 12 * (block - 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_leaving_by_an_exception_leaves_a_whole_file(tmp_path, error):
    with pytest.raises(error), VideoWriter(tmp_path / "a.mp4", 64, 64, sound_of(64000, 16000), 100, {}) as writer:
        writer.write(frames_of(30))
        raise error
    assert not writer.complete
    assert len(decoded(tmp_path / "a.mp4")) == 30
    assert abs(probe(tmp_path / "a.mp4").av_difference) <= 1 / 25


FULL = """
import resource, signal, sys
sys.path.insert(0, "tests")
from pathlib import Path
import numpy as np
from media.videos import sound_of
from liveavatar.errors import OutputError
from liveavatar.media.video import VideoWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
noise = np.random.default_rng(0)
path = Path(sys.argv[1])
try:
    with VideoWriter(path, 64, 64, sound_of(64000, 16000), 100, {}) as writer:
        while writer.frames_written < 96:
            writer.write(noise.integers(0, 256, (12, 64, 64, 3), dtype=np.uint8))
except OutputError as e:
    assert "no room" in str(e), e
    assert not writer.complete
    assert not any("a.mp4" in str(p.resolve()) for p in Path("/proc/self/fd").iterdir()), "still open"
else:
    sys.exit("no error")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on file sizes")
@pytest.mark.parametrize(("limit", "blocks"), [(250_000, 3), (5_000, 0)])
def test_a_full_disk_is_an_output_error_and_leaves_whole_blocks(tmp_path, limit, blocks):
    path = tmp_path / "a.mp4"
    command = [sys.executable, "-c", FULL, str(path), str(limit)]
    subprocess.run(command, cwd=PROJECT, timeout=60, check=True)
    if not blocks:
        assert not path.exists()
        return
    assert len(decoded(path)) >= 12 * blocks and len(decoded(path)) % 12 == 0
    with path.open("rb") as file:
        assert end_of_whole_fragments(file) == path.stat().st_size


def test_an_earlier_file_stays_until_the_first_frame(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"precious")
    check_writable(path)
    with VideoWriter(path, 64, 64, None, 5, {}):
        pass
    assert path.read_bytes() == b"precious"
    write_film(path, 5, None)
    assert len(decoded(path)) == 5


def test_names_are_only_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("http:talk.mp4", "100% %03d.mp4", "Grüße +1.MP4"):
        check_writable(tmp_path / name)
        write_film(tmp_path / name, 1, None)
        assert probe(tmp_path / name).frames == 1


@pytest.mark.parametrize("name", ["a.avi", "a", "folder.mp4", "missing/a.mp4", "file/a.mp4"])
def test_places_where_no_video_can_be_are_refused(tmp_path, name):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        check_writable(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.mp4"]


@pytest.mark.skipif(os.name != "posix", reason="permissions")
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        check_writable(tmp_path / "a.mp4")


def test_a_place_that_vanishes_is_an_output_error_at_the_first_frame(tmp_path):
    writer = VideoWriter(tmp_path / "gone" / "a.mp4", 64, 64, None, 5, {})
    with pytest.raises(OutputError, match="does not exist"):
        writer.write(frames_of(1))
    writer.close()


def test_what_is_no_video_cannot_be_probed(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video" * 100)
    for name in ("a.mp4", "missing.mp4"):
        with pytest.raises(OutputError, match="not a video"):
            probe(tmp_path / name)
