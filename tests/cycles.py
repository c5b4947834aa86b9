"""An aggregator on the whole stack of a test, and what it should have brought."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from marketdata.aggregator import Aggregator
from marketdata.calendars import EXCHANGE, TradingCalendar, calendar_for
from marketdata.client import Client
from marketdata.clock import to_micros
from marketdata.cycle_report import CycleReport
from marketdata.protocols import ReadRequest, SeriesState
from marketdata.sandbox.source import MarketSource
from marketdata.spans import Span
from marketdata.types import Bars, SeriesKey, Timeframe
from tests.stack import Stack, runtime, tiers


@dataclass
class Ward:
    """An aggregator that looks after `symbols`, and what it passed on."""

    stack: Stack
    symbols: list[str]
    timeframes: Sequence[str] = ("1min",)
    told: list[tuple[list[SeriesKey], int]] = field(default_factory=list)
    computed: list[dict[SeriesKey, Bars]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stop = threading.Event()
        self.runtime = runtime(self.stack.client)
        self.aggregator = Aggregator(
            self.runtime,
            self.stop,
            wanted=lambda: [(s, t) for t in self.timeframes for s in self.symbols],
            indicators=self,
            notify=lambda keys, until: self.told.append((list(keys), until)),
        )

    def update(
        self, closed: Mapping[SeriesKey, Bars], revisions: Mapping[SeriesKey, tuple[int, int]]
    ) -> int:
        """Note what the indicators would be told."""
        self.computed.append({key: bars for key, bars in closed.items() if len(bars)})
        self.revisions = dict(revisions)
        return len(self.computed[-1])

    def fill(self, stop: threading.Event, seconds: float) -> int:
        return 0

    def cycle(self, at: str | None = None) -> CycleReport:
        if at is not None:
            self.stack.set_time(at)
        self.told.clear()
        self.computed.clear()
        return self.aggregator.cycle()

    def key(self, symbol: str, timeframe: Timeframe = Timeframe.MIN_1) -> SeriesKey:
        return SeriesKey(self.runtime.provider, self.runtime.source.feed, symbol, timeframe)

    def state(self, symbol: str, timeframe: Timeframe = Timeframe.MIN_1) -> SeriesState:
        key = self.key(symbol, timeframe)
        return self.runtime.store.states([key])[key]

    def stored(self, symbol: str, span: Span, timeframe: Timeframe = Timeframe.MIN_1) -> Bars:
        key = self.key(symbol, timeframe)
        return self.runtime.store.read([ReadRequest(key, span)])[key][1]


def micros(text: str) -> int:
    return to_micros(datetime.fromisoformat(text))


def calendar() -> TradingCalendar:
    return calendar_for(EXCHANGE, micros("2026-11-20T00:00+00:00"))


def of_market(
    source: MarketSource, symbol: str, span: Span, timeframe: Timeframe = Timeframe.MIN_1
) -> Bars:
    """Return what the market has in `span`, whatever the time is."""
    if timeframe is Timeframe.DAY_1:
        return source.days(symbol, span, "sip")
    return Bars.concat(list(source.minutes(symbol, span, "sip")))


def assert_same_bars(left: Bars, right: Bars) -> None:
    assert left.timestamp.tolist() == right.timestamp.tolist()
    np.testing.assert_array_equal(left.values, right.values)


def serves_from_redis(client: Client, symbols: Iterable[str], **query: object) -> bool:
    """Whether the default call of every symbol is answered by Redis alone."""
    frames = [client.get_bars(s, "1min", limit=500, **query) for s in symbols]  # type: ignore[arg-type]
    return {tiers(frame) for frame in frames} == {"redis:1"}
