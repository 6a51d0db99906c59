"""What the meter says of figures: a table, and what follows."""

import dataclasses

import pytest

from liveavatar.meter.likeness import Likeness, drift, likeness
from liveavatar.meter.lip_sync import LipSync
from liveavatar.meter.measure import Report, Stretch
from liveavatar.meter.report import report_lines, verdict

CLOSE, FAR = Likeness(0.3, 0.4, 60), Likeness(0.7, 0.9, 60)


def lips(offset: int) -> LipSync:
    return LipSync(offset, 0.7, 0.6, 0.2)


def row(number: int, sync: LipSync, near: Likeness) -> Stretch:
    return Stretch(60.0 * number, 60.0 * number + 60, 1.0, sync, near)


def report(*rows: tuple[LipSync, Likeness], **changed) -> Report:
    minutes = tuple(row(i, *each) for i, each in enumerate(rows))
    whole = dataclasses.replace(minutes[0], stop=60.0 * len(rows))
    made = Report("talk.mp4", 60.0 * len(rows), 1500 * len(rows), "a reader", "the portrait", 0.6, whole, minutes, 0.01)
    return dataclasses.replace(made, **changed)


@pytest.mark.parametrize(
    ("offset", "says"),
    [(0, "are together"), (40, "are together"), (-40, "are together"), (120, "120 ms late"), (-120, "120 ms early")],
)
def test_the_offset_in_words(offset, says):
    assert says in verdict(report((lips(offset), CLOSE)))[0]


def test_lips_that_drift_away():
    assert "0 ms late at first and 200 ms late at last" in verdict(report((lips(0), CLOSE), (lips(200), CLOSE)))[0]


def test_lips_that_cannot_be_compared():
    assert verdict(report((LipSync(why_not="too little speech (0.0 s)"), CLOSE)))[0] == (
        "Lips and sound cannot be compared: too little speech (0.0 s)."
    )


def test_the_face_in_words():
    good = lips(0)
    assert "taken for that of the portrait throughout" in verdict(report((good, CLOSE), (good, CLOSE)))[1]
    assert "From 1:00 on" in verdict(report((good, CLOSE), (good, FAR)))[1]
    moments = dataclasses.replace(CLOSE, farthest=0.8)
    assert "not at every moment from 1:00 on" in verdict(report((good, CLOSE), (good, moments)))[1]
    assert "too seldom" in verdict(report((good, Likeness())))[1]


def test_the_table_has_a_row_per_minute_and_the_last_lines_say_it():
    found = report((lips(0), CLOSE), (LipSync(why_not="no face in most of it"), Likeness()), notes=("it is loud",))
    lines = list(report_lines(found))
    rows = [line.split() for line in lines]
    assert ["0:00-1:00", "100", "%", "+0", "ms", "0.70", "0.20", "0.30", "0.40"] in rows
    assert ["1:00-2:00", "100", "%", "-", "-", "-", "-", "-"] in rows
    assert "note    it is loud" in lines and lines[-2:] == list(verdict(found))


def test_likeness_of_no_face_and_of_some():
    assert likeness([]) == Likeness() and likeness([0.2, 0.4]) == Likeness(0.3, 0.4, 2)


def test_drift_is_growth_in_a_minute():
    times = [float(t) for t in range(120)]
    assert drift(times, [0.2 + 0.1 * t / 60 for t in times]) == pytest.approx(0.1)
    assert drift(times[:5], [0.2] * 5) is None and drift([], []) is None
