"""Many series at the gates at once, and what final answers say of stored bars."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata.calendars import calendar_for
from marketdata.quality import NO_TIMESTAMP, gate, gate_all, withdrawn_labels
from marketdata.spans import Span
from marketdata.types import CLOSE, HIGH, LOW, MINUTE, OPEN, VOLUME, VWAP, Bars, Int64s, Timeframe
from marketdata.types import SeriesKey as Key
from tests.cycles import micros

OPENING = micros("2026-03-12T09:30:00-04:00")
SPAN = Span(OPENING, OPENING + 390 * MINUTE)
NOW = OPENING + 300 * MINUTE
CALENDAR = calendar_for("XNYS", NOW)


def minutes(count: int, first: int = 0) -> Bars:
    values = np.empty((7, count))
    values[OPEN], values[HIGH], values[LOW], values[CLOSE] = 10.0, 10.5, 9.5, 10.25
    values[VOLUME], values[VWAP], values[-1] = 1000.5, 10.1, 12
    return Bars(OPENING + MINUTE * np.arange(first, first + count, dtype=np.int64), values)


def spoil(bars: Bars, kind: str, at: int) -> Bars:
    stamps, values = bars.timestamp.copy(), bars.values.copy()
    if kind == "nan":
        values[CLOSE, at] = np.nan
    elif kind == "range":
        values[HIGH, at] = 1.0
    elif kind == "volume":
        values[VOLUME, at] = -1
    elif kind == "flag":
        values[OPEN, at] = 11.0
    elif kind == "vwap":
        values[VWAP, at] = np.inf
    elif kind == "grid":
        stamps[at] += 1
    elif kind == "unreadable":
        stamps[at] = NO_TIMESTAMP
    elif kind == "window":
        stamps[at] -= 1000 * MINUTE
    elif kind == "forming":
        stamps[at] = NOW - NOW % MINUTE
    elif kind == "repeat":
        stamps[at] = stamps[0]
    return Bars(stamps, values)


KINDS = "clean nan range volume flag vwap grid unreadable window forming repeat".split()  # noqa: SIM905


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["clean", "clean", "flag", *KINDS])),
        max_size=12,
    )
)
def test_together_is_each_by_itself(parts: list[tuple[int, str]]):
    series = {}
    for n, (count, kind) in enumerate(parts):
        bars = minutes(count, first=n)
        series[f"S{n}"] = spoil(bars, kind, count - 1) if count else bars
    together = gate_all(series, span=SPAN, timeframe=Timeframe.MIN_1, calendar=CALENDAR, now_us=NOW)
    assert list(together) == list(series)
    for name, bars in series.items():
        alone = gate(bars, span=SPAN, timeframe=Timeframe.MIN_1, calendar=CALENDAR, now_us=NOW)
        found = together[name]
        assert found.bars.timestamp.tolist() == alone.bars.timestamp.tolist()
        np.testing.assert_array_equal(found.bars.values, alone.bars.values)
        assert (dict(found.rejected), found.flagged, found.cleared) == (
            dict(alone.rejected), alone.flagged, alone.cleared,
        )  # fmt: skip


# ------------------------------------------------------------------------------------ withdrawn


def key(number: int) -> Key:
    return Key("alpaca", "sip", f"S{number}", Timeframe.MIN_1)


def without(bars: Bars, *gone: int) -> Int64s:
    return np.delete(bars.timestamp, gone)


def test_a_missing_bar_is_withdrawn():
    stored = {key(1): minutes(300), key(2): minutes(300)}
    found = withdrawn_labels(
        stored, {key(1): without(stored[key(1)], 7), key(2): stored[key(2)].timestamp}, CALENDAR
    )
    assert {k: v.tolist() for k, v in found.sure.items()} == {key(1): [OPENING + 7 * MINUTE]}
    assert (list(found.suspicious), found.kept) == ([], 0)


@pytest.mark.parametrize(
    ("held", "missing", "believed"),
    [(3, 3, True), (20, 5, True), (20, 6, False), (300, 6, True), (300, 7, False)],
)
def test_more_than_five_and_two_per_cent_is_not_believed(held: int, missing: int, believed: bool):
    stored = {key(n): minutes(390) for n in range(2, 5)} | {key(1): minutes(held)}
    given_labels = {k: bars.timestamp for k, bars in stored.items()}
    given_labels[key(1)] = without(stored[key(1)], *range(missing))
    found = withdrawn_labels(stored, given_labels, CALENDAR)
    assert (key(1) in found.sure) == believed
    assert (key(1) in found.suspicious) == (not believed)
    assert found.kept == (0 if believed else missing)


def test_an_answer_that_lacks_a_little_of_everything_is_not_believed():
    stored = {key(n): minutes(4) for n in range(500)}
    found = withdrawn_labels(stored, {k: without(b, 1) for k, b in stored.items()}, CALENDAR)
    assert found.sure == {}
    assert len(found.suspicious) == found.kept == 500


def test_each_session_is_judged_by_itself():
    today, before = minutes(300), minutes(300)
    before = Bars(before.timestamp - 24 * 60 * MINUTE, before.values)
    stored = {key(1): Bars.concat([before, today])}
    found = withdrawn_labels(stored, {key(1): without(stored[key(1)], *range(8))}, CALENDAR)
    assert list(found.suspicious) == [key(1)]
    spread = [0, 1, 2, 3, 300, 301, 302, 303]
    found = withdrawn_labels(stored, {key(1): without(stored[key(1)], *spread)}, CALENDAR)
    assert len(found.sure[key(1)]) == 8


def test_nothing_stored_is_nothing_withdrawn():
    found = withdrawn_labels({}, {key(1): minutes(3).timestamp}, CALENDAR)
    assert (found.sure, list(found.suspicious)) == ({}, [])
