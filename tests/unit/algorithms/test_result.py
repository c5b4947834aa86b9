"""What a result gives: tables of one shape, curves on aware times, text that can be read."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from algorithms.metrics import METRICS, metrics_of
from algorithms.orders import Order, OrderState, TimeInForce
from algorithms.rendering import sparkline, thinned, value_text
from algorithms.result import BacktestResult
from tests.algorithm_runs import MINUTE, crossing_run, run_of, session_closes

TABLES = ("trades", "orders", "fills", "actions")
FRAMES = (*TABLES, "positions", "closes", "monthly_returns")
CURVES = ("equity", "cash", "buy_and_hold", "drawdown")


def result(days: int = 200, symbols: int = 2, **facts: object) -> BacktestResult:
    return BacktestResult(crossing_run(days, symbols, **facts))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("days", [0, 1, 20])
def test_a_frame_has_its_columns_and_types_however_little_there_is(name: str, days: int) -> None:
    full, short = getattr(result(), name), getattr(result(days), name)

    assert list(short.columns) == list(full.columns)
    assert list(short.dtypes) == list(full.dtypes)
    assert short.index.dtype == full.index.dtype
    assert short.index.name == full.index.name


@pytest.mark.parametrize("name", TABLES)
def test_times_are_aware_in_microseconds(name: str) -> None:
    frame = getattr(result(), name)

    times = frame.columns.intersection(
        ["timestamp", "entry_time", "exit_time", "created", "expires"]
    )
    assert len(times)
    assert {str(frame[c].dtype) for c in times} == {"datetime64[us, UTC]"}


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_survives_parquet(name: str, tmp_path: Path) -> None:
    frame = getattr(result(), name)
    frame.to_parquet(tmp_path / "frame.parquet")

    read = pd.read_parquet(tmp_path / "frame.parquet")
    pd.testing.assert_frame_equal(read, frame, check_names=False)


@pytest.mark.parametrize("name", CURVES)
def test_a_curve_is_what_the_record_holds(name: str) -> None:
    found = result()
    curve = getattr(found, name)

    assert str(curve.index.dtype) == "datetime64[us, UTC]"
    assert (curve.index.name, curve.name) == ("timestamp", name)
    assert list(curve.index.asi8) == list(found.run.times)


def test_curves_are_copies() -> None:
    found = result()

    found.equity.iloc[0] = -1.0

    assert found.run.equity[0] == 100_000.0


def test_trades_and_metrics_agree() -> None:
    found = result(400, 4)
    closed = found.trades[found.trades["closed"]]

    assert found.metrics["trades"] == len(closed)
    assert found.metrics["expectancy"] == pytest.approx(closed["pnl"].mean())
    assert found.metrics["best_trade"] == pytest.approx(closed["return"].max())
    assert found.metrics["average_holding_days"] == pytest.approx(
        closed["holding"].mean() / pd.Timedelta(days=1)
    )
    assert found.trades["pnl"].sum() == pytest.approx(found.equity.iloc[-1] - 100_000)
    assert found.trades.loc[~found.trades["closed"], "exit_time"].isna().all()


def test_orders_say_how_they_ended() -> None:
    orders = [
        Order("a", "KO", 10.0, limit=59.5, created=MINUTE, tag="dip", state=OrderState.FILLED,
              filled=10.0, filled_price=59.4),
        Order("b", "KO", -10.0, stop=50.0, time_in_force=TimeInForce.DAY, expires=9 * MINUTE,
              parent="a", twin="c", state=OrderState.EXPIRED, reason="end of session"),
    ]  # fmt: skip

    frame = result(orders=orders).orders

    assert list(frame.index) == ["a", "b"]
    assert frame.loc["a", ["symbol", "type", "state", "tag"]].to_list() == [
        "KO", "limit", "filled", "dip",
    ]  # fmt: skip
    assert frame.loc["b", ["type", "time_in_force", "state", "parent", "twin", "reason"]].to_list() == [
        "stop", "day", "expired", "a", "c", "end of session",
    ]  # fmt: skip
    assert frame["expires"].isna().to_list() == [True, False]
    assert frame.loc["a", "created"] == pd.Timestamp(60, unit="s", tz="UTC")


def test_metrics_are_a_series_in_one_order() -> None:
    found = result()

    assert list(found.metrics.index) == list(METRICS)
    assert found.metrics.dtype == np.float64
    assert found.metrics["sharpe"] == metrics_of(found.run, "sharpe")["sharpe"]
    assert found.benchmark["return"] == found.metrics["buy_and_hold_return"]
    assert list(found.benchmark.index) == ["return", "cagr", "volatility", "sharpe", "max_drawdown"]


def test_a_risk_free_rate_lowers_the_sharpe_ratio() -> None:
    run = crossing_run(300)

    assert (
        BacktestResult(run, risk_free=0.05).metrics["sharpe"]
        < BacktestResult(run).metrics["sharpe"]
    )


def test_a_result_survives_pickle_and_copy() -> None:
    found = result()
    before = found.metrics

    for other in (pickle.loads(pickle.dumps(found)), copy.copy(found), copy.deepcopy(found)):
        pd.testing.assert_series_equal(other.metrics, before)
        pd.testing.assert_frame_equal(other.trades, found.trades)


def test_a_pickle_holds_the_record_and_no_tables() -> None:
    fresh, used = result(), result()
    for name in (*FRAMES, *CURVES, "metrics"):
        getattr(used, name)

    assert len(pickle.dumps(used)) == len(pickle.dumps(fresh))


def test_compare_puts_results_beside_each_other() -> None:
    first, second = (
        result(params={"fast": 10, "slow": 30}),
        result(300, params={"fast": 20, "slow": 30}),
    )

    frame = first.compare(second, result(100, algorithm="Other"))

    assert list(frame.columns) == ["SmaCross (fast=10)", "SmaCross (fast=20)", "Other (fast=10)"]
    assert list(frame.index) == list(METRICS)
    assert frame.iloc[:, 1].to_list() == pytest.approx(second.metrics.to_list(), nan_ok=True)


def test_compare_tells_equals_apart() -> None:
    first = result()

    assert list(first.compare(first.run).columns) == ["SmaCross #1", "SmaCross #2"]


def test_months_are_a_table_of_years() -> None:
    found = result(400).monthly_returns

    assert list(found.index) == [2023, 2024]
    assert found.columns.to_list()[::11] == ["Jan", "Dec"]
    total = float(np.nanprod(1 + found.to_numpy())) - 1
    assert total == pytest.approx(result(400).metrics["return"])


# ----------------------------------------------------------------------------------- words


def test_the_table_fits_a_terminal() -> None:
    text = str(result(400, 2, warnings=["KO has gaps"]))

    assert max(len(line) for line in text.splitlines()) <= 80
    assert "SmaCross (fast=10, slow=30) on AAPL, MSFT, 1day bars" in text
    assert "note: KO has gaps" in text
    assert "SIMULATED" not in text
    assert "nan" not in text


def test_a_short_run_says_what_its_annual_figures_are() -> None:
    told = "note: less than a year"

    assert told in str(result(200))
    assert told not in str(result(261))
    assert told not in str(result(0))


def test_simulated_prices_say_so_everywhere() -> None:
    found = result(simulated=True)

    for text in (str(found), found._repr_html_(), str(found.metrics), str(found.compare(found))):
        assert "SIMULATED" in text


def test_the_notebook_gets_a_table_and_a_line() -> None:
    html = result(warnings=["a <script>"])._repr_html_()

    assert html.count("<polyline") == 2
    assert "a &lt;script&gt;" in html
    assert "<script>" not in html


def test_an_empty_run_is_a_table_of_dashes() -> None:
    empty = result(0)

    assert "no bars" in str(empty)
    assert "polyline" not in empty._repr_html_()


def test_dates_are_those_of_the_exchange() -> None:
    """The last minute of an extended session is the next day in UTC."""
    times = [session_closes(1, "2024-01-31")[0] + 4 * 60 * MINUTE]

    run = run_of(times, {"AAPL": np.ones(1)}, [])

    assert "2024-01-31 to 2024-01-31, 1 moments" in str(BacktestResult(run))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.1234567, "return", "+12.35 %"),
        (-0.00001, "return", "0.00 %"),
        (0.5, "fraction", "50.00 %"),
        (1234.5, "money", "1,234.50"),
        (12.0, "count", "12"),
        (400.4, "days", "400 days"),
        (1.26, "days", "1.3 days"),
        (0.25, "days", "6.0 h"),
        (0.01, "days", "14 min"),
        (0.0, "days", "0"),
        (float("nan"), "ratio", "-"),
    ],
)
def test_numbers_read_well(value: float, unit: str, text: str) -> None:
    assert value_text(value, unit) == text  # type: ignore[arg-type]


def test_thinning_keeps_every_extreme() -> None:
    values = np.sin(np.arange(100_000) / 3_000)
    values[[12_345, 77_777]] = [9.0, -9.0]

    kept = thinned(values, 2_000)

    assert len(kept) <= 2_100
    assert {0, 12_345, 77_777, 99_999} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()


def test_thinning_passes_over_what_is_not_there() -> None:
    values = np.full(10_000, np.nan)
    values[5_000:] = 1.0

    assert np.isfinite(values[thinned(values, 100)]).any()


def test_a_flat_line_is_drawn() -> None:
    assert "polyline" in sparkline([np.ones(10)], ["black"])


def test_the_frame_of_fills_is_the_record() -> None:
    found = result()

    rows = found.fills[["symbol", "quantity", "price", "fee", "tag"]].itertuples(index=False)
    assert [tuple(row) for row in rows] == [
        (f.symbol, f.quantity, f.price, f.fee, f.tag) for f in found.run.fills
    ]
    assert found.fills["timestamp"].astype("int64").to_list() == [f.time for f in found.run.fills]


def test_a_record_can_be_changed_and_read_again() -> None:
    found = result()

    other = BacktestResult(replace(found.run, algorithm="Renamed"))

    assert other.metrics.name == "Renamed"
