"""``marketdata symbols``: which symbols a text may mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from marketdata.cli.exits import DONE
from marketdata.cli.options import ALL, command
from marketdata.cli.output import Output, make_table

if TYPE_CHECKING:
    from marketdata.config import Settings


def register(app: typer.Typer) -> None:
    command(app, "symbols", ALL)(symbols)


def symbols(
    out: Output,
    settings: Settings,
    text: Annotated[
        list[str], typer.Argument(metavar="TEXT...", help="A symbol, or words of a name.")
    ],
    limit: Annotated[int, typer.Option("--limit", "-n", help="Most rows.")] = 20,
    active: Annotated[
        bool | None,
        typer.Option("--active/--inactive", help="Only what trades, or only what does not."),
    ] = None,
) -> int:
    """Find symbols by symbol, former symbol, name or near spelling.

    For example: marketdata symbols meta plat
    """
    from marketdata.client import Client

    with Client(settings) as client:
        frame = client.find_symbols(" ".join(text), limit=limit, active=active)
    facts = dict(frame.attrs["marketdata"])
    if not facts["listed_at"]:
        out.note(
            f"{facts['provider']} gave no list of symbols: only what is stored was searched",
            style="yellow",
        )
    table = make_table("symbol", "name", "exchange", "status", "formerly", "stored from", "to")
    known = frame.astype(object).where(frame.notna(), None)
    for found in known.to_dict("records"):
        row = {str(name): value for name, value in found.items()}
        out.row(row)
        ends = [f"{t:%Y-%m-%d}" if t else "-" for t in (row["first_bar"], row["last_bar"])]
        words = [row[name] or "-" for name in ("name", "exchange", "status", "former")]
        table.add_row(row["symbol"], *words, *ends)
    if len(frame):
        out.table(table)
    else:
        out.line("no symbol is like that")
    return out.done(DONE, symbols=frame["symbol"].tolist(), provenance=facts)
