"""The account at every moment, against the same worked out moment by moment."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from algorithms.curves import _accumulated, _newest

instants = st.integers(0, 40)


@given(
    st.lists(instants, unique=True, max_size=20).map(sorted),
    st.lists(instants, unique=True, max_size=20).map(sorted),
    st.booleans(),
)
def test_the_newest_bar_is_the_last_that_has_closed(
    ends: list[int], times: list[int], own: bool
) -> None:
    moments = ends[len(ends) // 3 :] if own else times
    found = _newest(np.array(ends, np.int64), np.array(moments, np.int64))
    assert found.tolist() == [sum(end <= time for end in ends) - 1 for time in moments]


@given(
    st.lists(st.tuples(instants, st.integers(-9, 9).map(float)), max_size=20),
    st.lists(instants, unique=True, max_size=20).map(sorted),
)
def test_changes_add_up_to_each_moment(changes: list[tuple[int, float]], times: list[int]) -> None:
    wanted = [sum(amount for moment, amount in changes if moment <= time) for time in times]
    found = _accumulated(list(changes), np.array(times, np.int64))
    assert found.tolist() == wanted
