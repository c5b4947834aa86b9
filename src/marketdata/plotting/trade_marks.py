"""Trades on a picture: where each was entered and left, and whether it paid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from marketdata.errors import RequestError
from marketdata.plotting.appearance import DOWN, MUTED, UP

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from marketdata.plotting.time_axis import TimeAxis

COLUMNS: Final = (
    "symbol", "quantity", "entry_time", "exit_time", "entry_price", "exit_price", "pnl",
)  # fmt: skip
MAX_TRADES: Final = 2_000
_LONG, _SHORT = "#1565c0", "#6a1b9a"
_SIZES: Final = ((60, 10), (250, 7), (MAX_TRADES, 4))
_OUTCOMES: Final = (("profit", UP), ("loss", DOWN), ("even or open", MUTED))


@dataclass(slots=True)
class Marks:
    """Trades, told apart by symbol; those that do not fit are counted."""

    table: pd.DataFrame
    smaller: int = 0
    """Left out, because there are too many: those that moved the least money."""
    outside: int = 0
    drawn: int = 0

    @property
    def notes(self) -> list[str]:
        said = []
        if self.smaller:
            shown, all_ = len(self.table), len(self.table) + self.smaller
            said.append(f"the {shown:,} largest of {all_:,} trades")
        if self.outside:
            said.append(f"{self.outside:,} trades outside the picture")
        return said


def read_trades(trades: pd.DataFrame) -> Marks:
    """Return the trades to draw.

    Raises
    ------
    RequestError
        Columns are missing, or times have no zone; a retry does not help.
    """
    if not isinstance(trades, pd.DataFrame) or not set(COLUMNS) <= set(trades.columns):
        missing = [c for c in COLUMNS if c not in getattr(trades, "columns", ())]
        raise RequestError(
            f"this is not a frame of trades: it lacks {', '.join(missing)}",
            cure=f"its columns are: {', '.join(COLUMNS)}",
        )
    table = trades[list(COLUMNS)].reset_index(drop=True)
    for name in ("entry_time", "exit_time"):
        table[name] = _micros(table[name], name)
    for name in ("quantity", "entry_price", "exit_price", "pnl"):
        table[name] = table[name].astype(np.float64)
    marks = Marks(table)
    if len(table) > MAX_TRADES:
        order = table["pnl"].abs().fillna(0).to_numpy().argsort(kind="stable")[::-1]
        marks.table = table.iloc[np.sort(order[:MAX_TRADES])]
        marks.smaller = len(table) - MAX_TRADES
    return marks


def _micros(times: pd.Series[Any], name: str) -> pd.Series[Any]:
    """Return times as microseconds UTC, of what has none the least integer."""
    if not isinstance(times.dtype, pd.DatetimeTZDtype):
        if not times.isna().all():
            raise RequestError(
                f"{name} of the trades has no time zone", cure="give aware times, such as UTC ones"
            )
        times = pd.Series(pd.DatetimeIndex([pd.NaT] * len(times)).tz_localize("UTC"))
    return pd.Series(pd.DatetimeIndex(times).as_unit("us").asi8)


def of_symbol(marks: Marks, symbol: str) -> pd.DataFrame:
    """Return the trades of one symbol; of bars whose symbol is not known, all of them.

    Raises
    ------
    RequestError
        The bars' symbol is not known, and the trades are of several.
    """
    held = marks.table["symbol"]
    if symbol:
        return marks.table[held == symbol]
    if held.nunique() > 1:
        raise RequestError(
            "the trades are of several symbols, and the frame does not say which it is of",
            cure="select those of its symbol: trades[trades.symbol == ...]",
        )
    return marks.table


def add_trades(
    figure: Figure, row: int, axis: TimeAxis, table: pd.DataFrame, end: int, marks: Marks
) -> None:
    """Draw a symbol's trades on the panel of its price.

    Parameters
    ----------
    end : int
        Where the last bar ends, microseconds UTC.
    """
    entered, left = _places(axis, table["entry_time"], end), _places(axis, table["exit_time"], end)
    marks.outside += int(((entered < 0) & (left < 0)).sum())
    marks.drawn += int(((entered >= 0) | (left >= 0)).sum())
    pnl = table["pnl"].to_numpy()
    outcome = np.where(pnl > 0, 0, np.where(pnl < 0, 1, 2))
    outcome[table["exit_time"].to_numpy() == _NOT_YET] = 2
    _add_lines(figure, row, axis, table, entered, left, outcome)
    _add_entries(figure, row, axis, table, entered)
    _add_exits(figure, row, axis, table, left, outcome)


_NOT_YET: Final = int(np.iinfo(np.int64).min)


def _places(axis: TimeAxis, times: pd.Series[Any], end: int) -> Any:
    """Return the place of the bar in which each time lies; -1 outside the picture."""
    micros = times.to_numpy(np.int64)
    found = np.searchsorted(axis.micros, micros, side="right") - 1
    return np.where(micros < end, found, -1)


def _add_lines(
    figure: Figure, row: int, axis: TimeAxis, table: pd.DataFrame, entered: Any, left: Any,
    outcome: Any,
) -> None:  # fmt: skip
    from plotly.graph_objects import Scatter

    for number, (name, colour) in enumerate(_OUTCOMES):
        mine = np.flatnonzero((outcome == number) & (entered >= 0) & (left >= 0))
        if not len(mine):
            continue
        x = np.full((len(mine), 3), None, object)
        x[:, 0], x[:, 1] = axis.labels[entered[mine]], axis.labels[left[mine]]
        y = np.full((len(mine), 3), np.nan)
        y[:, 0] = table["entry_price"].to_numpy()[mine]
        y[:, 1] = table["exit_price"].to_numpy()[mine]
        figure.add_trace(
            Scatter(
                x=x.ravel(), y=y.ravel(), mode="lines", name=f"trade: {name}",
                line={"color": colour, "width": 2, "dash": "dot"}, connectgaps=False,
                hoverinfo="skip", legendgroup=f"trade {number}", showlegend=False,
            ),
            row=row, col=1,
        )  # fmt: skip


def _add_entries(figure: Figure, row: int, axis: TimeAxis, table: pd.DataFrame, at: Any) -> None:
    long = table["quantity"].to_numpy() > 0
    for side, symbol, colour, name, verb in (
        (True, "triangle-up", _LONG, "entry, long", "bought"),
        (False, "triangle-down", _SHORT, "entry, short", "sold short"),
    ):
        mine = np.flatnonzero((at >= 0) & (long == side))
        rows = table.iloc[mine]
        said = [
            f"{verb} {abs(q):,g} at {p:,.2f}"
            for q, p in zip(rows["quantity"], rows["entry_price"], strict=True)
        ]
        _add_marks(figure, row, axis.labels[at[mine]], rows["entry_price"], said, name,
                   {"symbol": symbol, "color": colour})  # fmt: skip


def _add_exits(
    figure: Figure, row: int, axis: TimeAxis, table: pd.DataFrame, at: Any, outcome: Any
) -> None:
    for number, (name, colour) in enumerate(_OUTCOMES):
        mine = np.flatnonzero((at >= 0) & (outcome == number))
        rows = table.iloc[mine]
        said = [
            f"{'sold' if q > 0 else 'bought back'} {abs(q):,g} at {p:,.2f}: {pnl:+,.2f}"
            for q, p, pnl in zip(rows["quantity"], rows["exit_price"], rows["pnl"], strict=True)
        ]
        _add_marks(figure, row, axis.labels[at[mine]], rows["exit_price"], said, f"exit, {name}",
                   {"symbol": "circle", "color": colour})  # fmt: skip


def _size(marks: int) -> int:
    """Return the pixels of a mark: of many, small ones."""
    return next(size for most, size in _SIZES if marks <= most)


def _add_marks(
    figure: Figure, row: int, x: Any, y: Any, said: list[str], name: str, marker: dict[str, Any]
) -> None:
    from plotly.graph_objects import Scatter

    if not len(x):
        return
    figure.add_trace(
        Scatter(
            x=x, y=np.asarray(y), mode="markers", name=name, text=said,
            hovertemplate="%{text}<extra></extra>",
            marker={"size": _size(len(x)), "line": {"color": "white", "width": 1}, **marker},
            legendgroup=name,
            showlegend=not any(trace.name == name for trace in figure.data),
        ),
        row=row, col=1,
    )  # fmt: skip
