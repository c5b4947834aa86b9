"""Whatever an account went through, its figures are numbers or NaN, without a warning."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms import performance as perf
from algorithms.metrics import METRICS, metrics_of, run_trades
from tests.algorithm_runs import crossing_run, run_of, session_closes

# An account is counted in parts of a cent, not in 1e-300 of one.
amounts = st.one_of(st.floats(-1e12, 1e12), st.sampled_from([0.0, 1_000.0]), st.floats(0, 9)).map(
    lambda amount: round(amount, 6)
)
curves = st.lists(st.tuples(amounts, st.one_of(amounts, st.just(math.nan))), max_size=30)
steps = st.lists(st.floats(-0.4, 0.6), min_size=2, max_size=60)


@given(curves, st.sampled_from(["1day", "1week", "1min"]))
def test_figures_are_numbers_or_nan(curve: list[tuple[float, float]], timeframe: str) -> None:
    times = session_closes(len(curve))
    run = run_of(times, {"AAPL": np.ones(len(curve))}, [], timeframe=timeframe)
    equity = np.array([c[0] for c in curve], np.float64)
    held = np.array([c[1] for c in curve], np.float64)

    found = metrics_of(replace(run, equity=equity, buy_and_hold=held))

    assert [n for n, v in found.items() if math.isinf(v)] == []
    assert list(found) == list(METRICS)


@given(steps)
def test_drawdowns_are_what_a_loop_finds(changes: list[float]) -> None:
    values = np.cumprod(1 + np.array(changes)) * 100
    times = session_closes(len(values))

    below = perf.drawdown(values)
    depths, lengths = perf.drawdown_spells(below, times)

    peak, since, depth, expected = values[0], 0, 0.0, []
    for n, value in enumerate(values.tolist()):
        if value >= peak:
            if depth < 0:
                expected.append((depth, (times[n] - times[since]) / perf.DAY))
            peak, since, depth = value, n, 0.0
        depth = min(depth, value / peak - 1)
    if depth < 0:
        expected.append((depth, (times[-1] - times[since]) / perf.DAY))
    assert list(zip(depths, lengths, strict=True)) == expected


@given(steps, st.floats(0.1, 1e6))
def test_ratios_do_not_know_the_size_of_the_account(changes: list[float], size: float) -> None:
    values = np.cumprod(1 + np.array(changes))
    run = run_of(session_closes(len(values)), {"AAPL": np.ones(len(values))}, [])
    small, large = (replace(run, equity=v, cash=v[0]) for v in (values, values * size))

    names = ["return", "sharpe", "sortino", "max_drawdown", "average_drawdown_days"]
    assert list(metrics_of(large, names).values()) == pytest.approx(
        list(metrics_of(small, names).values()), rel=1e-6, abs=1e-9, nan_ok=True
    )


@given(steps, st.integers(1, 59))
def test_months_make_up_the_whole(changes: list[float], months: int) -> None:
    values = np.cumprod(1 + np.array(changes))
    times = session_closes(len(values) * months)[::months][: len(values)]

    found = perf.monthly_returns(times, values)

    assert np.prod([1 + r for r in found.values()]) == pytest.approx(values[-1] / values[0])
    assert list(found) == sorted(found)


def test_trades_make_up_the_account() -> None:
    run = crossing_run(400, 5)

    found = metrics_of(run, ["expectancy", "trades", "final_equity", "open_trades"])

    assert found["open_trades"] > 0
    gained = math.fsum(t.pnl for t in run_trades(run))
    assert found["final_equity"] - run.cash == pytest.approx(gained, abs=1e-6)
