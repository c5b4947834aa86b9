"""``marketdata indicators``: indicators as a table, JSON lines, CSV or Parquet; and what there are."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from marketdata.cli.bars import (
    SHOWN,
    bars_table,
    check_stdout,
    heading,
    newest_rows,
    print_answer,
    write_files,
)
from marketdata.cli.exits import DONE
from marketdata.cli.options import (
    ALL,
    AsOf,
    End,
    Feed,
    Period,
    SessionOption,
    Start,
    TimeframeOption,
    command,
    symbols_of,
)
from marketdata.cli.output import Output
from marketdata.errors import RequestError

if TYPE_CHECKING:
    import pandas as pd

    from marketdata.config import Settings

_COLUMN_WIDTH: Final = 14
_OUTPUTS: Final = "Where to"


def register(app: typer.Typer) -> None:
    command(app, "indicators", ALL)(indicators)


def indicators(
    out: Output,
    settings: Settings,
    symbols: Annotated[
        list[str] | None, typer.Argument(metavar="SYMBOLS...", help="Such as AAPL BRK.B.")
    ] = None,
    indicator: Annotated[
        list[str] | None,
        typer.Option(
            "--indicator",
            "-i",
            metavar="NAME",
            help="Such as rsi_14 or macd_12_26_9; repeat it, or separate names by commas. "
            "Without it: the default set.",
        ),
    ] = None,
    timeframe: TimeframeOption = "1day",
    start: Start = None,
    end: End = None,
    period: Period = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", help="The last N closed bars of each symbol.")
    ] = None,
    adjustment: Annotated[
        str, typer.Option(help="Of the bars: raw, split, dividend or all.")
    ] = "split",
    session: SessionOption = "regular",
    feed: Feed = None,
    field: Annotated[
        str | None, typer.Option(help="One column of all symbols, side by side: rsi_14.")
    ] = None,
    tz: Annotated[
        str | None, typer.Option(help="Zone of the times: an IANA name, exchange, none.")
    ] = None,
    missing: Annotated[
        str, typer.Option(metavar="raise|skip", help="What to do about unknown symbols.")
    ] = "raise",
    bars: Annotated[bool, typer.Option("--bars", help="Put the bars before the values.")] = False,
    forming: Annotated[
        bool, typer.Option("--forming", help="Append the values with the bar still forming.")
    ] = False,
    as_of: AsOf = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How long it may take in all.")
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="Print which indicators there are, and stop.")
    ] = False,
    every_row: Annotated[
        bool, typer.Option("--all", help=f"Show every row, not the last {SHOWN}.")
    ] = False,
    csv: Annotated[
        Path | None,
        typer.Option(help="Write CSV, full precision; - is stdout.", rich_help_panel=_OUTPUTS),
    ] = None,
    parquet: Annotated[
        Path | None, typer.Option(help="Write Parquet.", rich_help_panel=_OUTPUTS)
    ] = None,
) -> int:
    """Print indicators of bars; what is not stored yet is fetched and kept.

    For example: marketdata indicators AAPL -i rsi_14 -i macd_12_26_9 -t 1min -n 100
    """
    from marketdata.client import Client

    if listed:
        return _print_catalogue(out)
    if not symbols:
        raise RequestError("no symbols given", cure="name some, or ask for --list")
    check_stdout(out, csv)
    asked: dict[str, Any] = {"tz": None if tz == "none" else tz} if tz else {}
    with Client(settings) as client:
        began = time.perf_counter()
        frame = client.get_indicators(
            symbols_of(symbols),
            symbols_of(indicator) if indicator else None,
            timeframe,
            start=start,
            end=end,
            period=period,
            limit=limit,
            adjustment=adjustment,  # type: ignore[arg-type]  # checked there
            session=session,  # type: ignore[arg-type]
            feed=feed,
            field=field,
            missing=missing,  # type: ignore[arg-type]
            include_forming=forming,
            as_of=as_of,
            timeout=timeout,
            bars=bars,
            **asked,
        )
        seconds = time.perf_counter() - began
    written = write_files(out, frame, csv, parquet)
    return print_answer(out, frame, seconds, written, partial(_print_table, every_row=every_row))


def _print_table(out: Output, frame: pd.DataFrame, facts: dict[str, Any], every_row: bool) -> None:
    if not len(frame):
        out.line("no bars: the market was quiet, or closed, in all of this range")
        return
    shown = frame if every_row else newest_rows(frame)
    room = max(1, (out.console.width - 30) // _COLUMN_WIDTH)
    out.line(heading(shown, facts), "bold")
    out.table(bars_table(shown.iloc[:, :room], narrow=True))
    if room < len(frame.columns):
        hidden = ", ".join(str(name) for name in frame.columns[room:])
        out.line(f"not shown for lack of room: {hidden}; name them with --indicator", "dim")
    if len(shown) < len(frame):
        out.line(f"the last {len(shown)} of {len(frame):,} rows; --all shows every one", "dim")


def _print_catalogue(out: Output) -> int:
    from marketdata.indicators import listing

    frame = listing()
    known = frame.astype(object).where(frame.notna(), None)
    out.rows({str(n): v for n, v in row.items()} for row in known.to_dict("records"))
    for row in known.itertuples():
        example, formula = str(row.example or row.name), str(row.formula or "")
        out.line(f"{example:<22} {formula}")
    out.note(f"{len(frame)} indicators; --json adds look-back and sources", style="dim")
    return out.done(DONE, rows=len(frame))
