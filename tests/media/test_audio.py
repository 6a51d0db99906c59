"""Any sound a user has is decoded to the right samples, or refused with a reason; 16 kHz is what librosa would give."""

from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import soxr
from golden.cases import Case, cases
from hypothesis import given
from hypothesis import strategies as st
from media.clips import float_wav, tones, write

from liveavatar.errors import AudioError, OutputError
from liveavatar.media.audio import CHUNK_FRAMES, AudioClip, audio_notes, mono_16k
from liveavatar.media.audio_file import read_audio
from liveavatar.spool import Rows, Spool

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"

FORMATS = [
    ("x.wav", "pcm_f32le", 24000, "mono", 0.0),
    ("x.wav", "pcm_s16le", 48000, "stereo", 2**-15),
    ("x.wav", "pcm_s24le", 44100, "stereo", 2**-23),
    ("x.wav", "pcm_u8", 8000, "mono", 2**-7),
    ("x.wav", "pcm_f64le", 16000, "mono", 0.0),
    ("x.wav", "pcm_s16le", 48000, "5.1", 2**-15),
    ("x.flac", "flac", 96000, "stereo", 2**-15),
    ("x.aiff", "pcm_s16be", 22050, "mono", 2**-15),
    ("x.mp3", "libmp3lame", 44100, "stereo", None),
    ("x.ogg", "libopus", 48000, "mono", None),
    ("x.m4a", "aac", 44100, "stereo", None),
    ("x.m4a", "aac", 48000, "5.1", None),
    ("x.mp4", "aac", 48000, "stereo", None),
]


