"""Candles and volume of a frame, as a plotly figure.

The time axis has one place per bar, not one per minute of the clock: nights, weekends and
missing bars take no room and are never bridged by a price. Labels are the frame's own times.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from marketdata.errors import MissingDependencyError, RequestError
from marketdata.frames import ATTRS_KEY

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MAX_CANDLES: Final = 5_000
MAX_SYMBOLS: Final = 6
MAX_LINES: Final = 40
MAX_SEPARATORS: Final = 70

_EXCHANGE_ZONE: Final = "America/New_York"  # of every exchange served: it names the session
_PRICES: Final = ["open", "high", "low", "close"]
_UP, _DOWN, _SEPARATOR, _MUTED, _WARNING = "#00897b", "#d1495b", "#c9ced6", "#5f6b7a", "#b3261e"


def plot(
    frame: pd.DataFrame | pd.Series[float],
    *,
    title: str | None = None,
    path: str | Path | None = None,
    volume: bool = True,
    show: bool | None = None,
) -> Figure:
    """Draw a frame of `get_bars` and return the plotly figure; Jupyter displays it.

    Bars become candles with their volume below, one pair of panels per symbol; a frame of one
    field (``field="close"``) becomes one line per symbol. Above 5,000 candles neighbours are
    merged (first open, highest high, lowest low, last close, summed volume) and the subtitle
    says so. Simulated prices are marked SIMULATED in the title, whatever `title` says.

    Parameters
    ----------
    frame : DataFrame or Series
        As returned, or any selection of it, indexed by time or by (symbol, timestamp). Rows
        without all four prices are left out.
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
        Not a frame of bars, or more symbols than fit; a retry does not help.
    MissingDependencyError
        plotly is not installed; names the pip line.
    """
    try:
        from plotly.graph_objects import Figure
    except ImportError:
        raise MissingDependencyError(
            "plotting needs plotly, which is not installed", cure="pip install 'marketdata[plot]'"
        ) from None
    table = frame.to_frame() if isinstance(frame, pd.Series) else frame
    facts = frame.attrs.get(ATTRS_KEY) or {}
    notes: list[str] = []
    if not len(table):
        figure = _nothing(Figure())
    elif set(_PRICES) <= set(table.columns):
        figure, notes = _candles(table, volume)
    else:
        figure, notes = _lines(table)
    _dress(figure, title or _title(table, facts), _subtitle(facts, notes), facts)
    if path is not None:
        figure.write_html(path, include_plotlyjs=True, config={"displaylogo": False})
    if show:
        figure.show()
    return figure


# ------------------------------------------------------------------------------------- panels


def _candles(table: pd.DataFrame, volume: bool) -> tuple[Figure, list[str]]:
    from plotly.graph_objects import Figure
    from plotly.subplots import make_subplots

    bars = table.loc[table[_PRICES].notna().all(axis=1)]
    if not len(bars):
        return _nothing(Figure()), []
    if not bars.index.is_monotonic_increasing:
        bars = bars.sort_index()
    symbols, owners, stamps = _by_symbol(bars)
    if len(symbols) > MAX_SYMBOLS:
        raise RequestError(
            f"{len(symbols)} symbols do not fit one figure of candles",
            cure=f"select at most {MAX_SYMBOLS}, such as frame.loc[{symbols[:3]!r}], or draw lines "
            'of get_bars(..., field="close")',
        )
    places, bins, merged = _thinned(owners, stamps)
    drawn = _merged(bars, [owners, bins], volume and "volume" in bars.columns)
    parts = [drawn.loc[[number]].droplevel(0) for number in range(len(symbols))]
    # A stock index has prices but no volume: no panel for what is not there.
    parts = [p if "volume" in p and p["volume"].any() else p[_PRICES] for p in parts]
    heights = [h for part in parts for h in ([0.76, 0.24] if "volume" in part else [1.0])]
    figure = make_subplots(
        rows=len(heights),
        cols=1,
        shared_xaxes="all",
        vertical_spacing=0.16 / (len(heights) + 2),
        row_heights=heights,
    )
    axis = _TimeAxis(places)
    row = 0
    for symbol, part in zip(symbols, parts, strict=True):
        row = _add_panels(figure, row, symbol, axis.labels[part.index.to_numpy()], part)
    axis.apply(figure)
    height = 430 if len(symbols) == 1 else 270 * len(symbols)
    figure.update_layout(height=170 + height, bargap=0.2)
    return figure, _merge_note(merged, len(bars), "candle") + axis.notes


def _merged(bars: pd.DataFrame, keys: list[Any], volume: bool) -> pd.DataFrame:
    """Return one row per symbol and place; neighbours become one candle."""
    groups = bars.groupby(keys, sort=True)
    drawn = groups[_PRICES].agg({"open": "first", "high": "max", "low": "min", "close": "last"})
    if volume:
        drawn["volume"] = groups["volume"].sum(min_count=1)
    return drawn


def _add_panels(figure: Figure, row: int, symbol: str, x: Any, part: pd.DataFrame) -> int:
    """Add a symbol's candles below row `row`, then its volume; return the last row used."""
    from plotly.graph_objects import Bar, Candlestick

    figure.add_trace(
        Candlestick(
            x=x,
            **{name: part[name].to_numpy() for name in _PRICES},
            name=symbol,
            increasing={"line": {"color": _UP, "width": 1}, "fillcolor": _UP},
            decreasing={"line": {"color": _DOWN, "width": 1}, "fillcolor": _DOWN},
        ),
        row=(row := row + 1),
        col=1,
    )
    figure.update_yaxes(title_text=symbol or "price", row=row, col=1)
    if "volume" in part:
        colours = np.where(part["close"] >= part["open"], _UP, _DOWN)
        figure.add_trace(
            Bar(
                x=x,
                y=part["volume"].to_numpy(),
                marker={"color": colours, "line": {"width": 0}},
                opacity=0.6,
                name=f"{symbol} volume".strip(),
            ),
            row=(row := row + 1),
            col=1,
        )
        figure.update_yaxes(title_text="volume", rangemode="tozero", row=row, col=1)
    return row


