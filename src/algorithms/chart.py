"""The picture of a run: account, drawdown, price with trades, exposure, as a plotly figure.

Lines keep some thousands of points and all their extremes. Of very many trades the largest gains
and losses are drawn. Prices are drawn on the share basis of the end, so that a split is no crash.
Plotly is imported here and in `report` only, when a picture is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

import marketdata as md
from algorithms import performance
from algorithms.rendering import BENCHMARK_COLOUR, SIMULATED, STRATEGY_COLOUR, metric_text, thinned
from algorithms.run_record import BacktestRun, Floats, Instants
from algorithms.trades import Trade

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from algorithms.result import BacktestResult

MAX_POINTS: Final = 3_000
MAX_TRADES: Final = 1_000
MAX_SYMBOLS: Final = 8
_FEW_SESSIONS: Final = 30

ZONE: Final = "America/New_York"  # of every exchange served
DATED: Final = ("1day", "1week", "1month")  # timeframes whose moments are read as dates
_WON, _LOST, _MUTED, _WARNING = "#00897b", "#d1495b", "#5f6b7a", "#b3261e"
# The last one uploads the figure to a server of plotly's.
_BUTTONS_LEFT_OUT = ("zoomin", "zoomout", "lasso", "select", "autoscale", "sendcharttocloud")
_ACCOUNT, _DRAWDOWN, _PRICE, _EXPOSURE = 1, 2, 3, 4
_HEIGHTS: Final = (0.36, 0.14, 0.36, 0.14)


def chart(
    result: BacktestResult,
    *,
    symbols: str | Sequence[str] | None = None,
    log: bool = False,
) -> Figure:
    """Draw a result; see `BacktestResult.plot`.

    Raises
    ------
    md.MissingDependencyError
        plotly is not installed; names the pip line.
    md.RequestError
        A symbol that the run does not have.
    """
    try:
        from plotly.subplots import make_subplots
    except ImportError:
        raise md.MissingDependencyError(
            "plotting needs plotly, which is not installed", cure="pip install 'marketdata[plot]'"
        ) from None
    run = result.run
    drawn = _drawn_symbols(run, symbols)
    figure = make_subplots(
        rows=4, cols=1, shared_xaxes=True, vertical_spacing=0.052, row_heights=list(_HEIGHTS)
    )
    axis = _TimeAxis(run)
    _add_account(figure, run, axis)
    _add_drawdown(figure, run, axis)
    notes = _add_prices(figure, run, result.trade_list, drawn, axis)
    _add_exposure(figure, run, axis)
    _dress(figure, result, notes + axis.notes, log)
    axis.apply(figure)
    return figure


def _drawn_symbols(run: BacktestRun, asked: str | Sequence[str] | None) -> list[str]:
    """Return the symbols asked for, or those with the most traded money."""
    if asked is not None:
        wanted = [asked] if isinstance(asked, str) else list(asked)
        unknown = [s for s in wanted if s not in run.closes]
        if unknown:
            raise md.RequestError(
                f"the run has no {', '.join(unknown)}", cure=f"one of: {', '.join(run.symbols)}"
            )
        return wanted
    traded = dict.fromkeys(run.symbols, 0.0)
    for fill in run.fills:
        traded[fill.symbol] = traded.get(fill.symbol, 0.0) + abs(fill.quantity * fill.price)
    return sorted(traded, key=lambda s: -traded[s])[:MAX_SYMBOLS]


# ------------------------------------------------------------------------------- the panels


def _add_account(figure: Figure, run: BacktestRun, axis: _TimeAxis) -> None:
    for name, values, colour, width in (
        ("buy and hold", run.buy_and_hold, BENCHMARK_COLOUR, 1.5),
        ("strategy", run.equity, STRATEGY_COLOUR, 2),
    ):
        if np.isfinite(values).any():
            _line(figure, axis, values, _ACCOUNT, name, colour, width, "%{y:,.0f}")


def _add_drawdown(figure: Figure, run: BacktestRun, axis: _TimeAxis) -> None:
    below = performance.drawdown(run.equity)
    _line(
        figure, axis, below, _DRAWDOWN, "drawdown", _LOST, 1, "%{y:.2%}",
        fill="tozeroy", fillcolor="rgba(209,73,91,0.18)", showlegend=False,
    )  # fmt: skip


def _add_exposure(figure: Figure, run: BacktestRun, axis: _TimeAxis) -> None:
    """What is held long above the line, short below it, over the equity."""
    equity = np.where(run.equity > 0, run.equity, np.nan)
    long, short = np.zeros(len(equity)), np.zeros(len(equity))
    for symbol, shares in run.positions.items():
        value = np.where(shares != 0, shares * run.closes[symbol], 0.0)
        long += np.maximum(value, 0.0)
        short += np.minimum(value, 0.0)
    for name, values, colour, area in (
        ("long", long, STRATEGY_COLOUR, "rgba(31,95,168,0.20)"),
        ("short", short, _LOST, "rgba(209,73,91,0.20)"),
    ):
        if name == "long" or values.any():
            _line(
                figure, axis, values / equity, _EXPOSURE, name, colour, 0.8, "%{y:.0%}",
                fill="tozeroy", fillcolor=area, showlegend=False, line_shape="hv",
            )  # fmt: skip


def _line(
    figure: Figure,
    axis: _TimeAxis,
    values: Floats,
    row: int,
    name: str,
    colour: str,
    width: float,
    hover: str,
    **more: Any,
) -> None:
    from plotly.graph_objects import Scatter

    kept = thinned(values, MAX_POINTS)
    figure.add_trace(
        Scatter(
            x=axis.labels[kept], y=values[kept], name=name, mode="lines",
            line={"color": colour, "width": width, "shape": more.pop("line_shape", "linear")},
            hovertemplate=f"{name} {hover}<extra></extra>", **more,
        ),
        row=row, col=1,
    )  # fmt: skip


# ------------------------------------------------------------------------- price and trades


def _add_prices(
    figure: Figure,
    run: BacktestRun,
    trades: Sequence[Trade],
    symbols: Sequence[str],
    axis: _TimeAxis,
) -> list[str]:
    """Add each symbol's price and trades, the first one shown; a menu shows the others."""
    notes: list[str] = []
    owners: list[str | None] = [None] * len(figure.data)
    for symbol in symbols:
        _add_symbol(figure, run, trades, symbol, axis, notes)
        owners += [symbol] * (len(figure.data) - len(owners))
    for trace, owner in zip(figure.data, owners, strict=True):
        if owner is not None and owner != symbols[0]:
            trace.visible = False
    if len(symbols) > 1:
        figure.layout.updatemenus = [_menu(figure, symbols, owners)]
    elif symbols:
        figure.update_yaxes(title_text=symbols[0], row=_PRICE, col=1)
    return list(dict.fromkeys(notes))


