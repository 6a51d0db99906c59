"""The finished file is an ordinary MP4; what a crash has left becomes one."""

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
from media.videos import decoded, frames_of, sound_of, write_film

from liveavatar.errors import OutputError
from liveavatar.files import OutputClaim
from liveavatar.media import mp4
from liveavatar.media.mp4 import boxes, check_end, repair
from liveavatar.media.video import VideoWriter, probe

TAGS = {"title": "Ein Vídeo", "comment": '{"plan": "ü"}'}


@pytest.fixture
def no_room(monkeypatch):
    """A disk that does not hold a video twice."""
    monkeypatch.setattr(mp4.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    return monkeypatch


def kinds(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return [kind for kind, _ in boxes(file) if kind != b"free"]


def packets(path: Path) -> list[tuple]:
    """All packets with their times in seconds; each stream by itself."""
    with av.open(str(path)) as container:
        found = [
            (p.stream.type, p.pts * p.time_base, p.dts * p.time_base, p.duration * p.time_base, p.is_keyframe, bytes(p))
            for p in container.demux()
            if p.size
        ]
    return sorted(found, key=lambda packet: packet[:2])


def film(path: Path, frames: int, rate: int | None = 16000, samples: int | None = None) -> VideoWriter:
    sound = None if rate is None else sound_of(samples or frames * rate // 25, rate)
    with VideoWriter(path, 64, 64, sound, frames, TAGS) as writer:
        for start in range(0, frames, 12):
            writer.write(frames_of(min(12, frames - start), start=start))
    return writer


@pytest.mark.parametrize(
    ("frames", "rate", "samples"),
    [(1, 8000, None), (100, 16000, None), (75, 44100, 75 * 1764 - 700), (50, 48000, 11), (37, None, None)],
)
def test_the_finished_file_is_an_ordinary_mp4(tmp_path, frames, rate, samples):
    path = tmp_path / "a.mp4"
    writer = film(path, frames, rate, samples)
    assert kinds(path) == [b"ftyp", b"moov", b"mdat"] and writer.note is None
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        assert (video.frames, video.start_time, video.average_rate) == (frames, 0, 25)
        assert container.start_time == 0 and container.duration == frames * 40_000
        assert TAGS.items() <= container.metadata.items()
        for audio in container.streams.audio:
            assert audio.start_time == 0 and audio.duration * audio.time_base == video.duration * video.time_base
    assert len(decoded(path)) == frames
    check_end(path, frames)
    there = path.stat()
    assert writer.identity == (there.st_dev, there.st_ino, there.st_size)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_no_packet_changes(tmp_path, no_room):
    path = tmp_path / "a.mp4"
    writer = film(path, 40)
    assert "liveavatar repair" in writer.note and "No space left" in writer.note
    assert b"moof" in kinds(path) and len(decoded(path)) == 40
    before = packets(path)
    with pytest.raises(OutputError, match="No space left"):
        repair(path)
    no_room.undo()
    mode = path.stat().st_mode
    assert repair(path) == mp4.Repaired(True, 0)
    assert packets(path) == before and kinds(path) == [b"ftyp", b"moov", b"mdat"]
    assert path.stat().st_mode == mode and [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_a_repaired_file_has_all_that_could_be_played(tmp_path, no_room):
    path = tmp_path / "a.mp4"
    film(path, 60)
    whole = path.read_bytes()
    no_room.undo()
    path.write_bytes(whole[: whole.rindex(b"moof") + 300])
    (tmp_path / ".a.mp4.0123abcd.liveavatar").write_bytes(b"of a run that was killed while it finished")
    repaired = repair(path)
    assert repaired.changed and repaired.lost_bytes == 304
    assert len(decoded(path)) == probe(path).frames == 48
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 48 and container.start_time == 0
        assert TAGS.items() <= container.metadata.items()
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_tags_of_other_programs_survive(tmp_path):
    path = tmp_path / "a.mp4"
    flags = {"movflags": "frag_keyframe+empty_moov+use_metadata_tags"}
    workflow = {"workflow": json.dumps({"nodes": ["ü"] * 50}), "prompt": "{}"}
    with av.open(str(path), "w", format="mp4", options=flags) as container:
        container.metadata.update(workflow)
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        for image in frames_of(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))
    images = [f.to_ndarray() for f in decoded(path)]  # with B-frames: their order is kept, too
    assert repair(path).changed
    with av.open(str(path)) as container:
        assert workflow.items() <= container.metadata.items()
        assert container.streams.video[0].frames == 30
    assert all((a.to_ndarray() == b).all() for a, b in zip(decoded(path), images, strict=True))


def test_an_ordinary_file_stays_as_it_is(tmp_path):
    path = tmp_path / "a.mp4"
    film(path, 5)
    before = path.stat()
    assert repair(path) == mp4.Repaired(False, 0)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


NO_VIDEOS = ["missing.mp4", "text.mp4", "empty.mp4", "begun.mp4", "folder.mp4", "x" * 300 + ".mp4"]


@pytest.mark.parametrize("name", NO_VIDEOS, ids=lambda name: name[-20:])
def test_what_holds_no_video_is_refused_and_stays(tmp_path, name):
    film(tmp_path / "a.mp4", 5)
    begun = (tmp_path / "a.mp4").read_bytes()[:200]
    contents = {"text.mp4": b"no video" * 100, "empty.mp4": b"", "begun.mp4": begun}
    for place, content in contents.items():
        (tmp_path / place).write_bytes(content)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(OutputError):
        repair(tmp_path / name)
    assert all((tmp_path / place).read_bytes() == content for place, content in contents.items())


def test_a_file_that_grows_is_not_repaired(tmp_path):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 64, 64, None, 60, {}) as writer:
        writer.write(frames_of(48))
        with pytest.raises(OutputError, match="being written"):
            repair(path)
    assert len(decoded(path)) == 48


def test_an_earlier_file_stays_until_the_first_fragment_is_whole(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"precious")
    path.chmod(0o640)
    seen = []
    with VideoWriter(path, 64, 64, sound_of(64000, 16000), 100, {}) as writer:
        for start in range(100):
            writer.write(frames_of(1, start=start))
            assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
            if path.stat().st_size != len(b"precious"):
                seen.append(len(decoded(path)))
    assert seen[0] == 12 and seen[-1] >= 84 and len(decoded(path)) == 100
    assert path.stat().st_mode & 0o777 == 0o640


class Interrupted(OutputClaim):
    """A claim whose file is to appear in the moment that Ctrl-C is pressed."""

    def move(self, temporary: Path) -> None:
        raise KeyboardInterrupt


def test_an_interrupt_within_a_write_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"precious")
    monkeypatch.setattr("liveavatar.media.video.OutputClaim", Interrupted)
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, 64, 64, None, 100, {}) as writer:
        writer.write(frames_of(60))
    assert path.read_bytes() == b"precious" and [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "films").mkdir()
    target = tmp_path / "films" / "long.mp4"
    link = tmp_path / "a.mp4"
    for _ in range(2):  # to nothing yet, then to a video
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        write_film(link, 30, None)
        assert link.is_symlink() and len(decoded(target)) == 30
    with OutputClaim(target), pytest.raises(OutputError, match="another run"):
        write_film(link, 30, None)