def _lines(table: pd.DataFrame) -> tuple[Figure, list[str]]:
    from plotly.graph_objects import Figure, Scatter

    if isinstance(table.index, pd.MultiIndex):
        column = table.select_dtypes("number").columns[:1]
        table = table[column[0]].unstack(0) if len(column) else table
    lines = table.select_dtypes("number")
    if not len(lines.columns) or not isinstance(lines.index, pd.DatetimeIndex):
        raise RequestError(
            "this is not a frame of bars: it has neither open, high, low and close nor a numeric "
            "column over time",
            cure="pass what get_bars returned, or a selection of its rows",
        )
    if len(lines.columns) > MAX_LINES:
        raise RequestError(
            f"{len(lines.columns)} lines cannot be told apart",
            cure=f"select at most {MAX_LINES} columns",
        )
    owners = np.zeros(len(lines), np.intp)
    places, bins, merged = _thinned(owners, lines.index)
    axis = _TimeAxis(places)
    drawn = lines.groupby(bins).last() if merged > 1 else lines
    figure = Figure()
    for name in lines.columns:
        values = drawn[name].to_numpy()
        mode = "lines+markers" if np.isnan(values).any() else "lines"
        figure.add_trace(
            Scatter(
                x=axis.labels,
                y=values,
                name=str(name),
                mode=mode,
                connectgaps=False,
                line={"width": 1.5},
                marker={"size": 3},
            )
        )
    axis.apply(figure)
    figure.update_layout(height=600, showlegend=True)
    return figure, _merge_note(merged, len(lines), "point") + axis.notes


