"""``marketdata import``: bars from files, or from a query on a table of the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marketdata.cli.exits import DONE, INCOMPLETE
from marketdata.cli.options import ALL, command
from marketdata.cli.output import Output, instant, make_table
from marketdata.clock import from_micros
from marketdata.errors import RequestError

if TYPE_CHECKING:
    from marketdata.config import Settings
    from marketdata.files import Shape, Table
    from marketdata.files.parsing import Times
    from marketdata.import_report import ImportReport
    from marketdata.importing import Importer, Statement
    from marketdata.wiring import Runtime

OWN = "import"
"""The provider of bars whose origin nobody states."""
_STATED = "What the rows are (nothing of this is guessed)"
_TABLE = "What the table looks like"


def _stated(*flags: str, say: str, **more: Any) -> Any:
    return typer.Option(*flags, help=say, rich_help_panel=_STATED, **more)


def _look(*flags: str, say: str, **more: Any) -> Any:
    return typer.Option(*flags, help=say, rich_help_panel=_TABLE, **more)


def register(app: typer.Typer) -> None:
    command(app, "import", ALL)(import_)


def import_(
    out: Output,
    settings: Settings,
    timeframe: Annotated[str, _stated("--timeframe", "-t", say="1min, 1day and so on.")],
    basis: Annotated[
        str,
        _stated(
            "--basis",
            metavar="raw|split",
            say="Prices as traded, or divided for later splits, which is undone.",
        ),
    ],
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATHS...", help="CSV, CSV.gz or Parquet files, or directories."),
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(metavar="SQL", help="Instead of files: a SELECT on your own table."),
    ] = None,
    from_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where the query runs: postgresql://...")
    ] = None,
    provider: Annotated[str, _stated("--provider", say="Whose bars they are.")] = OWN,
    feed: Annotated[
        str | None, _stated("--feed", say="Of which feed; the provider's name by default.")
    ] = None,
    as_broker: Annotated[
        bool,
        _stated("--as-broker", say="They count as the broker's own: reads of its bars use them."),
    ] = False,
    tz: Annotated[
        str | None, _stated("--tz", metavar="ZONE", say="Of times written without one.")
    ] = None,
    label: Annotated[
        str, _stated("--label", metavar="open|close", say="Which end of a bar its time names.")
    ] = "open",
    covers: Annotated[
        str | None,
        _stated(
            "--covers",
            metavar="START:END",
            say="These are all the bars of that time, end exclusive. Without it nothing counts "
            "as covered, and reads ask the broker again.",
        ),
    ] = None,
    splits: Annotated[
        Path | None,
        _stated("--splits", say="CSV with symbol,ex_date,new,old: every split of --basis split."),
    ] = None,
    adjusted_on: Annotated[
        str | None,
        _stated("--adjusted-on", metavar="DATE", say="When prices were divided; now by default."),
    ] = None,
    columns: Annotated[
        str | None,
        _look("--columns", metavar="OURS=THEIRS,...", say="open=o,timestamp=date+time"),
    ] = None,
    symbol: Annotated[
        str | None, _look("--symbol", say="The symbol of all rows, if no column has it.")
    ] = None,
    time_format: Annotated[
        str | None,
        _look("--time-format", say="strptime's, or epoch_s _ms _us _ns; ISO 8601 by default."),
    ] = None,
    dates: Annotated[
        bool, _look("--dates", say="Only the date of a time counts: daily bars and coarser.")
    ] = False,
    delimiter: Annotated[str, _look("--delimiter", say="Between the cells of a CSV.")] = ",",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report what would be kept; store nothing.")
    ] = False,
) -> int:
    """Store bars of your own, through the same gates as a broker's.

    Rows that cannot be bars are counted, shown, and end with exit code 3; the others are stored.

    For example: marketdata import minutes.csv.gz -t 1min --basis raw --tz America/New_York
    """
    from marketdata.cli.import_statement import shape_of, statement_of, times_of
    from marketdata.importing import Importer
    from marketdata.keeping import FetchTrace
    from marketdata.progress import progress
    from marketdata.wiring import Runtime

    files = _checked_source(paths or [], query, from_url)
    shape = shape_of(columns, symbol, delimiter)
    with ExitStack() as closing:
        runtime = Runtime(settings)
        closing.callback(runtime.close)
        statement = statement_of(
            runtime, timeframe, basis, label, provider, feed, as_broker, covers, splits, adjusted_on
        )
        how = times_of(statement.timeframe, tz, time_format, dates)
        trace = FetchTrace()
        with progress(settings.progress, "import") as shown:

            def show(report: ImportReport) -> None:
                if shown is not None:
                    trace.bars = report.rows
                    shown(trace)

            importer = Importer(runtime, statement, dry_run=dry_run, progress=show)
            held = _adopt(runtime, statement, dry_run)
            for opened in _sources(files, query, from_url, shape):
                with opened as table:
                    _load(importer, table, how, runtime)
            report = importer.finish()
    return _say(out, statement, report, dry_run, held)


def _adopt(runtime: Runtime, statement: Statement, dry_run: bool) -> tuple[str, str] | None:
    """Record whose bars this database holds, if nobody has; return whose they are."""
    from marketdata.sources import SANDBOX

    if dry_run or statement.provider == SANDBOX:
        return runtime.store.recorded()
    return runtime.store.adopt(statement.provider, statement.feed)


def _load(importer: Importer, table: Table, how: Times, runtime: Runtime) -> None:
    from marketdata.files.parsing import parsed

    for rows in parsed(table, how, runtime.calendar()):
        importer.add(rows)
    importer.leave_out(table.malformed, [f"{table.name}: {text}" for text in table.examples])


# ------------------------------------------------------------------------------------ source


def _checked_source(paths: Sequence[Path], query: str | None, from_url: str | None) -> list[Path]:
    """Return the files named, having checked that there is one source and no more."""
    from marketdata.files.reading import files_of

    if bool(paths) == (query is not None):
        raise RequestError(
            "files and --query together" if paths else "nothing to import",
            cure="give paths, or --query SQL --from-url URL",
        )
    if (query is None) != (from_url is None):
        raise RequestError(
            "--query and --from-url belong together",
            cure="give both: the SELECT, and the database it runs on",
        )
    return files_of(paths)


def _sources(
    files: Sequence[Path], query: str | None, from_url: str | None, shape: Shape
) -> Iterator[Any]:
    """Yield a context manager of each table."""
    from marketdata.files import open_table

    if query is not None and from_url is not None:
        yield _queried(from_url, query, shape)
    for path in files:
        yield open_table(path, shape)


@contextmanager
def _queried(url: str, query: str, shape: Shape) -> Iterator[Table]:
    from marketdata.files.reading import csv_table
    from marketdata.store.foreign import copied_csv

    with copied_csv(url, query) as stream:
        yield csv_table("the query", stream, shape)


# ------------------------------------------------------------------------------------ report


def _say(
    out: Output,
    statement: Statement,
    report: ImportReport,
    dry_run: bool,
    held: tuple[str, str] | None,
) -> int:
    whose = f"{statement.provider}/{statement.feed}"
    table = make_table("reason", "rows", "for example", right=["rows"])
    for reason, count in report.rejected.most_common():
        examples = report.examples.get(reason, [])
        out.row({"rejected": reason, "rows": count, "examples": examples})
        for at, text in enumerate(examples or [""]):
            table.add_row("" if at else reason, "" if at else f"{count:,}", text)
    if report.rejected:
        out.table(table)
    out.line(_line(statement, report, dry_run))
    for name, reason in report.failed.items():
        out.note(f"{name}: {reason}", style="red")
    if report.rejected["off_grid"] and not statement.timeframe.intraday:
        out.note(
            f"{statement.timeframe} bars are labelled with midnight in New York; --dates takes the "
            "date of a time alone",
            style="yellow",
        )
    if not dry_run and held is not None and held != (statement.provider, statement.feed):
        out.note(
            f"this database is about {'/'.join(held)}: get_bars reads that, bars of {whose} lie "
            "beside it; marketdata export --provider gives them, and a MARKETDATA_SCHEMA of its "
            "own would serve them",
            style="yellow",
        )
    if statement.covers is None and report.kept:
        out.note(
            "nothing is recorded as covered: reads of this time ask the broker again, and fail "
            "where there is none; state --covers START:END if these are all the bars there are",
            style="yellow",
        )
    return out.done(
        DONE if report.complete else INCOMPLETE,
        **report.summary(),
        provider=statement.provider,
        feed=statement.feed,
        timeframe=statement.timeframe.value,
        dry_run=dry_run,
        failed=dict(report.failed),
    )


def _line(statement: Statement, report: ImportReport, dry_run: bool) -> str:
    spans = [k for k in report.symbols.values() if k.bars]
    words = [
        "would store" if dry_run else "stored",
        f"{report.kept:,} of {report.rows:,} rows as {statement.timeframe} bars of",
        f"{statement.provider}/{statement.feed}: {len(spans):,} symbols",
    ]
    if spans:
        first, last = min(k.first for k in spans), max(k.last for k in spans)
        words.append(f"from {instant(from_micros(first))} to {instant(from_micros(last))}")
    more = {
        "rejected": report.rejected.total(),
        "flagged": report.flagged,
        "multiplied back": report.unsplit,
        "series covered": report.covered,
    }
    return ", ".join([" ".join(words), *(f"{n:,} {what}" for what, n in more.items() if n)])
