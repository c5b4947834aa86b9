"""Indicators of a picture: where they come from, and whether they lie on the price or below it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from marketdata.calendars import EXCHANGE, calendar_for
from marketdata.errors import RequestError
from marketdata.indicator_state import computed
from marketdata.plotting.time_axis import micros_of
from marketdata.types import COLUMNS, Bars, Floats

if TYPE_CHECKING:
    from marketdata.indicators import Indicator

Indicators = None | str | Mapping[str, Any] | Sequence[Any] | pd.DataFrame | pd.Series

_ON_PRICE: Final = frozenset({"sma", "ema", "wma", "dema", "tema", "bbands", "vwap"})
LEVELS: Final[Mapping[str, tuple[float, ...]]] = {
    "rsi": (30, 70),
    "stoch": (20, 80),
    "mfi": (20, 80),
    "willr": (-80, -20),
    "cci": (-100, 100),
    "adx": (25,),
    "macd": (0,),
    "roc": (0,),
    "mom": (0,),
}
"""The levels that readers of an oscillator look for."""
_NEAR_PRICE: Final = 0.1
_WITH_PRICE: Final = 0.3


@dataclass(frozen=True, slots=True)
class Study:
    """One column to draw beside the bars."""

    name: str
    panel: str
    """What shares its panel below the price; empty: it lies on the price."""
    family: str
    bars: bool = False
    """Whether it is drawn as bars, not as a line."""


def studies(
    asked: Indicators, bars: pd.DataFrame, owners: Any, stamps: pd.DatetimeIndex
) -> tuple[list[Study], pd.DataFrame]:
    """Return what to draw beside some bars, and its values at each of these.

    Parameters
    ----------
    asked : Indicators
        Specifications to compute, a frame of values, or None for what the frame of bars has.
    bars : DataFrame
        Sorted by symbol and time.
    owners : ndarray of int
        Which symbol each row belongs to.
    stamps : DatetimeIndex
        Each row's time.

    Raises
    ------
    RequestError
        An unknown indicator, or a frame that has no value at any of the bars.
    """
    known: dict[str, Study] = {}
    if asked is None:
        values = bars[[c for c in bars.columns if c not in COLUMNS]].select_dtypes("number")
    elif isinstance(asked, pd.DataFrame | pd.Series):
        values = _aligned(asked, bars, owners, stamps)
    else:
        from marketdata.indicators import resolve

        chosen = resolve(asked) if not isinstance(asked, Sequence) or len(asked) else ()
        values = _computed(chosen, bars, owners, stamps)
        known = {study.name: study for each in chosen for study in _of_indicator(each)}
    values = values.set_axis([str(c) for c in values.columns], axis=1)
    close = bars["close"].to_numpy(np.float64)
    found = [
        known.get(name) or _of_values(name, values[name].to_numpy(np.float64), close)
        for name in values.columns
    ]
    return found, values


# --------------------------------------------------------------------------------------- values


def _computed(
    chosen: Sequence[Indicator], bars: pd.DataFrame, owners: Any, stamps: pd.DatetimeIndex
) -> pd.DataFrame:
    """Compute indicators on each symbol's own rows; NaN where these do not reach back enough."""
    columns = [column for each in chosen for column in each.columns]
    values = np.full((len(columns), len(bars)), np.nan)
    micros = micros_of(stamps)
    for number in np.unique(owners):
        rows = np.flatnonzero(owners == number)
        part = Bars(micros[rows], _values_of(bars.iloc[rows]))
        calendar = calendar_for(EXCHANGE, int(micros[rows[-1]]))
        values[:, rows] = computed(chosen, part, calendar)
    return pd.DataFrame(values.T, index=bars.index, columns=columns)


def _values_of(bars: pd.DataFrame) -> Floats:
    values = np.full((len(COLUMNS), len(bars)), np.nan)
    for row, name in enumerate(COLUMNS):
        if name in bars.columns:
            values[row] = bars[name].to_numpy(np.float64)
    volume = COLUMNS.index("volume")
    values[volume] = np.nan_to_num(values[volume])  # of what has none, such as an index
    return values


