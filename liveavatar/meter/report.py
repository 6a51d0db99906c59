"""What the meter found, as a table and in plain sentences."""

from __future__ import annotations

from collections.abc import Iterator

from ..cli.tables import aligned, clock, note_lines
from .measure import Report, Stretch

WITHIN_MS = 45
"""A picture that is late or early by so much counts as being together with the sound: a frame, and what measuring it
is unsure of."""
_COLUMNS = ("time", "face seen", "offset", "correlation", "by chance", "distance", "farthest")


def report_lines(report: Report) -> Iterator[str]:
    """A row per minute, what the figures mean, and last what follows from them."""
    yield f"video   {report.video}, {report.seconds:.2f} s, {report.frames} frames"
    yield f"reader  {report.reader}; distances are to {report.reference}"
    rows = [_COLUMNS, *(_row(minute) for minute in report.minutes)]
    if len(report.minutes) > 1:
        rows.append(("all", *_row(report.whole)[1:]))
    yield from aligned(rows)
    yield "        (offset: + the picture is late; by chance: what lips reach that have nothing to do with the sound;"
    yield f"        distance: up to {report.same_person:g} the reader takes two faces for one person)"
    if report.drift is not None:
        yield f"drift   {report.drift:+.4f} of distance in a minute"
    yield from note_lines(report.notes)
    yield from verdict(report)


def verdict(report: Report) -> tuple[str, str]:
    """What follows from the figures: of the lips, of the face."""
    return _of_lips(report), _of_face(report)


def _row(stretch: Stretch) -> tuple[str, ...]:
    lips, near = stretch.lips, stretch.likeness
    numbers = [lips.correlation, lips.chance, near.distance, near.farthest]
    correlation, chance, distance, farthest = ("-" if n is None else f"{n:.2f}" for n in numbers)
    offset = "-" if lips.offset_ms is None else f"{lips.offset_ms:+d} ms"
    time = f"{clock(stretch.start)}-{clock(stretch.stop)}"
    return time, f"{100 * stretch.seen:.0f} %", offset, correlation, chance, distance, farthest


def _of_lips(report: Report) -> str:
    lips = report.whole.lips
    if lips.offset_ms is None:
        return f"Lips and sound cannot be compared: {lips.why_not}."
    offsets = [m.lips.offset_ms for m in report.minutes if m.lips.offset_ms is not None]
    if offsets and max(offsets) - min(offsets) > 2 * WITHIN_MS:
        first, last = _late(offsets[0]), _late(offsets[-1])
        return f"Lips and sound drift apart: the picture is {first} at first and {last} at last."
    if abs(lips.offset_ms) <= WITHIN_MS:
        return f"Lips and sound are together ({lips.offset_ms:+d} ms, correlation {lips.correlation:.2f})."
    return f"The picture is {_late(lips.offset_ms)} (correlation {lips.correlation:.2f})."


def _late(offset_ms: int) -> str:
    return f"{abs(offset_ms)} ms {'late' if offset_ms >= 0 else 'early'}"


def _of_face(report: Report) -> str:
    known = [m for m in report.minutes if m.likeness.distance is not None]
    if not known:
        return "The face was seen too seldom to be compared."
    other = [m for m in known if (m.likeness.distance or 0.0) > report.same_person]
    if other:
        return f"From {clock(other[0].start)} on the face is no longer taken for that of {report.reference}."
    strange = [m for m in known if (m.likeness.farthest or 0.0) > report.same_person]
    if strange:
        since = clock(strange[0].start)
        return f"The face is taken for that of {report.reference}, but not at every moment from {since} on."
    distance = f"{report.whole.likeness.distance:.2f} of {report.same_person:g}"
    return f"The face is taken for that of {report.reference} throughout (distance {distance})."
