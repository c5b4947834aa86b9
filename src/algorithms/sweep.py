"""`sweep`: run a strategy at every point of a grid of parameters, over all cores or a cluster."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import marketdata as md
from algorithms.algorithm import Algorithm
from algorithms.backtest import costs_of, last_moment, market_for, watching
from algorithms.costs import Fees, Slippage
from algorithms.engine import Limits
from algorithms.errors import AlgorithmError
from algorithms.frames import Frames
from algorithms.loading import Moment
from algorithms.market import MarketData
from algorithms.metrics import METRICS, metric_named
from algorithms.progress import Progress
from algorithms.sweep_result import SweepResult
from algorithms.sweeping import executors, workers
from algorithms.sweeping.grid import Constraint, Grid, Point, points_of
from algorithms.sweeping.job import MOMENTS, Job, Measure, Outcome, Span, Task
from algorithms.sweeping.store import PointStore

Metric = str | Measure
_SETTINGS = ("symbols", "timeframe", "timeframes", "name", "fractional", "adjustment", "session")


def sweep(
    algorithm: Algorithm | type[Algorithm],
    grid: Grid,
    data: Frames | MarketData | None = None,
    *,
    start: Moment | None = None,
    end: Moment | None = None,
    metric: Metric | Sequence[Metric] = "sharpe",
    where: Constraint | None = None,
    sample: int | None = None,
    seed: int = 0,
    cash: float = 100_000.0,
    fees: Fees | None = None,
    slippage: Slippage | None = None,
    leverage: float = 1.0,
    limits: Limits | None = None,
    risk_free: float = 0.0,
    executor: Executor | None = None,
    workers: int | None = None,
    store: str | Path | None = None,
    progress: bool | None = None,
    client: md.Client | None = None,
    as_of: Moment | None = None,
) -> SweepResult:
    """Run a strategy at every point of a grid, and return the figures of all as one table.

    Uses all cores by processes of its own, also from a notebook or a script without a
    ``__main__`` guard; short runs begin in this process, so that a small sweep is done before
    others have started. Bars are read once, here, with what the indicators of every point need
    before `start`. A point that fails has its error in the table and costs no other. The table is
    the same whatever runs it, unless the strategy draws random numbers without a seed.

    Parameters
    ----------
    algorithm : Algorithm or a subclass of it
        Parameters that the grid leaves out keep its values. Each run makes its own, by the class.
    grid : mapping of str to iterable
        The values to try of each parameter: ``{"fast": range(5, 30), "slow": [50, 100, 200]}``.
    data, start, end, cash, fees, slippage, leverage, limits, client, as_of
        As for `backtest`. `limits` are copied for each run.
    metric : str, callable or list of these
        What the points are judged by: a name of `metrics.METRICS`, or a function of a
        `BacktestResult` that returns a number; of several the first. All metrics are in the table
        in any case.
    where : callable, optional
        Says of a point whether to try it: ``lambda p: p.fast < p.slow``. It sees the parameters
        outside of the grid too.
    sample : int, optional
        No more than so many points of the grid, drawn at random.
    seed : int
        Of that draw.
    risk_free : float
        Annual rate, as a fraction: Sharpe, Sortino and alpha count from it.
    executor : concurrent.futures.Executor, optional
        Runs the points instead of processes of the sweep's own: a pool of yours, or a cluster's,
        ``dask.distributed.Client(...).get_executor()``. It is left running.
    workers : int, optional
        How many processes, by default one a core; 1 runs all points in this process, where a
        debugger reaches them. Not together with `executor`.
    store : str or Path, optional
        A file in which finished points are kept, one line each: the same sweep goes on where it
        was ended, by whatever. Points of another strategy, code, parameters, data or costs are
        never taken for these, so that one file serves many sweeps.
    progress : bool, optional
        A bar on stderr; by default where it is a terminal and the sweep takes over a second.

    Returns
    -------
    SweepResult

    Raises
    ------
    ParameterError
        The grid names what the strategy does not have, or a value that it does not take.
    AlgorithmError
        Nothing to try, nothing to run on, or the strategy cannot be copied to another process; a
        retry does not help. `transient` where the processes were ended from outside.
    MarketDataError
        As `md.get_bars`.
    KeyboardInterrupt
        Ctrl-C: all processes are gone, `store` has what was done, and so has the exception, as
        the `SweepResult` in its attribute ``result``.
    """
    began = time.monotonic()
    named, measures = metrics_named(metric)
    chosen = chosen_of(algorithm, data)
    points = points_of(chosen, grid, where, sample, seed)
    with Progress(progress) as shown:
        market, since = market_for(
            chosen, data, start, end, client, as_of, shown, variants(chosen, points)
        )
        until = last_moment(chosen, market, end)
        job = job_of(
            chosen,
            market,
            (Span(since, until),),
            measures,
            cash=cash,
            fees=fees,
            slippage=slippage,
            leverage=leverage,
            limits=limits,
            risk_free=risk_free,
        )
        tasks = [Task(number, 0, point) for number, point in enumerate(points)]

        def result(done: Done) -> SweepResult:
            return SweepResult(
                job,
                points,
                done.outcomes,
                named,
                grid=tuple(grid),
                seconds=time.monotonic() - began,
                resumed=done.resumed,
            )

        return result(run_tasks(job, tasks, executor, workers, store, shown, result))


class Done(NamedTuple):
    """What was done of the tasks of a job."""

    outcomes: Mapping[int, Outcome]
    resumed: int


def run_tasks(
    job: Job,
    tasks: Sequence[Task],
    executor: Executor | None,
    workers: int | None,
    store: str | Path | None,
    shown: Progress,
    result: Callable[[Done], object],
) -> Done:
    """Run tasks, those that the store has excepted; an interrupt carries ``result(done so far)``."""
    outcomes: dict[int, Outcome] = {}
    report = shown.counter("sweeping")
    resumed = 0
    with contextlib.ExitStack() as stack:
        kept = None if store is None else stack.enter_context(PointStore(store, job))
        left = []
        for task in tasks:
            figures = None if kept is None else kept.figures(task)
            if figures is None:
                left.append(task)
            else:
                outcomes[task.number] = Outcome(task.number, figures)
        resumed = len(outcomes)
        by_number = {task.number: task for task in left}
        running = stack.enter_context(contextlib.closing(_running(job, left, executor, workers)))
        try:
            for outcome in running:
                if kept is not None:
                    kept.keep(by_number[outcome.number], outcome)
                outcomes[outcome.number] = outcome
                report(len(outcomes), len(tasks))
        except KeyboardInterrupt as interrupt:
            running.close()
            hint = "" if store is not None else "; store=PATH would keep them for the next time"
            interrupt.add_note(f"{len(outcomes):,} of {len(tasks):,} points were done{hint}")
            interrupt.result = result(Done(outcomes, resumed))  # type: ignore[attr-defined]
            raise
    return Done(outcomes, resumed)


def _running(
    job: Job, tasks: Sequence[Task], executor: Executor | None, count: int | None
) -> Generator[Outcome]:
    if executor is not None:
        if count is not None:
            raise AlgorithmError(
                "workers and an executor", cure="give the executor as many as you want"
            )
        yield from executors.outcomes(executor, job, tasks)
        return
    count = workers.cores() if count is None else count
    if count < 1:
        raise AlgorithmError(f"{count} workers", cure="give 1 or more, or leave it out")
    if count == 1 or len(tasks) < 2:
        yield from workers.here(job, tasks)
    else:
        yield from workers.outcomes(job, tasks, count)


def metrics_named(metric: Metric | Sequence[Metric]) -> tuple[tuple[str, ...], dict[str, Measure]]:
    """Return the names of what is asked for, the deciding one first, and the author's own."""
    asked = [metric] if isinstance(metric, str) or callable(metric) else list(metric)
    names: list[str] = []
    measures: dict[str, Measure] = {}
    for one in asked:
        if isinstance(one, str):
            if one not in MOMENTS and one != "deflated_sharpe":
                metric_named(one)
            names.append(one)
            continue
        name = str(getattr(one, "__name__", "metric")).strip("<>")
        name = "metric" if name == "lambda" else name
        if name in METRICS or name in measures or name in MOMENTS:
            name += "_own"
        measures[name] = one
        names.append(name)
    if not names:
        raise AlgorithmError("no metric", cure='name one: metric="sharpe"')
    return tuple(dict.fromkeys(names)), measures


