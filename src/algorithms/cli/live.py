"""``marketdata algo run | list | stop``: strategies live, what became of them, and their end."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from algorithms.cli.faults import telling
from algorithms.cli.options import (
    Cash,
    FeesOption,
    Leverage,
    Params,
    SessionOption,
    SlippageOption,
    SymbolsOption,
    TimeframeOption,
    fees_of,
    slippage_of,
    strategy_of,
)
from algorithms.cli.standing import sentence, standing
from algorithms.cli.tables import newest_orders, orders_table, outcome_of, row_of, table_of
from algorithms.errors import AlgorithmError, ParameterError
from marketdata.cli.exits import DONE, INCOMPLETE, INTERRUPTED
from marketdata.cli.options import ALL, command

if TYPE_CHECKING:
    from algorithms.live.journal import Journal
    from algorithms.live.records import Record, Registration
    from algorithms.live.risk import RiskLimits
    from algorithms.venues import BrokerVenue
    from marketdata.cli.output import Output
    from marketdata.client import Client
    from marketdata.config import Settings

PAPER: Final = "paper"
ALPACA: Final = "alpaca"
VENUES: Final = (PAPER, ALPACA)
_MONEY: Final = "With what money"


def register(app: typer.Typer) -> None:
    command(app, "run", ALL)(telling(run))
    command(app, "list", ALL)(telling(list_))
    command(app, "stop", ALL)(telling(stop))


def run(
    out: Output,
    settings: Settings,
    strategies: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILES...",
            help="FILE.py, FILE.py:Class, package.module:Class, or names of the catalogue. "
            "Without any: all that are to run and that nobody runs.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", help="Under which it is kept, instead of its class's."),
    ] = None,
    params: Params = None,
    symbols: SymbolsOption = None,
    timeframe: TimeframeOption = None,
    session: SessionOption = None,
    venue: Annotated[
        str,
        typer.Option(
            help="Where orders go: paper, filled here by the bars; alpaca, its paper account.",
            rich_help_panel=_MONEY,
        ),
    ] = PAPER,
    cash: Cash = 100_000.0,
    fees: FeesOption = None,
    slippage: SlippageOption = None,
    leverage: Leverage = 1.0,
    limits: Annotated[
        list[str] | None,
        typer.Option(
            "--limit",
            metavar="NAME=VALUE",
            rich_help_panel=_MONEY,
            help="max_position_value, max_order_value, max_daily_loss, ...; repeatable.",
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Begin anew: no position, no order, all the cash."),
    ] = False,
) -> int:
    """Run strategies live on closing bars, until Ctrl-C or SIGTERM.

    What they decide is stored before it counts: the next run goes on from there, without a double
    order. A strategy that fails is started again after a while, and never costs its neighbours.

    For example: marketdata algo run my_idea.py --cash 25000 --limit max_daily_loss=500
    """
    from algorithms.live.runner import LiveRunner
    from algorithms.live.signals import run_until_signalled
    from marketdata.client import Client

    registrations = _registrations(
        strategies or [], name, params, symbols, timeframe, session, venue, cash, fees, slippage,
        leverage, limits,
    )  # fmt: skip
    if not registrations and (params or symbols or timeframe or session or name or limits):
        raise AlgorithmError("options for a strategy, and none is named", cure="name its file")
    with ExitStack() as closing_all:
        client = closing_all.enter_context(Client(settings))
        journal = closing_all.enter_context(_journal(client))
        # Before anything is registered: without keys nothing is to be wanted there.
        venues = _venues(out, settings, venue if registrations else None, closing_all)
        for registration in registrations:
            journal.register(registration, fresh=fresh)
        names = [registration.name for registration in registrations] or None
        runner = LiveRunner(client, journal, names=names, venues=venues)
        with _log_of_life(out):
            out.row({"running": names or "all", "venue": venue, "pid": os.getpid()})
            told = f"{', '.join(names)} at {venue}" if names else "all that are to run"
            out.line(f"running {told}; Ctrl-C ends it, nothing is lost")
            sys.stdout.flush()
            code = run_until_signalled(runner)
        records = journal.records(names)
        out.rows(row_of(record) for record in records)
        for record in records:
            out.line(outcome_of(record))
        cycles = dataclasses.asdict(runner.cycles)
    return out.done(INTERRUPTED if code else DONE, **cycles)


def list_(
    out: Output,
    settings: Settings,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAMES...", help="All by default.")
    ] = None,
) -> int:
    """Print the strategies that were run live, and where each stands.

    With names also their newest orders, and the error of one that failed. Exit code 3 where one is
    in error.
    """
    from algorithms.live.records import Life
    from marketdata.client import Client

    with Client(settings) as client, _journal(client) as journal:
        records = _found(journal, names)
        switch = journal.switch()
        positions = {record.name: journal.positions(record.name) for record in records}
        orders = {record.name: newest_orders(journal, record.name) for record in records if names}
        stand = {record.name: standing(journal, record) for record in records}
    out.rows(
        {
            **row_of(r),
            "positions": positions[r.name],
            "protective_exits": (stand[r.name] or (0, 0))[0],
            "orders": orders.get(r.name, []),
        }
        for r in records
    )
    if not records:
        out.line("none was ever run live here -> marketdata algo run FILE.py")
    else:
        out.table(table_of(records, positions))
    if switch.active:
        out.line(f"the kill switch is on: {switch.reason or 'no reason given'}", "bold red")
    for record in records:
        if told := sentence(record, stand[record.name]):
            out.line(told)
    for record in records:
        if orders.get(record.name):
            out.line()
            out.line(f"{record.name}: its newest orders")
            out.table(orders_table(orders[record.name]), indent=2)
        if names and record.error:
            out.line()
            out.line(f"{record.name}: {record.error.rstrip()}")
    failed = [record.name for record in records if record.life is Life.ERROR]
    return out.done(
        INCOMPLETE if failed else DONE,
        count=len(records), failed=failed, kill_switch=switch.active,
    )  # fmt: skip


def stop(
    out: Output,
    settings: Settings,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAMES...", help="As `algo list` has them.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    kill: Annotated[
        bool,
        typer.Option(
            "--kill", help="End trading at once and keep watching, until it is run again."
        ),
    ] = False,
    flatten: Annotated[
        bool, typer.Option("--flatten", help="With --kill: close all positions too.")
    ] = False,
    release: Annotated[
        bool, typer.Option("--release", help="With --all: let all trade again after --all --kill.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Kept with it.")] = "",
) -> int:
    """Stop strategies that run live; their positions and orders stay stored.

    Whoever runs them obeys within seconds; nothing is waited for.

    For example: marketdata algo stop SmaCross
    """
    from algorithms.live.records import Desired
    from marketdata.client import Client

    if bool(names) == everything:
        raise AlgorithmError("which ones?", cure="name them, or say --all")
    if flatten and not kill:
        raise AlgorithmError("--flatten without --kill", cure="say both, or neither")
    if release and (kill or not everything):
        raise AlgorithmError("--release lifts the kill switch of all", cure="say --all --release")
    wanted = Desired.KILLED if kill else Desired.STOPPED
    with Client(settings) as client, _journal(client) as journal:
        if release:
            journal.release_all()
            out.line("the kill switch is off")
            return out.done(kill_switch=False)
        if everything and kill:
            journal.kill_all(flatten=flatten, reason=reason)
            out.line("the kill switch is on: nothing trades until algo stop --all --release")
            return out.done(kill_switch=True)
        records = _found(journal, names)
        for record in records:
            journal.want(record.name, wanted, flatten=flatten, reason=reason)
    out.rows({"name": record.name, "wanted": str(wanted)} for record in records)
    for record in records:
        by = f", which {record.runner} obeys within seconds" if record.runner else ""
        out.line(f"{record.name}: to be {wanted}{by}")
    return out.done(count=len(records))


# ----------------------------------------------------------------------------- registrations


def _registrations(
    strategies: Sequence[str],
    name: str | None,
    params: Sequence[str] | None,
    symbols: Sequence[str] | None,
    timeframe: str | None,
    session: str | None,
    venue: str,
    cash: float,
    fees: str | None,
    slippage: str | None,
    leverage: float,
    limits: Sequence[str] | None,
) -> list[Registration]:
    from algorithms.backtest import costs_of
    from algorithms.live.sources import registration_of

    if venue not in VENUES:
        raise AlgorithmError(f"there is no venue {venue!r}", cure=f"one of: {', '.join(VENUES)}")
    if not cash > 0:
        raise AlgorithmError(f"cash of {cash:g}", cure="begin with more than 0")
    if len(strategies) > 1 and (name is not None or params):
        raise AlgorithmError(
            "--name and --param are of one strategy", cure="run each with a command of its own"
        )
    costs = costs_of(fees_of(fees), slippage_of(slippage), leverage)
    risk = _limits(limits)
    found: dict[str, Registration] = {}
    for where in strategies:
        algorithm = strategy_of(where, params, symbols, timeframe, session)
        made = registration_of(
            algorithm, _source(where, type(algorithm)), name=name, cash=cash, venue=venue,
            limits=risk, costs=costs,
        )  # fmt: skip
        if made.name in found:
            raise AlgorithmError(
                f"two strategies would be called {made.name}",
                cure="run each with a command of its own, and --name",
            )
        found[made.name] = made
    return list(found.values())


def _venues(
    out: Output, settings: Settings, wanted: str | None, closing_all: ExitStack
) -> dict[str, BrokerVenue]:
    """Return the broker's venue where it is wanted, or may be: by what is registered already."""
    from algorithms.venues.alpaca_paper import AlpacaPaper
    from marketdata.errors import ConfigurationError

    if wanted == PAPER:
        return {}
    try:
        venue = AlpacaPaper.configured(settings)
    except ConfigurationError as error:
        if wanted == ALPACA:
            raise
        out.note(f"no strategy can run at {ALPACA}: {error}", style="dim")
        return {}
    closing_all.callback(venue.close)
    return {ALPACA: venue}


