"""``marketdata algo backtest``: a strategy over the past, its figures, trades and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from algorithms.cli.faults import telling
from algorithms.cli.options import (
    AsOf,
    Cash,
    End,
    FeesOption,
    Leverage,
    Params,
    Period,
    SessionOption,
    SlippageOption,
    Start,
    Strategy,
    SymbolsOption,
    TimeframeOption,
    fees_of,
    slippage_of,
    start_of,
    strategy_of,
    writing,
)
from algorithms.hours import EXCHANGE_ZONE
from marketdata.cli.exits import DONE, INCOMPLETE
from marketdata.cli.options import ALL, command
from marketdata.cli.output import make_table
from marketdata.types import Timeframe

if TYPE_CHECKING:
    from algorithms.result import BacktestResult
    from marketdata.cli.output import Output
    from marketdata.config import Settings

_OUTPUTS: Final = "Where to"


def register(app: typer.Typer) -> None:
    command(app, "backtest", ALL)(telling(backtest))


def backtest(
    out: Output,
    settings: Settings,
    strategy: Strategy,
    params: Params = None,
    symbols: SymbolsOption = None,
    timeframe: TimeframeOption = None,
    session: SessionOption = None,
    start: Start = None,
    end: End = None,
    period: Period = None,
    as_of: AsOf = None,
    cash: Cash = 100_000.0,
    fees: FeesOption = None,
    slippage: SlippageOption = None,
    leverage: Leverage = 1.0,
    trades: Annotated[
        bool, typer.Option("--trades", help="Print the trades too.", rich_help_panel=_OUTPUTS)
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(help="Write a report: one HTML file.", rich_help_panel=_OUTPUTS),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Write the picture alone: one HTML file.", rich_help_panel=_OUTPUTS),
    ] = None,
) -> int:
    """Run a strategy over the past and print what became of it, beside buying and holding.

    Bars that are not stored yet are fetched and kept.

    For example: marketdata algo backtest sma_cross -s MSFT --period 5y -p fast=20 --plot msft.html
    """
    import algorithms
    from marketdata.client import Client

    algorithm = strategy_of(strategy, params, symbols, timeframe, session)
    with Client(settings) as client:
        result = algorithms.backtest(
            algorithm,
            start=start_of(client, algorithm, start, end, period),
            end=end,
            cash=cash,
            fees=fees_of(fees),
            slippage=slippage_of(slippage),
            leverage=leverage,
            client=client,
            as_of=as_of,
        )
    out.line(str(result))
    if trades:
        _print_trades(out, result)
    written = []
    if plot is not None:
        with writing(out, plot):
            result.plot(path=plot)
        written.append(plot)
    if html is not None:
        with writing(out, html):
            result.report(html)
        written.append(html)
    empty = [symbol for symbol, closes in result.run.closes.items() if not (closes > 0).any()]
    code = INCOMPLETE if empty else DONE
    return out.done(code, **summary_of(result), without_bars=empty, written=written)


def summary_of(result: BacktestResult) -> dict[str, Any]:
    """Return a result as JSON-representable values: what ran, and its figures."""
    run = result.run
    return {
        "algorithm": run.algorithm,
        "params": dict(run.params),
        "symbols": list(run.symbols),
        "timeframe": run.timeframe,
        "first": result.equity.index[0] if len(run.times) else None,
        "last": result.equity.index[-1] if len(run.times) else None,
        "bars": run.bars,
        "cash": run.cash,
        "settings": dict(run.settings),
        "metrics": dict(result.metrics),
        "warnings": list(run.warnings),
        "fingerprint": run.fingerprint,
        "simulated": run.simulated,
    }


def _print_trades(out: Output, result: BacktestResult) -> None:
    rows = list(_trades(result))
    out.rows(rows)
    out.line()
    if not rows:
        out.line("no trades")
        return
    table = make_table(
        "symbol", "shares", "from", "to", "entry", "exit", "pnl", "return", "why",
        right=("shares", "entry", "exit", "pnl", "return"),
    )  # fmt: skip
    daily = not Timeframe.parse(result.run.timeframe).intraday
    shape = "%Y-%m-%d" if daily else "%Y-%m-%d %H:%M"
    for row in rows:
        began, ended = (_local(row[name], shape) for name in ("entry_time", "exit_time"))
        table.add_row(
            row["symbol"],
            f"{row['quantity']:,g}",
            began,
            ended or "open",
            f"{row['entry_price']:,.2f}",
            f"{row['exit_price']:,.2f}",
            f"{row['pnl']:+,.2f}",
            f"{row['return']:+.2%}",
            " to ".join(tag for tag in (row["entry_tag"], row["exit_tag"]) if tag),
        )
    out.table(table)


def _local(moment: Any, shape: str) -> str:
    """Return a moment in New York, where daily bars begin at midnight."""
    return moment.tz_convert(EXCHANGE_ZONE).strftime(shape) if moment is not None else ""


def _trades(result: BacktestResult) -> Iterator[dict[str, Any]]:
    import pandas as pd

    for row in result.trades.to_dict("records"):
        plain = {str(k): None if v is pd.NaT else v for k, v in row.items()}
        plain["holding"] = row["holding"].total_seconds() if row["holding"] is not pd.NaT else None
        yield plain