def _nothing(figure: Figure) -> Figure:
    figure.add_annotation(
        text="no bars", showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper", font_size=24
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


# --------------------------------------------------------------------------------- time axis


class _TimeAxis:
    """A category axis: one place per bar, labels that plotly thins out at every zoom."""

    def __init__(self, stamps: pd.DatetimeIndex) -> None:
        self._stamps = stamps
        at_exchange = stamps if stamps.tz is None else stamps.tz_convert(_EXCHANGE_ZONE)
        self._daily = bool((at_exchange == at_exchange.normalize()).all())
        self._dates = at_exchange.normalize()
        if self._daily:
            labels = at_exchange.strftime("%b %-d<br>%Y")
        else:
            labels = stamps.strftime("%H:%M<br>%b %-d, %Y")
            if labels.has_duplicates:  # the hour that a change of clocks repeats
                labels = stamps.strftime("%H:%M %Z<br>%b %-d, %Y")
        self.labels = labels.to_numpy(dtype=object)

    @property
    def notes(self) -> list[str]:
        if self._daily:
            return []
        return [f"times in {self._stamps.tz or 'local time'}"]

    def apply(self, figure: Figure) -> None:
        figure.update_xaxes(
            type="category",
            categoryorder="array",
            categoryarray=self.labels,
            rangeslider_visible=False,
            nticks=9,
            tickangle=0,
            ticks="outside",
            ticklen=6,
            tickcolor="white",
            showgrid=False,
        )
        for place in self._session_starts():
            figure.add_vline(
                x=float(place) - 0.5, line={"color": _SEPARATOR, "width": 1}, layer="below"
            )

    def _session_starts(self) -> list[int]:
        """Return the places where another session begins, if they are few enough to help."""
        if self._daily:
            return []
        starts = np.flatnonzero(self._dates[1:] != self._dates[:-1]) + 1
        return [int(s) for s in starts] if len(starts) <= MAX_SEPARATORS else []


def _by_symbol(bars: pd.DataFrame) -> tuple[list[str], Any, pd.DatetimeIndex]:
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


def _thinned(owners: Any, stamps: pd.DatetimeIndex) -> tuple[pd.DatetimeIndex, Any, int]:
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


def _merge_note(merged: int, bars: int, what: str) -> list[str]:
    return [f"{bars:,} bars, {merged} merged into each {what}"] if merged > 1 else []


# ------------------------------------------------------------------------------------- words


def _title(table: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    if isinstance(table.index, pd.MultiIndex):
        symbols = [str(s) for s in table.index.get_level_values(0).unique()]
    else:
        symbols = [str(facts[k]) for k in ("symbols", "symbol") if k in facts][:1]
    named = ", ".join(symbols[:MAX_SYMBOLS]) + (" ..." if len(symbols) > MAX_SYMBOLS else "")
    return " ".join(part for part in (named, str(facts.get("timeframe", "")), "bars") if part)


def _subtitle(facts: Mapping[str, Any], notes: list[str]) -> str:
    source = "/".join(dict.fromkeys(str(facts[k]) for k in ("provider", "feed") if facts.get(k)))
    adjustment = facts.get("adjustment")
    said = [
        source,
        "" if not adjustment else "raw prices" if adjustment == "raw" else f"{adjustment}-adjusted",
        f"as known at {facts['as_of']}" if facts.get("as_of") else "",
        f"renamed: {facts['lineage']}" if facts.get("lineage") else "",
        "delayed" if facts.get("delayed") else "",
        "fewer bars than asked for" if facts.get("truncated") else "",
        "last bar still forming" if facts.get("forming") else "",
        *notes,
    ]
    return " · ".join(part for part in said if part)


def _dress(figure: Figure, title: str, subtitle: str, facts: Mapping[str, Any]) -> None:
    if facts.get("simulated") or facts.get("provider") == "sandbox":
        title = f'<span style="color:{_WARNING}"><b>SIMULATED</b></span>  {title}'
    figure.update_layout(
        template="plotly_white",
        title={
            "text": title,
            "subtitle": {"text": subtitle, "font": {"color": _MUTED, "size": 13}},
            "x": 0.01,
            "xanchor": "left",
        },
        font={"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 13},
        hovermode="x",
        margin={"l": 70, "r": 30, "t": 90, "b": 60},
    )
    if figure.layout.showlegend is None:
        figure.update_layout(showlegend=False)
