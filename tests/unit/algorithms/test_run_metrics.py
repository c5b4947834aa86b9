"""The figures of a run against numbers worked by hand, and where there is nothing to say."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import marketdata as md
from algorithms import performance as perf
from algorithms.metrics import METRICS, metrics_of
from algorithms.orders import Fill
from algorithms.run_record import AppliedAction, BacktestRun
from tests.algorithm_runs import DAY, MINUTE, crossing_run, minute_closes, run_of, session_closes

VALUES = [1_000.0, 1_100.0, 990.0, 1_089.0, 980.1, 1_200.0]
HELD = [1_000.0, 1_050.0, 1_050.0, 1_102.5, 1_102.5, 1_000.0]


def record(values: list[float] = VALUES, held: list[float] = HELD, **facts: object) -> BacktestRun:
    times = session_closes(len(values))
    run = run_of(times, {"AAPL": np.full(len(values), 10.0)}, [], cash=values[0] if values else 1.0)
    facts = {"equity": np.array(values), "buy_and_hold": np.array(held), **facts}
    return replace(run, **facts)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- by hand


def test_growth_and_risk_of_six_sessions() -> None:
    """Returns are +10 %, -10 %, +10 %, -10 % and 219.9 / 980.1."""
    last = 219.9 / 980.1
    returns = [0.1, -0.1, 0.1, -0.1, last]
    run = record()

    found = metrics_of(run)

    days = (run.times[-1] - run.times[0]) / DAY  # a weekend lies between
    assert days == 7
    assert found["return"] == pytest.approx(0.2)
    assert found["cagr"] == pytest.approx(1.2 ** (365.25 / 7) - 1)
    spread = statistics.stdev(returns)
    assert found["volatility"] == pytest.approx(spread * math.sqrt(252))
    assert found["sharpe"] == pytest.approx(last / 5 / spread * math.sqrt(252))
    downside = math.sqrt((0.1**2 + 0.1**2) / 5)
    assert found["sortino"] == pytest.approx(last / 5 / downside * math.sqrt(252))
    assert found["calmar"] == pytest.approx(found["cagr"] / 0.109)


def test_a_risk_free_rate_is_taken_off_every_return() -> None:
    last, rate = 219.9 / 980.1, 0.0252
    returns = [0.1, -0.1, 0.1, -0.1, last]

    found = metrics_of(record(), ["sharpe", "sortino"], risk_free=rate)

    excess = [r - 0.0001 for r in returns]
    downside = math.sqrt(2 * 0.1001**2 / 5)
    assert found["sharpe"] == pytest.approx(
        statistics.mean(excess) / statistics.stdev(excess) * math.sqrt(252)
    )
    assert found["sortino"] == pytest.approx(statistics.mean(excess) / downside * math.sqrt(252))


def test_drawdowns_of_two_peaks() -> None:
    """Peak 110 on day 1, trough 98.01, back on day 5 (6 calendar days later)."""
    found = metrics_of(record([100.0, 110.0, 99.0, 108.9, 98.01, 120.0, 119.0, 118.8], [1.0] * 8))

    assert found["max_drawdown"] == pytest.approx(98.01 / 110 - 1)
    assert found["max_drawdown_days"] == 6
    assert found["average_drawdown"] == pytest.approx((-0.109 - 0.01) / 2)
    assert found["average_drawdown_days"] == (6 + 2) / 2


def test_against_buy_and_hold() -> None:
    found = metrics_of(record())

    ours = np.array([0.1, -0.1, 0.1, -0.1, 219.9 / 980.1])
    theirs = np.array([0.05, 0.0, 0.05, 0.0, 1000 / 1102.5 - 1])
    slope = statistics.covariance(list(ours), list(theirs)) / statistics.variance(list(theirs))
    assert found["beta"] == pytest.approx(slope)
    assert found["alpha"] == pytest.approx((ours.mean() - slope * theirs.mean()) * 252)
    assert found["correlation"] == pytest.approx(statistics.correlation(list(ours), list(theirs)))
    assert found["buy_and_hold_return"] == 0.0
    assert found["buy_and_hold_cagr"] == 0.0
    assert found["buy_and_hold_volatility"] == pytest.approx(
        statistics.stdev(theirs) * math.sqrt(252)
    )
    assert found["buy_and_hold_max_drawdown"] == pytest.approx(1000 / 1102.5 - 1)


def test_trades_fees_and_turnover() -> None:
    times = session_closes(6)
    fills = [
        Fill(int(times[1]), "a", "AAPL", 10, 100.0, 1.0),
        Fill(int(times[2]), "b", "AAPL", -10, 112.0, 1.0),
        Fill(int(times[3]), "c", "AAPL", -20, 110.0, 1.0),
        Fill(int(times[4]), "d", "AAPL", 20, 115.0, 1.0),
        Fill(int(times[5]), "e", "AAPL", 1, 115.0, 1.0),
    ]
    prices = np.array([99, 100, 112, 110, 115, 115.0])
    run = run_of(times, {"AAPL": prices}, fills, cash=10_000)

    found = metrics_of(run)

    won, lost = 120 - 2, -100 - 2
    assert (found["trades"], found["open_trades"], found["hit_rate"]) == (2, 1, 0.5)
    assert found["profit_factor"] == pytest.approx(won / -lost)
    assert found["expectancy"] == pytest.approx((won + lost) / 2)
    assert (found["average_win"], found["average_loss"]) == pytest.approx((won, lost))
    assert found["average_trade"] == pytest.approx((won / 1000 + lost / 2200) / 2)
    assert (found["best_trade"], found["worst_trade"]) == pytest.approx((0.118, lost / 2200))
    assert found["average_holding_days"] == pytest.approx((1 + 3) / 2)  # the second over a weekend
    assert found["sqn"] == pytest.approx(math.sqrt(2) * 8 / statistics.stdev([won, lost]))
    assert (found["fees"], found["dividends"]) == (5, 0)
    assert found["exposure"] == pytest.approx(3 / 6)
    held = [0, 1_000, 0, 2_200, 0, 115]
    assert found["gross_exposure"] == pytest.approx(np.mean(np.array(held) / run.equity))
    traded = 1_000 + 1_120 + 2_200 + 2_300 + 115
    years = (times[-1] - times[0]) / (365.25 * DAY)
    assert found["turnover"] == pytest.approx(traded / 2 / run.equity.mean() / years)
    assert found["final_equity"] == 10_000 + won + lost - 1


def test_dividends_are_what_was_distributed() -> None:
    actions = [
        AppliedAction(1, "AAPL", "cash_dividend", cash=30.0),
        AppliedAction(2, "AAPL", "cash_dividend", cash=-4.0),
        AppliedAction(3, "AAPL", "split", cash=55.0, ratio=1.5, paid_out=0.5),
    ]

    assert metrics_of(record(actions=actions), "dividends") == {"dividends": 26.0}


def test_a_return_counts_from_the_cash_of_the_start() -> None:
    """Also where the first moment has something else already."""
    run = record(cash=800.0)

    assert metrics_of(run, "return")["return"] == pytest.approx(0.5)


# ---------------------------------------------------------------------- minutes and weeks


def test_minutes_count_as_their_sessions() -> None:
    """Only the last value of each exchange day matters to the annual figures."""
    times = minute_closes(4)
    rng = np.random.default_rng(1)
    wild = 1_000 * np.exp(np.cumsum(rng.normal(0, 0.001, len(times))))
    wild[[0, 389, 779, 1169, 1559]] = [1_000.0, 1_010.0, 999.9, 1_020.0, 1_015.0]
    run = run_of(times, {"AAPL": np.full(len(times), 10.0)}, [], cash=1_000, timeframe="1min")
    run = replace(run, equity=wild)

    found = metrics_of(run)

    closes = [1_000.0, 1_010.0, 999.9, 1_020.0, 1_015.0]
    returns = np.diff(closes) / closes[:-1]
    assert found["volatility"] == pytest.approx(np.std(returns, ddof=1) * math.sqrt(252))
    assert found["sharpe"] == pytest.approx(
        returns.mean() / np.std(returns, ddof=1) * math.sqrt(252)
    )
    assert found["max_drawdown"] == pytest.approx(np.min(wild / np.maximum.accumulate(wild)) - 1)


@pytest.mark.parametrize("start", ["2023-03-06", "2023-10-30", "2023-12-27"])
def test_exchange_days_need_no_table_of_clock_changes(start: str) -> None:
    """Extended hours close from 04:01 to 20:00 in New York, in winter and in summer."""
    dates = pd.bdate_range(start, periods=15)
    minutes = [d + pd.Timedelta(minutes=m) for d in dates for m in (241, 570, 960, 1200)]
    times = pd.DatetimeIndex(minutes).tz_localize("America/New_York").as_unit("us").asi8

    ends = perf.session_ends(times, "1min")

    assert ends is not None
    assert ends.tolist() == list(range(3, 60, 4))


def test_weeks_count_52_a_year() -> None:
    weekly = metrics_of(record(timeframe="1week"), "volatility")["volatility"]

    daily = metrics_of(record(), "volatility")["volatility"]
    assert weekly == pytest.approx(daily * math.sqrt(52 / 252))


# --------------------------------------------------------------------- nothing to be said


def test_a_flat_account_has_no_ratio() -> None:
    found = metrics_of(record([1_000.0] * 6, [1_000.0] * 6))

    assert (found["return"], found["cagr"], found["volatility"]) == (0, 0, 0)
    assert (found["max_drawdown"], found["max_drawdown_days"], found["exposure"]) == (0, 0, 0)
    assert (found["trades"], found["fees"], found["turnover"]) == (0, 0, 0)
    undefined = [n for n, v in found.items() if math.isnan(v)]
    assert undefined == [
        "sharpe", "sortino", "calmar", "average_drawdown", "average_drawdown_days", "hit_rate",
        "profit_factor", "expectancy", "average_win", "average_loss", "average_trade",
        "best_trade", "worst_trade", "average_holding_days", "sqn", "buy_and_hold_sharpe", "alpha",
        "beta", "correlation",
    ]  # fmt: skip


def test_steady_growth_has_no_volatility_to_divide_by() -> None:
    found = metrics_of(record([1_000 * 1.001**n for n in range(50)], [1.0] * 50))

    assert found["volatility"] == 0
    assert math.isnan(found["sharpe"])
    assert math.isnan(found["sortino"])


@pytest.mark.parametrize("length", [0, 1, 2])
def test_short_runs_say_what_they_can(length: int) -> None:
    found = metrics_of(record(VALUES[:length], HELD[:length]))

    assert all(not math.isinf(v) for v in found.values())
    assert math.isnan(found["sharpe"])
    assert math.isnan(found["volatility"])
    assert math.isnan(found["cagr"]) == (length < 2)


def test_one_session_of_minutes_has_a_return_and_no_risk() -> None:
    times = minute_closes(1)
    run = run_of(times, {"A": np.full(390, 10.0)}, [], cash=1_000, timeframe="1min")
    run = replace(run, equity=np.linspace(1_000, 5_000, 390, dtype=np.float64))

    found = metrics_of(run)

    assert found["return"] == 4.0
    assert math.isnan(found["cagr"]), "five-fold in a day is no number in a year"
    assert math.isnan(found["sharpe"])


@pytest.mark.parametrize("end", [0.0, -50.0])
def test_a_ruined_account_is_no_warning(end: float) -> None:
    found = metrics_of(record([1_000.0, 500.0, end, end, end], [1_000.0] * 5))

    assert found["return"] == end / 1_000 - 1
    assert found["max_drawdown"] == end / 1_000 - 1
    assert math.isnan(found["sharpe"])
    assert math.isnan(found["gross_exposure"])
    assert found["cagr"] == -1 if end == 0 else math.isnan(found["cagr"])


def test_a_benchmark_that_begins_later_counts_from_there() -> None:
    held = [math.nan, math.nan, 1_000.0, 1_100.0, 1_045.0, 1_200.0]

    found = metrics_of(record(VALUES, held))

    ours = np.array([0.1, -0.1, 219.9 / 980.1])
    theirs = np.array([0.1, -0.05, 155 / 1045])
    assert found["buy_and_hold_return"] == pytest.approx(0.2)
    assert found["buy_and_hold_volatility"] == pytest.approx(
        np.std(theirs, ddof=1) * math.sqrt(252)
    )
    assert found["correlation"] == pytest.approx(statistics.correlation(list(ours), list(theirs)))


def test_a_symbol_without_a_price_yet_is_no_exposure() -> None:
    run = record()
    closes = np.array([math.nan, math.nan, 5.0, 5.0, 5.0, 5.0])
    shares = np.array([0, 0, 0, 10.0, 10.0, 0])
    run = replace(run, closes={"NEW": closes}, positions={"NEW": shares})

    found = metrics_of(run, ["exposure", "gross_exposure"])

    assert found["exposure"] == pytest.approx(2 / 6)
    assert found["gross_exposure"] == pytest.approx((50 / 1_089 + 50 / 980.1) / 6)


# ------------------------------------------------------------------------------- the call


def test_all_metrics_come_in_one_order() -> None:
    assert list(metrics_of(crossing_run(60))) == list(METRICS)


def test_a_choice_is_the_same_as_all() -> None:
    run = crossing_run(300, 3)
    everything = metrics_of(run)

    for name in METRICS:
        alone = metrics_of(run, name)
        assert list(alone) == [name]
        assert alone[name] == everything[name] or math.isnan(everything[name])
    assert list(metrics_of(run, ["sqn", "return"])) == ["sqn", "return"]


def test_a_choice_computes_no_trades() -> None:
    """A record whose fills cannot be read still has a Sharpe ratio."""
    run = replace(crossing_run(300), fills=None)  # type: ignore[arg-type]

    assert metrics_of(run, ("sharpe", "max_drawdown", "exposure"))["sharpe"] != 0


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(md.RequestError, match="did you mean sharpe"):
        metrics_of(crossing_run(60), "sharp")


def test_months_are_those_of_the_exchange() -> None:
    times = (
        np.array([*session_closes(30, "2023-12-20")]) + 4 * 60 * MINUTE
    )  # 20:00, UTC is next day
    values = np.linspace(100, 129, 30, dtype=np.float64)

    found = perf.monthly_returns(times, values)

    dates = pd.bdate_range("2023-12-20", periods=30)
    december = values[[d.month == 12 for d in dates]][-1]
    january = values[[d.month == 1 for d in dates]][-1]
    assert list(found) == [(2023, 12), (2024, 1)]
    assert list(found.values()) == pytest.approx([december / 100 - 1, january / december - 1])