@pytest.mark.parametrize(("name", "codec", "rate", "layout", "error"), FORMATS)
def test_formats_decode_to_their_samples(
    name: str, codec: str, rate: int, layout: str, error: float | None, tmp_path: Path
) -> None:
    given = tones(rate, rate, {"mono": 1, "stereo": 2, "5.1": 6}[layout])
    sound = read_audio(write(tmp_path / name, codec, given, rate, layout, video=name.endswith("mp4")))
    assert (sound.rate, sound.channels, sound.source) == (rate, given.shape[1], name)
    assert sound.samples.dtype == np.float32
    if error is not None:
        assert np.abs(sound.samples - given).max() <= error
    else:  # lossy, and some codecs pad the end by less than a packet
        assert abs(len(sound.samples) - len(given)) < 2048
        middle = slice(rate // 4, rate // 2)
        powers = (sound.samples[middle] ** 2).mean(axis=0) / (given[middle] ** 2).mean(axis=0)
        assert (powers[:3] > 0.8).all() and (powers[:3] < 1.25).all()


@pytest.mark.parametrize("name", ["a+b.wav", "http:%03d.wav", "concat:x|y.wav", "sp ace 声.wav", "-i.wav"])
def test_a_path_is_only_a_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(float_wav(tones(800, 16000), 16000))
    monkeypatch.chdir(tmp_path)
    assert len(read_audio(name).samples) == 800


def bad_files(folder: Path) -> dict[str, bytes]:
    sound = tones(20000, 16000)
    whole = float_wav(sound, 16000)
    nan, inf = sound.copy(), sound.copy()
    nan[8000], inf[12000] = np.nan, -np.inf
    encoded = {
        name: write(folder / name, codec, tones(96000, 48000), 48000, "mono").read_bytes()
        for name, codec in [("x.mp3", "libmp3lame"), ("x.flac", "flac"), ("x.m4a", "aac"), ("x.mka", "aac")]
    }
    with av.open(str(folder / "silent.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        container.mux(stream.encode(None))
    other = folder / "other.wav"
    other.write_bytes(whole)
    return {
        "empty": b"",
        "text": b"hello, this is no sound " * 30,
        "html": b"<!doctype html><html><body>404 not found</body></html>",
        "noise": np.random.default_rng(0).bytes(20000),
        "zero samples": float_wav(np.zeros((0, 1)), 16000),
        "not a number": float_wav(nan, 16000),
        "infinite": float_wav(inf, 16000),
        "cut off wav": whole[:30000],
        "wav header only": whole[:44],
        "half a wav header": whole[:20],
        "impossible rate": whole[:24] + (1).to_bytes(4, "little") + whole[28:],
        "video without sound": (folder / "silent.mp4").read_bytes(),
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(200),
        "playlist": f"ffconcat version 1.0\nfile '{other}'\n".encode(),
        "hls playlist": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:3,\n{other}\n#EXT-X-ENDLIST\n".encode(),
        **{f"cut off {name}": data[: len(data) * 6 // 10] for name, data in encoded.items()},
    }


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return bad_files(tmp_path_factory.mktemp("bad"))


BAD_NAMES = [
    *["empty", "text", "html", "noise", "zero samples", "not a number", "infinite", "cut off wav", "wav header only"],
    *["half a wav header", "impossible rate", "video without sound", "picture", "playlist", "hls playlist"],
    *["cut off x.mp3", "cut off x.flac", "cut off x.m4a", "cut off x.mka"],
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_unusable_file_is_refused(name: str, bad: dict[str, bytes], tmp_path: Path) -> None:
    file = tmp_path / "voice.wav"
    file.write_bytes(bad[name])
    with pytest.raises(AudioError) as e:
        read_audio(file)
    assert "voice.wav" in e.value.what and e.value.nearest
    where = {"not a number": "0.500 s", "infinite": "0.750 s"}
    assert where.get(name, "") in e.value.what


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.wav", tmp_path):
        with pytest.raises(AudioError, match=str(path)):
            read_audio(path)


def test_silence_and_a_wav_of_unknown_length_are_fine(tmp_path: Path) -> None:
    whole = bytearray(float_wav(np.zeros((1600, 2)), 16000))
    for at in (4, 40):
        whole[at : at + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "piped.wav").write_bytes(bytes(whole))
    sound = read_audio(tmp_path / "piped.wav")
    assert sound.samples.shape == (1600, 2) and not sound.samples.any() and sound.seconds == 0.1


def test_arrays_are_wrapped_or_refused() -> None:
    assert AudioClip.from_array([0.0, 0.5], 16000).samples.shape == (2, 1)
    pcm = AudioClip.from_array(np.array([[-32768, 16384]], np.int16), 48000.0)
    assert pcm.samples.tolist() == [[-1.0, 0.5]] and pcm.rate == 48000
    refused = [
        (np.zeros((2, 4000)), 16000),  # channels first
        (np.zeros((1, 1, 4000)), 16000),
        (np.zeros(0), 16000),
        (np.array([0.0, np.nan]), 16000),
        (np.array([True, False]), 16000),
        (np.array(["a"]), 16000),
        (np.zeros(10, np.int64), 16000),
        (np.zeros(10), 0),
        (np.zeros(10), 22050.5),
        (np.zeros(10), float("nan")),
        (np.zeros(10), -16000),
    ]
    for samples, rate in refused:
        with pytest.raises(AudioError):
            AudioClip.from_array(samples, rate)


def test_a_sound_is_limited_without_copying() -> None:
    sound = AudioClip.from_array(tones(16000, 16000), 16000)
    assert sound.limited(0.5).samples.shape == (8000, 1)
    assert np.shares_memory(sound.limited(0.5).samples, sound.samples)
    assert sound.limited(9) is sound and len(sound.limited(1e-9).samples) == 1
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(AudioError):
            sound.limited(seconds)


@given(
    st.sampled_from([8000, 11025, 16000, 22050, 24000, 44100, 48000, 96000]), st.integers(1, 60000), st.integers(1, 3)
)
def test_resampling_in_pieces_equals_the_whole(rate: int, n: int, channels: int) -> None:
    samples = np.random.default_rng(n).uniform(-1, 1, (n, channels)).astype(np.float32)
    mono = samples[:, 0] if channels == 1 else samples.mean(axis=1, dtype=np.float32)
    expected = soxr.resample(mono, rate, 16000, quality="HQ") if rate != 16000 else mono
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("liveavatar.media.audio.CHUNK_FRAMES", 7001)
        actual = mono_16k(AudioClip.from_array(samples, rate))
    assert len(actual) == -(-n * 16000 // rate)
    both = min(len(actual), len(expected))
    assert np.abs(actual[:both] - expected[:both]).max(initial=0) <= 1e-6
    assert not actual[both:].any()


def test_long_sounds_lie_in_a_file_and_hold_the_same_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = 24000
    given = tones(CHUNK_FRAMES + 5000, rate, 2)
    (tmp_path / "long.wav").write_bytes(float_wav(given, rate))
    small = read_audio(tmp_path / "long.wav")
    for module in ("audio", "audio_file"):
        monkeypatch.setattr(f"liveavatar.media.{module}.Spool", partial(Spool, memory_bytes=100_000))
    long = read_audio(tmp_path / "long.wav")
    assert isinstance(long.samples, Rows) and not isinstance(small.samples, Rows)
    assert np.array_equal(long.samples, given)
    wave = mono_16k(long)
    assert isinstance(wave, Rows)
    monkeypatch.undo()
    part = long.limited(1.0)
    assert part.samples.shape == (rate, 2) and np.array_equal(part.samples[7:90], given[7:90])
    assert np.array_equal(wave, mono_16k(small))


def test_a_full_temporary_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    spool = Spool(1, memory_bytes=10)
    with pytest.raises(OutputError, match="No space left"):
        spool.append(np.zeros(100, np.float32))


@pytest.mark.parametrize("case", [c for c in cases("audio") if "real.wave16k" in c.values[0]])
def test_resampled_speech_is_the_published_one(case: Case) -> None:
    file = DATA / Path(case.info["config"].get("real", "")).name
    if not file.is_file():
        pytest.skip(f"{file.name} is not in {DATA}")
    expected = case["real.wave16k"].numpy()
    sound = read_audio(file)
    assert sound.rate == case.info["real_native_rate"]
    actual = mono_16k(sound.limited(len(expected) / 16000))
    assert actual.shape == expected.shape and np.abs(actual - expected).max() <= 1e-6


@pytest.mark.skipif(not DATA.is_dir(), reason="the folder of example voices is not beside the project")
@pytest.mark.parametrize("file", sorted(DATA.glob("*.wav")), ids=lambda p: p.name)
def test_every_example_voice_reads(file: Path) -> None:
    sound = read_audio(file)
    wave = mono_16k(sound)
    assert sound.seconds > 5 and abs(len(wave) / 16000 - sound.seconds) < 1e-3 and 0.01 < wave.std() < 1


def hum(channels: list[float], seconds: float = 2.0, rate: int = 16_000) -> np.ndarray:
    """One voice in every channel, at these levels."""
    return tones(int(seconds * rate), rate) * np.array([channels], np.float32)


CANCELLING = [([1, -1], 0), ([0.8, -1], 1), ([0.5, -0.5, 0.01], 0), ([0.2, -0.2, 1, -1], 2)]


@pytest.mark.parametrize(("levels", "channel"), CANCELLING)
def test_of_channels_that_cancel_the_loudest_is_heard(levels: list[float], channel: int) -> None:
    clip = AudioClip.from_array(hum(levels), 16_000)
    assert clip.mixdown.channel == channel
    assert np.array_equal(mono_16k(clip), clip.samples[:, channel])
    assert f"only number {channel + 1}" in audio_notes(clip)[0]


@pytest.mark.parametrize("levels", [[1, 1], [1, 0], [0, 1], [1, 0.3], [1, -0.3], [0, 0, 1, 0, 0, 0], [1]])
def test_other_channels_are_averaged(levels: list[float]) -> None:
    clip = AudioClip.from_array(hum(levels), 16_000)
    assert clip.mixdown.channel is None and audio_notes(clip) == ()
    assert np.abs(mono_16k(clip) - clip.samples.mean(axis=1)).max() <= 1e-7


def test_channels_that_cancel_for_a_while_only_are_found_too() -> None:
    together, against = hum([1, 1], 3.0), hum([1, -1], 1.0)
    assert AudioClip.from_array(np.concatenate([together, against]), 16_000).mixdown.channel is not None
    # what is barely audible may cancel
    quiet = AudioClip.from_array(np.concatenate([together, 1e-3 * against]), 16_000)
    assert quiet.mixdown.channel is None
    # the part that is used decides
    assert AudioClip.from_array(np.concatenate([together, against]), 16_000).limited(3.0).mixdown.channel is None


@pytest.mark.parametrize(("level", "told"), [(0.0, "all of it is 0"), (1e-4, "dB"), (0.3, None)])
def test_silence_is_told(level: float, told: str | None) -> None:
    for channels in ([1.0], [1.0, 1.0], [1.0, -1.0]):
        notes = audio_notes(AudioClip.from_array(level * hum(channels), 16_000))
        silent = [note for note in notes if "the sound is silent" in note]
        assert len(silent) == (told is not None) and (told is None or told in silent[0])


@pytest.mark.parametrize("samples", ["text", None, object(), [[1.0], [1.0, 2.0]], [1 + 2j], {"a": 1}])
def test_what_is_no_array_is_refused_in_a_sentence(samples: object) -> None:
    with pytest.raises(AudioError):
        AudioClip.from_array(samples, 16_000)


@pytest.mark.parametrize("rate", [None, "16000", [16_000], True, 0, 1e9, float("inf")])
def test_what_is_no_rate_is_refused_in_a_sentence(rate: object) -> None:
    with pytest.raises(AudioError, match="rate"):
        AudioClip.from_array(np.zeros(100), rate)  # type: ignore[arg-type]


def test_floats_in_the_range_of_integers_are_refused() -> None:
    with pytest.raises(AudioError, match="full scale is 1"):
        AudioClip.from_array(20_000 * hum([1.0]), 16_000)
