"""A recorded talk is an ordinary MP4: every frame, and the sound to the sample."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from liveavatar.live.audio_feed import OUTPUT_RATE
from liveavatar.live.block import LiveBlock
from liveavatar.live.recording import TalkRecording
from liveavatar.media.video import probe

BLOCK = round(0.48 * OUTPUT_RATE)


def block(number: int) -> LiveBlock:
    """A block that is as grey as its number, with a tone that grows louder."""
    images = np.full((12, 64, 64, 3), 20 * number, np.uint8)
    times = (np.arange(BLOCK) + number * BLOCK) / OUTPUT_RATE
    return LiveBlock(number, images, (0.05 * (1 + number) * np.sin(2764.6 * times)).astype(np.float32), True, 0.0, 0.0)


def test_blocks_become_an_ordinary_file(tmp_path: Path) -> None:
    path = tmp_path / "talk.mp4"
    with TalkRecording(path, 64, 64, {"model": "mini"}) as recording:
        for number in range(5):
            recording.write(block(number))
        assert path.exists(), "it plays while it grows"
    assert recording.seconds == 2.4 and recording.note is None
    found = probe(path)
    assert (found.frames, found.audio_rate, found.audio_channels) == (60, OUTPUT_RATE, 1)
    assert found.av_difference is not None and abs(found.av_difference) < 1e-3
    with av.open(str(path)) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    said = np.concatenate([block(number).audio for number in range(5)])
    skipped = max(range(2100), key=lambda start: float(sound[start : start + 40_000] @ said[:40_000]))
    assert np.corrcoef(sound[skipped : skipped + 100_000], said[:100_000])[0, 1] > 0.99
    with av.open(str(path)) as container:
        assert '"mini"' in container.metadata["comment"]
        assert len(container.streams.video[0].codec_context.extradata or b"") > 0


def test_without_a_block_there_is_no_file(tmp_path: Path) -> None:
    with TalkRecording(tmp_path / "talk.mp4", 64, 64) as recording:
        pass
    assert recording.seconds == 0 and not list(tmp_path.iterdir())
