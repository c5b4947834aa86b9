"""Two markets behind one chain: one speaks as Alpaca does, the other as Yahoo; one clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import pytest

from marketdata.client import Client
from marketdata.clock import FixedClock
from marketdata.config import Settings
from marketdata.sandbox import Sandbox
from marketdata.sandbox.generated import GeneratedMarket
from marketdata.sandbox.source import Asset
from marketdata.store import PostgresStore
from tests.stack import AFTERNOON, BARS

CHART = "/v8/finance/chart"
SPLITS = "/v1/corporate-actions"


class Hiding(GeneratedMarket):
    """A generated market that does not know some symbols."""

    def __init__(self, seed: int, hidden: tuple[str, ...] = ()) -> None:
        super().__init__(seed)
        self.hidden = set(hidden)

    def asset(self, symbol: str) -> Asset | None:
        return None if symbol in self.hidden else super().asset(symbol)


class TwoBrokers:
    """Two sandboxes with other prices each, one store, and clients of a chain.

    Attributes
    ----------
    alpaca, yahoo : Sandbox
        Their hosts are the providers.
    client : Client
        Of the chain ``alpaca,yahoo``.
    """

    def __init__(
        self, alpaca: Sandbox, yahoo: Sandbox, clock: FixedClock, settings: dict[str, Any]
    ) -> None:
        self.alpaca = alpaca
        self.yahoo = yahoo
        self.clock = clock
        self.settings = {
            **settings,
            "alpaca_key_id": "id",
            "alpaca_secret_key": "secret",
            "alpaca_url": alpaca.url,
            "alpaca_trading_url": alpaca.url,
            "yahoo_url": yahoo.url,
        }
        self._closing = ExitStack()
        self.client = self.connect()

    def connect(self, broker: str = "alpaca,yahoo", **settings: Any) -> Client:
        """Return another client, closed with the rest."""
        chosen = {**self.settings, "clock": repr(self.clock), "broker": broker, **settings}
        client = Client(Settings.load(**chosen), clock=self.clock)
        self._closing.callback(client.close)
        return client

    @property
    def first(self) -> str:
        """Under which provider the bars of the market that speaks as Alpaca are kept."""
        return self.alpaca.url.removeprefix("http://")

    @property
    def second(self) -> str:
        return self.yahoo.url.removeprefix("http://")

    def calls(self) -> tuple[int, int]:
        """Return how often bars have been asked for: of the first market, of the second."""
        return self.alpaca.requests.count(BARS), self.yahoo.requests.count(CHART)

    def forget_calls(self) -> None:
        self.alpaca.requests.clear()
        self.yahoo.requests.clear()

    def alpaca_is_down(self, kind: str = "reset") -> None:
        """Have every request to the first market fail, until its faults are cleared."""
        self.alpaca.faults.add(kind, times=None)  # type: ignore[arg-type]

    def close(self) -> None:
        self._closing.close()


@pytest.fixture
def make_two(database_url: str, redis_db: str) -> Iterator[Callable[..., TwoBrokers]]:
    """Return a function that makes two brokers: ``make_two(hidden=("KO",), at=...)``."""
    with ExitStack() as closing:

        def make(
            hidden: tuple[str, ...] = (),
            hidden_there: tuple[str, ...] = (),
            at: str = AFTERNOON,
            market: dict[str, Any] | None = None,
            **settings: Any,
        ) -> TwoBrokers:
            clock = FixedClock(datetime.fromisoformat(at))
            here = Sandbox(Hiding(7, hidden), clock=clock, **(market or {}))
            there = Sandbox(Hiding(8, hidden_there), clock=clock)
            closing.enter_context(here)
            closing.enter_context(there)
            with PostgresStore(database_url) as store:
                store.migrate()
            chosen = {
                "database_url": database_url,
                "redis_url": redis_db,
                "timeout": 30,
                "progress": "off",
                **settings,
            }
            two = TwoBrokers(here, there, clock, chosen)
            closing.callback(two.close)
            return two

        yield make


@pytest.fixture
def two(make_two: Callable[..., TwoBrokers]) -> TwoBrokers:
    """Both markets know everything but KO, which only the second one has."""
    return make_two(hidden=("KO",))
