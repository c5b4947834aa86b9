"""``marketdata verify``: hold what is stored against the broker."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Final

import typer

from marketdata.cli.backfill import OptionalSymbols, stopped_by_signals
from marketdata.cli.exits import DONE, INCOMPLETE, INTERRUPTED, exit_code
from marketdata.cli.options import ALL, End, Feed, Start, command, symbols_of
from marketdata.cli.output import Output, instant, make_table
from marketdata.errors import RequestError

if TYPE_CHECKING:
    from marketdata.config import Settings
    from marketdata.drift import VerifyReport

_SHOWN: Final = 20
_BUSIEST: Final = 5


def register(app: typer.Typer) -> None:
    command(app, "verify", ALL)(verify)


def verify(
    out: Output,
    settings: Settings,
    symbols: OptionalSymbols = None,
    sample: Annotated[
        int, typer.Option(min=1, help="How many sessions (for days: months) to compare.")
    ] = 20,
    everything: Annotated[
        bool, typer.Option("--all", help="Compare all that is stored, not a sample.")
    ] = False,
    start: Start = None,
    end: End = None,
    timeframe: Annotated[
        list[str] | None,
        typer.Option("--timeframe", "-t", help="Of stored bars: 1min, 1day; repeatable."),
    ] = None,
    feed: Feed = None,
    correct: Annotated[
        bool, typer.Option("--correct", help="Store what differs as the broker has it.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(metavar="BROKER", help="Compare the named symbols with this broker's bars."),
    ] = None,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(help="With --against: 0.002, or by field: close=0.002; repeatable."),
    ] = None,
) -> int:
    """Read stored bars from the broker again and report what differs.

    A sample is drawn anew each day. Exit code 3: something differs. With --against two brokers are
    compared instead, by symbol and field: raw bars, 1day unless -t names others.
    """
    if against is None and tolerance:
        raise RequestError(
            "--tolerance belongs to --against: what is stored either equals the broker's or differs",
            cure="leave it out, or name a broker: --against yahoo",
        )
    if against is not None:
        from marketdata.cli.cross_check import cross_check

        if correct or everything or feed is not None:
            raise RequestError(
                "--against compares two brokers' bars and stores no correction",
                cure="leave out --correct, --all and --feed; --start and --end choose the bars",
            )
        listed, named_frames = symbols_of(symbols or []), timeframe or ["1day"]
        return cross_check(
            out, settings, listed, named_frames, against, tolerance or [], start=start, end=end
        )
    from marketdata.types import Timeframe
    from marketdata.verifying import verify as compare
    from marketdata.wiring import Runtime

    named = symbols_of(symbols or []) or None
    parsed = [Timeframe.parse(t) for t in timeframe] if timeframe else None
    with stopped_by_signals(out) as stop, closing(Runtime(settings)) as runtime:
        if runtime.simulated:
            out.note("SIMULATED prices")
        report = compare(
            runtime,
            symbols=named,
            timeframes=parsed,
            start=start,
            end=end,
            feed=feed,
            sample=None if everything else sample,
            correct=correct,
            stop=stop,
        )
    return _show_drift(out, report, correct)


def _show_drift(out: Output, report: VerifyReport, correct: bool) -> int:
    from marketdata.clock import from_micros

    right = ("bars", "largest difference", "of the value")
    table = make_table("column", *right, right=right)
    for drift in report.fields:
        sizes = f"{drift.largest_absolute:g}", f"{drift.largest_relative:.2e}"
        table.add_row(drift.field, f"{drift.bars:,}", *sizes)
        out.row({name: getattr(drift, name) for name in drift.__slots__})
    if report.fields:
        out.table(table)
        out.line()
    for found in report.drifts:
        key = {"symbol": found.key.symbol, "timeframe": found.key.timeframe.value}
        span = {"start": from_micros(found.span.start), "end": from_micros(found.span.end)}
        counts = {"changed": found.changed, "missing_here": found.missing_here}
        out.row({**key, **span, **counts, "missing_there": found.missing_there})
    for found in report.drifts[:_SHOWN]:
        out.line(
            f"{found.key.symbol} {found.key.timeframe} {instant(from_micros(found.span.start))}: "
            f"{found.changed} changed, {found.missing_here} missing here, "
            f"{found.missing_there} missing there"
        )
    for failed in report.failed:
        out.note(f"{failed.key} not compared: {failed.error}", style="yellow")
    for key_doubted in report.suspicious:
        out.note(f"{key_doubted}: the broker lacks too many bars to be believed", style="yellow")
    _show_past(out, report)
    _say_verified(out, report, correct)
    return out.done(_drift_code(report), **report.summary())


def _show_past(out: Output, report: VerifyReport) -> None:
    """Print what was replaced before, what the provider has withdrawn, and the corporate actions
    without a factor."""
    from marketdata.clock import from_micros
    from marketdata.drift import by_stage_and_field

    counts = by_stage_and_field(report.counts)
    right = ("bars", "largest change")
    table = make_table("replaced so far", "column", *right, right=right)
    for count in counts:
        largest = f"{count.largest:.2e}" if count.largest else ""
        table.add_row(count.stage, count.field, f"{count.bars:,}", largest)
        out.row({"stage": count.stage, "column": count.field, "replaced": count.bars,
                 "largest": count.largest})  # fmt: skip
    if counts:
        out.table(table)
        out.line()
    for trail in report.trails:
        out.row({"symbol": trail.key.symbol, "timeframe": trail.key.timeframe.value,
                 "entries": trail.entries, "bars": trail.bars,
                 "newest": from_micros(trail.newest_us)})  # fmt: skip
    for trail in report.trails[:_BUSIEST]:
        out.line(
            f"{trail.key.symbol} {trail.key.timeframe}: {trail.bars:,} bars replaced "
            f"{trail.entries:,} times, last {instant(from_micros(trail.newest_us))}; see: "
            f"marketdata revisions {trail.key.symbol} -t {trail.key.timeframe}"
        )
    for tomb in report.tombstones:
        out.row({"symbol": tomb.key.symbol, "timeframe": tomb.key.timeframe.value,
                 "withdrawn": from_micros(tomb.label),
                 "observed": from_micros(tomb.observed_us)})  # fmt: skip
    for tomb in report.tombstones[:_SHOWN]:
        out.line(
            f"{tomb.key.symbol} {tomb.key.timeframe} {instant(from_micros(tomb.label))} was "
            f"withdrawn, observed {instant(from_micros(tomb.observed_us))}"
        )
    if report.tombstones[_SHOWN:]:
        out.line(f"and {len(report.tombstones) - _SHOWN:,} withdrawn bars more; --json has all")
    for doubt in report.doubts:
        out.row({"symbol": doubt.symbol, "ex_date": str(doubt.day), "doubt": doubt.why})
    for doubt in report.doubts[:_SHOWN]:
        out.line(f"prices cannot be adjusted across the actions of {doubt}", style="yellow")
    if report.doubts[_SHOWN:]:
        out.line(f"and {len(report.doubts) - _SHOWN:,} doubted ex-dates more; --json has all")


def _say_verified(out: Output, report: VerifyReport, correct: bool) -> None:
    out.line(
        f"{report.bars:,} bars in {report.stretches:,} stretches of {report.series:,} series "
        f"compared; {report.calls:,} calls"
    )
    if not report.drifted:
        nothing = "nothing could be compared: none of it is stored and final yet"
        out.line("nothing differs" if report.stretches else nothing)
    elif correct:
        out.line(f"{report.corrected:,} bars corrected, {report.withdrawn:,} taken out")
    else:
        out.line("--correct stores what the broker has", style="yellow")


def _drift_code(report: VerifyReport) -> int:
    if report.drifted:
        return INCOMPLETE
    if report.stopped:
        return INTERRUPTED
    return exit_code(report.failed[0].error) if report.failed else DONE
