"""A run as one HTML file: it opens from disk, on any machine, without a network.

Plotly's own script is part of the file (some 5 MB); everything else is plain HTML and CSS and a
few lines of script that sort tables. Plotly is imported here and in `chart` only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from algorithms.chart import DATED, ZONE, chart
from algorithms.metrics import METRICS
from algorithms.performance import MONTHS, monthly_returns
from algorithms.rendering import (
    SIMULATED,
    footing,
    metric_text,
    remarks,
    shown_rows,
    span_text,
    value_text,
)
from algorithms.report_style import SCRIPT, STYLE
from algorithms.trades import Trade

if TYPE_CHECKING:
    from algorithms.result import BacktestResult

MAX_ROWS: Final = 2_000
_EXTREMES: Final = 5
_MONTHS: Final = (
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
)
_HEADLINES: Final = ("return", "cagr", "sharpe", "max_drawdown", "volatility", "exposure", "trades",
                     "hit_rate")  # fmt: skip
_PLOT_CONFIG: Final = {"displaylogo": False, "responsive": True, "showSendToCloud": False}


def write_report(result: BacktestResult, path: Path) -> Path:
    """Write the report of `result` to `path`, replacing what is there, and return `path`.

    Raises
    ------
    md.MissingDependencyError
        plotly is not installed; names the pip line.
    """
    figure = chart(result)
    figure.update_layout(title=None, margin_t=72)
    picture = figure.to_html(
        full_html=False, include_plotlyjs=True, div_id="picture", config=_PLOT_CONFIG
    )
    path.write_text(_page(result, picture), encoding="utf-8")
    return path


def _page(result: BacktestResult, picture: str) -> str:
    run = result.run
    columns = _columns(run.timeframe in DATED)
    sections = [
        _head(result),
        _headlines(result.figures),
        _notes(remarks(run)),
        f'<section class="wide">{picture}</section>',
        _figures(result.figures),
        _months(monthly_returns(run.times, run.equity)),
        _extremes(result.trade_list, columns),
        _trades(result.trade_list, columns),
        _facts(result),
    ]
    title = escape(f"{SIMULATED + ' ' if run.simulated else ''}{run.algorithm}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>"
        f"{''.join(sections)}</main><script>{SCRIPT}</script></body></html>"
    )


def _head(result: BacktestResult) -> str:
    run = result.run
    mark = f'<p class="simulated">{SIMULATED} prices: not a market\'s</p>' if run.simulated else ""
    named = ", ".join(run.symbols[:12]) + (" ..." if len(run.symbols) > 12 else "")
    return (
        f"<header>{mark}<h1>{escape(run.algorithm)}</h1>"
        f"<p>{escape(named)} · {escape(run.timeframe)} bars · {escape(span_text(run))}</p></header>"
    )


def _headlines(figures: Mapping[str, float]) -> str:
    cards = []
    for name in _HEADLINES:
        held = f"buy_and_hold_{name}"
        beside = f"buy and hold {metric_text(held, figures)}" if held in figures else "&nbsp;"
        cards.append(
            f"<div><span>{escape(METRICS[name].label)}</span>"
            f'<b class="{_sign(name, figures)}">{metric_text(name, figures)}</b>'
            f"<small>{beside}</small></div>"
        )
    return f'<section class="cards">{"".join(cards)}</section>'


def _sign(name: str, figures: Mapping[str, float]) -> str:
    if METRICS[name].unit != "return" or name == "max_drawdown":
        return ""
    return "won" if figures[name] > 0 else "lost" if figures[name] < 0 else ""


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in notes)
    return f'<section class="notes"><h2>Notes</h2><ul>{items}</ul></section>'


def _figures(figures: Mapping[str, float]) -> str:
    curves, trades = shown_rows(figures)
    left = "".join(
        f"<tr><th>{escape(label)}</th><td>{ours}</td><td>{held}</td></tr>"
        for label, ours, held in curves
    )
    right = "".join(f"<tr><th>{escape(label)}</th><td>{value}</td></tr>" for label, value in trades)
    return (
        '<section><h2>Figures</h2><div class="pair"><table class="figures"><thead><tr><td></td>'
        f"<td>strategy</td><td>buy and hold</td></tr></thead><tbody>{left}</tbody></table>"
        f'<table class="figures"><thead><tr><td></td><td>&nbsp;</td></tr></thead>'
        f"<tbody>{right}</tbody></table></div></section>"
    )


def _months(found: Mapping[tuple[int, int], float]) -> str:
    if not found:
        return ""
    strongest = max([abs(v) for v in found.values() if np.isfinite(v)], default=0.0) or 1.0
    rows = []
    for year in sorted({year for year, _ in found}, reverse=True):
        own = [found.get((year, month)) for month in range(1, 13)]
        whole = float(np.prod([1 + v for v in own if v is not None])) - 1
        cells = "".join(_month_cell(v, strongest) for v in own)
        rows.append(f"<tr><th>{year}</th>{cells}<td class='sum'>{_percent(whole)}</td></tr>")
    names = "".join(f"<td>{name}</td>" for name in MONTHS)
    return (
        '<section><h2>Returns by month</h2><div class="scroll"><table class="months"><thead><tr>'
        f"<td></td>{names}<td>year</td></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        "<p class='note'>In percent; the first and the last month are what there was of them."
        "</p></section>"
    )


def _month_cell(value: float | None, strongest: float) -> str:
    if value is None or not np.isfinite(value):
        return "<td></td>"
    hue = "0,137,123" if value > 0 else "209,73,91"
    shade = 0.08 + 0.62 * abs(value) / strongest if value else 0.0
    return f"<td style='background:rgba({hue},{shade:.2f})'>{_percent(value)}</td>"


def _percent(value: float) -> str:
    return f"{value * 100:.1f}" if round(value, 3) else "0.0"


# ---------------------------------------------------------------------------------- trades

Cell = tuple[str, float | str]
Columns = tuple[tuple[str, Callable[[Trade], Cell]], ...]


def _columns(dates_only: bool) -> Columns:
    """Return heading, and text and sorting value of a trade, of each column."""

    def clock(time: int | None) -> Cell:
        if time is None:
            return "open", 1e18
        local = pd.Timestamp(time, unit="us", tz="UTC").tz_convert(ZONE)
        return local.strftime("%Y-%m-%d" if dates_only else "%Y-%m-%d %H:%M"), time

    return (
        ("symbol", lambda t: (escape(t.symbol), escape(t.symbol))),
        ("shares", lambda t: (f"{t.quantity:,g}", t.quantity)),
        ("entry", lambda t: clock(t.entry_time)),
        ("exit", lambda t: clock(t.exit_time)),
        ("at", lambda t: (f"{t.entry_price:,.2f}", t.entry_price)),
        ("out at", lambda t: (f"{t.exit_price:,.2f}", t.exit_price)),
        ("gain", lambda t: (f"{t.pnl:+,.2f}", t.pnl)),
        ("return", lambda t: (value_text(t.return_on_entry, "return"), t.return_on_entry)),
        ("fees", lambda t: (f"{t.fees:,.2f}", t.fees)),
        ("dividends", lambda t: (f"{t.dividends:,.2f}", t.dividends)),
        ("tags", lambda t: (escape(_tags(t)), escape(_tags(t)))),
    )


def _tags(trade: Trade) -> str:
    return " / ".join(tag for tag in (trade.entry_tag, trade.exit_tag) if tag)


def _extremes(trades: Sequence[Trade], columns: Columns) -> str:
    closed = sorted((t for t in trades if t.closed), key=lambda t: t.pnl)
    parts = (
        ("Best trades", [t for t in reversed(closed) if t.pnl > 0][:_EXTREMES]),
        ("Worst trades", [t for t in closed if t.pnl < 0][:_EXTREMES]),
    )
    return "".join(
        f'<section><h2>{title}</h2><div class="scroll">{_table(part, columns)}</div></section>'
        for title, part in parts
        if part
    )


def _trades(trades: Sequence[Trade], columns: Columns) -> str:
    if not trades:
        return "<section><h2>Trades</h2><p>None.</p></section>"
    note = "Shares are matched first in, first out; times are New York's; gain is after fees, with dividends."
    if len(trades) > MAX_ROWS:
        note += f" The {MAX_ROWS:,} largest of {len(trades):,}: `result.trades` has all."
        kept = sorted(trades, key=lambda t: -abs(t.pnl))[:MAX_ROWS]
        trades = sorted(kept, key=lambda t: t.entry_time)
    return (
        f"<section><details{' open' if len(trades) <= 60 else ''}><summary><h2>All trades</h2>"
        f"</summary><p class='note'>{note} Click a heading to sort.</p>"
        f'<div class="scroll">{_table(trades, columns, "sortable")}</div></details></section>'
    )


def _table(trades: Iterable[Trade], columns: Columns, kind: str = "") -> str:
    heads = "".join(f"<th>{name}</th>" for name, _ in columns)
    rows = "".join(
        f"<tr class='{'won' if t.pnl > 0 else 'lost' if t.pnl < 0 else ''}'>{_cells(t, columns)}</tr>"
        for t in trades
    )
    return (
        f'<table class="trades {kind}"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    )


def _cells(trade: Trade, columns: Columns) -> str:
    read = (column(trade) for _, column in columns)
    return "".join(f'<td data-v="{value}">{text}</td>' for text, value in read)


# ----------------------------------------------------------------------------------- facts


def _facts(result: BacktestResult) -> str:
    run = result.run
    known: list[tuple[str, Any]] = [
        ("cash at the start", f"{run.cash:,.2f}"),
        ("symbols", ", ".join(run.symbols)),
        ("orders", _order_counts(result)),
        ("run", footing(run)),
        ("data fingerprint", run.fingerprint or "-"),
    ]
    parts = (
        ("Parameters", list(run.params.items())),
        ("Costs and settings", [
            *run.settings.items(),
            ("fees paid", metric_text("fees", result.figures)),
            ("dividends received", metric_text("dividends", result.figures)),
        ]),
        ("Run", known),
    )  # fmt: skip
    tables = "".join(
        f'<div><h2>{title}</h2><table class="figures">'
        + "".join(
            f"<tr><th>{escape(str(name))}</th><td class='text'>{escape(str(value))}</td></tr>"
            for name, value in rows
        )
        + "</table></div>"
        for title, rows in parts
        if rows
    )
    return f'<section class="facts">{tables}</section>'


def _order_counts(result: BacktestResult) -> str:
    counts = Counter(str(order.state) for order in result.run.orders)
    return ", ".join(f"{n:,} {state}" for state, n in counts.most_common()) or "none"
