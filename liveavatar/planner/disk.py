"""What a video takes in the folder for temporary files, known and checked before anything is made."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile

from ..config import AUDIO_SAMPLE_RATE, BLOCK_FRAMES, BLOCK_LATENTS, ModelConfig
from ..errors import OutputError
from ..request import ResolvedRequest
from ..spool import MEMORY_BYTES
from ..utils import format_bytes

_FLOAT, _LATENT_CHANNELS = 4, 16
_TOLD_BYTES = 10**9
"""Less is not worth a line."""


@dataclasses.dataclass(frozen=True)
class TemporaryBytes:
    """Bytes that lie in the folder for temporary files while a video is made.

    Attributes:
        latents: of all blocks, until the video is let go.
        features: of the audio, for all frames; 0 where they stay in memory, or the audio is long.
        audio: the 16 kHz samples that are encoded; 0 where they stay in memory. The samples of the file lie there
            already when this is known.
    """

    latents: int
    features: int
    audio: int

    @classmethod
    def of(cls, resolved: ResolvedRequest, config: ModelConfig) -> TemporaryBytes:
        """Those of a request."""
        height, width = resolved.latent_size
        frames, speakers = resolved.blocks * BLOCK_FRAMES, resolved.speaker_count
        features = _spooled(_FLOAT * config.audio_layers * config.audio_dim * frames)
        return cls(
            latents=_FLOAT * _LATENT_CHANNELS * BLOCK_LATENTS * height * width * resolved.blocks,
            features=0 if resolved.long_audio else speakers * features,
            audio=speakers * _spooled(_FLOAT * round(resolved.seconds * AUDIO_SAMPLE_RATE)),
        )

    @property
    def total(self) -> int:
        """All of them."""
        return self.latents + self.features + self.audio

    def note(self) -> str | None:
        """A sentence for whoever plans a long video; None where it is little and there is room."""
        free = _free_bytes()
        if self.total < _TOLD_BYTES and (free is None or free > self.total):
            return None
        room = "" if free is None else f", where {format_bytes(free)} are free"
        return (
            f"{format_bytes(self.total)} go to the temporary folder {tempfile.gettempdir()}{room} "
            f"(latents {format_bytes(self.latents)}, audio {format_bytes(self.features + self.audio)})"
        )

    def check(self) -> None:
        """Make sure that there is room.

        Raises:
            OutputError: there is not.
        """
        free = _free_bytes()
        if free is not None and free < self.total:
            raise OutputError(
                f"The video takes {format_bytes(self.total)} of the temporary folder {tempfile.gettempdir()}, where "
                f"{format_bytes(free)} are free.",
                "Free some space there, point the environment variable TMPDIR at a folder with more, or ask for fewer "
                "seconds.",
            )


def _spooled(nbytes: int) -> int:
    return nbytes if nbytes > MEMORY_BYTES else 0


def _free_bytes() -> int | None:
    """Bytes free in the folder for temporary files; None where that is not known."""
    try:
        return shutil.disk_usage(tempfile.gettempdir()).free
    except OSError:
        return None
