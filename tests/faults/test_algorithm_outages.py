"""Redis and PostgreSQL away while algorithms run: waited for, and caught up in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from algorithms import backtest
from algorithms.costs import NoSlippage
from algorithms.live.journal import Journal
from marketdata.testing.proxy import FlakyProxy
from tests.live_algorithms import Running, Zigzag, registration
from tests.stack import Stack, make_stack, stack

__all__ = ["make_stack", "stack"]

SYMBOLS = ("AAPL", "MSFT")
AWAY = 6
"""Minutes of market time that each outage lasts."""


class Servers:
    """The proxies before the two servers of a runner."""

    def __init__(self, postgresql: FlakyProxy, redis: FlakyProxy) -> None:
        self.postgresql = postgresql
        self.redis = redis

    def lose(self, *proxies: FlakyProxy) -> None:
        for proxy in proxies:
            proxy.refuse()
            proxy.cut()

    def back(self) -> None:
        for proxy in (self.postgresql, self.redis):
            proxy.accept()
            proxy.thaw()


@pytest.fixture
def running(stack: Stack) -> Iterator[tuple[Running, Servers]]:
    """A runner behind proxies, and a journal of the test's own that is never away."""
    with ExitStack() as closing:
        servers = Servers(
            closing.enter_context(FlakyProxy(stack.settings["database_url"])),
            closing.enter_context(FlakyProxy(stack.settings["redis_url"])),
        )
        client = closing.enter_context(
            stack.connect(database_url=servers.postgresql.url, redis_url=servers.redis.url)
        )
        database = stack.client.database()
        journal = Journal(database.url, database.schema)
        closing.callback(journal.close)
        theirs = Journal(servers.postgresql.url, database.schema)
        closing.callback(theirs.close)
        journal.register(registration(symbols=SYMBOLS))
        view: Any = SimpleNamespace(client=client, clock=stack.clock)
        # A short lease: an outage of PostgreSQL outlasts it, as one of minutes does the real one.
        made = Running(view, theirs, lease_seconds=0.8)
        made.journal = journal
        yield made, servers
        servers.back()
        made.runner.stop()
        made._thread.join(20)


def pass_minutes(stack: Stack, pause: float) -> None:
    for _ in range(AWAY):
        stack.clock.advance(minutes=1)
        time.sleep(pause)  # real time, for what is tried in vain


Outage = Callable[[Servers], None]
OUTAGES: dict[str, Outage] = {
    "redis": lambda s: s.lose(s.redis),
    "postgresql": lambda s: s.lose(s.postgresql),
    "both": lambda s: s.lose(s.redis, s.postgresql),
    "redis hangs": lambda s: s.redis.freeze(),
}


def test_outages_of_minutes_lose_and_double_no_order(
    stack: Stack, running: tuple[Running, Servers]
):
    live, servers = running
    live.started()
    began = live.journal.records()[0].cursor
    assert began is not None
    live.minutes(3)
    for name, begin in OUTAGES.items():
        epoch = live.journal.records()[0].epoch
        begin(servers)
        pass_minutes(stack, 0.2)
        stood = live.journal.records()[0]
        servers.back()
        live.caught_up()
        if "redis" not in name:
            assert (stood.cursor or 0) < stack.clock.now_us() - (AWAY - 1) * 60_000_000
            live.until(lambda e=epoch: live.journal.records()[0].epoch > e)  # type: ignore[misc]
        live.minutes(2)
    live.stop()
    result = backtest(
        Zigzag(symbols=SYMBOLS),
        start=pd.Timestamp(began, unit="us", tz="UTC").floor("min"),
        client=stack.client,
        slippage=NoSlippage(),
        progress=False,
    )
    stored = [
        (f[1].rsplit(".", 1)[-1], f[2], round(f[3].timestamp() * 1e6), f[4], f[5])
        for f in live.journal.fills("zigzag")
    ]
    assert stored == [(f.order_id, f.symbol, f.time, f.quantity, f.price) for f in result.run.fills]
    assert {o[0].rsplit(".", 1)[-1]: (o[2], o[11]) for o in live.journal.orders("zigzag")} == {
        o.id: (o.quantity, str(o.state)) for o in result.run.orders
    }
    assert len(stored) > 20
