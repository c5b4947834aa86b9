"""Every kind of order against every kind of bar, both sides: where it fills, or that it waits."""

from __future__ import annotations

import pytest

from algorithms.matching import price_in_bar, slips, stop_after_entry
from algorithms.orders import Order

CASES: dict[str, tuple[float | None, float | None, tuple[float, float, float], float | None]] = {
    # a buy: limit, stop, (open, high, low), price or None
    "market": (None, None, (100, 101, 99), 100),
    "limit reached inside": (99.5, None, (100, 101, 99), 99.5),
    "limit reached at its price": (99, None, (100, 101, 99), 99),
    "limit missed by a cent": (98.99, None, (100, 101, 99), None),
    "limit better at the open": (102, None, (100, 101, 99), 100),
    "limit at the open": (100, None, (100, 101, 99), 100),
    "stop reached inside": (None, 100.5, (100, 101, 99), 100.5),
    "stop reached at the high": (None, 101, (100, 101, 99), 101),
    "stop missed": (None, 101.01, (100, 101, 99), None),
    "gap through the stop": (None, 98, (100, 101, 99), 100),
    "stop at the open": (None, 100, (100, 101, 99), 100),
    "stop-limit inside": (100.8, 100.5, (100, 101, 99), 100.5),
    "stop-limit, one price": (100.5, 100.5, (100, 101, 99), 100.5),
    "stop-limit, limit below stop": (99.5, 100.5, (100, 101, 99), None),
    "stop-limit missed": (102, 101.5, (100, 101, 99), None),
    "stop-limit, gap within the limit": (101, 98, (100, 102, 99), 100),
    "stop-limit, gap beyond, back": (99.5, 98, (100, 102, 99), 99.5),
    "stop-limit, gap beyond, not back": (98.5, 98, (100, 102, 99), None),
}


def mirrored(price: float | None) -> float | None:
    return None if price is None else 200.0 - price


@pytest.mark.parametrize("name", list(CASES))
def test_a_buy(name: str) -> None:
    limit, stop, (opened, high, low), price = CASES[name]
    assert price_in_bar(Order("1", "X", 10, limit, stop), opened, high, low) == price


@pytest.mark.parametrize("name", list(CASES))
def test_a_sale_mirrors_it(name: str) -> None:
    limit, stop, (opened, high, low), price = CASES[name]
    order = Order("1", "X", -10, mirrored(limit), mirrored(stop))
    assert price_in_bar(order, 200 - opened, 200 - low, 200 - high) == mirrored(price)


@pytest.mark.parametrize("side", [1, -1])
def test_a_stop_limit_whose_stop_was_reached_is_a_limit_order(side: int) -> None:
    order = Order("1", "X", 10 * side, 100 - 0.5 * side, 100 + 0.5 * side)
    assert price_in_bar(order, 100, 101, 99) is None
    assert order.triggered
    # The stop is not reached again, and the limit is.
    assert price_in_bar(order, 100, 100.2, 99.8) is None
    bar = (100, 100.2, 99.4) if side > 0 else (100, 100.6, 99.8)
    assert price_in_bar(order, *bar) == order.limit


@pytest.mark.parametrize("side", [1, -1])
def test_a_stop_loss_in_the_bar_of_its_entry(side: int) -> None:
    stop = Order("2", "X", -10 * side, stop=100 - 5 * side)
    around = {1: (101, 94), -1: (106, 99)}[side]
    assert stop_after_entry(stop, 100, *around) == stop.stop
    assert stop_after_entry(stop, 100, 101, 99) is None
    # An entry beyond its own stop (a gap) leaves at what it paid, never at a better price.
    beyond = 100 - 6 * side
    assert stop_after_entry(stop, beyond, 110, 90) == beyond


def test_a_take_profit_never_fills_in_the_bar_of_its_entry() -> None:
    assert stop_after_entry(Order("2", "X", -10, limit=101), 100, 110, 90) is None


def test_slippage_is_for_what_has_no_limit() -> None:
    assert slips(Order("1", "X", 1))
    assert slips(Order("1", "X", 1, stop=9))
    assert not slips(Order("1", "X", 1, limit=9))
    assert not slips(Order("1", "X", 1, limit=9, stop=9))
