"""Raw prices from Yahoo's split-adjusted ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from marketdata.brokers.yahoo_chart import Payment
from marketdata.brokers.yahoo_splits import (
    SplitBook,
    SplitList,
    actions_of,
    doubt_applied,
    to_raw,
)
from marketdata.clock import Deadline
from marketdata.errors import DataUnavailableError
from marketdata.types import DAY, Bars, Split
from tests.yahoo_server import micros

EX = micros("2020-08-31 00:00")
FOUR = Split(EX, 4.0, 1.0)


def bars(*rows: tuple[str, float, float]) -> Bars:
    """Return daily bars of (date, price, volume)."""
    times = np.array([micros(f"{day} 00:00") for day, _, _ in rows], np.int64)
    values = np.full((7, len(rows)), np.nan)
    values[:4] = [price for _, price, _ in rows]
    values[4] = [volume for _, _, volume in rows]
    return Bars(times, values)


def as_float32(price: float) -> float:
    return float(np.float32(price))


def test_bars_before_the_ex_date_alone_are_scaled() -> None:
    sent = bars(("2020-08-28", as_float32(124.8075), 187_629_916), ("2020-08-31", 129.04, 225.0))
    raw = to_raw(sent, [FOUR])
    assert raw.values[3].tolist() == [499.23, 129.04]
    assert raw.values[4].tolist() == [46_907_479.0, 225.0]
    assert sent.values[3, 0] == as_float32(124.8075)  # the source is left alone


def test_unsplit_prices_lose_the_noise_of_32_bits() -> None:
    true = [499.23, 87.1234, 3.0001, 0.123456]
    for price in true:
        sent = bars(("2020-08-28", as_float32(price / 4), 400.0))
        assert to_raw(sent, [FOUR]).values[0, 0] == price


def test_without_a_later_split_not_a_bit_changes() -> None:
    sent = bars(("2020-08-31", 76.5999984741211, 12.0), ("2020-09-01", 1 / 3, 7.5))
    assert to_raw(sent, [FOUR]) is sent
    assert to_raw(sent, []) is sent


def test_splits_after_the_window_and_reverse_splits_multiply() -> None:
    later = Split(EX + 900 * DAY, 1.0, 10.0)
    raw = to_raw(bars(("2020-08-28", 100.0, 1000.0)), [FOUR, later])
    assert raw.values[0, 0] == pytest.approx(40.0, abs=1e-9)
    assert raw.values[4, 0] == 2500.0


def test_a_split_named_but_not_applied_is_refused() -> None:
    sent = bars(("2020-08-28", 499.23, 10.0), ("2020-08-31", 127.58, 10.0))
    with pytest.raises(DataUnavailableError, match="not adjusted"):
        to_raw(sent, [FOUR])


def test_an_ordinary_move_at_a_split_is_accepted() -> None:
    sent = bars(("2020-08-28", 124.8, 10.0), ("2020-08-31", 99.0, 10.0))
    assert to_raw(sent, [FOUR]).values[0, 0] == 499.2
    small = Split(EX, 21.0, 20.0)  # a 5 % stock dividend
    moved = bars(("2020-08-28", 105.0, 10.0), ("2020-08-31", 100.0, 10.0))
    assert to_raw(moved, [small]).values[0, 0] == 110.25


def test_a_split_of_today_is_in_doubt_until_the_day_has_a_bar() -> None:
    before = bars(("2020-08-28", 124.8, 10.0))
    assert "after the open" in (doubt_applied(before, [FOUR], today=EX) or "")
    assert doubt_applied(before, [FOUR], today=EX + DAY) is None
    opened = bars(("2020-08-28", 124.8, 10.0), ("2020-08-31", 127.6, 10.0))
    assert doubt_applied(opened, [FOUR], today=EX) is None
    small = Split(EX, 21.0, 20.0)
    assert doubt_applied(before, [small], today=EX) is None


class _Source:
    """Counts how often it is asked; real time and the exchange day are set by the test."""

    def __init__(self, splits: Sequence[Split]) -> None:
        self.splits = splits
        self.asked: list[int] = []
        self.doubt: str | None = None
        self.now = 0.0
        self.day = EX + 2000 * DAY
        self.book = SplitBook(self.ask, lambda: self.day, lambda: self.now)

    def ask(self, symbol: str, start: int, deadline: Deadline) -> SplitList:
        self.asked.append(start)
        return SplitList(tuple(s for s in self.splits if s.ex_date >= start), self.doubt)

    def since(self, start: int) -> tuple[Split, ...]:
        return self.book.since("AAPL", start, Deadline(1)).splits


def test_the_book_answers_later_starts_from_memory() -> None:
    source = _Source([FOUR])
    assert source.since(EX - DAY) == (FOUR,)
    assert source.since(EX) == (FOUR,)
    assert source.since(EX + 1) == ()
    assert source.asked == [EX - DAY]


@pytest.mark.parametrize("change", ["start", "time", "day"])
def test_the_book_asks_again_when_it_cannot_know(change: str) -> None:
    source = _Source([FOUR])
    source.since(EX)
    start = EX
    if change == "start":
        start -= DAY
    elif change == "time":
        source.now += 600.0
    else:
        source.day += DAY
    source.since(start)
    assert len(source.asked) == 2


def test_the_book_does_not_remember_a_doubt() -> None:
    source = _Source([FOUR])
    source.doubt = "not adjusted yet"
    assert source.book.since("AAPL", EX, Deadline(1)).doubt == "not adjusted yet"
    source.doubt = None
    assert source.since(EX) == (FOUR,)
    assert len(source.asked) == 2


# ------------------------------------------------------------------------------------- payments


def test_a_payment_is_multiplied_by_the_splits_after_its_day() -> None:
    later = Split(EX + 900 * DAY, 1.0, 10.0)
    found = actions_of(
        "AAPL",
        [FOUR, later],
        [
            Payment(EX - DAY, 0.205),
            Payment(EX, 0.205),  # of a split's own day: declared on the basis that it leaves
            Payment(EX + DAY, 0.205, gain=True),
            Payment(EX + 901 * DAY, 0.205),
        ],
    )
    paid = [(a.ex_date, a.cash, a.special) for a in found if a.cash is not None]
    assert paid == [
        (EX - DAY, 0.205 * 0.4, False),
        (EX, 0.205 * 0.1, False),
        (EX + DAY, 0.205 * 0.1, True),
        (EX + 901 * DAY, 0.205, False),
    ]
    assert [(a.new, a.old) for a in found if a.cash is None] == [(4.0, 1.0), (1.0, 10.0)]
    assert [a.ex_date for a in found] == sorted(a.ex_date for a in found)
