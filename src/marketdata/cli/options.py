"""The options commands share, and the one place that wraps a command: settings, streams, errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, get_type_hints

import typer

from marketdata.cli.exits import DONE
from marketdata.cli.output import Output, abandon_stdout, send_logs_to_stderr

if TYPE_CHECKING:
    from marketdata.config import Settings

_PANEL: Final = "Settings (each overrides its MARKETDATA_ variable)"


def _setting(flag: str, metavar: str, text: str) -> Any:
    return Annotated[
        str | None, typer.Option(flag, metavar=metavar, help=text, rich_help_panel=_PANEL)
    ]


HOME: Final = {"home": _setting("--home", "DIR", "Directory of the embedded servers.")}
SERVERS: Final = {
    **HOME,
    "database_url": _setting("--database-url", "URL", "PostgreSQL instead of the embedded one."),
    "redis_url": _setting("--redis-url", "URL", "Redis instead of the embedded one."),
}
BROKER: Final = {
    "broker": _setting(
        "--broker", "NAME", "auto, alpaca, yahoo, sandbox, none, or several in order: alpaca,yahoo."
    ),
    "clock": _setting("--clock", "CLOCK", "system, an instant, or replay:START@SPEED."),
}
ALL: Final = {**SERVERS, **BROKER}
_FLAGS: Final = {
    "as_json": Annotated[
        bool, typer.Option("--json", help="JSON lines; the last one is a summary object.")
    ],
    "debug": Annotated[bool, typer.Option("--debug", help="Log everything; show tracebacks.")],
}


def command(
    app: typer.Typer, name: str, settings: dict[str, Any] | None = None
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Register a command that takes an `Output` first, and returns its exit code.

    Parameters
    ----------
    app : Typer
        What it is registered with.
    name : str
        As typed.
    settings : dict, optional
        Which settings it takes as options: one of the groups above. A parameter of the function
        called ``settings`` gets the `Settings` read with them; one called ``given`` gets the
        keywords for `Settings.load`, unread.
    """
    common = settings or {}

    def register(function: Callable[..., int]) -> Callable[..., int]:
        hints = get_type_hints(function, None, _annotation_names(), include_extras=True)
        own = inspect.signature(function).parameters

        def run(**values: Any) -> int:
            out = Output(values.pop("as_json"), values.pop("debug"))
            given = {k: values.pop(k) for k in common}
            try:
                if "settings" in own:
                    values["settings"] = _read_settings(given, out)
                elif "given" in own:
                    send_logs_to_stderr("debug" if out.debug else "warning")
                    values["given"] = given
                return function(out, **values)
            except BrokenPipeError:
                # Whoever read our output has had enough: `marketdata bars AAPL | head`.
                abandon_stdout()
                return DONE
            except Exception as error:
                return out.fail(error)

        injected = {"settings", "given", next(iter(own))}
        shown = [
            p.replace(annotation=hints[n], kind=p.KEYWORD_ONLY)
            for n, p in own.items()
            if n not in injected
        ]
        shown += [_parameter(n, hint, None) for n, hint in common.items()]
        shown += [_parameter(n, hint, False) for n, hint in _FLAGS.items()]
        run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in shown}
        run.__doc__ = function.__doc__
        app.command(name)(run)
        return function

    return register


def _read_settings(given: dict[str, Any], out: Output) -> Settings:
    from marketdata.config import Settings

    settings = Settings.load(**given, log="debug" if out.debug else None)
    out.debug = settings.log == "debug"
    send_logs_to_stderr(settings.log)
    return settings


def _annotation_names() -> dict[str, Any]:
    """Names that commands' annotations use but import for type checkers only."""
    return {"Settings": Any, "Output": Output, "Annotated": Annotated}


def _parameter(name: str, annotation: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


Symbols = Annotated[list[str], typer.Argument(metavar="SYMBOLS...", help="Such as AAPL BRK.B.")]
TimeframeOption = Annotated[
    str,
    typer.Option("--timeframe", "-t", help="1min 5min 15min 30min 1hour 4hour 1day 1week 1month."),
]
Start = Annotated[
    str | None,
    typer.Option("--start", metavar="WHEN", help="First bar: 2024-01-31, -5d, today, an instant."),
]
End = Annotated[
    str | None, typer.Option("--end", metavar="WHEN", help="Exclusive end; now by default.")
]
Period = Annotated[
    str | None,
    typer.Option("--period", metavar="LENGTH", help="Instead of --start: 5d 1mo 6mo 1y 2y max."),
]
AsOf = Annotated[
    str | None,
    typer.Option("--as-of", metavar="WHEN", help="What was known then: bars, revisions, actions."),
]
Feed = Annotated[str | None, typer.Option("--feed", help="A feed of the broker: sip, iex.")]
SessionOption = Annotated[
    str, typer.Option("--session", metavar="HOURS", help="regular or extended.")
]


def symbols_of(arguments: list[str]) -> list[str]:
    """Return the symbols of an argument list in which commas separate as well as spaces."""
    return [s for a in arguments for s in a.split(",") if s.strip()]
