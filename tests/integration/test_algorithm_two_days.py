"""The same algorithms over the same two days, live on a replayed clock and back-tested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import pandas as pd
import pytest

from algorithms import Algorithm, backtest
from algorithms.library import BollingerBreakout, MacdTrend, Pair, RsiReversion, SmaCross
from algorithms.live.journal import Journal
from algorithms.live.sources import make, registration_of
from marketdata.sandbox.generated import GeneratedMarket
from tests.live_algorithms import Running
from tests.stack import Stack, make_stack

__all__ = ["make_stack"]

MINUTE: dict[str, Any] = {"timeframe": "1min"}


def several() -> list[Algorithm]:
    """Return the catalogue's strategies, quick enough to trade within minutes."""
    return [
        SmaCross(fast=4, slow=11, symbols=["AAPL"], **MINUTE),
        # Prices in cents: the two averages are often equal but for their last bits.
        SmaCross(fast=2, slow=3, symbols=["MSFT"], name="Ties", **MINUTE),
        RsiReversion(length=3, trend_length=20, low=45, high=60, stop=0.005, **MINUTE),
        MacdTrend(symbols=["NVDA"], **MINUTE),
        BollingerBreakout(symbols=["TSLA"], **MINUTE),
        Pair(symbols=["AAPL", "MSFT"], length=15, entry=1.2, **MINUTE),
    ]


@pytest.fixture
def live(make_stack: Callable[..., Stack]) -> Iterator[Callable[..., tuple[Running, Stack]]]:
    made: list[Running] = []
    journals: list[Journal] = []

    def begin(at: str, algorithms: list[Algorithm], **market: Any) -> tuple[Running, Stack]:
        stack = make_stack(at=at, **market)
        database = stack.client.database()
        journal = Journal(database.url, database.schema)
        journals.append(journal)
        for each in algorithms:
            journal.register(
                registration_of(each, f"{type(each).__module__}:{type(each).__name__}")
            )
        made.append(Running(stack, journal, factory=make))
        made[-1].started()
        return made[-1], stack

    yield begin
    for running in made:
        running.runner.stop()
        running._thread.join(20)
    for journal in journals:
        journal.close()


def bare(identity: str | None) -> str | None:
    return None if identity is None else identity.rsplit(".", 1)[-1]


def micros(when: Any) -> int | None:
    return None if when is None else round(when.timestamp() * 1e6)


def orders_live(journal: Journal, name: str) -> list[tuple[Any, ...]]:
    found = [
        (
            bare(o[0]), o[1], o[2], o[3], o[4], o[5], micros(o[6]), micros(o[7]),
            bare(o[8]), bare(o[9]), o[10], o[11], o[12], o[13],
        )
        for o in journal.orders(name)
    ]  # fmt: skip
    return sorted(found, key=lambda order: int(str(order[0])))


def orders_tested(run: Any) -> list[tuple[Any, ...]]:
    return [
        (
            o.id, o.symbol, o.quantity, o.limit, o.stop, str(o.time_in_force),
            o.created, o.expires, o.parent, o.twin, o.tag, str(o.state), o.filled,
            o.filled_price if o.filled else None,
        )
        for o in run.orders
    ]  # fmt: skip


def fills_live(journal: Journal, name: str) -> list[tuple[Any, ...]]:
    return [(bare(f[1]), f[2], micros(f[3]), *f[4:8]) for f in journal.fills(name)]


def assert_as_tested(
    running: Running, stack: Stack, algorithms: list[Algorithm], began: dict[str, int]
) -> int:
    """Compare every order and fill with a back-test's; return how many fills there were."""
    journal, count = running.journal, 0
    for each in algorithms:
        record = journal.records([each.name])[0]
        start = pd.Timestamp(began[each.name], unit="us", tz="UTC").floor("min")
        run = backtest(each, start=start, client=stack.client, progress=False).run
        fills = [
            (f.order_id, f.symbol, f.time, f.quantity, f.price, f.fee, f.tag) for f in run.fills
        ]
        assert fills_live(journal, each.name) == fills, each.name
        assert orders_live(journal, each.name) == orders_tested(run), each.name
        assert record.equity == pytest.approx(run.equity[-1], rel=1e-12)
        count += len(fills)
    return count


def beginnings(running: Running) -> dict[str, int]:
    return {r.name: r.cursor for r in running.journal.records() if r.cursor is not None}


def test_two_days_live_and_back_tested_give_identical_orders_and_fills(
    live: Callable[..., tuple[Running, Stack]],
):
    running, stack = live("2024-03-13T09:40:30-04:00", several())
    began = beginnings(running)
    running.minutes(15)
    running.minutes(36, step=10)
    stack.set_time("2024-03-13T20:30:00-04:00")
    running.caught_up_to("2024-03-13T16:00:00-04:00")
    stack.set_time("2024-03-14T09:31:30-04:00")
    running.caught_up()
    running.minutes(10)
    running.minutes(25, step=15)
    stack.set_time("2024-03-14T16:30:00-04:00")
    running.caught_up_to("2024-03-14T16:00:00-04:00")
    running.stop()
    fills = assert_as_tested(running, stack, several(), began)
    assert fills > 100
    assert all(record.fills for record in running.journal.records())


@pytest.mark.filterwarnings("ignore::marketdata.SplitInRangeWarning")
def test_a_split_overnight_is_booked_live_as_in_a_back_test(
    live: Callable[..., tuple[Running, Stack]],
):
    algorithms: list[Algorithm] = [SmaCross(fast=4, slow=11, symbols=["AAPL"], **MINUTE)]
    running, stack = live("2024-03-14T15:20:30-04:00", algorithms)
    began = beginnings(running)
    market = stack.sandbox.source
    assert isinstance(market, GeneratedMarket)
    running.minutes(20)
    held = until_it_holds(running)
    market.add_split("AAPL", date(2024, 3, 15), 4.0, announced=date(2024, 3, 14))
    stack.set_time("2024-03-14T18:00:00-04:00")
    running.caught_up_to("2024-03-14T16:00:00-04:00")
    held = running.journal.positions("SmaCross") or held
    stack.set_time("2024-03-15T09:30:30-04:00")
    running.minutes(1)
    running.minutes(30)
    running.stop()
    assert held
    assert assert_as_tested(running, stack, algorithms, began) > 4


def until_it_holds(running: Running) -> dict[str, float]:
    """Let minutes pass until the strategy holds shares; the session's end is far enough."""
    for _ in range(15):
        held = running.journal.positions("SmaCross")
        if held:
            return held
        running.minutes(1)
    raise AssertionError("it never held anything")
