"""``marketdata bars``: bars as a table, JSON lines, CSV, Parquet or a page of candles."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from marketdata.cli.exits import DONE, INCOMPLETE
from marketdata.cli.options import (
    ALL,
    AsOf,
    End,
    Feed,
    Period,
    SessionOption,
    Start,
    Symbols,
    TimeframeOption,
    command,
    symbols_of,
)
from marketdata.cli.output import Output, make_table
from marketdata.errors import RequestError

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from marketdata.config import Settings

SHOWN: Final = 20
"""Rows a table shows unless all are asked for: the last ones."""
_NARROW: Final = 100
_OUTPUTS: Final = "Where to"


def register(app: typer.Typer) -> None:
    command(app, "bars", ALL)(bars)


def bars(
    out: Output,
    settings: Settings,
    symbols: Symbols,
    timeframe: TimeframeOption = "1day",
    start: Start = None,
    end: End = None,
    period: Period = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", help="The last N closed bars of each symbol.")
    ] = None,
    adjustment: Annotated[str | None, typer.Option(help="raw, split, dividend or all.")] = None,
    session: SessionOption = "regular",
    feed: Feed = None,
    field: Annotated[
        str | None, typer.Option(help="One column of all symbols, side by side: close.")
    ] = None,
    tz: Annotated[
        str | None, typer.Option(help="Zone of the times: an IANA name, exchange, none.")
    ] = None,
    missing: Annotated[
        str, typer.Option(metavar="raise|skip", help="What to do about unknown symbols.")
    ] = "raise",
    forming: Annotated[
        bool, typer.Option("--forming", help="Append the bar that is still forming.")
    ] = False,
    as_of: AsOf = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How long it may take in all.")
    ] = None,
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
    plot: Annotated[
        Path | None,
        typer.Option(help="Write an HTML page of candles.", rich_help_panel=_OUTPUTS),
    ] = None,
) -> int:
    """Print bars; what is not stored yet is fetched and kept.

    For example: marketdata bars AAPL MSFT -t 1min -n 100
    """
    from marketdata.client import Client

    check_stdout(out, csv)
    asked: dict[str, Any] = {"tz": None if tz == "none" else tz} if tz else {}
    with Client(settings) as client:
        began = time.perf_counter()
        frame = client.get_bars(
            symbols_of(symbols),
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
            timeout=timeout,
            as_of=as_of,
            **asked,
        )
        seconds = time.perf_counter() - began
    written = write_files(out, frame, csv, parquet, plot)
    return print_answer(out, frame, seconds, written, partial(_print_table, every_row=every_row))


def print_answer(
    out: Output,
    frame: pd.DataFrame,
    seconds: float,
    written: list[str],
    show: Callable[[Output, pd.DataFrame, dict[str, Any]], None],
) -> int:
    """Print what a call returned, as rows or by `show` unless it was `written` to files; return the
    exit code."""
    facts: dict[str, Any] = dict(frame.attrs.get("marketdata") or {})
    if out.as_json:
        out.rows(records(frame))
    elif not written:
        show(out, frame, facts)
    out.note(provenance_line(facts, seconds), style="dim")
    return out.done(
        INCOMPLETE if facts.get("missing") else DONE,
        rows=len(frame),
        seconds=round(seconds, 6),
        provenance=facts,
        files=written,
    )


# -------------------------------------------------------------------------------------- files


def check_stdout(out: Output, csv: Path | None) -> None:
    """Raise `RequestError` where CSV and JSON lines would both go to stdout."""
    if str(csv) == "-" and out.as_json:
        raise RequestError("--csv - and --json both want stdout", cure="give one of them")


def write_files(
    out: Output,
    frame: pd.DataFrame,
    csv: Path | None,
    parquet: Path | None,
    plot: Path | None = None,
) -> list[str]:
    """Write what was asked for; return the paths."""
    written = []
    for path, write in ((csv, _write_csv), (parquet, _write_parquet), (plot, _write_page)):
        if path is None:
            continue
        try:
            write(frame, path)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise RequestError(f"cannot write {path}: {error.strerror or error}") from None
        written.append(str(path))
        if str(path) != "-":
            out.note(f"wrote {path} ({len(frame):,} rows)")
    return written


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    # pandas writes each float in the fewest digits that read back as the same number.
    frame.to_csv(sys.stdout if str(path) == "-" else path)


def _write_parquet(frame: pd.DataFrame, path: Path) -> None:
    frame.reset_index().to_parquet(path, index=False)


def _write_page(frame: pd.DataFrame, path: Path) -> None:
    from marketdata.plotting import plot

    plot(frame, path=path)


def records(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield the rows as plain values in full precision, their index first."""
    flat = frame.reset_index()
    columns = []
    for name in flat.columns:
        column = flat[name]
        moments = column.dtype.kind == "M"
        columns.append([v.isoformat() for v in column] if moments else column.tolist())
    names = [str(n) for n in flat.columns]
    for row in zip(*columns, strict=True):
        yield dict(zip(names, row, strict=True))


# -------------------------------------------------------------------------------------- table


