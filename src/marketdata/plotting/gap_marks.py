"""Gaps on a picture: what is not stored, shaded, with room of its own and a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from marketdata.calendars import EXCHANGE, Hours, TradingCalendar, calendar_for
from marketdata.clock import to_micros
from marketdata.errors import RequestError
from marketdata.plotting.appearance import GAP, MUTED, add_shapes, axis_name
from marketdata.plotting.time_axis import TimeAxis, stamps_of
from marketdata.spans import Span
from marketdata.types import DAY, Int64s, Interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Gaps = Sequence[Interval] | pd.DataFrame

MAX_GAPS: Final = 150
MAX_NAMED: Final = 12
_WIDEST: Final = 12
"""A gap takes this share of the bars' places at most: one twelfth."""
_LEAST: Final = 4
_TOO_NEAR: Final = 0.015
"""Names nearer than this share of the axis would lie on each other."""


@dataclass(frozen=True, slots=True)
class Gap:
    """One stretch that is not stored, of one symbol or (empty) of all that are drawn."""

    symbol: str
    span: Span
    state: str
    """Why, such as ``never asked``."""
    missing: int = 0
    """Bars that are missing at most."""
    places: tuple[int, ...] = ()
    """Times of the places it gets, microseconds UTC."""


def read_gaps(gaps: Gaps) -> list[Gap]:
    """Return gaps from what `Client.gaps` returns for one symbol, or for several.

    Raises
    ------
    RequestError
        Neither; a retry does not help.
    """
    if isinstance(gaps, pd.DataFrame) and {"start", "end"} <= set(gaps.columns):
        symbols = gaps["symbol"] if "symbol" in gaps.columns else [""] * len(gaps)
        states = gaps["state"] if "state" in gaps.columns else [""] * len(gaps)
        return [
            Gap(str(symbol), Span(to_micros(start), to_micros(end)), str(state) or "gap")
            for symbol, start, end, state in zip(
                symbols, gaps["start"], gaps["end"], states, strict=True
            )
        ]
    if isinstance(gaps, Sequence) and all(isinstance(gap, Interval) for gap in gaps):
        return [Gap("", Span(to_micros(g.start), to_micros(g.end)), "not stored") for g in gaps]
    raise RequestError(
        "these are no gaps", cure="pass what md.gaps returned, or a frame with start and end"
    )


