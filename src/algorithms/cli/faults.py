"""What goes wrong in an ``algo`` command: whose fault it is, in one line, and the exit code."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from algorithms.algorithm import Algorithm
from algorithms.errors import (
    AlgorithmError,
    LookAheadError,
    OrderError,
    RealMoneyError,
)
from marketdata.cli.exits import CONFIGURATION, UNAVAILABLE, UNEXPECTED, USAGE, exit_code
from marketdata.cli.output import Output, described
from marketdata.errors import MarketDataError

_OURS: Final = Path(__file__).resolve().parents[1]


def telling(function: Callable[..., int]) -> Callable[..., int]:
    """Give a command the exit codes of the engine's errors, and name an author's faulty line."""

    @functools.wraps(function)
    def run(out: Output, **values: Any) -> int:
        try:
            return function(out, **values)
        except Exception as error:
            line = _authors_line(error)
            code = code_of(error)
            if code is None and line is None:
                raise
            if out.debug:
                traceback.print_exception(error)
            where = f"{line}: " if line else ""
            # When it happened: `backtest` notes the moment on what a strategy raises.
            when = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            out.note(f"error: {where}{described(error)}{when}", style="red")
            record = error.to_record() if isinstance(error, MarketDataError) else described(error)
            told = {"error": record} if line is None else {"error": record, "line": line}
            return out.done(UNEXPECTED if code is None else code, **told)

    # The signature is read for options: `run` itself would show only what it passes on.
    run.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return run


def code_of(error: Exception) -> int | None:
    """Return the exit code of one of the engine's errors; None for any other."""
    if not isinstance(error, AlgorithmError):
        return None
    if isinstance(error, RealMoneyError):
        return CONFIGURATION
    if error.transient:
        return UNAVAILABLE
    if isinstance(error, OrderError | LookAheadError):
        return UNEXPECTED
    known = exit_code(error)
    # What the engine itself refuses is how it was called, by a command line or by a strategy.
    return USAGE if known == UNEXPECTED else known


def _authors_line(error: Exception) -> str | None:
    """Return the last line of an author's file that an error went through, as ``FILE:LINE``."""
    if isinstance(error, MarketDataError) and not isinstance(error, OrderError | LookAheadError):
        return None
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        place = Path(frame.filename)
        if _is_strategy(place):
            return f"{_short(place)}:{frame.lineno}"
    return None


def _is_strategy(place: Path) -> bool:
    """Return whether a class of this file is a strategy."""
    file = str(place)
    return any(_file_of(kind) == file for kind in _below(Algorithm))


def _below(kind: type) -> list[type]:
    found: list[type] = kind.__subclasses__()
    return [*found, *(far for near in found for far in _below(near))]


def _file_of(kind: type) -> str | None:
    try:
        return inspect.getfile(kind)
    except (TypeError, OSError):
        return None


def _short(place: Path) -> str:
    try:
        return str(place.relative_to(Path.cwd()))
    except ValueError:
        return str(place)
