"""What was known at a moment, from bars and their trail, without a store."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata.bar_history import (
    Arrivals,
    Resting,
    Trail,
    TrailEntries,
    as_of,
    punctual_until,
    resting,
    state_of,
)
from marketdata.drift import APPEARED, BARS, RETURNED, WITHDRAWN, changes_by_field
from marketdata.spans import Span
from marketdata.types import DAY, HOUR, MINUTE, Bars, Floats, Stage, Timeframe, revision_of

Known = dict[int, float | None]
"""By label the value of a bar; None where it is withdrawn."""

SECOND = 1_000_000


def bars_of(known: Known) -> Bars:
    live = sorted((label, value) for label, value in known.items() if value is not None)
    values = np.repeat(np.array([v for _, v in live], np.float64)[None], 7, axis=0)
    return Bars(np.array([label for label, _ in live], np.int64), np.ascontiguousarray(values))


def entries_of(rows: list[tuple[int, int, int, float | None, float | None]]) -> TrailEntries:
    """Entries given as (label, old revision, new revision, old value, new value), in any order."""
    rows = sorted(rows, key=lambda row: (row[0], row[2]))
    count = len(rows)

    def values(place: int) -> Floats:
        column = [np.nan if row[place] is None else row[place] for row in rows]
        return np.repeat(np.array(column, np.float64)[None], 7, axis=0).reshape(7, count)

    return TrailEntries(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.int64),
        np.ones(count, np.int64),
        values(3),
        values(4),
        np.array([row[3] is None for row in rows], np.bool_),
        np.array([row[4] is None for row in rows], np.bool_),
    )


def assert_same(found: Bars, expected: Bars) -> None:
    assert found.timestamp.tolist() == expected.timestamp.tolist()
    np.testing.assert_array_equal(found.values, expected.values)


OBSERVATIONS = st.lists(
    st.tuples(
        st.integers(0, 5),  # label
        st.sampled_from([1, 1, 2, 3]),  # stage
        st.integers(1, 60),  # observed, in seconds
        st.none() | st.integers(1, 4).map(float),
    ),
    max_size=40,
)


@given(OBSERVATIONS, st.lists(st.integers(0, 61), min_size=1, max_size=8))
@settings(max_examples=300)
def test_bars_and_trail_say_what_a_replay_of_the_observations_says(observations, moments):
    """Each observation replaces a bar of a lower revision with another value; what was observed
    first counts as known from the beginning."""
    stored: dict[int, tuple[int, float | None]] = {}
    chain: dict[int, list[tuple[int, int, float | None]]] = {}
    rows = []
    for label, stage, second, value in observations:
        observed = second * SECOND
        revision = revision_of(stage, observed)
        known = stored.get(label)
        if known is not None and (revision <= known[0] or value == known[1]):
            continue
        stored[label] = revision, value
        if known is None and value is None:
            chain[label] = [(revision, observed, None)]
            continue  # a withdrawal of what never was leaves no bar and no entry
        chain.setdefault(label, []).append((revision, observed, value))
        if known is not None:
            rows.append((label, known[0], revision, known[1], value))
    now = bars_of({label: value for label, (_, value) in stored.items()})
    entries = entries_of(rows)
    for second in moments:
        moment = second * SECOND
        expected: Known = {}
        for label, seen in chain.items():
            by_then = [each for each in seen if each[1] <= moment]
            expected[label] = max(by_then)[2] if by_then else seen[0][2]
        assert_same(as_of(now, entries, moment), bars_of(expected))


def test_a_bar_withdrawn_later_is_still_there_and_one_back_later_is_not():
    final = int(Stage.FINAL)
    first, second = revision_of(final, 100 * SECOND), revision_of(final, 200 * SECOND)
    entries = entries_of([(1, 0, first, 5.0, None), (1, first, second, None, 6.0)])
    now = bars_of({1: 6.0, 2: 7.0})
    assert_same(as_of(now, entries, 99 * SECOND), bars_of({1: 5.0, 2: 7.0}))
    assert_same(as_of(now, entries, 100 * SECOND), bars_of({2: 7.0}))
    assert as_of(now, entries, 200 * SECOND) is now


def test_without_entries_the_bars_are_what_was_known():
    now = bars_of({1: 6.0})
    assert as_of(now, TrailEntries.empty(), 0) is now


def test_the_bars_given_are_not_changed():
    now = bars_of({1: 6.0, 2: 7.0})
    entries = entries_of([(1, 0, revision_of(3, 9 * SECOND), 5.0, 6.0)])
    as_of(now, entries, 0)
    assert_same(now, bars_of({1: 6.0, 2: 7.0}))


# ---------------------------------------------------------------------------------- what it rests on


def arrivals(*rows: tuple[int, int, int]) -> Arrivals:
    columns = np.array(rows, np.int64).reshape(-1, 3).T
    return Arrivals(*columns)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9), st.integers(0, 9)), max_size=6),
    st.sets(st.integers(0, 40), max_size=20),
    st.integers(0, 9),
    st.integers(0, 40),
    st.integers(0, 40),
)
def test_late_bars_are_counted_once(stretches, labels, moment, start, end):
    rows = [(first, first + length, observed) for first, length, observed in stretches]
    stamps = [label for label in sorted(labels) if start <= label < end]
    expected = sum(any(a <= t <= b and o > moment for a, b, o in rows) for t in stamps)
    trail = Trail(arrivals=arrivals(*rows))
    found = resting(trail, Span(start, end), np.array(stamps, np.int64), moment, 0)
    assert found.late == expected


def test_the_word_says_when_what_is_answered_came_and_nothing_else():
    span, stamps = Span(10, 20), np.arange(10, 20)

    def word(*rows: tuple[int, int, int], moment: int = 5) -> str:
        trail = Trail(arrivals=arrivals(*rows))
        return resting(trail, span, stamps, moment, 0).arrivals

    assert word() == word((10, 12, 5)) == word((30, 40, 9)) == "0"
    assert word((10, 30, 9)) == word((3, 40, 9))  # beyond what was asked for
    assert len({word((10, 12, 9)), word((10, 12, 8)), word((10, 13, 9)), "0"}) == 4


def test_a_trail_reaches_back_to_the_last_change_without_an_entry():
    assert Trail().complete_since(0)
    assert Trail(untrailed_until=50).complete_since(50)
    assert not Trail(untrailed_until=50).complete_since(49)


def test_what_several_parts_rest_on_is_added_up():
    assert Resting.joined([None, None]) is None
    one, other = Resting(2, False, "ab", 7), Resting(3, True, "0", 9)
    assert Resting.joined([None, one]) is one
    both = Resting.joined([one, other])
    assert both is not None
    assert (both.late, both.untrailed, both.closed_until) == (5, True, 9)
    assert both.arrivals != "0"
    assert Resting.joined([Resting(), Resting()]) == Resting()


# ------------------------------------------------------------------------------------------- words


def test_states_are_named():
    assert [state_of(int(stage)) for stage in Stage] == ["closed", "revised", "final"]
    assert state_of(3, 3) == "verified"
    assert state_of(3, 2) == "final"
    assert state_of(1, 1) == "closed"


def test_a_bar_is_punctual_for_minutes_and_a_day_until_the_next_noon():
    assert punctual_until(Timeframe.MIN_1) == 6 * MINUTE
    assert punctual_until(Timeframe.HOUR_1) == HOUR + 5 * MINUTE
    assert punctual_until(Timeframe.DAY_1) == DAY + 12 * HOUR


def test_changes_are_counted_by_field():
    old = np.ones((7, 4))
    new = old.copy()
    new[3, 0] = 1.5
    new[3, 1] = 0.9
    old[5, 1] = np.nan
    gone, back = np.array([0, 0, 1, 0], np.bool_), np.array([0, 0, 0, 1], np.bool_)
    assert changes_by_field(old, new, back, gone, np.zeros(4, np.bool_)) == {
        BARS: (4, 0.0),
        "close": (2, 0.5),
        "vwap": (1, 0.0),
        WITHDRAWN: (1, 0.0),
        RETURNED: (1, 0.0),
    }
    seen = changes_by_field(old, new, back, gone, back)
    assert seen[APPEARED] == (1, 0.0)
    assert RETURNED not in seen
