"""``marketdata revisions``: what stored bars were before they became what they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from marketdata.cli.bars import check_stdout, records, write_files
from marketdata.cli.exits import DONE
from marketdata.cli.options import (
    ALL,
    End,
    Feed,
    Start,
    Symbols,
    TimeframeOption,
    command,
    symbols_of,
)
from marketdata.cli.output import Output, make_table

if TYPE_CHECKING:
    import pandas as pd

    from marketdata.client import Client
    from marketdata.config import Settings

SHOWN: Final = 40
_FIELDS: Final = ("open", "high", "low", "close", "volume", "vwap", "trade_count")


def register(app: typer.Typer) -> None:
    command(app, "revisions", ALL)(revisions)


def revisions(
    out: Output,
    settings: Settings,
    symbols: Symbols,
    timeframe: TimeframeOption = "1day",
    start: Start = None,
    end: End = None,
    feed: Feed = None,
    tz: Annotated[
        str | None, typer.Option(help="Zone of the times: an IANA name or exchange.")
    ] = None,
    every_row: Annotated[
        bool, typer.Option("--all", help=f"Show every change, not the last {SHOWN}.")
    ] = False,
    csv: Annotated[
        Path | None, typer.Option(help="Write CSV, full precision; - is stdout.")
    ] = None,
) -> int:
    """Print every change of stored bars to other values, and of bars that were withdrawn.

    For example: marketdata revisions AAPL -t 1min --start 2024-03-14 --end 2024-03-15
    """
    from marketdata.client import Client

    check_stdout(out, csv)
    asked: dict[str, Any] = {"tz": tz} if tz else {}
    with Client(settings) as client:
        frame = client.revisions(
            symbols_of(symbols), timeframe, start=start, end=end, feed=feed, **asked
        )
        without = [] if len(frame) else _not_stored(client, symbols_of(symbols), timeframe, feed)
    facts = dict(frame.attrs["marketdata"])
    written = [] if csv is None else write_files(out, frame.set_index("symbol"), csv, None)
    if out.as_json:
        out.rows(_plain(row) for row in records(frame.set_index("symbol")))
    elif not written:
        _show(out, frame if every_row else frame.tail(SHOWN), len(frame), facts)
    if without:
        out.note(f"nothing is stored of {', '.join(without)}", style="yellow")
    if facts["untrailed"]:
        out.note(f"the trail is not complete: {facts['untrailed']}", style="yellow")
    return out.done(DONE, rows=len(frame), provenance=facts, files=written)


def _not_stored(client: Client, symbols: list[str], timeframe: str, feed: str | None) -> list[str]:
    """Return the symbols without stored bars: of those, no change says nothing."""
    return [s for s in symbols if not client.coverage(s, timeframe, feed=feed)]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with null for what is not known."""
    return {name: None if _unknown(value) else value for name, value in row.items()}


def _unknown(value: object) -> bool:
    return value == "NaT" or (isinstance(value, float) and math.isnan(value))


def _show(out: Output, frame: pd.DataFrame, count: int, facts: dict[str, Any]) -> None:
    if not count:
        out.line("no bar of this range was ever replaced")
        return
    simulated = "SIMULATED " if facts["simulated"] else ""
    out.line(f"{simulated}{facts['timeframe']} {facts['provider']}/{facts['feed']}", "bold")
    table = make_table("symbol", "bar", "state", "observed", "change")
    for row in frame.to_dict("records"):
        table.add_row(
            row["symbol"],
            f"{row['timestamp']:%Y-%m-%d %H:%M}",
            f"{row['state_from']}->{row['state_to']}",
            f"{row['observed_to']:%Y-%m-%d %H:%M:%S}",
            _change(row),
        )
    out.table(table)
    if len(frame) < count:
        out.line(f"the last {len(frame)} of {count:,} changes; --all shows every one", "dim")


def _change(row: Mapping[Any, Any]) -> str:
    """Return what changed, in a few words."""
    if row["withdrawn"]:
        return "withdrawn"
    if math.isnan(row["close_from"]):
        return f"came to be: close {row['close_to']:g}"
    pairs = [(name, row[f"{name}_from"], row[f"{name}_to"]) for name in _FIELDS]
    return ", ".join(
        f"{name} {old:g} -> {new:g}"
        for name, old, new in pairs
        if old != new and not (math.isnan(old) and math.isnan(new))
    )
