"""What ``marketdata status`` says of the daemon: what is not well, who leads, jobs, budget, sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from marketdata.cli.output import Output, make_table, size

_WORTH_BYTES: Final = 1 << 20
_PRIORITIES: Final = ("live", "reads", "backfill", "verify")
"""In words, by `Priority`."""

if TYPE_CHECKING:
    from collections.abc import Sequence

    from marketdata.config import Settings
    from marketdata.drift import DriftCount
    from marketdata.findings import Finding
    from marketdata.store import PostgresStore
    from marketdata.store.budget import BudgetUse
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
        if beside := leader.details.get("companions"):
            facts["beside it"] = ", ".join(f"{n} {t['state']}" for n, t in sorted(beside.items()))
    elif symbols or figures.runs:
        facts["daemon"] = "none runs"
    if symbols:
        facts["subscribed"] = ", ".join(f"{n:,} x {base}" for base, n in sorted(symbols.items()))
        facts["bars due"] = _freshness(vitals)
    for budget in _worth_telling(figures.budgets):
        name = "budget" if "budget" not in facts else f"budget {budget.credential[:6]}"
        facts[name] = _budget(budget)
    facts["size"] = (
        f"{size(figures.row_bytes)} for {figures.rows:,} rows, "
        f"{size(figures.chunk_bytes)} for {figures.sealed:,} sealed bars"
    )
    if revised := _revised(figures.drift):
        facts["revised"] = revised
    if figures.tombstones:
        facts["withdrawn"] = f"{figures.tombstones:,} bars, as their provider has them no more"
    if figures.trail_bytes > _WORTH_BYTES:
        facts["trail"] = f"{size(figures.trail_bytes)} of replaced values (MARKETDATA_TRAIL)"
    if vitals.forecast_bytes is not None:
        facts["forecast"] = f"about {size(vitals.forecast_bytes)} of bars with the whole history"
    return facts


def _revised(drift: Sequence[DriftCount]) -> str:
    """Return how many stored bars were replaced, by stage, and in which fields."""
    from marketdata.drift import BARS, by_stage_and_field

    counts = by_stage_and_field(drift)
    several = len({count.provider for count in counts}) > 1
    stages: dict[str, list[str]] = {}
    for count in counts:
        whose = f"{count.provider} {count.stage}" if several else count.stage
        if count.field == BARS:
            stages[whose] = [f"{count.bars:,} bars"]
        else:
            stages.setdefault(whose, []).append(f"{count.field} {count.bars:,}")
    return "; ".join(f"{stage} {told[0]} ({', '.join(told[1:])})" for stage, told in stages.items())


def _worth_telling(budgets: Sequence[BudgetUse]) -> list[BudgetUse]:
    """Return the budgets in use, or the one that was used last where none is."""
    known = [b for b in budgets if b.limit is not None]
    return [b for b in known if b.used or b.paused or b.waiting] or known[:1]


def _budget(budget: BudgetUse) -> str:
    from marketdata.protocols import Priority

    words = [f"{_PRIORITIES[p]} {n:,}" for p, n in budget.by_priority.items() if n]
    others = budget.used - sum(budget.by_priority.values())
    if others > 0:
        words.append(f"assumed {others:,}")
    text = f"{budget.used:,} of {budget.limit:,} requests used in the last minute"
    if words:
        text += f" ({', '.join(words)})"
    kept = budget.reserve[Priority.BACKFILL]
    text += f"; {budget.left(Priority.LIVE):,} left, {kept:,} of them kept from background work"
    if budget.waiting:
        text += f"; waiting: {', '.join(_PRIORITIES[p] for p in budget.waiting)}"
    if budget.paused:
        text += f"; the broker refuses everything for {budget.paused:.0f} s"
    return text


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
