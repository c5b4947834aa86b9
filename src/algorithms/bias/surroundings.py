"""What surrounds a run: which symbols there were, which bars are missing, what the fills supposed.

None of it makes a result wrong by itself; all of it is to be known before it is believed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType
from typing import Any, Final

import numpy as np

from algorithms.algorithm import Algorithm
from algorithms.bias.findings import Finding, Level
from algorithms.bias.words import stamp
from algorithms.hours import EXCHANGE_ZONE
from algorithms.lines import Int64s
from algorithms.market import MarketData
from algorithms.orders import OrderState
from algorithms.run_record import BacktestRun
from algorithms.series import CLOSE, HIGH, LOW, OPEN, VOLUME, Series
from algorithms.trades import Trade

FEW_TRADES: Final = 30
"""Below it, the mean of a sample is no estimate of much: the usual rule of thumb of statistics."""
MUCH_OF_A_BAR: Final = 0.1
MANY_SYMBOLS: Final = 10
_READS: Final = frozenset(
    (
        "backtest", "get_actions", "get_bars", "get_indicators", "get_latest_bar", "get_snapshots",
        "read_csv", "read_feather", "read_parquet", "read_pickle", "read_sql", "urlopen",
    )
)  # fmt: skip
_RATIOS: Final = (2, 3, 4, 5, 6, 7, 8, 10, 15, 20, 25, 50)
_NEAR: Final = 0.06
"""What a day's move may make of a split's ratio."""
_SESSION: Final = 86_400_000_000


def warnings_of(
    algorithm: Algorithm,
    market: MarketData,
    run: BacktestRun,
    trades: Sequence[Trade],
    notes: Sequence[str],
) -> list[Finding]:
    """Return what to know about the data and the fills of a run."""
    found = [*_reads_beside(algorithm), *_universe(algorithm, market, run)]
    found += _gaps(algorithm, market, run)
    found += _unbooked_splits(algorithm, market, run)
    found += [_warning("data", "bars", note) for note in dict.fromkeys(notes)]
    found += _fills(market, run)
    found += _sample(run, trades)
    return found


def _warning(kind: str, what: str, text: str, cure: str = "", **facts: Any) -> Finding:
    return Finding(Level.WARNING, kind, what, text, cure, facts)


# -------------------------------------------------------------------------------- the code


def _reads_beside(algorithm: Algorithm) -> Iterator[Finding]:
    """Calls in the strategy's own code that read data past its context."""
    for kind in type(algorithm).__mro__:
        if kind is Algorithm:
            return
        for name, value in vars(kind).items():
            if not isinstance(value, FunctionType):
                continue
            read = sorted(_names_in(value.__code__) & _READS)
            if read:
                yield _warning(
                    "data", f"{kind.__name__}.{name}",
                    f"it calls {', '.join(read)}: what it reads there is not taken away with the "
                    "later data, and nothing here can tell whether it looks ahead",
                    "take bars and indicators from the context", calls=read,
                )  # fmt: skip


def _names_in(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*(_names_in(each) for each in inner))


# --------------------------------------------------------------------------------- symbols


def _universe(algorithm: Algorithm, market: MarketData, run: BacktestRun) -> Iterator[Finding]:
    if not len(run.times):
        return
    late, ended = {}, {}
    first, last = int(run.times[0]), int(run.times[-1])
    for symbol in algorithm.symbols:
        series = market.of(symbol, run.timeframe)
        begins, ends = _edges(series)
        if begins is None or ends is None:
            yield _warning("universe", symbol, "it has no bar at all")
            continue
        if begins > first + 5 * _SESSION:
            late[symbol] = _day(begins)
        if ends < last - 5 * _SESSION:
            ended[symbol] = _day(ends)
    if late:
        yield _warning(
            "universe", _named(late), f"bars begin within the run: {_listed(late)}",
            "a symbol picked for what it became was not there to be picked", begins=late,
        )  # fmt: skip
    if ended:
        yield _warning(
            "universe", _named(ended), f"bars end before the run does: {_listed(ended)}",
            "a position held at the end keeps its last price: close it before, or know why", ends=ended,
        )  # fmt: skip
    count = len(algorithm.symbols)
    if count >= MANY_SYMBOLS and not ended:
        yield _warning(
            "universe", f"{count} symbols",
            "every one of them still trades at the end: the list was made knowing who would",
            "take the members of an index as they were at the start, those that failed included",
        )  # fmt: skip


