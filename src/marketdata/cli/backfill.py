"""``marketdata backfill``: fill years of history; print the plan, the progress and the report."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from marketdata.cli.backfill_progress import clock, shown_progress
from marketdata.cli.exits import DONE, INCOMPLETE, INTERRUPTED
from marketdata.cli.options import ALL, End, Feed, Start, command, symbols_of
from marketdata.cli.output import Output, instant, make_table, size
from marketdata.errors import RequestError

if TYPE_CHECKING:
    from marketdata.backfill_plan import Gap
    from marketdata.backfill_price import Price
    from marketdata.backfill_report import BackfillPlan, BackfillReport, Failed, Limits, Wanted
    from marketdata.config import Settings
    from marketdata.wiring import Runtime

_SHOWN: Final = 20
_LAST_RESORT: Final = 24.0
"""Seconds from the first signal to the end, whatever hangs."""
_AT_ONCE: Final = 1.0
_SHOW_CURSOR: Final = b"\x1b[?25h"

OptionalSymbols = Annotated[
    list[str] | None, typer.Argument(metavar="[SYMBOLS...]", help="Such as AAPL BRK.B.")
]
Timeframes = Annotated[
    list[str] | None,
    typer.Option("--timeframe", "-t", help="1day and 1min by default; repeatable."),
]


def register(app: typer.Typer) -> None:
    command(app, "backfill", ALL)(backfill)


# ----------------------------------------------------------------------------------- backfill


def backfill(
    out: Output,
    settings: Settings,
    symbols: OptionalSymbols = None,
    file: Annotated[
        Path | None, typer.Option(help="Symbols from a file: a line each, # begins a comment.")
    ] = None,
    all_subscribed: Annotated[
        bool, typer.Option("--all-subscribed", help="All symbols that anybody is subscribed to.")
    ] = False,
    timeframe: Timeframes = None,
    years: Annotated[
        float | None, typer.Option(help="Years before now; MARKETDATA_BACKFILL_YEARS by default.")
    ] = None,
    start: Start = None,
    end: End = None,
    feed: Feed = None,
    max_symbols: Annotated[
        int, typer.Option(min=0, help="End after the minutes of so many symbols; 0 is all.")
    ] = 50,
    max_calls: Annotated[
        int | None, typer.Option(min=1, help="End after so many broker requests.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="HH:MM", help="End at this time in New York.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and its price; change nothing.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try now what failed before its next retry.")
    ] = False,
    reset: Annotated[
        bool, typer.Option("--reset", help="Forget what failed before; then run.")
    ] = False,
) -> int:
    """Fill years of history: what is missing, newest month first.

    Without SYMBOLS: those subscribed to; where nobody is, those stored. Stop it at any time, and
    run it again: it goes on where it stopped. Exit code 3: some series failed, and are listed.
    """
    from marketdata.backfill import Backfill
    from marketdata.wiring import Runtime

    named = _named(symbols, file)
    wanted = _wanted(named, timeframe, years, start, end, feed, retry_failed)
    limits = _limits(max_symbols, max_calls, until)
    with stopped_by_signals(out) as stop, closing(Runtime(settings)) as runtime:
        if named is None:
            _require_symbols(runtime, all_subscribed)
        job = Backfill(runtime, stop)
        if reset and not dry_run:
            out.note(f"{job.reset(wanted)} failures forgotten")
        plan = job.plan(wanted, limits)
        if runtime.simulated:
            out.note("SIMULATED prices")
        _show_plan(out, plan, dry_run=dry_run)
        if dry_run:
            return out.done(DONE, **plan.summary())
        with shown_progress(out, settings.progress) as show:
            report = job.run(wanted, limits, show, plan)
    return _show_report(out, report)


def _named(symbols: list[str] | None, file: Path | None) -> tuple[str, ...] | None:
    from marketdata.cli.subscriptions import read_universe

    found = [*symbols_of(symbols or []), *(read_universe(file) if file else [])]
    if not found and (symbols or file):
        raise RequestError("no symbols given", cure="name them, or check --file")
    return tuple(found) or None


def _require_symbols(runtime: Runtime, all_subscribed: bool) -> None:
    if runtime.subscriptions.wanted():
        return
    if all_subscribed:
        raise RequestError(
            "nobody is subscribed to anything",
            cure="marketdata subscribe AAPL -t 1min --owner me, or name the symbols",
        )
    if not runtime.store.known_symbols():
        raise RequestError(
            "nobody is subscribed, and nothing is stored",
            cure="name the symbols: marketdata backfill AAPL MSFT",
        )


def _wanted(
    named: tuple[str, ...] | None,
    timeframes: list[str] | None,
    years: float | None,
    start: str | None,
    end: str | None,
    feed: str | None,
    retry_failed: bool,
) -> Wanted:
    from marketdata.backfill_report import Wanted
    from marketdata.types import Timeframe, unique_symbols

    if years is not None and start is not None:
        raise RequestError("--years and --start contradict each other", cure="give one of them")
    parsed = tuple(
        dict.fromkeys(Timeframe.parse(t) for text in timeframes or () for t in text.split(","))
    )
    return Wanted(
        symbols=None if named is None else tuple(unique_symbols(named)),
        timeframes=parsed or None,
        years=years,
        start=start,
        end=end,
        feed=feed,
        retry_failed=retry_failed,
    )


def _limits(max_symbols: int, max_calls: int | None, until: str | None) -> Limits:
    from marketdata.backfill_price import parse_wall_time
    from marketdata.backfill_report import Limits

    if until is not None:
        parse_wall_time(until)
    return Limits(max_symbols, max_calls, until)


@contextmanager
def stopped_by_signals(out: Output) -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set; a second one ends the process.

    What hangs then, such as a server that answers no more, is left to the kernel: its transaction
    rolls back.
    """
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if not stop.is_set():
            stop.set()
            _end_within(_LAST_RESORT, number)
            out.note("stopping; what is complete is being stored (Ctrl-C again to end at once)")
            return
        _end_within(_AT_ONCE, number)
        signal.signal(number, signal.SIG_DFL)
        signal.default_int_handler(number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    kept = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    for number in kept:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _end_within(seconds: float, number: int) -> None:
    """End the process then if it has not ended by itself: threads that hang would hold it."""

    def end() -> None:
        if sys.stderr.isatty():
            os.write(2, _SHOW_CURSOR)
        os._exit(128 + number)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


# --------------------------------------------------------------------------------------- plan


def _show_plan(out: Output, plan: BackfillPlan, *, dry_run: bool) -> None:
    gaps = plan.audit.gaps()
    if dry_run:
        for gap in gaps:
            out.row(_gap_record(gap))
        _show_chunks(out, plan)
        _show_states(out, gaps)
    say = out.line if dry_run else out.note
    if not plan.chunks:
        say("nothing to fetch")
        return
    say(f"this run: {_priced(plan.this_run)}, at {plan.calls_a_minute:,} calls a minute")
    if plan.later.chunks:
        say(f"left for later: {_priced(plan.later)}; --max-symbols 0 takes all at once")
    forecast = plan.forecast
    if dry_run and forecast.finished is not None:
        way = f"; sooner with {forecast.brought_forward_by}" if forecast.brought_forward_by else ""
        nights = "one night" if forecast.nights == 1 else f"{forecast.nights} nights"
        say(f"nightly runs take {nights} and are done on {forecast.finished}{way}")


def _priced(price: Price) -> str:
    symbols = "1 symbol" if price.symbols == 1 else f"{price.symbols:,} symbols"
    return (
        f"{symbols}, at most {price.calls:,} calls, {price.bars:,} bars, "
        f"{size(price.bytes)}, {_minutes(price.minutes)}"
    )


def _minutes(minutes: float) -> str:
    if minutes < 1:
        return "under a minute"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _show_chunks(out: Output, plan: BackfillPlan) -> None:
    from marketdata.backfill_price import price
    from marketdata.clock import from_micros

    right = ("symbols", "calls", "bars", "size")
    table = make_table("timeframe", "from", "to", "stored", *right, right=right)
    groups: dict[tuple[str, bool], list[Any]] = {}
    for chunk in plan.chunks:
        groups.setdefault((chunk.fetch.base.value, chunk.fetch.sealed), []).append(chunk)
    for (timeframe, sealed), chunks in groups.items():
        cost = price(chunks, plan.calls_a_minute)
        first = from_micros(min(c.fetch.span.start for c in chunks))
        last = from_micros(max(c.fetch.span.end for c in chunks) - 1)
        numbers = (cost.symbols, cost.calls, cost.bars)
        table.add_row(
            timeframe,
            f"{first:%Y-%m-%d}",
            f"{last:%Y-%m-%d}",
            "sealed" if sealed else "rows",
            *(f"{n:,}" for n in numbers),
            size(cost.bytes),
        )
    if groups:
        out.table(table)
        out.line()


def _show_states(out: Output, gaps: Sequence[Gap]) -> None:
    if not gaps:
        return
    table = make_table("gaps", "timeframe", "series", "stretches", right=["series", "stretches"])
    counted = Counter((gap.state, gap.key.timeframe.value) for gap in gaps)
    for (state, timeframe), count in counted.items():
        series = {g.key for g in gaps if g.state == state and g.key.timeframe.value == timeframe}
        table.add_row(state, timeframe, f"{len(series):,}", f"{count:,}")
    out.table(table)
    out.line()
    for gap in [g for g in gaps if g.failure is not None][:_SHOWN]:
        record = _gap_record(gap)
        out.line(
            f"{gap.key.symbol} {gap.key.timeframe}: next try {instant(record['next_retry'])} UTC, "
            f"attempts {record['attempts']}, the last one {instant(record['last_failed'])} UTC, "
            f"{record['error']}"
        )


def _gap_record(gap: Gap) -> dict[str, Any]:
    from marketdata.clock import from_micros

    record: dict[str, Any] = {
        "symbol": gap.key.symbol,
        "timeframe": gap.key.timeframe.value,
        "start": from_micros(gap.span.start),
        "end": from_micros(gap.span.end),
        "state": gap.state,
    }
    if gap.failure is not None:
        record |= {
            "error": gap.failure.error,
            "attempts": gap.failure.attempts,
            "last_failed": from_micros(gap.failure.failed_us),
            "next_retry": from_micros(gap.failure.retry_us),
        }
    return record


# ------------------------------------------------------------------------------------- report

_ENDED: Final = {
    "complete": "all that was asked for is stored",
    "max-symbols": "ended at --max-symbols",
    "max-calls": "ended at --max-calls",
    "until": "ended at --until",
    "stopped": "stopped; run the same command again to go on from here",
}


def _show_report(out: Output, report: BackfillReport) -> int:
    from marketdata.clock import from_micros

    right = ("series", "bars", "no bars", "doubtful")
    table = make_table("timeframe", *right, right=right)
    for timeframe in dict.fromkeys(f.key.timeframe for f in report.filled):
        mine = [f for f in report.filled if f.key.timeframe is timeframe]
        empty = sum(not f.bars for f in mine)
        doubtful = sum(bool(f.doubt and f.bars) for f in mine)
        bars = sum(f.bars for f in mine)
        table.add_row(timeframe.value, f"{len(mine):,}", f"{bars:,}", str(empty), str(doubtful))
    for filled in report.filled:
        key = {"symbol": filled.key.symbol, "timeframe": filled.key.timeframe.value}
        figures = {"bars": filled.bars, "sessions": filled.sessions}
        expected = {"expected_sessions": filled.expected_sessions, "doubt": filled.doubt}
        out.row({**key, **figures, **expected})
    if report.filled:
        out.table(table)
        out.line()
    for filled in [f for f in report.filled if f.doubt][:_SHOWN]:
        out.line(f"{filled.key.symbol} {filled.key.timeframe}: {filled.doubt}")
    for failed in report.failed:
        retry = from_micros(failed.retry_us)
        key = {"symbol": failed.key.symbol, "timeframe": failed.key.timeframe.value}
        out.row({**key, "state": "failed", "error": failed.error, "next_retry": retry})
    for (symbol, error), of in _by_symbol(report).items():
        timeframes = " ".join(f.key.timeframe.value for f in of)
        soonest = from_micros(min(f.retry_us for f in of))
        text = f"{symbol} {timeframes} failed, next try {instant(soonest)} UTC: {error}"
        out.line(text, style="yellow")
    for key_left in report.gaps_left:
        out.line(f"{key_left} still has gaps: run it again", style="yellow")
    _say_end(out, report)
    failed_symbols = sorted({f.key.symbol for f in report.failed})
    return out.done(_code(report), **{**report.summary(), "failed_symbols": failed_symbols})


def _by_symbol(report: BackfillReport) -> dict[tuple[str, str], list[Failed]]:
    groups: dict[tuple[str, str], list[Failed]] = {}
    for failed in report.failed:
        groups.setdefault((failed.key.symbol, failed.error), []).append(failed)
    return groups


def _say_end(out: Output, report: BackfillReport) -> None:
    rate = (
        f", {report.bars / report.seconds:,.0f} a second" if report.seconds and report.bars else ""
    )
    out.line(
        f"{report.bars:,} bars in {clock(report.seconds)}{rate}; "
        f"{report.calls:,} calls, {report.planned_calls:,} planned"
    )
    text = _ENDED[report.ended]
    if report.ended == "complete" and not report.complete:
        text = "done, but for what is listed above"
    if report.left.chunks:
        text += f"; left: {_priced(report.left)}"
    out.line(text)


def _code(report: BackfillReport) -> int:
    if report.stopped:
        return INTERRUPTED
    return DONE if report.complete else INCOMPLETE
