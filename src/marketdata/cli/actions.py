"""``marketdata actions``: splits, dividends, renames and the like as a table, JSON lines or CSV."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marketdata.cli.bars import check_stdout, write_files
from marketdata.cli.exits import DONE
from marketdata.cli.options import ALL, Symbols, command, symbols_of
from marketdata.cli.output import Output, make_table

if TYPE_CHECKING:
    import pandas as pd

    from marketdata.config import Settings


def register(app: typer.Typer) -> None:
    command(app, "actions", ALL)(actions)


def actions(
    out: Output,
    settings: Settings,
    symbols: Symbols,
    start: Annotated[
        str | None, typer.Option("--start", metavar="WHEN", help="First ex-date: 2024-01-31, -90d.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--end", metavar="WHEN", help="Exclusive end of the ex-dates.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", "-k", help="Only these, such as split or cash_dividend."),
    ] = None,
    as_of: Annotated[
        str | None, typer.Option("--as-of", metavar="WHEN", help="What was known at this moment.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How long it may take in all.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write CSV, full precision; - is stdout.")
    ] = None,
) -> int:
    """Print corporate actions; the broker is asked where what is stored is older than half a day.

    For example: marketdata actions AAPL --start 2020-01-01 --kind split
    """
    from marketdata.client import Client

    check_stdout(out, csv)
    with Client(settings) as client:
        frame = client.get_actions(
            symbols_of(symbols),
            start=start,
            end=end,
            kinds=kind or None,
            as_of=as_of,
            timeout=timeout,
        )
    written = write_files(out, frame.set_index("symbol"), csv, None)
    facts: dict[str, Any] = dict(frame.attrs["marketdata"])
    if out.as_json:
        for record in _records(frame):
            out.row(record)
    elif not written:
        _print_table(out, frame, facts)
    return out.done(DONE, rows=len(frame), provenance=facts, files=written)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as plain values: dates and instants in ISO 8601, nothing as None."""
    plain = frame.astype(object).where(frame.notna(), None)
    records: list[dict[str, Any]] = []
    for row in plain.to_dict("records"):
        records.append(
            {
                str(name): _date_or_instant(str(name), value) if _is_moment(value) else value
                for name, value in row.items()
            }
        )
    return records


def _is_moment(value: object) -> bool:
    return hasattr(value, "isoformat")


def _date_or_instant(name: str, value: Any) -> str:
    return str(value.date()) if name.endswith("_date") else str(value.isoformat())


def _print_table(out: Output, frame: pd.DataFrame, facts: dict[str, Any]) -> None:
    if not len(frame):
        out.line("no corporate actions in this range")
        return
    if facts["simulated"]:
        out.line("SIMULATED", "bold")
    table = make_table("ex-date", "symbol", "kind", "what", "processed", right=["what"])
    for row in _records(frame):
        table.add_row(
            row["ex_date"], row["symbol"], row["kind"], _what(row), row["process_date"] or "-"
        )
    out.table(table)
    doubted = {
        (row["symbol"], row["ex_date"]): row["doubt"] for row in _records(frame) if row["doubt"]
    }
    for (symbol, day), why in doubted.items():
        out.line(f"{symbol} on {day}: prices cannot be adjusted across it: {why}", style="yellow")


def _what(row: dict[str, Any]) -> str:
    """Return what holders get, in a few words."""
    rates = f"{row['new']:g}:{row['old']:g}" if row["new"] and row["old"] else ""
    words = [
        rates,
        f"{row['cash']:g} a share" if row["cash"] is not None else "",
        f"-> {row['other_symbol']}" if row["other_symbol"] else "",
        "special" if row["special"] else "",
    ]
    return " ".join(word for word in words if word)
