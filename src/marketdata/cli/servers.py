"""``marketdata sandbox`` serves a market; ``marketdata down`` ends the embedded servers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marketdata.cli.options import HOME, command
from marketdata.cli.output import Output
from marketdata.errors import RequestError

if TYPE_CHECKING:
    from marketdata.config import Settings
    from marketdata.sandbox import Sandbox


def register(app: typer.Typer) -> None:
    command(app, "sandbox")(sandbox)
    command(app, "down", HOME)(down)


def sandbox(
    out: Output,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8765,
    seed: Annotated[int, typer.Option(help="Another seed, another market.")] = 7,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Serve these files (CSV, CSV.gz, Parquet) instead; repeatable."),
    ] = None,
    basis: Annotated[
        str, typer.Option(metavar="raw|split", help="What the prices in the files are.")
    ] = "raw",
    clock: Annotated[
        str, typer.Option(help="Market time: system, an instant, replay:START@SPEED.")
    ] = "system",
    rate_limit: Annotated[
        int | None,
        typer.Option(metavar="N", help="Requests a minute; none are refused by default."),
    ] = None,
    free_plan: Annotated[
        bool, typer.Option("--free-plan", help="Refuse the last 15 minutes of SIP data.")
    ] = False,
) -> int:
    """Serve a SIMULATED market to develop against.

    It speaks as Alpaca and Yahoo do, until Ctrl-C.
    """
    from marketdata.clock import parse_clock
    from marketdata.sandbox import Sandbox

    if basis not in ("raw", "split"):
        raise RequestError(f"--basis {basis} is not known", cure="use raw or split")
    source: Any = None
    if data:
        from marketdata.sandbox.files import FileMarket

        source = FileMarket(data, basis=basis)  # type: ignore[arg-type]
    server = Sandbox(
        source,
        clock=parse_clock(clock),
        host=host,
        port=port,
        seed=seed,
        rate_limit=rate_limit,
        entitled_sip=not free_plan,
    )
    # The port is bound already: whoever reads these lines can connect.
    _announce(out, server, clock, data or [])
    server.serve_forever()
    return out.done(requests=len(server.requests))


def _announce(out: Output, server: Sandbox, clock: str, data: list[Path]) -> None:
    exports = {
        "MARKETDATA_BROKER": "sandbox",
        "MARKETDATA_ALPACA_URL": server.url,
        "MARKETDATA_ALPACA_TRADING_URL": server.url,
        "MARKETDATA_YAHOO_URL": server.url,
    }
    if clock != "system":
        exports["MARKETDATA_CLOCK"] = clock
    what = f"prices of {', '.join(p.name for p in data)}" if data else "generated prices"
    out.note(f"SIMULATED market ({what}) at {server.url}; Ctrl-C ends it", style="bold")
    out.row({"url": server.url, "environment": exports})
    for name, value in exports.items():
        out.line(f"export {name}={value}")
    out.console.file.flush()


def down(out: Output, settings: Settings) -> int:
    """End the embedded servers; their data stays."""
    from marketdata import embedded

    stopped = embedded.down(settings.home)
    names = " and ".join(stopped)
    out.line(
        f"stopped {names} of {settings.home}" if stopped else f"nothing runs in {settings.home}"
    )
    return out.done(home=str(settings.home), stopped=stopped)
