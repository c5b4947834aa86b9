"""Candles and volume of a frame, with indicators, trades and gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pandas as pd

from marketdata.calendars import Hours
from marketdata.errors import InvalidTimeframeError, RequestError
from marketdata.frames import ATTRS_KEY
from marketdata.plotting.appearance import (
    dress,
    finish,
    nothing,
    require_plotly,
    subtitle_of,
)
from marketdata.plotting.gap_marks import Gap, Gaps, add_gaps, placed, read_gaps
from marketdata.plotting.panels import Panels
from marketdata.plotting.studies import Indicators, studies
from marketdata.plotting.time_axis import (
    TimeAxis,
    by_symbol,
    is_daily,
    merge_note,
    micros_of,
    stamps_of,
    thinned,
)
from marketdata.plotting.trade_marks import Marks, add_trades, of_symbol, read_trades
from marketdata.types import DAY, Int64s, Timeframe

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MAX_SYMBOLS: Final = 6
MAX_LINES: Final = 40
PRICES: Final = ["open", "high", "low", "close"]
_LENGTHS: Final = {Timeframe.WEEK_1: 7 * DAY, Timeframe.MONTH_1: 31 * DAY}


@dataclass(slots=True)
class _Marks:
    """What is drawn beside the bars, read before anything is drawn."""

    trades: Marks | None
    gaps: list[Gap] | None
    notes: list[str]


def plot(
    frame: pd.DataFrame | pd.Series[float],
    *,
    indicators: Indicators = None,
    trades: pd.DataFrame | None = None,
    gaps: Gaps | None = None,
    title: str | None = None,
    path: str | Path | None = None,
    volume: bool = True,
    show: bool | None = None,
) -> Figure:
    """Draw a frame of bars; see `Client.plot`, which asks for the gaps too."""
    require_plotly()
    table = frame.to_frame() if isinstance(frame, pd.Series) else frame
    facts = frame.attrs.get(ATTRS_KEY) or {}
    marks = _Marks(
        None if trades is None else read_trades(trades),
        None if gaps is None else read_gaps(gaps),
        [],
    )
    notes: list[str] = []
    if not len(table):
        figure = nothing()
    elif set(PRICES) <= set(table.columns):
        figure, notes = _candles(table, volume, indicators, marks, facts)
    else:
        figure, notes = _lines(table, indicators, marks, facts)
    dress(figure, title or _title(table, facts), subtitle_of(facts, notes), facts)
    _make_room(figure)
    finish(figure, path, show)
    return figure


# ------------------------------------------------------------------------------------- candles


def _candles(
    table: pd.DataFrame,
    volume: bool,
    indicators: Indicators,
    marks: _Marks,
    facts: Mapping[str, Any],
) -> tuple[Figure, list[str]]:
    bars = table.loc[table[PRICES].notna().all(axis=1)]
    if not len(bars):
        return nothing(), []
    if not bars.index.is_monotonic_increasing:
        bars = bars.sort_index()
    symbols, owners, stamps = by_symbol(bars)
    if len(symbols) > MAX_SYMBOLS:
        raise RequestError(
            f"{len(symbols)} symbols do not fit one figure of candles",
            cure=f"select at most {MAX_SYMBOLS}, such as frame.loc[{symbols[:3]!r}], or draw lines "
            'of get_bars(..., field="close")',
        )
    listed, values = studies(indicators, bars, owners, stamps)
    places, bins, merged = thinned(owners, stamps)
    axis, end, gaps = _axis(places, stamps, merged, marks, facts)
    keys = [owners, bins]
    drawn = _merged(bars, keys, volume and "volume" in bars.columns)
    lines = values.groupby(keys, sort=True).last() if len(values.columns) else None
    panels = Panels(
        symbols,
        [_with_volume(drawn.loc[[number]].droplevel(0)) for number in range(len(symbols))],
        listed,
    )
    for number, symbol in enumerate(symbols):
        part = panels.parts[number]
        rows = panels.add(number, axis)
        owner = symbol or _one_symbol(facts)
        own = [gap for gap in gaps if not gap.symbol or not owner or gap.symbol == owner]
        if lines is not None:
            spans = [gap.span for gap in own]
            panels.add_studies(number, axis, lines.loc[[number]].droplevel(0), spans)
        if marks.trades is not None:
            mine = of_symbol(marks.trades, owner)
            add_trades(panels.figure, rows[0], axis, mine, end, marks.trades)
        if own:
            prices = part[["low", "high"]].to_numpy()
            add_gaps(panels.figure, rows, axis, own, prices, short=len(symbols) > 1)
    axis.apply(panels.figure)
    notes = [*merge_note(merged, len(bars), "candle"), *axis.notes, *marks.notes]
    return panels.finished(), notes + _trade_notes(marks)


def _merged(bars: pd.DataFrame, keys: list[Any], volume: bool) -> pd.DataFrame:
    """Return one row per symbol and place; neighbours become one candle."""
    groups = bars.groupby(keys, sort=True)
    drawn = groups[PRICES].agg({"open": "first", "high": "max", "low": "min", "close": "last"})
    if volume:
        drawn["volume"] = groups["volume"].sum(min_count=1)
    return drawn


def _with_volume(part: pd.DataFrame) -> pd.DataFrame:
    """Leave out a volume that is none, as of a stock index: no panel for what is not there."""
    return part if "volume" in part and part["volume"].any() else part[PRICES]


def _axis(
    places: pd.DatetimeIndex,
    stamps: pd.DatetimeIndex,
    merged: int,
    marks: _Marks,
    facts: Mapping[str, Any],
) -> tuple[TimeAxis, int, list[Gap]]:
    """Return the axis with room for the gaps, where the last bar ends, and the gaps to shade."""
    if marks.gaps is None and marks.trades is None:
        return TimeAxis(places), 0, []
    times = np.unique(micros_of(stamps))
    step = _step(times, facts)
    end = int(times[-1]) + step
    if marks.gaps is None:
        return TimeAxis(places), end, []
    gaps, marks.notes = placed(marks.gaps, times, end, step, _hours(places, facts), merged)
    blank = np.array(sorted({time for gap in gaps for time in gap.places}), np.int64)
    return TimeAxis(places, stamps_of(blank, places)), end, gaps


def _step(times: Int64s, facts: Mapping[str, Any]) -> int:
    """Return how long a bar is, microseconds: by the frame's facts, else by its commonest step."""
    try:
        timeframe = Timeframe.parse(str(facts.get("timeframe", "")))
    except InvalidTimeframeError:
        steps, counts = np.unique(np.diff(times), return_counts=True)
        return int(steps[counts.argmax()]) if len(steps) else DAY
    return _LENGTHS.get(timeframe, timeframe.step)


