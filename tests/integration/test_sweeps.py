"""Sweeps in real processes: alike whatever runs them, whatever fails, whoever kills them."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

import algorithms.sweeping.workers
from algorithms import (
    AlgorithmError,
    Context,
    Param,
    backtest,
    sweep,
    walk_forward,
)
from algorithms.frames import market_of
from algorithms.market import MarketData
from algorithms.result import BacktestResult
from algorithms.sweep_result import SweepResult
from tests.stack import Stack
from tests.sweep_examples import Cross, Deadly, Fragile, NotedFees, market

DATA = market()
GRID: Any = {"quick": range(2, 8), "steady": [10, 20, 30]}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every point run in another process, also those that would be done while these start."""
    monkeypatch.setattr(algorithms.sweeping.workers, "_SHORT", 0)


@pytest.fixture(scope="module")
def serial() -> SweepResult:
    return sweep(Cross, GRID, DATA, workers=1)


def _same(found: SweepResult, expected: SweepResult) -> None:
    pd.testing.assert_frame_equal(found.frame, expected.frame, check_exact=True)


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


# ------------------------------------------------------------------------------------- alike


def test_a_row_says_what_a_back_test_of_its_point_says(serial: SweepResult) -> None:
    assert serial.tried == len(serial.frame) == 18
    for number in (0, 7, 17):
        row: Any = serial.frame.loc[number]
        alone = backtest(Cross(quick=row["quick"], steady=row["steady"]), DATA).metrics
        pd.testing.assert_series_equal(
            row[alone.index].astype(float), alone, check_names=False, check_exact=True
        )
        pd.testing.assert_series_equal(
            serial.backtest(number).metrics, alone, check_names=False, check_exact=True
        )


@pytest.mark.usefixtures("in_processes")
def test_processes_of_its_own_find_the_same_and_leave_nothing_behind(serial: SweepResult) -> None:
    before = _children()
    _same(sweep(Cross, GRID, DATA, workers=3), serial)
    assert _children() == before


def test_points_done_while_processes_start_are_the_same(serial: SweepResult) -> None:
    _same(sweep(Cross, GRID, DATA, workers=2), serial)


def test_threads_find_the_same(serial: SweepResult) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        _same(sweep(Cross, GRID, DATA, executor=pool), serial)
        assert pool.submit(int, "1").result() == 1  # left running


def test_a_pool_of_processes_finds_the_same_and_is_given_the_job_once_each(
    serial: SweepResult, tmp_path: Path
) -> None:
    noted = tmp_path / "arrivals"
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        found = sweep(Cross, GRID, DATA, executor=pool, fees=NotedFees(noted))
    _same(found, serial)
    arrived = noted.read_text().split()
    assert 1 <= len(arrived) == len(set(arrived)) <= 2


@pytest.mark.usefixtures("in_processes")
def test_the_job_travels_once_for_all_workers(serial: SweepResult, tmp_path: Path) -> None:
    noted = tmp_path / "arrivals"
    _same(sweep(Cross, GRID, DATA, workers=3, fees=NotedFees(noted)), serial)
    assert len(noted.read_text().split()) == 1


class Remote(concurrent.futures.Executor):
    """Runs batches in a process that sees none of our files."""

    def __init__(self, pool: concurrent.futures.Executor) -> None:
        self.pool = pool

    def submit(self, call: Any, /, *given: Any, **named: Any) -> Any:
        ticket, *rest = given
        return self.pool.submit(call, ticket._replace(path="/nowhere"), *rest, **named)


def test_an_executor_of_elsewhere_is_sent_the_job(serial: SweepResult, tmp_path: Path) -> None:
    noted = tmp_path / "arrivals"
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        found = sweep(Cross, GRID, DATA, executor=Remote(pool), fees=NotedFees(noted))
    _same(found, serial)
    assert len(noted.read_text().split()) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_dask_cluster_finds_the_same_and_is_given_the_job_once_a_worker(
    serial: SweepResult, tmp_path: Path
) -> None:
    distributed = pytest.importorskip("distributed")
    noted = tmp_path / "arrivals"
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None,
            local_directory=str(tmp_path), silence_logs=50,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        found = sweep(Cross, GRID, DATA, executor=client.get_executor(), fees=NotedFees(noted))
    _same(found, serial)
    arrived = noted.read_text().split()
    assert 1 <= len(arrived) == len(set(arrived)) <= 2


# ---------------------------------------------------------------------------- from the tiers


