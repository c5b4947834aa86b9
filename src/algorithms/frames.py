"""Frames of bars as a market: any DataFrame with open, high, low and close by time."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

import marketdata as md
from algorithms.errors import AlgorithmError
from algorithms.hours import EXCHANGE_ZONE, close_times, hours_between, micros
from algorithms.lines import Bools, Floats, Int64s
from algorithms.market import MarketData, Origin, SeriesName
from algorithms.series import COLUMNS, Series, fingerprint_of

Frames = pd.DataFrame | Mapping[str, pd.DataFrame]
_NEEDED: Final = COLUMNS[:4]
_DAYS: Final = {md.Timeframe.WEEK_1: 7, md.Timeframe.MONTH_1: 30}
_SHORTEST_DAY: Final = 23 * 3_600_000_000
"""A day on which clocks are put forward."""


def market_of(
    frames: Frames, symbols: Sequence[str], timeframe: str, session: str = "regular"
) -> MarketData:
    """Return frames as a market: prices are taken as traded, without corporate actions.

    Parameters
    ----------
    frames : DataFrame or mapping of symbol to DataFrame
        As `md.get_bars` gives them: a DatetimeIndex for one symbol, a MultiIndex (symbol,
        timestamp) for several; labels are bar opens. Columns open, high, low, close and, where
        there is one, volume, in any case. A naive index of dates is sessions, and so are the
        midnights UTC of daily and longer bars; any other naive index is refused.
    symbols : sequence of str
        The names wanted; a frame of one series takes the first.
    timeframe : str
    session : str

    Raises
    ------
    AlgorithmError
        A column or a symbol is missing, times repeat, the time zone is not said, or the bars are of
        another timeframe.
    """
    frame = str(md.Timeframe.parse(timeframe))
    _check_kind(frames)
    parts = _by_symbol(frames, symbols)
    missing = [symbol for symbol in symbols if symbol not in parts]
    if missing:
        raise AlgorithmError(
            f"the frame has no bars of {', '.join(missing)}",
            cure=f"it has: {', '.join(list(parts)[:8])}",
        )
    read = {symbol: _columns(symbol, parts[symbol], frame) for symbol in symbols}
    edges = [labels[[0, -1]] for labels, _, _ in read.values() if len(labels)]
    if not edges:
        raise AlgorithmError("the frame has no bars", cure="give at least one bar")
    first, last = min(int(e[0]) for e in edges), max(int(e[1]) for e in edges)
    hours = hours_between(first, last)
    series: dict[SeriesName, Series] = {}
    warnings = []
    for symbol, (labels, columns, dropped) in read.items():
        closes = close_times(labels, frame, hours, session)
        series[symbol, frame] = Series(symbol, frame, labels, closes, columns)
        if dropped:
            warnings.append(f"{symbol}: {dropped} bars without prices were left out")
        strange = _outside(columns)
        if strange:
            warnings.append(f"{symbol}: {strange} bars open or close outside of their low and high")
    data = fingerprint_of(series.values())
    origin = Origin(data, _simulated(frames), "", tuple(warnings), given=True)
    return MarketData(series, hours, session, origin)


def symbols_in(frames: Frames) -> tuple[str, ...]:
    """Return the symbols that frames name; none for a frame of one series."""
    if isinstance(frames, Mapping):
        return tuple(frames)
    if isinstance(frames.index, pd.MultiIndex):
        return tuple(str(symbol) for symbol in frames.index.unique(0))
    return ()


def bars_of(frame: pd.DataFrame) -> dict[str, tuple[Int64s, Floats]]:
    """Return each symbol's labels and five columns out of a frame of `md.get_bars` of many."""
    index = frame.index
    if not len(frame):
        return {}
    assert isinstance(index, pd.MultiIndex)
    codes = np.asarray(index.codes[0])
    names = index.levels[0]
    stamps = pd.DatetimeIndex(index.get_level_values(1))
    labels = micros(stamps)
    columns = [frame[name].to_numpy(np.float64) for name in COLUMNS]
    edges = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    found = {}
    for low, high in itertools.pairwise(edges):
        part = np.empty((len(COLUMNS), high - low))
        for row, column in enumerate(columns):
            part[row] = column[low:high]
        found[str(names[codes[low]])] = (labels[low:high].copy(), part)
    return found


def _by_symbol(frames: Frames, symbols: Sequence[str]) -> dict[str, pd.DataFrame]:
    if isinstance(frames, Mapping):
        return dict(frames)
    if isinstance(frames.index, pd.MultiIndex):
        return {
            str(symbol): part.droplevel(0) for symbol, part in frames.groupby(level=0, sort=False)
        }
    if not symbols:
        raise AlgorithmError("a frame without a symbol", cure='name it: symbols=["AAPL"]')
    return {symbols[0]: frames}