def chosen_of(
    algorithm: Algorithm | type[Algorithm], data: Frames | MarketData | None
) -> Algorithm:
    """Return the strategy with the symbols it runs on."""
    chosen = algorithm() if isinstance(algorithm, type) else algorithm
    chosen = watching(chosen, data)
    if not chosen.symbols:
        raise AlgorithmError(
            f"{type(chosen).__name__} watches no symbols",
            cure=f'give them: {type(chosen).__name__}(symbols=["AAPL"])',
        )
    return chosen


def variants(chosen: Algorithm, points: Sequence[Point]) -> Iterator[Algorithm]:
    """Yield the strategy of each point that can be made."""
    given = given_of(chosen)
    for point in points:
        # What cannot be made fails when it is run, and says so in the table.
        with contextlib.suppress(Exception):
            yield type(chosen)(**{**given, **point})


def given_of(chosen: Algorithm) -> dict[str, Any]:
    """Return the keywords that make a strategy again."""
    settings = {name: vars(chosen)[name] for name in _SETTINGS if name in vars(chosen)}
    return {**settings, **chosen.params}


def job_of(
    chosen: Algorithm,
    market: MarketData,
    spans: tuple[Span, ...],
    measures: Mapping[str, Measure],
    *,
    cash: float,
    fees: Fees | None,
    slippage: Slippage | None,
    leverage: float,
    limits: Limits | None,
    risk_free: float,
    cut: bool = False,
) -> Job:
    """Return what all runs of a sweep share."""
    if not cash > 0:
        raise AlgorithmError(f"cash of {cash:g}", cure="begin with more than 0")
    return Job(
        id=secrets.token_hex(8),
        kind=type(chosen),
        given=given_of(chosen),
        market=market,
        spans=spans,
        cut=cut,
        cash=cash,
        costs=costs_of(fees, slippage, leverage),
        limits=limits,
        measures=measures,
        risk_free=risk_free,
    )
