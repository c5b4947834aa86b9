"""`backtest`: run a strategy over the past."""

from __future__ import annotations

import copy
import math
import numbers
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import marketdata as md
from algorithms.account import Account
from algorithms.algorithm import Algorithm
from algorithms.blotter import Costs
from algorithms.costs import Fees, Slippage
from algorithms.curves import record_of
from algorithms.engine import Engine, Limits
from algorithms.errors import AlgorithmError
from algorithms.frames import Frames, market_of, symbols_in
from algorithms.hours import EXCHANGE_ZONE, micros
from algorithms.lines import NEVER, Int64s
from algorithms.loading import Moment, load
from algorithms.market import MarketData
from algorithms.progress import Progress
from algorithms.run_record import BacktestRun
from algorithms.series import Series

if TYPE_CHECKING:
    from algorithms.result import BacktestResult

_PARTS = 200
PATIENCE = 40 * 86_400_000_000
"""Without bars for so long, a symbol has stopped trading; a month's bar may be the newest."""


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
    if not (_number(cash) and cash > 0):
        raise AlgorithmError(f"cash of {cash!r}", cure="begin with more than 0")
    began = time.perf_counter()
    costs = costs or Costs()
    algorithm = copy.deepcopy(algorithm)
    engine = Engine(algorithm, market, Account(cash), costs, limits=limits)
    first = engine.ready(since)
    times = market.moments(tuple(algorithm.symbols), engine.timeframe, first - 1, until)
    try:
        engine.begin(first - 1)
        for part in _parts(times, shown):
            engine.advance(NEVER - 1, part)
        engine.end()
    except Exception as error:
        # The author's line is in the traceback; which of thousands of bars it was is not.
        error.add_note(f"in {algorithm.name} at {_clock(engine.now)}")
        raise
    seconds = time.perf_counter() - began
    settings: dict[str, object] = {
        "fees": repr(costs.fees),
        "slippage": repr(costs.slippage),
        "leverage": costs.leverage,
        "adjustment": algorithm.adjustment,
        "session": algorithm.session,
    }
    record = record_of(engine, times, cash, seconds, settings)
    record.warnings.extend(_doubts(record, market))
    if type(algorithm).on_bar is Algorithm.on_bar:
        record.warnings.append(
            f"{type(algorithm).__name__} has no on_bar: nothing is done at a bar"
        )
    return record


def _doubts(record: BacktestRun, market: MarketData) -> list[str]:
    """Return what the reader of a result must know, for the account is not what it seems."""
    if not len(record.times):
        return ["there is no bar at which every indicator has a value"]
    found = []
    broke = np.flatnonzero(record.equity <= 0)
    if len(broke):
        found.append(
            f"the account was worth nothing at {_clock(int(record.times[broke[0]]))}: a broker would "
            "have closed its positions before; margin calls are not modelled"
        )
    for symbol, held in record.positions.items():
        series = market.of(symbol, record.timeframe)
        last = int(series.closes[series.size - 1]) if series.size else 0
        if held[-1] and record.times[-1] - last > PATIENCE:
            found.append(
                f"{symbol} has no bar after {_clock(last)}: the {held[-1]:g} shares held of it are "
                "worth its last close to the end"
            )
    return found


def _clock(instant: int) -> str:
    stamp = pd.Timestamp(instant, unit="us", tz="UTC").tz_convert(EXCHANGE_ZONE)
    return f"{stamp:%Y-%m-%d %H:%M} New York"


def _number(value: object) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


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
            _only_own(algorithm)
            market = market_of(data, algorithm.symbols, algorithm.timeframe, algorithm.session)
        if start is None:
            return market, -NEVER
        since = instant_of(start)
        if end is not None and instant_of(end) <= since:
            raise AlgorithmError(
                f"the end {end} is not after the start {start}", cure="exchange or move them"
            )
        first = min((s.opens_from(since) for s in _main(algorithm, market)), default=NEVER)
        if first == NEVER:
            raise AlgorithmError(
                f"the data has no bar from {start} on", cure="give an earlier start, or more data"
            )
    # What closes as the first bar of the window opens belongs before it.
    return market, min(first, NEVER - 2) + 1


def _only_own(algorithm: Algorithm) -> None:
    """Refuse a strategy on several timeframes where frames of one are given."""
    own = md.Timeframe.parse(algorithm.timeframe)
    specs = algorithm.indicator_specs().values()
    for name in (*algorithm.timeframes, *(timeframe for _, timeframe in specs)):
        if md.Timeframe.parse(name) is not own:
            raise AlgorithmError(
                f"{type(algorithm).__name__} wants {name} bars too, and a frame has {own} bars only",
                cure="run it without data: marketdata reads all timeframes it names",
            )


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
    if not isinstance(algorithm, Algorithm):
        raise AlgorithmError(
            f"{algorithm!r} is no strategy",
            cure="give a subclass of algorithms.Algorithm, or an instance of one",
        )
    if "state" not in vars(algorithm):
        raise AlgorithmError(
            f"{type(algorithm).__name__}.__init__ does not call that of Algorithm",
            cure="begin it with super().__init__(**params), or do its work in on_start",
        )
    if not algorithm.symbols and data is None:
        raise AlgorithmError(
            f"{type(algorithm).__name__} watches no symbols",
            cure=f'give them: {type(algorithm).__name__}(symbols=["AAPL"])',
        )
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
    if not (_number(leverage) and leverage > 0):
        raise AlgorithmError(f"a leverage of {leverage!r}", cure="give a number above 0")
    for what, model, method in (("fees", fees, "fee"), ("slippage", slippage, "price")):
        if model is None or (
            callable(getattr(model, method, None)) and not isinstance(model, type)
        ):
            continue
        raise AlgorithmError(f"{what}={model!r} is no model of {what}", cure=_model(what, model))
    if fees is not None:
        given["fees"] = fees
    if slippage is not None:
        given["slippage"] = slippage
    return Costs(**given)


def _model(what: str, given: object) -> str:
    """Return what to give for fees or slippage in place of what was given."""
    if isinstance(given, type):
        return f"give an instance: {given.__name__}()"
    if not _number(given):
        return "give PerShare(0.005)" if what == "fees" else "give BasisPoints(1)"
    share = float(given)  # type: ignore[arg-type]
    return (
        f"for a share of the money: Percent({share:g}); for an amount a share: PerShare({share:g})"
        if what == "fees"
        else f"for a share of the price: BasisPoints({share * 10_000:g})"
    )


def instant_of(moment: Moment) -> int:
    """Return a date or an aware time as microseconds UTC; a date is the exchange's midnight."""
    try:
        stamp = pd.Timestamp(moment)
        if isinstance(moment, (int, float)) or pd.isna(stamp):
            raise ValueError
    except (TypeError, ValueError):
        raise AlgorithmError(
            f"{moment!r} is not a moment",
            cure='on data of your own write a date ("2024-01-02") or an aware datetime',
        ) from None
    if stamp.tzinfo is None:
        if isinstance(moment, str) or stamp == stamp.normalize():
            stamp = stamp.tz_localize(EXCHANGE_ZONE)
        else:
            raise AlgorithmError(f"{moment!r} has no time zone", cure="give an aware datetime")
    return int(micros(pd.DatetimeIndex([stamp]))[0])
