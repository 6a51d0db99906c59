"""Judge live talk beside rendered videos: `python -m liveavatar.live.judge [--people N] [--pairs N] [--lookahead S]`.

The same people say the same to both; lips, faces and walls are read from pixels, as `liveavatar.mini.evaluate` does.
With `--pairs`, they are two people in a picture who talk at once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import numpy as np

from ..components import FolderComponents, open_components
from ..errors import ModelError
from ..mini.exam import Exam
from ..mini.judge import ExamEngine, VideoRequest
from ..mini.pair_exam import PairExam
from ..pipeline import LiveAvatarPipeline
from ..request import Request
from .pace import LOOKAHEAD_SECONDS
from .session import LiveSession


class LiveExamEngine(ExamEngine):
    """Makes takes live, as fast as it can.

    Args:
        components, threads: as of `ExamEngine`.
        lookahead: seconds.
    """

    def __init__(self, components: FolderComponents, threads: int = 2, lookahead: float = LOOKAHEAD_SECONDS):
        super().__init__(components, threads)
        self.lookahead = lookahead
        self._pipeline = LiveAvatarPipeline.from_pretrained("mini", threads=threads)

    def frames(self, take: VideoRequest) -> Iterator[np.ndarray]:
        """See `Maker`."""
        height, width = take.picture.shape[:2]
        request = Request(size=f"{width}x{height}", prompt=take.prompt, seed=take.seed)
        left = -(-len(take.wave) * 25 // 16_000)
        masks = () if take.masks is None else tuple(take.masks)
        opened = LiveSession(self._pipeline, take.picture, request, self.lookahead, real_time=False, speakers=masks)
        with opened as live:
            for speaker, wave in enumerate((take.wave, *take.further), 1):
                live.push(wave, 16_000, speaker)
            live.end()
            for block in live.blocks():
                yield block.images[:left]
                left -= len(block.images)


def main() -> None:
    """Print both figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m liveavatar.live.judge", description=__doc__)
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--pairs", type=int, help="judge so many pairs of people in one picture, and nothing else")
    parser.add_argument("--lookahead", type=float, default=LOOKAHEAD_SECONDS)
    given = parser.parse_args()
    components = open_components("mini")
    if not isinstance(components, FolderComponents):
        raise ModelError("The untrained miniature cannot be judged.", "Give a trained model's folder.")
    engines = {"rendered": ExamEngine(components), "live": LiveExamEngine(components, lookahead=given.lookahead)}
    exams = {name: PairExam(e, given.pairs) if given.pairs else Exam(e, given.people) for name, e in engines.items()}
    figures = {name: exam.talking() for name, exam in exams.items()}
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
