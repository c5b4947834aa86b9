"""Which bars are new, when the next are due, how the past is cut: pure decisions."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata import arrivals
from marketdata.arrivals import by_time, new_bars, next_due, piece_end
from marketdata.brokers.offline import OfflineBroker
from marketdata.caching import newest_end
from marketdata.calendars import calendar_for
from marketdata.clock import from_micros, to_micros
from marketdata.queries import BarsQuery
from marketdata.ranges import Window
from marketdata.spans import Span
from marketdata.types import DAY, Bars, Session, Timeframe

CAPS = OfflineBroker("p", "f", "no broker").capabilities("f")
START = to_micros(datetime.fromisoformat("2024-03-01T00:00:00-05:00"))
CALENDAR = calendar_for("XNYS", START)


def moment(text: str) -> int:
    return to_micros(datetime.fromisoformat(text))


def due(timeframe: str, session: Session, now: str) -> str:
    at = next_due(Timeframe(timeframe), session, CAPS, CALENDAR, moment(now))
    return f"{from_micros(at).astimezone(CALENDAR.zone):%m-%d %H:%M:%S}"


@pytest.mark.parametrize(
    ("timeframe", "session", "now", "expected"),
    [
        ("1min", "regular", "2024-03-14T15:00:30-04:00", "03-14 15:01:03"),
        ("1min", "regular", "2024-03-14T15:01:02-04:00", "03-14 15:01:03"),
        ("1min", "regular", "2024-03-14T15:01:03-04:00", "03-14 15:02:03"),
        ("1min", "regular", "2024-03-14T08:00:00-04:00", "03-14 09:31:03"),
        ("1min", "regular", "2024-03-14T16:00:02-04:00", "03-14 16:00:03"),
        ("1min", "regular", "2024-03-14T16:00:03-04:00", "03-15 09:31:03"),
        ("1min", "regular", "2024-03-15T16:30:00-04:00", "03-18 09:31:03"),  # a weekend
        ("1min", "regular", "2024-03-08T20:00:00-05:00", "03-11 09:31:03"),  # summer time begins
        ("1min", "regular", "2024-03-28T17:00:00-04:00", "04-01 09:31:03"),  # Good Friday
        ("1min", "extended", "2024-03-14T16:00:03-04:00", "03-14 16:01:03"),
        ("1min", "extended", "2024-03-14T20:00:03-04:00", "03-15 04:01:03"),
        ("5min", "regular", "2024-03-14T15:00:30-04:00", "03-14 15:05:03"),
        ("4hour", "regular", "2024-03-14T14:00:00-04:00", "03-14 16:00:03"),  # cut at the close
        ("1hour", "extended", "2024-03-14T09:10:00-04:00", "03-14 09:30:03"),  # cut at the open
        ("30min", "regular", "2024-07-03T12:50:00-04:00", "07-03 13:00:03"),  # a half-day
        ("30min", "regular", "2024-07-03T13:00:03-04:00", "07-05 10:00:03"),
        ("1day", "regular", "2024-03-14T12:00:00-04:00", "03-14 16:20:00"),
        ("1day", "regular", "2024-03-14T16:20:00-04:00", "03-15 16:20:00"),
        ("1day", "regular", "2024-07-03T12:00:00-04:00", "07-03 13:20:00"),
        ("1week", "regular", "2024-03-15T12:00:00-04:00", "03-15 16:20:00"),
    ],
)
def test_when_the_next_bar_is_due(
    timeframe: str, session: Session, now: str, expected: str
) -> None:
    assert due(timeframe, session, now) == expected


@given(
    now=st.integers(START, START + 300 * DAY),
    timeframe=st.sampled_from(list(Timeframe)),
    session=st.sampled_from(["regular", "extended"]),
)
@settings(max_examples=300, deadline=None)
def test_nothing_closes_before_it_is_due(now: int, timeframe: Timeframe, session: Session) -> None:
    """What has closed by a moment before the due one has closed already."""
    at = next_due(timeframe, session, CAPS, CALENDAR, now)
    assert now < at <= now + 6 * DAY
    query = BarsQuery("p", "f", ("A",), timeframe, Window(None, at, None), session)
    base = CAPS.bases[timeframe][0].base
    closed = [newest_end(query, base, CAPS, CALENDAR, t) for t in (now, at - 1, at)]
    span = Span(closed[0], closed[1])
    if timeframe.intraday:
        assert not CALENDAR.trading_spans(span, session)
        assert closed[2] > closed[1], "it is due and has not closed"
    else:
        assert span.empty


def bars(*labels: int) -> Bars:
    stamps = np.array(labels, np.int64)
    return Bars(stamps, np.add.outer(np.arange(7) * 100, stamps).astype(np.float64))


def test_new_is_what_is_later_than_the_last_one_given() -> None:
    found = {"A": bars(1, 2, 3), "B": bars(1, 2), "C": bars()}
    fresh = new_bars(found, {"A": 1, "B": 2, "C": 0})
    assert {s: b.timestamp.tolist() for s, b in fresh.items()} == {"A": [2, 3]}
    assert fresh["A"].values[3].tolist() == [302.0, 303.0]


@given(
    st.dictionaries(
        st.sampled_from(["AAPL", "KO", "MSFT", "SPY"]),
        st.lists(st.integers(0, 30), unique=True).map(sorted),
    )
)
def test_by_time_gives_every_bar_once_in_order(labels: dict[str, list[int]]) -> None:
    found = {symbol: bars(*stamps) for symbol, stamps in labels.items()}
    steps = list(by_time(found))
    times = [at for at, _ in steps]
    assert times == sorted(set(times))
    given_ = [(s, at) for at, step in steps for s in step]
    assert sorted(given_) == sorted((s, at) for s, stamps in labels.items() for at in stamps)
    for at, step in steps:
        for one in step.values():
            assert one.timestamp.tolist() == [at]
            assert one.values[1].tolist() == [100.0 + at]


@given(
    start=st.integers(START, START + 300 * DAY),
    symbols=st.sampled_from([1, 2, 500, 10_000, 300_000]),
    timeframe=st.sampled_from(list(Timeframe)),
    session=st.sampled_from(["regular", "extended"]),
)
@settings(max_examples=200, deadline=None)
def test_pieces_go_on_and_hold_no_more_than_they_may(
    start: int, symbols: int, timeframe: Timeframe, session: Session
) -> None:
    query = BarsQuery(
        "p", "f", tuple(map(str, range(symbols))), timeframe, Window(None, 0, None), session
    )
    end = piece_end(query, start, CALENDAR)
    assert end > start
    if timeframe.intraday:
        held = CALENDAR.trading_time(Span(start, end), session) // timeframe.step
    else:
        held = len(CALENDAR.trading_spans(Span(start, end), "daily")) - 1
    assert held * symbols <= 1.2 * max(arrivals.PIECE_BARS, symbols)
    if end < CALENDAR.horizon and symbols <= arrivals.PIECE_BARS:
        assert (held + 2) * symbols > arrivals.PIECE_BARS / 2, "a needlessly small piece"


def test_a_night_is_one_piece_however_many_symbols() -> None:
    """A follower of 10,000 symbols looks back over the last bars of the day before."""
    names = tuple(map(str, range(10_000)))
    query = BarsQuery("p", "f", names, Timeframe.MIN_1, Window(None, 0, None))
    end = piece_end(query, moment("2024-03-15T15:50:00-04:00"), CALENDAR)
    assert end == moment("2024-03-18T09:40:00-04:00")
