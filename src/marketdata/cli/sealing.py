"""``marketdata db seal`` and ``db unseal``: intraday bars into chunks, and back into rows."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from marketdata.cli.backfill import OptionalSymbols, stopped_by_signals
from marketdata.cli.exits import DONE, INCOMPLETE
from marketdata.cli.options import ALL, command, symbols_of
from marketdata.cli.output import Output, size

if TYPE_CHECKING:
    from marketdata.config import Settings
    from marketdata.sealing import SealReport

Timeframe = Annotated[
    str, typer.Option("--timeframe", "-t", help="An intraday timeframe, such as 1min.")
]


def register(db: typer.Typer) -> None:
    """Add the commands to the group ``db``."""
    command(db, "seal", ALL)(seal)
    command(db, "unseal", ALL)(unseal)


def seal(
    out: Output,
    settings: Settings,
    symbols: OptionalSymbols = None,
    before: Annotated[
        str | None,
        typer.Option(
            "--before",
            metavar="WHEN",
            help="Seal the sessions of earlier days; all but the newest MARKETDATA_SEAL_AFTER "
            "sessions by default.",
        ),
    ] = None,
    repin: Annotated[
        bool, typer.Option("--repin", help="Seal what was unsealed by hand, too.")
    ] = False,
) -> int:
    """Turn the rows of settled intraday sessions into compressed chunks.

    Without SYMBOLS: all. Stop it at any time, and run it again: it goes on where it stopped.
    """
    from marketdata import sealing
    from marketdata.ranges import read_moment
    from marketdata.wiring import Runtime

    named = symbols_of(symbols or []) or None
    with stopped_by_signals(out) as stop, closing(Runtime(settings)) as runtime:
        edge = None
        if before is not None:
            edge = read_moment(before, runtime.calendar(), runtime.clock.now_us(), "before")
        report = sealing.seal(runtime, stop, symbols=named, before=edge, repin=repin)
    out.line(
        f"{report.bars:,} bars of {report.series:,} series sealed; {report.chunks:,} chunks, "
        f"{size(report.bytes)}, written; {report.corrections:,} corrections merged; "
        f"{report.partitions} empty months of rows dropped"
    )
    return _done(out, report)


def unseal(
    out: Output,
    settings: Settings,
    symbol: Annotated[str, typer.Argument(metavar="SYMBOL", help="Such as AAPL.")],
    start: Annotated[
        str, typer.Option("--start", metavar="WHEN", help="First day: 2024-01-31, -5d.")
    ],
    end: Annotated[str, typer.Option("--end", metavar="WHEN", help="Exclusive end.")],
    timeframe: Timeframe = "1min",
    give_up: Annotated[
        bool,
        typer.Option(
            "--discard", help="Give up chunks that are damaged, for a backfill to fetch again."
        ),
    ] = False,
) -> int:
    """Make rows again of sealed days, for SQL, and keep them as rows.

    ``db seal --repin`` seals them again.
    """
    from marketdata import sealing
    from marketdata.ranges import resolve_window
    from marketdata.types import Interval
    from marketdata.types import Timeframe as Frame
    from marketdata.wiring import Runtime

    frame = Frame.parse(timeframe)
    with stopped_by_signals(out) as stop, closing(Runtime(settings)) as runtime:
        window = resolve_window(runtime.calendar(), runtime.clock.now_us(), start, end)
        first = window.start or 0
        if give_up:
            found = sealing.discard(runtime, symbol, frame, first, window.end)
            for key, spans in found.items():
                for span in spans:
                    interval = Interval.of(span)
                    out.row({"series": str(key), "start": interval.start, "end": interval.end})
                    out.line(f"{key}: given up {interval}")
            count = sum(map(len, found.values()))
            out.line(f"{count} damaged chunks given up; marketdata backfill {symbol} fetches them")
            return out.done(DONE, discarded=count)
        report = sealing.unseal(runtime, symbol, frame, first, window.end, stop)
    out.line(f"{report.bars:,} bars are rows of market_data_bars now, and stay so")
    return _done(out, report)


def _done(out: Output, report: SealReport) -> int:
    for failed in report.failed:
        out.note(f"failed: {failed}", style="red")
    code = INCOMPLETE if report.failed or report.stopped else DONE
    return out.done(code, **report.summary(), stopped=report.stopped)
