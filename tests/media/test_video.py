"""The written file: picture and sound start together and end together, colours and bytes are right."""

import hashlib
import os
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from media.videos import decoded, frames_of, heard, sound_of, write_film

from liveavatar.errors import AudioError, SizeError
from liveavatar.media.audio import AudioClip
from liveavatar.media.video import VideoWriter, probe
from liveavatar.streams import FrameStream, LatentStream, to_rgb24


@given(
    rate=st.sampled_from([8000, 11025, 16000, 22050, 24000, 44100, 48000, 96000, 5000, 37800, 192000]),
    seconds=st.floats(0.03, 1.7),
    channels=st.sampled_from([1, 2, 6]),
)
def test_picture_and_sound_start_at_zero_and_end_together(tmp_path_factory, rate, seconds, channels):
    path = tmp_path_factory.getbasetemp() / "length.mp4"
    sound = sound_of(int(seconds * rate) + 1, rate, channels)
    frames = -(-len(sound.samples) * 25 // rate)
    writer = write_film(path, frames, sound)
    found = probe(path)
    assert writer.complete and writer.packets_written == found.frames == frames
    assert abs(found.video_start) < 1e-3 and abs(found.audio_start) < 1e-3
    assert found.video_seconds == pytest.approx(frames / 25) and found.fps == pytest.approx(25)
    assert abs(found.av_difference) <= 1.5 / min(rate, 48000)
    assert found.audio_channels == min(channels, 2)
    assert found.audio_rate == {96000: 48000, 192000: 48000, 5000: 8000, 37800: 44100}.get(rate, rate)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000, 96000])
def test_a_click_is_heard_when_it_was_spoken(tmp_path, rate):
    write_film(tmp_path / "a.mp4", 40, sound_of(int(1.6 * rate), rate, click_at=0.7))
    samples, out_rate = heard(tmp_path / "a.mp4")
    assert np.abs(samples).argmax() / out_rate == pytest.approx(0.7005, abs=1.5e-3)


def test_sound_is_cut_at_the_end_of_the_picture_even_when_that_comes_early(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 64, 64, sound_of(10 * 8000, 8000), 250, {}) as writer:
        writer.write(frames_of(17))
    found = probe(tmp_path / "a.mp4")
    assert not writer.complete and found.frames == 17
    assert abs(found.av_difference) <= 1 / 25


def test_a_silent_film_has_no_sound(tmp_path):
    write_film(tmp_path / "a.mp4", 15, None)
    found = probe(tmp_path / "a.mp4")
    assert (found.frames, found.width, found.height) == (15, 64, 64)
    assert found.audio_rate is found.audio_channels is found.audio_start is found.av_difference is None


COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "skin": (224, 172, 105), "grey": (90, 90, 90)}


@pytest.mark.parametrize("rgb", COLOURS.values(), ids=COLOURS)
def test_colours_are_converted_with_the_matrix_the_file_names(tmp_path, rgb):
    with VideoWriter(tmp_path / "a.mp4", 64, 48, None, 13, {}) as writer:
        writer.write(np.broadcast_to(np.uint8(rgb), (13, 48, 64, 3)))
    frame = decoded(tmp_path / "a.mp4")[-1]
    assert frame.format.name == "yuv420p"
    with av.open(str(tmp_path / "a.mp4")) as container:
        tags = container.streams.video[0].codec_context
    assert (tags.colorspace, tags.color_primaries, tags.color_trc, tags.color_range) == (1, 1, 1, 1)
    r, g, b = np.array(rgb) / 255
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b  # BT.709, limited range
    expected = [16 + 219 * y, 128 + 224 * (b - y) / 1.8556, 128 + 224 * (r - y) / 1.5748]
    planes = np.asarray(frame.to_ndarray(), float)
    chroma = planes[48:].reshape(2, -1)
    assert np.abs([planes[:48].mean() - expected[0], *(chroma.mean(1) - expected[1:])]).max() < 1.2


