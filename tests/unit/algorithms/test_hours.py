"""When bars can be known: half-days, summer time, weeks, months, hours before and after."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.hours import close_times, hours_between
from algorithms.lines import NEVER
from algorithms.market import MarketData
from algorithms.series import Series
from tests.scripted_runs import clock, instant

HOURS = hours_between(instant("2023-01-03"), instant("2024-12-20"))

CASES = [
    ("1min", "regular", "2023-11-24 12:59", "2023-11-24 13:00"),
    ("1min", "regular", "2023-11-22 15:59", "2023-11-22 16:00"),
    ("5min", "regular", "2023-11-24 12:55", "2023-11-24 13:00"),
    ("1hour", "regular", "2023-11-22 15:30", "2023-11-22 16:00"),
    ("1hour", "regular", "2023-11-22 15:00", "2023-11-22 16:00"),
    ("1hour", "regular", "2023-11-24 12:30", "2023-11-24 13:00"),
    ("1hour", "regular", "2023-11-24 09:30", "2023-11-24 10:30"),
    # Summer time begins on 12 March and ends on 5 November 2023.
    ("1hour", "regular", "2023-03-10 15:30", "2023-03-10 16:00"),
    ("1hour", "regular", "2023-03-13 15:30", "2023-03-13 16:00"),
    ("1day", "regular", "2023-03-10", "2023-03-10 16:00"),
    ("1day", "regular", "2023-03-13", "2023-03-13 16:00"),
    ("1day", "regular", "2023-11-06", "2023-11-06 16:00"),
    ("1day", "regular", "2023-11-24", "2023-11-24 13:00"),
    ("1day", "regular", "2023-07-03", "2023-07-03 13:00"),
    # A week ends with its last session: Thursday before Good Friday, a half-day after Thanksgiving.
    ("1week", "regular", "2023-04-03", "2023-04-06 16:00"),
    ("1week", "regular", "2023-11-20", "2023-11-24 13:00"),
    # A week whose Monday was a holiday is labelled by its Monday or its first session.
    ("1week", "regular", "2023-01-16", "2023-01-20 16:00"),
    ("1week", "regular", "2023-01-17", "2023-01-20 16:00"),
    ("1month", "regular", "2023-09-01", "2023-09-29 16:00"),
    ("1month", "regular", "2023-12-01", "2023-12-29 16:00"),
    ("1month", "regular", "2023-01-03", "2023-01-31 16:00"),
    # The year's first day is a holiday and lies before the first session of its month.
    ("1month", "regular", "2024-01-01", "2024-01-31 16:00"),
    ("1month", "regular", "2023-10-01", "2023-10-31 16:00"),
    ("1hour", "extended", "2023-11-22 09:00", "2023-11-22 09:30"),
    ("1hour", "extended", "2023-11-22 04:00", "2023-11-22 05:00"),
    ("1hour", "extended", "2023-11-22 19:30", "2023-11-22 20:00"),
    ("1hour", "extended", "2023-11-22 15:30", "2023-11-22 16:00"),
    ("1hour", "extended", "2023-11-24 16:30", "2023-11-24 17:00"),
]


@pytest.mark.parametrize(("timeframe", "session", "label", "close"), CASES)
def test_a_bar_is_there_when_it_has_closed(
    timeframe: str, session: str, label: str, close: str
) -> None:
    labels = np.array([instant(label)])
    (found,) = close_times(labels, timeframe, HOURS, session)
    assert clock(int(found)) == (close if len(close) > 10 else f"{close} 00:00")


@given(
    st.lists(st.integers(instant("2022-10-01"), instant("2025-03-01")), max_size=30),
    st.lists(st.sampled_from(HOURS.midnight.tolist()), max_size=5),
)
def test_the_session_of_a_label_is_the_last_that_has_begun(
    anywhere: list[int], midnights: list[int]
) -> None:
    labels = np.array(sorted(anywhere + midnights), np.int64)
    wanted = [sum(midnight <= label for midnight in HOURS.midnight) - 1 for label in labels]
    assert HOURS.session_of(labels).tolist() == wanted


@pytest.mark.parametrize("timeframe", ["1min", "15min", "1hour", "1day", "1week", "1month"])
def test_closes_ascend_and_come_after_their_labels(timeframe: str) -> None:
    rule = {"1day": "D", "1week": "W-MON", "1month": "MS", "1hour": "h"}.get(timeframe, timeframe)
    stamps = pd.date_range("2022-06-01", "2025-06-01", freq=rule, tz="America/New_York")
    labels = np.asarray(stamps.tz_convert("UTC").as_unit("us").asi8)
    closes = close_times(labels, timeframe, HOURS, "regular")
    assert (closes > labels).all()
    assert (np.diff(closes) >= 0).all()


def test_half_days_are_early() -> None:
    early = {clock(int(HOURS.close[i])) for i in HOURS.early}
    assert {"2023-07-03 13:00", "2023-11-24 13:00", "2024-07-03 13:00"} <= early
    assert all(moment.endswith("13:00") for moment in early)


def market(session: str = "regular") -> MarketData:
    labels = np.array([instant("2023-11-22 09:30")])
    series = Series("X", "1min", labels, labels + 60_000_000, np.ones((5, 1)))
    return MarketData({("X", "1min"): series}, hours_between(labels[0], labels[0]), session)


@pytest.mark.parametrize(
    ("session", "now", "end"),
    [
        ("regular", "2023-11-22 12:00", "2023-11-22 16:00"),
        ("regular", "2023-11-22 16:00", "2023-11-24 13:00"),
        ("regular", "2023-11-24 12:59", "2023-11-24 13:00"),
        ("regular", "2023-11-24 13:00", "2023-11-27 16:00"),
        ("regular", "2023-11-25 12:00", "2023-11-27 16:00"),
        ("extended", "2023-11-22 16:30", "2023-11-22 20:00"),
        ("extended", "2023-11-24 13:30", "2023-11-24 17:00"),
    ],
)
def test_the_end_of_an_order_for_the_day(session: str, now: str, end: str) -> None:
    assert clock(market(session).day_end(instant(now))) == end


def test_no_day_order_ends_beyond_what_is_known() -> None:
    assert market().day_end(instant("2031-01-01")) == NEVER


def test_a_market_that_runs_on_for_months_knows_its_later_sessions() -> None:
    live = market()
    live.series["X", "1day"] = Series("X", "1day", *(np.empty(0, np.int64),) * 2, np.empty((5, 0)))
    sessions = pd.bdate_range("2024-05-01", "2024-05-03", tz="America/New_York")
    labels = np.asarray(sessions.tz_convert("UTC").as_unit("us").asi8)
    live.extend({("X", "1day"): (labels, np.ones((5, 3)))})
    closes = live.of("X", "1day").closes[:3]
    assert [clock(int(c)) for c in closes] == [
        "2024-05-01 16:00", "2024-05-02 16:00", "2024-05-03 16:00"
    ]  # fmt: skip
    assert clock(live.day_end(instant("2024-05-03 12:00"))) == "2024-05-03 16:00"
    assert clock(live.day_end(int(closes[2]))) == "2024-05-06 16:00"
