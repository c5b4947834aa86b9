"""``plot`` and ``plot_coverage``: pictures of bars, and of what is stored."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from marketdata import explaining, planning
from marketdata.arguments import Symbols, check_feed, symbol_list
from marketdata.clock import from_micros
from marketdata.errors import RequestError
from marketdata.known_calls import KnownCalls
from marketdata.queries import BarsQuery
from marketdata.ranges import Moment, resolve_window
from marketdata.types import DAY, Int64s, Timeframe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from plotly.graph_objects import Figure

    from marketdata.calendars import TradingCalendar
    from marketdata.types import Interval

MAX_SYMBOLS: Final = 2_000
MAX_DAYS: Final = 130
MAX_WEEKS: Final = 600
"""More sessions than these are drawn as weeks, more weeks as months."""


class PlotCalls(KnownCalls):
    """The calls that draw; plotly is the extra ``[plot]``."""

    def plot(
        self,
        frame: pd.DataFrame | pd.Series[float],
        *,
        indicators: str | Mapping[str, Any] | Sequence[Any] | pd.DataFrame | None = None,
        trades: pd.DataFrame | None = None,
        gaps: bool | Sequence[Interval] | pd.DataFrame | None = None,
        title: str | None = None,
        path: str | Path | None = None,
        volume: bool = True,
        show: bool | None = None,
    ) -> Figure:
        """Draw a frame of bars and return the plotly figure; Jupyter displays it.

        Bars become candles with their volume below, one group of panels per symbol; a frame of
        one field (``field="close"``) becomes one line per symbol. The time axis has one place per
        bar: nights, weekends and missing bars take no room. Above 5,000 candles neighbours are
        merged (first open, highest high, lowest low, last close, summed volume, last indicator)
        and the subtitle says so. Simulated prices are marked SIMULATED, whatever `title` says.

        Parameters
        ----------
        frame : DataFrame or Series
            From `get_bars` or `get_indicators` (``bars=True``), or any selection of it, indexed
            by time or by (symbol, timestamp). Rows without all four prices are left out. Columns
            beside those of bars are drawn as indicators. At most 6 symbols, or 40 lines.
        indicators : str, mapping, sequence of these, or DataFrame, optional
            Names as for `get_indicators`, computed over the frame's own bars: NaN where these do
            not reach back enough. Or a frame of values, at the times (and symbols) of the bars;
            an empty list draws none. What is on the scale of prices lies on the candles, the rest
            in panels below.
        trades : DataFrame, optional
            Columns ``symbol``, ``quantity`` (negative: sold short), ``entry_time``,
            ``exit_time`` (aware; NaT while open), ``entry_price``, ``exit_price`` (on the basis
            of the frame's prices) and ``pnl``: entry and exit are marked, joined by a line
            coloured by profit. Above 2,000 the largest are drawn and the subtitle says so.
        gaps : True, or what `gaps` returned, optional
            Shade and name what is not stored. True asks for the frame's own series and range;
            no broker is asked. A gap takes some room, though less than its bars would.
        title : str, optional
            The heading; by default the symbols and the timeframe.
        path : str or Path, optional
            Also write one self-contained HTML file, which opens without a network.
        volume : bool
            Whether to draw volume; never drawn where the frame has none.
        show : bool, optional
            Whether to open the figure at once (a browser, or the notebook).

        Returns
        -------
        plotly.graph_objects.Figure
            One that says "no bars" for an empty frame.

        Raises
        ------
        RequestError
            Not a frame of bars, indicators, trades or gaps, or more than fits; a retry does not
            help.
        MissingDependencyError
            plotly is not installed; names the pip line.
        StoreError
            ``gaps=True``, and PostgreSQL failed; a retry helps where it is transient.
        """
        from marketdata.plotting import plot

        found = self._gaps_of(frame) if gaps is True else gaps
        return plot(
            frame,
            indicators=indicators,
            trades=trades,
            gaps=None if found is False else found,
            title=title,
            path=path,
            volume=volume,
            show=show,
        )

    def _gaps_of(self, frame: pd.DataFrame | pd.Series[float]) -> pd.DataFrame | None:
        """Return what is not stored of a frame's own series and range."""
        from marketdata.plotting import series_of

        found = series_of(frame)
        if found is None:
            return None
        runtime = self._runtime
        if found.provider not in ("", runtime.provider):
            raise RequestError(
                f"the bars are {found.provider}'s, and this client knows the gaps of "
                f"{runtime.provider}",
                cure="pass gaps= of a client of that broker: md.connect(broker=...).gaps(...)",
            )
        end = min(found.end, self._clock.now_us())
        if end <= found.start:
            return None
        return self.gaps(
            found.symbols,
            found.timeframe,
            start=from_micros(found.start),
            end=from_micros(end),
            feed=found.feed or None,
        )

    def plot_coverage(
        self,
        symbols: Symbols | None = None,
        timeframe: str = "1min",
        *,
        start: Moment | None = None,
        end: Moment | None = None,
        period: str | None = None,
        feed: str | None = None,
        title: str | None = None,
        path: str | Path | None = None,
        show: bool | None = None,
    ) -> Figure:
        """Draw what is stored as a heat-map: symbols down, sessions along; no broker call.

        The colour of a cell says how much of its expected trading time is stored, and whether all
        of that is final; the pointer gives the shares. Expected is all time in which closed bars
        can be: from 04:00 to 20:00 for minutes, and not before an instrument's first symbol or
        after its end. A quiet minute inside coverage is not missing.

        Parameters
        ----------
        symbols : str or collection of str, optional
            At most 2,000; by default all of which bars of this timeframe are stored.
        timeframe : str
            As for `gaps`.
        start, end, period : optional
            As for `get_bars`; two years without `start` and `period`. Above 130 sessions the
            columns are weeks, above 600 weeks months.
        feed : str, optional
            A feed of the broker; the configured one by default.
        title, path, show : optional
            As for `plot`.

        Returns
        -------
        plotly.graph_objects.Figure
            A cell is blank where nothing is expected.

        Raises
        ------
        RequestError
            The call cannot be answered as written; a retry does not help.
        MissingDependencyError
            plotly is not installed; names the pip line.
        StoreError
            PostgreSQL failed; a retry helps where it is transient.
        """
        from marketdata.completeness import completeness
        from marketdata.plotting import plot_coverage

        names = None if symbols is None else symbol_list(symbols)[0]
        parsed = Timeframe.parse(timeframe)
        check_feed(feed)
        now_us = self._clock.now_us()
        calendar = self._calendar()
        window = resolve_window(
            calendar,
            now_us,
            start=start,
            end=end,
            period=period if start is not None or period is not None else "2y",
        )
        runtime = self._runtime
        named = runtime.feed_named(feed)
        chosen = self._stored(parsed, named) if names is None else names
        if len(chosen) > MAX_SYMBOLS:
            raise RequestError(
                f"{len(chosen):,} symbols do not fit one figure", cure=f"give up to {MAX_SYMBOLS:,}"
            )
        assert window.start is not None
        query = BarsQuery(runtime.provider, named, chosen, parsed, window, "extended")
        known = explaining.known_parts(runtime, query, now_us) if chosen else {}
        cells = _cells(calendar, window.start, min(window.end, now_us))
        found = completeness(known, calendar, planning.stored_hours(parsed), cells.edges)
        first, last = (from_micros(t).astimezone(calendar.zone) for t in (window.start, window.end))
        return plot_coverage(
            found,
            cells.labels,
            cells.names,
            title=title
            or f"Coverage of {parsed} bars, {len(chosen):,} symbol{'s'[: len(chosen) != 1]}, "
            f"{first:%Y-%m-%d} to {last:%Y-%m-%d}",
            facts={
                "provider": runtime.provider,
                "feed": named,
                "simulated": runtime.simulated,
            },
            notes=[f"by {cells.unit}"],
            path=path,
            show=show,
        )

    def _stored(self, timeframe: Timeframe, feed: str) -> tuple[str, ...]:
        """Return the symbols of which bars are stored that this timeframe can be made of."""
        runtime = self._runtime
        ways = runtime.broker.capabilities(feed).bases.get(timeframe, ())
        bases = {way.base for way in ways}
        found = {
            key.symbol
            for key in runtime.store.series()
            if key.provider == runtime.provider and key.feed == feed and key.timeframe in bases
        }
        return tuple(sorted(found))


class _Cells(NamedTuple):
    """The columns of a heat-map."""

    unit: str
    edges: Int64s
    labels: list[str]
    names: list[str]


def _cells(calendar: TradingCalendar, start: int, end: int) -> _Cells:
    """Return the sessions from `start` to `end`, or the weeks or months they make."""
    midnights = calendar.midnight
    first = max(0, calendar.session_at(start))
    if midnights[first] + DAY <= start:
        first += 1  # it was over by then
    chosen = midnights[first : np.searchsorted(midnights, end)]
    days = (chosen + DAY // 2) // DAY
    unit, begins = "session", np.ones(len(days), np.bool_)
    if len(days) > MAX_DAYS:
        unit, begins = "week", _begins((days + 3) // 7)  # 1970 began with a Thursday
        if begins.sum() > MAX_WEEKS:
            months = days.astype("M8[D]").astype("M8[M]").astype(np.int64)
            unit, begins = "month", _begins(months)
    edges = np.append(chosen[begins], chosen[-1] + DAY if len(chosen) else []).astype(np.int64)
    dates = [date.fromordinal(int(day) + _EPOCH) for day in days[begins]]
    if unit == "month":
        return _Cells(
            unit, edges, [f"{d:%b}<br>{d:%Y}" for d in dates], [f"{d:%B %Y}" for d in dates]
        )
    prefix = "week of " if unit == "week" else ""
    labels = [f"{d:%b} {d.day}<br>{d:%Y}" for d in dates]
    return _Cells(unit, edges, labels, [f"{prefix}{d:%a %b} {d.day}, {d:%Y}" for d in dates])


_EPOCH: Final = date(1970, 1, 1).toordinal()


def _begins(groups: Int64s) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return where another group begins."""
    return np.append(True, groups[1:] != groups[:-1])