def test_a_damaged_end_is_found(tmp_path):
    path = tmp_path / "a.mp4"
    film(path, 50)
    with pytest.raises(OutputError, match="last frame"):
        check_end(path, 51)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) * 2 // 3], whole[:-300] + bytes(300)):
        path.write_bytes(damaged)
        with pytest.raises(OutputError, match=r"last frame|cannot be decoded"):
            check_end(path, 50)


@pytest.mark.skipif(not (shutil.which("ffprobe") and shutil.which("ffmpeg")), reason="needs ffmpeg and ffprobe")
def test_ffmpeg_reads_and_copies_it_from_zero(tmp_path):
    film(tmp_path / "a.mp4", 100)
    for name, codec in (("a.mp4", None), ("copy.mp4", "copy"), ("again.mp4", "libx264")):
        if codec:
            command = [
                "ffmpeg",
                "-v",
                "error",
                "-i",
                tmp_path / "a.mp4",
                "-c:v",
                codec,
                "-c:a",
                "copy",
                tmp_path / name,
            ]
            subprocess.run(command, check=True, timeout=60)
        command = ["ffprobe", "-v", "error", "-count_frames", "-show_format", "-show_streams", "-of", "json"]
        told = json.loads(subprocess.run([*command, tmp_path / name], check=True, capture_output=True).stdout)
        assert float(told["format"]["start_time"]) == 0 and float(told["format"]["duration"]) == 4.0, (name, told)
        assert told["streams"][0]["nb_frames"] == told["streams"][0]["nb_read_frames"] == "100"
        assert all(float(stream["start_time"]) == 0 for stream in told["streams"])
