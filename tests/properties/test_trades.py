"""Whatever is traded, the money of the trades is the money of the account."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.orders import Fill
from algorithms.run_record import AppliedAction
from algorithms.trades import Trade, trades_of
from tests.algorithm_runs import Book

CASH = 1_000_000.0
SYMBOLS = ("AAPL", "KO")

prices = st.floats(0.5, 900).map(lambda p: round(p, 2))
quantities = st.one_of(
    st.integers(-300, 300).filter(bool).map(float),
    st.floats(-50, 50).map(lambda q: round(q, 6)).filter(bool),
)
events = st.lists(
    st.one_of(
        st.tuples(st.just("fill"), st.sampled_from(SYMBOLS), quantities, prices, st.floats(0, 9)),
        st.tuples(
            st.just("split"), st.sampled_from(SYMBOLS),
            st.sampled_from([2.0, 4.0, 1.5, 0.1, 1 / 3]), prices, st.none(),
        ),
        st.tuples(
            st.just("dividend"), st.sampled_from(SYMBOLS), st.floats(0.01, 3), st.none(), st.none()
        ),
    ),
    max_size=40,
)  # fmt: skip


def played(
    story: list[tuple[Any, ...]],
) -> tuple[list[Fill], list[AppliedAction], Book, dict[str, float]]:
    book, fills, actions, last = Book(CASH), [], [], dict.fromkeys(SYMBOLS, 10.0)
    for time, (what, symbol, number, price, fee) in enumerate(story):
        if what == "fill":
            fills.append(Fill(time, f"o{time}", symbol, number, price, fee))
            book.fill(fills[-1])
            last[symbol] = price
        elif what == "split":
            actions.append(book.split(time, symbol, number, price))
            last[symbol] = price
        else:
            actions.append(book.dividend(time, symbol, number))
    return fills, actions, book, last


@given(events)
def test_the_account_gains_what_its_trades_gain(story: list[tuple[Any, ...]]) -> None:
    fills, actions, book, last = played(story)

    trades = trades_of(fills, actions=actions, last_prices=last)

    gained = book.equity(last) - CASH
    assert math.fsum(t.pnl for t in trades) == pytest.approx(gained, abs=1e-6)


@given(events)
def test_open_trades_are_the_positions(story: list[tuple[Any, ...]]) -> None:
    fills, actions, book, last = played(story)

    trades = trades_of(fills, actions=actions, last_prices=last)

    for symbol in SYMBOLS:
        held = [t.quantity for t in trades if t.symbol == symbol and not t.closed]
        assert sum(held) == pytest.approx(book.shares.get(symbol, 0.0), abs=1e-8)
        assert len({math.copysign(1, q) for q in held}) <= 1, "lots of both sides at once"


@given(events)
def test_fees_and_dividends_are_shared_out_whole(story: list[tuple[Any, ...]]) -> None:
    fills, actions, _, last = played(story)

    trades = trades_of(fills, actions=actions, last_prices=last)

    distributed = math.fsum(a.cash for a in actions if not a.paid_out)
    assert math.fsum(t.fees for t in trades) == pytest.approx(math.fsum(f.fee for f in fills))
    assert math.fsum(t.dividends for t in trades) == pytest.approx(distributed, abs=1e-6)
    assert all(t.pnl == _own_pnl(t) for t in trades)


@given(events)
def test_time_runs_forward_and_the_oldest_go_first(story: list[tuple[Any, ...]]) -> None:
    fills, actions, _, last = played(story)

    trades = trades_of(fills, actions=actions, last_prices=last)

    closed = [t for t in trades if t.closed]
    assert all(t.exit_time is not None and t.entry_time <= t.exit_time for t in closed)
    assert [t.exit_time for t in closed] == sorted(t.exit_time or 0 for t in closed)
    for symbol in SYMBOLS:
        entries = [t.entry_time for t in trades if t.symbol == symbol]
        assert entries == sorted(entries)


def _own_pnl(trade: Trade) -> float:
    gain = (trade.exit_price - trade.entry_price) * trade.quantity
    return gain - trade.fees + trade.dividends
