"""The example of a LiveKit avatar worker does what LiveKit's runner wants of it, with LiveKit's own types."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from liveavatar.live.session import LiveSession

avatar = pytest.importorskip("livekit.agents.voice.avatar", reason="needs livekit-agents (tests/live/README.md)")
rtc = pytest.importorskip("livekit.rtc")
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "livekit_avatar.py"
RATE = 24_000


@pytest.fixture(scope="module")
def example() -> Any:
    specification = importlib.util.spec_from_file_location("livekit_avatar", EXAMPLE)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def speech(seconds: float) -> Any:
    samples = (8000 * np.sin(np.arange(round(seconds * RATE)) / 10)).astype(np.int16)
    return rtc.AudioFrame(samples.tobytes(), RATE, 1, len(samples))


class Room(rtc.EventEmitter):
    """Stands in for a room: no server is reached."""

    def __init__(self) -> None:
        super().__init__()
        self.local_participant = SimpleNamespace(publish_track=self.publish)
        self.published: list[str] = []

    def isconnected(self) -> bool:
        return True

    async def publish(self, track: Any, options: Any) -> Any:
        async def subscribed() -> None:
            pass

        self.published.append(track.name)
        return SimpleNamespace(wait_for_subscription=subscribed)


def test_frames_sound_and_the_end_of_an_utterance_come_out(
    example: Any, open_session: Callable[..., LiveSession]
) -> None:
    async def scenario() -> None:
        generator = example.LiveAvatarGenerator(open_session())
        assert isinstance(generator, avatar.VideoGenerator)
        options = generator.options
        assert (options.video_width, options.video_height, options.audio_sample_rate) == (64, 64, 48_000)
        await generator.push_audio(speech(0.7))
        await generator.push_audio(avatar.AudioSegmentEnd())
        videos, sounds = 0, []
        async with asyncio.timeout(60):
            async for frame in generator:
                if isinstance(frame, avatar.AudioSegmentEnd):
                    break
                if isinstance(frame, rtc.VideoFrame):
                    assert (frame.width, frame.height, len(frame.data)) == (64, 64, 64 * 64 * 4)
                    videos += 1
                else:
                    assert (frame.sample_rate, frame.num_channels, frame.samples_per_channel) == (48_000, 1, 1920)
                    sounds.append(np.frombuffer(frame.data, np.int16))
        said = np.concatenate(sounds)
        assert np.count_nonzero(np.abs(said) > 500) > 0.5 * 0.7 * 48_000, "all of it was said"
        assert videos >= len(sounds)

    asyncio.run(scenario())


def test_an_interruption_drops_what_waits_and_what_waited_to_be_pushed(
    example: Any, open_session: Callable[..., LiveSession]
) -> None:
    async def scenario() -> None:
        session = open_session()
        generator = example.LiveAvatarGenerator(session)
        for _ in range(6):
            await generator.push_audio(speech(1.0))
        late = asyncio.ensure_future(generator.push_audio(speech(1.0)))
        await asyncio.sleep(0.1)
        generator.clear_buffer()
        await late
        assert session.stats.queued_seconds == 0
        heard, silent = 0, 0
        async with asyncio.timeout(60):
            async for frame in generator:
                heard += isinstance(frame, rtc.AudioFrame)
                silent += isinstance(frame, rtc.VideoFrame)
                if silent == 48:
                    break
        assert heard == 0, "blocks that were taken before fall silent, too"

    asyncio.run(scenario())


def test_livekits_own_runner_plays_it(example: Any, open_session: Callable[..., LiveSession]) -> None:
    async def scenario() -> None:
        generator, room = example.LiveAvatarGenerator(open_session()), Room()
        voice = avatar.QueueAudioOutput(sample_rate=RATE)
        finished: list[Any] = []
        voice.on("playback_finished", finished.append)
        runner = avatar.AvatarRunner(room, audio_recv=voice, video_gen=generator, options=generator.options)
        await runner.start()
        await voice.capture_frame(speech(0.7))
        voice.flush()
        async with asyncio.timeout(60):
            while not finished:
                await asyncio.sleep(0.05)
        assert room.published == ["avatar_audio", "avatar_video"]
        assert finished[0].playback_position >= 0.7 and not finished[0].interrupted
        await runner.aclose()

    asyncio.run(scenario())
