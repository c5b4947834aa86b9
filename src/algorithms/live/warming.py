"""The markets that live algorithms share, and the history that is read before they begin.

Algorithms that watch the same hours and see prices adjusted in the same way share one market: each
series is held once and each indicator computed once. Where a newcomer needs more history of a
series than is held, it gets a market of its own kind beside: what others stand on is not replaced.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import pandas as pd

import marketdata as md
from algorithms.algorithm import Algorithm
from algorithms.frames import bars_of
from algorithms.hours import close_times, hours_between
from algorithms.lines import Floats, Int64s
from algorithms.live.feeds import Batch, FeedName
from algorithms.loading import adjustment_steps, bars_before, joined, share_action
from algorithms.market import MarketData, SeriesName
from algorithms.series import AdjustmentStep, Series, ShareAction

_BATCH: Final = 100
"""Symbols of one read: memory stays small."""
_AHEAD: Final = 300 * 86_400_000_000
"""How far ahead sessions are known to a process, as far as the calendar reaches."""
_BACK: Final = 15 * 365 * 86_400_000_000
MARGIN: Final = 5


class MarketKind(NamedTuple):
    """What algorithms of one market have in common."""

    session: str
    adjustment: str


@dataclass(frozen=True)
class Needs:
    """What one algorithm watches.

    Attributes
    ----------
    kind : MarketKind
    symbols : tuple of str
    bars : mapping of timeframe to int
        Bars before its first moment.
    """

    kind: MarketKind
    symbols: tuple[str, ...]
    bars: Mapping[str, int]

    @property
    def feeds(self) -> tuple[FeedName, ...]:
        return tuple(FeedName(timeframe, self.kind.session) for timeframe in self.bars)


def needs_of(algorithm: Algorithm) -> Needs:
    """Return what an algorithm watches; raises what its declarations deserve."""
    bars = bars_before(algorithm)
    kind = MarketKind(algorithm.session, algorithm.adjustment)
    return Needs(kind, tuple(algorithm.symbols), {k: v + MARGIN for k, v in bars.items()})


class SharedMarket:
    """One market, with what is known of how deep its series reach."""

    def __init__(self, kind: MarketKind, now: int) -> None:
        self.kind = kind
        self.data = MarketData({}, hours_between(now - _BACK, now + _AHEAD), kind.session)
        self._depth: dict[SeriesName, tuple[int, int]] = {}

    def suits(self, needs: Needs, since: int | None, now: int) -> bool:
        """Whether what is held of the series is enough; what is not held can be added."""
        for name, wanted in _names(needs):
            held = self._depth.get(name)
            if held is None:
                continue
            bars, from_us = held
            if bars < wanted or from_us > (now if since is None else since):
                return False
        return True

    def lacks(self, needs: Needs) -> list[tuple[SeriesName, int]]:
        """Return the series that are to be read, with the bars each needs before the beginning."""
        return [(name, bars) for name, bars in _names(needs) if name not in self.data.series]

    def add(self, series: Iterable[tuple[Series, int, int]]) -> None:
        """Hold these series, each with the bars it was asked for and since when it is whole."""
        for each, bars, since in series:
            name = (each.symbol, each.timeframe)
            self.data.series[name] = each
            self._depth[name] = (bars, since)

    def drop(self, name: SeriesName) -> None:
        """Hold a series no longer."""
        del self.data.series[name]
        del self._depth[name]

    def extend(self, timeframe: str, batch: Batch) -> int:
        """Add newly closed bars of what is held; return how many were new."""
        return self.data.extend(
            {
                (symbol, timeframe): bars
                for symbol, bars in batch.items()
                if (symbol, timeframe) in self.data.series
            }
        )

    def renew_actions(self, client: md.Client) -> None:
        """Ask anew what happened to the shares of all symbols held."""
        symbols = sorted({symbol for symbol, _ in self.data.series})
        if not symbols:
            return
        first = min((int(s.labels[0]) for s in self.data.series.values() if s.size), default=None)
        if first is None:
            return
        steps, actions = read_actions(client, symbols, first, self.kind.adjustment)
        for symbol in symbols:
            self.data.set_actions(symbol, steps.get(symbol, ()), actions.get(symbol, ()))


def read_series(
    client: md.Client,
    market: SharedMarket,
    wanted: Mapping[SeriesName, int],
    since: int | None,
    now: int,
) -> list[tuple[Series, int, int]]:
    """Read series with the bars each needs before `since` (by default before now).

    Parameters
    ----------
    wanted : mapping of (symbol, timeframe) to int
    since, now : int
        Microseconds UTC.
    """
    by_frame: dict[str, dict[str, int]] = defaultdict(dict)
    for (symbol, timeframe), bars in wanted.items():
        by_frame[timeframe][symbol] = bars
    found: dict[SeriesName, tuple[Int64s, Floats]] = {}
    session = market.kind.session
    for timeframe, needed in by_frame.items():
        symbols = sorted(needed)
        most = max(needed.values())
        for low in range(0, len(symbols), _BATCH):
            batch = symbols[low : low + _BATCH]
            parts: dict[str, list[tuple[Int64s, Floats]]] = defaultdict(list)
            if since is None:
                windows: list[dict[str, Any]] = [{"limit": most}]
            else:
                windows = [{"end": _stamp(since), "limit": most}, {"start": _stamp(since)}]
            for window in windows:
                for symbol, part in _get(client, batch, timeframe, session, window).items():
                    parts[symbol].append(part)
            for symbol in batch:
                found[symbol, timeframe] = joined(parts.get(symbol, []))
    labels = [int(part[0]) for part, _ in found.values() if len(part)]
    steps: dict[str, list[AdjustmentStep]] = {}
    actions: dict[str, list[ShareAction]] = {}
    if labels:
        names = sorted({symbol for symbol, _ in found})
        steps, actions = read_actions(client, names, min(labels), market.kind.adjustment)
    hours = market.data.hours
    return [
        (
            Series(
                symbol,
                timeframe,
                labelled,
                close_times(labelled, timeframe, hours, session),
                columns,
                steps.get(symbol, ()),
                actions.get(symbol, ()),
            ),
            max(by_frame[timeframe].values()),
            now if since is None else since,
        )
        for (symbol, timeframe), (labelled, columns) in found.items()
    ]


def read_actions(
    client: md.Client, symbols: Sequence[str], first: int, adjustment: str
) -> tuple[dict[str, list[AdjustmentStep]], dict[str, list[ShareAction]]]:
    """Return what is known of corporate actions from an instant on: what each does to prices, and
    to positions. Nothing where the broker has no actions."""
    try:
        table = client.get_actions(list(symbols), start=_stamp(first))
    except md.UnsupportedRequestError:
        return {}, {}
    actions: dict[str, list[ShareAction]] = defaultdict(list)
    for row in table.itertuples():
        action = share_action(row)
        if action is not None:
            actions[str(row.symbol)].append(action)
    if adjustment == "raw":
        return {}, actions
    told = client.adjustment_steps(
        list(symbols),
        adjustment=adjustment,  # type: ignore[arg-type]
        start=_stamp(first),
    )
    return adjustment_steps(told), actions


def _get(
    client: md.Client,
    symbols: Collection[str],
    timeframe: str,
    session: str,
    window: Mapping[str, Any],
) -> dict[str, tuple[Int64s, Floats]]:
    with warnings.catch_warnings():
        # Raw prices across a split are what is wanted: positions are split too.
        warnings.simplefilter("ignore", md.SplitInRangeWarning)
        warnings.simplefilter("ignore", md.ShortHistoryWarning)
        frame = client.get_bars(
            list(symbols),
            timeframe,
            adjustment="raw",
            session="extended" if session == "extended" else "regular",
            **window,
        )
    return bars_of(frame)


def _names(needs: Needs) -> list[tuple[SeriesName, int]]:
    return [
        ((symbol, timeframe), bars)
        for timeframe, bars in needs.bars.items()
        for symbol in needs.symbols
    ]


def _stamp(instant: int) -> pd.Timestamp:
    return pd.Timestamp(instant, unit="us", tz="UTC")
