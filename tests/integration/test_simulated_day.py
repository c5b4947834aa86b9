"""A whole day of the aggregator on a replayed clock, against what the market says in the end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from marketdata.brokers import alpaca
from marketdata.clock import FixedClock
from marketdata.planning import gaps
from marketdata.sandbox import simulated
from marketdata.spans import Span
from marketdata.types import Timeframe
from tests.changing_market import ChangingMarket
from tests.cycles import Ward, assert_same_bars, calendar, micros, of_market, serves_from_redis
from tests.stack import Stack

DAY = "2026-03-12"
DAILY = Timeframe.DAY_1
BATCH = 8
SYMBOLS = ["AAPL", "MSFT", "NVDA", "UGA", *simulated(12)]


def ticks(start: str, end: str, minutes: int) -> list[datetime]:
    first, last = (datetime.fromisoformat(f"{DAY}T{t}-04:00") for t in (start, end))
    count = (last - first) // timedelta(minutes=minutes)
    return [first + n * timedelta(minutes=minutes) for n in range(count)]


@pytest.fixture
def stack(make_stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setattr(alpaca, "BATCH_SYMBOLS", BATCH)
    clock = FixedClock(datetime.fromisoformat(f"{DAY}T04:00:05-04:00"))
    market = ChangingMarket(symbols=SYMBOLS, clock=clock)
    stack = make_stack(at=f"{DAY}T04:00:05-04:00", source=market)
    # The market changes its bars by the same clock that everybody looks at.
    market._clock = stack.clock
    stack.market = market  # type: ignore[attr-defined]
    return stack


def test_a_day_ends_as_the_market_has_it(stack: Stack):
    """390 cycles in the session and one each quarter of an hour around it, every re-read, no
    backfill: few calls, no gap, the market's final bars, and Redis answers all day."""
    market: ChangingMarket = stack.market  # type: ignore[attr-defined]
    ward = Ward(stack, SYMBOLS, timeframes=("1min", "1day"))
    ward.cycle()
    stack.forget_calls()
    requests = -(-len(SYMBOLS) // BATCH)
    session = ticks("09:31:05", "16:01:05", 1)
    day = [
        *ticks("04:15:05", "09:30:05", 15),
        *session,
        *ticks("16:15:05", "21:20:05", 15),
    ]
    assert len(session) == 390
    steady = []
    for number, moment in enumerate(day):
        stack.clock.set(moment)
        before = stack.calls()
        report = ward.cycle()
        assert report.failed == ()
        assert report.postponed == 0
        assert report.suspicious == 0
        if moment in session[1:]:
            steady.append(stack.calls() - before)
        if number % 60 == 30:
            busy = SYMBOLS[:3]
            assert serves_from_redis(stack.client, busy)
    # At 10:00 the daily bars of the day before are read for the last time.
    assert sorted(steady) == [requests] * 388 + [2 * requests]
    evening = micros(f"{DAY}T21:15:05-04:00")
    for symbol in SYMBOLS:
        state = ward.state(symbol)
        begin = state.coverage[-1].start
        asked = Span(begin, evening)
        assert len(state.coverage) == 1
        assert gaps(asked, state, calendar(), Timeframe.MIN_1) == []
        trading = calendar().trading_spans(asked, "extended")
        assert [t for s in state.final for t in calendar().trading_spans(s, "extended")] == trading
        assert_same_bars(ward.stored(symbol, asked), of_market(market, symbol, asked))
        daily = ward.stored(symbol, asked, DAILY)
        assert_same_bars(daily, of_market(market, symbol, asked, DAILY))
    # Requests for the day: those of the session, of the quarters of an hour, the session once
    # more (a page holds it here), daily bars after the close and in the evening.
    most = requests * (390 + 21 + 21 + 2 + 2 + 2)
    assert stack.calls() <= most
    assert_ten_thousand_would_do(stack.calls() / requests)


def assert_ten_thousand_would_do(requests_per_batch: float) -> None:
    """Twenty batches of 500; a session read again takes 30 pages each instead of one."""
    assert 20 * requests_per_batch + 20 * 30 < 10_000