def _add_symbol(
    figure: Figure,
    run: BacktestRun,
    trades: Sequence[Trade],
    symbol: str,
    axis: _TimeAxis,
    notes: list[str],
) -> None:
    splits = [(a.time, a.ratio) for a in run.actions if a.symbol == symbol and a.ratio != 1.0]
    closes = run.closes[symbol] / _later_splits(splits, run.times)
    if splits:
        notes.append("prices adjusted for splits")
    _line(figure, axis, closes, _PRICE, symbol, "#7a8694", 1.2, "%{y:,.2f}", showlegend=False)
    own = [t for t in trades if t.symbol == symbol]
    if len(own) > MAX_TRADES:
        notes.append(f"the {MAX_TRADES:,} largest of {len(own):,} trades of {symbol}")
        own = sorted(own, key=lambda t: -abs(t.pnl))[:MAX_TRADES]
    size = 10 if len(own) < 60 else 8 if len(own) < 240 else 6
    parts = [
        _Part([t for t in own if (t.pnl >= 0) == won], colour, size, splits, axis)
        for won, colour in ((True, _WON), (False, _LOST))
    ]
    # A position that turns ends and begins in one place: the entry's triangle lies on the dot.
    for draw in (_paths, _exits, _entries):
        for part in parts:
            if part.trades:
                figure.add_trace(draw(part), row=_PRICE, col=1)


