"""``marketdata up`` runs every job by the market's clock; ``marketdata run`` runs one of them now."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Final

import typer

from marketdata.cli.exits import (
    BUSY,
    DONE,
    INCOMPLETE,
    INTERRUPTED,
    UNEXPECTED,
    USAGE,
    exit_code,
)
from marketdata.cli.options import ALL, command
from marketdata.cli.output import Output, described, make_table

if TYPE_CHECKING:
    from marketdata.config import Settings
    from marketdata.jobs import Ended

ENDS_WITHIN: Final = 25.0
"""Seconds from SIGTERM to the end, whatever runs."""
_LAST_RESORT: Final = 24.0
JOB_NAMES: Final = ("cycle", "backfill", "actions", "seal", "verify", "retention", "reconcile")


def register(app: typer.Typer) -> None:
    command(app, "up", ALL)(up)
    command(app, "run", ALL)(run)


def up(
    out: Output,
    settings: Settings,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for servers that are not there yet.")
    ] = 60.0,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Health and metrics; port 0 takes a free one."),
    ] = None,
    log_format: Annotated[
        str, typer.Option(metavar="FORMAT", help="Of the log: auto, text, logfmt or json.")
    ] = "auto",
) -> int:
    """Keep subscribed symbols fresh, until SIGTERM or Ctrl-C.

    Runs every job by the market's clock. Of several daemons on one database one acts, the others
    stand by.
    """
    from marketdata.cli.logs import FORMATS, send_daemon_logs
    from marketdata.daemon import Daemon

    if log_format not in FORMATS:
        out.note(
            f"error: --log-format {log_format} is not known -> use one of: {', '.join(FORMATS)}"
        )
        return out.done(USAGE)
    if listen is not None:
        settings = settings.model_copy(update={"listen": listen})
    # A daemon's log is how it is watched; a command's is for what goes wrong.
    level = settings.log if settings.source_of("log") != "default" else "info"
    send_daemon_logs(log_format, level)
    daemon = Daemon(settings, wait=wait)
    with ended_by_signals(daemon.stop) as signals:
        out.row({"url": daemon.url, "pid": os.getpid()})
        out.line(f"health and metrics at {daemon.url}; Ctrl-C ends it")
        sys.stdout.flush()
        clean = daemon.run()
    code = out.done(INTERRUPTED if signal.SIGINT in signals else DONE, cut_off=not clean)
    if not clean:
        # A thread that did not stop would hold the interpreter; its transaction rolls back.
        sys.stdout.flush()
        os._exit(code)
    return code


@contextmanager
def ended_by_signals(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Let SIGTERM and Ctrl-C call `stop`, for a block; yields the signals that came.

    Whatever hangs then, in the block or after it, is left to the kernel after `_LAST_RESORT`
    seconds, or at the third signal: its transaction rolls back.
    """
    came: list[int] = []
    timer = threading.Timer(_LAST_RESORT, os._exit, (UNEXPECTED,))
    timer.daemon = True

    def end(number: int, _: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            timer.start()
        elif len(came) > 2:
            os._exit(128 + number)
        stop()

    before = {each: signal.signal(each, end) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def run(
    out: Output,
    settings: Settings,
    job: Annotated[str, typer.Argument(metavar="JOB", help=" ".join(JOB_NAMES))],
) -> int:
    """Run one job of the daemon now, under its lock.

    For cron, Airflow and CronJobs. Exit code 3 if something failed, 75 if the job runs elsewhere.
    """
    if job not in JOB_NAMES:
        out.note(f"error: no job is called {job} -> use one of: {', '.join(JOB_NAMES)}")
        return out.done(USAGE)
    import logging

    from marketdata.jobs import JobRunner
    from marketdata.leadership import ProcessLeases
    from marketdata.protocols import Priority
    from marketdata.wiring import Runtime

    said_below = logging.getLogger("marketdata.jobs")
    level = said_below.level
    said_below.setLevel(level if out.debug else logging.CRITICAL)
    stop = threading.Event()
    try:
        with (
            ended_by_signals(stop.set) as signals,
            closing(Runtime(settings, priority=Priority.LIVE)) as runtime,
        ):
            book = runtime.job_leases
            leases = ProcessLeases(book)
            try:
                ended = JobRunner(runtime, leases, book, runtime.job_runs, stop).run(job)
            finally:
                leases.close()
    finally:
        said_below.setLevel(level)
    code = _report(out, ended)
    return INTERRUPTED if signal.SIGINT in signals else code


def _report(out: Output, ended: Ended) -> int:
    """Print how a run ended; return the exit code."""
    if ended.outcome == "busy":
        who = "somebody else"
        if ended.holder is not None:
            who = f"{ended.holder.holder} since {ended.holder.acquired_at:%Y-%m-%d %H:%M:%S} UTC"
        out.note(f"{ended.job} is being run by {who}; try again later", style="yellow")
        return out.done(BUSY, job=ended.job, outcome=ended.outcome, holder=who)
    if ended.error is not None and ended.outcome == "failed":
        out.note(f"error: {ended.job} failed: {described(ended.error)}", style="red")
    table = make_table("", "")
    table.show_header = False
    for name, value in ended.summary.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int | float) else str(value))
    out.line(f"{ended.job} {ended.outcome} in {ended.seconds:.1f} s", "bold")
    if ended.summary:
        out.table(table)
    for each in ended.failed[:20]:
        out.note(f"failed: {each}", style="yellow")
    if len(ended.failed) > 20:
        out.note(f"... and {len(ended.failed) - 20} more", style="yellow")
    return out.done(
        _code_of(ended),
        job=ended.job,
        outcome=ended.outcome,
        seconds=round(ended.seconds, 3),
        summary=dict(ended.summary),
        failed=list(ended.failed),
        error=None if ended.error is None else described(ended.error),
    )


def _code_of(ended: Ended) -> int:
    if ended.outcome == "failed":
        return UNEXPECTED if ended.error is None else exit_code(ended.error)
    return DONE if ended.outcome == "done" else INCOMPLETE
