"""Factors of every kind of action: identity, composition, order, windows, and a vendor's table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata.action_steps import Closes
from marketdata.adjust import ALWAYS, Factors, concerned, doubts, factors
from marketdata.corporate_actions import (
    DISTRIBUTIONS,
    SHARE_CHANGES,
    ActionKind,
    CorporateAction,
    known_at,
)
from marketdata.errors import DataQualityError, DataUnavailableError
from marketdata.types import DAY, Adjustment, Bars, Floats

ADJUSTMENTS: Final[tuple[Adjustment, ...]] = ("raw", "split", "dividend", "all")
SESSIONS: Final = 60


@st.composite
def markets(draw: st.DrawFn) -> tuple[Bars, list[CorporateAction], Closes]:
    """Sixty sessions with actions that have a factor, one kind of them a day."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = random.uniform(10, 500, (7, SESSIONS))
    stamps = np.arange(SESSIONS, dtype=np.int64) * DAY
    bars = Bars(stamps, values)
    actions: list[CorporateAction] = []
    before: dict[int, float] = {}
    spun: dict[tuple[str, int], float] = {}
    days = draw(st.lists(st.integers(1, SESSIONS - 1), unique=True, max_size=8))
    for day in days:
        ex = day * DAY
        close = before[ex] = float(values[3, day - 1])
        kinds = draw(st.sampled_from(["split", "stock", "cash", "twice", "spin", "both"]))
        if kinds in ("split", "both"):
            new, old = draw(st.integers(1, 20)), draw(st.integers(1, 20))
            order = 0 if kinds == "both" else None
            actions.append(
                CorporateAction("X", ActionKind.SPLIT, ex, new=new, old=old, order=order)
            )
            close *= old / new
        if kinds == "stock":
            actions.append(CorporateAction("X", ActionKind.STOCK_DIVIDEND, ex, new=1, old=20))
        if kinds in ("cash", "twice", "both"):
            order = 1 if kinds == "both" else None
            for share in (0.01, 0.2)[: 2 if kinds == "twice" else 1]:
                actions.append(
                    CorporateAction(
                        "X", ActionKind.CASH_DIVIDEND, ex, cash=close * share, order=order
                    )
                )
        if kinds == "spin":
            spun["S", ex] = close * draw(st.floats(0.01, 1.5))
            actions.append(
                CorporateAction("X", ActionKind.SPIN_OFF, ex, new=1, old=2, other_symbol="S")
            )
    actions.append(CorporateAction("X", ActionKind.NAME_CHANGE, 5 * DAY, other_symbol="Y"))
    return bars, draw(st.permutations(actions)), Closes(before, spun)


def price_and_volume(found: Factors, bars: Bars) -> Floats:
    return np.stack(found.at(bars.timestamp))


@settings(max_examples=100, deadline=None)
@given(markets())
def test_invariant_32_nothing_applied_is_nothing_changed(market):
    bars, actions, closes = market
    for adjustment in ADJUSTMENTS:
        assert factors([], closes, adjustment).apply(bars) is bars
    assert factors(actions, closes, "raw").apply(bars) is bars


