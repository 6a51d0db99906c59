"""Messages are read or refused with a sentence; nothing that is sent breaks the reader."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.errors import RequestError
from liveavatar.live.contract import MESSAGES, Message, error_message, parse, samples_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({name for fields in MESSAGES.values() for name in fields})


def test_a_message_is_what_was_sent() -> None:
    text = json.dumps({"type": "start", "prompt": "Hello.", "seed": 3, "lookahead": 0})
    assert parse(text) == Message("start", {"prompt": "Hello.", "seed": 3, "lookahead": 0})


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "no JSON"),
        ("[1]", 'no object with a "type"'),
        ('{"type": "sey"}', "Did you mean say?"),
        ('{"type": "say"}', "lacks its field text"),
        ('{"type": "say", "text": 3}', "say.text is 3. Give a text"),
        ('{"type": "say", "text": "a", "loud": 1}', "no field 'loud'. It has text, voice"),
        ('{"type": "start", "areas": "left"}', "start.areas is 'left'. Give a list of texts"),
        ('{"type": "start", "areas": ["left", "up"]}', "start.areas holds 'up'. Use left or right"),
        ('{"type": "mask"}', "lacks its field speaker"),
        ('{"type": "audio", "rate": true, "encoding": "s16le"}', "audio.rate is True"),
        ('{"type": "audio", "rate": 8000, "encoding": "mp3"}', "Use s16le or f32le"),
        pytest.param("[" * 60_000, "no JSON", id="nested"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(text)
    assert said in str(caught.value)
    assert error_message(caught.value)["code"] == "RequestError"


@given(st.sampled_from(sorted(MESSAGES)), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
def test_any_message_is_read_or_refused(kind: str, fields: dict[str, object]) -> None:
    try:
        message = parse(json.dumps({"type": kind, **fields}))
    except RequestError:
        return
    assert set(message.fields) <= set(MESSAGES[kind])


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(RequestError):
        parse(text)


def test_sound_of_both_encodings() -> None:
    whole = np.array([0, 1, -32768, 32767], "<i2")
    assert np.array_equal(samples_of(whole.tobytes(), "s16le"), whole)
    floats = np.array([0.0, -1.0, 0.25], "<f4")
    assert np.array_equal(samples_of(floats.tobytes(), "f32le"), floats)
    with pytest.raises(RequestError, match="no whole samples"):
        samples_of(b"abc", "s16le")
