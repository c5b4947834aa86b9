"""Pictures of sweeps: a metric over two parameters, and a walk-forward analysis, with plotly.

Plotly is an extra and is imported when a picture is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

import marketdata as md
from algorithms.metrics import METRICS
from algorithms.rendering import BENCHMARK_COLOUR, SIMULATED, STRATEGY_COLOUR, value_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from algorithms.sweep_result import SweepResult
    from algorithms.walk_forward_result import WalkForwardResult

AGGREGATES: Final = ("max", "median", "mean", "min")
_MUTED, _WARNING, _MARK = "#5f6b7a", "#b3261e", "#111111"
_CROWDED: Final = 12
"""Windows above which nothing is written into each."""
_NAMED: Final = 4
_LINE_PIXELS: Final = 13
_ACCOUNT_PIXELS: Final = 290
_FONT: Final = {"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 12}
# The last one uploads the figure to a server of plotly's.
_BUTTONS_LEFT_OUT: Final = ("zoomin", "zoomout", "lasso", "select", "autoscale", "sendcharttocloud")
_TOLD: Final = ("return", "sharpe", "max_drawdown", "trades")
_TEXT_CELLS: Final = 150


def heatmap(
    result: SweepResult, x: str | None, y: str | None, metric: str | None, aggregate: str
) -> Figure:
    """Draw a metric over two parameters; see `SweepResult.heatmap`.

    Raises
    ------
    md.MissingDependencyError
        plotly is not installed; names the pip line.
    md.RequestError
        A parameter, a metric or an aggregate that there is not.
    """
    go = _plotly()
    metric = metric or result.metric
    if metric not in result.frame.columns or metric == "error":
        raise md.RequestError(
            f"the sweep has no metric {metric!r}",
            cure="one of: " + ", ".join(result.frame.columns.drop("error")),
        )
    if aggregate not in AGGREGATES:
        raise md.RequestError(f"aggregate={aggregate!r}", cure="one of: " + ", ".join(AGGREGATES))
    across, down = _axes(result, x, y)
    figure = go.Figure()
    if down is None:
        _line(figure, result, across, metric, aggregate)
    else:
        _cells(figure, result, across, down, metric, aggregate)
    _dress(figure, result, metric, aggregate, _others(result, across, down))
    return figure


def _axes(result: SweepResult, x: str | None, y: str | None) -> tuple[str, str | None]:
    """Return the parameters to draw over: those asked for, else the first that vary."""
    for name in (x, y):
        if name is not None and name not in result.parameters:
            raise md.RequestError(
                f"{name!r} was not swept", cure="one of: " + ", ".join(result.parameters)
            )
    varying = [n for n in result.parameters if result.frame[n].nunique() > 1 and n not in (x, y)]
    rest = [*varying, *(n for n in result.parameters if n not in (x, y, *varying))]
    across = x or rest.pop(0)
    if y is None and rest and rest[0] in varying:
        y = rest[0]
    if y == across:
        raise md.RequestError(f"{y!r} on both axes", cure="give two parameters")
    return across, y


def _others(result: SweepResult, across: str, down: str | None) -> list[str]:
    return [
        name
        for name in result.parameters
        if name not in (across, down) and result.frame[name].nunique() > 1
    ]


def _grouped(result: SweepResult, names: list[str], metric: str, aggregate: str) -> pd.DataFrame:
    """Return one row a cell: its value, how many points it has, and its best point's row."""
    frame = result.frame
    groups = frame.groupby(names, sort=True, dropna=False)
    table = pd.DataFrame({"value": groups[metric].agg(aggregate), "points": groups.size()})
    table["failed"] = groups["error"].agg(lambda errors: int((errors != "").sum()))
    best = frame[metric].where(frame[metric].notna(), -math.inf)
    table["best"] = best.groupby([frame[name] for name in names], sort=True, dropna=False).idxmax()
    return table.reset_index()


def _told(result: SweepResult, cell: Any, names: Sequence[str], metric: str, aggregate: str) -> str:
    """Return what the tooltip of a cell says."""
    row = result.frame.loc[cell["best"]]
    several = cell["points"] > 1
    told = [f"<b>{', '.join(f'{name} {escape(str(cell[name]))}' for name in names)}</b>"]
    if math.isnan(cell["value"]):
        failed = escape(row["error"][:90]) if cell["failed"] else f"no {metric}"
        return "<br>".join([*told, failed])
    label = f"{aggregate} of {cell['points']} points: " if several else ""
    told.append(f"{metric} {label}<b>{_text(metric, cell['value'])}</b>")
    if several:
        others = [name for name in result.parameters if name not in names]
        told.append("best with " + ", ".join(f"{name} {row[name]}" for name in others) + ":")
    told += [
        f"{METRICS[name].label.lower()} {_text(name, row[name])}"
        for name in _TOLD
        if name != metric
    ]
    if cell["failed"]:
        told.append(f"{cell['failed']} failed")
    return "<br>".join(told)


