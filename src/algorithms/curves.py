"""The account at every moment of a run, worked out at its end from what was traded. Pure.

The loop keeps no curves: it would cost as much as the strategy. Everything follows from fills,
actions and closes.
"""

from __future__ import annotations

import numpy as np

from algorithms.engine import Engine
from algorithms.lines import Floats, Int64s
from algorithms.run_record import BacktestRun
from algorithms.series import CLOSE, Series


def closes_at(series: Series, times: Int64s) -> Floats:
    """Return the newest raw close at each moment, on the basis of that moment; NaN before any."""
    size = series.size
    ends = series.closes[:size]
    place = _newest(ends, times)
    known = place >= 0
    at = np.maximum(place, 0)
    found = np.where(known, series.raw[CLOSE, :size][at], np.nan) if size else _nothing(times)
    for action in series.actions:
        if action.ratio != 1.0 and size:
            stale = known & (times > action.time) & (ends[at] < action.time)
            found[stale] /= action.ratio
    return np.asarray(found, np.float64)


def _newest(ends: Int64s, times: Int64s) -> Int64s:
    """Return the index of the newest bar that has closed by each moment; -1 before any."""
    if len(times):
        first, last = ends.searchsorted(times[[0, -1]]).tolist()
        if last + 1 - first == len(times) and np.array_equal(ends[first : last + 1], times):
            # The moments are this series' own closes: with one symbol they always are.
            return np.arange(first, last + 1)
    return ends.searchsorted(times, side="right") - 1


def record_of(
    engine: Engine, times: Int64s, cash: float, seconds: float, settings: dict[str, object]
) -> BacktestRun:
    """Return the record of a run over these moments that began with `cash`."""
    algorithm, market = engine.algorithm, engine.market
    symbols = tuple(algorithm.symbols)
    closes = {s: closes_at(market.of(s, engine.timeframe), times) for s in symbols}
    changes: dict[str, list[tuple[int, float]]] = {symbol: [] for symbol in symbols}
    flows = list(engine.cash_flows)
    for fill, moment in zip(engine.blotter.fills, engine.blotter.moments, strict=True):
        changes[fill.symbol].append((moment, fill.quantity))
        flows.append((moment, -fill.quantity * fill.price - fill.fee))
    for moment, symbol, change in engine.share_changes:
        changes[symbol].append((moment, change))
    cash_curve = cash + _accumulated(flows, times)
    equity = cash_curve.copy()
    positions = {}
    for symbol in symbols:
        held = positions[symbol] = _accumulated(changes[symbol], times)
        some = held != 0
        equity[some] += held[some] * closes[symbol][some]
    return BacktestRun(
        symbols=symbols,
        timeframe=engine.timeframe,
        cash=cash,
        times=times,
        equity=equity,
        cash_curve=cash_curve,
        positions=positions,
        closes=closes,
        fills=list(engine.blotter.fills),
        orders=list(engine.blotter.orders),
        actions=list(engine.actions),
        params=algorithm.params,
        algorithm=algorithm.name,
        fingerprint=market.origin.fingerprint,
        seconds=seconds,
        bars=_bars_seen(engine, times),
        simulated=market.origin.simulated,
        warnings=list(market.origin.warnings),
        buy_and_hold=_buy_and_hold(engine, times, cash, closes),
        settings=settings,
    )


def _bars_seen(engine: Engine, times: Int64s) -> int:
    if not len(times):
        return 0
    count = 0
    for symbol in engine.algorithm.symbols:
        series = engine.market.of(symbol, engine.timeframe)
        low, high = np.searchsorted(series.closes[: series.size], (times[0], times[-1] + 1))
        count += int(high - low)
    return count


def _accumulated(changes: list[tuple[int, float]], times: Int64s) -> Floats:
    """Return the sum of the changes up to each moment, added in their order."""
    if not changes:
        return np.zeros(len(times))
    changes.sort(key=lambda change: change[0])
    sums = np.cumsum([amount for _, amount in changes])
    # Shares bought and sold in binary fractions leave dust where nothing is held.
    sums[np.abs(sums) < 1e-9] = 0.0
    edges = times.searchsorted([moment for moment, _ in changes])
    return np.repeat(np.append(0.0, sums), np.diff(edges, prepend=0, append=len(times)))


def _buy_and_hold(engine: Engine, times: Int64s, cash: float, closes: dict[str, Floats]) -> Floats:
    """Return what `cash` would be worth, spread evenly over the symbols at their first closes."""
    share = cash / max(1, len(closes))
    worth = np.zeros(len(times))
    for symbol, prices in closes.items():
        known = np.isfinite(prices)
        if not known.any():
            worth += share
            continue
        first = int(known.argmax())
        held = np.full(len(times), share / prices[first])
        paid = np.zeros(len(times))
        for action in engine.market.of(symbol, engine.timeframe).actions:
            if action.time < times[first]:
                continue
            since = int(np.searchsorted(times, action.time, side="right"))
            if action.cash and since < len(times):
                paid[since:] += held[since] * action.cash
            held[since:] *= action.ratio
        value = held * prices + paid
        value[:first] = share
        worth += value
    return worth


def _nothing(times: Int64s) -> Floats:
    return np.full(len(times), np.nan)
