"""Resampling against a slow computation of its own, with wall clocks instead of arrays."""

from __future__ import annotations

import math
from datetime import date, datetime, timedelta
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import exchange_calendars
import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata.calendars import TradingCalendar
from marketdata.clock import from_micros, to_micros
from marketdata.resample import bar_labels, bar_span, base_span, closed_until, resample
from marketdata.spans import Span
from marketdata.types import DAY, HOUR, MINUTE, Bars, Session, Timeframe
from tests.shared_data import SHARED, needs_shared_data

NEW_YORK = ZoneInfo("America/New_York")
# Both clock changes, half-days, holidays, ad-hoc closures, and common days.
STRETCHES = [
    (date(2024, 3, 7), 6),
    (date(2024, 10, 31), 6),
    (date(2024, 7, 2), 4),
    (date(2024, 11, 27), 6),
    (date(2024, 12, 23), 5),
    (date(2012, 10, 26), 6),
    (date(2018, 12, 4), 3),
    (date(1987, 10, 19), 3),
]
INTRADAY = [t for t in Timeframe if t.intraday]
stretches = st.sampled_from(STRETCHES)
sessions = st.sampled_from(["regular", "extended"])


@lru_cache
def our_calendar() -> TradingCalendar:
    return TradingCalendar.build("XNYS", date(2025, 12, 31))


@lru_cache
def closes() -> dict[date, int]:
    """Return the hour at which each session's regular hours end, from exchange_calendars."""
    source = exchange_calendars.get_calendar("XNYS", start="1980-01-01", end="2025-12-31")
    local = source.closes.dt.tz_localize("UTC") if source.closes.dt.tz is None else source.closes
    return {
        day.date(): close.hour for day, close in local.dt.tz_convert("America/New_York").items()
    }


def slow_label(stamp: int, timeframe: Timeframe, session: Session) -> datetime | None:
    """Return the wall-clock time of the bin that holds `stamp`, or None outside the hours."""
    wall = from_micros(stamp).astimezone(NEW_YORK).replace(tzinfo=None)
    close = closes().get(wall.date())
    if close is None:
        return None
    midnight = datetime(wall.year, wall.month, wall.day)
    opening, closing = midnight + timedelta(hours=9.5), midnight + timedelta(hours=close)
    evening = midnight + timedelta(hours=20 if close == 16 else 17)
    parts = [(opening, closing)]
    if session == "extended":
        parts += [(midnight + timedelta(hours=4), opening), (closing, evening)]
    for start, end in parts:
        if start <= wall < end:
            step = timedelta(microseconds=timeframe.step)
            return start + (wall - start) // step * step
    return None


def slow_bar(rows: list[list[float]]) -> list[float]:
    vwaps = [(r[5], r[4]) for r in rows if not math.isnan(r[5])]
    traded = math.fsum(v for _, v in vwaps)
    counts = [r[6] for r in rows if not math.isnan(r[6])]
    if not vwaps:
        vwap = math.nan
    elif traded > 0:
        vwap = math.fsum(p * v for p, v in vwaps) / traded
    else:
        vwap = math.fsum(p for p, _ in vwaps) / len(vwaps)
    return [
        rows[0][0],
        max(r[1] for r in rows),
        min(r[2] for r in rows),
        rows[-1][3],
        math.fsum(r[4] for r in rows),
        vwap,
        math.fsum(counts) if counts else math.nan,
    ]


@st.composite
def minute_bars(draw: st.DrawFn) -> Bars:
    first, length = draw(stretches)
    start = to_micros(datetime(first.year, first.month, first.day, tzinfo=NEW_YORK))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.002, 0.05, 1.0]))
    grid = start + np.arange(length * 1440, dtype=np.int64) * MINUTE
    stamps = grid[random.random(len(grid)) < density]
    values = random.uniform(1, 1000, (7, len(stamps)))
    values[4, random.random(len(stamps)) < 0.2] = 0.0
    values[5, random.random(len(stamps)) < 0.3] = np.nan
    values[6, random.random(len(stamps)) < 0.3] = np.nan
    return Bars(stamps, values)