def test_key_frames_stand_at_every_block_and_there_are_no_b_frames(tmp_path):
    write_film(tmp_path / "a.mp4", 40, sound_of(40 * 640, 16000))
    with av.open(str(tmp_path / "a.mp4")) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    assert [i for i, p in enumerate(packets) if p.is_keyframe] == [0, 12, 24, 36]
    assert all(p.pts == p.dts for p in packets)


def test_metadata_comes_back_from_the_header(tmp_path):
    metadata = {"title": "Ein Vídeo", "comment": '{"plan": ["1x1", "ü"], "size": "704x384"}' * 40}
    with VideoWriter(tmp_path / "a.mp4", 64, 64, None, 1, metadata) as writer:
        writer.write(frames_of(1))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert metadata.items() <= container.metadata.items()
    with pytest.raises(ValueError, match="no place for"):
        VideoWriter(tmp_path / "b.mp4", 64, 64, None, 1, {"workflow": "x"})


def test_the_digest_is_over_the_raw_frames_however_they_are_cut(tmp_path):
    frames = frames_of(30)
    for cut in (1, 7, 30):
        with VideoWriter(tmp_path / "a.mp4", 64, 64, None, 30, {}) as writer:
            for start in range(0, 30, cut):
                writer.write(frames[start : start + cut])
        assert writer.frames_sha256 == hashlib.sha256(frames.tobytes()).hexdigest()


def test_a_replayed_frame_stream_gives_the_same_digest_and_file(tmp_path):
    latents = LatentStream(3, lambda: iter(torch.randn(3, 16, 3, 8, 8, generator=torch.Generator().manual_seed(1))))

    def decode(block: torch.Tensor) -> torch.Tensor:
        pixels = block[:3].repeat_interleave(4, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)
        return pixels.tanh()

    files = []
    frames = FrameStream(latents, lambda: decode, 31, 3)
    for name in ("a.mp4", "b.mp4"):
        with VideoWriter(tmp_path / name, 64, 64, sound_of(19840, 16000), 31, {}) as writer:
            for chunk in frames:
                writer.write(to_rgb24(chunk))
        files.append((writer.frames_sha256, (tmp_path / name).read_bytes()))
    assert files[0] == files[1]


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((1, 64, 62, 3), np.uint8),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((1, 3, 64, 64), np.uint8),
        np.zeros((1, 64, 64, 3), np.float32),
        np.zeros((6, 64, 64, 3), np.uint8),
    ],
    ids=["width", "one frame", "channels first", "floats", "too many"],
)
def test_wrong_frames_are_refused_and_nothing_is_created(tmp_path, frames):
    writer = VideoWriter(tmp_path / "a.mp4", 64, 64, None, 5, {})
    with pytest.raises(ValueError, match=r"Frames are|The video has"):
        writer.write(frames)
    writer.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="closed"):
        writer.write(frames_of(1))


def test_sizes_and_sounds_no_encoder_takes_are_refused(tmp_path):
    with pytest.raises(SizeError, match="even"):
        VideoWriter(tmp_path / "a.mp4", 63, 64, None, 1, {})
    nine = AudioClip(np.zeros((640, 9), np.float32), 16000, "nine")
    with pytest.raises(AudioError, match="9 channels"):
        VideoWriter(tmp_path / "a.mp4", 64, 64, nine, 1, {})


def test_memory_stays_flat_over_2000_frames(tmp_path):
    rate = 48000
    samples = np.memmap(tmp_path / "long.f32", np.float32, "w+", shape=(80 * rate, 1))
    chunk = frames_of(20, 128, 128)
    with VideoWriter(tmp_path / "a.mp4", 128, 128, AudioClip(samples, rate, "long"), 2000, {}) as writer:
        for i in range(100):
            writer.write(chunk)
            if i == 20:
                before = _resident()
        assert _resident() - before < 20 * 2**20  # 31 MB of sound pass through the memory map meanwhile
    assert _resident() - before < 20 * 2**20  # and the fragments have become an ordinary MP4
    assert probe(tmp_path / "a.mp4").frames == 2000


def _resident() -> int:
    """Bytes of this process's own memory; pages of files (a memory map) do not count."""
    if sys.platform != "linux":
        return 0
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGESIZE")