def _edges(series: Series) -> tuple[int | None, int | None]:
    if not series.size:
        return None, None
    return int(series.closes[0]), int(series.closes[series.size - 1])


# ------------------------------------------------------------------------------------ gaps


def _gaps(algorithm: Algorithm, market: MarketData, run: BacktestRun) -> Iterator[Finding]:
    """Sessions without a bar, between a symbol's first and its last."""
    if not len(run.times):
        return
    missing: dict[str, list[str]] = {}
    thin: dict[str, float] = {}
    weekly = run.timeframe in ("1week", "1month")
    for symbol in algorithm.symbols:
        series = market.of(symbol, run.timeframe)
        if weekly or not series.size:
            continue
        labels = series.labels[: series.size]
        labels = labels[labels >= run.times[0] - _SESSION]
        had = np.unique(market.hours.session_of(labels))
        had = had[had >= 0]
        if len(had) < 2:
            continue
        lacking = np.setdiff1d(np.arange(had[0], had[-1] + 1), had)
        if len(lacking):
            missing[symbol] = [_day(int(market.hours.open[s])) for s in lacking.tolist()]
        expected = _bars_in_session(labels)
        if expected > 1:
            share = len(labels) / (expected * len(had))
            if share < 0.8:
                thin[symbol] = round(share, 3)
    if missing:
        total = sum(len(days) for days in missing.values())
        some = "; ".join(f"{s}: {', '.join(d[:3])}" for s, d in list(missing.items())[:3])
        yield _warning(
            "gaps", _named(missing), f"{total} sessions without a bar: {some}",
            "fetch them (marketdata backfill), or know that the symbol was halted",
            sessions=missing,
        )  # fmt: skip
    if thin:
        some = ", ".join(f"{s} {share:.0%}" for s, share in list(thin.items())[:5])
        yield _warning(
            "gaps", _named(thin), f"bars for only part of the time: {some}",
            "a symbol that trades so seldom fills at the next bar, not at the next minute",
            shares=thin,
        )  # fmt: skip


def uncovered(source: Any, algorithm: Algorithm, start: Any, end: Any) -> list[Finding]:
    """Return what of a window is not stored although it was read: no broker gives it any more.

    Parameters
    ----------
    source : Client or the module marketdata
    """
    gaps = source.gaps(list(algorithm.symbols), algorithm.timeframe, start=start, end=end)
    found = []
    for symbol, rows in gaps.groupby("symbol", sort=False):
        first, last = rows["start"].min(), rows["end"].max()
        state = ", ".join(dict.fromkeys(rows["state"]))
        text = f"{len(rows)} spans from {first:%Y-%m-%d} to {last:%Y-%m-%d} are not stored: {state}"
        cure = "begin later, or import them: marketdata import"
        found.append(_warning("gaps", str(symbol), text, cure, spans=len(rows)))
    return found