@settings(max_examples=100, deadline=None)
@given(markets(), st.integers(0, 2**9))
def test_invariant_32_factors_compose(market, chosen: int):
    """Over any two parts of the ex-dates, and over the two families."""
    bars, actions, closes = market
    some = [a for a in actions if chosen >> (a.ex_date // DAY % 9) & 1]
    others = [a for a in actions if a not in some]
    for adjustment in ADJUSTMENTS:
        whole = price_and_volume(factors(actions, closes, adjustment), bars)
        parts = [price_and_volume(factors(p, closes, adjustment), bars) for p in (some, others)]
        np.testing.assert_allclose(whole, parts[0] * parts[1], rtol=1e-13)
    families = [price_and_volume(factors(actions, closes, a), bars) for a in ("split", "dividend")]
    whole = price_and_volume(factors(actions, closes, "all"), bars)
    np.testing.assert_allclose(whole, families[0] * families[1], rtol=1e-13)


@settings(max_examples=100, deadline=None)
@given(markets())
def test_factors_equal_a_loop_over_the_definition(market):
    bars, actions, closes = market
    found = price_and_volume(factors(actions, closes, "all"), bars)
    for at, stamp in enumerate(bars.timestamp.tolist()):
        np.testing.assert_allclose(found[:, at], by_definition(actions, closes, stamp), rtol=1e-12)


def by_definition(actions: Sequence[Any], closes: Closes, stamp: int) -> tuple[float, float]:
    """Return price and volume factor of a bar, action after action."""
    price = volume = 1.0
    for ex in {a.ex_date for a in actions if a.ex_date > stamp}:
        together = [a for a in actions if a.ex_date == ex]
        close = closes.before.get(ex, 0.0)
        for a in together:
            if a.kind is ActionKind.SPLIT:
                price, volume = price * a.old / a.new, volume * a.new / a.old
                close = close * a.old / a.new
            if a.kind is ActionKind.STOCK_DIVIDEND:
                price, volume = price / (1 + a.new / a.old), volume * (1 + a.new / a.old)
        paid = 0.0
        for a in together:
            if a.kind is ActionKind.CASH_DIVIDEND:
                paid += a.cash
            if a.kind is ActionKind.SPIN_OFF:
                paid += a.new / a.old * closes.spun[a.other_symbol, ex]
        if paid:
            price *= 1 - paid / close
    return price, volume


@settings(max_examples=100, deadline=None)
@given(markets())
def test_the_order_in_which_actions_arrive_does_not_matter(market):
    bars, actions, closes = market
    for adjustment in ADJUSTMENTS:
        there = price_and_volume(factors(actions, closes, adjustment), bars)
        back = price_and_volume(factors(actions[::-1], closes, adjustment), bars)
        np.testing.assert_array_equal(there, back)


@settings(max_examples=100, deadline=None)
@given(markets(), st.integers(0, SESSIONS - 1), st.integers(0, SESSIONS - 1))
def test_windows_that_share_bars_agree_bit_for_bit(market, start: int, end: int):
    bars, actions, closes = market
    start, end = sorted((start, end))
    for adjustment in ADJUSTMENTS:
        whole = factors(actions, closes, adjustment).apply(bars)
        part = Bars(bars.timestamp[start : end + 1], bars.values[:, start : end + 1])
        found = factors(actions, closes, adjustment, int(part.timestamp[0])).apply(part)
        np.testing.assert_array_equal(found.values, whole.values[:, start : end + 1])


@settings(max_examples=100, deadline=None)
@given(markets())
def test_distributions_lower_earlier_prices_ever_more_and_move_no_volume(market):
    bars, actions, closes = market
    price, volume = price_and_volume(factors(actions, closes, "dividend"), bars)
    assert (np.diff(price) >= 0).all()
    assert price[-1] == 1.0
    assert (price > 0).all()
    assert (volume == 1.0).all()
    both = price_and_volume(factors(actions, closes, "all"), bars)
    shares = price_and_volume(factors(actions, closes, "split"), bars)
    np.testing.assert_array_equal(both[1], shares[1])


@settings(max_examples=100, deadline=None)
@given(markets(), st.integers(0, SESSIONS))
def test_what_is_known_at_a_moment_adjusts_as_if_the_later_had_never_been(market, day: int):
    bars, actions, closes = market
    then = known_at(actions, day * DAY)
    assert then == [a for a in actions if a.ex_date <= day * DAY]
    earlier = Bars(bars.timestamp[: day + 1], bars.values[:, : day + 1])
    found = price_and_volume(factors(then, closes, "all"), earlier)
    for at, stamp in enumerate(earlier.timestamp.tolist()):
        np.testing.assert_allclose(found[:, at], by_definition(then, closes, stamp), rtol=1e-12)
    assert (found[:, -1] == 1.0).all()


@settings(max_examples=100, deadline=None)
@given(markets(), st.integers(1, SESSIONS - 1), st.sampled_from(["split", "dividend"]))
def test_invariant_31_a_new_action_changes_every_earlier_bar_and_no_later_one(
    market, day: int, kind: Adjustment
):
    bars, actions, closes = market
    ex = day * DAY
    kept = [a for a in actions if a.ex_date != ex]
    close = float(bars.values[3, day - 1])
    new = CorporateAction("X", ActionKind.SPLIT, ex, new=3, old=2)
    expected = 2 / 3
    if kind == "dividend":
        new = CorporateAction("X", ActionKind.CASH_DIVIDEND, ex, cash=close / 4)
        expected = 0.75
    told = Closes({**closes.before, ex: close}, closes.spun)
    before = factors(kept, told, "all").apply(bars).values[3]
    after = factors([*kept, new], told, "all").apply(bars).values[3]
    np.testing.assert_allclose(after[:day], before[:day] * expected, rtol=1e-13)
    np.testing.assert_array_equal(after[day:], before[day:])


doubtful = st.builds(
    CorporateAction,
    st.just("X"),
    st.sampled_from(sorted(SHARE_CHANGES | DISTRIBUTIONS)),
    st.integers(0, 6).map(lambda d: d * DAY),
    new=st.none() | st.floats(),
    old=st.none() | st.floats(),
    cash=st.none() | st.floats(),
    other_symbol=st.sampled_from([None, "S"]),
    order=st.none() | st.integers(0, 2),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(doubtful, max_size=5),
    st.dictionaries(st.integers(0, 6).map(lambda d: d * DAY), st.floats(0.01, 1e6)),
    st.floats(),
)
def test_whatever_is_said_a_factor_is_a_positive_number_or_refused(actions, before, price: float):
    closes = Closes(before, {("S", d * DAY): price for d in range(7)})
    for adjustment in ADJUSTMENTS:
        try:
            found = factors(actions, closes, adjustment)
        except (DataQualityError, DataUnavailableError):
            continue
        for each in (found.price, found.volume):
            assert np.isfinite(each).all()
            assert (each > 0).all()
        if adjustment == "all":
            assert doubts(actions, closes) == []
    for adjustment in ADJUSTMENTS:
        family = concerned(actions, adjustment, ALWAYS)
        assert family == sorted(family, key=lambda a: a.ex_date)


# ----------------------------------------------------------------------- another vendor's table


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_published_factor_table_comes_out_of_the_same_formulas(seed: int):
    """Twenty years: ``date, price factor, split factor, reference price``, newest row last.

    The table is built the way its vendor publishes it, row by row from the newest event back: a
    row holds until its date, the last session before the event, whose close is the reference.
    Source: QuantConnect LEAN, ``CorporateFactorRow`` and the generator of factor files.
    """
    random = np.random.default_rng(seed)
    sessions = 5040
    closes = 100 * np.exp(np.cumsum(random.normal(0, 0.015, sessions)))
    stamps = np.arange(sessions, dtype=np.int64) * DAY
    paid = {int(n): 0.005 * closes[n - 1] for n in np.arange(40, sessions, 63)}
    moves = random.choice([n for n in range(1, sessions) if n not in paid], 6, replace=False)
    splits = {int(n): float(random.choice([2, 3, 1.5, 7, 20, 0.125, 1.1])) for n in moves}
    rows: list[tuple[int, float, float, float]] = [(2**40, 1.0, 1.0, 0.0)]
    for day in sorted({*paid, *splits}, reverse=True):
        _, price, shares, _ = rows[0]
        reference = closes[day - 1]
        if day in splits:
            shares /= splits[day]
        if day in paid:
            price *= (reference - paid[day]) / reference
        rows.insert(0, (day - 1, price, shares, reference))

    ours = [
        *(CorporateAction("X", ActionKind.CASH_DIVIDEND, n * DAY, cash=d) for n, d in paid.items()),
        *(CorporateAction("X", ActionKind.SPLIT, n * DAY, new=s, old=1) for n, s in splits.items()),
    ]
    references = Closes({n * DAY: float(closes[n - 1]) for n in paid})
    dates = np.array([row[0] for row in rows])
    at = np.searchsorted(dates, np.arange(sessions))
    table = np.array([row[1:3] for row in rows])[at].T
    found = {a: factors(ours, references, a).at(stamps)[0] for a in ADJUSTMENTS}
    np.testing.assert_allclose(found["dividend"], table[0], rtol=1e-9)
    np.testing.assert_allclose(found["split"], table[1], rtol=1e-9)
    np.testing.assert_allclose(found["all"], table[0] * table[1], rtol=1e-9)
