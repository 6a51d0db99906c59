"""Damaged, joined and paused sound is read as far as a player would, and everything skipped or filled is told."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media.clips import float_wav, tones, write

from liveavatar.errors import AudioError
from liveavatar.media.audio_file import read_audio

RATE = 48_000
SECONDS = 4.0
CASES = Path(__file__).resolve().parents[2].parent / "shared" / "cases"

FORMATS = {
    "mp3": "libmp3lame",
    "aac": "aac",
    "ac3": "ac3",
    "ts": "aac",
    "m4a": "aac",
    "mka": "aac",
    "flac": "flac",
    "opus": "libopus",
    "oga": "flac",
}
STAMPED = ("ts", "m4a", "flac", "opus", "oga")
"""Formats whose time stamps say where the damage is."""
COUNTED = ("mp3", "m4a", "mka", "flac")
"""Formats that say how long they are, so that a cut is seen."""


def voice() -> np.ndarray:
    """Sound that no encoder can make small: [n, 1]."""
    n = int(SECONDS * RATE)
    return tones(n, RATE) + 0.02 * np.random.default_rng(1).standard_normal((n, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    return {
        name: write(folder / f"x.{name}", codec, voice(), RATE, "mono").read_bytes() for name, codec in FORMATS.items()
    }


def read(folder: Path, name: str, content: bytes):
    path = folder / f"x.{name}"
    path.write_bytes(content)
    return read_audio(path)


def zeroed(data: bytes, start: float, share: float) -> bytes:
    """The data with zeros in place of a share of it."""
    at, count = int(len(data) * start), int(len(data) * share)
    return data[:at] + bytes(count) + data[at + count :]


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_damage_is_read_over_in_every_container(name: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    clip = read(tmp_path, name, zeroed(whole[name], 0.7, 0.03))
    assert 0.65 * SECONDS < clip.seconds < SECONDS + 0.1 and len(clip.notes) == 1
    assert "of the sound could not be read" in clip.notes[0]
    if name in STAMPED:
        assert clip.seconds == pytest.approx(SECONDS, abs=0.1) or "left out" in clip.notes[0]


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("ac3", "ts")])
def test_more_than_half_unreadable_is_refused(name: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    data = whole[name]
    noise = np.random.default_rng(2).bytes(len(data) * 7 // 10)
    with pytest.raises(AudioError):
        read(tmp_path, name, data[: len(data) // 10] + noise + data[len(data) // 10 + len(noise) :])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("junk", [b"\n", bytes(5000), b"</body></html>\n" * 300], ids=["newline", "zeros", "text"])
def test_what_stands_behind_the_end_is_no_sound(
    name: str, junk: bytes, whole: dict[str, bytes], tmp_path: Path
) -> None:
    clip = read(tmp_path, name, whole[name] + junk)
    assert clip.seconds == pytest.approx(SECONDS, abs=0.05)
    if name == "mp3":
        assert "no sound" in clip.notes[0]


@pytest.mark.parametrize("name", ["mp3", "aac", "ac3", "ts", "flac", "opus", "oga"])
def test_joined_files_are_read_to_the_end(name: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    assert read(tmp_path, name, 3 * whole[name]).seconds == pytest.approx(3 * SECONDS, abs=0.2)


def test_a_cover_between_joined_files_is_no_sound(whole: dict[str, bytes], tmp_path: Path) -> None:
    cover = b"ID3\x04\x00\x00" + bytes([0, 3, 0, 0]) + b"APIC" + np.random.default_rng(3).bytes(3 * 2**14 - 4)
    clip = read(tmp_path, "mp3", whole["mp3"] + cover + whole["mp3"])
    assert clip.seconds == pytest.approx(2 * SECONDS, abs=0.1) and "tag" in clip.notes[0]


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("name", COUNTED)
def test_what_was_cut_off_says_so(name: str, share: float, whole: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="is cut off or damaged"):
        read(tmp_path, name, whole[name][: int(len(whole[name]) * share)])


def test_an_ogg_without_its_end_is_told(whole: dict[str, bytes], tmp_path: Path) -> None:
    for name in ("opus", "oga"):
        assert "may be missing" in read(tmp_path, name, whole[name][: len(whole[name]) * 6 // 10]).notes[0]
    with pytest.raises(AudioError, match="cut off"):
        read(tmp_path, "opus", whole["opus"][:150])


def test_an_empty_file_is_empty(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("mp3", "wav", "m4a"):
        with pytest.raises(AudioError, match="is empty"):
            read(tmp_path, name, b"")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [b"\n", bytes(100), bytes(50_000), b"ID3\x04\x00\x00\x00\x00\x00\x00" + bytes(99)])
def test_what_is_no_sound_is_refused_in_silence(
    content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("mp3", "m4a", "ogg"):
        with pytest.raises(AudioError):
            read(tmp_path, name, content)
    assert capfd.readouterr().err == ""


def stamped(path: Path, codec: str, pieces: Sequence[tuple[float, np.ndarray]], video: bool = False) -> Path:
    """Sound whose pieces [n, 1] stand at given seconds, beside two seconds of black picture if `video`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        if video:
            pictures = container.add_stream("mpeg4", rate=5)
            pictures.width = pictures.height = 64
            for _ in range(10):
                container.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
            container.mux(pictures.encode(None))
        for at, samples in pieces:
            for start in range(0, len(samples), 1024):
                planes = np.ascontiguousarray(samples[start : start + 1024].T)
                frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout="mono")
                frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
                frame.pts = round(at * RATE) + start
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


