"""Which points a grid has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms import AlgorithmError, ParameterError
from algorithms.sweeping.grid import Point, points_of
from tests.sweep_examples import Cross

_VALUES = st.lists(st.integers(2, 60), min_size=1, max_size=6)


def _cross() -> Cross:
    return Cross(symbols=["A"], steady=30)


def test_the_last_parameter_changes_fastest() -> None:
    found = points_of(_cross(), {"quick": [2, 3], "steady": np.arange(10, 30, 10)})
    assert [tuple(point.values()) for point in found] == [(2, 10), (2, 20), (3, 10), (3, 20)]
    assert all(type(value) is int for point in found for value in point.values())


def test_one_value_is_a_grid_of_one_and_repetitions_count_once() -> None:
    grid: Any = {"quick": 3, "share": [0.5, 0.5, 1]}
    assert points_of(_cross(), grid) == [
        {"quick": 3, "share": 0.5},
        {"quick": 3, "share": 1.0},
    ]


def test_a_constraint_sees_what_is_not_swept_by_name_or_key() -> None:
    found = points_of(_cross(), {"quick": range(25, 35)}, lambda p: p.quick < p["steady"])
    assert [point["quick"] for point in found] == [25, 26, 27, 28, 29]
    with pytest.raises(AttributeError, match="no parameter 'slow'; it has: quick, steady, share"):
        points_of(_cross(), {"quick": [2]}, lambda p: p.slow)


@given(quick=_VALUES, steady=_VALUES, count=st.integers(1, 40), seed=st.integers(0, 5))
def test_a_sample_is_of_the_grid_without_repetition_in_its_order(
    quick: list[int], steady: list[int], count: int, seed: int
) -> None:
    grid = {"quick": quick, "steady": [value + 1 for value in steady]}
    whole = points_of(_cross(), grid)
    drawn = points_of(_cross(), grid, sample=count, seed=seed)
    assert len(drawn) == min(count, len(whole))
    places = [whole.index(point) for point in drawn]
    assert places == sorted(set(places))
    assert drawn == points_of(_cross(), grid, sample=count, seed=seed)


def test_a_sample_meets_the_constraint() -> None:
    grid = {"quick": range(2, 50), "steady": range(3, 50)}
    found = points_of(_cross(), grid, lambda p: p.quick < p.steady, sample=30)
    assert len(found) == 30
    assert all(point.quick < point.steady for point in found)
    assert found != points_of(_cross(), grid, lambda p: p.quick < p.steady, sample=30, seed=1)


def test_a_sample_of_a_huge_grid_is_drawn_without_laying_it_out() -> None:
    grid = {
        "quick": range(2, 1_000_002),
        "steady": range(3, 1_000_003),
        "share": np.linspace(0, 1, 1000),
    }
    assert len({tuple(p.values()) for p in points_of(_cross(), grid, sample=50)}) == 50


def test_what_the_strategy_does_not_have_or_take_is_refused_at_once() -> None:
    with pytest.raises(ParameterError, match="no parameter 'quik' to sweep") as unknown:
        points_of(_cross(), {"quik": [1]})
    assert "'quick'" in str(unknown.value.cure)
    with pytest.raises(ParameterError, match="at least 2"):
        points_of(_cross(), {"quick": [5, 1]})
    with pytest.raises(AlgorithmError, match="an empty grid"):
        points_of(_cross(), {})
    with pytest.raises(AlgorithmError, match="no points"):
        points_of(_cross(), {"quick": []})
    with pytest.raises(AlgorithmError, match="none of 2 points"):
        points_of(_cross(), {"quick": [2, 3]}, lambda p: False)
    with pytest.raises(AlgorithmError, match="a sample of 0"):
        points_of(_cross(), {"quick": [2, 3]}, sample=0)


def test_a_point_reads_like_a_strategy() -> None:
    point = Point(quick=3)
    assert point.quick == point["quick"] == 3