class _Part:
    """Trades of one colour, and where on the figure they begin and end."""

    def __init__(
        self,
        trades: Sequence[Trade],
        colour: str,
        size: int,
        splits: Sequence[tuple[int, float]],
        axis: _TimeAxis,
    ) -> None:
        self.trades = trades
        self.colour = colour
        self.size = size
        exit_times = np.array([t.exit_time or axis.last for t in trades], np.int64)
        basis = _later_splits(splits, exit_times)
        self.starts = axis.at(np.array([t.entry_time for t in trades], np.int64))
        self.ends = axis.at(exit_times)
        self.entries = np.array([t.entry_price for t in trades]) / basis
        self.exits = np.array([t.exit_price for t in trades]) / basis
        self.told = [_told(t) for t in trades]


def _told(trade: Trade) -> str:
    side = "long" if trade.quantity > 0 else "short"
    end = "out at" if trade.closed else "now"
    return (
        f"{side} {abs(trade.quantity):,g} at {trade.entry_price:,.2f}, "
        f"{end} {trade.exit_price:,.2f}: {trade.pnl:+,.2f}"
    )


def _paths(part: _Part) -> Any:
    """Return a line from each entry to its exit."""
    from plotly.graph_objects import Scatter

    count = len(part.trades)
    x = np.full(3 * count, np.datetime64("NaT"), "datetime64[us]")
    y = np.full(3 * count, np.nan)
    x[0::3], x[1::3] = part.starts, part.ends
    y[0::3], y[1::3] = part.entries, part.exits
    return Scatter(
        x=x, y=y, mode="lines", hoverinfo="skip", showlegend=False, connectgaps=False,
        line={"color": part.colour, "width": 1.5, "dash": "dot"},
    )  # fmt: skip


def _exits(part: _Part) -> Any:
    """Return a dot for each end; open trades have none."""
    closed = np.array([t.closed for t in part.trades])
    texts = [text for text, done in zip(part.told, closed.tolist(), strict=True) if done]
    return _marks(part, part.ends[closed], part.exits[closed], texts, "circle", -2)


def _entries(part: _Part) -> Any:
    """Return a triangle for each begin, up for a long and down for a short one."""
    shapes = ["triangle-up" if t.quantity > 0 else "triangle-down" for t in part.trades]
    return _marks(part, part.starts, part.entries, part.told, shapes, 0)


def _marks(part: _Part, x: Any, y: Floats, texts: list[str], shape: Any, larger: int) -> Any:
    from plotly.graph_objects import Scatter

    return Scatter(
        x=x, y=y, mode="markers", showlegend=False, text=texts,
        hovertemplate="%{text}<extra></extra>",
        marker={"symbol": shape, "size": part.size + larger, "color": part.colour,
                "line": {"color": "white", "width": int(part.size > 6)}},
    )  # fmt: skip


def _later_splits(splits: Sequence[tuple[int, float]], times: Instants) -> Floats:
    """Return the product of the ratios of the splits after each time."""
    product = np.ones(len(times))
    for time, ratio in splits:
        product[times < time] *= ratio
    return product


def _menu(figure: Figure, symbols: Sequence[str], owners: Sequence[str | None]) -> dict[str, Any]:
    top = figure.layout[f"yaxis{_PRICE}"].domain[1]
    buttons = [
        {
            "label": symbol,
            "method": "restyle",
            "args": [{"visible": [o == symbol for o in owners if o]},
                     [n for n, o in enumerate(owners) if o]],
        }
        for symbol in symbols
    ]  # fmt: skip
    return {
        "buttons": buttons, "type": "dropdown", "x": 0, "xanchor": "left", "y": top + 0.003,
        "yanchor": "bottom", "bgcolor": "white", "bordercolor": "#c9ced6", "pad": {"t": 0, "r": 0},
        "font": {"size": 11},
    }  # fmt: skip


# ------------------------------------------------------------------------------ time, words