PAUSING = [("mp4", "aac"), ("mkv", "aac"), ("ts", "aac"), ("webm", "libopus"), ("flv", "aac")]


@pytest.mark.parametrize(("name", "codec"), PAUSING)
def test_a_pause_in_the_time_stamps_is_silence(name: str, codec: str, tmp_path: Path) -> None:
    sound = tones(RATE, RATE)
    clip = read_audio(stamped(tmp_path / f"x.{name}", codec, [(0, sound[: RATE // 2]), (1.5, sound[RATE // 2 :])]))
    assert clip.seconds == pytest.approx(2.0, abs=0.03) and "leave out 1.00 s" in clip.notes[0]
    loud = np.abs(np.asarray(clip.samples)[:, 0])
    assert not loud[int(0.7 * RATE) : int(1.4 * RATE)].any() and loud[int(1.6 * RATE) : int(1.9 * RATE)].max() > 0.2


@pytest.mark.parametrize(
    ("name", "codec", "video"), [("mp4", "aac", True), ("mkv", "aac", True), ("m4a", "aac", False), ("ts", "aac", True)]
)
def test_a_late_start_is_silence(name: str, codec: str, video: bool, tmp_path: Path) -> None:
    clip = read_audio(stamped(tmp_path / f"x.{name}", codec, [(1.0, tones(RATE, RATE))], video))
    assert clip.seconds == pytest.approx(2.0, abs=0.05) and "late" in clip.notes[0]
    loud = np.abs(np.asarray(clip.samples)[:, 0])
    assert not loud[: int(0.9 * RATE)].any() and loud[int(1.1 * RATE) : int(1.9 * RATE)].max() > 0.2


@pytest.mark.parametrize("name", ["mp4", "mkv"])
def test_absurd_time_stamps_are_refused(name: str, tmp_path: Path) -> None:
    sound = tones(RATE, RATE)
    pieces = [(0, sound[: RATE // 2]), (36_000, sound[RATE // 2 :])]
    with pytest.raises(AudioError, match=r"time stamps .* more than any pause"):
        read_audio(stamped(tmp_path / f"x.{name}", "aac", pieces))


def test_a_clock_that_does_not_begin_at_0_is_no_silence(tmp_path: Path) -> None:
    for name, codec in (("mkv", "aac"), ("ogg", "libopus")):
        clip = read_audio(stamped(tmp_path / f"x.{name}", codec, [(5000, tones(RATE, RATE))]))
        assert clip.seconds == pytest.approx(1.0, abs=0.03) and "begin at 5000" in clip.notes[0]


def test_a_change_of_rate_or_channels_is_converted_and_told(tmp_path: Path) -> None:
    parts = [("mono", RATE), ("stereo", 22_050)]
    files = []
    for layout, rate in parts:
        sound = tones(rate, rate, 1 if layout == "mono" else 2)
        files.append(write(tmp_path / f"{layout}.mp3", "libmp3lame", sound, rate, layout).read_bytes())
    clip = read(tmp_path, "mp3", b"".join(files))
    assert (clip.rate, clip.channels) == (RATE, 1) and clip.seconds == pytest.approx(2.0, abs=0.15)
    assert any("48000 Hz and 1 channel to 22050 Hz and 2 channels at 1.0" in note for note in clip.notes)
    assert np.abs(np.asarray(clip.samples)[int(1.5 * RATE) : int(1.8 * RATE)]).max() > 0.2


def test_of_several_tracks_the_default_one_is_taken_and_told(tmp_path: Path) -> None:
    path = tmp_path / "x.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("flac", rate=RATE, layout="mono") for _ in range(3)]
        streams[1].disposition = av.stream.Disposition.default
        streams[1].metadata["language"] = "jpn"
        for stream, level in zip(streams, (0.1, 0.2, 0.3), strict=True):
            frame = av.AudioFrame.from_ndarray(np.full((1, RATE), int(level * 2**15), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = RATE, 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    clip = read_audio(path)
    assert clip.notes == ("x.mkv has 3 audio tracks; number 2 (jpn) is used",)
    assert np.asarray(clip.samples).mean() == pytest.approx(0.2, abs=0.01)


def test_only_as_many_packets_are_decoded_as_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.mp3", "libmp3lame", tones(20 * RATE, RATE), RATE, "mono")
    seen: list[int] = []
    check = "liveavatar.media.audio_file.check_samples"
    monkeypatch.setattr(check, lambda values, *_: seen.append(len(values)))
    clip = read_audio(path, 1.0)
    assert clip.seconds == 1.0 and sum(seen) < 1.1 * RATE
    # a longer limit than the sound changes nothing
    assert read_audio(path, 1e9).seconds == read_audio(path).seconds


def test_tags_of_other_letters_do_not_matter(whole: dict[str, bytes], tmp_path: Path) -> None:
    tag = b"TAG" + "Ünïcode".encode("latin-1").ljust(125, b"\0")
    assert read(tmp_path, "mp3", whole["mp3"] + tag).seconds == pytest.approx(SECONDS, abs=0.05)


def test_a_video_without_sound_says_so(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        container.mux(stream.encode(None))
    with pytest.raises(AudioError, match=r"no sound in .*, only pictures"):
        read_audio(tmp_path / "x.mp4")


@pytest.mark.parametrize("given", [None, 5, b"x.wav", ["x.wav"], float_wav(tones(9, RATE), RATE)])
def test_what_is_no_path_is_refused(given: object) -> None:
    with pytest.raises(AudioError, match="Give the path"):
        read_audio(given)  # type: ignore[arg-type]


def test_a_path_that_no_file_can_have_is_refused() -> None:
    for path in ("a\0b.wav", "x" * 5000):
        with pytest.raises(AudioError):
            read_audio(path)


RIGHT = {
    "one.mp3": (1.0, ""),
    "mp3_two_joined.mp3": (2.0, "tag"),
    "mp3_newline_at_end.mp3": (1.0, "no sound"),
    "corrupt.mp3": (1.43, "could not be read"),
    "wav_placeholder_2e9.wav": (1.0, "header"),
    "latin1.wav": (1.0, ""),
    "sjis.wav": (1.0, ""),
    "id3v1.mp3": (0.37, ""),
    "s64.wav": (0.25, ""),
    "ext_24in32.wav": (0.5, ""),
    "rifx24.wav": (0.5, ""),
    "gap.mp4": (1.43, "silent"),
    "chained_rate.ogg": (0, "changes its rate"),
    "cut60_x.m4a": (0, "cut off"),
    "empty.mp3": (0, "is empty"),
    "corrupt.ogg": (0, "only 0.40 s of 1.43 s can be read"),
}


@pytest.mark.skipif(not CASES.is_dir(), reason="the folder of files that people have is not beside the project")
@pytest.mark.parametrize("name", RIGHT)
def test_files_that_people_have(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    seconds, told = RIGHT[name]
    if seconds:
        clip = read_audio(CASES / name)
        assert clip.seconds == pytest.approx(seconds, abs=0.1) and told in " ".join(clip.notes)
    else:
        with pytest.raises(AudioError, match=told):
            read_audio(CASES / name)
    assert capfd.readouterr().err == ""