def _cells(
    figure: Figure, result: SweepResult, across: str, down: str, metric: str, aggregate: str
) -> None:
    from plotly.graph_objects import Heatmap

    table = _grouped(result, [down, across], metric, aggregate)
    columns = sorted(table[across].unique().tolist())
    rows = sorted(table[down].unique().tolist())
    values = np.full((len(rows), len(columns)), np.nan)
    told = np.array(
        [[f"<b>{across} {x}, {down} {y}</b><br>not tried" for x in columns] for y in rows],
        dtype=object,
    )
    for cell in table.to_dict("records"):
        place = rows.index(cell[down]), columns.index(cell[across])
        values[place] = cell["value"]
        told[place] = _told(result, cell, [across, down], metric, aggregate)
    signed = np.nanmin(values) < 0 < np.nanmax(values) if np.isfinite(values).any() else False
    few = values.size <= _TEXT_CELLS
    figure.add_trace(
        Heatmap(
            x=[str(value) for value in columns], y=[str(value) for value in rows], z=values,
            text=[[_text(metric, v) if few and math.isfinite(v) else "" for v in row]
                  for row in values.tolist()],
            texttemplate="%{text}" if few else None,
            customdata=told, hovertemplate="%{customdata}<extra></extra>", hoverongaps=True,
            colorscale="RdBu" if signed else "Blues", zmid=0 if signed else None,
            colorbar={"title": {"text": metric}, "thickness": 14, "outlinewidth": 0,
                      "tickformat": _tick(metric)},
            xgap=1 if few else 0, ygap=1 if few else 0,
        )
    )  # fmt: skip
    if np.isfinite(values).any():
        row, column = np.unravel_index(int(np.nanargmax(values)), values.shape)
        figure.add_shape(
            type="rect", x0=int(column) - 0.5, x1=int(column) + 0.5, y0=int(row) - 0.5,
            y1=int(row) + 0.5, line={"color": _MARK, "width": 2},
        )  # fmt: skip
    figure.update_xaxes(type="category", title_text=across, showgrid=False)
    figure.update_yaxes(type="category", title_text=down, showgrid=False)
    figure.update_layout(height=max(420, min(900, 170 + 26 * len(rows))))


def _line(figure: Figure, result: SweepResult, across: str, metric: str, aggregate: str) -> None:
    from plotly.graph_objects import Scatter

    table = _grouped(result, [across], metric, aggregate)
    cells = table.to_dict("records")
    told = [_told(result, cell, [across], metric, aggregate) for cell in cells]
    numeric = pd.api.types.is_numeric_dtype(table[across]) and table[across].dtype != bool
    figure.add_trace(
        Scatter(
            x=table[across] if numeric else table[across].astype(str), y=table["value"],
            mode="lines+markers", customdata=told, hovertemplate="%{customdata}<extra></extra>",
            line={"color": STRATEGY_COLOUR, "width": 2}, showlegend=False,
        )
    )  # fmt: skip
    figure.update_xaxes(title_text=across, showgrid=False)
    figure.update_yaxes(title_text=metric, tickformat=_tick(metric), gridcolor="#eceff2")
    figure.update_layout(height=420)


def _dress(
    figure: Figure, result: SweepResult, metric: str, aggregate: str, others: list[str]
) -> None:
    said = [f"{metric} of {result.tried:,} points tried"]
    if others:
        said.append(f"each cell the {aggregate} over {', '.join(others)}")
    if result.frame[metric].notna().any():
        best = result.best(metric)
        named = ", ".join(f"{name} {best[name]}" for name in result.parameters)
        said.append(f"best {_text(metric, best[metric])} at {named}")
    if len(result.failed):
        said.append(f"{len(result.failed):,} failed")
    figure.update_layout(**_layout(result.title, result.simulated, " · ".join(said)))


def _layout(title: str, simulated: bool, subtitle: str) -> dict[str, Any]:
    mark = f'<span style="color:{_WARNING}"><b>{SIMULATED}</b></span>  ' if simulated else ""
    return {
        "template": "plotly_white",
        "title": {
            "text": f"{mark}<b>{title}</b>",
            "subtitle": {"text": subtitle, "font": {"color": _MUTED, "size": 12}},
            "x": 0.01, "xanchor": "left", "y": 0.97, "yanchor": "top",
        },
        "font": _FONT,
        "modebar": {"remove": _BUTTONS_LEFT_OUT},
        "margin": {"l": 70, "r": 20, "t": 84, "b": 56},
    }  # fmt: skip


# ------------------------------------------------------------------------------ walk-forward