def placed(
    gaps: Sequence[Gap], bars: Int64s, end: int, step: int, hours: Hours, merged: int
) -> tuple[list[Gap], list[str]]:
    """Return the gaps inside the picture, with places of their own, and what must be said.

    Parameters
    ----------
    bars : ndarray of int64
        Distinct times of the bars, ascending, microseconds UTC.
    end : int
        Where the last bar ends.
    step : int
        Microseconds of a bar.
    hours : {"regular", "extended", "daily"}
        In which the bars lie.
    merged : int
        How many bars share a place.
    """
    calendar = calendar_for(EXCHANGE, end)
    picture = Span(int(bars[0]), end)
    most = max(_LEAST, len(bars) // merged // _WIDEST)
    found, outside = [], 0
    for gap in gaps:
        span = gap.span.clip(picture)
        if span.empty:
            outside += 1
            continue
        labels = np.setdiff1d(_labels(calendar, span, step, hours), bars)
        count = min(most, -(-len(labels) // merged))
        if not count and not np.any((bars >= span.start) & (bars < span.end)):
            continue  # no bar of these hours is missing
        chosen = labels[np.linspace(0, len(labels) - 1, count).astype(int)] if count else labels
        found.append(Gap(gap.symbol, span, gap.state, len(labels), tuple(chosen.tolist())))
    found.sort(key=lambda gap: gap.missing, reverse=True)
    notes = [f"{len(found):,} gaps" if len(found) != 1 else "1 gap"] if found else ["no gaps"]
    if len(found) > MAX_GAPS:
        notes = [f"the {MAX_GAPS} longest of {len(found):,} gaps"]
    if outside:
        notes.append(f"{outside:,} gaps outside the picture")
    return found[:MAX_GAPS], notes


def _labels(calendar: TradingCalendar, span: Span, step: int, hours: Hours) -> Int64s:
    """Return the bars that a dense series would have inside `span`."""
    if hours == "daily":
        first, last = np.searchsorted(calendar.midnight, span)
        return calendar.midnight[first : last : max(1, round(step * 5 / 7 / DAY))]
    sessions = calendar.trading_spans(span, hours)
    found = [np.arange(-(-s.start // step) * step, s.end, step) for s in sessions]
    return np.concatenate(found).astype(np.int64) if found else np.empty(0, np.int64)


def add_gaps(
    figure: Figure,
    rows: Sequence[int],
    axis: TimeAxis,
    gaps: Sequence[Gap],
    prices: Any,
    *,
    short: bool = False,
) -> None:
    """Shade gaps over the panels of a symbol, the first of which is that of its price.

    Parameters
    ----------
    prices : ndarray of float
        Of the panel, for where a pointer finds the gap's words.
    short : bool
        Whether the panel has no room for more than the gap's first day.
    """
    from plotly.graph_objects import Scatter

    shapes: list[dict[str, Any]] = []
    names: list[tuple[float, str]] = []
    x: list[str] = []
    said: list[str] = []
    for gap in gaps:
        first, last = np.searchsorted(axis.micros, gap.span).tolist()
        if last <= first:
            continue
        words = _words(gap, axis)
        for row in rows:
            shapes.append(_band(row, first - 0.5, last - 0.5))
        x += axis.labels[first:last].tolist()
        said += [words] * (last - first)
        names.append(((first + last - 1) / 2, words.partition(",")[0] if short else words))
    if not shapes:
        return
    add_shapes(figure, shapes)
    _add_names(figure, rows[0], sorted(names), _TOO_NEAR * len(axis.labels))
    figure.add_trace(
        Scatter(
            x=x, y=np.full(len(x), float(np.mean(prices))), mode="markers", name="not stored",
            text=said, hovertemplate="%{text}<extra></extra>", showlegend=False,
            marker={"size": 12, "opacity": 0, "color": GAP},
        ),
        row=rows[0], col=1,
    )  # fmt: skip


def _add_names(figure: Figure, row: int, names: Sequence[tuple[float, str]], least: float) -> None:
    """Write the names of gaps, from bottom to top, but none where it would lie on another."""
    if len(names) > MAX_NAMED:
        return
    before = -least
    for place, words in names:
        if place - before < least:
            continue
        before = place
        figure.add_annotation(
            x=place, y=0.98, xref=axis_name("x", row), yref=f"{axis_name('y', row)} domain",
            text=words, textangle=-90, showarrow=False, xanchor="center", yanchor="top",
            font={"size": 11, "color": MUTED},
        )  # fmt: skip


def _band(row: int, left: float, right: float) -> dict[str, Any]:
    return {
        "type": "rect", "xref": axis_name("x", row), "yref": f"{axis_name('y', row)} domain",
        "x0": left, "x1": right, "y0": 0, "y1": 1, "layer": "below",
        "fillcolor": GAP, "opacity": 0.25, "line": {"width": 0},
    }  # fmt: skip


def _words(gap: Gap, axis: TimeAxis) -> str:
    first, last = stamps_of(np.array([gap.span.start, gap.span.end - 1]), axis.stamps)
    if axis.daily:
        when = f"{first:%b %-d, %Y}" if first.date() == last.date() else (
            f"{first:%b %-d} to {last:%b %-d, %Y}"
        )  # fmt: skip
    elif first.date() == last.date():
        when = f"{first:%b %-d, %H:%M} to {last:%H:%M}"
    else:
        when = f"{first:%b %-d, %H:%M} to {last:%b %-d, %H:%M}"
    return f"{gap.state}: {when}"
