"""Trades worked by hand, one rule at a time."""

from __future__ import annotations

import math

import pytest

from algorithms.orders import Fill
from algorithms.run_record import AppliedAction
from algorithms.trades import Trade, trades_of


def fill(time: int, quantity: float, price: float, fee: float = 0.0, tag: str = "") -> Fill:
    return Fill(time, f"o{time}", "AAPL", quantity, price, fee, tag)


def test_a_sale_closes_the_oldest_shares_first() -> None:
    trades = trades_of([fill(1, 10, 100), fill(2, 10, 110), fill(3, -15, 120)])

    assert [(t.quantity, t.entry_time, t.exit_time, t.pnl) for t in trades] == [
        (10, 1, 3, 200.0),
        (5, 2, 3, 50.0),
        (5, 2, None, 50.0),
    ]
    assert [t.closed for t in trades] == [True, True, False]


def test_fees_go_with_the_shares_they_were_paid_for() -> None:
    trades = trades_of([fill(1, 10, 100, fee=2.0), fill(2, -4, 100, fee=1.0)])

    assert [t.fees for t in trades] == pytest.approx([0.8 + 1.0, 1.2])
    assert [t.pnl for t in trades] == pytest.approx([-1.8, -1.2])


def test_a_fill_through_zero_closes_and_opens() -> None:
    trades = trades_of(
        [fill(1, 10, 100, tag="in"), fill(2, -30, 90, fee=3.0, tag="turn"), fill(3, 20, 80)]
    )

    assert trades[0] == Trade("AAPL", 10, 1, 2, 100, 90, 1.0, 0, -101.0, "in", "turn", True)
    assert trades[1] == Trade("AAPL", -20, 2, 3, 90, 80, 2.0, 0, 198.0, "turn", "", True)
    assert len(trades) == 2


def test_a_split_changes_shares_and_price_of_what_is_held() -> None:
    split = AppliedAction(2, "AAPL", "split", ratio=4.0)

    (trade,) = trades_of([fill(1, 10, 400), fill(3, -40, 110)], actions=[split])

    assert (trade.quantity, trade.entry_price, trade.pnl) == (40, 100, 400)


def test_a_split_at_the_instant_of_a_fill_comes_first() -> None:
    split = AppliedAction(3, "AAPL", "split", ratio=2.0)

    (trade,) = trades_of([fill(1, 10, 100), fill(3, -20, 50)], actions=[split])

    assert (trade.quantity, trade.pnl) == (20, 0)


def test_the_fraction_a_split_leaves_is_a_trade_for_cash() -> None:
    split = AppliedAction(2, "AAPL", "split", cash=0.5 * 62, ratio=1.5, paid_out=0.5)

    trades = trades_of([fill(1, 7, 90)], actions=[split], last_prices={"AAPL": 62.0})

    assert [(t.quantity, t.exit_price, t.exit_tag, t.closed) for t in trades] == [
        (0.5, 62.0, "split", True),
        (10.0, 62.0, "", False),
    ]
    assert sum(t.pnl for t in trades) == pytest.approx(10.5 * 62 - 7 * 90)


def test_dividends_belong_to_the_lots_that_held_them() -> None:
    paid = AppliedAction(3, "AAPL", "cash_dividend", cash=30.0)

    trades = trades_of(
        [fill(1, 20, 100), fill(2, 10, 100), fill(4, -5, 100), fill(5, 10, 100)], actions=[paid]
    )

    assert [(t.quantity, t.dividends) for t in trades] == [(5, 5), (15, 15), (10, 10), (10, 0)]


def test_a_short_pays_the_dividend() -> None:
    paid = AppliedAction(2, "AAPL", "cash_dividend", cash=-5.0)

    (trade,) = trades_of([fill(1, -10, 100), fill(3, 10, 90)], actions=[paid])

    assert (trade.quantity, trade.dividends, trade.pnl) == (-10, -5, 95)


def test_a_merger_for_cash_closes_all() -> None:
    merger = AppliedAction(9, "AAPL", "merger", cash=1_200.0, paid_out=10.0)

    (trade,) = trades_of([fill(1, 10, 100)], actions=[merger])

    assert (trade.exit_time, trade.exit_price, trade.pnl, trade.exit_tag) == (9, 120, 200, "merger")


def test_actions_of_what_is_not_held_do_nothing() -> None:
    split = AppliedAction(0, "AAPL", "split", ratio=4.0)

    (trade,) = trades_of([fill(1, 10, 100)], actions=[split])

    assert (trade.quantity, trade.entry_price) == (10, 100)


def test_an_open_trade_is_worth_the_last_close_or_the_last_fill() -> None:
    fills = [fill(1, 10, 100), fill(2, 5, 104)]

    assert [t.pnl for t in trades_of(fills)] == [40, 0]
    assert [t.pnl for t in trades_of(fills, last_prices={"AAPL": 110.0})] == [100, 30]
    assert [t.pnl for t in trades_of(fills, last_prices={"AAPL": math.nan})] == [40, 0]


def test_an_open_trade_follows_a_split_after_the_last_fill() -> None:
    split = AppliedAction(2, "AAPL", "split", ratio=2.0)

    (trade,) = trades_of([fill(1, 10, 100)], actions=[split])

    assert (trade.quantity, trade.entry_price, trade.pnl) == (20, 50, 0)


def test_thirds_of_a_share_close_without_dust() -> None:
    fills = [fill(1, 0.3, 100), fill(2, -0.1, 100), fill(3, -0.1, 100), fill(4, -0.1, 100)]

    assert [t.closed for t in trades_of(fills)] == [True, True, True]


def test_symbols_do_not_meet() -> None:
    other = Fill(2, "o2", "KO", -10.0, 60.0)

    assert [t.closed for t in trades_of([fill(1, 10, 100), other])] == [False, False]


def test_return_is_of_the_entry() -> None:
    (long,) = trades_of([fill(1, 10, 100), fill(2, -10, 110)])
    (short,) = trades_of([fill(1, -10, 100), fill(2, 10, 90)])

    assert long.return_on_entry == pytest.approx(0.1)
    assert short.return_on_entry == pytest.approx(0.1)
    assert math.isnan(long._replace(entry_price=0.0).return_on_entry)
