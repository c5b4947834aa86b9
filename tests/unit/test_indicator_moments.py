"""Moments of windows: pandas' formulas, and nothing of the bars before the window."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from marketdata.indicators import moments
from marketdata.indicators.moments import Column

VALUES = np.random.default_rng(4).normal(3, 2, 400)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 30, 400, 500])
@pytest.mark.parametrize("moment", ["var", "std", "skew", "kurt"])
def test_moments_are_those_of_pandas(moment: str, size: int, monkeypatch) -> None:
    monkeypatch.setattr(moments, "_AT_ONCE", 1000)
    got = getattr(Column(VALUES).rolling(size), moment)()
    wanted = getattr(pd.Series(VALUES).rolling(size), moment)()
    np.testing.assert_allclose(got.to_numpy(), wanted.to_numpy(), rtol=1e-7, atol=1e-7)
    assert got.index.equals(wanted.index)


def test_degrees_of_freedom() -> None:
    got = Column(VALUES).rolling(10, min_periods=10).var(0)
    np.testing.assert_allclose(got, pd.Series(VALUES).rolling(10).var(0), rtol=1e-9)
    assert Column(VALUES).rolling(2).var(2).isna().all()


@pytest.mark.parametrize(("moment", "wanted"), [("var", 0.0), ("skew", 0.0), ("kurt", -3.0)])
def test_equal_values(moment: str, wanted: float) -> None:
    got = getattr(Column(np.full(20, 0.1)).rolling(7), moment)()
    assert got.isna().sum() == 6
    assert (got[6:] == wanted).all()


@pytest.mark.parametrize("moment", ["var", "skew", "kurt"])
def test_nothing_before_the_window_counts(moment: str) -> None:
    """After prices a million times as large, the moments of small ones are exact."""
    values = np.concatenate([VALUES * 1e6, VALUES])
    got = getattr(Column(values).rolling(20), moment)().to_numpy()[419:]
    alone = getattr(Column(VALUES).rolling(20), moment)().to_numpy()[19:]
    np.testing.assert_allclose(got, alone, rtol=1e-12)


def test_missing_values_and_everything_else_are_pandas_own() -> None:
    holes = VALUES.copy()
    holes[50] = np.nan
    got = Column(holes).rolling(5).var()
    np.testing.assert_array_equal(got.isna(), pd.Series(holes).rolling(5).var().isna())
    np.testing.assert_array_equal(Column(holes).rolling(5).max(), pd.Series(holes).rolling(5).max())
    few = Column(holes).rolling(5, min_periods=2).var()
    np.testing.assert_array_equal(few, pd.Series(holes).rolling(5, min_periods=2).var())
