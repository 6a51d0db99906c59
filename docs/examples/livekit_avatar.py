"""A LiveKit avatar worker: `python livekit_avatar.py [PORTRAIT]` joins a room and gives an agent's voice a face.

Needs the packages livekit-agents and live-avatar. LIVEKIT_URL and LIVEKIT_TOKEN name the room and admit the avatar. The
agent sends its voice to it:

    session.output.audio = DataStreamAudioOutput(room, destination_identity=IDENTITY_IN_THE_TOKEN)
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
from livekit import rtc
from livekit.agents.voice.avatar import (
    AudioSegmentEnd,
    AvatarOptions,
    AvatarRunner,
    DataStreamAudioReceiver,
    VideoGenerator,
)

from liveavatar import LiveAvatarPipeline, Request
from liveavatar.live.block import LivePiece
from liveavatar.live.session import LiveSession
from liveavatar.media.image import read_image

MODEL = os.environ.get("LIVE_AVATAR_MODEL", "mini")
REQUEST = Request(size="128x128", prompt="A person talks.")  # the miniature's size; the model's own is 704x384
FPS, RATE = 25, 48_000
AHEAD_SECONDS = 5.0  # of speech that may wait here: voices are made faster than they are spoken


class LiveAvatarGenerator(VideoGenerator):
    """Speech in; pictures, their sound and the ends of utterances out."""

    def __init__(self, session: LiveSession):
        self.session = session
        self._segment_ended: float | None = None
        self._cleared = 0.0

    @property
    def options(self) -> AvatarOptions:
        e = self.session.resolved
        return AvatarOptions(e.width, e.height, FPS, RATE, audio_channels=1)

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        if isinstance(frame, AudioSegmentEnd):
            self.session.end_of_speech()
            self._segment_ended = time.monotonic()
            return
        came = time.monotonic()
        while self.session.stats.queued_seconds > AHEAD_SECONDS:
            await asyncio.sleep(0.05)
        if came >= self._cleared:  # else it was interrupted while it waited
            samples = np.frombuffer(frame.data, np.int16).reshape(-1, frame.num_channels)
            self.session.push(samples, frame.sample_rate)

    def clear_buffer(self) -> None:
        self.session.interrupt()
        self._segment_ended, self._cleared = None, time.monotonic()

    def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        return self._frames()

    async def _frames(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        pieces = self.session.pieces()
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            sounds = np.split((piece.audio * 32_767).clip(-32_768, 32_767).astype(np.int16), len(piece.images))
            for image, sound in zip(piece.images, sounds, strict=True):
                yield _video_frame(image)
                if piece.spoken and piece.begun >= self._cleared:
                    yield rtc.AudioFrame(sound.tobytes(), RATE, 1, len(sound))
            if self._all_said(piece):
                self._segment_ended = None
                yield AudioSegmentEnd()

    def _all_said(self, piece: LivePiece) -> bool:
        """Whether a block that began after the end of an utterance found nothing of it left."""
        return self._segment_ended is not None and not piece.spoken and piece.begun > self._segment_ended


def _video_frame(image: np.ndarray) -> rtc.VideoFrame:
    height, width = image.shape[:2]
    opaque = np.full((height, width, 1), 255, np.uint8)
    return rtc.VideoFrame(width, height, rtc.VideoBufferType.RGBA, np.concatenate([image, opaque], 2).tobytes())


async def main(portrait: str) -> None:
    pipeline = LiveAvatarPipeline.from_pretrained(MODEL)
    image = read_image(Path(portrait))
    session = await asyncio.to_thread(LiveSession, pipeline, image, REQUEST)
    room, generator = rtc.Room(), LiveAvatarGenerator(session)
    with session:
        await room.connect(os.environ["LIVEKIT_URL"], os.environ["LIVEKIT_TOKEN"])
        voice = DataStreamAudioReceiver(room)
        runner = AvatarRunner(room, audio_recv=voice, video_gen=generator, options=generator.options)
        await runner.start()
        await runner.wait_for_complete()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "portrait.png"))
