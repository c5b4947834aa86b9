"""Cash, shares, fees and slippage, number by number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms import BasisPoints, Fill, NoFees, NoSlippage, Percent, PerShare, VolumeShare
from algorithms.account import Account


def fill(quantity: float, price: float = 10.0, fee: float = 0.0) -> Fill:
    return Fill(0, "1", "X", quantity, price, fee)


def test_buying_selling_and_selling_short() -> None:
    account = Account(1_000.0)
    assert account.apply(fill(30, 10, 1)) == 30
    assert (account.cash, account.fees) == (699, 1)
    assert account.apply(fill(-50, 12, 1)) == -20
    assert (account.cash, account.positions) == (1_298, {"X": -20})
    assert account.apply(fill(20, 11)) == 0
    assert account.positions == {}
    assert account.cash == 1_078


def test_dust_of_fractions_is_no_position() -> None:
    account = Account(0.0)
    for _ in range(3):
        account.apply(fill(0.1))
    assert account.apply(fill(-0.3)) == 0
    assert account.positions == {}


@pytest.mark.parametrize(
    ("held", "ratio", "fractional", "after", "paid"),
    [
        (10, 2.0, False, 20, 0),
        (7, 1.5, False, 10, 0.5 * 40),
        (-7, 1.5, False, -10, -0.5 * 40),
        (7, 1.5, True, 10.5, 0),
        (5, 0.1, False, 0, 0.5 * 40),
        (7, 3 / 7, False, 3, 0),
        (-7, 3 / 7, False, -3, 0),
        (0, 2.0, False, 0, 0),
    ],
)
def test_a_split(held: int, ratio: float, fractional: bool, after: float, paid: float) -> None:
    account = Account(0.0, {"X": held} if held else {})
    assert account.split("X", ratio, 40.0, fractional=fractional) == pytest.approx(paid)
    assert account.cash == pytest.approx(paid)
    assert account.positions == ({"X": after} if after else {})


def test_a_dividend_is_paid_by_who_is_short() -> None:
    account = Account(0.0, {"X": -20})
    assert account.dividend("X", 0.25) == -5
    assert account.dividend("Y", 0.25) == 0
    assert account.cash == -5


@pytest.mark.parametrize(
    ("fees", "paid"),
    [
        (NoFees(), 0),
        (PerShare(), 1.0),
        (PerShare(0.01, 0.0), 1.0),
        (PerShare(0.02, 1.5), 2.0),
        (Percent(0.001), 5.0),
        (Percent(0.001, 9.0), 9.0),
    ],
)
def test_fees_are_the_same_for_both_sides(fees: Percent, paid: float) -> None:
    assert fees.fee(100, 50.0) == pytest.approx(paid)
    assert fees.fee(-100, 50.0) == pytest.approx(paid)


def test_slippage_is_against_the_trader() -> None:
    assert NoSlippage().price(100, 5, 10) == 100
    assert BasisPoints(10).price(100, 5, 10) == pytest.approx(100.1)
    assert BasisPoints(10).price(100, -5, 10) == pytest.approx(99.9)
    # 20 of 1,000 shares: 100 * 0.1 * 0.02 ** 2
    assert VolumeShare().price(100, 20, 1_000) == pytest.approx(100.004)
    assert VolumeShare().price(100, -20, 1_000) == pytest.approx(99.996)
    assert VolumeShare().most(1_000) == 25
    assert VolumeShare().most(0) == 0


@given(
    st.lists(st.tuples(st.integers(-500, 500).filter(bool), st.integers(1, 10_000)), max_size=40)
)
def test_cash_and_shares_are_the_sums_of_the_fills(trades: list[tuple[int, int]]) -> None:
    account = Account(1e6)
    for quantity, cents in trades:
        account.apply(fill(quantity, cents / 100, 0.01))
    assert account.positions.get("X", 0) == sum(quantity for quantity, _ in trades)
    spent = sum(quantity * cents for quantity, cents in trades) / 100
    assert account.cash == pytest.approx(1e6 - spent - 0.01 * len(trades), abs=1e-6)
