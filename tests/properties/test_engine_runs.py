"""Whatever a strategy orders: no look-ahead, the same run twice, the same after any restart."""

from __future__ import annotations

import json
import pickle
from functools import lru_cache
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms import Percent, VolumeShare
from algorithms.account import Account
from algorithms.backtest import run
from algorithms.blotter import Costs
from algorithms.engine import Engine
from algorithms.frames import market_of
from algorithms.market import MarketData
from algorithms.orders import Order
from algorithms.persistence import order_of, order_record
from algorithms.run_record import BacktestRun
from algorithms.series import AdjustmentStep, ShareAction
from tests.scripted_runs import Restless, instant, random_frame

COSTS = Costs(Percent(0.0003), VolumeShare(0.2, 0.05), leverage=2.0)
SPLIT, DIVIDEND = instant("2023-01-03 10:40:30"), instant("2023-01-03 11:10:30")
BARS = 160

seeds = st.integers(0, 400)


@lru_cache(maxsize=8)
def market(seed: int) -> MarketData:
    """Two symbols with missing minutes; one splits 3 for 2 and pays a dividend."""
    frames = {"X": random_frame(seed, BARS, 0.15), "Y": random_frame(seed + 1_000, BARS, 0.3)}
    found = market_of(frames, ["X", "Y"], "1min")
    found.set_actions(
        "X",
        [AdjustmentStep(SPLIT, 2 / 3, 1.5)],
        [ShareAction(SPLIT, "split", 1.5), ShareAction(DIVIDEND, "cash_dividend", cash=0.25)],
    )
    return found


def restless(seed: int) -> Restless:
    return Restless(seed, timeframe="1min", fractional=bool(seed % 2))


def recorded(seed: int, on: MarketData) -> BacktestRun:
    return run(restless(seed), on, 0, costs=COSTS)


def outcome(record: BacktestRun) -> bytes:
    """Return all that a run decided and did, as bytes."""
    orders = [order_record(order) for order in record.orders]
    return json.dumps([orders, record.fills, record.actions.__repr__()]).encode()


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_two_runs_are_the_same_to_the_last_byte(seed: int) -> None:
    one, two = recorded(seed, market(seed)), recorded(seed, market(seed))
    assert outcome(one) == outcome(two)
    # Nor does it matter what was computed before, or where.
    sent = pickle.loads(pickle.dumps(market(seed)))
    assert outcome(recorded(seed, sent)) == outcome(one)


@given(seeds, st.integers(0, BARS))
@settings(max_examples=60, deadline=None)
def test_invariant_40_what_comes_later_changes_nothing_earlier(seed: int, cut: int) -> None:
    whole = market(seed)
    record = recorded(seed, whole)
    until = instant("2023-01-03 09:30") + cut * 60_000_000
    short = recorded(seed, whole.until(until))
    count = int(np.searchsorted(record.times, until, side="right"))
    np.testing.assert_array_equal(short.times, record.times[:count])
    for name in ("equity", "cash_curve"):
        np.testing.assert_allclose(getattr(short, name), getattr(record, name)[:count], rtol=1e-12)
    assert short.fills == [fill for fill in record.fills if fill.time < until][: len(short.fills)]
    known = [(o.id, o.symbol, o.created, o.tag) for o in record.orders if o.created <= until]
    assert [(o.id, o.symbol, o.created, o.tag) for o in short.orders] == known


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_invariant_40_every_fill_is_in_a_bar_after_the_one_it_was_decided_on(seed: int) -> None:
    held = market(seed)
    record = recorded(seed, held)
    created = {order.id: order.created for order in record.orders}
    assert record.fills
    for fill in record.fills:
        series = held.of(fill.symbol, "1min")
        at = int(np.searchsorted(series.labels[: series.size], fill.time))
        # The bar is one that exists, opens at or after the decision, and its range holds the price
        # but for slippage.
        assert series.labels[at] == fill.time
        assert fill.time >= created[fill.order_id]
        low, high = series.raw[2, at], series.raw[1, at]
        assert low * 0.99 <= fill.price <= high * 1.01


@given(seeds, st.lists(st.integers(1, BARS), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_a_restart_at_any_moment_goes_on_as_if_there_was_none(
    seed: int, restarts: list[int]
) -> None:
    held = market(seed)
    record = recorded(seed, held)
    engine = Engine(restless(seed), held, Account(100_000.0), COSTS)
    engine.begin(engine.ready(0) - 1)
    fills: list[Any] = []
    states: dict[str, Any] = {}
    for moment in [
        *sorted({instant("2023-01-03 09:30") + r * 60_000_000 for r in restarts}),
        2**62,
    ]:
        step = engine.advance(moment)
        fills += step.fills
        states.update((o.id, order_record(o)) for o in step.changed)
        told = json.loads(json.dumps(engine.snapshot()))
        after = Engine(restless(seed), held, Account(0.0), COSTS)
        after.begin(engine.now)
        after.restore(told)
        assert json.dumps(after.snapshot()) == json.dumps(engine.snapshot())
        engine = after
    assert fills == record.fills
    # What the steps told of orders is what became of them.
    assert states == {o.id: order_record(o) for o in record.orders}


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_money_is_neither_made_nor_lost(seed: int) -> None:
    record = recorded(seed, market(seed))
    cash = 100_000 - sum(f.quantity * f.price + f.fee for f in record.fills)
    cash += sum(action.cash for action in record.actions)
    shares = {s: record.positions[s][-1] for s in record.symbols}
    worth = sum(q * record.closes[s][-1] for s, q in shares.items() if q)
    np.testing.assert_allclose(record.equity[-1], cash + worth, rtol=1e-9)
    # Whole shares stay whole, and every order says truly what was filled of it.
    if not seed % 2:
        assert all(fill.quantity == int(fill.quantity) for fill in record.fills)
        assert all(order.quantity == int(order.quantity) for order in record.orders)
    for order in record.orders:
        assert abs(order.filled) <= abs(order.quantity) + 1e-6


@given(
    st.builds(
        Order,
        st.text(min_size=1, max_size=5), st.sampled_from("XY"),
        st.floats(allow_nan=False, allow_infinity=False),
        st.none() | st.floats(0.01, 1e6), st.none() | st.floats(0.01, 1e6),
        created=st.integers(0, 2**62), expires=st.none() | st.integers(0, 2**62),
        filled=st.floats(-1e9, 1e9), filled_price=st.floats(allow_infinity=False),
        triggered=st.booleans(), reason=st.text(max_size=9),
    )
)  # fmt: skip
def test_an_order_survives_json_to_the_last_bit(order: Order) -> None:
    told = json.loads(json.dumps(order_record(order)))
    assert order_record(order_of(told)) == order_record(order)
