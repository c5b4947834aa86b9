"""A broker at its worst for a whole trading day: a tenth of all requests fail, one in twenty is
never answered, bursts of 429, and an outage of twenty minutes in the middle of the session.

``MARKETDATA_TEST_SEED=N`` plays another day, ``MARKETDATA_TEST_DAYS=N`` as many one after the other.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pytest

from marketdata.backfill import Backfill, BackfillReport, Wanted
from marketdata.brokers import alpaca
from marketdata.clock import FixedClock, to_micros
from marketdata.errors import BrokerError, MarketDataError
from marketdata.planning import gaps
from marketdata.protocols import Priority
from marketdata.sandbox import simulated
from marketdata.sandbox.faults import Weather
from marketdata.spans import Span
from marketdata.testing import FlakyProxy
from marketdata.types import Timeframe
from marketdata.wiring import Runtime
from tests.bad_day import (
    PATIENCE,
    MarketTime,
    Reader,
    Stop,
    Truth,
    put_on_market_time,
    use_simulated_seconds,
)
from tests.changing_market import ChangingMarket
from tests.cycles import Ward, assert_same_bars, calendar, micros, of_market
from tests.stack import Stack, runtime

DAY = "2026-03-12"
DAILY = Timeframe.DAY_1
MINUTES_AND_DAYS = (Timeframe.MIN_1, DAILY)
SYMBOLS = ["AAPL", "MSFT", "NVDA", "UGA", *simulated(8)]
BATCH = 6
LIMIT = 30
SEED = int(os.environ.get("MARKETDATA_TEST_SEED", "312"))
DAYS = int(os.environ.get("MARKETDATA_TEST_DAYS", "1"))
OUTAGE = ("12:10", "12:30")


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"{DAY}T{text}-04:00")


def ticks(start: str, end: str, minutes: int) -> list[datetime]:
    first, last = at(start), at(end)
    count = (last - first) // timedelta(minutes=minutes)
    return [first + n * timedelta(minutes=minutes) for n in range(count)]


class BadDay:
    """The day's cast: an aggregator, two readers and a backfill, each on a stack of its own."""

    def __init__(self, stack: Stack, proxy: FlakyProxy, market: MarketTime, seed: int) -> None:
        self.stack = stack
        self.proxy = proxy
        self.market = market
        self.seed = seed
        self.weather = Weather(seed, errors=0.10, stalls=0.05, refusals=0.008)
        lazy = stack.client._lazy
        lazy._runtime = Runtime(lazy._settings, stack.clock, priority=Priority.LIVE)
        self.ward = Ward(stack, SYMBOLS, timeframes=("1min", "1day"))
        put_on_market_time(self.ward.runtime, market)
        truth, since = Truth(SYMBOLS), micros(f"{DAY}T09:30-04:00")
        self.clients = [stack.connect() for _ in range(3)]
        for client in self.clients:
            put_on_market_time(runtime(client), market)
        self.readers = [
            Reader(client, SYMBOLS, market, truth, seed + n, since)
            for n, client in enumerate(self.clients[:2])
        ]
        self.stop = Stop(market)
        self.filled: list[BackfillReport] = []
        self.backfill_errors: list[MarketDataError] = []
        self._backfill = threading.Thread(target=self._fill, name="backfill")
        self.down: list[MarketDataError | None] = []

    def _fill(self) -> None:
        """Backfill a month, again after whatever ends it."""
        filling = Backfill(runtime(self.clients[2]), stop=self.stop)
        wanted = Wanted(symbols=tuple(SYMBOLS), start="2025-11-03", timeframes=MINUTES_AND_DAYS)
        while not self.stop.is_set():
            try:
                self.filled.append(filling.run(wanted))
            except MarketDataError as error:
                self.backfill_errors.append(error)
            if self.filled and self.filled[-1].complete:
                return
            self.stop.wait(300)

    def cycle(self, moment: datetime) -> None:
        self.market.reach(moment)
        report = self.ward.cycle()
        assert report.unknown == (), "no symbol is unknown"
        assert report.suspicious == 0
        for failure in report.failed:
            assert failure.transient, failure

    def play(self) -> None:
        self.cycle(at("09:25:05"))
        self.stack.sandbox.faults.expose(self.weather)
        self._backfill.start()
        for reader in self.readers:
            reader.start()
        for moment in ticks("09:31:05", "16:01:05", 1):
            if moment == at(OUTAGE[0] + ":05"):
                self.proxy.refuse()
                self.proxy.cut()
            if moment == at(OUTAGE[1] + ":05"):
                self.proxy.accept()
            self.cycle(moment)
            for later in (15, 25, 35, 45):
                time.sleep(0.002)
                self.market.reach(moment + timedelta(seconds=later))
            if at(OUTAGE[0] + ":05") <= moment < at(OUTAGE[1] + ":05"):
                self.ask_while_it_is_down()
        for reader in self.readers:
            reader.stop()
        for moment in ticks("16:15:05", "21:20:05", 15):
            self.cycle(moment)
        # Nothing of the outage is remembered of what nobody could get then.
        self.stack.sandbox.faults.expose(None)
        late = self.clients[0].get_bars("XOM", "1min", limit=5, timeout=PATIENCE)
        assert len(late) == 5

    def ask_while_it_is_down(self) -> None:
        """Old bars that are stored are served; what nobody has asked for fails, typed, in time."""
        client = self.clients[0]
        stored = client.get_bars(
            SYMBOLS[0],
            "1min",
            start=f"{DAY}T09:31-04:00",
            end=f"{DAY}T11:30-04:00",
            timeout=PATIENCE,
        )
        assert len(stored) > 100
        began = time.monotonic()
        with pytest.raises(BrokerError) as caught:
            client.get_bars("XOM", "1min", limit=5, timeout=PATIENCE)
        assert time.monotonic() - began < PATIENCE + 1
        assert caught.value.transient
        self.down.append(caught.value)

    def end(self) -> None:
        self.stop.set()
        if self._backfill.is_alive():
            self._backfill.join(30)
        for reader in self.readers:
            if reader._thread.is_alive():
                reader.stop()
        self.stack.sandbox.faults.expose(None)


