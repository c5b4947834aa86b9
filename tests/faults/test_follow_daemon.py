"""`follow` beside the real daemon, ``marketdata up``, which is killed and started anew meanwhile."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pandas as pd
import pytest
import redis

from marketdata.client import connect
from marketdata.clock import now as clock_now
from marketdata.clock import parse_clock
from tests.daemons import make_daemons, until
from tests.replayed_market import Market, in_process, make_market
from tests.stack import same

__all__ = ["in_process", "make_daemons", "make_market"]

SYMBOLS = ["AAPL", "MSFT", "S00901"]
CLOCK = "replay:2024-03-14T15:00:00-04:00@60"


@pytest.fixture
def market(make_market: Callable[[str], Market]) -> Market:
    return make_market(CLOCK)


def test_over_restarts_of_the_daemon_and_a_redis_flush_every_bar_comes_once(market: Market) -> None:
    daemon = market.daemons.up()
    taken: list[pd.DataFrame] = []
    with connect(**market.settings) as client, client.follow(SYMBOLS, start="-2min") as closed:

        def take(count: int) -> None:
            taken.extend(next(closed) for _ in range(count))

        until(daemon.is_ready)
        take(4)
        until(lambda: daemon.metric("marketdata_subscriptions") == len(SYMBOLS))
        until(lambda: daemon.metric("marketdata_cycle_seconds_count") >= 1)
        daemon.end(signal.SIGKILL)
        take(3)
        # A replay begins when its process does: this one goes on where the market is by now.
        now = clock_now(client._clock).isoformat()
        daemon = market.daemons.up(clock=f"replay:{now}@60")
        until(daemon.is_ready, 60)
        take(3)
        with redis.Redis.from_url(market.settings["redis_url"]) as server:
            server.flushdb()
        take(3)
        assert daemon.end(signal.SIGTERM)[0] == 0
        take(3)
    times = [frame.index[0][1] for frame in taken]
    begun = times[0]
    assert times == list(pd.date_range(begun, periods=len(times), freq="min")), "missed, or twice"
    assert all(
        set(frame.index.get_level_values(1)) == {at} for frame, at in zip(taken, times, strict=True)
    )
    evening = {"database_schema": "untouched", "clock": "2024-03-14T20:30:00-04:00"}
    market.sandbox.clock = parse_clock(evening["clock"])
    with connect(**{**market.settings, **evening}) as other:
        end = times[-1] + pd.Timedelta("1s")
        same(pd.concat(taken).sort_index(), other.get_bars(SYMBOLS, "1min", start=begun, end=end))