def _aligned(
    given: pd.DataFrame | pd.Series[Any], bars: pd.DataFrame, owners: Any, stamps: pd.DatetimeIndex
) -> pd.DataFrame:
    """Return the given values at each bar: by symbol where they have symbols, whatever zones."""
    table = given.to_frame(given.name or "indicator") if isinstance(given, pd.Series) else given
    table = table[[c for c in table.columns if c not in COLUMNS]].select_dtypes("number")
    index = bars.index
    names = index.get_level_values(0) if isinstance(index, pd.MultiIndex) else None
    found = np.full((len(bars), len(table.columns)), np.nan)
    micros, matched = micros_of(stamps), 0
    for number in np.unique(owners):
        rows = np.flatnonzero(owners == number)
        symbol = None if names is None else names[rows[0]]
        part = _of_symbol(table, symbol)
        if not isinstance(part.index, pd.DatetimeIndex):
            raise RequestError(
                "the frame of indicators has no times",
                cure="index it by time, or by (symbol, timestamp), as get_indicators does",
            )
        part = part.set_axis(micros_of(part.index), axis=0)
        part = part[~part.index.duplicated(keep="last")]
        places = part.index.get_indexer(pd.Index(micros[rows]))
        there = places >= 0
        matched += int(there.sum())
        found[rows[there]] = part.to_numpy(np.float64)[places[there]]
    if len(bars) and not matched:
        raise RequestError(
            "the frame of indicators has no row at any of the bars",
            cure="pass indicators of the same symbols, timeframe and range",
        )
    return pd.DataFrame(found, index=index, columns=table.columns)


def _of_symbol(table: pd.DataFrame, symbol: object) -> pd.DataFrame:
    if not isinstance(table.index, pd.MultiIndex):
        return table
    held = table.index.get_level_values(0)
    if symbol is None:
        if held.nunique() > 1:
            raise RequestError(
                "the indicators are of several symbols, the bars of one",
                cure="select the symbol's rows: frame.loc[symbol]",
            )
        symbol = held[0] if len(held) else None
    return table[held == symbol].droplevel(0)


# ------------------------------------------------------------------------------------- where to


def _of_indicator(indicator: Indicator) -> Iterator[Study]:
    definition = indicator.definition
    for column in indicator.columns:
        if definition.kernel == "pandas-ta":
            continue  # by its values: its families mix prices and directions
        yield _study(column, definition.name, indicator.name, len(definition.outputs) > 1)


def _study(column: str, family: str, member: str, several: bool) -> Study:
    panel = "" if family in _ON_PRICE else member if several else family
    return Study(column, panel, family, column.endswith("_hist"))


def _of_values(name: str, values: Floats, close: Floats) -> Study:
    """Return where a column belongs: by its name where that is an indicator's, else on the price
    if it keeps near the price and moves with it."""
    if found := _named(name):
        return found
    there = np.isfinite(values) & np.isfinite(close)
    if there.any():
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            off = np.median(np.abs(values[there] / close[there] - 1))
            together = np.corrcoef(values[there], close[there])[0, 1] if there.sum() > 2 else 1.0
        if off < _NEAR_PRICE and not together < _WITH_PRICE:
            return Study(name, "", name)
    return Study(name, name, name, name.endswith("_hist"))


@lru_cache(maxsize=1024)
def _named(column: str) -> Study | None:
    from marketdata.indicators.catalogue import CATALOGUE

    for family in sorted(CATALOGUE, key=len, reverse=True):
        if column != family and not column.startswith(f"{family}_"):
            continue
        outputs = CATALOGUE[family].outputs
        member = column
        for output in outputs:
            member = member.removesuffix(f"_{output}") if output else member
        return _study(column, family, member, len(outputs) > 1)
    return None
