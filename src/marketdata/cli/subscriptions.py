"""``marketdata subscribe``, ``unsubscribe`` and ``subscriptions``: what the daemon keeps fresh."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from marketdata.cli.exits import DONE
from marketdata.cli.options import ALL, TimeframeOption, command, symbols_of
from marketdata.cli.output import Output, instant, make_table
from marketdata.errors import InvalidSymbolError, RequestError

if TYPE_CHECKING:
    from rich.table import Table

    from marketdata.config import Settings
    from marketdata.store.subscriptions import Change, Held

_SHOWN: Final = 8

OptionalSymbols = Annotated[
    list[str] | None, typer.Argument(metavar="SYMBOLS...", help="Such as AAPL BRK.B.")
]
Owner = Annotated[
    str | None,
    typer.Option("--owner", metavar="NAME", help="Whose they are; user@host/program by default."),
]


def register(app: typer.Typer) -> None:
    command(app, "subscribe", ALL)(subscribe)
    command(app, "unsubscribe", ALL)(unsubscribe)
    command(app, "subscriptions", ALL)(subscriptions)


def subscribe(
    out: Output,
    settings: Settings,
    symbols: OptionalSymbols = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Symbols by line or comma, # begins a comment; - is stdin."),
    ] = None,
    timeframe: TimeframeOption = "1min",
    owner: Owner = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="End the owner's other symbols of this timeframe.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would change, and change nothing.")
    ] = False,
    priority: Annotated[
        int, typer.Option(min=-100, max=100, help="What is higher is fetched first.")
    ] = 0,
) -> int:
    """Have the daemon keep symbols fresh, until they are unsubscribed.

    For example: marketdata subscribe --file universe.txt --owner nightly --replace
    """
    from marketdata.arguments import every_symbol
    from marketdata.clock import Deadline
    from marketdata.subscription_calls import ended_symbols, refuse_unknown
    from marketdata.subscriptions import owner_of
    from marketdata.types import Timeframe
    from marketdata.wiring import Runtime

    named = [*symbols_of(symbols or []), *(read_universe(file) if file else [])]
    if not named:
        raise RequestError("no symbols given", cure="name them, or give --file universe.txt")
    names, _ = every_symbol(named)
    parsed, owner = Timeframe.parse(timeframe), owner_of(owner)
    with closing(Runtime(settings)) as runtime:
        refuse_unknown(runtime, names, Deadline(settings.timeout))
        ended = ended_symbols(runtime, names)
        today = runtime.identities.today(runtime.provider, names)
        pin = runtime.subscriptions.replace if replace else runtime.subscriptions.pin
        change = pin(owner, names, parsed, priority=priority, dry_run=dry_run)
    _print_change(out, change)
    for symbol, why in sorted(ended.items()):
        out.note(f"{symbol} was {why}: nothing new will come of it", style="yellow")
    for symbol in sorted(today.keys() - ended.keys()):
        out.note(f"{symbol} trades as {today[symbol]} now, and is kept fresh as that")
    would = "would be " if dry_run else ""
    out.note(
        f"{owner}, {parsed}: {would}{len(change.added)} added, {len(change.removed)} removed, "
        f"{len(change.kept)} kept"
    )
    return out.done(
        DONE,
        owner=owner,
        timeframe=parsed.value,
        added=len(change.added),
        removed=len(change.removed),
        kept=len(change.kept),
        dry_run=dry_run,
    )


def _print_change(out: Output, change: Change) -> None:
    changes = [("-", "removed", s) for s in change.removed]
    changes += [("+", "added", s) for s in change.added]
    for sign, word, symbol in changes:
        out.row({"change": word, "symbol": symbol})
        out.line(f"{sign} {symbol}")


def unsubscribe(
    out: Output,
    settings: Settings,
    symbols: OptionalSymbols = None,
    every: Annotated[bool, typer.Option("--all", help="All symbols of the owner.")] = False,
    timeframe: Annotated[
        str | None, typer.Option("--timeframe", "-t", help="Only these; every one by default.")
    ] = None,
    owner: Owner = None,
) -> int:
    """End an owner's subscriptions. Stored bars stay, and so does what other owners want."""
    from marketdata.arguments import every_symbol
    from marketdata.subscriptions import owner_of
    from marketdata.types import Timeframe
    from marketdata.wiring import Runtime

    if every == bool(symbols):
        raise RequestError("which symbols?", cure="name them, or give --all")
    names = None if every else every_symbol(symbols_of(symbols or []))[0]
    parsed, owner = timeframe and Timeframe.parse(timeframe), owner_of(owner)
    with closing(Runtime(settings)) as runtime:
        ended = runtime.subscriptions.unsubscribe(owner, names, parsed or None)
    for symbol, at in ended:
        out.row({"change": "removed", "symbol": symbol, "timeframe": at})
        out.line(f"- {symbol} {at}")
    out.note(f"{owner}: {len(ended)} removed")
    return out.done(DONE, owner=owner, removed=len(ended))


