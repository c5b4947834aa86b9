"""``marketdata doctor``: one line a check, each with its fix. Starts no server, changes nothing."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from marketdata import __version__
from marketdata.cli.checks import FAILED, OK, WARNING, Check
from marketdata.cli.exits import CONFIGURATION, DONE, UNAVAILABLE, exit_code
from marketdata.cli.options import ALL, command
from marketdata.cli.output import Output, described
from marketdata.errors import ConfigurationError, MarketDataError

if TYPE_CHECKING:
    import typer

    from marketdata.config import Settings

_STYLES: Final = {OK: "green", WARNING: "yellow", FAILED: "red"}


def register(app: typer.Typer) -> None:
    command(app, "doctor", ALL)(doctor)


def doctor(out: Output, given: dict[str, Any]) -> int:
    """Check servers, keys, clock and disk; name the fixes.

    Starts no server and changes nothing.
    """
    found = []
    for check in _checks(given):
        found.append(check)
        _print(out, check)
    failed = [c for c in found if c.state == FAILED]
    code = DONE
    if failed:
        wrong = any(c.code == CONFIGURATION for c in failed)
        code = CONFIGURATION if wrong else UNAVAILABLE
    warned = sum(c.state == WARNING for c in found)
    if not out.as_json:
        out.line()
    out.line("all is well" if not (failed or warned) else f"{len(failed)} failed, {warned} to note")
    return out.done(code, failed=[c.name for c in failed], warnings=warned)


def _print(out: Output, check: Check) -> None:
    out.row(
        {"check": check.name, "state": check.state, "found": check.found, "fix": check.fix or None}
    )
    if out.as_json:
        return
    from rich.text import Text

    line = Text.assemble(
        (f"{check.state:<8}", _STYLES[check.state]), (f"{check.name:<12}", "bold"), check.found
    )
    if check.fix:
        line.append(f"  -> {check.fix}", style=_STYLES[check.state])
    out.console.print(line, soft_wrap=True)


def _checks(given: dict[str, Any]) -> Iterator[Check]:
    from marketdata.cli import checks

    yield Check(
        "release",
        OK,
        f"marketdata {__version__}, Python {platform.python_version()} on {sys.platform}",
    )
    try:
        settings = _settings(given)
    except MarketDataError as error:
        yield failure("settings", error)
        settings = None
    if settings is not None:
        yield Check("settings", OK, _given_settings(settings))
        for name, check in checks.of_settings(settings):
            yield from isolated(name, check)
    for name, check in checks.of_this_machine():
        yield from isolated(name, check)


def _settings(given: dict[str, Any]) -> Settings:
    from marketdata.config import Settings

    return Settings.load(**given)


def _given_settings(settings: Settings) -> str:
    named = [f"{s.name} ({s.source})" for s in settings.describe() if s.source != "default"]
    return ", ".join(named) if named else "all defaults; `marketdata config` lists them"


def isolated(name: str, check: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """Yield what a check finds; whatever it raises is its finding, and ends nothing else."""
    try:
        yield from check()
    except Exception as error:
        yield failure(name, error)


def failure(name: str, error: Exception) -> Check:
    """Return an error as a finding, its cure as the fix."""
    if not isinstance(error, MarketDataError):
        return Check(name, FAILED, described(error), "this may be a defect: please report it")
    cure = error.cure
    if cure == ConfigurationError.default_cure:
        cure = None
    elif cure:
        cure = cure.removesuffix("; run: marketdata doctor")
    return Check(name, FAILED, error.message, cure or "", exit_code(error))
