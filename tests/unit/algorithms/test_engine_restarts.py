"""What a restarted process goes on from."""

from __future__ import annotations

import json

import pytest

from algorithms.account import Account
from algorithms.context import Context
from algorithms.engine import Engine
from algorithms.errors import JournalError
from algorithms.frames import market_of
from tests.scripted_runs import (
    FLAT,
    FREE,
    Restless,
    Scripted,
    days,
    engine_on,
    instant,
    random_frame,
)


def test_a_snapshot_is_a_copy_and_plain_json() -> None:
    engine = engine_on(
        {"X": random_frame(1, 40), "Y": random_frame(2, 40)}, Restless(3, timeframe="1min")
    )
    told = engine.snapshot()
    before = json.dumps(told)
    engine.algorithm.state["draws"] = -1
    engine.account.positions["X"] = 12_345.0
    for order in engine.blotter.waiting.values():
        order.quantity = 0.0
    assert json.dumps(told) == before
    assert json.loads(before) == told


def test_what_is_restored_is_the_engine_s_own() -> None:
    engine = engine_on(days([FLAT] * 3), Scripted())
    engine.algorithm.state["seen"] = [1]
    told = engine.snapshot()
    other = engine_on(days([FLAT] * 3), Scripted())
    other.restore(told)
    other.algorithm.state["seen"].append(2)
    assert told["state"] == {"seen": [1]}


def test_a_snapshot_of_what_is_no_longer_watched_is_refused() -> None:
    told = engine_on(days([FLAT] * 3), Scripted({1: lambda ctx: ctx.order(1)})).snapshot()
    other = engine_on({"Y": days([FLAT] * 3)}, Scripted(symbols=["Y"]))
    with pytest.raises(JournalError, match="X is held"):
        other.restore(told)
    with pytest.raises(JournalError, match="version"):
        other.restore({**told, "version": 0})


def test_orders_meet_a_bar_in_the_same_order_after_a_restart() -> None:
    """The children of a bracket come to wait when their entry fills, not when it was given."""
    bars = [FLAT, FLAT, (100.0, 100.0, 95.0, 100.0), FLAT, (100.0, 100.0, 80.0, 90.0), FLAT]

    def script() -> Scripted:
        return Scripted(
            {
                1: lambda ctx: ctx.order(10, limit=96, stop_loss=90),
                2: lambda ctx: ctx.order(-4, stop=90, tag="other"),
            }
        )

    whole = engine_on(days(bars), script())
    market = market_of(days(bars), ["X"], "1day")
    first = Engine(script(), market, Account(100_000.0), FREE)
    first.begin(0)
    first.advance(instant("2023-01-06 16:00"))
    second = Engine(script(), market, Account(0.0), FREE)
    second.begin(first.now)
    second.restore(json.loads(json.dumps(first.snapshot())))
    second.advance(2**62)
    assert [*first.blotter.fills, *second.blotter.fills] == whole.blotter.fills
    assert [f.tag for f in whole.blotter.fills] == ["", "other", ""]


class Eager(Scripted):
    """Orders as it begins, and sets its state as if it had never run."""

    def on_start(self, ctx: Context) -> None:
        self.found = (dict(ctx.positions), [order.id for order in ctx.orders])
        self.state["bars"] = 0
        self.state.setdefault("starts", []).append(ctx.now_us)
        self.first = ctx.order(10)

    def on_bar(self, ctx: Context) -> None:
        self.state["bars"] += 1
        ctx.order(1, limit=90)


def test_a_restart_does_not_show_in_what_is_traded() -> None:
    bars = days([FLAT] * 6)
    whole = Engine(Eager(), market_of(bars, ["X"], "1day"), Account(100_000.0), FREE)
    whole.begin(0)
    whole.advance(2**62)
    market = market_of(bars, ["X"], "1day")
    engine = Engine(Eager(), market, Account(100_000.0), FREE)
    engine.begin(0)
    orders = []
    for moment in market.moments(("X",), "1day", 0, 2**62).tolist():
        orders += [order.id for order in engine.advance(moment).changed if not order.filled]
        told = json.loads(json.dumps(engine.snapshot()))
        engine = Engine(Eager(), market, Account(0.0), FREE)
        engine.begin(moment, resumed=told)
        assert engine.blotter.changed == {}
    assert orders == [order.id for order in whole.blotter.orders[1:]]
    assert engine.account.positions == whole.account.positions == {"X": 10.0}
    assert engine.account.cash == whole.account.cash
    assert engine.algorithm.state["bars"] == whole.algorithm.state["bars"] == 6
    assert len(engine.algorithm.state["starts"]) == 7, "what is changed in place, it has changed"
    assert isinstance(engine.algorithm, Eager)
    assert engine.algorithm.found == ({"X": 10.0}, [o.id for o in whole.blotter.waiting.values()])
    assert (str(engine.algorithm.first.state), engine.blotter.given) == ("rejected", [])


def test_what_on_start_cancels_after_a_restart_is_cancelled() -> None:
    class Tidy(Scripted):
        def on_start(self, ctx: Context) -> None:
            ctx.cancel_all()

    told = engine_on(days([FLAT] * 3), Scripted({2: lambda ctx: ctx.order(1, limit=50)})).snapshot()
    other = Engine(Tidy(), market_of(days([FLAT] * 3), ["X"], "1day"), Account(0.0), FREE)
    other.begin(told["now"], resumed=told)
    assert other.blotter.waiting == {}
    assert [str(o.state) for o in other.blotter.changed.values()] == ["canceled"]