def _hours(places: pd.DatetimeIndex, facts: Mapping[str, Any]) -> Hours:
    if is_daily(places):
        return "daily"
    return "extended" if facts.get("session") == "extended" else "regular"


def _one_symbol(facts: Mapping[str, Any]) -> str:
    """Return the symbol of a frame that has no symbols in its index, where its facts name one."""
    named = str(facts.get("symbols", ""))
    return "" if " " in named or "," in named else named


def _trade_notes(marks: _Marks) -> list[str]:
    if marks.trades is None:
        return []
    others = len(marks.trades.table) - marks.trades.drawn - marks.trades.outside
    return [*marks.trades.notes, *([f"{others:,} trades of other symbols"] if others else [])]


# --------------------------------------------------------------------------------------- lines


def _lines(
    table: pd.DataFrame, indicators: Indicators, marks: _Marks, facts: Mapping[str, Any]
) -> tuple[Figure, list[str]]:
    from plotly.graph_objects import Figure, Scatter
    from plotly.subplots import make_subplots

    if isinstance(indicators, str | Mapping) or (isinstance(indicators, Sequence) and indicators):
        raise RequestError(
            "indicators are computed on bars, and this frame has no open, high, low and close",
            cure="draw what get_bars returns without field=, or pass a frame of get_indicators",
        )
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
    places, bins, merged = thinned(owners, lines.index)
    axis, end, gaps = _axis(places, lines.index, merged, marks, facts)
    drawn = lines.groupby(bins).last() if merged > 1 else lines.set_axis(bins, axis=0)
    x, drawn = axis.with_breaks(drawn, [gap.span for gap in gaps])
    figure = make_subplots() if marks.trades is not None or gaps else Figure()
    for name in lines.columns:
        values = drawn[name].to_numpy()
        mode = "lines+markers" if np.isnan(values).any() else "lines"
        figure.add_trace(
            Scatter(
                x=x, y=values, name=str(name), mode=mode, connectgaps=False,
                line={"width": 1.5}, marker={"size": 3},
            )
        )  # fmt: skip
    if marks.trades is not None:
        for name in lines.columns:
            mine = marks.trades.table[marks.trades.table["symbol"] == str(name)]
            add_trades(figure, 1, axis, mine, end, marks.trades)
    if gaps:
        extremes = np.array([np.nanmin(drawn.to_numpy()), np.nanmax(drawn.to_numpy())])
        add_gaps(figure, [1], axis, gaps, extremes)
    axis.apply(figure)
    figure.update_layout(height=600, showlegend=True)
    notes = [*merge_note(merged, len(lines), "point"), *axis.notes, *marks.notes]
    return figure, notes + _trade_notes(marks)