def walk_forward_chart(result: WalkForwardResult) -> Figure:
    """Draw a walk-forward analysis; see `WalkForwardResult.plot`.

    Raises
    ------
    md.MissingDependencyError
        plotly is not installed; names the pip line.
    """
    go = _plotly()
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=1, vertical_spacing=0.14, row_heights=[0.62, 0.38])
    run = result.result.run
    dates = pd.DatetimeIndex(run.times.view("datetime64[us]")).to_numpy()
    for name, values, colour, width in (
        ("buy and hold", run.buy_and_hold, BENCHMARK_COLOUR, 1.5),
        ("tests, one after the other", run.equity, STRATEGY_COLOUR, 2),
    ):
        figure.add_trace(
            go.Scatter(x=dates, y=values, name=name, mode="lines", legend="legend",
                       line={"color": colour, "width": width}, hovertemplate="%{y:,.0f}"),
            row=1, col=1,
        )  # fmt: skip
    _shade(figure, result)
    _promised(figure, result)
    figures = result.result.figures
    said = [
        f"{len(result.windows)} windows, {result.tried:,} runs to choose from",
        f"return {_text('return', figures['return'])} "
        f"(buy and hold {_text('return', figures['buy_and_hold_return'])})",
        f"Sharpe {_text('sharpe', figures['sharpe'])}",
    ]
    if math.isfinite(result.efficiency):
        said.append(f"walk-forward efficiency {result.efficiency:.2f}")
    figure.update_layout(
        **_layout(f"Walk-forward: {result.title}", result.sweeps[0].simulated, " · ".join(said))
    )
    figure.update_layout(
        height=720,
        hovermode="x unified",
        barmode="group",
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        margin={"l": 70, "r": 20, "t": 116, "b": 56},
        legend2={"orientation": "h", "x": 0, "y": 0.335, "yanchor": "bottom"},
    )
    figure.update_yaxes(gridcolor="#eceff2", zerolinecolor="#c9ced6")
    figure.update_yaxes(title_text="account", range=_with_headroom(result), row=1, col=1)
    figure.update_yaxes(title_text=result.metric, tickformat=_tick(result.metric), row=2, col=1)
    figure.update_xaxes(showgrid=False)
    return figure


def _shade(figure: Figure, result: WalkForwardResult) -> None:
    """Shade every other test, and say above each what it was traded with."""
    windows = result.windows
    crowded = len(windows) > _CROWDED
    for number, window in windows.iterrows():
        first = window["test_start"]
        last = window["test_end"] + pd.Timedelta(days=1)
        if int(number) % 2 == 0:  # type: ignore[call-overload]
            figure.add_vrect(x0=first, x1=last, fillcolor="#f1f4f8", line_width=0, layer="below",
                             row=1, col=1)  # fmt: skip
        if not crowded:
            figure.add_annotation(
                x=first + (last - first) / 2, y=1, yref="y domain", yanchor="top", showarrow=False,
                text="<br>".join(_chosen(result, window)), font={"size": 10, "color": _MUTED},
                row=1, col=1,
            )  # fmt: skip


def _with_headroom(result: WalkForwardResult) -> list[float] | None:
    """Return the range of the account's axis that leaves the words above it free."""
    run = result.result.run
    values = np.concatenate([run.equity, run.buy_and_hold])
    values = values[np.isfinite(values)]
    if not len(values) or len(result.windows) > _CROWDED:
        return None
    low, high = float(values.min()), float(values.max())
    lines = min(len(result.parameters), _NAMED)
    taken = (lines * _LINE_PIXELS + 8) / _ACCOUNT_PIXELS
    return [low - 0.05 * (high - low), low + (high - low) / (1 - taken)]


def _chosen(result: WalkForwardResult, window: Any) -> list[str]:
    if window[result.parameters[0]] is None:
        return ["not traded"]
    return [f"{name} {window[name]}" for name in result.parameters[:_NAMED]]


def _promised(figure: Figure, result: WalkForwardResult) -> None:
    from plotly.graph_objects import Bar

    windows = result.windows
    labels = [str(number) for number in windows.index]
    told = [", ".join(_chosen(result, window)) for _, window in windows.iterrows()]
    form = _tick(result.metric)
    for name, column, colour in (
        ("before (chosen on)", "in_sample", BENCHMARK_COLOUR),
        ("in test", "out_of_sample", STRATEGY_COLOUR),
    ):
        figure.add_trace(
            Bar(x=labels, y=windows[column], name=name, marker={"color": colour}, legend="legend2",
                customdata=told, hovertemplate=f"%{{y:{form}}} (%{{customdata}})"),
            row=2, col=1,
        )  # fmt: skip
    figure.update_xaxes(title_text="window", type="category", row=2, col=1)


# ------------------------------------------------------------------------------------ words


def _plotly() -> Any:
    try:
        import plotly.graph_objects as go
    except ImportError:
        raise md.MissingDependencyError(
            "plotting needs plotly, which is not installed", cure="pip install 'marketdata[plot]'"
        ) from None
    return go


def _text(metric: str, value: float) -> str:
    return value_text(float(value), METRICS[metric].unit if metric in METRICS else "ratio")


def _tick(metric: str) -> str:
    unit = METRICS[metric].unit if metric in METRICS else "ratio"
    return {"return": ".1%", "fraction": ".1%", "ratio": ".2f"}.get(unit, ",.0f")
