"""The tree of commands, and the way from an argument list to an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from marketdata import __version__
from marketdata.cli import (
    actions,
    backfill,
    bars,
    daemon,
    database,
    demo,
    doctor,
    export,
    holdings,
    import_,
    indicators,
    revisions,
    servers,
    settings,
    subscriptions,
    symbols,
    verify,
)
from marketdata.cli.exits import DONE, INTERRUPTED, USAGE
from marketdata.cli.output import Output, abandon_stdout

PLUGINS: Final = "marketdata.commands"
"""Entry-point group: each entry is a Typer app (or one of its commands) and becomes a command."""

app = typer.Typer(
    name="marketdata",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Bars from Redis, else PostgreSQL, else the broker, behind one call.",
    epilog="Exit codes: 0 done, 1 unexpected, 2 usage, 3 finished with gaps or failed symbols, "
    "69 server or broker unavailable, 75 busy, 78 configuration, 130 Ctrl-C.",
)
for module in (
    demo,
    bars,
    indicators,
    actions,
    holdings,
    daemon,
    backfill,
    verify,
    revisions,
    import_,
    export,
    symbols,
    subscriptions,
    database,
    doctor,
    settings,
    servers,
):
    module.register(app)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"marketdata {__version__}")
        raise typer.Exit(DONE)
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(USAGE)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _add_plugins(words)
    try:
        code = app(words, prog_name="marketdata", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        abandon_stdout()
        return DONE
    except Exception as error:
        return _refuse(error, words)
    if code == INTERRUPTED:
        Output().note("interrupted")
    return int(code or DONE)


def _refuse(error: Exception, words: list[str]) -> int:
    """Say what is wrong with the command line itself, in one line."""
    out = Output("--json" in words, "--debug" in words)
    if not hasattr(error, "format_message"):
        return out.fail(error)
    context: Any = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "marketdata"
    if type(error).__name__ == "NoArgsIsHelpError":  # a group without a command: help is printed
        print(error.format_message(), end="")
        return USAGE
    text = " ".join(error.format_message().split())
    out.note(f"error: {text} -> see: {command} --help", style="red")
    return out.done(USAGE, error=text)


def _add_plugins(words: Sequence[str]) -> None:
    """Add the commands of other packages; load one only when it is called or all are listed."""
    from importlib.metadata import entry_points

    known = {i.name for i in app.registered_commands} | {i.name for i in app.registered_groups}
    named = next((w for w in words if not w.startswith("-")), None)
    if named in known:
        return
    for entry in entry_points(group=PLUGINS):
        if entry.name not in known and named in (None, entry.name):
            app.add_typer(entry.load(), name=entry.name)
