"""``marketdata export``: what is stored, as Parquet or CSV."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from marketdata.cli.exits import DONE, INCOMPLETE
from marketdata.cli.options import (
    ALL,
    AsOf,
    End,
    Feed,
    Period,
    Start,
    TimeframeOption,
    command,
    symbols_of,
)
from marketdata.cli.output import Output, described, instant, make_table
from marketdata.clock import from_micros
from marketdata.errors import InvalidSymbolError, RequestError

if TYPE_CHECKING:
    from types import FrameType

    from marketdata.config import Settings
    from marketdata.exporting import ExportReport, Wanted
    from marketdata.files import BarsFile, FileFormat
    from marketdata.ranges import Window
    from marketdata.wiring import Runtime

SHOWN = 20
"""Gaps a table shows."""


def register(app: typer.Typer) -> None:
    command(app, "export", ALL)(export)


def export(
    out: Output,
    settings: Settings,
    to: Annotated[
        str, typer.Option(metavar="PATH", help="A file, a directory/, or - for CSV on stdout.")
    ],
    symbols: Annotated[
        list[str] | None, typer.Argument(metavar="SYMBOLS...", help="Such as AAPL BRK.B.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every symbol that is stored in this timeframe.")
    ] = False,
    timeframe: TimeframeOption = "1day",
    start: Start = None,
    end: End = None,
    period: Period = None,
    kind: Annotated[
        str | None,
        typer.Option("--format", metavar="parquet|csv", help="By the path's ending by default."),
    ] = None,
    partitioned: Annotated[
        bool, typer.Option(help="A directory with one file a symbol: symbol=AAPL/bars.parquet.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    adjustment: Annotated[
        str, typer.Option(metavar="raw|split|dividend|all", help="Prices.")
    ] = "raw",
    session: Annotated[
        str, typer.Option("--session", metavar="HOURS", help="regular or extended.")
    ] = "extended",
    feed: Feed = None,
    provider: Annotated[
        str | None, typer.Option(help="Whose bars, where not the configured broker's.")
    ] = None,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Fetch what is missing of --start or --period first.")
    ] = False,
    as_of: AsOf = None,
) -> int:
    """Write stored bars to a file; ask no broker unless told to with --fetch.

    Without --start and --period: all that is stored. Gaps are listed, and end with exit code 3.

    For example: marketdata export AAPL MSFT -t 1min --to bars.parquet
    """
    from marketdata.clock import Deadline
    from marketdata.exporting import export as export_bars
    from marketdata.keeping import FetchTrace
    from marketdata.progress import progress
    from marketdata.wiring import Runtime

    place = _place(to, kind, partitioned or to.endswith("/"), out)
    runtime = Runtime(settings)
    try:
        wanted = _wanted(
            runtime, symbols, every, timeframe, _window(runtime, start, end, period, as_of),
            session, adjustment, feed, provider, fetch, _moment(runtime, as_of),
        )  # fmt: skip
        trace = FetchTrace()
        label = f"{len(wanted.symbols)} x {wanted.timeframe}"
        with (
            _unwound_by_sigterm(),
            _file(to, place, wanted, force) as file,
            progress(settings.progress, label) as shown,
        ):

            def show(report: ExportReport) -> None:
                if shown is not None:
                    trace.bars = report.rows
                    shown(trace)

            report = export_bars(runtime, wanted, file, Deadline(settings.timeout), show)
    finally:
        runtime.close()
    return _say(out, to, wanted, report)


@contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that no unfinished file stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --------------------------------------------------------------------------------- arguments


def _place(to: str, kind: str | None, partitioned: bool, out: Output) -> tuple[FileFormat, bool]:
    """Return the format, and whether a directory is wanted."""
    from marketdata.files import FileFormat

    if to == "-":
        if out.as_json:
            raise RequestError("--to - and --json both want stdout", cure="give one of them")
        if kind not in (None, "csv") or partitioned:
            raise RequestError("stdout takes one CSV", cure="give --to a path")
        return "csv", False
    named = kind or Path(to).suffix.lstrip(".")
    for known in get_args(FileFormat):
        if named == known:
            return known, partitioned
    raise RequestError(
        f"no format is called {kind!r}" if kind else f"{to} does not say its format",
        cure="give --format parquet, or csv",
    )


def _moment(runtime: Runtime, as_of: str | None) -> int | None:
    from marketdata.ranges import read_as_of

    now_us = runtime.clock.now_us()
    return None if as_of is None else read_as_of(as_of, runtime.calendar(), now_us)


def _window(
    runtime: Runtime, start: str | None, end: str | None, period: str | None, as_of: str | None
) -> Window | None:
    from marketdata.ranges import resolve_window

    if start is None and period is None:
        if end is not None:
            raise RequestError("--end alone has no beginning", cure="give --start or --period too")
        return None
    moment = _moment(runtime, as_of)
    return resolve_window(
        runtime.calendar(),
        runtime.clock.now_us() if moment is None else moment,
        start=start,
        end=end,
        period=period,
        as_of=moment is not None,
    )


def _wanted(
    runtime: Runtime,
    symbols: list[str] | None,
    every: bool,
    timeframe: str,
    window: Window | None,
    session: str,
    adjustment: str,
    feed: str | None,
    provider: str | None,
    fetch: bool,
    as_of_us: int | None,
) -> Wanted:
    from marketdata.arguments import adjustment_of, check_choice
    from marketdata.exporting import Wanted
    from marketdata.types import Timeframe, unique_symbols

    parsed = Timeframe.parse(timeframe)
    chosen = adjustment_of(adjustment)
    check_choice("session", session, ("regular", "extended"))
    whose = (provider or runtime.provider).strip().lower()
    ours = whose == runtime.provider
    feed = runtime.feed_named(feed) if ours else _feed_of(runtime, whose, feed)
    names = unique_symbols(symbols_of(symbols or []))
    if every == bool(names):
        raise InvalidSymbolError(
            "both symbols and --all" if every else "no symbols given",
            cure="give symbols, or --all for every one that is stored",
        )
    if every:
        names = _stored_symbols(runtime, whose, feed, parsed)
    return Wanted(
        whose, feed, tuple(names), parsed, window,
        "regular" if session == "regular" else "extended", chosen, fetch, as_of_us,
    )  # fmt: skip


def _feed_of(runtime: Runtime, provider: str, feed: str | None) -> str:
    """Return the feed of a provider that this process does not ask, from what is stored of it."""
    held = sorted({key.feed for key in runtime.store.series() if key.provider == provider})
    named = feed.strip().lower() if feed else (held[0] if len(held) == 1 else None)
    if named is None or named not in held:
        raise RequestError(
            f"of {provider} there are the feeds {', '.join(held)}" if held
            else f"nothing of {provider} is stored",
            cure="name one with --feed" if held else "marketdata status shows what is stored",
        )  # fmt: skip
    return named


def _stored_symbols(runtime: Runtime, provider: str, feed: str, timeframe: object) -> list[str]:
    from marketdata.types import Timeframe

    assert isinstance(timeframe, Timeframe)
    source = Timeframe.MIN_1 if timeframe.intraday else Timeframe.DAY_1
    found = {
        key.symbol
        for key in runtime.store.series()
        if (key.provider, key.feed) == (provider, feed) and key.timeframe in (timeframe, source)
    }
    if not found:
        raise RequestError(
            f"nothing of {provider}/{feed} is stored that gives {timeframe} bars",
            cure="marketdata status shows what is stored",
        )
    return sorted(found)


@contextmanager
def _file(
    to: str, place: tuple[FileFormat, bool], wanted: Wanted, force: bool
) -> Iterator[BarsFile]:
    from marketdata.files import stream_csv, write_bars
    from marketdata.sources import SANDBOX

    if to == "-":
        yield stream_csv(sys.stdout.buffer)
        return
    kind, partitioned = place
    facts = {
        "provider": wanted.provider,
        "feed": wanted.feed,
        "timeframe": wanted.timeframe.value,
        "adjustment": wanted.adjustment,
        "session": wanted.session,
        **({} if wanted.as_of_us is None else {"as_of": from_micros(wanted.as_of_us).isoformat()}),
        **({"origin": "SIMULATED"} if wanted.provider == SANDBOX else {}),
    }
    with write_bars(Path(to), kind, facts, partitioned=partitioned, replace=force) as file:
        yield file


# ------------------------------------------------------------------------------------ report


def _say(out: Output, to: str, wanted: Wanted, report: ExportReport) -> int:
    if to != "-":
        _tables(out, report)
    for symbol, error in report.failed.items():
        out.note(f"{symbol}: {described(error)}", style="red")
    if report.gaps:
        out.note(
            f"{len(report.gaps)} of {len(wanted.symbols)} symbols have gaps"
            + ("" if wanted.fetch else "; --fetch fills them, marketdata gaps shows them"),
            style="yellow",
        )
    if to != "-":
        out.note(f"wrote {to} ({report.rows:,} bars of {report.symbols:,} symbols)")
    return out.done(
        DONE if report.complete else INCOMPLETE,
        **report.summary(),
        path=to,
        gaps=sorted(report.gaps),
        failed={symbol: error.to_record() for symbol, error in report.failed.items()},
    )


def _tables(out: Output, report: ExportReport) -> None:
    """Print the first gaps; a symbol of which nothing is stored is one gap without ends."""
    table = make_table("symbol", "gap from (UTC)", "to, exclusive")
    rows = [
        (symbol, *((None, None) if span is None else map(from_micros, span)))
        for symbol, spans in report.gaps.items()
        for span in spans or (None,)
    ]
    for symbol, first, last in rows[:SHOWN]:
        out.row({"symbol": symbol, "gap_start": first, "gap_end": last})
        table.add_row(symbol, instant(first) or "nothing is stored", instant(last))
    if rows:
        out.table(table)
    if rows[SHOWN:]:
        out.line(f"and {len(rows) - SHOWN:,} more", "dim")
