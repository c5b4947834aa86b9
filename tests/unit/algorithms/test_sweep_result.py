"""What a sweep gives back: its table, its best point, its picture, its words."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import numpy as np
import pytest

from algorithms import Algorithm, AlgorithmError, Param, sweep
from algorithms.sweep_result import SweepResult
from tests.sweep_examples import Cross, market

DATA = market()
GRID: Any = {"quick": range(2, 8), "steady": [10, 20, 30]}


@pytest.fixture(scope="module")
def serial() -> SweepResult:
    return sweep(Cross, GRID, DATA, workers=1)


def test_the_best_point_and_its_picture(serial: SweepResult) -> None:
    best = serial.best()
    assert best["sharpe"] == serial.frame["sharpe"].max()
    assert (
        serial.best("volatility", smallest=True)["volatility"] == serial.frame["volatility"].min()
    )
    assert serial.best_point() == {"quick": best["quick"], "steady": best["steady"]}
    assert serial.backtest().metrics["sharpe"] == best["sharpe"]
    figure = serial.heatmap("quick", "steady", "return")
    heat = figure.data[0]
    assert list(heat.x) == [str(n) for n in range(2, 8)]
    assert list(heat.y) == ["10", "20", "30"]
    table = serial.frame.pivot_table(index="steady", columns="quick", values="return")
    np.testing.assert_array_equal(heat.z, table.to_numpy())
    assert heat.customdata[0][0].startswith("<b>quick 2, steady 10</b><br>return <b>")
    assert "max drawdown" in heat.customdata[0][0]
    # Without further ado: the metric of the sweep, over the parameters that vary.
    assert serial.heatmap().data[0].hovertemplate == heat.hovertemplate
    line = sweep(Cross, {"quick": range(2, 6)}, DATA, workers=1).heatmap()
    assert line.data[0].mode == "lines+markers"


def test_a_cell_of_several_points_shows_what_was_asked_for() -> None:
    found = sweep(Cross, {**GRID, "share": [0.2, 0.4]}, DATA, workers=1)
    groups = found.frame.groupby(["steady", "quick"])["sharpe"]
    for aggregate in ("max", "median", "mean", "min"):
        heat = found.heatmap("quick", "steady", aggregate=aggregate).data[0]
        expected = groups.agg(aggregate).unstack().to_numpy()
        np.testing.assert_array_equal(heat.z, expected)


def test_the_result_reads_well(serial: SweepResult) -> None:
    told = str(serial)
    assert told.startswith("Cross on S0, S1, 1day bars\n18 points tried in ")
    assert "deflated" in told
    assert max(map(len, told.splitlines())) <= 110
    assert "<table" in serial._repr_html_()
    assert 0 <= serial.frame["deflated_sharpe"].min() <= serial.frame["deflated_sharpe"].max() <= 1


def test_of_one_point_nothing_is_deflated() -> None:
    found = sweep(Cross, {"quick": [5]}, DATA, workers=1)
    assert found.tried == 1
    assert "luck" not in str(found)


class Waiting(Algorithm):
    """Never trades."""

    symbols = ("S0",)
    n = Param(1)


def test_a_strategy_that_never_trades_has_figures_but_no_best() -> None:
    found = sweep(Waiting, {"n": [1, 2]}, DATA, workers=1)
    assert found.frame["return"].eq(0.0).all()
    with pytest.raises(AlgorithmError, match="none of 2 points has a value of sharpe"):
        found.best()


def test_what_cannot_be_swept_is_refused() -> None:
    with pytest.raises(AlgorithmError, match="workers and an executor"):
        sweep(Cross, GRID, DATA, workers=2, executor=concurrent.futures.ThreadPoolExecutor(1))
    with pytest.raises(AlgorithmError, match="0 workers"):
        sweep(Cross, GRID, DATA, workers=0)
    with pytest.raises(AlgorithmError, match="is no executor"):
        sweep(Cross, GRID, DATA, executor=object())  # type: ignore[arg-type]
    with pytest.raises(AlgorithmError, match="watches no symbols"):
        sweep(Cross, GRID, DATA["S0"])
