"""``marketdata verify --against BROKER``: hold two brokers' bars against each other."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, Final, cast

from marketdata.cli.exits import DONE, INCOMPLETE
from marketdata.cli.output import Output, instant, make_table
from marketdata.errors import RequestError

if TYPE_CHECKING:
    import pandas as pd

    from marketdata.config import Settings

_SHOWN: Final = 60
_COLUMNS: Final = (
    "symbol", "timeframe", "field", "compared", "equal", "largest", "at", "only first",
    "only second",
)  # fmt: skip


def cross_check(
    out: Output,
    settings: Settings,
    symbols: list[str],
    timeframes: list[str],
    against: str,
    tolerances: list[str],
    *,
    start: str | None = None,
    end: str | None = None,
) -> int:
    """Compare the configured broker with another one; exit code 3 where they disagree."""
    import pandas as pd

    from marketdata.client import Client

    if not symbols:
        raise RequestError(
            "--against compares the symbols that are named", cure="name some symbols"
        )
    with closing(Client(settings)) as client:
        first, second = client._lazy.get().links[0].source.kind, against.strip().lower()
        if second == first:
            raise RequestError(
                f"--against {against} is the broker in use: there is nothing to compare",
                cure="name another one, or choose with --broker whose bars are held against its",
            )
        frames = {
            timeframe: client.cross_check(
                symbols,
                timeframe,
                brokers=(first, second),
                tolerance=_read_tolerances(tolerances),
                start=start,
                end=end,
            )
            for timeframe in timeframes
        }
    facts = next(iter(frames.values())).attrs["marketdata"]
    if facts["simulated"]:
        out.note("SIMULATED prices")
    found = pd.concat(frames, names=["timeframe"])
    return _show(out, found, facts)


def _read_tolerances(given: list[str]) -> float | dict[str, float] | None:
    """Read ``0.002``, or ``close=0.002`` for one field."""
    if not given:
        return None
    try:
        if len(given) == 1 and "=" not in given[0]:
            return float(given[0])
        pairs = (text.partition("=") for text in given)
        return {name.strip(): float(value) for name, _, value in pairs}
    except ValueError:
        raise RequestError(
            f"--tolerance {' '.join(given)} cannot be read",
            cure="write a share such as 0.002, or one by field: close=0.002",
        ) from None


def _show(out: Output, found: pd.DataFrame, facts: Any) -> int:
    right = ("compared", "equal", "largest", "only first", "only second")
    table = make_table(*_COLUMNS, right=right)
    plain = found.astype(object).where(found.notna(), None).reset_index()
    rows = cast("list[dict[str, Any]]", plain.to_dict("records"))
    out.rows(rows)
    # What disagrees first, by size; what agrees after it.
    rows.sort(key=lambda row: (row["agrees"], -(row["largest"] or 0.0)))
    for row in rows[:_SHOWN]:
        style = None if row["agrees"] else "yellow"
        table.add_row(
            row["symbol"],
            row["timeframe"],
            row["field"],
            f"{row['compared']:,}",
            f"{row['equal']:,}",
            f"{row['largest']:.2e}" if row["compared"] else "",
            instant(row["at"]),
            f"{row['only_first']:,}",
            f"{row['only_second']:,}",
            style=style,
        )
    out.table(table)
    disagreeing = sum(not row["agrees"] for row in rows)
    out.line()
    out.line(f"first: {facts['first']}   second: {facts['second']}   raw bars")
    if disagreeing:
        out.line(f"{disagreeing} of {len(rows)} fields differ beyond tolerance, or lack bars")
    else:
        out.line("both agree")
    return out.done(
        INCOMPLETE if disagreeing else DONE,
        first=facts["first"],
        second=facts["second"],
        fields=len(rows),
        disagreeing=disagreeing,
    )
