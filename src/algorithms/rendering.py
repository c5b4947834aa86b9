"""Figures as text: numbers with their units, the table a terminal shows, a line as a small SVG. Pure.

A dash stands for what is not defined.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

import numpy as np

from algorithms.metrics import METRICS, Unit
from algorithms.performance import YEAR, exchange_days
from algorithms.run_record import BacktestRun, Floats

UNDEFINED: Final = "-"
SIMULATED: Final = "SIMULATED"
STRATEGY_COLOUR: Final = "#1f5fa8"
BENCHMARK_COLOUR: Final = "#9aa3ad"

_A_YEAR: Final = 0.99 * YEAR  # from the first close of a year to its last is a little less
_BENCHMARK: Final = "buy_and_hold_"
_CURVE_ROWS: Final = (
    "return", "cagr", "volatility", "sharpe", "sortino", "calmar", "max_drawdown",
    "max_drawdown_days", "average_drawdown", "exposure", "gross_exposure", "turnover", "alpha",
    "beta", "correlation",
)  # fmt: skip
_TRADE_ROWS: Final = (
    "trades", "open_trades", "hit_rate", "profit_factor", "expectancy", "average_win",
    "average_loss", "average_trade", "best_trade", "worst_trade", "average_holding_days", "sqn",
    "fees", "dividends", "final_equity",
)  # fmt: skip
_SUMMARY: Final = (
    "return", "cagr", "volatility", "sharpe", "max_drawdown", "exposure", "trades", "hit_rate",
    "profit_factor",
)  # fmt: skip


def value_text(value: float, unit: Unit) -> str:
    """Return `value` as people write it: ``+12.30 %``, ``1,234.50``, ``35 min``."""
    if math.isnan(value):
        return UNDEFINED
    if unit == "days":
        return _duration(value)
    if unit == "count":
        return f"{value:,.0f}"
    if unit == "fraction":
        return f"{value * 100:,.2f} %"
    if unit == "return":
        return f"{value * 100:+,.2f} %" if round(value, 4) else "0.00 %"
    return f"{value:,.2f}"


def metric_text(name: str, figures: Mapping[str, float]) -> str:
    return value_text(figures[name], METRICS[name].unit)


def _duration(days: float) -> str:
    if days >= 10:
        return f"{days:,.0f} days"
    if days >= 1:
        return f"{days:.1f} days"
    minutes = days * 1440
    if minutes >= 90:
        return f"{minutes / 60:.1f} h"
    return f"{minutes:.0f} min" if minutes else "0"


def heading(run: BacktestRun, *, symbols: int = 6) -> str:
    """Return what ran on what: ``SmaCross (fast=10) on AAPL, MSFT, 1day bars``."""
    given = ", ".join(f"{name}={value}" for name, value in run.params.items())
    named = ", ".join(run.symbols[:symbols])
    if len(run.symbols) > symbols:
        named += f" and {len(run.symbols) - symbols} more"
    what = f"{run.algorithm} ({given})" if given else run.algorithm
    return f"{what} on {named}, {run.timeframe} bars"


def span_text(run: BacktestRun) -> str:
    """Return the first and last date, at the exchange, and how much there was."""
    if not len(run.times):
        return "no bars"
    first, last = exchange_days(run.times[[0, -1]]).astype("datetime64[D]")
    return f"{first} to {last}, {len(run.times):,} moments"


def footing(run: BacktestRun) -> str:
    """Return where the figures come from: the bars, and the data they were."""
    data = f"; data {run.fingerprint}" if run.fingerprint else ""
    return f"{run.bars:,} bars{data}"


def shown_rows(
    figures: Mapping[str, float],
) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """Return the rows of all figures: of the curves (label, strategy, buy and hold), of the trades.

    What is told of the strategy alone has an empty string for buy and hold.
    """
    curves = [
        (METRICS[n].label, metric_text(n, figures), _benchmark_text(n, figures))
        for n in _CURVE_ROWS
    ]
    return curves, [(METRICS[n].label, metric_text(n, figures)) for n in _TRADE_ROWS]


def remarks(run: BacktestRun) -> list[str]:
    """Return the run's warnings, and what its figures do not bear."""
    told = list(run.warnings)
    if len(run.times) and run.times[-1] - run.times[0] < _A_YEAR:
        told.append("less than a year: annual figures are extrapolated")
    return told


