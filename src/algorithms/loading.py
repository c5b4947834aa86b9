"""The market of a strategy, read from marketdata's tiers: bars, warm-up, actions, sessions.

Raw bars of all its series from `md.get_bars`, what its indicators need before the first of them,
corporate actions for positions from `md.get_actions`, and what they do to prices from
`md.adjustment_steps`. What the tiers hold costs no broker call.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

import marketdata as md
from algorithms.algorithm import Algorithm
from algorithms.errors import AlgorithmError
from algorithms.frames import bars_of
from algorithms.hours import close_times, hours_between, micros
from algorithms.lines import NEVER, Floats, Int64s
from algorithms.market import MarketData, Origin, SeriesName
from algorithms.series import COLUMNS, AdjustmentStep, Series, ShareAction, fingerprint_of
from algorithms.studies import ALL, reach, studies_of
from marketdata.types import canonical_symbol

Moment = Any
"""As `md.get_bars` takes it: a date string, a date, an aware datetime."""

_LONG: Final = 2_500
"""Bars of warm-up for what counts from the first bar of a series."""
_SHARE_CHANGES: Final = ("split", "stock_dividend")
_UNBOOKED: Final = ("spin_off", "merger", "delisting")


def load(
    algorithm: Algorithm,
    start: Moment,
    end: Moment | None = None,
    *,
    client: md.Client | None = None,
    as_of: Moment | None = None,
    progress: Callable[[int, int], None] | None = None,
    variants: Iterable[Algorithm] = (),
) -> tuple[MarketData, int]:
    """Read what a strategy needs to run over ``[start, end)``.

    Parameters
    ----------
    algorithm : Algorithm
    start, end : str, date, datetime
        As for `md.get_bars`; without `end`, up to the newest closed bar.
    client : Client, optional
        By default marketdata's own.
    as_of : optional
        Bars and actions as they were known at that moment.
    progress : callable, optional
        Called with series read, and all there are.
    variants : iterable of Algorithm
        The same strategy with other parameters: what their indicators need is read too.

    Returns
    -------
    market : MarketData
    start_us : int
        The first bar's label in the window, microseconds UTC: nothing before it is traded.

    Raises
    ------
    AlgorithmError
        None of the symbols has a bar in the window.
    MarketDataError
        As `md.get_bars`.
    """
    return _Loading(algorithm, start, end, client, as_of, progress).read(variants)


class _Loading:
    def __init__(
        self,
        algorithm: Algorithm,
        start: Moment,
        end: Moment | None,
        client: md.Client | None,
        as_of: Moment | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._algorithm = algorithm
        self._source: Any = client if client is not None else md
        self._start, self._end = start, end
        self._as_of = as_of
        self._progress = progress or (lambda done, of: None)
        self._symbols = tuple(algorithm.symbols)
        self._simulated = False
        self._provider = ""
        self._notes: list[str] = []
        self._first = NEVER

    def read(self, variants: Iterable[Algorithm]) -> tuple[MarketData, int]:
        algorithm = self._algorithm
        needs = bars_before(algorithm, *variants)
        for frame in needs:
            if frame != str(md.Timeframe.parse(algorithm.timeframe)):
                # The newest one closed as the window begins, and the one that is not yet.
                needs[frame] += 2
        bars: dict[SeriesName, tuple[Int64s, Floats]] = {}
        for frame, before in needs.items():
            self._read_frame(frame, before, bars)
        labels = [part for part, _ in bars.values() if len(part)]
        if not labels or self._first == NEVER:
            raise AlgorithmError(
                f"no bars of {', '.join(self._symbols[:8])} from {self._start}",
                cure="ask md.coverage what is stored, or for another window",
            )
        first, last = min(int(x[0]) for x in labels), max(int(x[-1]) for x in labels)
        hours = hours_between(first, last)
        session = algorithm.session
        steps, actions = self._actions(first, last)
        series = {
            (symbol, frame): Series(
                symbol,
                frame,
                part,
                close_times(part, frame, hours, session),
                columns,
                steps.get(canonical_symbol(symbol), ()),
                actions.get(canonical_symbol(symbol), ()),
            )
            for (symbol, frame), (part, columns) in bars.items()
        }
        data = fingerprint_of(series.values())
        origin = Origin(data, self._simulated, self._provider, tuple(self._notes))
        return MarketData(series, hours, session, origin), self._first

    # --------------------------------------------------------------------------------- bars

    def _read_frame(
        self, frame: str, before: int, bars: dict[SeriesName, tuple[Int64s, Floats]]
    ) -> None:
        intraday = md.Timeframe.parse(frame).intraday
        # Many short series in one read, few long ones one after the other: memory stays small.
        size = 1 if intraday else 50
        main = frame == str(md.Timeframe.parse(self._algorithm.timeframe))
        for first in range(0, len(self._symbols), size):
            batch = self._symbols[first : first + size]
            # First what was asked for: what is wrong with the window is said in its own words.
            within = self._get(batch, frame, start=self._start, end=self._end)
            early = self._get(batch, frame, end=self._start, limit=before) if before else {}
            for symbol in batch:
                # Answers have symbols in capitals, the strategy has them as its author wrote them.
                name = canonical_symbol(symbol)
                parts = [p for p in (early.get(name), within.get(name)) if p is not None]
                bars[symbol, frame] = joined(parts)
                if name in within and main:
                    self._first = min(self._first, int(within[name][0][0]))
                if name not in within and (main or name not in early):
                    self._notes.append(f"{symbol} has no {frame} bar in the window")
                elif name in within and before and name not in early:
                    self._notes.append(f"{symbol} has no {frame} bar before the window to warm up")
            self._progress(min(first + size, len(self._symbols)), len(self._symbols))

    def _get(self, symbols: Sequence[str], frame: str, **window: Any) -> dict[str, Any]:
        options: dict[str, Any] = {"adjustment": "raw", "session": self._algorithm.session}
        if self._as_of is not None:
            options["as_of"] = self._as_of
        with warnings.catch_warnings():
            # Raw prices across a split are what is wanted: positions are split too.
            warnings.simplefilter("ignore", md.SplitInRangeWarning)
            warnings.simplefilter("ignore", md.ShortHistoryWarning)
            found = self._source.get_bars(list(symbols), frame, **window, **options)
        facts: Mapping[str, Any] = found.attrs.get("marketdata", {})
        self._simulated |= bool(facts.get("simulated", False))
        self._provider = str(facts.get("provider", "")) or self._provider
        return bars_of(found)

    # ------------------------------------------------------------------------------ actions

    def _actions(
        self, first: int, last: int
    ) -> tuple[dict[str, list[AdjustmentStep]], dict[str, list[ShareAction]]]:
        window = {"start": _stamp(first), "end": _stamp(last + 1)}
        options = {} if self._as_of is None else {"as_of": self._as_of}
        try:
            table = self._source.get_actions(list(self._symbols), **window, **options)
        except md.UnsupportedRequestError as error:
            self._notes.append(f"corporate actions were left out: {error.message}")
            return {}, {}
        actions: dict[str, list[ShareAction]] = defaultdict(list)
        for row in table.itertuples():
            action = share_action(row)
            if action is not None:
                actions[str(row.symbol)].append(action)
            elif str(row.kind) in _UNBOOKED:
                self._notes.append(
                    f"{row.symbol}: a {row.kind} on {pd.Timestamp(row.ex_date).date()} is not booked "
                    "on positions"
                )
        if self._algorithm.adjustment == "raw":
            return {}, actions
        found = self._source.adjustment_steps(
            list(self._symbols), adjustment=self._algorithm.adjustment, **window, **options
        )
        return adjustment_steps(found), actions


def bars_before(*algorithms: Algorithm) -> dict[str, int]:
    """Return how many bars of each timeframe must precede the first moment of these strategies."""
    needs: dict[str, int] = defaultdict(int)
    for algorithm in algorithms:
        for frame in (algorithm.timeframe, *algorithm.timeframes):
            name = str(md.Timeframe.parse(frame))
            needs[name] = max(needs[name], algorithm.warm_up)
        for study in studies_of(algorithm):
            before = reach(study, algorithm.session)
            before = (_LONG if before >= ALL else before) + algorithm.warm_up
            needs[study.timeframe] = max(needs[study.timeframe], before)
    return needs


def share_action(row: Any) -> ShareAction | None:
    """Return what a row of `md.get_actions` does to a position; None where nothing is booked."""
    time = int(micros(pd.DatetimeIndex([pd.Timestamp(row.ex_date)]).tz_localize(_ZONE))[0])
    kind = str(row.kind)
    if kind in _SHARE_CHANGES and row.old and math.isfinite(row.old) and math.isfinite(row.new):
        # A split gives `new` for `old`, a stock dividend `new` further ones for each `old`.
        before = float(row.old)
        after = float(row.new) + (before if kind == "stock_dividend" else 0.0)
        return ShareAction(time, kind, ratio=after / before)
    if kind == "cash_dividend" and row.cash is not None and math.isfinite(row.cash):
        return ShareAction(time, kind, cash=float(row.cash))
    return None


def adjustment_steps(table: pd.DataFrame) -> dict[str, list[AdjustmentStep]]:
    """Return the rows of `md.adjustment_steps` by symbol."""
    steps: dict[str, list[AdjustmentStep]] = defaultdict(list)
    for symbol, time, price, volume in zip(
        table["symbol"],
        micros(pd.DatetimeIndex(table["timestamp"])).tolist(),
        table["price_factor"],
        table["volume_factor"],
        strict=True,
    ):
        steps[str(symbol)].append(AdjustmentStep(time, float(price), float(volume)))
    return steps


def joined(parts: Sequence[tuple[Int64s, Floats]]) -> tuple[Int64s, Floats]:
    """Return labels and columns of parts that follow each other."""
    if not parts:
        return np.empty(0, np.int64), np.empty((len(COLUMNS), 0))
    if len(parts) == 1:
        return parts[0]
    return (
        np.concatenate([labels for labels, _ in parts]),
        np.concatenate([columns for _, columns in parts], axis=1),
    )


def _stamp(instant: int) -> pd.Timestamp:
    return pd.Timestamp(instant, unit="us", tz="UTC")


_ZONE: Final = "America/New_York"
