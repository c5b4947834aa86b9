"""An Alpaca broker on a sandbox, for the tests of integration, faults and contracts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np

from marketdata.brokers.alpaca import AlpacaBroker
from marketdata.clock import Deadline, FixedClock, to_micros
from marketdata.protocols import BarsPage, BarsRequest
from marketdata.sandbox import Sandbox
from marketdata.spans import Span, normalise
from marketdata.types import Bars, Timeframe

NOW = datetime(2024, 3, 13, 22, 0, tzinfo=UTC)
"""A Wednesday evening, three sessions after a DST change."""
KEY, SECRET = "PK-TEST-KEY", "a-secret-nobody-may-see"


def broker_on(sandbox: Sandbox, **options: Any) -> AlpacaBroker:
    options = {"data_url": sandbox.url, "provider": "sandbox", "clock": sandbox.clock, **options}
    return AlpacaBroker(key_id=KEY, secret_key=SECRET, **options)


def sandbox_at(moment: datetime = NOW, **options: Any) -> Sandbox:
    return Sandbox(clock=FixedClock(moment), **options)


def between(start: datetime, end: datetime) -> Span:
    return Span(to_micros(start), to_micros(end))


def request_for(
    *symbols: str, span: Span, timeframe: str = "1min", feed: str = "sip"
) -> BarsRequest:
    return BarsRequest(symbols, Timeframe(timeframe), span, feed)


class Walked:
    """What the pages of a walk gave together."""

    def __init__(self) -> None:
        self.pages: list[BarsPage] = []
        self.refused: dict[str, str] = {}
        self.rejected: dict[str, int] = {}

    def bars(self, symbol: str) -> Bars:
        return Bars.concat([p.bars[symbol] for p in self.pages if symbol in p.bars])

    def proven(self, symbol: str) -> list[Span]:
        return normalise(p.proven[symbol] for p in self.pages if symbol in p.proven)

    def follow(self, pages: Iterator[BarsPage]) -> None:
        """Take pages until they end or fail; those before an error stay."""
        for page in pages:
            self.add(page)

    def add(self, page: BarsPage) -> None:
        self.pages.append(page)
        self.refused.update(page.refused)
        for reason, count in page.rejected.items():
            self.rejected[reason] = self.rejected.get(reason, 0) + count


def walk(pages: Iterator[BarsPage]) -> Walked:
    found = Walked()
    found.follow(pages)
    return found


def walked(broker: Any, request: BarsRequest, seconds: float = 30) -> Walked:
    return walk(broker.pages(request, Deadline(seconds)))


def truth(sandbox: Sandbox, symbol: str, span: Span, *, daily: bool = False) -> Bars:
    source = sandbox.source
    if daily:
        return source.days(symbol, span, "sip")
    return Bars.concat(list(source.minutes(symbol, span, "sip")))


def assert_same(found: Bars, expected: Bars) -> None:
    np.testing.assert_array_equal(found.timestamp, expected.timestamp)
    np.testing.assert_array_equal(found.values, expected.values)
