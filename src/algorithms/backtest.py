"""`backtest`: run a strategy over the past."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import marketdata as md
from algorithms.account import Account
from algorithms.algorithm import Algorithm
from algorithms.blotter import Costs
from algorithms.costs import Fees, Slippage
from algorithms.curves import record_of
from algorithms.engine import Engine, Limits
from algorithms.errors import AlgorithmError
from algorithms.frames import Frames, market_of, symbols_in
from algorithms.lines import NEVER, Int64s
from algorithms.loading import Moment, load
from algorithms.market import MarketData
from algorithms.progress import Progress
from algorithms.run_record import BacktestRun
from algorithms.series import Series

if TYPE_CHECKING:
    from algorithms.result import BacktestResult

_PARTS = 200


def backtest(
    algorithm: Algorithm | type[Algorithm],
    data: Frames | MarketData | None = None,
    *,
    start: Moment | None = None,
    end: Moment | None = None,
    cash: float = 100_000.0,
    fees: Fees | None = None,
    slippage: Slippage | None = None,
    leverage: float = 1.0,
    limits: Limits | None = None,
    client: md.Client | None = None,
    as_of: Moment | None = None,
    progress: bool | None = None,
) -> BacktestResult:
    """Run a strategy over the past and return what it did.

    Parameters
    ----------
    algorithm : Algorithm or a subclass of it
        The class stands for itself with all defaults. An instance is not changed: a copy runs.
    data : DataFrame, mapping of symbol to DataFrame, or MarketData, optional
        Bars to run on, as `md.get_bars` gives them, prices as traded. By default they are read
        through marketdata's tiers with what the indicators need before `start`, and corporate
        actions.
    start, end : str, date, datetime, optional
        ``[start, end)`` as for `md.get_bars`. `start` is needed without `data`. The first `on_bar`
        is at the first moment at which every indicator has a value.
    cash : float
    fees : Fees, optional
        Nothing by default, as US brokers without commission take.
    slippage : Slippage, optional
        One basis point (`BasisPoints`) by default, against the trader, on market and stop orders.
    leverage : float
        The most that positions may be worth together, long and short, as a multiple of equity.
    limits : Limits, optional
        Asked about each order, as live.
    client : Client, optional
        Where bars are read; by default marketdata's own.
    as_of : optional
        Bars and actions as they were known at that moment.
    progress : bool, optional
        A bar on stderr; by default where it is a terminal and the run takes over a second.

    Returns
    -------
    BacktestResult

    Raises
    ------
    AlgorithmError
        The strategy watches nothing, or there are no bars to run on; a retry does not help.
    MarketDataError
        As `md.get_bars`. What the strategy raises is passed on as it is.
    """
    from algorithms.result import BacktestResult

    chosen = algorithm() if isinstance(algorithm, type) else algorithm
    chosen = watching(chosen, data)
    with Progress(progress) as shown:
        market, since = market_for(chosen, data, start, end, client, as_of, shown)
        costs = costs_of(fees, slippage, leverage)
        until = last_moment(chosen, market, end)
        record = run(
            chosen, market, since, until, cash=cash, costs=costs, limits=limits, shown=shown
        )
    return BacktestResult(record)


def run(
    algorithm: Algorithm,
    market: MarketData,
    since: int,
    until: int = NEVER - 1,
    *,
    cash: float = 100_000.0,
    costs: Costs | None = None,
    limits: Limits | None = None,
    shown: Progress | None = None,
) -> BacktestRun:
    """Run a copy of a strategy on a market from an instant on; the core of `backtest` and sweeps.

    Parameters
    ----------
    since, until : int
        Microseconds UTC; `on_bar` is called at moments in ``[since, until]`` once every indicator
        has a value.
    """
    if cash <= 0:
        raise AlgorithmError(f"cash of {cash:g}", cure="begin with more than 0")
    began = time.perf_counter()
    costs = costs or Costs()
    algorithm = copy.deepcopy(algorithm)
    engine = Engine(algorithm, market, Account(cash), costs, limits=limits)
    first = engine.ready(since)
    times = market.moments(tuple(algorithm.symbols), engine.timeframe, first - 1, until)
    engine.begin(first - 1)
    for part in _parts(times, shown):
        engine.advance(NEVER - 1, part)
    engine.end()
    seconds = time.perf_counter() - began
    settings: dict[str, object] = {
        "fees": repr(costs.fees),
        "slippage": repr(costs.slippage),
        "leverage": costs.leverage,
        "adjustment": algorithm.adjustment,
        "session": algorithm.session,
    }
    record = record_of(engine, times, cash, seconds, settings)
    if not len(times):
        record.warnings.append("there is no bar at which every indicator has a value")
    return record


def _parts(times: Int64s, shown: Progress | None) -> list[Int64s]:
    """Return the moments in parts, between which progress is shown."""
    if shown is None or not shown.wanted or len(times) < 10 * _PARTS:
        return [times]
    step = len(times) // _PARTS + 1
    parts = [times[at : at + step] for at in range(0, len(times), step)]
    return shown.over(parts, "running")


def market_for(
    algorithm: Algorithm,
    data: Frames | MarketData | None,
    start: Moment | None,
    end: Moment | None,
    client: md.Client | None,
    as_of: Moment | None,
    shown: Progress,
    variants: Iterable[Algorithm] = (),
) -> tuple[MarketData, int]:
    """Return what to run on, read or given, and the instant to run from; as `load`."""
    if data is None:
        if start is None:
            raise AlgorithmError(
                "a back-test without a start", cure='say when: start="2024-01-01", or give data'
            )
        report = shown.counter("reading")
        market, first = load(
            algorithm, start, end, client=client, as_of=as_of, progress=report, variants=variants
        )
    else:
        if isinstance(data, MarketData):
            market = data
        else:
            market = market_of(data, algorithm.symbols, algorithm.timeframe, algorithm.session)
        if start is None:
            return market, -NEVER
        since = instant_of(start)
        first = min((s.opens_from(since) for s in _main(algorithm, market)), default=NEVER)
    # What closes as the first bar of the window opens belongs before it.
    return market, min(first, NEVER - 2) + 1


def last_moment(algorithm: Algorithm, market: MarketData, end: Moment | None) -> int:
    """Return when the last of the bars that open before `end` closes."""
    if end is None:
        return NEVER - 1
    until = instant_of(end)
    return max((s.closed_before(until) for s in _main(algorithm, market)), default=-NEVER)


def _main(algorithm: Algorithm, market: MarketData) -> list[Series]:
    """Return the series that `on_bar` is called for."""
    frame = str(md.Timeframe.parse(algorithm.timeframe))
    return [market.of(symbol, frame) for symbol in algorithm.symbols]


def watching(algorithm: Algorithm, data: Frames | MarketData | None) -> Algorithm:
    """Return the algorithm; where it names no symbols, with those that the data has."""
    if algorithm.symbols or data is None:
        return algorithm
    algorithm = copy.copy(algorithm)
    if isinstance(data, MarketData):
        algorithm.symbols = tuple(dict.fromkeys(symbol for symbol, _ in data.series))
    else:
        algorithm.symbols = symbols_in(data)
    return algorithm


def costs_of(fees: Fees | None, slippage: Slippage | None, leverage: float) -> Costs:
    """Return the costs asked for, with the defaults of `backtest`."""
    given: dict[str, Any] = {"leverage": leverage}
    if not leverage > 0:
        raise AlgorithmError(f"a leverage of {leverage:g}", cure="give more than 0")
    if fees is not None:
        given["fees"] = fees
    if slippage is not None:
        given["slippage"] = slippage
    return Costs(**given)


def instant_of(moment: Moment) -> int:
    """Return a date or an aware time as microseconds UTC; a date is the exchange's midnight."""
    import pandas as pd

    from algorithms.hours import EXCHANGE_ZONE, micros

    stamp = pd.Timestamp(moment)
    if stamp.tzinfo is None:
        if isinstance(moment, str) or stamp == stamp.normalize():
            stamp = stamp.tz_localize(EXCHANGE_ZONE)
        else:
            raise AlgorithmError(f"{moment!r} has no time zone", cure="give an aware datetime")
    return int(micros(pd.DatetimeIndex([stamp]))[0])
