"""The parts of the exam that are looked at: people side by side, and one person over minutes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..config import FPS
from .exam import WINDOW, Exam, drawn, mask_of, plain, stop_of
from .figures import distance
from .sheet import Row
from .world.sample import Sample

SHORTEST_LONG_RUN = 4.0
"""Seconds: second 2 and the end do not overlap."""
_SHEET_SECONDS = 8
_COLUMNS = 7


def people_sheet(exam: Exam, people: int, with_truth: bool = False) -> list[Row]:
    """A row per person: the reference, then a frame a second of what the engine makes of one of their prompts."""
    rows = []
    frames = [FPS * second for second in range(1, _SHEET_SECONDS + 1)]
    captions = ["reference", *(f"{second} s" for second in range(1, _SHEET_SECONDS + 1))]
    for index in range(people):
        exam.log(f"sheet: {index + 1} of {people}")
        example = exam.example(index, _SHEET_SECONDS + 0.2)
        made = exam.make(example)
        asked = f'"{example.prompt.text}"' if example.prompt.text else "nothing"
        title = f"asked: {asked}   heard: {_voice(example)}"
        rows.append(Row([example.reference, *made[frames]], title, captions if index == 0 else ()))
        if with_truth:
            rows.append(Row([example.reference, *drawn(example, frames)], "as drawn"))
    return rows


@dataclasses.dataclass(frozen=True, eq=False)
class Watched:
    """What was seen of a long video.

    Attributes:
        distances: to the reference outside mouth and eyes, by frame.
        pictures: uint8 [H, W, 3], by frame.
    """

    distances: dict[int, float]
    pictures: dict[int, np.ndarray]


def endurance(exam: Exam, seconds: float, people: int, with_truth: bool = False) -> tuple[dict[str, object], list[Row]]:
    """Likeness as in `Exam.identity` at second 2, every minute and at the end; and the first person's contact sheet.

    Every person talks for so long. Frames are looked at as they come and only the sheet's are kept, so memory does not
    grow with the length; the truth is drawn only where it is compared.
    """
    total = round(seconds * FPS)
    stops = {2.0: stop_of(2)} | {float(s): stop_of(s) for s in range(60, int(seconds - 1), 60)} | {seconds: total}
    shots = max(6, round(seconds / 30))
    shown = [round(k * total / shots) - 1 for k in range(1, shots + 1)]
    ratios: list[list[float]] = []
    rows: list[Row] = []
    for index in range(people):
        example = plain(exam.example(index, seconds))
        who = f"endurance, person {index + 1} of {people}"
        blocks = _telling(exam, exam.engine.frames(exam.request(example)), who, seconds)
        windows = [range(stop - WINDOW, stop) for stop in stops.values()]
        watched = watch(blocks, example, windows, shown if index == 0 else ())
        made = [float(np.mean([watched.distances[i] for i in window])) for window in windows]
        ratios.append([m / exam.own_distance(example, w.stop) for m, w in zip(made, windows, strict=True)])
        rows = rows or _rows(example, watched.pictures, with_truth)
    means = [round(float(np.mean(column)), 3) for column in zip(*ratios, strict=True)]
    by_second = {f"{second:g}": mean for second, mean in zip(stops, means, strict=True)}
    figures: dict[str, object] = {"seconds": seconds, "people": people, "at_2_s": means[0], "at_end": means[-1]}
    return figures | {"by_second": by_second, "at_end_by_person": [round(r[-1], 3) for r in ratios]}, rows


def watch(blocks: Iterable[np.ndarray], example: Sample, windows: Sequence[range], shown: Iterable[int]) -> Watched:
    """Distances of a video as it comes within the windows, pictures of the frames shown, and nothing else."""
    judged, kept = {i for window in windows for i in window}, set(shown)
    mask, watched, first = mask_of(example), Watched({}, {}), 0
    for block in blocks:
        for i, frame in enumerate(block, first):
            if i in judged:
                watched.distances[i] = distance(frame, example.reference, mask)
            if i in kept:
                watched.pictures[i] = frame.copy()
        first += len(block)
    return watched


def _voice(example: Sample) -> str:
    """Who speaks, without the words."""
    return example.sound.description.split(":")[0]


def _telling(exam: Exam, blocks: Iterable[np.ndarray], who: str, seconds: float) -> Iterator[np.ndarray]:
    """The blocks, telling the log every ten seconds of video."""
    made = 0
    exam.log(f"{who}: listening")
    for block in blocks:
        before, made = made, made + len(block)
        if before // (10 * FPS) != made // (10 * FPS):
            exam.log(f"{who}: second {made // FPS} of {seconds:g}")
        yield block


def _rows(example: Sample, pictures: dict[int, np.ndarray], with_truth: bool) -> list[Row]:
    """The reference and then the pictures, with the times at which they end, in rows of equal length."""
    cells = [example.reference, *pictures.values()]
    captions = ["reference", *(f"{(i + 1) // FPS // 60}:{(i + 1) // FPS % 60:02}" for i in pictures)]
    truth = [example.reference, *drawn(example, list(pictures))] if with_truth else []
    rows = []
    for i in range(0, len(cells), _COLUMNS):
        part = slice(i, i + _COLUMNS)
        rows.append(Row(cells[part], f"heard: {_voice(example)}" if i == 0 else "", captions[part]))
        if with_truth:
            rows.append(Row(truth[part], "as drawn"))
    return rows
