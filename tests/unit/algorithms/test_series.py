"""One series: prices as of a day, and bars that come later."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from algorithms.hours import hours_between
from algorithms.lines import NEVER
from algorithms.market import MarketData
from algorithms.series import AdjustmentStep, Series, ShareAction
from algorithms.studies import Study
from tests.scripted_runs import instant

DAY = 86_400_000_000
EPOCH = instant("2023-01-03")
"""A market's sessions; the series here count days from 0."""
STEPS = [AdjustmentStep(3 * DAY, 0.5, 2.0), AdjustmentStep(6 * DAY, 0.25, 4.0)]


def raw(count: int, first: int = 0) -> Any:
    values = 100.0 + np.arange(first, first + count)
    return np.array([values, values + 1, values - 1, values, values * 10])


def series(count: int, **options: Any) -> Series:
    labels = np.arange(count) * DAY
    return Series("X", "1day", labels, labels + DAY // 2, raw(count), **options)


def scaled(count: int, epoch: int) -> Any:
    """Return the columns by the definition: each bar times the steps later than its label."""
    found = raw(count)
    for step in STEPS[:epoch]:
        before = np.arange(count) * DAY < step.time
        found[:4, before] *= step.price_factor
        found[4, before] *= step.volume_factor
    return found


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_the_past_is_scaled_and_the_newest_is_as_traded(epoch: int) -> None:
    each = series(9, steps=STEPS)
    np.testing.assert_allclose(each.columns(epoch), scaled(9, epoch))
    np.testing.assert_array_equal(each.columns(epoch)[:, -1], raw(9)[:, -1])


def test_an_epoch_begins_after_the_midnight_of_its_ex_date() -> None:
    each = series(9, steps=STEPS)
    assert [each.epoch(n * DAY) for n in range(9)] == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert each.epoch(3 * DAY + 1) == 1


def test_raw_prices_are_never_written() -> None:
    each = series(9, steps=STEPS)
    for epoch in (2, 1, 0, 2):
        each.columns(epoch)
    np.testing.assert_array_equal(each.raw, raw(9))


@pytest.mark.parametrize("parts", [[1] * 9, [4, 5], [8, 1], [2, 3, 4]])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_bars_that_come_one_by_one_are_as_those_that_came_at_once(
    parts: list[int], epoch: int
) -> None:
    whole = series(9, steps=STEPS)
    grown = series(0, steps=STEPS)
    at = 0
    for count in parts:
        # Read in between, at the latest epoch: also what comes from before an ex-date is scaled.
        grown.columns(epoch)
        labels = np.arange(at, at + count) * DAY
        assert grown.append(labels, labels + DAY // 2, raw(count, at)) == count
        at += count
    assert grown.size == 9
    np.testing.assert_array_equal(grown.labels[:9], whole.labels)
    np.testing.assert_array_equal(grown.closes[:9], whole.closes[:9])
    assert (grown.closes[9:] == NEVER).all()
    np.testing.assert_allclose(grown.columns(epoch)[:, :9], whole.columns(epoch))


def test_earlier_and_repeated_bars_are_left_out() -> None:
    each = series(5)
    labels = np.arange(3, 7) * DAY
    assert each.append(labels, labels + DAY // 2, raw(4, 50)) == 2
    assert each.raw[3, :7].tolist() == [100, 101, 102, 103, 104, 152, 153]
    assert each.append(labels, labels + DAY // 2, raw(4, 50)) == 0


def test_splits_between() -> None:
    actions = [ShareAction(3 * DAY, "split", 2.0), ShareAction(6 * DAY, "split", 4.0)]
    each = series(9, actions=actions)
    assert each.split_between(2 * DAY, 2 * DAY + 1) == 1
    assert each.split_between(2 * DAY, 3 * DAY) == 2
    # A bar that is labelled with the ex-date is on the new basis.
    assert each.split_between(3 * DAY, 5 * DAY) == 1
    assert each.split_between(0, 9 * DAY) == 8


def test_actions_said_anew_are_what_is_seen_from_then_on() -> None:
    each = series(9, steps=STEPS[:1])
    market = MarketData({("X", "1day"): each}, hours_between(EPOCH, EPOCH))
    study = Study("1day", ("mine",), ("mine",), 0, function=lambda bars: bars.close)
    np.testing.assert_allclose(each.columns(1), scaled(9, 1))
    np.testing.assert_allclose(market.studies.values(study, each, 1)[0], scaled(9, 1)[3])
    # The same number of steps, with another factor.
    market.set_actions("X", [AdjustmentStep(3 * DAY, 0.1, 10.0)], ())
    assert each.columns(1)[3, 0] == 10.0
    assert market.studies.values(study, each, 1)[0][0] == 10.0


def test_a_market_until_an_instant_has_nothing_later() -> None:
    each = series(9, steps=STEPS, actions=[ShareAction(6 * DAY, "split", 4.0)])
    market = MarketData({("X", "1day"): each}, hours_between(EPOCH, EPOCH))
    cut = market.until(4 * DAY)
    assert cut.of("X", "1day").size == 4
    assert cut.of("X", "1day").steps == tuple(STEPS[:1])
    assert cut.of("X", "1day").actions == ()
    cut.of("X", "1day").raw[:] = 0
    np.testing.assert_array_equal(each.raw, raw(9))


def test_what_an_author_s_function_is_given_cannot_be_written() -> None:
    given = series(3, steps=STEPS).arrays(0, 0, 3)
    for array in (given.timestamp, given.open, given.close, given.volume):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    assert len(given) == 3
