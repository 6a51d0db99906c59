"""Speak the project's own sentence with espeak-ng (`apt-get install espeak-ng`).

    python tools/speak_voice.py [FILE.wav]

writes `voice.wav` (22.05 kHz, mono, 16-bit PCM), cut to the speech and with its peak at -3 dB, into
liveavatar/mini/assets, or to FILE.wav. The file in the repository was spoken by espeak-ng 1.51.
"""

from __future__ import annotations

import array
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

SENTENCE = "Hello! I am a live avatar. Give me a picture and a voice, and I will talk."
VOICE = ["-v", "en-us+f3", "-s", "178", "-p", "45"]
PEAK = 10 ** (-3 / 20)
THRESHOLD = 300
"""16-bit amplitude above which there is speech."""
MARGIN_S = 0.06
"""Silence left before and after the speech, in seconds."""


def speak(path: Path) -> tuple[array.array, int]:
    """Let espeak-ng write `path`; returns its 16-bit mono samples and their rate."""
    subprocess.run(["espeak-ng", *VOICE, "-w", str(path), SENTENCE], check=True)
    with wave.open(str(path), "rb") as sound:
        return array.array("h", sound.readframes(sound.getnframes())), sound.getframerate()


def trimmed(samples: array.array, rate: int) -> array.array:
    """Only the speech, with MARGIN_S around it and its peak at -3 dB."""
    loud = [i for i, v in enumerate(samples) if abs(v) > THRESHOLD]
    margin = int(MARGIN_S * rate)
    cut = samples[max(0, loud[0] - margin) : loud[-1] + margin]
    gain = PEAK * 32767 / max(abs(v) for v in cut)
    return array.array("h", (round(v * gain) for v in cut))


def main() -> None:
    root = Path(__file__).parents[1]
    out = Path(sys.argv[1]) if sys.argv[1:] else root / "liveavatar" / "mini" / "assets" / "voice.wav"
    with tempfile.TemporaryDirectory() as folder:
        samples, rate = speak(Path(folder) / "spoken.wav")
    samples = trimmed(samples, rate)
    out.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(out), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(samples.tobytes())
    print(f"{out}: {len(samples) / rate:.2f} s, {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