@settings(max_examples=60, deadline=None)
@given(minute_bars(), st.sampled_from(INTRADAY), sessions)
def test_invariant_28_intraday_bars_equal_the_slow_computation(
    bars: Bars, timeframe: Timeframe, session: Session
):
    made = resample(bars, Timeframe.MIN_1, timeframe, our_calendar(), session)
    labelled = [
        (label, at)
        for at, stamp in enumerate(bars.timestamp.tolist())
        if (label := slow_label(stamp, timeframe, session)) is not None
    ]
    expected = {
        to_micros(label.replace(tzinfo=NEW_YORK)): slow_bar(
            [bars.values[:, at].tolist() for _, at in group]
        )
        for label, group in groupby(labelled, key=lambda pair: pair[0])
    }
    assert made.timestamp.tolist() == list(expected)
    assert made.values.flags.c_contiguous
    np.testing.assert_allclose(
        made.values, np.array([*expected.values()]).reshape(-1, 7).T, rtol=1e-12
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 11_000),
    st.integers(1, 300),
    st.sampled_from([Timeframe.WEEK_1, Timeframe.MONTH_1]),
    st.integers(0, 2**32 - 1),
)
def test_invariant_27_weeks_and_months_equal_pandas(
    first: int, count: int, timeframe: Timeframe, seed: int
):
    calendar = our_calendar()
    random = np.random.default_rng(seed)
    stamps = calendar.midnight[first : first + count]
    stamps = stamps[random.random(len(stamps)) < 0.9]
    bars = Bars(stamps, random.uniform(1, 1000, (7, len(stamps))))
    made = resample(bars, Timeframe.DAY_1, timeframe, calendar, "regular")

    rule = "W-SUN" if timeframe is Timeframe.WEEK_1 else "M"
    local = pd.DatetimeIndex(pd.to_datetime(stamps, unit="us", utc=True)).tz_convert(NEW_YORK)
    frame = pd.DataFrame(bars.values.T, columns=list("ohlcvwn"))
    groups = frame.groupby(local.tz_localize(None).to_period(rule))
    expected = groups.agg(
        {"o": "first", "h": "max", "l": "min", "c": "last", "v": "sum", "n": "sum"}
    )
    opening: dict[pd.Period, date] = {}
    for day in closes():
        opening.setdefault(pd.Period(day, rule), day)
    assert [
        from_micros(t).astimezone(NEW_YORK).replace(tzinfo=None) for t in made.timestamp.tolist()
    ] == [datetime.combine(opening[period], datetime.min.time()) for period in expected.index]
    np.testing.assert_allclose(
        made.values[[0, 1, 2, 3, 4, 6]], expected.to_numpy().T.reshape(6, -1), rtol=1e-12
    )


@settings(max_examples=150, deadline=None)
@given(stretches, st.integers(0, 6 * 1440), st.sampled_from(Timeframe), sessions)
def test_the_planning_questions_agree_with_each_other(
    stretch: tuple[date, int], offset: int, timeframe: Timeframe, session: Session
):
    calendar = our_calendar()
    start = calendar.midnight_of(stretch[0])
    moment = start + offset * MINUTE
    span = Span(moment, start + 7 * DAY)
    labels = bar_labels(span, timeframe, calendar, session).tolist()
    assert labels == sorted(set(labels))
    labels = labels[:1000]
    span = span if len(labels) < 1000 else Span(span.start, labels[-1] + 1)
    ends = [bar_span(t, timeframe, calendar) for t in labels]
    assert [e.start for e in ends] == labels
    assert all(a.end <= b.start for a, b in pairwise(ends))
    needed = base_span(span, timeframe, calendar, session)
    if labels:
        assert needed == Span(labels[0], ends[-1].end)
    # Every bar labelled before the answer has ended by the moment, and the next one has not.
    frontier = closed_until(timeframe, calendar, moment, session)
    far = 5 * DAY if timeframe.intraday else 40 * DAY
    around = bar_labels(Span(moment - far, moment + far), timeframe, calendar, session)
    at = int(np.searchsorted(around, frontier))
    near = around[max(at - 50, 0) : at + 50].tolist()
    closed = [t for t in near if bar_span(t, timeframe, calendar).end <= moment]
    assert closed == [t for t in near if t < frontier]
    assert frontier in around


@settings(max_examples=40, deadline=None)
@given(minute_bars(), st.sampled_from(INTRADAY[1:]), sessions, st.data())
def test_bars_of_a_base_span_are_whole(
    bars: Bars, timeframe: Timeframe, session: Session, data: st.DataObject
):
    calendar = our_calendar()
    if not len(bars):
        return
    low = int(bars.timestamp[0]) + data.draw(st.integers(0, 1440)) * MINUTE
    asked = Span(low, low + data.draw(st.integers(1, 72)) * HOUR)
    full = resample(bars, Timeframe.MIN_1, timeframe, calendar, session).within(asked)
    needed = base_span(asked, timeframe, calendar, session)
    part = resample(bars.within(needed), Timeframe.MIN_1, timeframe, calendar, session)
    np.testing.assert_array_equal(part.timestamp, full.timestamp)
    np.testing.assert_allclose(part.values, full.values, rtol=1e-14)


def _micros(index: pd.Index[Any]) -> list[int]:
    return [int(t) for t in pd.DatetimeIndex(index).as_unit("us").asi8]


@needs_shared_data
def test_real_minutes_equal_pandas():
    path = SHARED / "minute" / "us24_2019-02.csv.gz"
    table = pd.read_csv(path, parse_dates=["timestamp"])
    calendar = our_calendar()
    checked = 0
    for _, rows in table.groupby("symbol"):
        frame = rows.sort_values("timestamp").set_index("timestamp")
        if frame["volume"].isna().any():
            continue
        stamps = np.array(_micros(frame.index), np.int64)
        values = np.full((7, len(frame)), np.nan)
        values[:5] = frame[["open", "high", "low", "close", "volume"]].to_numpy(np.float64).T
        for rule, timeframe in (("5min", Timeframe.MIN_5), ("1h", Timeframe.HOUR_1)):
            made = resample(Bars(stamps, values), Timeframe.MIN_1, timeframe, calendar, "regular")
            # All five sessions open at 14:30Z.
            expected = (
                frame.resample(rule, offset="30min")
                .agg(
                    {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
                )
                .dropna(subset="open")
            )
            assert made.timestamp.tolist() == _micros(expected.index)
            np.testing.assert_allclose(made.values[:5], expected.to_numpy().T, rtol=1e-12)
            assert np.isnan(made.values[5:]).all()
            checked += 1
    assert checked > 40