# -------------------------------------------------------------------------------------- series


class Series(NamedTuple):
    """Which stored series a frame shows, and of when."""

    symbols: list[str]
    timeframe: str
    provider: str
    feed: str
    start: int
    end: int
    """Where its last bar ends, microseconds UTC."""


def series_of(frame: pd.DataFrame | pd.Series[float]) -> Series | None:
    """Return which series a frame shows; None of an empty one.

    Raises
    ------
    RequestError
        The frame does not say it; a retry does not help.
    """
    facts = frame.attrs.get(ATTRS_KEY) or {}
    if not len(frame):
        return None
    table = frame.to_frame() if isinstance(frame, pd.Series) else frame
    names, _, stamps = by_symbol(table)
    one = _one_symbol(facts)
    if names == [""]:
        matrix = not set(PRICES) & set(table.columns) and table.columns.name == "symbol"
        names = [str(c) for c in table.columns] if matrix else [one] if one else []
    timeframe = str(facts.get("timeframe", ""))
    if not names or not timeframe:
        raise RequestError(
            "this frame does not say which series it shows, so its gaps are not known",
            cure='pass them: gaps=md.gaps("AAPL", "1min", start=...)',
        )
    micros = micros_of(stamps)
    origin = [str(facts.get(key, "")) for key in ("provider", "feed")]
    provider, feed = ("" if " " in word else word for word in origin)
    end = int(micros.max()) + _step(np.unique(micros), facts)
    return Series(names, timeframe, provider, feed, int(micros.min()), end)


# --------------------------------------------------------------------------------------- words


def _title(table: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    if isinstance(table.index, pd.MultiIndex):
        symbols = [str(s) for s in table.index.get_level_values(0).unique()]
    else:
        symbols = [str(facts[k]) for k in ("symbols", "symbol") if k in facts][:1]
    named = ", ".join(symbols[:MAX_SYMBOLS]) + (" ..." if len(symbols) > MAX_SYMBOLS else "")
    return " ".join(part for part in (named, str(facts.get("timeframe", "")), "bars") if part)


def _make_room(figure: Figure) -> None:
    """Put the legend, where candles have one, below the axis and out of the heading's way."""
    if figure.layout.showlegend and any(t.type == "candlestick" for t in figure.data):
        figure.update_layout(
            legend={
                "orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom",
                "x": 0, "xanchor": "left",
            },
            margin={"b": 110},
        )  # fmt: skip
