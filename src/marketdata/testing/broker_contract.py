"""The contract of the `Broker` port as a test class, for brokers of other packages.

Subclass it in a test module, under a name that pytest collects::

    from marketdata.testing.broker_contract import BrokerContract, Example

    class TestMyBroker(BrokerContract):
        example = Example("AAPL", "1day", "2024-02-01", "2024-03-01", now="2024-03-14T15:00:30-04:00")

        def open_broker(self, given):
            return MyBroker(given)

What it asks of a broker is what the library relies on. It does not break the broker's server: what
the broker makes of errors (``BrokerError``, never an empty answer) is for its own tests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import ClassVar

import numpy as np

from marketdata.calendars import EXCHANGE, TradingCalendar, calendar_for
from marketdata.clock import Deadline, FixedClock
from marketdata.config import Settings
from marketdata.errors import BrokerError, DataUnavailableError, MarketDataError
from marketdata.own_brokers import lacking
from marketdata.protocols import BarsPage, BarsRequest, Broker
from marketdata.quality import gate
from marketdata.sources import Source, Surroundings
from marketdata.spans import Span, normalise
from marketdata.types import COLUMNS, DAY, Bars, Timeframe

_HEALTH = {"breaker", "requests_sent", "requests_per_minute", "requests_left"}
_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Example:
    """What the broker under test certainly has.

    Parameters
    ----------
    symbol : str
        One with bars on every session from `start` to `end`.
    timeframe : str
        A base timeframe: one that the broker itself gives, not one derived from it.
    start, end : str
        ISO dates in the exchange's zone; `end` is exclusive and its session long over.
    now : str
        Market time of the tests: an instant with offset.
    unknown : str
        A symbol that the broker does not know.
    provider, feed : str, optional
        Those of the broker itself by default.
    """

    symbol: str
    timeframe: str
    start: str
    end: str
    now: str
    unknown: str = "NOSUCH"
    provider: str | None = None
    feed: str | None = None


class BrokerContract:
    """Tests of one broker; a subclass says how it is opened and what it has."""

    example: ClassVar[Example]

    def open_broker(self, given: Surroundings) -> Broker:
        """Return a new broker, as its entry point would."""
        raise NotImplementedError

    # ----------------------------------------------------------------------------- the means

    def _given(self) -> Surroundings:
        example = self.example
        clock = FixedClock(datetime.fromisoformat(example.now))
        source = Source("tested", example.provider or "tested", example.feed or "tested")
        settings = Settings.load(clock=repr(clock))
        return Surroundings(settings, source, clock, lambda: calendar_for(EXCHANGE, clock.now_us()))

    def _open(self) -> Broker:
        return self.open_broker(self._given())

    def _calendar(self) -> TradingCalendar:
        return self._given().calendar()

    def _now_us(self) -> int:
        return self._given().clock.now_us()

    def _span(self) -> Span:
        calendar, example = self._calendar(), self.example
        return Span(
            calendar.midnight_of(date.fromisoformat(example.start)),
            calendar.midnight_of(date.fromisoformat(example.end)),
        )

    def _request(
        self, broker: Broker, span: Span | None = None, symbol: str | None = None
    ) -> BarsRequest:
        return BarsRequest(
            (symbol or self.example.symbol,),
            Timeframe.parse(self.example.timeframe),
            self._span() if span is None else span,
            self.example.feed or broker.default_feed,
        )

    def _walk(self, broker: Broker, request: BarsRequest) -> list[BarsPage]:
        return list(broker.pages(request, Deadline(_SECONDS)))

    def _bars(self, pages: list[BarsPage], symbol: str) -> Bars:
        return Bars.concat([p.bars[symbol] for p in pages if symbol in p.bars] or [Bars.empty()])

    # -------------------------------------------------------------------------------- members

    def test_it_has_every_member_of_the_port(self) -> None:
        broker = self._open()
        assert lacking(broker) == []
        assert isinstance(broker.provider, str)
        assert broker.provider, "a broker has a provider, under which its bars are kept"
        assert isinstance(broker.default_feed, str)
        assert broker.default_feed

    def test_capabilities_answer_every_question_of_planning(self) -> None:
        broker = self._open()
        found = broker.capabilities(self.example.feed or broker.default_feed)
        timeframe = Timeframe.parse(self.example.timeframe)
        ways = found.bases[timeframe]
        assert any(way.base is timeframe for way in ways), f"{timeframe} is no base timeframe"
        bases = {way.base for each in found.bases.values() for way in each}
        assert bases <= set(found.max_span), "each base timeframe has an entry in max_span"
        for derived, each in found.bases.items():
            assert all(way.base.step <= derived.step for way in each), f"{derived} of coarser bars"
            ages = [way.max_age for way in each]
            assert None not in ages[:-1], "what reaches back for ever comes last"
        assert found.settle_delay > 0
        assert found.daily_settle_delay > 0
        assert found.batch_symbols > 0
        assert found.page_rows > 0
        assert found.earliest <= self._span().start
        feed = self.example.feed or broker.default_feed
        assert not found.feeds or feed in found.feeds

    def test_health_has_the_known_keys_or_none(self) -> None:
        health = self._open().health()
        assert not health or set(health) == _HEALTH
        sent = health.get("requests_sent")
        assert sent is None or isinstance(sent, int)

    def test_closing_may_be_repeated_and_is_not_the_end(self) -> None:
        broker = self._open()
        broker.close()
        assert len(self._bars(self._walk(broker, self._request(broker)), self.example.symbol))
        broker.close()
        broker.close()

    # ----------------------------------------------------------------------------------- bars

    def test_a_whole_walk_proves_the_span_and_every_bar_may_be_kept(self) -> None:
        broker, symbol = self._open(), self.example.symbol
        request = self._request(broker)
        pages = self._walk(broker, request)
        proven = normalise([p.proven[symbol] for p in pages if symbol in p.proven])
        assert proven == [request.span], f"proven {proven}, asked {request.span}"
        for page in pages:
            assert not page.refused
            for name, bars in page.bars.items():
                assert name == symbol, f"{name} was not asked for"
                within = page.proven[name]
                stamps = bars.timestamp
                assert ((stamps >= within.start) & (stamps < within.end)).all(), (
                    "a page has only bars of the span that it proves"
                )
        bars = self._bars(pages, symbol)
        assert bars.timestamp.dtype == np.int64
        assert bars.values.shape == (len(COLUMNS), len(bars))
        report = gate(
            bars,
            span=request.span,
            timeframe=request.timeframe,
            calendar=self._calendar(),
            now_us=self._now_us(),
        )
        assert not report.rejected, f"the quality gates reject {dict(report.rejected)}"
        sessions = len(self._calendar().trading_spans(request.span, "daily"))
        assert len(bars) >= sessions, f"{len(bars)} bars on {sessions} sessions"

    def test_part_of_a_span_gives_the_same_bars(self) -> None:
        broker, symbol, span = self._open(), self.example.symbol, self._span()
        whole = self._bars(self._walk(broker, self._request(broker)), symbol)
        middle = whole.timestamp[len(whole) // 2]
        for part in (Span(span.start, int(middle)), Span(int(middle), span.end)):
            found = self._bars(self._walk(broker, self._request(broker, part)), symbol)
            expected = whole.within(part)
            assert found.timestamp.tolist() == expected.timestamp.tolist()
            np.testing.assert_array_equal(found.values, expected.values)

    def test_a_closed_market_is_proven_quiet(self) -> None:
        broker, symbol = self._open(), self.example.symbol
        weekend = next(self._weekends())
        pages = self._walk(broker, self._request(broker, weekend))
        assert len(self._bars(pages, symbol)) == 0
        assert normalise([p.proven[symbol] for p in pages if symbol in p.proven]) == [weekend]

    def _weekends(self) -> Iterator[Span]:
        calendar, day = self._calendar(), date.fromisoformat(self.example.start)
        while True:
            day += timedelta(days=1)
            if day.weekday() == 5:
                noon = calendar.midnight_of(day) + DAY // 2
                yield Span(noon, noon + DAY)

    def test_a_walk_may_be_left(self) -> None:
        broker = self._open()
        pages = broker.pages(self._request(broker), Deadline(_SECONDS))
        next(iter(pages))
        del pages
        assert len(self._bars(self._walk(broker, self._request(broker)), self.example.symbol))

    def test_a_spent_deadline_ends_at_once(self) -> None:
        broker = self._open()
        began = time.monotonic()
        error: MarketDataError | None = None
        try:
            list(broker.pages(self._request(broker), Deadline(0)))
        except MarketDataError as caught:
            error = caught
        assert error is None or error.transient, "more time would have helped"
        assert time.monotonic() - began < 5.0

    def test_many_threads_may_walk_at_once(self) -> None:
        broker, symbol = self._open(), self.example.symbol
        expected = self._bars(self._walk(broker, self._request(broker)), symbol)
        outcomes: list[object] = []

        def one() -> None:
            try:
                found = self._bars(self._walk(broker, self._request(broker)), symbol)
                outcomes.append(found.timestamp.tolist() == expected.timestamp.tolist())
            except BaseException as error:
                outcomes.append(error)

        threads = [threading.Thread(target=one) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_SECONDS)
        assert outcomes == [True] * 4

    # --------------------------------------------------------------- symbols, actions, latest

    def test_a_verdict_is_definite_or_none_and_never_an_error(self) -> None:
        broker = self._open()
        assert broker.verdict(self.example.symbol, Deadline(_SECONDS)).known is not False
        assert broker.verdict(self.example.unknown, Deadline(_SECONDS)).known is not True

    def test_an_unknown_symbol_has_no_bars(self) -> None:
        broker, unknown = self._open(), self.example.unknown
        try:
            pages = self._walk(broker, self._request(broker, symbol=unknown))
        except (BrokerError, DataUnavailableError):
            return
        assert len(self._bars(pages, unknown)) == 0

    def test_symbols_and_assets_are_lists_that_agree(self) -> None:
        broker = self._open()
        names, assets = broker.symbols(Deadline(_SECONDS)), broker.assets(Deadline(_SECONDS))
        assert all(isinstance(name, str) for name in names)
        assert not names or self.example.symbol in names
        assert self.example.unknown not in names
        assert not names or not assets or {a.symbol for a in assets} <= set(names)

    def test_actions_are_told_for_every_symbol_asked_in_order(self) -> None:
        broker, span = self._open(), self._span()
        found = broker.actions([self.example.symbol], span, Deadline(_SECONDS))
        assert set(found) == {self.example.symbol}, "an empty list where there are none"
        dates = [action.ex_date for action in found[self.example.symbol]]
        assert dates == sorted(dates)
        assert all(span.start <= day < span.end for day in dates)

    def test_the_latest_bar_or_a_typed_error(self) -> None:
        broker = self._open()
        feed = self.example.feed or broker.default_feed
        try:
            found = broker.latest("bar", [self.example.symbol], feed, Deadline(_SECONDS))
        except DataUnavailableError:
            return
        for symbol, bar in found.items():
            assert symbol == self.example.symbol
            assert isinstance(bar["timestamp"], int), "microseconds since 1970, UTC"
            assert bar["close"] > 0
