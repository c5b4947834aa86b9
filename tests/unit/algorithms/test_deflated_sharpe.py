"""The deflated Sharpe ratio against its paper and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from algorithms.sweeping.deflation import deflated_sharpe, expected_best, kurtosis, skewness

_ANNUAL, _DAYS = 2.5, 250
_SHARPE = _ANNUAL / math.sqrt(_DAYS)
_VARIANCE = 0.5 / _DAYS


def _example(trials: int, skew: float = -3.0, kurt: float = 10.0) -> float:
    return deflated_sharpe(
        _SHARPE, observations=1250, skew=skew, kurt=kurt, variance=_VARIANCE, trials=trials
    )


def test_the_numerical_example_of_the_paper() -> None:
    # Five years of daily returns, an annual Sharpe ratio of 2.5 as the best of 100 with variance
    # 0.5, skewness -3 and kurtosis 10: SR0 = 0.1132, DSR = 0.9004. It would have been 0.9505 of 46
    # trials, and of 88 had the returns been normal.
    assert expected_best(_VARIANCE, 100) == pytest.approx(0.1132, abs=5e-5)
    assert _example(100) == pytest.approx(0.9004, abs=5e-5)
    assert _example(46) == pytest.approx(0.9505, abs=5e-5)
    assert _example(88, 0.0, 3.0) == pytest.approx(0.9505, abs=5e-5)


def test_more_trials_and_fatter_losses_are_believed_less() -> None:
    assert _example(10) > _example(100) > _example(1000)
    assert _example(100, 0.0, 3.0) > _example(100)


def test_the_best_of_many_without_skill_is_as_good_as_expected() -> None:
    rng = np.random.default_rng(1)
    best = rng.normal(0, 0.05, (4000, 200)).max(axis=1).mean()
    assert expected_best(0.05**2, 200) == pytest.approx(best, rel=0.01)


def test_of_one_trial_nothing_is_expected() -> None:
    assert expected_best(0.0, 1) == 0.0
    assert deflated_sharpe(
        0.0, observations=100, skew=0, kurt=3, variance=0, trials=1
    ) == pytest.approx(0.5)


def test_moments_of_known_distributions() -> None:
    rng = np.random.default_rng(2)
    normal, exponential = rng.normal(size=400_000), rng.exponential(size=400_000)
    assert skewness(normal) == pytest.approx(0, abs=0.02)
    assert kurtosis(normal) == pytest.approx(3, abs=0.04)
    assert skewness(exponential) == pytest.approx(2, abs=0.06)
    assert kurtosis(exponential) == pytest.approx(9, abs=0.7)


def test_undefined_is_nan() -> None:
    assert math.isnan(skewness(np.zeros(10)))
    assert math.isnan(kurtosis(np.array([1.0])))
    assert math.isnan(
        deflated_sharpe(math.nan, observations=100, skew=0, kurt=3, variance=0.1, trials=9)
    )
    assert math.isnan(deflated_sharpe(0.1, observations=1, skew=0, kurt=3, variance=0.1, trials=9))
