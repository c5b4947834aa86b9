"""Yahoo Finance behind the broker port, through yfinance.

::

    pages -> yahoo_session   one request: yfinance, with time-outs, budget, breaker and retry
          -> yahoo_errors    what failed, as an error of ours
          -> yahoo_chart     what the answer says; refusals to errors; no live row
          -> yahoo_splits    Yahoo's split-adjusted prices back to raw

Yahoo's service is free and promises nothing: limits and errors are known by observation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from marketdata.brokers.resilience import CircuitBreaker, RequestGate
from marketdata.brokers.yahoo_chart import (
    INTERVALS,
    Chart,
    SymbolNotFoundError,
    read_chart,
    unreadable,
    yahoo_symbol,
)
from marketdata.brokers.yahoo_session import YahooLine
from marketdata.brokers.yahoo_splits import SplitBook, SplitList, actions_of, doubt_applied, to_raw
from marketdata.calendars import EXCHANGE, TradingCalendar, calendar_for
from marketdata.clock import Clock, Deadline, from_micros
from marketdata.corporate_actions import CorporateAction
from marketdata.errors import (
    BrokerError,
    BrokerResponseError,
    DataUnavailableError,
    MarketDataError,
)
from marketdata.protocols import (
    Asset,
    BarsPage,
    BarsRequest,
    BaseTimeframe,
    Capabilities,
    Priority,
    RateBudget,
    SymbolVerdict,
)
from marketdata.spans import Span
from marketdata.types import COLUMNS, DAY, HOUR, MINUTE, SECOND, Bars, Split, Timeframe

FEED: Final = "yahoo"
_NEVER: Final = 1 << 62
"""A market time at which every bar is over."""

# A day less than Yahoo's own horizons of 30, 60 and 730 days: the request takes time, and a span
# that is too old by a second is refused as a whole.
_MINUTES: Final = BaseTimeframe(Timeframe.MIN_1, 29 * DAY)
_FIVE: Final = BaseTimeframe(Timeframe.MIN_5, 59 * DAY)
_FIFTEEN: Final = BaseTimeframe(Timeframe.MIN_15, 59 * DAY)
_HOURS: Final = BaseTimeframe(Timeframe.HOUR_1, 729 * DAY)
_DAYS: Final = BaseTimeframe(Timeframe.DAY_1, None)

_BASES: Final[Mapping[Timeframe, tuple[BaseTimeframe, ...]]] = {
    Timeframe.MIN_1: (_MINUTES,),
    Timeframe.MIN_5: (_MINUTES, _FIVE),
    Timeframe.MIN_15: (_MINUTES, _FIFTEEN),
    # Yahoo's own 30m bars are wrong (it sends 60m ones); yfinance makes them of 15m as well.
    Timeframe.MIN_30: (_MINUTES, _FIFTEEN),
    Timeframe.HOUR_1: (_MINUTES, _HOURS),
    Timeframe.HOUR_4: (_MINUTES, _HOURS),
    Timeframe.DAY_1: (_DAYS,),
    Timeframe.WEEK_1: (_DAYS,),
    Timeframe.MONTH_1: (_DAYS,),
}
_MAX_SPAN: Final[Mapping[Timeframe, int | None]] = {
    Timeframe.MIN_1: 7 * DAY - HOUR,
    Timeframe.MIN_5: 59 * DAY,
    Timeframe.MIN_15: 59 * DAY,
    Timeframe.HOUR_1: 729 * DAY,
    Timeframe.DAY_1: None,
}
SETTLE_DELAY: Final = MINUTE
"""Yahoo shows US trades within seconds, but publishes no moment at which a minute is complete and
sends the running one as a row: a whole minute is left for late prints."""
DAILY_SETTLE_DELAY: Final = 20 * MINUTE


class YahooBroker:
    """US bars from Yahoo Finance; no trades, quotes or snapshots.

    Parameters
    ----------
    clock : Clock
        Market time: what is closed, and how far back Yahoo reaches.
    calendar : callable, optional
        Returns the exchange's calendar; by default that of XNYS.
    base_url : str, optional
        Sends every request for Yahoo here: a sandbox or a proxy.
    provider : str
        The origin under which the bars are kept.
    budget : RateBudget, optional
        Shared by all processes; None counts nothing.
    rate_limit : int
        Requests a minute. Yahoo states no limit; about 60 for charts is what users report.
    priority : Priority
        Whom the requests are for.
    timeouts : tuple of float
        Seconds to connect, and for an answer.
    on_notice : callable, optional
        Called with a sentence worth telling the user, once per matter.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        calendar: Callable[[], TradingCalendar] | None = None,
        base_url: str | None = None,
        provider: str = "yahoo",
        budget: RateBudget | None = None,
        rate_limit: int = 60,
        priority: Priority = Priority.READ,
        timeouts: tuple[float, float] = (3.0, 15.0),
        on_notice: Callable[[str], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock = clock
        self._calendar = calendar or self._own_calendar
        self._provider = provider
        self._on_notice = on_notice
        self._noticed: set[str] = set()
        self.breaker = CircuitBreaker("Yahoo")
        self._gate = RequestGate(provider, rate_limit, budget, priority=priority, sleep=sleep)
        self._line = YahooLine(
            self._gate,
            self.breaker,
            base_url=base_url,
            timeouts=timeouts,
            sleep=sleep,
        )
        self._book = SplitBook(self._ask_splits, self._midnight)

    def __repr__(self) -> str:
        return f"YahooBroker({self._provider!r})"

    def _own_calendar(self) -> TradingCalendar:
        return calendar_for(EXCHANGE, self._clock.now_us())

    @property
    def provider(self) -> str:
        return self._provider

    @property
    def default_feed(self) -> str:
        return FEED

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        self._line.close()

    def health(self) -> dict[str, str | int | None]:
        """Return breaker state and requests sent; Yahoo tells no allowance. Asks nothing."""
        return {
            "breaker": self.breaker.state,
            "requests_sent": self._gate.granted,
            "requests_per_minute": self._gate.allowance,
            "requests_left": None,
        }

    def capabilities(self, feed: str) -> Capabilities:
        """Return what can be had; the same at all times."""
        _check_feed(feed)
        return Capabilities(
            bases=_BASES,
            max_span=_MAX_SPAN,
            settle_delay=SETTLE_DELAY,
            daily_settle_delay=DAILY_SETTLE_DELAY,
            feeds=(FEED,),
            batch_symbols=1,
            page_rows=5 * 16 * 60,  # a week of minutes, extended hours included
            latest_feeds=(),
            earliest=self._calendar().first,
        )

    # ---------------------------------------------------------------------------------- pages

    def pages(self, request: BarsRequest, deadline: Deadline) -> Iterator[BarsPage]:
        """Walk symbols, and of each the spans that one request may ask, oldest first.

        A symbol that Yahoo denies twice in a row (the chart, then a few recent days) is refused.

        Raises
        ------
        BrokerError
            No answer; transient ones were retried.
        DataUnavailableError
            Too old, not a US listing, or prices that cannot be brought back to raw.
        """
        _check_feed(request.feed)
        if request.timeframe not in INTERVALS:
            raise DataUnavailableError(f"Yahoo is not asked for {request.timeframe} bars")
        for symbol in request.symbols:
            for span in _cut(request.span, _MAX_SPAN[request.timeframe]):
                now_us = self._clock.now_us()
                try:
                    bars = self._raw_bars(symbol, request.timeframe, span, now_us, deadline)
                except SymbolNotFoundError as denial:
                    if self.verdict(symbol, deadline).known is not False:
                        raise BrokerResponseError(
                            f"Yahoo denies {symbol} for these days only: {denial}", transient=True
                        ) from denial
                    yield BarsPage({}, {}, refused={symbol: str(denial)})
                    break
                proven = Span(span.start, max(span.start, min(span.end, now_us)))
                yield BarsPage({symbol: bars}, {symbol: proven})

    def _raw_bars(
        self, symbol: str, timeframe: Timeframe, span: Span, now_us: int, deadline: Deadline
    ) -> Bars:
        chart = self._chart(symbol, timeframe, span, now_us, deadline)
        bars = chart.bars
        if not len(bars) or bars.timestamp[0] >= self._midnight():
            return bars  # no split lies between these bars and now
        splits = self._splits_after(symbol, timeframe, span, chart, deadline)
        raw = to_raw(bars, splits)
        if raw is not bars:
            self._notice_unsplit(symbol, splits)
        return raw

    def _chart(
        self, symbol: str, timeframe: Timeframe, span: Span, now_us: int, deadline: Deadline
    ) -> Chart:
        asked = span if timeframe.intraday else self._whole_days(span)
        reply = self._line.chart(
            yahoo_symbol(symbol),
            INTERVALS[timeframe],
            asked.start // SECOND,
            -(-asked.end // SECOND),
            deadline,
        )
        return read_chart(reply, symbol, timeframe, span, calendar=self._calendar(), now_us=now_us)

    def _whole_days(self, span: Span) -> Span:
        """Widen to exchange days: Yahoo filters daily rows by the open, we label by midnight."""
        calendar = self._calendar()
        last = calendar.midnight_of(calendar.today(span.end - 1))
        return Span(
            calendar.midnight_of(calendar.today(span.start)),
            calendar.midnight_of(calendar.today(last + 26 * HOUR)),
        )

    # --------------------------------------------------------------------------------- splits

    def _midnight(self) -> int:
        """Return today's exchange midnight: later ex-dates are not applied yet."""
        calendar = self._calendar()
        return calendar.midnight_of(calendar.today(self._clock.now_us()))

    def _splits_after(
        self, symbol: str, timeframe: Timeframe, span: Span, chart: Chart, deadline: Deadline
    ) -> tuple[Split, ...]:
        """Return every split from the first bar to today, from the answer itself where it reaches
        today, else asked for separately."""
        start, today = int(chart.bars.timestamp[0]), self._midnight()
        wanted = [s for s in chart.splits if s.ex_date > start]
        reaches_today = not timeframe.intraday and span.end > today
        if reaches_today and not any(s.ex_date >= today for s in wanted):
            return self._book.learn(symbol, start, chart.splits)
        for _ in range(2):
            known = self._asked_splits(symbol, start, deadline)
            if known.doubt:
                raise unreadable(known.doubt)
            if all(s in known.splits for s in wanted):
                return known.splits
            self._book.forget(symbol)  # it may be younger than what is remembered
        raise unreadable(f"Yahoo's answers about splits of {symbol} contradict each other")

    def _asked_splits(self, symbol: str, start: int, deadline: Deadline) -> SplitList:
        try:
            return self._book.since(symbol, start, deadline)
        except SymbolNotFoundError as error:
            raise unreadable(f"Yahoo gives no splits of {symbol}: {error}") from error
        except BrokerError as error:
            if error.transient:
                raise
            raise unreadable(f"Yahoo gives no splits of {symbol}: {error.message}") from error

    def _ask_splits(self, symbol: str, start: int, deadline: Deadline) -> SplitList:
        """Ask for the days from `start` to now, the running one included, with their splits."""
        span = self._whole_days(Span(start, max(start, self._clock.now_us()) + 1))
        chart = self._chart(symbol, Timeframe.DAY_1, span, _NEVER, deadline)
        return SplitList(chart.splits, doubt_applied(chart.bars, chart.splits, self._midnight()))

    def _notice_unsplit(self, symbol: str, splits: Sequence[Split]) -> None:
        if self._on_notice is None or symbol in self._noticed:
            return
        self._noticed.add(symbol)
        told = ", ".join(
            f"{s.new:g}:{s.old:g} on {from_micros(s.ex_date + DAY // 2).date()}" for s in splits
        )
        self._on_notice(
            f"Yahoo adjusts {symbol} for splits; raw prices were worked out from them ({told}) "
            "and are exact to about 7 digits"
        )

    def actions(
        self, symbols: Sequence[str], span: Span, deadline: Deadline
    ) -> dict[str, list[CorporateAction]]:
        """Return splits, dividends and capital gains with an ex-date in `span`, ascending; none
        where Yahoo denies the symbol.

        Yahoo divides what was paid by every split since: it is multiplied back.

        Raises
        ------
        DataUnavailableError
            A split is named and perhaps not applied yet: what was paid before it is unknown.
        """
        found: dict[str, list[CorporateAction]] = {}
        for symbol in symbols:
            try:
                listed = self._actions_since(symbol, span.start, deadline)
            except SymbolNotFoundError:
                listed = []
            found[symbol] = [a for a in listed if span.start <= a.ex_date < span.end]
        return found

    def _actions_since(self, symbol: str, start: int, deadline: Deadline) -> list[CorporateAction]:
        days = self._whole_days(Span(start, max(start, self._clock.now_us()) + 1))
        chart = self._chart(symbol, Timeframe.DAY_1, days, _NEVER, deadline)
        if chart.doubt is not None:
            raise chart.doubt
        doubt = doubt_applied(chart.bars, chart.splits, self._midnight())
        if doubt and chart.payments:
            raise unreadable(doubt)
        if not doubt:
            self._book.learn(symbol, start, chart.splits)
        return actions_of(symbol, chart.splits, chart.payments)

    # ---------------------------------------------------------------------- symbols and latest

    def verdict(self, symbol: str, deadline: Deadline) -> SymbolVerdict:
        """Ask for a week of daily bars: "Not Found" is a verdict, an error is none."""
        now_us = self._clock.now_us()
        span = Span(now_us - 7 * DAY, now_us)
        try:
            chart = self._chart(symbol, Timeframe.DAY_1, span, now_us, deadline)
        except SymbolNotFoundError:
            return SymbolVerdict(False)
        except MarketDataError:
            return SymbolVerdict(None)
        return SymbolVerdict(True, chart.name)

    def symbols(self, deadline: Deadline) -> list[str]:
        """Return nothing: Yahoo has no list of symbols."""
        return []

    def assets(self, deadline: Deadline) -> list[Asset]:
        """Return nothing: Yahoo has no list of assets."""
        return []

    def latest(
        self, kind: str, symbols: Sequence[str], feed: str, deadline: Deadline
    ) -> dict[str, Mapping[str, Any]]:
        """Return the newest closed minute bar by symbol; a symbol without one is absent.

        Raises
        ------
        DataUnavailableError
            `kind` is not ``bar``; a retry does not help.
        """
        _check_feed(feed)
        if kind != "bar":
            raise DataUnavailableError(
                f"Yahoo has no {kind}s, only bars",
                cure="ask for the latest bar, or use broker='alpaca'",
            )
        found: dict[str, Mapping[str, Any]] = {}
        for symbol in symbols:
            try:
                bars = self._newest_minutes(symbol, deadline)
            except SymbolNotFoundError:
                continue
            if len(bars):
                values = dict(zip(COLUMNS, bars.values[:, -1].tolist(), strict=True))
                found[symbol] = {"timestamp": int(bars.timestamp[-1]), **values}
        return found

    def _newest_minutes(self, symbol: str, deadline: Deadline) -> Bars:
        """Return the minutes of the running session, or of the last one while it has none."""
        calendar, now_us = self._calendar(), self._clock.now_us()
        at = calendar.session_at(now_us)
        for session in range(at, max(at - 2, -1), -1):
            hours = calendar.session_span(session, "extended")
            if hours.start >= now_us:
                continue
            span = Span(hours.start, min(hours.end, now_us))
            bars = self._chart(symbol, Timeframe.MIN_1, span, now_us, deadline).bars
            if len(bars):
                return bars
        return Bars.empty()


def _check_feed(feed: str) -> None:
    if feed != FEED:
        raise DataUnavailableError(f"Yahoo has one feed, {FEED!r}, not {feed!r}")


def _cut(span: Span, longest: int | None) -> Iterator[Span]:
    if longest is None:
        yield span
        return
    for start in range(span.start, span.end, longest):
        yield Span(start, min(span.end, start + longest))