def _source(where: str, kind: type) -> str:
    """Return where the class is found again, by a process in another directory too."""
    place = where.rpartition(":")[0] if ".py:" in where else where
    return f"{place if place.endswith('.py') else kind.__module__}:{kind.__name__}"


def _limits(words: Sequence[str] | None) -> RiskLimits | None:
    from algorithms.live.risk import RiskLimits

    if not words:
        return None
    known = {field.name: str(field.type) for field in dataclasses.fields(RiskLimits)}
    given: dict[str, Any] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            cure = f"did you mean {near[0]}?" if near else "one of: " + ", ".join(known)
            raise ParameterError(f"there is no limit {name!r}", cure=cure)
        if known[name] == "bool":
            given[name] = text.lower() in ("", "true", "yes", "1", "on")
            continue
        try:
            given[name] = int(text) if "int" in known[name] else float(text)
        except ValueError:
            raise ParameterError(
                f"--limit {word!r}", cure=f"write --limit {name}=NUMBER" if sign else "NAME=VALUE"
            ) from None
    return RiskLimits(**given)


# ------------------------------------------------------------------------------------ journal


@contextmanager
def _journal(client: Client) -> Iterator[Journal]:
    from algorithms.live.journal import Journal

    database = client.database()
    with closing(Journal(database.url, database.schema)) as journal:
        yield journal


def _found(journal: Journal, names: Sequence[str] | None) -> list[Record]:
    """Return the records of these names, or of all."""
    everyone = journal.records()
    if not names:
        return everyone
    by_name = {record.name: record for record in everyone}
    for name in names:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, 1)
            known = ", ".join(list(by_name)[:8]) or "none"
            cure = f"did you mean {near[0]}?" if near else f"there are: {known}"
            raise AlgorithmError(f"no strategy is called {name!r}", cure=cure)
    return [by_name[name] for name in dict.fromkeys(names)]


@contextmanager
def _log_of_life(out: Output) -> Iterator[None]:
    """Show what happens to the strategies: it is how a runner is watched."""
    log = logging.getLogger("algorithms")
    before = log.level
    log.setLevel(logging.DEBUG if out.debug else logging.INFO)
    try:
        yield
    finally:
        log.setLevel(before)
