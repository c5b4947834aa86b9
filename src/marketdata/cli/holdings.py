"""``marketdata status``, ``gaps`` and ``explain``: what is stored, what is not, what a read costs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from marketdata.cli.database import awaits_first_use, open_store
from marketdata.cli.exits import CONFIGURATION, DONE, INCOMPLETE
from marketdata.cli.options import (
    ALL,
    BROKER,
    SERVERS,
    End,
    Feed,
    Period,
    SessionOption,
    Start,
    Symbols,
    TimeframeOption,
    command,
    symbols_of,
)
from marketdata.cli.output import Output, instant, make_table, size
from marketdata.errors import MarketDataError

if TYPE_CHECKING:
    from marketdata.config import Settings
    from marketdata.findings import Finding
    from marketdata.store.holdings import Holding
    from marketdata.wellbeing import Vitals


def register(app: typer.Typer) -> None:
    command(app, "status", {**SERVERS, "clock": BROKER["clock"]})(status)
    command(app, "gaps", ALL)(gaps)
    command(app, "explain", ALL)(explain)


# ------------------------------------------------------------------------------------- status

_STYLES: Final = ("", "yellow", "red")
_NOTHING: Final = "nothing yet: the first read makes everything, such as marketdata bars AAPL"


@dataclass
class _Report:
    """What ``status`` found: what is not well, single facts, and what is stored."""

    problems: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    holdings: list[Holding] = field(default_factory=list)
    code: int = DONE
    vitals: Vitals | None = None
    findings: list[Finding] = field(default_factory=list)


def status(
    out: Output,
    settings: Settings,
    check: Annotated[
        bool, typer.Option("--check", help="One line; exit code 0 OK, 1 warning, 2 critical.")
    ] = False,
) -> int:
    """Print what the database holds; first, what is not well."""
    from marketdata.cli import status as wellbeing
    from marketdata.findings import described

    report = _Report()
    try:
        _look_at_servers(report, settings)
        if report.facts.get("embedded") != "never started":
            _look_at_store(report, settings)
        _look_at_cache(report, settings)
    except MarketDataError as error:
        if not check:
            raise
        out.line(f"CRITICAL - {error}")
        return out.done(2, level="critical", problems=[str(error)])
    if check:
        return wellbeing.check(out, report.findings, report.problems, usable=report.code == DONE)
    for finding in report.findings:
        out.line(f"! {finding}", style=_STYLES[finding.level])
    for problem in report.problems:
        out.line(f"! {problem}", style="yellow")
    report.problems[:0] = [str(f) for f in report.findings]
    if report.vitals is not None:
        report.facts |= wellbeing.facts_of(report.vitals)
    wide = max(map(len, report.facts), default=0)
    for name, value in report.facts.items():
        out.line(f"{name:<{wide}}  {value}")
    if report.vitals is not None:
        wellbeing.print_jobs(out, report.vitals)
    _print_holdings(out, report.holdings)
    return out.done(
        report.code,
        **({} if report.vitals is None else {"daemon_report": described(report.vitals)}),
        problems=report.problems,
        **report.facts,
        series=len(report.holdings),
        symbols=len({h.key.symbol for h in report.holdings}),
        bars=sum(h.bar_count for h in report.holdings),
    )


def _look_at_servers(report: _Report, settings: Settings) -> None:
    from marketdata import embedded

    if settings.database_url and settings.redis_url:
        return
    found = embedded.status(settings.home)
    report.facts["home"] = str(found.home)
    if found.sockets is None:
        report.facts["embedded"] = "never started"
        report.facts["stored"] = _NOTHING
        return
    running = [s.name for s in found.servers if s.running]
    users = f", in use by pid {' '.join(map(str, found.users))}" if found.users else ""
    report.facts["embedded"] = f"{' and '.join(running)} running{users}" if running else "stopped"


def _look_at_store(report: _Report, settings: Settings) -> None:
    from marketdata.cli.status import look
    from marketdata.errors import SchemaError
    from marketdata.findings import findings

    with open_store(settings) as store:
        report.facts["database"] = store.database.address
        if awaits_first_use(settings, store):
            report.facts["stored"] = _NOTHING
            return
        try:
            store.check_schema()
        except SchemaError as error:
            report.problems.append(str(error))
            report.code = CONFIGURATION
            return
        found = store.status()
        report.holdings = store.holdings()
        recorded = store.recorded()
        report.vitals = look(store, settings)
        report.findings = findings(report.vitals)
    report.facts["PostgreSQL"] = found.server_version
    report.facts["database_size"] = size(found.database_bytes)
    report.facts["filled_from"] = "/".join(recorded) if recorded else "nothing yet"
    if settings.brokers[1:]:
        report.facts["asked"] = ", then ".join(settings.brokers)
    report.facts["last_fetched"] = instant(found.last_fetched_at) or "never"


def _look_at_cache(report: _Report, settings: Settings) -> None:
    from marketdata.errors import CacheError

    if settings.redis_url is None:
        return
    from marketdata.cache import RedisCache

    try:
        info = RedisCache(settings.redis_url, 0).info()
    except CacheError as error:
        report.problems.append(f"Redis: {error}; reads go on with PostgreSQL, slower")
        return
    room = size(info.maxmemory) if info.maxmemory else "no limit"
    report.facts["Redis"] = f"{info.version}, {size(info.used_memory)} of {room}, {info.policy}"


def _print_holdings(out: Output, holdings: list[Holding]) -> None:
    groups: dict[tuple[str, str, str], list[Holding]] = defaultdict(list)
    for each in holdings:
        groups[each.key.provider, each.key.feed, each.key.timeframe.value].append(each)
    counts = ("symbols", "bars", "sealed", "gaps")
    table = make_table("source", "timeframe", *counts[:3], "from", "to", "gaps", right=counts)
    for (provider, feed, timeframe), series in sorted(groups.items()):
        bars = sum(h.bar_count for h in series)
        sealed = sum(h.sealed_count for h in series)
        torn = sum(h.covered_ranges > 1 for h in series)
        first = min((h.first_bar for h in series if h.first_bar), default=None)
        last = max((h.last_bar for h in series if h.last_bar), default=None)
        out.row(
            {
                "provider": provider,
                "feed": feed,
                "timeframe": timeframe,
                "symbols": len(series),
                "bars": bars,
                "sealed": sealed,
                "from": first,
                "to": last,
                "with_gaps": torn,
            }
        )
        ends = (f"{t:%Y-%m-%d}" if t else "-" for t in (first, last))
        numbers = (f"{len(series):,}", f"{bars:,}", f"{sealed:,}" if sealed else "-")
        table.add_row(f"{provider}/{feed}", timeframe, *numbers, *ends, str(torn or "-"))
    if holdings:
        out.line()
        out.table(table)


# --------------------------------------------------------------------------------------- gaps


def gaps(
    out: Output,
    settings: Settings,
    symbols: Symbols,
    timeframe: TimeframeOption = "1day",
    start: Start = None,
    end: End = None,
    period: Period = None,
    feed: Feed = None,
) -> int:
    """Print what is not stored: never asked, or no longer given.

    In trading time; exit code 3 if anything was never asked.
    """
    from marketdata.client import Client
    from marketdata.explaining import NEVER_ASKED

    names = symbols_of(symbols)
    with Client(settings) as client:
        frame = client.gaps(names, timeframe, start=start, end=end, period=period, feed=feed)
    table = make_table("symbol", "from (UTC)", "to, exclusive", "state")
    for found in frame.to_dict("records"):
        out.row({str(name): value for name, value in found.items()})
        ends = instant(found["start"]), instant(found["end"])
        table.add_row(found["symbol"], *ends, found["state"])
    torn = sorted(set(frame["symbol"][frame["state"] == NEVER_ASKED]))
    if len(frame):
        out.table(table)
    if torn:
        out.note(f"{len(torn)} of {len(names)} series have gaps; marketdata bars fetches them")
    elif len(frame):
        out.note("all that the broker still gives is stored")
    else:
        out.line("no gaps: everything that has closed is stored")
    return out.done(INCOMPLETE if torn else DONE, gaps=len(frame), symbols=torn)


# ------------------------------------------------------------------------------------ explain


def explain(
    out: Output,
    settings: Settings,
    symbols: Symbols,
    timeframe: TimeframeOption = "1day",
    start: Start = None,
    end: End = None,
    period: Period = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", help="The last N closed bars of each symbol.")
    ] = None,
    session: SessionOption = "regular",
    feed: Feed = None,
) -> int:
    """Print what a read would do and cost; fetch nothing."""
    from marketdata.client import Client

    with Client(settings) as client:
        plan = client.explain(
            symbols_of(symbols),
            timeframe,
            start=start,
            end=end,
            period=period,
            limit=limit,
            session=session,  # type: ignore[arg-type]  # checked there
            feed=feed,
        )
    table = make_table(
        "symbol", "tier", "stored as", "from (UTC)", "to, exclusive", "bars <=",
        right=["bars <="],
    )  # fmt: skip
    for each in plan.spans:
        if not each.bars:
            continue  # closed hours: nothing to read there
        ends = (instant(datetime.fromisoformat(t)) for t in (each.start, each.end))
        out.row({name: getattr(each, name) for name in each.__slots__})
        table.add_row(each.symbol, each.tier, each.timeframe, *ends, f"{each.bars:,}")
    out.table(table)
    out.line(
        f"broker calls: {plan.calls:,}   bars to fetch: {plan.bars:,} at most   "
        f"about {plan.seconds:.1f} s"
    )
    return out.done(calls=plan.calls, bars=plan.bars, seconds=plan.seconds)
