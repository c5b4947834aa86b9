"""What a command says and where: data on stdout, notes, warnings and logs on stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, TextIO

from marketdata.cli.exits import UNEXPECTED, exit_code
from marketdata.errors import MarketDataError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_WIDE: Final = 200
"""Columns where nobody watches: a file or a pipe takes whole lines."""


class Output:
    """The two streams of one command.

    Parameters
    ----------
    as_json : bool
        Print JSON lines, the last one a summary object, instead of tables.
    debug : bool
        Show the traceback of an error.
    """

    def __init__(self, as_json: bool = False, debug: bool = False) -> None:
        self.as_json = as_json
        self.debug = debug
        self.console = make_console(sys.stdout)
        self.notes = make_console(sys.stderr)

    # ----------------------------------------------------------------------------- stdout

    def row(self, values: Mapping[str, Any]) -> None:
        """Print one JSON line; nothing where tables are printed."""
        if self.as_json:
            print(dumps(values))

    def rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for values in rows:
            self.row(values)

    def table(self, table: Table, indent: int = 0) -> None:
        """Print a table; nothing where JSON is printed."""
        if self.as_json:
            return
        from rich.padding import Padding

        self.console.print(Padding(table, (0, 0, 0, indent), expand=False))

    def line(self, text: str = "", style: str = "") -> None:
        """Print a line for people, unwrapped; nothing where JSON is printed."""
        if not self.as_json:
            self.console.print(text, style=style, markup=False, soft_wrap=True)

    def done(self, code: int = 0, /, **summary: Any) -> int:
        """Print the summary object where JSON is printed; return `code`."""
        if self.as_json:
            print(dumps({**summary, "exit_code": code}))
        return code

    # ----------------------------------------------------------------------------- stderr

    def note(self, text: str, style: str = "") -> None:
        """Say something that is not data."""
        self.notes.print(text, style=style, markup=False, soft_wrap=True)

    def fail(self, error: Exception) -> int:
        """Say what went wrong in one line with its cure; return the exit code."""
        if self.debug:
            traceback.print_exception(error)
        code = exit_code(error)
        self.note(f"error: {described(error)}", style="red")
        if code == UNEXPECTED and not self.debug:
            self.note("this may be a defect; for the traceback repeat the command with --debug")
        record = error.to_record() if isinstance(error, MarketDataError) else described(error)
        return self.done(code, error=record)


def abandon_stdout() -> None:
    """Let what is still to be written go nowhere, now that nobody reads it."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def described(error: Exception) -> str:
    """Return an error as one line."""
    text = str(error) if isinstance(error, MarketDataError) else f"{type(error).__name__}: {error}"
    return text if isinstance(error, MarketDataError) else " ".join(text.split())


def make_console(stream: TextIO) -> Console:
    """Return a console that is plain and wide off a terminal and honours ``NO_COLOR``."""
    from rich.console import Console

    wide = not stream.isatty() and not os.environ.get("COLUMNS", "").isdigit()
    return Console(file=stream, highlight=False, emoji=False, width=_WIDE if wide else None)


def make_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table with a thin rule below its heading; cells are never broken."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        header_style="bold",
        border_style="dim",
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    return table


# ------------------------------------------------------------------------------------- values


def dumps(values: Mapping[str, Any]) -> str:
    """Return one line of JSON: NaN and infinity as null, moments in ISO 8601."""
    return json.dumps(_finite(values), default=_plain, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    return value.item() if hasattr(value, "item") else str(value)


def size(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def instant(moment: datetime | None) -> str:
    """Return an instant for people, UTC to the minute."""
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M}"


# ------------------------------------------------------------------------- logs and warnings


def send_logs_to_stderr(level: str) -> None:
    """Show the library's log records of `level` and above, and its warnings, a line each."""
    import structlog

    structlog.configure(
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
    )
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"),
        pad_event_to=0,
        # Others show the values of local variables, and with them keys and URLs.
        exception_formatter=structlog.dev.plain_traceback,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("marketdata").setLevel(level.upper())
    warnings.showwarning = _show_warning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: IO[str] | None = None,
    line: str | None = None,
) -> None:
    text = " ".join(str(message).split())
    make_console(sys.stderr).print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)
