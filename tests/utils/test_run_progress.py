"""The share of a whole run: it never falls, whatever comes in which order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.events import (
    DECODING,
    ENCODING_IMAGE,
    ENCODING_PROMPT,
    GENERATING,
    LOADING_VAE,
    WHOLE_RUN,
    Event,
    RunProgress,
    notice_event,
    share_event,
)


@pytest.mark.parametrize("phases", [WHOLE_RUN, DECODING, (ENCODING_PROMPT,)])
def test_a_run_in_order_goes_from_nothing_to_all(phases):
    progress = RunProgress(phases)
    shares = [progress.update(share_event(phase, share)) for phase in phases for share in (0.0, 0.5, 1.0)]
    assert shares[0] == 0 and shares[-1] == pytest.approx(1)
    assert shares == sorted(shares) and len(set(shares)) > len(phases)


def test_most_of_the_bar_is_the_video():
    progress = RunProgress()
    assert 0.2 < progress.update(Event(GENERATING, 0, 8)) < 0.4


def test_a_video_known_to_be_long_is_nearly_all_of_the_bar_and_no_known_one_is_less_than_most():
    assert RunProgress(generating_seconds=3000).update(Event(GENERATING, 0, 8)) == pytest.approx(0.01, abs=0.005)
    assert RunProgress(generating_seconds=2).update(Event(GENERATING, 0, 8)) == pytest.approx(0.3, abs=0.1)


def test_what_was_left_out_counts_as_done_when_the_video_begins():
    one, other = RunProgress(DECODING), RunProgress(DECODING)
    other.update(share_event(LOADING_VAE, 1.0))
    assert one.update(Event(GENERATING, 1, 8)) == other.update(Event(GENERATING, 1, 8))


def test_notices_and_phases_of_others_change_nothing():
    progress = RunProgress(DECODING)
    before = progress.update(share_event(ENCODING_IMAGE, 0.5))
    assert progress.update(notice_event("Paused.")) == before == progress.update(share_event(ENCODING_PROMPT, 1.0))


@given(st.lists(st.tuples(st.sampled_from(WHOLE_RUN), st.integers(0, 100))))
def test_it_never_falls(events):
    progress = RunProgress()
    shares = [progress.update(Event(phase, done, 100)) for phase, done in events]
    assert shares == sorted(shares) and all(0 <= share <= 1 for share in shares)
