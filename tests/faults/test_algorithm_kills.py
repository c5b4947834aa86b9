"""Processes that run algorithms are killed between order and fill, and nothing is lost or doubled."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from algorithms import backtest
from algorithms.costs import NoSlippage
from algorithms.live.journal import Journal
from algorithms.live.records import Life
from algorithms.venues.alpaca_paper import AlpacaPaper
from tests.live_algorithms import Zigzag, closed_minute, registration
from tests.live_process import Processes
from tests.stack import Stack, make_stack, stack
from tests.venues import KEY, SECRET

__all__ = ["make_stack", "stack"]

KILLS = 20
SYMBOLS = ("AAPL", "MSFT")


@pytest.fixture
def journal(stack: Stack) -> Iterator[Journal]:
    database = stack.client.database()
    made = Journal(database.url, database.schema)
    yield made
    made.close()


@pytest.fixture
def make_processes(stack: Stack, tmp_path: Path) -> Iterator[Callable[..., Processes]]:
    made: list[Processes] = []

    def make(**more: Any) -> Processes:
        made.append(Processes(tmp_path, stack.clock, client=stack.settings, **more))
        return made[-1]

    yield make
    for processes in made:
        processes.close()


def until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.005)


def caught_up(journal: Journal, stack: Stack) -> Callable[[], bool]:
    closed = closed_minute(stack.clock)
    return lambda: (journal.records()[0].cursor or 0) >= closed


def test_sigkill_between_order_and_fill_loses_and_doubles_no_order(
    stack: Stack, journal: Journal, make_processes: Callable[..., Processes]
):
    chance = random.Random(5)
    journal.register(registration(symbols=SYMBOLS))
    processes = make_processes()
    child = processes.start()
    until(lambda: journal.records()[0].cursor is not None, "the first snapshot")
    began = journal.records()[0].cursor
    assert began is not None
    waiting = 0
    for turn in range(KILLS):
        processes.advance(minutes=1)
        if turn % 2:
            # Its orders are stored and wait for the next bar.
            until(caught_up(journal, stack), "the minute")
            waiting += bool(journal.orders("zigzag", open_only=True))
        else:
            # Anywhere: while it reads, decides or stores.
            time.sleep(chance.uniform(0.0, 0.25))
        assert processes.kill(child) == -signal.SIGKILL
        child = processes.start()
    processes.advance(minutes=2)
    until(caught_up(journal, stack), "the last minutes")
    assert processes.kill(child, signal.SIGTERM) == 0
    assert waiting >= KILLS // 4, "it was killed with orders that waited"

    result = backtest(
        Zigzag(symbols=SYMBOLS),
        start=pd.Timestamp(began, unit="us", tz="UTC").floor("min"),
        client=stack.client,
        slippage=NoSlippage(),
        progress=False,
    )
    assert stored_fills(journal) == [
        (f.order_id, f.symbol, f.time, f.quantity, f.price) for f in result.run.fills
    ]
    assert stored_orders(journal) == {
        o.id: (o.quantity, str(o.state), o.filled) for o in result.run.orders
    }
    assert len(result.run.fills) > 15
    record = journal.records()[0]
    assert record.fills == len(result.run.fills)
    assert record.life is Life.STOPPED
    assert record.runner is None


def stored_fills(journal: Journal) -> list[tuple[str, str, int, float, float]]:
    return [
        (order.rsplit(".", 1)[-1], symbol, micros(when), quantity, price)
        for _, order, symbol, when, quantity, price, _, _ in journal.fills("zigzag")
    ]


def stored_orders(journal: Journal) -> dict[str, tuple[float, str, float]]:
    return {o[0].rsplit(".", 1)[-1]: (o[2], o[11], o[12]) for o in journal.orders("zigzag")}


def micros(when: datetime) -> int:
    return round(when.timestamp() * 1e6)


def test_two_processes_race_and_one_runs_it(
    stack: Stack, journal: Journal, make_processes: Callable[..., Processes]
):
    journal.register(registration())
    processes = make_processes(lease=1.0)
    children = [processes.start() for _ in range(2)]
    until(lambda: journal.records()[0].cursor is not None, "the first snapshot")
    for _ in range(4):
        processes.advance(minutes=1)
        until(caught_up(journal, stack), "the minute")
    record = journal.records()[0]
    owner = next(c for c in children if str(record.runner).endswith(f"/{c}"))
    other = next(c for c in children if c != owner)
    processes.kill(owner)
    processes.advance(minutes=1)
    until(caught_up(journal, stack), "the other to take over")
    assert str(journal.records()[0].runner).endswith(f"/{other}")
    assert journal.records()[0].epoch == record.epoch + 1


def test_ctrl_c_ends_it_after_its_cycle_with_code_130(
    stack: Stack, journal: Journal, make_processes: Callable[..., Processes]
):
    journal.register(registration())
    processes = make_processes()
    child = processes.start()
    until(lambda: journal.records()[0].cursor is not None, "the first snapshot")
    assert processes.kill(child, signal.SIGINT) == 130
    assert journal.records()[0].life is Life.STOPPED
    assert journal.records()[0].runner is None


def test_sigkill_while_a_broker_fills_loses_and_doubles_no_order(
    stack: Stack, journal: Journal, make_processes: Callable[..., Processes]
):
    """Killed before, while and after orders are sent: afterwards the broker has each order once, and
    the journal each of its fills once."""
    chance = random.Random(7)
    journal.register(registration(symbols=SYMBOLS, venue="alpaca"))
    processes = make_processes(venue=stack.sandbox.url)
    child = processes.start()
    until(lambda: journal.records()[0].cursor is not None, "the first snapshot")
    for turn in range(10):
        processes.advance(minutes=1)
        if turn % 3:
            until(caught_up(journal, stack), "the minute")
        time.sleep(chance.uniform(0.0, 0.3))
        assert processes.kill(child) == -signal.SIGKILL
        child = processes.start()
    venue = AlpacaPaper(KEY, SECRET, url=stack.sandbox.url, timeout=5.0)

    def agreed() -> bool:
        if any(o[11] == "open" and o[-1] == "intent" for o in journal.orders("zigzag")):
            return False  # on their way
        fills = [(f[1], f[4], f[5]) for f in journal.fills("zigzag")]
        there = [(f.order_id, f.quantity, f.price) for f in venue.fills_since(0)]
        return sorted(fills) == sorted(there) and venue.positions() == journal.positions("zigzag")

    for _ in range(6):
        processes.advance(minutes=1)
        until(caught_up(journal, stack), "the minute")
        until(agreed, "the broker and the journal to agree")
    assert processes.kill(child, signal.SIGTERM) == 0
    assert len(venue.fills_since(0)) > 5
    filled: dict[str, float] = {}
    for fill in venue.fills_since(0):
        filled[fill.order_id] = filled.get(fill.order_id, 0.0) + fill.quantity
    for order in journal.orders("zigzag"):
        assert filled.pop(order[0], 0.0) == pytest.approx(order[12])
        assert abs(order[12]) <= abs(order[2])
    assert filled == {}, "the broker filled nothing that is not known here"
    venue.close()
