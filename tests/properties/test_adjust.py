"""Adjustment: identity, composition, inverse, and what it may not touch."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata.adjust import adjust_bars, split_factors, unsplit_bars
from marketdata.types import DAY, Bars, Split

splits = st.lists(
    st.builds(
        Split, st.integers(0, 60).map(lambda d: d * DAY), st.integers(1, 50), st.integers(1, 50)
    ),
    max_size=6,
)


@st.composite
def series(draw: st.DrawFn) -> Bars:
    days = sorted(draw(st.sets(st.integers(-5, 65), min_size=1, max_size=40)))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    values = random.uniform(0.01, 1e5, (7, len(days)))
    values[5:, random.random(len(days)) < 0.2] = np.nan
    return Bars(np.array(days, np.int64) * DAY, values)


@settings(max_examples=150, deadline=None)
@given(series())
def test_invariant_32_without_splits_nothing_changes(bars: Bars):
    price, volume = split_factors([], bars.timestamp)
    assert (price == 1.0).all()
    assert (volume == 1.0).all()
    assert adjust_bars(bars, []) is bars


@settings(max_examples=150, deadline=None)
@given(series(), splits, splits)
def test_invariant_32_factors_compose(bars: Bars, some: list[Split], others: list[Split]):
    both = split_factors([*some, *others], bars.timestamp)
    first = split_factors(some, bars.timestamp)
    second = split_factors(others, bars.timestamp)
    np.testing.assert_allclose(both[0], first[0] * second[0], rtol=1e-13)
    np.testing.assert_allclose(both[1], first[1] * second[1], rtol=1e-13)
    np.testing.assert_allclose(
        adjust_bars(adjust_bars(bars, some), others).values,
        adjust_bars(bars, [*some, *others]).values,
        rtol=1e-13,
    )


@settings(max_examples=150, deadline=None)
@given(series(), splits)
def test_factors_equal_a_loop_over_the_definition(bars: Bars, actions: list[Split]):
    price, volume = split_factors(actions, bars.timestamp)
    for at, stamp in enumerate(bars.timestamp.tolist()):
        expected = 1.0
        for split in actions:
            if stamp < split.ex_date:
                expected *= split.old / split.new
        np.testing.assert_allclose([price[at], volume[at]], [expected, 1 / expected], rtol=1e-13)


@settings(max_examples=150, deadline=None)
@given(series(), splits)
def test_unsplit_is_the_inverse(bars: Bars, actions: list[Split]):
    back = unsplit_bars(adjust_bars(bars, actions), actions)
    np.testing.assert_allclose(back.values, bars.values, rtol=1e-14)
    np.testing.assert_array_equal(back.timestamp, bars.timestamp)


@settings(max_examples=150, deadline=None)
@given(series(), splits)
def test_turnover_and_trade_counts_are_kept(bars: Bars, actions: list[Split]):
    adjusted = adjust_bars(bars, actions)
    np.testing.assert_allclose(
        adjusted.values[3] * adjusted.values[4], bars.values[3] * bars.values[4], rtol=1e-13
    )
    np.testing.assert_array_equal(adjusted.values[6], bars.values[6])
    assert (adjusted.values[1] >= adjusted.values[2]).all() == (
        bars.values[1] >= bars.values[2]
    ).all()


@settings(max_examples=100, deadline=None)
@given(series(), splits, st.integers(0, 40))
def test_invariant_31_a_new_split_changes_all_earlier_bars_and_no_later_one(
    bars: Bars, actions: list[Split], at: int
):
    new = Split(int(bars.timestamp[at % len(bars)]), 3, 2)
    before = adjust_bars(bars, actions).values[3]
    after = adjust_bars(bars, [*actions, new]).values[3]
    earlier = bars.timestamp < new.ex_date
    np.testing.assert_allclose(after[earlier], before[earlier] * 2 / 3, rtol=1e-13)
    np.testing.assert_allclose(after[~earlier], before[~earlier], rtol=1e-15)