def subscriptions(out: Output, settings: Settings, owner: Owner = None) -> int:
    """Print who wants what: a line for each owner and timeframe, with --owner one for each symbol."""
    from marketdata.subscriptions import owner_of
    from marketdata.wiring import Runtime

    with closing(Runtime(settings)) as runtime:
        found = runtime.subscriptions.held(None if owner is None else owner_of(owner))
    out.rows(_record(each) for each in found)
    out.table(_by_owner(found) if owner is None else _by_symbol(found))
    wanted = {(each.symbol, each.timeframe) for each in found}
    return out.done(
        DONE,
        subscriptions=len(found),
        wanted=len(wanted),
        owners=len({each.owner for each in found}),
    )


def _record(each: Held) -> dict[str, object]:
    return {k: v for k, v in each._asdict().items() if k != "seconds_left"} | {
        "seconds_left": None if each.seconds_left is None else round(each.seconds_left, 1)
    }


def _by_owner(found: Iterable[Held]) -> Table:
    groups: dict[tuple[str, str], list[Held]] = {}
    for each in found:
        groups.setdefault((each.owner, each.timeframe), []).append(each)
    table = make_table("owner", "timeframe", "symbols", "ends in", right=["symbols", "ends in"])
    for (owner, timeframe), group in groups.items():
        last = max(group, key=lambda h: (h.pinned, h.seconds_left or 0.0))
        table.add_row(owner, timeframe, f"{len(group):,}", _left(last))
    return table


def _by_symbol(found: Iterable[Held]) -> Table:
    table = make_table(
        "symbol", "timeframe", "priority", "since", "ends in", right=["priority", "ends in"]
    )
    for each in found:
        table.add_row(
            each.symbol, each.timeframe, str(each.priority), instant(each.made_at), _left(each)
        )
    return table


def _left(each: Held) -> str:
    if each.seconds_left is None:
        return "pinned"
    return f"{int(each.seconds_left) // 60}:{int(each.seconds_left) % 60:02} min"


def read_universe(path: Path) -> list[str]:
    """Return the symbols of a file: separated by lines, commas or spaces; ``#`` begins a comment.

    Raises
    ------
    RequestError, InvalidSymbolError
        It cannot be read, or a line is no symbol: the line's number is named.
    """
    from marketdata.types import canonical_symbol

    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text("utf-8-sig")
    except OSError as error:
        raise RequestError(
            f"{path} cannot be read: {error.strerror}", cure="check --file"
        ) from None
    except UnicodeDecodeError:
        raise RequestError(
            f"{path} is not UTF-8 text", cure="give a text file, a symbol a line"
        ) from None
    found: list[str] = []
    wrong: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        for word in line.partition("#")[0].replace(",", " ").split():
            try:
                found.append(canonical_symbol(word))
            except InvalidSymbolError:
                wrong.append(f"line {number}: {word[:60]!r}")
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise InvalidSymbolError(
            f"not US equity or ETF symbols in {path}: {', '.join(wrong[:_SHOWN])}{more}",
            cure="correct them: a symbol such as AAPL or BRK.B a line, # begins a comment",
        )
    if not found:
        raise RequestError(
            f"{path} holds no symbol", cure="to end all of an owner's: marketdata unsubscribe --all"
        )
    return found