class _TimeAxis:
    """Moments as the exchange's wall clock; days where bars are daily or longer."""

    def __init__(self, run: BacktestRun) -> None:
        self._dates_only = run.timeframe in DATED
        self.last = int(run.times[-1]) if len(run.times) else 0
        self.labels = self.at(run.times)

    def at(self, times: Instants) -> Any:
        stamps = pd.DatetimeIndex(np.asarray(times, np.int64).view("datetime64[us]"))
        local = stamps.tz_localize("UTC").tz_convert(ZONE).tz_localize(None)
        return (local.normalize() if self._dates_only else local).to_numpy()

    @property
    def notes(self) -> list[str]:
        return [] if self._dates_only else ["New York time"]

    def apply(self, figure: Figure) -> None:
        figure.update_xaxes(type="date", showgrid=False, ticks="outside", ticklen=4,
                            tickcolor="#c9ced6")  # fmt: skip
        if len(self.labels) > 1:
            figure.update_xaxes(range=[str(self.labels[0]), str(self.labels[-1])])
        breaks = self._closed_hours()
        if breaks:
            figure.update_xaxes(rangebreaks=breaks)

    def _closed_hours(self) -> list[dict[str, Any]]:
        """Of a few sessions of bars, nights and weekends would be most of the picture."""
        if self._dates_only or len(self.labels) < 2:
            return []
        days = np.unique(self.labels.astype("datetime64[D]"))
        if len(days) > _FEW_SESSIONS or len(days) < 2:
            return []
        hours = (self.labels - self.labels.astype("datetime64[D]")) / np.timedelta64(1, "h")
        nights = {"bounds": [float(hours.max()), float(hours.min())], "pattern": "hour"}
        every = np.arange(days[0], days[-1])
        closed = np.setdiff1d(every[np.is_busday(every)], days)
        holidays = {"values": [str(d) for d in closed]}
        return [{"bounds": ["sat", "mon"]}, nights, *([holidays] if len(closed) else [])]


def _dress(figure: Figure, result: BacktestResult, notes: list[str], log: bool) -> None:
    run, figures = result.run, result.figures
    named = ", ".join(run.symbols if len(run.symbols) < 4 else run.symbols[:2])
    if len(run.symbols) > 3:
        named += f" and {len(run.symbols) - 2} more"
    mark = f'<span style="color:{_WARNING}"><b>{SIMULATED}</b></span>  ' if run.simulated else ""
    said = [
        f"return {metric_text('return', figures)} "
        f"(buy and hold {metric_text('buy_and_hold_return', figures)})",
        f"Sharpe {metric_text('sharpe', figures)}",
        f"max drawdown {metric_text('max_drawdown', figures)}",
        f"{metric_text('trades', figures)} trades",
    ]
    subtitle = " · ".join(said) + (f"<br>{' · '.join(notes)}" if notes else "")
    scales = {
        "type": "buttons", "direction": "right", "x": 1, "xanchor": "right", "y": 1.005,
        "yanchor": "bottom", "pad": {"t": 0, "r": 0}, "active": int(log), "font": {"size": 11},
        "bgcolor": "white", "bordercolor": "#c9ced6", "showactive": True,
        "buttons": [
            {"label": text, "method": "relayout", "args": [{"yaxis.type": kind}]}
            for text, kind in (("linear", "linear"), ("log", "log"))
        ],
    }  # fmt: skip
    figure.update_layout(
        template="plotly_white",
        height=860,
        title={
            "text": f"{mark}<b>{run.algorithm}</b> on {named}, {run.timeframe} bars",
            "subtitle": {"text": subtitle, "font": {"color": _MUTED, "size": 12}},
            "font": {"size": 16}, "x": 0.01, "xanchor": "left", "y": 0.985, "yanchor": "top",
        },
        font={"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 12},
        legend={"orientation": "h", "x": 0, "y": 1.005, "yanchor": "bottom"},
        hovermode="x unified",
        modebar={"remove": _BUTTONS_LEFT_OUT},
        margin={"l": 68, "r": 18, "t": 122 if notes else 104, "b": 40},
    )  # fmt: skip
    # By assignment: an update would merge the lists element by element.
    figure.layout.updatemenus = [*figure.layout.updatemenus, scales]
    figure.update_yaxes(gridcolor="#eceff2", zerolinecolor="#c9ced6", nticks=6)
    figure.update_yaxes(title_text="account", type="log" if log else "linear", row=_ACCOUNT, col=1)
    figure.update_yaxes(title_text="drawdown", tickformat=".1~%", nticks=4, row=_DRAWDOWN, col=1)
    figure.update_yaxes(title_text="exposure", tickformat=".1~%", nticks=4, row=_EXPOSURE, col=1)
