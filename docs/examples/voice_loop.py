"""A voice loop: each line that comes in is said by a portrait. `python voice_loop.py PORTRAIT OUT`, lines on stdin.

OUT is a file.mp4 or an address such as rtmp://127.0.0.1/live/key. Any voice that yields PCM goes into `voice`, and
whatever writes the lines, such as a language model, goes in front of it.
"""

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from liveavatar import LiveAvatarPipeline, Request
from liveavatar.live import voices
from liveavatar.live.addresses import parse_address
from liveavatar.live.network import NetworkOutput
from liveavatar.live.recording import TalkRecording
from liveavatar.live.session import LiveSession
from liveavatar.media.image import read_image

MODEL = os.environ.get("LIVE_AVATAR_MODEL", "mini")
REQUEST = Request(size="128x128", prompt="A person talks.")  # the miniature's size; the model's own is 704x384


def voice(text: str) -> Iterator[tuple[np.ndarray, int]]:
    """Pieces of sound, float32 or int16, and their samples per second; here espeak-ng's, all in one."""
    yield voices.speak(text)


def converse(live: LiveSession) -> None:
    for line in filter(str.strip, sys.stdin):
        for samples, rate in voice(line):
            live.push(samples, rate)  # live.interrupt() drops what is not said yet, when somebody breaks in
        live.end_of_speech()
    live.end()


def main(portrait: str, out: str) -> None:
    pipeline = LiveAvatarPipeline.from_pretrained(MODEL)
    with LiveSession(pipeline, read_image(Path(portrait)), REQUEST) as live:
        size = live.resolved.width, live.resolved.height
        sink = NetworkOutput(parse_address(out), *size) if "://" in out else TalkRecording(Path(out), *size)
        show = sink.put if isinstance(sink, NetworkOutput) else sink.write
        threading.Thread(target=converse, args=(live,), daemon=True).start()
        for piece in live.pieces():
            show(piece)
        sink.close()


if __name__ == "__main__":
    main(*sys.argv[1:3])
