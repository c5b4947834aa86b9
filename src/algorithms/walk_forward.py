"""`walk_forward`: choose parameters on one stretch of time, trade the next one with them, go on.

What a sweep finds best has been chosen with hindsight. Here it is chosen on a window, and judged
on the time right after it, which had no part in the choice; the tests put together are a back-test
that could have been traded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import numpy as np

import marketdata as md
from algorithms.algorithm import Algorithm
from algorithms.backtest import last_moment, market_for, run
from algorithms.costs import Fees, Slippage
from algorithms.engine import Limits
from algorithms.errors import AlgorithmError
from algorithms.frames import Frames
from algorithms.loading import Moment
from algorithms.market import MarketData
from algorithms.orders import Fill, Order, OrderState
from algorithms.params import Value
from algorithms.progress import Progress
from algorithms.run_record import BacktestRun, Floats
from algorithms.sweep import Metric, chosen_of, job_of, metrics_named, run_tasks, variants
from algorithms.sweep_result import SweepResult
from algorithms.sweeping.grid import Constraint, Grid, points_of
from algorithms.sweeping.job import Job, Outcome, Span, Task
from algorithms.sweeping.windows import Length, Window, windows_of
from algorithms.walk_forward_result import Tested, WalkForwardResult


def walk_forward(
    algorithm: Algorithm | type[Algorithm],
    grid: Grid,
    data: Frames | MarketData | None = None,
    *,
    train: Length,
    test: Length,
    anchored: bool = False,
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
) -> WalkForwardResult:
    """Sweep each window, and trade the time after it with the best point of the window.

    Bars after the end of a window are taken away before its runs, so that not even an indicator of
    the author's own can see them; bars before its start warm its indicators up. Each test begins
    without positions, with what the one before ended with, and sells what it holds at its last
    close, at the usual costs. A window in which no point has a value is not traded.

    Parameters
    ----------
    algorithm, grid, data, start, end, where, sample, seed, cash, fees, slippage, leverage, limits,
    risk_free, executor, workers, store, progress, client, as_of
        As for `sweep`. With `store`, windows that a longer history has in common with an earlier
        one are not swept again.
    train, test : int, str, timedelta or DateOffset
        How long a window is, and the test after it: sessions (``252``), or ``"1y"``, ``"6mo"``,
        ``"4w"``, ``"90d"``. Each window begins one test later than the one before; the last test
        may be shorter.
    anchored : bool
        All windows begin at `start`, and grow.
    metric : str, callable or list of these
        The first chooses, by its highest value; the earliest of equals in the order of the grid.

    Returns
    -------
    WalkForwardResult

    Raises
    ------
    AlgorithmError
        As `sweep`; also where less than `train` and one session are there.
    """
    began = time.monotonic()
    named, measures = metrics_named(metric)
    if named[0] == "deflated_sharpe":
        raise AlgorithmError(
            "a window's points have one luck in common",
            cure='choose by metric="sharpe": the order is nearly the same',
        )
    chosen = chosen_of(algorithm, data)
    points = points_of(chosen, grid, where, sample, seed)
    with Progress(progress) as shown:
        market, since = market_for(
            chosen, data, start, end, client, as_of, shown, variants(chosen, points)
        )
        until = last_moment(chosen, market, end)
        windows = windows_of(
            market.hours, *_reach(chosen, market, since, until), train, test, anchored=anchored
        )
        job = job_of(
            chosen, market, tuple(window.train for window in windows), measures, cash=cash,
            fees=fees, slippage=slippage, leverage=leverage, limits=limits, risk_free=risk_free,
            cut=True,
        )  # fmt: skip
        count = len(points)
        tasks = [
            Task(place * count + number, place, point)
            for place in range(len(windows))
            for number, point in enumerate(points)
        ]
        done = run_tasks(job, tasks, executor, workers, store, shown, lambda done: None)
        sweeps = [
            SweepResult(job, points, _of_window(done.outcomes, place, count), named,
                        grid=tuple(grid), span=place)
            for place in range(len(windows))
        ]  # fmt: skip
        tests = _tests(job, windows, sweeps)
    return WalkForwardResult(
        windows, sweeps, tests, _stitched(job, chosen, tests, cash), risk_free=risk_free,
        seconds=time.monotonic() - began,
    )  # fmt: skip


def _reach(chosen: Algorithm, market: MarketData, since: int, until: int) -> tuple[int, int]:
    """Return the first instant and the last moment there is to use."""
    frame = str(md.Timeframe.parse(chosen.timeframe))
    moments = market.moments(tuple(chosen.symbols), frame, since - 1, until)
    if not len(moments):
        raise AlgorithmError("no bars in the window", cure="ask for another one")
    return int(moments[0]), int(moments[-1])


def _of_window(outcomes: Mapping[int, Outcome], place: int, count: int) -> dict[int, Outcome]:
    first = place * count
    return {
        number - first: outcome._replace(number=number - first)
        for number, outcome in outcomes.items()
        if first <= number < first + count
    }


def _tests(job: Job, windows: Sequence[Window], sweeps: Sequence[SweepResult]) -> list[Tested]:
    """Trade each test with the best point of its window."""
    proving = replace(
        job, id=f"{job.id}-tests", spans=tuple(window.test for window in windows), cut=True
    )
    cash = job.cash
    found = []
    for place, swept in enumerate(sweeps):
        point = _best(swept)
        if cash <= 0:
            point = None
        if point is None:
            record = _idle(proving, place, max(cash, 0.01))
        else:
            record = closed(proving.record(Task(place, place, point), cash), job)
        found.append(Tested(point, record))
        if len(record.equity):
            cash = float(record.equity[-1])
    return found


def _best(swept: SweepResult) -> dict[str, Value] | None:
    return swept.best_point() if swept.frame[swept.metric].notna().any() else None


class _Idle(Algorithm):
    """Holds nothing, and has no parameters or indicators."""


def _idle(job: Job, place: int, cash: float) -> BacktestRun:
    made = job.algorithm({})
    idle = _Idle(symbols=made.symbols, timeframe=made.timeframe, session=made.session,
                 adjustment=made.adjustment, name=made.name)  # fmt: skip
    span = job.spans[place]
    return run(idle, job.room(place), span.since, span.until, cash=cash, costs=job.costs)


def closed(record: BacktestRun, job: Job) -> BacktestRun:
    """Return a run whose positions were sold, or bought back, at its last close."""
    held = {symbol: float(shares[-1]) for symbol, shares in record.positions.items() if len(shares)}
    held = {symbol: shares for symbol, shares in held.items() if shares}
    if not held:
        return record
    fills, orders = list(record.fills), list(record.orders)
    now = int(record.times[-1])
    cash = float(record.cash_curve[-1])
    for symbol, shares in held.items():
        price = job.costs.slippage.price(float(record.closes[symbol][-1]), -shares, math.inf)
        fee = job.costs.fees.fee(-shares, price)
        order = Order(f"end-{symbol}", symbol, -shares, created=now, tag="end of window",
                      state=OrderState.FILLED, filled=-shares, filled_price=price)  # fmt: skip
        orders.append(order)
        fills.append(Fill(now, order.id, symbol, -shares, price, fee, order.tag))
        cash += shares * price - fee
    positions = {symbol: shares.copy() for symbol, shares in record.positions.items()}
    for symbol in held:
        positions[symbol][-1] = 0.0
    equity, cash_curve = record.equity.copy(), record.cash_curve.copy()
    equity[-1] = cash_curve[-1] = cash
    return replace(
        record, fills=fills, orders=orders, positions=positions, equity=equity,
        cash_curve=cash_curve,
    )  # fmt: skip


def _stitched(job: Job, chosen: Algorithm, tests: Sequence[Tested], cash: float) -> BacktestRun:
    """Return the tests as one run."""
    records = [tested.record for tested in tests]
    first, last = records[0], records[-1]
    begin = min(int(record.times[0]) for record in records if len(record.times))
    ending = max(int(record.times[-1]) for record in records if len(record.times))
    whole = replace(job, id=f"{job.id}-all", spans=(Span(begin, ending),), cut=True)
    held = _idle(whole, 0, cash)
    times = np.concatenate([record.times for record in records])
    place = np.searchsorted(held.times, times)
    return replace(
        first,
        cash=cash,
        times=times,
        equity=np.concatenate([record.equity for record in records]),
        cash_curve=np.concatenate([record.cash_curve for record in records]),
        positions=_joined([record.positions for record in records]),
        closes=_joined([record.closes for record in records]),
        fills=[
            fill._replace(order_id=f"{n}-{fill.order_id}")
            for n, record in enumerate(records)
            for fill in record.fills
        ],
        orders=[
            replace(order, id=f"{n}-{order.id}", parent=_within(n, order.parent),
                    twin=_within(n, order.twin))
            for n, record in enumerate(records)
            for order in record.orders
        ],
        actions=[action for record in records for action in record.actions],
        params={},
        algorithm=chosen.name,
        seconds=sum(record.seconds for record in records),
        bars=sum(record.bars for record in records),
        warnings=list(dict.fromkeys(text for record in records for text in record.warnings)),
        buy_and_hold=held.buy_and_hold[place],
        settings={**last.settings, "walk_forward": len(records)},
    )  # fmt: skip


def _within(place: int, order_id: str | None) -> str | None:
    return None if order_id is None else f"{place}-{order_id}"


def _joined(parts: Sequence[dict[str, Floats]]) -> dict[str, Floats]:
    return {symbol: np.concatenate([part[symbol] for part in parts]) for symbol in parts[0]}
