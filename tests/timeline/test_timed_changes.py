"""A timeline is read as it was written, refused line by line, and laid on the blocks of a video."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.errors import RequestError
from liveavatar.timed_changes import (
    MAX_CHANGES,
    TimedChange,
    block_at,
    changes_by_block,
    check_timeline,
    parse_timeline,
    read_timeline,
)

PROMPTS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20).filter(
    lambda text: not text.lower().startswith("image")
)
MILLISECONDS = st.lists(st.integers(0, 10_000_000), max_size=8, unique=True).map(sorted)


def clock(ms: int, style: int) -> str:
    """A time as people write it: 3723.5, 62:03.5 or 1:02:03.5."""
    seconds, rest = divmod(ms, 1000)
    if style == 0:
        return f"{seconds}.{rest:03d}"
    minutes, seconds = divmod(seconds, 60)
    if style == 1:
        return f"{minutes}:{seconds:02d}.{rest:03d}"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}.{rest:03d}"


@given(MILLISECONDS, st.lists(st.tuples(PROMPTS, st.integers(0, 2), st.sampled_from([":", "："])), min_size=8))
def test_what_is_written_is_read(times: list[int], written: list[tuple[str, int, str]]) -> None:
    lines, expected = ["# a comment", ""], []
    for ms, (prompt, style, colon) in zip(times, written, strict=False):
        lines += [f"{clock(ms, style)}{colon} {prompt}", "  "]
        expected.append((ms / 1000, prompt))
    read = parse_timeline("\n".join(lines))
    assert [(pytest.approx(change.seconds), change.prompt) for change in read] == expected


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_by_its_line(text: str) -> None:
    try:
        changes = parse_timeline(text)
    except RequestError as error:
        assert "Line " in error.what
        assert error.nearest
    else:
        assert all(change.prompt for change in changes)


@pytest.mark.parametrize(
    ("line", "seconds", "prompt"),
    [
        ("0: calm", 0.0, "calm"),
        ("12.5:laughing", 12.5, "laughing"),
        ("  1:05 : She says: no: never ", 65.0, "She says: no: never"),
        ("1:02:03.5: 12: a number", 3723.5, "12: a number"),
        ("1:05: 30 people", 65.0, "30 people"),
        ("5: imagine: a wall", 5.0, "imagine: a wall"),
    ],
)
def test_colons_belong_to_the_prompt(line: str, seconds: float, prompt: str) -> None:
    assert parse_timeline(line) == (TimedChange(seconds, prompt),)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("0: calm\nlaughing", "Line 2 .*no time and colon"),
        ("12,5: laughing", "Line 1 .*no time and colon"),
        ("-3: laughing", "Line 1 .*no time and colon"),
        ("12:30 people", "Line 1 .*two ways"),
        ("1:75: laughing", "Line 1 .*60 minutes or seconds or more"),
        ("3:", "Line 1 .*no prompt"),
        ("5: a\n\n3: b", "Line 3 .*earlier than line 1"),
        ("5: a\n0:05: b", "Line 2 .*same time as line 1"),
        ("5: image: other.png", "Line 1 .*only a timeline of the command line"),
        ("0: a\n" * (MAX_CHANGES + 1), "Line 2 .*same time"),
        ("\n".join(f"{n}: a" for n in range(MAX_CHANGES + 1)), "1,001 changes"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, what: str) -> None:
    with pytest.raises(RequestError, match=what):
        parse_timeline(text)


def test_portraits_are_files_beside_the_timeline(tmp_path: Path) -> None:
    file = tmp_path / "timeline.txt"
    file.write_text("\ufeff0: calm\n3: Image: other face.png\n3: laughing\n", encoding="utf-8")
    first, second, third = read_timeline(str(file))
    assert (first.prompt, second.image, third.prompt) == ("calm", tmp_path / "other face.png", "laughing")
    with pytest.raises(RequestError, match="names no file"):
        parse_timeline("3: image:", tmp_path)


def test_files_that_are_no_timeline_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        read_timeline(str(tmp_path))
    (tmp_path / "latin").write_bytes("0: café".encode("latin-1"))
    with pytest.raises(RequestError, match="UTF-8"):
        read_timeline(str(tmp_path / "latin"))


@given(st.floats(0, 1e5), st.sampled_from([0, 3]))
def test_a_change_begins_with_the_nearest_block(seconds: float, drop: int) -> None:
    begins = (12 * block_at(seconds, drop) - drop) / 25
    assert abs(begins - seconds) <= 0.24 + 1e-6 or block_at(seconds, drop) == 0


def test_a_timeline_lies_on_blocks() -> None:
    changes = parse_timeline("0: calm\n12.5: laughing\n20: image: b.png\n20: sad\n99: late\n100: later", Path("x"))
    found = changes_by_block(changes, 60)
    assert found.first_prompt == "calm"
    assert found.prompts == ((26, "laughing"), (42, "sad"))
    assert found.images == ((42, Path("x/b.png")),)
    assert found.notes == ("2 changes of the timeline, from 99 s on, would come after the end of the video",)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("3: a\n3.1: b", "3 s and 3.1 s fall on the same block"),
        ("0: a\n0.1: b", "0 s and 0.1 s fall"),
        ("0.2: image: b.png", "beginning of the video"),
    ],
)
def test_what_no_block_can_have_is_refused(text: str, what: str) -> None:
    with pytest.raises(RequestError, match=what):
        changes_by_block(parse_timeline(text, Path()), 60)


@pytest.mark.parametrize(
    "changes",
    [
        "0: a",
        (TimedChange(-1.0, "a"),),
        (TimedChange(float("nan"), "a"),),
        (TimedChange(1.0),),
        (TimedChange(1.0, "a", Path("b")),),
        (TimedChange(2.0, "a"), TimedChange(1.0, "b")),
        (TimedChange(True, "a"),),
    ],
)
def test_changes_that_make_no_sense_are_refused(changes: object) -> None:
    with pytest.raises(RequestError):
        check_timeline(changes)  # type: ignore[arg-type]