def text_table(run: BacktestRun, figures: Mapping[str, float]) -> str:
    """Return all figures in 80 columns: the curves on the left, the trades on the right."""
    mark = f"{SIMULATED} prices: not a market's\n" if run.simulated else ""
    lines = [mark + heading(run), span_text(run), ""]
    curves, trades = shown_rows(figures)
    left, right = [("", "strategy", "buy and hold"), *curves], [("", ""), *trades]
    for n in range(max(len(left), len(right))):
        label, ours, held = left[n] if n < len(left) else ("", "", "")
        name, value = right[n] if n < len(right) else ("", "")
        lines.append(f"{label:<18}{ours:>13}{held:>14}   {name:<19}{value:>13}".rstrip())
    lines += ["", footing(run)]
    lines += [f"note: {text}" for text in remarks(run)]
    return "\n".join(lines)


def html_summary(run: BacktestRun, figures: Mapping[str, float]) -> str:
    """Return what a notebook shows: the heading, both curves, and the figures that matter most."""
    mark = f'<b style="color:#b3261e">{SIMULATED}</b> ' if run.simulated else ""
    cell = "padding:2px 0 2px 18px;border:0;text-align:right"
    grey = f"{cell};color:#7b8794"
    rows = "".join(
        f'<tr><td style="{cell};padding-left:0;text-align:left">{METRICS[name].label}</td>'
        f'<td style="{cell}">{metric_text(name, figures)}</td>'
        f'<td style="{grey}">{_benchmark_text(name, figures)}</td></tr>'
        for name in _SUMMARY
    )
    noted = "".join(f"<div>⚠ {escape(text)}</div>" for text in remarks(run))
    picture = sparkline([run.buy_and_hold, run.equity], [BENCHMARK_COLOUR, STRATEGY_COLOUR])
    return (
        '<div style="font:13px system-ui,sans-serif">'
        f"<div>{mark}<b>{escape(heading(run))}</b></div>"
        f'<div style="color:#7b8794">{escape(span_text(run))} · {escape(footing(run))}</div>'
        '<div style="display:flex;flex-wrap:wrap;gap:12px 36px;align-items:center">'
        '<table style="font:inherit;border-collapse:collapse"><thead><tr><td style="border:0"></td>'
        f'<td style="{cell};color:{STRATEGY_COLOUR}"><b>strategy</b></td>'
        f'<td style="{grey}"><b>buy and hold</b></td></tr></thead><tbody>{rows}</tbody></table>'
        f"{picture}</div>{noted}</div>"
    )


def _benchmark_text(name: str, figures: Mapping[str, float]) -> str:
    other = _BENCHMARK + name
    return metric_text(other, figures) if other in figures else ""


def sparkline(
    curves: Sequence[Floats], colours: Sequence[str], *, width: int = 420, height: int = 150
) -> str:
    """Return curves of equal length as an SVG, the last on top, or nothing where none has values."""
    finite = [c[np.isfinite(c)] for c in curves]
    finite = [c for c in finite if len(c) > 1]
    if not finite:
        return ""
    low, high = min(float(c.min()) for c in finite), max(float(c.max()) for c in finite)
    scale = (height - 8) / (high - low) if high > low else 0.0
    lines = []
    for curve, colour in zip(curves, colours, strict=True):
        kept = thinned(curve, width)
        points = " ".join(
            f"{n * (width - 8) / max(1, len(curve) - 1) + 4:.1f},"
            f"{height - 4 - (float(curve[n]) - low) * scale:.1f}"
            for n in kept.tolist()
            if math.isfinite(curve[n])
        )
        lines.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{points}"/>'
        )
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="account value over time">{"".join(lines)}</svg>'
    )


def thinned(values: Floats, points: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Return positions of about `points` of `values`, ascending, that draw the same line.

    Each of equally long stretches keeps its first, lowest, highest and last value, so that every
    extreme stays: M4 of Jugel et al. (2014), "M4: A Visualization-Oriented Time Series Data
    Aggregation", *PVLDB* 7(10).
    """
    n = len(values)
    if n <= points:
        return np.arange(n)
    starts = np.unique(np.linspace(0, n, max(1, points // 4), endpoint=False).astype(np.intp))
    ends = np.append(starts[1:], n)
    kept = [starts, ends - 1]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        part = values[start:end]
        if not np.isnan(part).all():
            kept.append(np.array([start + np.nanargmin(part), start + np.nanargmax(part)]))
    found: np.ndarray[tuple[int], np.dtype[np.intp]] = np.unique(np.concatenate(kept))
    return found
