"""``marketdata config``: every setting, its value and where it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marketdata.cli.options import ALL, command
from marketdata.cli.output import Output, make_table

if TYPE_CHECKING:
    import typer

    from marketdata.config import Settings


def register(app: typer.Typer) -> None:
    command(app, "config", ALL)(config)


def config(out: Output, settings: Settings) -> int:
    """Print each setting, its value and its source."""
    table = make_table("setting", "value", "source")
    table.columns[1].no_wrap, table.columns[1].overflow = False, "fold"
    known = settings.describe()
    for each in known:
        out.row(each._asdict())
        style = "dim" if each.source == "default" else ""
        table.add_row(each.name, each.value or "-", each.source, style=style)
    out.table(table)
    return out.done(settings=len(known), given=len(settings.origins))
