"""What ``marketdata status`` says of the daemon: what is not well, who leads, jobs, budget, sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from marketdata.cli.output import Output, make_table, size

if TYPE_CHECKING:
    from marketdata.config import Settings
    from marketdata.findings import Finding
    from marketdata.store import PostgresStore
    from marketdata.wellbeing import Lag, Vitals


def look(store: PostgresStore, settings: Settings) -> Vitals:
    """Return how the store is, by the timetable that the leading daemon has written down."""
    from marketdata.calendars import EXCHANGE, calendar_for
    from marketdata.clock import parse_clock
    from marketdata.store.figures import PostgresFigures
    from marketdata.types import MINUTE, SECOND
    from marketdata.wellbeing import assess, timetable

    figures = PostgresFigures(store.database).look()
    told: dict[str, Any] = dict(figures.leader.details) if figures.leader else {}
    now_us = parse_clock(settings.clock).now_us()
    return assess(
        figures,
        calendar_for(EXCHANGE, now_us),
        now_us,
        timetable(settings, told.get("settle_delay") or 3 * SECOND, 20 * MINUTE),
        seal_after=settings.seal_after,
        retention=settings.retention,
        request_limit=told.get("requests_per_minute"),
    )


def facts_of(vitals: Vitals) -> dict[str, str]:
    """Return the single facts for people, by name."""
    figures = vitals.figures
    facts: dict[str, str] = {}
    leader = figures.leader
    symbols = {base.value: lag.symbols for base, lag in vitals.lag.items()}
    if leader is not None:
        where = leader.details.get("url", "")
        facts["daemon"] = f"{leader.holder} leads since {leader.acquired_at:%Y-%m-%d %H:%M} {where}"
    elif symbols or figures.runs:
        facts["daemon"] = "none runs"
    if symbols:
        facts["subscribed"] = ", ".join(f"{n:,} x {base}" for base, n in sorted(symbols.items()))
        facts["bars due"] = _freshness(vitals)
    if vitals.requests_left is not None:
        facts["budget"] = (
            f"{vitals.requests_left:,} of {vitals.request_limit:,} requests a minute left"
        )
    facts["size"] = (
        f"{size(figures.row_bytes)} for {figures.rows:,} rows, "
        f"{size(figures.chunk_bytes)} for {figures.sealed:,} sealed bars"
    )
    if vitals.forecast_bytes is not None:
        facts["forecast"] = f"about {size(vitals.forecast_bytes)} of bars with the whole history"
    return facts


def _freshness(vitals: Vitals) -> str:
    behind = {b.value: lag for b, lag in vitals.lag.items() if lag.stale or lag.worst}
    if not behind:
        return "all stored"
    return ", ".join(f"{base}: {_behind(lag)}" for base, lag in sorted(behind.items()))


def _behind(lag: Lag) -> str:
    texts = [f"{lag.stale:,} stale"] if lag.stale else []
    if lag.unfetched:
        texts.append(f"{lag.unfetched:,} never fetched")
    if lag.worst:
        texts.append(f"{lag.worst:,.0f} s behind at most")
    return ", ".join(texts)


def print_jobs(out: Output, vitals: Vitals) -> None:
    """Print one line for each job that ever ran."""
    figures = vitals.figures
    table = make_table("job", "last run", "outcome", "seconds", "last success", right=["seconds"])
    for job, run in sorted(figures.runs.items()):
        success = figures.successes.get(job)
        took = (
            f"{(run.finished_at - run.started_at).total_seconds():.1f}" if run.finished_at else ""
        )
        ended = success.finished_at if success is not None else None
        table.add_row(
            job,
            f"{run.started_at:%Y-%m-%d %H:%M:%S}",
            run.outcome or "running",
            took,
            f"{ended:%Y-%m-%d %H:%M:%S}" if ended else "never",
        )
    if figures.runs:
        out.line()
        out.table(table)


def check(out: Output, problems: list[Finding], others: list[str], *, usable: bool) -> int:
    """Print one line for a monitoring system; return 0 (OK), 1 (warning) or 2 (critical).

    Parameters
    ----------
    others : list of str
        What else is not well, each a warning.
    usable : bool
        Whether the library can work with this database at all.
    """
    from marketdata.findings import Level

    level = max((p.level for p in problems), default=Level.OK)
    if others:
        level = max(level, Level.WARNING if usable else Level.CRITICAL)
    texts = [p.text for p in problems] + others
    words = "; ".join(texts) if texts else "all is well"
    out.line(f"{level.name} - {words}")
    return out.done(int(level), level=level.name.lower(), problems=texts)