@pytest.fixture
def bad_day(
    make_stack: Callable[..., Stack],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[BadDay]:
    monkeypatch.setattr(alpaca, "BATCH_SYMBOLS", BATCH)
    clock = FixedClock(at("09:25:05"))
    market = MarketTime(clock)
    use_simulated_seconds(monkeypatch, market)
    source = ChangingMarket(symbols=[*SYMBOLS, "XOM"], clock=clock)
    stack = make_stack(
        at=clock.__repr__(), source=source, market={"rate_limit": LIMIT, "seconds": market.seconds}
    )
    market.clock = source._clock = stack.clock
    with FlakyProxy(stack.sandbox.url) as proxy:
        for name in ("alpaca_url", "alpaca_trading_url"):
            stack.settings[name] = proxy.url
        stack.client.close()
        stack.client = stack.connect()
        day = BadDay(stack, proxy, market, request.param)
        with market.running():
            yield day
            day.end()
        for client in (*day.clients, stack.client):
            client.close()


@pytest.mark.exact("it counts requests, and is a whole day of faults of its own")
@pytest.mark.parametrize("bad_day", range(SEED, SEED + DAYS), indirect=True)
def test_a_broker_at_its_worst_for_a_whole_day(bad_day: BadDay):
    day = bad_day
    print(f"MARKETDATA_TEST_SEED={day.seed}")
    day.play()
    told = day.weather.drawn
    asked = sum(told.values())
    print(dict(told), f"{asked} requests, {len(day.weather.bursts)} bursts of 429")
    for reader in day.readers:
        print(reader.seen)
    print("backfill:", [r.summary() for r in day.filled], day.backfill_errors)
    # It was as bad as it was to be.
    assert 0.05 * asked < asked - told["nothing"] - told["stall"] - told["rate_limit"]
    assert 0.02 * asked < told["stall"]
    assert day.weather.bursts
    assert len(day.down) == 20
    # Zero wrong bars, zero false "no data".
    assert [w for r in day.readers for w in r.seen.wrong] == []
    assert all(r.seen.answers > 50 for r in day.readers)
    assert all(r.seen.slowest < PATIENCE + 1 for r in day.readers)
    assert_covered(day)
    assert_within_budget(day)


def assert_covered(day: BadDay) -> None:
    """Everything of the day is there and as the market has it in the end."""
    ward, market = day.ward, day.stack.sandbox.source
    asked = Span(micros(f"{DAY}T09:30-04:00"), micros(f"{DAY}T20:00-04:00"))
    for symbol in SYMBOLS:
        state = ward.state(symbol)
        assert gaps(asked, state, calendar(), Timeframe.MIN_1) == []
        trading = calendar().trading_spans(asked, "extended")
        final = [
            t for s in state.final for t in calendar().trading_spans(s.clip(asked), "extended")
        ]
        assert final == trading, symbol
        assert_same_bars(ward.stored(symbol, asked), of_market(market, symbol, asked))
        whole = Span(micros(f"{DAY}T00:00-04:00"), micros(f"{DAY}T21:00-04:00"))
        daily = ward.stored(symbol, whole, DAILY)
        assert_same_bars(daily, of_market(market, symbol, whole, DAILY))


def assert_within_budget(day: BadDay) -> None:
    """No 60 seconds of market time saw more requests than the limit, and none came while the
    broker refused everything, but those that were under way when it began."""
    times = sorted(r.time for r in day.stack.sandbox.requests)
    first = most = 0
    for number, moment in enumerate(times):
        while moment - times[first] >= 60:
            first += 1
        most = max(most, number - first + 1)
    print(f"{most} requests in a minute at most")
    assert most <= LIMIT
    # How dense the requests of a minute are depends on what failed when; that there were many
    # of them in the day does not.
    assert len(times) > 390, "the budget was used"
    for begin, end in day.weather.bursts:
        under_way = [t for t in times if begin < t < end]
        assert len(under_way) <= 6, (begin, end, under_way)


def test_seconds_of_the_day_are_those_of_the_clock():
    market = MarketTime(FixedClock(at("10:00")))
    market.sleep_and_move(5)
    assert market.seconds() == to_micros(at("10:00:05")) / 1e6
    assert Stop(market).wait(0) is False
