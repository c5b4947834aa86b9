"""A time axis with one place per bar: nights, weekends and missing bars take no room."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from marketdata.errors import RequestError
from marketdata.plotting.appearance import SEPARATOR, add_shapes
from marketdata.spans import Span
from marketdata.types import Int64s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plotly.graph_objects import Figure

MAX_CANDLES: Final = 5_000
MAX_SEPARATORS: Final = 70
_MARGIN: Final = 0.01
EXCHANGE_ZONE: Final = "America/New_York"
"""Of every exchange served: it names the session."""


class TimeAxis:
    """A category axis: one place per bar, labels that plotly thins out at every zoom.

    Parameters
    ----------
    stamps : DatetimeIndex
        The first time of each place that has bars, ascending.
    blanks : DatetimeIndex, optional
        Times of further places, which stay empty.
    """

    def __init__(self, stamps: pd.DatetimeIndex, blanks: pd.DatetimeIndex | None = None) -> None:
        places = stamps if blanks is None or not len(blanks) else stamps.union(blanks)
        self.stamps = places
        self._of_bars = places.get_indexer(stamps)
        at_exchange = places if places.tz is None else places.tz_convert(EXCHANGE_ZONE)
        self.daily = is_daily(places)
        self._dates = at_exchange.normalize()
        self._one_date = not self.daily and places.normalize().nunique() == 1
        date = "" if self._one_date else "<br>%b %-d, %Y"
        if self.daily:
            labels = at_exchange.strftime("%b %-d<br>%Y")
        else:
            labels = places.strftime(f"%H:%M{date}")
            if labels.has_duplicates:  # the hour that a change of clocks repeats
                labels = places.strftime(f"%H:%M %Z{date}")
        self.labels = labels.to_numpy(dtype=object)

    def labels_of(self, bins: Any) -> Any:
        """Return the labels of places by their number among those that have bars."""
        return self.labels[self._of_bars[bins]]

    def with_breaks(
        self, values: pd.DataFrame, gaps: Sequence[Span] = ()
    ) -> tuple[Any, pd.DataFrame]:
        """Return labels and values of lines that are interrupted where nothing is stored.

        Parameters
        ----------
        values : DataFrame
            Indexed by the number of each place among those that have bars.
        gaps : sequence of Span
            Of these lines, which may have no bar where others have.
        """
        at = self._of_bars[values.index.to_numpy()]
        if not gaps:
            return self.labels[at], values
        empty = [np.arange(*np.searchsorted(self.micros, span).tolist()) for span in gaps]
        all_ = np.union1d(at, np.concatenate(empty))
        return self.labels[all_], values.set_axis(at, axis=0).reindex(all_)

    @cached_property
    def micros(self) -> Int64s:
        """The time of each place, microseconds UTC."""
        return micros_of(self.stamps)

    @property
    def notes(self) -> list[str]:
        if self.daily:
            return []
        date = f"{self.stamps[0]:%b %-d, %Y}, " if self._one_date else ""
        return [f"{date}times in {self.stamps.tz or 'local time'}"]

    def apply(self, figure: Figure) -> None:
        figure.update_xaxes(
            type="category",
            categoryorder="array",
            categoryarray=self.labels,
            # Marks at the edges would have it widened for all of them.
            range=[-0.5 - _MARGIN * len(self.labels), (1 + _MARGIN) * len(self.labels) - 0.5],
            rangeslider_visible=False,
            nticks=9,
            tickangle=0,
            ticks="outside",
            ticklen=6,
            tickcolor="white",
            showgrid=False,
        )
        line = {
            "type": "line", "xref": "x", "yref": "paper", "y0": 0, "y1": 1, "layer": "below",
            "line": {"color": SEPARATOR, "width": 1},
        }  # fmt: skip
        edges = [place - 0.5 for place in self._session_starts()]
        add_shapes(figure, [{**line, "x0": edge, "x1": edge} for edge in edges])

    def _session_starts(self) -> list[int]:
        """Return the places where another session begins, if they are few enough to help."""
        if self.daily:
            return []
        starts = np.flatnonzero(self._dates[1:] != self._dates[:-1]) + 1
        # Inside of a gap a line would cross its name.
        filled = np.isin([starts - 1, starts], self._of_bars).any(axis=0)
        starts = starts[filled]
        return [int(s) for s in starts] if len(starts) <= MAX_SEPARATORS else []


def is_daily(stamps: pd.DatetimeIndex) -> bool:
    """Whether all times are midnights of the exchange, as of daily bars and coarser ones."""
    at_exchange = stamps if stamps.tz is None else stamps.tz_convert(EXCHANGE_ZONE)
    return bool((at_exchange == at_exchange.normalize()).all())


def micros_of(stamps: pd.DatetimeIndex) -> Int64s:
    """Return times as microseconds UTC; naive dates are midnights of the exchange.

    Raises
    ------
    RequestError
        Times of the day without a zone: what is to be drawn beside them cannot be placed.
    """
    if stamps.tz is None:
        if not is_daily(stamps):
            raise RequestError(
                "the times of this frame have no zone", cure="give its index one: tz_localize"
            )
        stamps = stamps.tz_localize(EXCHANGE_ZONE)
    return np.asarray(stamps.as_unit("us").asi8, np.int64)


def stamps_of(micros: Int64s, like: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """Return microseconds UTC as times in the zone and unit of `like`."""
    found = pd.DatetimeIndex(np.asarray(micros, np.int64).view("M8[us]"), tz="UTC")
    if like.tz is None:
        return found.tz_convert(EXCHANGE_ZONE).tz_localize(None).as_unit(like.unit)
    return found.tz_convert(like.tz).as_unit(like.unit)


def by_symbol(bars: pd.DataFrame) -> tuple[list[str], Any, pd.DatetimeIndex]:
    """Return the symbols, each row's position among them, and each row's time."""
    index = bars.index
    if isinstance(index, pd.MultiIndex):
        owners, found = pd.factorize(index.get_level_values(0), sort=True)
        names = [str(name) for name in found]
        times = index.get_level_values(1)
    else:
        owners, names, times = np.zeros(len(index), np.intp), [""], index
    if not isinstance(times, pd.DatetimeIndex):
        raise RequestError(
            "this is not a frame of bars: its index holds no times",
            cure="pass what get_bars returned, or a selection of its rows",
        )
    return names, owners, times


def thinned(owners: Any, stamps: pd.DatetimeIndex) -> tuple[pd.DatetimeIndex, Any, int]:
    """Share the bars out over the places of the axis, at most `MAX_CANDLES` of them drawn.

    Returns
    -------
    places : DatetimeIndex
        The first time of each place.
    bins : ndarray of int
        Each bar's place.
    merged : int
        How many neighbouring times share a place; 1 where nothing is merged.
    """
    times = stamps.unique().sort_values()
    position = times.get_indexer(stamps)
    merged = max(1, -(-len(stamps) // MAX_CANDLES))
    while len(pd.unique(owners * (len(times) + 1) + position // merged)) > MAX_CANDLES:
        merged += 1
    return times[::merged], position // merged, merged


def merge_note(merged: int, bars: int, what: str) -> list[str]:
    return [f"{bars:,} bars, {merged} merged into each {what}"] if merged > 1 else []