def _check_kind(frames: Frames) -> None:
    found = list(frames.values()) if isinstance(frames, Mapping) else [frames]
    for one in found:
        if not isinstance(one, pd.DataFrame):
            raise AlgorithmError(
                f"data is, or has in it, a {type(one).__name__}",
                cure="give a DataFrame of bars, or a mapping of symbol to DataFrame",
            )


def _columns(symbol: str, frame: pd.DataFrame, timeframe: str) -> tuple[Int64s, Floats, int]:
    """Return labels, the five columns, and how many rows without prices were left out."""
    labels = _labels(symbol, frame.index, timeframe)
    names = {str(name).lower(): name for name in frame.columns}
    if sum(str(name).lower() in COLUMNS for name in frame.columns) > len(names.keys() & {*COLUMNS}):
        raise AlgorithmError(
            f"the frame of {symbol} has two columns of one name",
            cure="give open, high, low, close and volume once each, in any case",
        )
    lacking = [name for name in _NEEDED if name not in names]
    if lacking:
        raise AlgorithmError(
            f"the frame of {symbol} has no column {lacking[0]!r}",
            cure="give open, high, low, close and, where known, volume",
        )
    columns: Floats = np.empty((len(COLUMNS), len(labels)))
    for row, name in enumerate(COLUMNS):
        columns[row] = _numbers(symbol, frame, names[name]) if name in names else 0.0
    whole: Bools = np.asarray((np.isfinite(columns[:4]) & (columns[:4] > 0)).all(axis=0))
    dropped = int(len(whole) - whole.sum())
    if dropped:
        labels, columns = labels[whole], np.ascontiguousarray(columns[:, whole])
    columns[4] = np.nan_to_num(columns[4])
    if len(labels) > 1 and not (np.diff(labels) > 0).all():
        raise AlgorithmError(
            f"the times of {symbol} do not ascend, or repeat", cure="sort the frame by time, once"
        )
    _check_spacing(symbol, labels, timeframe)
    return labels, columns, dropped


def _check_spacing(symbol: str, labels: Int64s, timeframe: str) -> None:
    """Refuse bars that cannot be of the timeframe: when they closed would be made up."""
    if len(labels) < 4:
        return
    frame = md.Timeframe.parse(timeframe)
    usual = float(np.median(np.diff(labels)))
    # Bars before the open and on half days are cut short, weeks and months differ in length.
    if usual < 0.7 * _DAYS.get(frame, 1) * frame.step:
        raise AlgorithmError(
            f"the bars of {symbol} are shorter than {timeframe}: {usual / 60e6:g} minutes apart",
            cure=f"say their timeframe in the strategy, or resample them to {timeframe}",
        )
    if frame.intraday and (usual >= _SHORTEST_DAY or _midnights(labels)):
        raise AlgorithmError(
            f"the bars of {symbol} are no {timeframe} bars: they are a day apart, or longer",
            cure='say their timeframe in the strategy: timeframe = "1day"',
        )


def _midnights(labels: Int64s) -> bool:
    """Return whether all of these are midnights at the exchange."""
    # Two bars of a session already differ: all of them are looked at only where these do not.
    for some in (labels[:4], labels):
        local = pd.DatetimeIndex(some.view("datetime64[us]")).tz_localize("UTC")
        local = local.tz_convert(EXCHANGE_ZONE).tz_localize(None)
        if not (local == local.normalize()).all():
            return False
    return True


def _numbers(symbol: str, frame: pd.DataFrame, name: Any) -> Floats:
    try:
        return np.asarray(frame[name].to_numpy(np.float64, na_value=np.nan), np.float64)
    except (TypeError, ValueError):
        raise AlgorithmError(
            f"the column {name!r} of {symbol} has what is no number",
            cure="convert it: pd.to_numeric(column)",
        ) from None


def _outside(columns: Floats) -> int:
    """Return how many bars open or close outside of their low and high."""
    opened, high, low, close, _ = columns
    return int((np.maximum(opened, close) > high).sum() + (np.minimum(opened, close) < low).sum())


def _labels(symbol: str, index: pd.Index[Any], timeframe: str) -> Int64s:
    if not isinstance(index, pd.DatetimeIndex):
        raise AlgorithmError(
            f"the index of {symbol} is a {type(index).__name__}", cure="give a DatetimeIndex"
        )
    if index.tz is None:
        if not (index == index.normalize()).all():
            raise AlgorithmError(
                f"the times of {symbol} have no time zone",
                cure='say it: frame.tz_localize("America/New_York")',
            )
        index = index.tz_localize(EXCHANGE_ZONE)
    elif not md.Timeframe.parse(timeframe).intraday:
        days = index.tz_convert("UTC").tz_localize(None)
        # At the exchange these are evenings: what is meant are the dates.
        if (days == days.normalize()).all():
            index = days.tz_localize(EXCHANGE_ZONE)
    return micros(index)


def _simulated(frames: Frames) -> bool:
    some = frames if isinstance(frames, pd.DataFrame) else next(iter(frames.values()), None)
    attrs = {} if some is None else some.attrs.get("marketdata", {})
    return bool(attrs.get("simulated", False))
