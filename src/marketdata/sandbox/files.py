"""A market read from files: CSV, CSV.gz or Parquet, served as they are.

Columns ``symbol,timestamp,open,high,low,close,volume`` and, if known, ``vwap``, ``trade_count``,
``dividend`` (cash per share, in the basis of the prices) and ``split`` (new shares per old, 1 on
ordinary days). Timestamps are instants with offset; a file whose rows all lie on New York
midnights holds daily bars, any other one-minute bars.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from marketdata.calendars import EXCHANGE, TradingCalendar, calendar_for
from marketdata.clock import SystemClock
from marketdata.errors import ConfigurationError
from marketdata.sandbox.source import (
    Action,
    Asset,
    Basis,
    Ledger,
    aggregate,
    date_ordinals,
    day_of,
)
from marketdata.spans import Span
from marketdata.types import COLUMNS, Bars, Floats, Int64s

_NEEDED: Final = ("symbol", "timestamp", "open", "high", "low", "close", "volume")
_NUMBERS: Final = (*COLUMNS, "dividend", "split")
_NOTHING: Final = ["", "NaN", "nan", "NA", "null"]
_SUFFIXES: Final = (".csv", ".csv.gz", ".parquet", ".pq")
_NEW_YORK: Final = ZoneInfo("America/New_York")
_ENDS: Final = frozenset(
    {
        "cash_merger",
        "stock_merger",
        "stock_and_cash_merger",
        "name_change",
        "redemption",
        "worthless_removal",
    }
)
"""Actions after which nothing trades under the symbol, unless somebody takes it up."""


class FileMarket:
    """A `MarketSource` of recorded prices.

    Every value is served bit for bit where the basis asked for is that of the file. Daily bars of
    a symbol that has none are its regular minutes joined. The bars are on the ``sip`` feed.

    Parameters
    ----------
    paths : path or iterable of paths
        Files, or folders of such files.
    basis : {"raw", "split"}
        Whether prices are as traded or already divided by later splits.

    Raises
    ------
    ConfigurationError
        A path does not exist, or a file lacks a column.
    """

    def __init__(self, paths: str | Path | Iterable[str | Path], *, basis: Basis = "raw") -> None:
        self.basis: Basis = basis
        self._minutes: dict[str, Bars] = {}
        self._days: dict[str, Bars] = {}
        self._actions: dict[str, list[Action]] = {}
        self._ledger = Ledger()
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        for path in (f for p in given for f in _files(Path(p))):
            self._load(path)
        for symbol, bars in self._minutes.items():
            if symbol not in self._days:
                self._days[symbol] = _days_of(bars)

    def _load(self, path: Path) -> None:
        frame = _read(path)
        moments = frame["timestamp"]
        local = moments.dt.tz_convert(_NEW_YORK)
        daily = bool((local.dt.normalize() == local).all())
        kept = self._days if daily else self._minutes
        stamps = moments.dt.tz_localize(None).to_numpy("datetime64[us]").astype(np.int64)
        # Yahoo's files say BRK-B, both protocols ask for BRK.B.
        symbols = frame["symbol"].astype(str).str.replace("-", ".", regex=False).to_numpy()
        order = np.lexsort((stamps, symbols))
        symbols, stamps = symbols[order], stamps[order]
        values = np.full((len(COLUMNS), len(frame)), np.nan)
        for row, name in enumerate(COLUMNS):
            if name in frame:
                values[row] = frame[name].to_numpy(np.float64)[order]
        events = [
            frame[name].to_numpy(np.float64)[order] if name in frame else np.full(len(frame), other)
            for name, other in (("split", 1.0), ("dividend", 0.0))
        ]
        changes = np.flatnonzero(symbols[1:] != symbols[:-1]) + 1
        for low, high in pairwise([0, *changes.tolist(), len(symbols)]):
            if low == high:
                continue
            part = slice(low, high)
            symbol = str(symbols[low])
            bars = Bars(stamps[part].copy(), np.ascontiguousarray(values[:, part]))
            if symbol in kept:
                raise ConfigurationError(f"{symbol} is in two files", cure="give each symbol once")
            kept[symbol] = bars
            self._note_actions(symbol, bars, events[0][part], events[1][part])

    def _note_actions(self, symbol: str, bars: Bars, splits: Floats, dividends: Floats) -> None:
        days = [day_of(int(d)) for d in date_ordinals(bars.timestamp)]
        found = [
            Action(symbol, days[i], new=float(splits[i]))
            for i in np.flatnonzero(np.isfinite(splits) & (splits > 0) & (splits != 1))
        ]
        for at in np.flatnonzero(np.nan_to_num(dividends) > 0):
            later = [a.ratio for a in found if a.ex_date > days[at] and self.basis == "split"]
            found_amount = float(dividends[at]) * float(np.prod(later))
            self._actions.setdefault(symbol, []).append(
                Action(symbol, days[at], amount=found_amount)
            )
        if found:
            self._actions.setdefault(symbol, []).extend(found)

    def add_action(self, action: Action) -> Action:
        """Tell of an action that the files do not hold; prices and symbols stay as they are."""
        for name in action.names:
            self._actions.setdefault(name, []).append(action)
        return action

    def correct_action(self, action: Action | str, **changes: Any) -> Action:
        """Tell of an action with other values from now on. Takes an id too."""
        return self._ledger.correct(self._action(action), changes)

    def withdraw_action(self, action: Action | str) -> None:
        """Tell of an action no longer."""
        self._ledger.withdraw(self._action(action))

    def _action(self, action: Action | str) -> Action:
        if isinstance(action, Action):
            return action
        every = (a for kept in self._actions.values() for a in kept)
        found = next((a for a in every if a.id == action), None)
        if found is None:
            raise ValueError(f"no action has the id {action}")
        return found

    # ----------------------------------------------------------------------- MarketSource

    def assets(self) -> Sequence[Asset]:
        return [self._asset(s) for s in sorted(self._days)]

    def asset(self, symbol: str) -> Asset | None:
        return self._asset(symbol) if symbol in self._days else None

    def _asset(self, symbol: str) -> Asset:
        """Return what is listed: a symbol that was given up, and has had no bar since, until then."""
        bars = self._days[symbol]
        last = day_of(int(date_ordinals(bars.timestamp[-1:])[0])) if len(bars) else date.min
        ends = [a.ex_date for a in self.actions(symbol) if a.symbol == symbol and a.type in _ENDS]
        until = min((day for day in ends if day > last), default=None)
        spans = () if until is None else ((date.min, until),)
        return Asset(symbol, f"{symbol} (SIMULATED)", "NYSE", spans=spans)

    def minutes(
        self, symbol: str, span: Span, feed: str, *, newest_first: bool = False
    ) -> Iterator[Bars]:
        bars = self._minutes.get(symbol)
        if bars is None or span.empty or feed != "sip":
            return
        wanted = bars.within(span)
        days = date_ordinals(wanted.timestamp)
        cuts = [0, *(np.flatnonzero(np.diff(days)) + 1).tolist(), len(wanted)]
        pieces = list(pairwise(cuts))
        for low, high in reversed(pieces) if newest_first else pieces:
            if high > low:
                yield Bars(wanted.timestamp[low:high], wanted.values[:, low:high])

    def days(self, symbol: str, span: Span, feed: str) -> Bars:
        bars = self._days.get(symbol)
        if bars is None or span.empty or feed != "sip":
            return Bars.empty()
        return bars.within(span)

    def actions(self, symbol: str) -> Sequence[Action]:
        return self._ledger.told(self._actions.get(symbol, []))

    def symbols_with_actions(self) -> Sequence[str]:
        return sorted(self._actions)

    def first_day(self, symbol: str) -> date:
        bars = self._days.get(symbol)
        if bars is None or not len(bars):
            return date(1980, 1, 1)
        return day_of(int(date_ordinals(bars.timestamp[:1])[0]))

    @property
    def last_moment(self) -> int:
        """Label of the newest bar of all, microseconds UTC."""
        newest = [int(b.timestamp[-1]) for b in (*self._minutes.values(), *self._days.values())]
        return max(newest, default=0)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(f for f in path.iterdir() if f.name.endswith(_SUFFIXES))
    if not path.is_file():
        raise ConfigurationError(f"no such file: {path}", cure="give a CSV, CSV.gz or Parquet file")
    return [path]


def _read(path: Path) -> pd.DataFrame:
    if path.name.endswith((".parquet", ".pq")):
        frame = pd.read_parquet(path)
    else:
        # Only the round-trip parser reads every decimal into its nearest float64. A symbol may
        # well be called NA: just the numbers have words for "none".
        frame = pd.read_csv(
            path,
            float_precision="round_trip",
            keep_default_na=False,
            na_values=dict.fromkeys(_NUMBERS, _NOTHING),
            usecols=lambda name: name in _NEEDED or name in _NUMBERS,
            low_memory=False,
        )
    missing = [c for c in _NEEDED if c not in frame]
    if missing:
        raise ConfigurationError(
            f"{path} lacks the columns {', '.join(missing)}", cure=f"it needs {', '.join(_NEEDED)}"
        )
    frame["timestamp"] = pd.to_datetime(frame["timestamp"], utc=True).dt.as_unit("us")
    return frame


def _days_of(bars: Bars) -> Bars:
    """Return the daily bars that the regular minutes of `bars` make."""
    if not len(bars):
        return bars
    calendar = _calendar_over(bars.timestamp)
    regular = bars.take(calendar.mask(bars.timestamp, "regular"))
    days = date_ordinals(regular.timestamp)
    labels = {int(d): calendar.midnight_of(day_of(int(d))) for d in np.unique(days)}
    return aggregate(regular, np.array([labels[int(d)] for d in days], np.int64))


def _calendar_over(timestamps: Int64s) -> TradingCalendar:
    return calendar_for(EXCHANGE, max(int(timestamps[-1]), SystemClock().now_us()))
