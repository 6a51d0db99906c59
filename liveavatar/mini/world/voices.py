"""Speech to train and to judge with: made by espeak-ng when it is needed, in many voices, and never kept.

Only making training data needs espeak-ng. It is under the GPL and no part of this project: the program, or the library
in the development package espeakng-loader, runs as a process of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from ...config import AUDIO_SAMPLE_RATE
from ...errors import MissingFilesError
from . import sounds
from .texts import HELD_OUT_LANGUAGES, WORDS, text

VARIANTS = ("m1", "m2", "m3", "m4", "m6", "m7", "f1", "f2", "f4", "klatt2", "Andy", "Annie", "Gene", "grandpa", "steph")
HELD_OUT_VARIANTS = ("f3", "m5", "Denis", "linda")
"""espeak-ng's voices; the second ones are never heard in training."""
_UTTERED = 0x5AEE


@dataclasses.dataclass(frozen=True, eq=False)
class Utterance:
    """A sound and the speech in it.

    Attributes:
        samples: float32 [n], 16 kHz, what the network hears: speech, pauses, noise, music-like tones; within -1..1.
        speech: float32 [n], only what moves the mouth; zeros where nobody speaks.
        description: voice, text, noise, for people.
    """

    samples: np.ndarray
    speech: np.ndarray
    description: str

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / AUDIO_SAMPLE_RATE


def espeak_command() -> list[str]:
    """The command line of espeak-ng up to its options: the program on the PATH, else the library of espeakng-loader.

    Raises:
        MissingFilesError: neither is on this machine.
    """
    program = shutil.which("espeak-ng")
    if program is not None:
        return [program, "--stdout", *_seeded(program)]
    if importlib.util.find_spec("espeakng_loader") is not None:
        import espeakng_loader

        library = espeakng_loader.get_library_path()
        return [sys.executable, "-I", "-S", str(Path(__file__).with_name("espeak.py")), library]
    raise MissingFilesError(
        "Speech for the drawn world is made by espeak-ng, which is not on this machine.",
        "Install its program (on Debian and Ubuntu: apt-get install espeak-ng) "
        "or its library (the Python package espeakng-loader).",
    )


@functools.cache
def _seeded(program: str) -> list[str]:
    """The option of espeak-ng for the same noise each time: from version 1.52 on, which else seeds it by the clock."""
    shown = subprocess.run([program, "--help"], capture_output=True, check=False, timeout=60).stdout
    return ["-D"] if b"\n-D" in shown else []


def speak(words: str, voice: str = "en-us+f3", speed: int = 165, pitch: int = 50) -> np.ndarray:
    """Let espeak-ng speak: float32 [n] at 16 kHz, as loud as the voice is.

    Args:
        voice: `language` or `language+variant`; speed: words per minute, 80..450; pitch: 0..99.

    Raises:
        MissingFilesError: no espeak-ng on this machine, or not this voice.
    """
    command = [*espeak_command(), "-v", voice, "-s", str(speed), "-p", str(pitch), "--", words]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    if done.returncode or len(done.stdout) <= 44:
        raise MissingFilesError(
            f"espeak-ng cannot speak with the voice {voice!r}: {done.stderr.decode(errors='replace').strip()}",
            "A voice is a language and perhaps a variant, such as en-us or en-us+f3.",
        )
    # The header of a streamed file does not know its length, but is always 44 bytes; the rate stands at byte 24.
    rate = int.from_bytes(done.stdout[24:28], "little")
    samples = np.frombuffer(done.stdout[44 : len(done.stdout) // 2 * 2], "<i2").astype(np.float32) / 32768
    return sounds.resampled(samples, rate)


def utterance(seed: int, seconds: float | None = None, held_out: bool = False) -> Utterance:
    """A sound of a seed: mostly one voice speaking, with pauses, at times in noise; now and then no speech at all.

    Args:
        seconds: exact length; None: 4 to 10 s.
        held_out: with a voice and a language that training never hears.

    Raises:
        MissingFilesError: no espeak-ng.
    """
    rng = np.random.default_rng([_UTTERED, seed, int(held_out)])
    n = round((float(rng.uniform(4, 10)) if seconds is None else seconds) * AUDIO_SAMPLE_RATE)
    kind = rng.random()
    if kind < 0.06:
        return _wordless(rng, n)
    speech, said = _speech(rng, n, held_out)
    gain = 10 ** (rng.uniform(-30, -16) / 20) / max(1e-6, float(np.sqrt(np.mean(speech**2))))
    speech *= np.float32(min(gain, 0.95 / max(1e-6, float(np.abs(speech).max()))))
    if kind < 0.5:
        return Utterance(speech, speech, said)
    noise, name = sounds.noise(rng, n)
    ratio = float(rng.uniform(8, 35))
    loud = float(np.sqrt(np.mean(speech**2))) * 10 ** (-ratio / 20)
    samples = np.clip(speech + noise * np.float32(loud), -1, 1)
    return Utterance(samples, speech, f"{said}, in {name} {ratio:.0f} dB below")


def _wordless(rng: np.random.Generator, n: int) -> Utterance:
    nothing = np.zeros(n, np.float32)
    if rng.random() < 0.35:
        return Utterance(nothing, nothing, "silence")
    noise, name = sounds.noise(rng, n)
    return Utterance(np.clip(noise * np.float32(10 ** (rng.uniform(-60, -20) / 20)), -1, 1), nothing, name)


def _speech(rng: np.random.Generator, n: int, held_out: bool) -> tuple[np.ndarray, str]:
    """Sentences with pauses between them, [n]."""
    known = HELD_OUT_LANGUAGES if held_out else tuple(w for w in WORDS if w not in HELD_OUT_LANGUAGES)
    language = str(rng.choice(known))
    voice = f"{language}+{rng.choice(HELD_OUT_VARIANTS if held_out else VARIANTS)}"
    speed, pitch = int(rng.integers(120, 190)), int(rng.integers(20, 80))
    out, at, said = np.zeros(n, np.float32), round(rng.uniform(0, 0.6) * AUDIO_SAMPLE_RATE), []
    while at < n:
        said.append(text(rng, language, int(rng.integers(4, 14))))
        part = speak(said[-1], voice, speed, pitch)[: n - at]
        out[at : at + len(part)] = part
        at += len(part) + round(rng.uniform(0.1, 1.2) * AUDIO_SAMPLE_RATE)
    return out, f"{voice} at {speed} words a minute: {' '.join(said)}"
