"""How far two brokers agree: what is compared, what counts as equal, where the worst is."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from marketdata.agreement import FIELDS, TOLERANCES, compare, disagreeing, tolerances_of
from marketdata.types import COLUMNS, Bars


def bars(labels: list[int], close: list[float], **rows: list[float]) -> Bars:
    values = np.full((len(COLUMNS), len(labels)), 1.0)
    for name, row in {"close": close, **rows}.items():
        values[COLUMNS.index(name)] = row
    return Bars(np.array(labels, np.int64), values)


def test_bars_are_matched_by_label_and_the_rest_is_counted() -> None:
    (found,) = compare(
        "AAPL",
        bars([1, 2, 3], [10, 20, 30]),
        bars([2, 3, 4, 5], [20.01, 33, 40, 50]),
        {"close": 0.01},
    )
    assert (found.compared, found.equal) == (2, 1)
    assert (found.only_first, found.only_second) == (1, 2)
    assert (found.at, found.values) == (3, (30.0, 33.0))
    assert abs(found.largest - 3 / 33) < 1e-12
    assert not found.agrees


def test_what_one_of_them_has_no_value_for_is_not_compared() -> None:
    nan = float("nan")
    one, other = bars([1, 2], [5, 6], vwap=[5, nan]), bars([1, 2], [5, 6], vwap=[nan, nan])
    close, vwap = compare("KO", one, other, {"close": 0.0, "vwap": 0.0})
    assert close.agrees
    assert (vwap.compared, vwap.equal, vwap.at) == (0, 0, None)
    assert np.isnan(vwap.largest)
    assert vwap.agrees


def test_zero_equals_zero_and_nothing_equals_nothing() -> None:
    (found,) = compare("A", bars([1], [1], volume=[0]), bars([1], [1], volume=[0]), {"volume": 0.1})
    assert found.agrees
    assert found.largest == 0.0
    assert all(each.agrees for each in compare("A", Bars.empty(), Bars.empty(), TOLERANCES))


def test_the_tolerances_of_a_call() -> None:
    assert tolerances_of(None, None) == {name: TOLERANCES[name] for name in FIELDS}
    assert tolerances_of(["close", "vwap"], 0.5) == {"close": 0.5, "vwap": 0.5}
    assert tolerances_of(["close", "volume"], {"close": 0.2}) == {"close": 0.2, "volume": 0.1}


def test_what_disagrees_most_comes_first() -> None:
    found = compare(
        "A", bars([1], [10], open=[10], low=[1]), bars([1], [11], open=[20], low=[1]), TOLERANCES
    )
    assert [each.field for each in disagreeing(found)] == ["open", "close"]


prices = st.floats(0.01, 1e6)


@given(st.dictionaries(st.integers(0, 30), prices), st.dictionaries(st.integers(0, 30), prices))
def test_the_order_of_the_brokers_changes_no_count(
    a: dict[int, float], b: dict[int, float]
) -> None:
    one = bars(sorted(a), [a[k] for k in sorted(a)])
    other = bars(sorted(b), [b[k] for k in sorted(b)])
    (there,), (back,) = (
        compare("A", *pair, {"close": 0.001}) for pair in ((one, other), (other, one))
    )
    assert (there.compared, there.equal, there.at) == (back.compared, back.equal, back.at)
    assert (there.only_first, there.only_second) == (back.only_second, back.only_first)
    assert there.compared == len(a.keys() & b.keys())
    assert there.equal == sum(
        abs(a[k] - b[k]) <= 0.001 * max(a[k], b[k]) for k in a.keys() & b.keys()
    )
