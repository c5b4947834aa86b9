"""Walk-forward: windows tile time, choices see no later, tests are back-tests of their own."""

from __future__ import annotations

import concurrent.futures
import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms import AlgorithmError, NoSlippage, Percent, backtest, walk_forward
from algorithms.hours import hours_between
from algorithms.sweeping.windows import windows_of
from algorithms.walk_forward_result import WalkForwardResult
from tests.sweep_examples import Cross, Foreseeing, bars, market

DATA = market(2, 200)
GRID = {"quick": [3, 5, 8], "steady": [12, 20]}
_DAY = 86_400_000_000


def _walk(data: Any = None, **given: Any) -> WalkForwardResult:
    options: dict[str, Any] = {"train": 60, "test": 30, "workers": 1, **given}
    algorithm = options.pop("algorithm", Cross)
    return walk_forward(algorithm, options.pop("grid", GRID), data or DATA, **options)


@pytest.fixture(scope="module")
def walked() -> WalkForwardResult:
    return _walk()


# ----------------------------------------------------------------------------------- windows

_FIRST = int(pd.Timestamp("2021-03-01 21:00", tz="UTC").value // 1000)
_LENGTHS = st.one_of(st.integers(1, 300), st.sampled_from(["1mo", "3mo", "6mo", "1y", "4w", "30d"]))


@settings(max_examples=120, deadline=None)
@given(days=st.integers(20, 900), train=_LENGTHS, test=_LENGTHS, anchored=st.booleans())
def test_tests_follow_each_other_and_every_training_ends_where_its_test_begins(
    days: int, train: int | str, test: int | str, anchored: bool
) -> None:
    last = _FIRST + days * _DAY
    hours = hours_between(_FIRST, last)
    try:
        windows = windows_of(hours, _FIRST, last, train, test, anchored=anchored)
    except AlgorithmError:
        # Nothing is left to test: after a training of the shortest there would be something.
        assert windows_of(hours, _FIRST, last, 1, 1)
        return
    edges = set(hours.midnight.tolist())
    for before, after in itertools.pairwise(windows):
        assert after.test.since == before.test.until + 1
        assert (
            after.train.since == before.train.since
            if anchored
            else (after.train.since >= before.train.since)
        )
    for window in windows:
        assert window.train.until + 1 == window.test.since
        assert window.train.since < window.train.until
        assert {window.train.since, window.test.since} <= edges
        assert window.test.since <= last
    assert windows[0].train.since <= _FIRST
    assert windows[-1].test.until + 1 >= last - last % _DAY
    if isinstance(train, int) and not anchored:
        place = {edge: n for n, edge in enumerate(hours.midnight.tolist())}
        for window in windows:
            assert place[window.test.since] - place[window.train.since] == train


def test_dates_are_the_calendar_s(walked: WalkForwardResult) -> None:
    found = _walk(train="3mo", test="2mo").windows
    assert found["train_start"].tolist()[:2] == [
        pd.Timestamp("2022-01-03"), pd.Timestamp("2022-03-03"),
    ]  # fmt: skip
    assert found["test_start"].tolist()[:2] == [
        pd.Timestamp("2022-04-04"), pd.Timestamp("2022-06-03"),
    ]  # fmt: skip
    assert found["test_end"].iloc[0] == pd.Timestamp("2022-06-02")
    assert len(walked.windows) == 5


@pytest.mark.parametrize("length", [0, -1, "0d", "month", 1.5, True, None])
def test_no_length(length: Any) -> None:
    with pytest.raises(AlgorithmError, match="is no length"):
        _walk(train=length)


def test_too_little_time() -> None:
    with pytest.raises(AlgorithmError, match="leave nothing to test"):
        _walk(train=500)


# ------------------------------------------------------------------------------- no look-ahead


def _changed(last_kept: pd.Timestamp, seed: int) -> dict[str, pd.DataFrame]:
    """Return the bars with other ones after a date."""
    found = {}
    for n, (symbol, frame) in enumerate(DATA.items()):
        after = frame.index > last_kept
        other = bars(1000 + seed + n, len(frame))
        mixed = frame.copy()
        mixed.loc[after] = other.loc[after] * float(frame["close"].iloc[-1] / 100)
        found[symbol] = mixed
    return found


@settings(max_examples=12, deadline=None)
@given(
    window=st.integers(0, 3),
    seed=st.integers(0, 50),
    anchored=st.booleans(),
    foreseeing=st.booleans(),
)
def test_what_comes_after_a_window_changes_nothing_of_it(
    window: int, seed: int, anchored: bool, foreseeing: bool
) -> None:
    options: dict[str, Any] = {"anchored": anchored}
    if foreseeing:
        # Its indicator is measured against all prices it is given: it must not be given later ones.
        options |= {"algorithm": Foreseeing, "grid": {"below": [-0.5, 0.0, 0.5]}}
    before = _walk(**options)
    row: Any = before.windows.loc[window]
    tested = _walk(_changed(row["test_end"], seed), **options)
    pd.testing.assert_frame_equal(
        tested.windows.loc[:window], before.windows.loc[:window], check_exact=True
    )
    shown = before.equity[before.equity.index < row["test_end"].tz_localize("UTC")]
    pd.testing.assert_series_equal(tested.equity.loc[shown.index], shown, check_exact=True)
    chosen = _walk(_changed(row["train_end"], seed), **options)
    names = list(before.parameters)
    assert chosen.windows.loc[window, names].tolist() == row[names].tolist()
    assert chosen.windows.loc[window, "in_sample"] == row["in_sample"]


# ------------------------------------------------------------------------------------- tests


def test_each_test_is_a_back_test_of_the_point_that_was_best_before(
    walked: WalkForwardResult,
) -> None:
    cash = 100_000.0
    for number, row in walked.windows.iterrows():
        swept = walked.sweeps[int(number)]
        inside = swept.frame["sharpe"]
        assert row["in_sample"] == inside.max()
        point = {name: row[name] for name in walked.parameters}
        assert swept.best_point() == point
        end = row["test_end"] + pd.Timedelta(days=1)
        alone = backtest(Cross(**point), DATA, start=row["test_start"], end=end, cash=cash)
        held = alone.positions.iloc[-1]
        sold = held * alone.closes.iloc[-1] * (1 - np.sign(held) * 1e-4)
        part = walked.equity.loc[alone.equity.index]
        pd.testing.assert_series_equal(part.iloc[:-1], alone.equity.iloc[:-1], check_exact=True)
        cash = float(part.iloc[-1])
        assert cash == pytest.approx(alone.cash.iloc[-1] + sold.sum(), abs=1e-6)
    assert walked.equity.iloc[-1] == walked.metrics["final_equity"]
    assert len(walked.equity) == (DATA["S0"].index >= walked.windows["test_start"].iloc[0]).sum()


def test_indicators_are_warm_when_a_test_begins(walked: WalkForwardResult) -> None:
    # Twenty bars are needed, and every test day has its place in the account all the same.
    expected = backtest(Cross(quick=2, steady=3), DATA).equity.index[-len(walked.equity) :]
    assert walked.equity.index.equals(expected)


def test_the_trades_come_to_the_account(walked: WalkForwardResult) -> None:
    result = walked.result
    assert result.trades["closed"].all()
    assert result.trades["pnl"].sum() == pytest.approx(result.equity.iloc[-1] - 100_000, abs=1e-6)
    assert result.orders.index.is_unique
    assert (result.positions.iloc[-1] == 0).all()
    assert set(result.fills["order_id"]) <= set(result.orders.index)


def test_closing_at_the_end_of_a_window_costs_what_selling_costs() -> None:
    free = _walk(slippage=NoSlippage())
    dear = _walk(slippage=NoSlippage(), fees=Percent(0.01))
    assert dear.metrics["fees"] == pytest.approx(0.01 * _traded(dear))
    assert dear.metrics["final_equity"] < free.metrics["final_equity"]


def _traded(walked: WalkForwardResult) -> float:
    fills = walked.result.fills
    return float((fills["quantity"].abs() * fills["price"]).sum())


def test_a_window_without_a_best_point_is_not_traded() -> None:
    found = _walk(grid={"quick": [3]}, metric=lambda result: math.nan)
    assert found.windows["quick"].isna().all()
    assert (found.equity == 100_000).all()
    assert "5 windows were not traded" in str(found)
    assert math.isnan(found.efficiency)


def test_an_executor_and_a_store_change_nothing(walked: WalkForwardResult, tmp_path: Any) -> None:
    store = tmp_path / "points.jsonl"
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = _walk(workers=None, executor=pool, store=store)
    pd.testing.assert_frame_equal(found.windows, walked.windows, check_exact=True)
    lines = store.read_text().splitlines()
    assert len(lines) == walked.tried == 30
    # A longer history has the first windows in common with the shorter one.
    shorter = {symbol: frame.iloc[:150] for symbol, frame in DATA.items()}
    _walk(shorter, store=store)
    assert store.read_text().splitlines() == lines


def test_the_result_reads_well(walked: WalkForwardResult) -> None:
    assert str(walked).startswith("Cross on S0, S1, 1day bars\n5 windows, 30 runs to choose from")
    assert "<table" in walked._repr_html_()
    assert walked.frame.index.names == ["window", "point"]
    assert len(walked.frame) == 30
    change = walked.degradation
    np.testing.assert_allclose(change["change"], change["out_of_sample"] - change["in_sample"])
    assert walked.efficiency == pytest.approx(
        change.loc["cagr", "out_of_sample"] / change.loc["cagr", "in_sample"], nan_ok=True
    ) or math.isnan(walked.efficiency)
    figure = walked.plot()
    assert [trace.name for trace in figure.data[:2]] == [
        "buy and hold",
        "tests, one after the other",
    ]
    assert list(figure.data[2].y) == walked.windows["in_sample"].tolist()


def test_luck_is_no_metric_to_choose_by() -> None:
    with pytest.raises(AlgorithmError, match="one luck in common"):
        _walk(metric="deflated_sharpe")
