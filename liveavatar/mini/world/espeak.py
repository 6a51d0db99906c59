"""A command line for the library libespeak-ng, where the program espeak-ng is not installed.

    python espeak.py LIBRARY -v VOICE -s WORDS_PER_MINUTE -p PITCH -- TEXT

It writes a WAV file (mono, 16-bit) to the standard output: the samples that the program of the library's version makes.
It is a process of its own because the library keeps state from one text to the next, and because a crash of it must not
end a training. `voices` runs it by its path; it imports the standard library only, so that it starts quickly.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import os
import sys
import wave
from pathlib import Path

# Constants of espeak-ng's speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_RATE, _PITCH = 1, 3
_PHONEMES, _ENDPAUSE = 0x100, 0x1000
_SYNTH_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class _Voice(ctypes.Structure):
    """espeak_VOICE."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


def synthesize(library: Path, text: str, voice: str, speed: int, pitch: int) -> tuple[bytes, int]:
    """16-bit samples of a spoken text and their rate in Hz; for one text per process.

    Args:
        library: libespeak-ng; the folder espeak-ng-data lies beside it.
        voice, speed, pitch: as those of `voices.speak`.

    Raises:
        OSError: the library or its data cannot be loaded. ValueError: no such voice. RuntimeError: it does not speak.
    """
    engine = ctypes.CDLL(str(library.resolve()))
    os.chdir(library.parent)  # the engine cuts paths of data at 160 characters
    rate = engine.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, b".", _INITIALIZE_DONT_EXIT)
    if rate <= 0:
        raise OSError(f"there is no folder espeak-ng-data beside {library}, or it is incomplete")
    if hasattr(engine, "espeak_ng_SetRandSeed"):  # from version 1.52 on its noise is seeded by the clock
        engine.espeak_ng_SetRandSeed(ctypes.c_long(1))
    samples = bytearray()

    @_SYNTH_CALLBACK
    def collect(wav: int | None, count: int, _events: int) -> int:
        if wav:
            samples.extend(ctypes.string_at(wav, 2 * count))
        return 0

    engine.espeak_SetSynthCallback(collect)
    name = os.fsencode(voice)
    if engine.espeak_SetVoiceByName(name) and engine.espeak_SetVoiceByProperties(ctypes.byref(_Voice(languages=name))):
        raise ValueError("there is no such voice")
    engine.espeak_SetParameter(_RATE, speed, 0)
    engine.espeak_SetParameter(_PITCH, pitch, 0)
    data = os.fsencode(text) + b"\0"
    failed = engine.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 0, 0, _PHONEMES | _ENDPAUSE, None, None)
    if failed or engine.espeak_Synchronize():
        raise RuntimeError("the engine could not speak the text")
    return bytes(samples), rate


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("library", type=Path)
    parser.add_argument("-v", dest="voice", required=True)
    parser.add_argument("-s", dest="speed", type=int, required=True)
    parser.add_argument("-p", dest="pitch", type=int, required=True)
    parser.add_argument("text")
    args = parser.parse_args()
    try:
        samples, rate = synthesize(args.library, args.text, args.voice, args.speed, args.pitch)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(str(error))
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples)
    sys.stdout.buffer.write(file.getvalue())


if __name__ == "__main__":
    main()