def test_bars_are_read_once_with_what_every_point_needs_before_the_start(stack: Stack) -> None:
    grid = {"quick": [3, 5], "steady": [10, 60]}
    window: dict[str, Any] = {"start": "2023-10-02", "end": "2024-02-01", "client": stack.client}
    chosen = Cross(symbols=["AAPL", "MSFT"])
    found = sweep(chosen, grid, workers=2, **window)
    assert found.frame["error"].eq("").all()
    # All of them trade from the first session on: the longest average was warm by then.
    sessions = len(stack.client.get_bars("AAPL", start="2023-10-02", end="2024-02-01"))
    assert found.frame["observations"].tolist() == [sessions - 1] * 4
    assert found.fingerprint
    assert found.simulated
    assert "SIMULATED" in str(found)
    assert "SIMULATED" in found._repr_html_()
    stack.forget_calls()
    for number, row in found.frame.iterrows():
        point = Cross(symbols=["AAPL", "MSFT"], quick=row["quick"], steady=row["steady"])
        alone = backtest(point, **window)
        assert alone.metrics["final_equity"] == row["final_equity"], number
    walked = walk_forward(chosen, grid, train=30, test=20, workers=1, **window)
    assert walked.windows["train_start"].iloc[0] == pd.Timestamp("2023-10-02")
    assert len(walked.equity) == sessions - 30
    assert stack.calls() == 0


# -------------------------------------------------------------------------------- strategies


@pytest.mark.usefixtures("in_processes")
def test_a_strategy_of_a_local_scope_travels_by_value() -> None:
    limit = 0.3

    def loss(result: BacktestResult) -> float:
        return float(result.equity.iloc[-1]) - 100_000

    class Local(Cross):
        boost = Param(1.0)

        def on_bar(self, ctx: Context) -> None:
            self.share = limit * self.boost
            super().on_bar(ctx)

    grid: Any = {"boost": [1.0, 2.0], "quick": [3, 5]}
    alone = sweep(Local, grid, DATA, metric=[loss, "sharpe"], workers=1)
    _same(sweep(Local, grid, DATA, metric=[loss, "sharpe"], workers=2), alone)
    assert alone.metric == "loss"
    np.testing.assert_allclose(alone.frame["loss"], alone.frame["final_equity"] - 100_000)


_SCRIPT = """
    import sys
    import algorithms.sweeping.workers
    from algorithms import Algorithm, Param, sweep
    from tests.sweep_examples import market

    algorithms.sweeping.workers._SHORT = 0
    TARGET = 0.5

    def wanted(above):
        return TARGET if above else 0

    class Mine(Algorithm):
        indicators = {"average": "sma_{length}"}
        length = Param(5, low=2)

        def on_bar(self, ctx):
            ctx.order_target_percent(wanted(ctx.close[-1] > ctx.average[-1]))

    found = sweep(Mine, {"length": range(2, 8)}, market(1), workers=2)
    print(found.frame["error"].eq("").sum(), "points")
    print(found.frame["sharpe"].round(6).tolist())
"""


_STRATEGY = (
    "from algorithms import Algorithm, Param\nTARGET"
    + (textwrap.dedent(_SCRIPT).partition("TARGET")[2].partition("found")[0])
)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}


