"""Live strategies and their orders as ``marketdata algo`` shows them: rows, tables, sentences."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from marketdata.cli.output import make_table

if TYPE_CHECKING:
    from algorithms.live.journal import Journal
    from algorithms.live.records import Record

_NEWEST: Final = 10


def row_of(record: Record) -> dict[str, Any]:
    """Return a strategy as ``--json`` has it."""
    registration = record.registration
    return {
        "name": record.name,
        "source": registration.source,
        "symbols": list(registration.symbols),
        "timeframe": registration.timeframe,
        "params": dict(registration.params),
        "venue": registration.venue,
        "wanted": str(record.desired),
        "state": str(record.life),
        "runner": record.runner,
        "cursor": _moment(record.cursor),
        "fills": record.fills,
        "cash": record.cash,
        "equity": record.equity,
        "began_with": registration.cash,
        "failures": record.failures,
        "restarts": record.restarts,
        "error": record.error,
    }


def table_of(records: Sequence[Record], positions: dict[str, dict[str, float]]) -> Any:
    """Return the table of `algo list`; positions by name."""
    table = make_table(
        "name", "state", "wanted", "symbols", "bars", "up to", "fills", "equity", "gain", "holds",
        right=("fills", "equity", "gain"),
    )  # fmt: skip
    for record in records:
        registration = record.registration
        seen = _moment(record.cursor)
        equity = record.equity
        shown = ", ".join(registration.symbols[:3])
        more = f" +{len(registration.symbols) - 3}" if len(registration.symbols) > 3 else ""
        held = [f"{shares:g} {symbol}" for symbol, shares in positions[record.name].items()]
        table.add_row(
            record.name,
            str(record.life),
            str(record.desired),
            shown + more,
            registration.timeframe,
            f"{seen:%Y-%m-%d %H:%M}" if seen else "",
            f"{record.fills:,}",
            "" if equity is None else f"{equity:,.2f}",
            "" if equity is None else f"{equity / registration.cash - 1:+.2%}",
            ", ".join(held[:3]) + (f" +{len(held) - 3}" if len(held) > 3 else ""),
        )
    return table


def newest_orders(journal: Journal, name: str) -> list[dict[str, Any]]:
    """Return the newest orders of a strategy's run, oldest first."""
    from algorithms.live.journal_rows import ORDER_COLUMNS

    found = journal.orders(name)[-_NEWEST:]
    return [dict(zip(ORDER_COLUMNS, row, strict=True)) for row in found]


def orders_table(orders: Sequence[dict[str, Any]]) -> Any:
    """Return what `newest_orders` found as a table."""
    table = make_table(
        "given", "symbol", "shares", "limit", "stop", "state", "filled at", "why",
        right=("shares", "limit", "stop", "filled at"),
    )  # fmt: skip
    for order in orders:
        prices = (order["limit_price"], order["stop_price"])
        paid = order["filled_price"]
        table.add_row(
            f"{order['created']:%Y-%m-%d %H:%M}",
            order["symbol"],
            f"{order['quantity']:+,g}",
            *("" if price is None else f"{price:,.2f}" for price in prices),
            order["state"],
            f"{paid:,.2f}" if order["filled"] else "",
            order["reason"] or order["tag"],
        )
    return table


def outcome_of(record: Record) -> str:
    """Return what became of a strategy, in a line."""
    if record.equity is None:
        return f"{record.name}: no bar has closed yet"
    gain = record.equity / record.registration.cash - 1
    return f"{record.name}: {record.life}, {record.fills} fills, equity {record.equity:,.2f} ({gain:+.2%})"


def _moment(instant: int | None) -> datetime | None:
    import pandas as pd

    return None if instant is None else pd.Timestamp(instant, unit="us", tz="UTC").to_pydatetime()
