"""The whole stack for a test: sandbox over HTTP, PostgreSQL, Redis, one client, one clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import pandas as pd
import pytest

from marketdata.client import Client
from marketdata.clock import FixedClock, to_micros
from marketdata.config import Settings
from marketdata.sandbox import Sandbox
from marketdata.sandbox.source import MarketSource
from marketdata.spans import Span
from marketdata.store import PostgresStore
from marketdata.wiring import Runtime
from tests.flaky import Flaky

BARS = "/v2/stocks/bars"
AFTERNOON = "2024-03-14T15:00:30-04:00"
"""A Thursday in session, between the change to summer time and a holiday."""


class Stack:
    """One market, one database, one cache; clients that share the market's clock."""

    def __init__(
        self, sandbox: Sandbox, clock: FixedClock, settings: dict[str, Any], flaky: Flaky
    ) -> None:
        self.sandbox = sandbox
        self._flaky = flaky
        self.clock = clock
        self.settings = settings
        self.client = self.connect()

    def connect(self, **settings: Any) -> Client:
        """Return another client on the same servers and clock."""
        chosen = Settings.load(**{**self.settings, "clock": repr(self.clock), **settings})
        return Client(chosen, clock=self.clock)

    def set_time(self, text: str) -> None:
        self.clock.set(datetime.fromisoformat(text))

    def calls(self, path: str = BARS) -> int:
        """Return how many requests for `path` the market has seen and whose answers arrived."""
        return self.sandbox.requests.count(path) - self._flaky.lost(path)

    def forget_calls(self) -> None:
        self.sandbox.requests.clear()
        self._flaky.forget_lost()

    def flush_redis(self) -> None:
        import redis

        with redis.Redis.from_url(self.settings["redis_url"]) as server:
            server.flushdb()


def runtime(client: Client) -> Runtime:
    """Return the running parts of a client."""
    return client._lazy.get()


@pytest.fixture
def make_stack(database_url: str, redis_db: str, flaky: Flaky) -> Iterator[Callable[..., Stack]]:
    """Return a function that makes a stack: ``make_stack(at=..., source=..., **settings)``."""
    with ExitStack() as closing:

        def make(
            at: str = AFTERNOON,
            source: MarketSource | None = None,
            market: dict[str, Any] | None = None,
            **settings: Any,
        ) -> Stack:
            clock = FixedClock(datetime.fromisoformat(at))
            sandbox = closing.enter_context(Sandbox(source, clock=clock, **(market or {})))
            market_url = flaky.broker(sandbox.url)
            with PostgresStore(database_url) as store:
                store.migrate()
            chosen = {
                "database_url": database_url,
                "redis_url": redis_db,
                "broker": "sandbox",
                "alpaca_url": market_url,
                "alpaca_trading_url": market_url,
                "timeout": 30,
                "progress": "off",
                **settings,
            }
            stack = Stack(sandbox, clock, chosen, flaky)
            closing.callback(stack.client.close)
            return stack

        yield make


@pytest.fixture
def stack(make_stack: Callable[..., Stack]) -> Stack:
    """A stack on the generated market, a Thursday afternoon in session."""
    return make_stack()


def span(start: str, end: str) -> Span:
    return Span(to_micros(datetime.fromisoformat(start)), to_micros(datetime.fromisoformat(end)))


def tiers(frame: pd.DataFrame) -> str:
    return str(frame.attrs["marketdata"]["tiers"])


def pages(frame: pd.DataFrame) -> int:
    return int(frame.attrs["marketdata"]["broker_pages"])


def same(left: pd.DataFrame, right: pd.DataFrame) -> None:
    """Assert bit-for-bit equality of two frames, provenance aside."""
    left, right = left.copy(), right.copy()
    left.attrs, right.attrs = {}, {}
    pd.testing.assert_frame_equal(left, right, check_exact=True, check_freq=False)