def test_a_script_needs_no_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(textwrap.dedent(_SCRIPT))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False,
        # Python 3.12 warns where a process with threads is forked.
        env={**_environment(), "PYTHONWARNINGS": "error::DeprecationWarning"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "6 points"


def test_a_notebook_sweeps_in_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", _environment()["PYTHONPATH"])
    cells = [nbformat.v4.new_code_cell(textwrap.dedent(_SCRIPT))]
    book = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(book, timeout=60, kernel_name="python3").execute(cwd=str(tmp_path))
    told = "".join(output.get("text", "") for output in book.cells[0].outputs)
    assert told.splitlines()[0] == "6 points", told


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.usefixtures("in_processes")
def test_a_strategy_of_a_file_outside_of_the_path_travels_by_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(_STRATEGY)
    spec = importlib.util.spec_from_file_location("strategy_of_a_file", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if known:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    spec.loader.exec_module(module)
    found = sweep(module.Mine, {"length": range(2, 8)}, market(1), workers=2)
    _same(found, sweep(module.Mine, {"length": range(2, 8)}, market(1), workers=1))
    assert found.frame["error"].eq("").all()


@pytest.mark.usefixtures("in_processes")
def test_a_module_that_changed_on_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "edited_strategy.py"
    file.write_text(_STRATEGY)
    monkeypatch.syspath_prepend(str(tmp_path))
    import edited_strategy  # type: ignore[import-not-found]

    assert sweep(edited_strategy.Mine, {"length": [2, 3]}, market(1), workers=2).tried == 2
    # Of another size: within one second Python tells a changed file by that alone.
    file.write_text(_STRATEGY.replace("ctx.close[-1] >", "ctx.close[-10] >"))
    with pytest.raises(AlgorithmError, match="edited_strategy has changed on disk"):
        sweep(edited_strategy.Mine, {"length": [2, 3]}, market(1), workers=2)
    del sys.modules["edited_strategy"]


@pytest.mark.usefixtures("in_processes")
def test_what_cannot_be_copied_is_refused_and_runs_here() -> None:
    class Locked(Cross):
        lock = threading.Lock()

        def on_start(self, ctx: Context) -> None:
            with self.lock:
                pass

    with pytest.raises(AlgorithmError, match="Locked cannot be copied"):
        sweep(Locked, {"quick": [2, 3]}, DATA, workers=2)
    assert sweep(Locked, {"quick": [2, 3]}, DATA, workers=1).frame["error"].eq("").all()


# ----------------------------------------------------------------------------------- failing


@pytest.mark.usefixtures("in_processes")
def test_the_workers_end_what_they_have_without_their_foreman(serial: SweepResult) -> None:
    before = _children()

    class Orphaning(Cross):
        mine = os.getpid()

        def on_start(self, ctx: Context) -> None:
            if self.quick == 4 and self.steady == 10 and os.getpid() != self.mine:
                os.kill(os.getppid(), signal.SIGKILL)

    _same(sweep(Orphaning, GRID, DATA, workers=2), serial)
    assert _children() == before


@pytest.mark.usefixtures("in_processes")
def test_a_point_that_fails_costs_no_other() -> None:
    grid = {"quick": [3, 4, 5, 20], "steady": [20]}
    here = sweep(Fragile, grid, DATA, workers=1)
    _same(sweep(Fragile, grid, DATA, workers=2), here)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        _same(sweep(Fragile, grid, DATA, executor=pool), here)
    errors = here.frame["error"].tolist()
    assert errors[0] == ""
    assert errors[1].startswith("ZeroDivisionError: four (sweep_examples.py:")
    assert errors[2].startswith("SystemExit: five (")
    assert errors[3].startswith("ValueError: quick and steady are equal (")
    assert here.frame["sharpe"].notna().tolist() == [True, False, False, False]
    assert len(here.failed) == 3
    assert here.best_point() == {"quick": 3, "steady": 20}
    assert "1 failed: ZeroDivisionError: four" in str(here)


@pytest.mark.usefixtures("in_processes")
def test_a_process_that_dies_costs_one_point(serial: SweepResult) -> None:
    found = sweep(Deadly, GRID, DATA, workers=2)
    for _, row in found.frame.iterrows():
        expected = {4: "its process ended: exit code 3",
                    6: "its process ended: SIGKILL (out of memory?)"}  # fmt: skip
        assert row["error"] == expected.get(row["quick"], "")
    whole = serial.frame["quick"].isin([4, 6])
    pd.testing.assert_series_equal(
        found.frame.loc[~whole, "sharpe"], serial.frame.loc[~whole, "sharpe"]
    )


def test_a_pool_that_breaks_says_what_to_do() -> None:
    context = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool,
        pytest.raises(AlgorithmError, match="the executor broke"),
    ):
        sweep(Deadly, GRID, DATA, executor=pool)


def test_when_all_fail_the_first_error_is_told() -> None:
    found = sweep(Fragile, {"quick": [4]}, DATA, workers=1)
    with pytest.raises(AlgorithmError, match=r"none of 1 points .* ZeroDivisionError: four"):
        found.best()


# ------------------------------------------------------------------------------------ memory


def test_workers_share_one_copy_of_the_bars() -> None:
    minutes = pd.date_range("2022-01-03 14:30", periods=600_000, freq="min", tz="UTC")
    column = np.linspace(90.0, 110.0, len(minutes))
    fine = pd.DataFrame(dict.fromkeys(("open", "high", "low", "close"), column), index=minutes)
    names = ["A", "B", "C"]
    days = {name: market(1)["S0"] for name in names}
    both = market_of(dict.fromkeys(names, fine), names, "1min")
    daily = market_of(days, names, "1day")
    whole = MarketData({**both.series, **daily.series}, daily.hours)
    size = sum(s.raw.nbytes + s.labels.nbytes + s.closes.nbytes for s in whole.series.values())
    assert size > 90_000_000

    def own_memory(result: BacktestResult) -> float:
        return float(psutil.Process().memory_full_info().uss)

    class Daily(Cross):
        symbols = names
        timeframes = ("1min",)

    found = sweep(Daily, {"quick": range(2, 8)}, whole, metric=own_memory, workers=2)
    assert found.frame["error"].eq("").all()
    # Each worker's own pages: far from the bars, of which all have one copy.
    assert found.frame["own_memory"].max() < size / 2