def _bars_in_session(labels: Int64s) -> int:
    """Return how many bars a whole session has, by the distance of most bars."""
    if len(labels) < 3:
        return 1
    steps, counts = np.unique(np.diff(labels), return_counts=True)
    step = int(steps[counts.argmax()])
    return max(1, -(-23_400_000_000 // step)) if step < _SESSION // 2 else 1


def _unbooked_splits(
    algorithm: Algorithm, market: MarketData, run: BacktestRun
) -> Iterator[Finding]:
    for symbol in algorithm.symbols:
        series = market.of(symbol, run.timeframe)
        size = series.size
        if size < 2:
            continue
        jumps = series.raw[OPEN, 1:size] / series.raw[CLOSE, : size - 1]
        for at in np.flatnonzero((jumps < 0.6) | (jumps > 1.7)).tolist():
            ratio = max(jumps[at], 1 / jumps[at])
            near = min(_RATIOS, key=lambda r: abs(r / ratio - 1))
            label = int(series.labels[at + 1])
            booked = any(
                a.ratio != 1.0 and abs(a.time - label) <= 5 * _SESSION for a in series.actions
            )
            if abs(near / ratio - 1) < _NEAR and not booked:
                word = f"{near}-for-1" if jumps[at] < 1 else f"1-for-{near}"
                text = (
                    f"{_day(label)}: from {series.raw[CLOSE, at]:.6g} to "
                    f"{series.raw[OPEN, at + 1]:.6g}, as at a {word} split, and none is booked"
                )
                cure = "read the bars through marketdata, which knows splits, or give adjusted ones"
                yield _warning("actions", symbol, text, cure, day=_day(label), ratio=near)
                break


# ----------------------------------------------------------------------------------- fills


def _fills(market: MarketData, run: BacktestRun) -> Iterator[Finding]:
    limits = {order.id: order.limit for order in run.orders if order.limit is not None}
    much, touched, seen = [], 0, 0
    for fill in run.fills:
        series = market.of(fill.symbol, run.timeframe)
        at = int(np.searchsorted(series.labels[: series.size], fill.time))
        if at >= series.size or series.labels[at] != fill.time:
            continue
        volume = float(series.raw[VOLUME, at])
        if volume > 0 and abs(fill.quantity) > MUCH_OF_A_BAR * volume:
            much.append((abs(fill.quantity) / volume, fill))
        if fill.order_id in limits:
            seen += 1
            edge = series.raw[LOW if fill.quantity > 0 else HIGH, at]
            touched += bool(fill.price == edge and edge != series.raw[OPEN, at])
    if much:
        share, worst = max(much, key=lambda pair: pair[0])
        yield _warning(
            "fills", _named(dict.fromkeys(f.symbol for _, f in much)),
            f"{len(much)} of {len(run.fills)} fills took over {MUCH_OF_A_BAR:.0%} of their bar's "
            f"volume; the most, {share:.0%}, on {_day(worst.time)}",
            "trade less money or more liquid symbols, or take slippage=VolumeShare()",
            count=len(much), greatest=float(share),
        )  # fmt: skip
    if touched:
        yield _warning(
            "fills", "limit orders",
            f"{touched} of {seen} fills of limit orders at the very extreme of their bar: the "
            "price touched the limit and went no further, where a queue may have been before you",
            "see whether the strategy survives a limit one tick worse", count=touched,
        )  # fmt: skip


def _sample(run: BacktestRun, trades: Sequence[Trade]) -> Iterator[Finding]:
    closed = sum(trade.closed for trade in trades)
    if not run.orders:
        yield _warning(
            "sample", "orders", "it ordered nothing: nothing could be compared but its indicators",
            "check it over a time in which it trades",
        )  # fmt: skip
    elif closed < FEW_TRADES:
        yield _warning(
            "sample", "trades", f"{closed} closed trades: too few to tell skill from luck",
            "test over a longer time, or more symbols", trades=closed,
        )  # fmt: skip
    refused = [o for o in run.orders if o.state is OrderState.CANCELED and "cannot pay" in o.reason]
    if refused:
        yield _warning(
            "fills", "orders",
            f"{len(refused)} of {len(run.orders)} orders were cut because the account could not "
            "pay for them", "size them below the whole account: the next open may be higher",
            count=len(refused),
        )  # fmt: skip


def _day(instant: int) -> str:
    return f"{stamp(instant).tz_convert(EXCHANGE_ZONE):%Y-%m-%d}"


def _named(symbols: dict[str, Any]) -> str:
    names = list(symbols)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _listed(days: dict[str, str]) -> str:
    return ", ".join(f"{symbol} {day}" for symbol, day in list(days.items())[:5])