def _print_table(out: Output, frame: pd.DataFrame, facts: dict[str, Any], every_row: bool) -> None:
    shown = frame if every_row else newest_rows(frame)
    if not len(frame):
        out.line("no bars: the market was quiet, or closed, in all of this range")
        return
    out.line(heading(shown, facts), "bold")
    out.table(bars_table(shown, out.console.width < _NARROW))
    if len(shown) < len(frame):
        out.line(f"the last {len(shown)} of {len(frame):,} rows; --all shows every one", "dim")


def newest_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that a table shows: the last ones, as many of each symbol."""
    import pandas as pd

    if len(frame) <= SHOWN or not isinstance(frame.index, pd.MultiIndex):
        return frame.tail(SHOWN)
    each = max(1, SHOWN // frame.index.get_level_values(0).nunique())
    return frame.groupby(level=0, sort=False).tail(each).head(SHOWN)


def heading(frame: pd.DataFrame, facts: dict[str, Any]) -> str:
    """Return what a table of bars shows, in a few words."""
    symbols = _symbols(frame)
    more = f"and {len(symbols) - 6} more" if symbols[6:] else ""
    simulated = "SIMULATED" if facts.get("simulated") else ""
    words = (simulated, *symbols[:6], more, facts.get("timeframe", ""))
    return " ".join(w for w in words if w)


def bars_table(frame: pd.DataFrame, narrow: bool = False) -> Table:
    """Return a table of bars, or of one field of several symbols; values rounded for the eye.

    Parameters
    ----------
    narrow : bool
        Leave the year to the heading where all rows share it.
    """
    flat = frame.reset_index()
    stamps, zone = _times(flat.pop("timestamp"), narrow)
    table = make_table()
    cells: list[list[str]] = []
    if "symbol" in flat:
        names = list(flat.pop("symbol"))
        if len(set(names)) > 1:
            table.add_column("symbol", no_wrap=True)
            cells.append(names)
    table.add_column(zone, no_wrap=True)
    cells.append(stamps)
    places = _places(flat[[n for n in flat.columns if n not in _ROUNDED]].to_numpy())
    for name in flat.columns:
        table.add_column(_SHORT.get(str(name), str(name)), justify="right", no_wrap=True)
        cells.append(_figures(flat[name].tolist(), _ROUNDED.get(str(name), places)))
    for values in zip(*cells, strict=True):
        table.add_row(*values)
    return table


def _symbols(frame: pd.DataFrame) -> list[str]:
    if "symbol" in frame.index.names:
        return [str(s) for s in frame.index.get_level_values("symbol").unique()]
    return [str(s) for s in frame.columns]


_SHORT: Final = {"trade_count": "trades"}
_ROUNDED: Final = {"volume": 0, "trade_count": 0, "vwap": 3}
"""Decimals of the columns that are not prices as traded."""


def _times(stamps: pd.Series[Any], narrow: bool) -> tuple[list[str], str]:
    """Return times for the eye, and the heading that names their zone."""
    if stamps.dt.tz is None:
        return list(stamps.dt.strftime("%Y-%m-%d")), "session"
    exchange = stamps.dt.tz_convert("America/New_York")
    if bool((exchange == exchange.dt.normalize()).all()):
        return list(exchange.dt.strftime("%Y-%m-%d")), "session"
    years = stamps.dt.year.unique()
    if narrow and len(years) == 1:
        return list(stamps.dt.strftime("%m-%d %H:%M")), f"{years[0]}, {stamps.dt.tz}"
    return list(stamps.dt.strftime("%Y-%m-%d %H:%M")), f"open, {stamps.dt.tz}"


def _places(prices: Any) -> int:
    """Return how many decimals show all of `prices`, 2 to 4."""
    import numpy as np

    known = prices[np.isfinite(prices)]
    return next((n for n in (2, 3) if np.allclose(known, known.round(n), 0, 1e-9)), 4)


def _figures(values: list[float], places: int) -> list[str]:
    return ["-" if math.isnan(v) else f"{v:,.{places}f}" for v in values]


def provenance_line(facts: dict[str, Any], seconds: float) -> str:
    """Return where an answer came from, in one line."""
    tiers = str(facts.get("tiers") or "nowhere").split()
    names = [t.partition(":")[0] if len(tiers) == 1 else t.replace(":", " x") for t in tiers]
    parts = [
        "SIMULATED" if facts.get("simulated") else "",
        f"{facts.get('provider')}/{facts.get('feed')}",
        f"from {', '.join(names)}",
        f"broker pages: {facts.get('broker_pages', 0)}",
        f"{seconds * 1000:,.1f} ms",
        "" if facts.get("adjustment") == "raw" else f"{facts.get('adjustment')}-adjusted",
        "extended hours" if facts.get("session") == "extended" else "",
        f"as of {facts['as_of']}: {facts['as_of_rests_on']}" if facts.get("as_of") else "",
        "delayed" if facts.get("delayed") else "",
        "fewer bars than asked for" if facts.get("truncated") else "",
        "last bar still forming" if facts.get("forming") else "",
        f"{facts['rejected_bars']} bars rejected" if facts.get("rejected_bars") else "",
        f"{facts['flagged_bars']} bars flagged" if facts.get("flagged_bars") else "",
        f"missing: {facts['missing']}" if facts.get("missing") else "",
        f"unverified: {facts['unverified']}" if facts.get("unverified") else "",
    ]
    return " | ".join(p for p in parts if p)
