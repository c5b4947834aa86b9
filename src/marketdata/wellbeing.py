"""What the store's figures mean by the exchange's calendar: how fresh, how late, how large. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from marketdata import planning
from marketdata.calendars import TradingCalendar
from marketdata.clock import to_micros
from marketdata.schedule import Tick, Timetable, last_fire, last_mark, next_fire
from marketdata.spans import Span
from marketdata.types import DAY, MINUTE, SECOND, Timeframe

if TYPE_CHECKING:
    from marketdata.config import Settings
    from marketdata.store.figures import Figures

GRACE: Final = MINUTE
"""Market time that a cycle may take before what it is about to fetch counts as late."""
STALE_MINUTES: Final = 5 * MINUTE
"""Trading time behind which a series of minutes is stale; one of days is after one session."""
_ROW_BYTES: Final = 160.0
_CHUNK_BYTES: Final = 18.0
MINUTES_A_SESSION: Final = 500
"""Minute bars that a symbol has in a session: the 390 regular ones and some of the extended hours.
The most liquid have 900, quiet ones far fewer."""
_SESSIONS_A_DAY: Final = 252 / 365


@dataclass(frozen=True, slots=True)
class Lag:
    """How far the subscribed series of one stored timeframe are behind what is due."""

    symbols: int = 0
    stale: int = 0
    """Further behind than a few minutes of trading time, or never fetched."""
    unfetched: int = 0
    worst: float = 0.0
    """Seconds of trading time; 0 while no market is open and all was fetched."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """What the figures mean at one moment of the market."""

    now_us: int
    market_open: bool
    horizon_days: float
    figures: Figures
    lag: Mapping[Timeframe, Lag] = field(default_factory=dict)
    overdue: Mapping[str, float] = field(default_factory=dict)
    """For each job that ever ran: seconds of market time since it should have succeeded."""
    forecast_bytes: int | None = None
    """Of bars, once every subscribed symbol has its whole history; None without subscriptions."""
    request_limit: int | None = None
    """A minute, where the broker has said so."""

    @property
    def requests_left(self) -> int | None:
        """Of this minute, by what all processes on this store have taken."""
        if self.request_limit is None:
            return None
        return (
            0 if self.figures.requests_paused else self.request_limit - self.figures.requests_used
        )


def timetable(
    settings: Settings, settle_delay: int, daily_settle_delay: int, jitter: int = 0
) -> Timetable:
    """Return the timetable that `settings` ask for; delays in microseconds, as of the broker."""
    return Timetable(
        poll=settings.poll * SECOND,
        poll_after_hours=settings.poll_after_hours * SECOND,
        nightly_at=settings.backfill_at,
        actions_at=settings.actions_at,
        settle_delay=settle_delay,
        daily_settle_delay=daily_settle_delay,
        jitter=jitter,
    )


def assess(
    figures: Figures,
    calendar: TradingCalendar,
    now_us: int,
    table: Timetable,
    *,
    seal_after: int | str = 10,
    retention: int | str = 730,
    request_limit: int | None = None,
) -> Vitals:
    """Return what `figures` mean at `now_us` (market time, microseconds UTC).

    Parameters
    ----------
    table : Timetable
        When the daemon acts.
    seal_after, retention : int or "never"
        The settings of these names, for the forecast of sizes.
    request_limit : int, optional
        Requests a minute.
    """
    return Vitals(
        now_us=now_us,
        market_open=calendar.is_open(now_us),
        horizon_days=(calendar.horizon - now_us) / DAY,
        figures=figures,
        lag={
            base: _lag(base, until, calendar, now_us, table)
            for base, until in figures.wanted.items()
        },
        overdue={job: _overdue(job, figures, calendar, now_us, table) for job in figures.runs},
        forecast_bytes=_forecast(figures, seal_after, retention),
        request_limit=request_limit or next((b.limit for b in figures.budgets), None),
    )


def _lag(
    base: Timeframe,
    covered: Mapping[int | None, int],
    calendar: TradingCalendar,
    now_us: int,
    table: Timetable,
) -> Lag:
    due = _due(base, calendar, now_us, table)
    hours = planning.stored_hours(base)
    limit = STALE_MINUTES if base.intraday else 0
    symbols = stale = 0
    worst = 0.0
    for until, count in covered.items():
        behind = None
        if until is not None:
            behind = calendar.trading_time(Span(until, due), hours) if until < due else 0
            worst = max(worst, behind / SECOND)
        symbols += count
        if behind is None or behind > limit:
            stale += count
    return Lag(symbols, stale, covered.get(None, 0), worst)


def _due(base: Timeframe, calendar: TradingCalendar, now_us: int, table: Timetable) -> int:
    """Return up to where a series should be covered: what a cycle was due for a while ago."""
    mark = last_mark(table, calendar, now_us - GRACE)
    if base.intraday:
        return mark - mark % MINUTE
    settled = mark - table.daily_settle_delay
    at = calendar.session_at(settled)
    while at >= 0 and calendar.session_span(at, "daily").end > settled:
        at -= 1
    return calendar.session_span(at, "daily").end if at >= 0 else calendar.first


def _overdue(
    job: str, figures: Figures, calendar: TradingCalendar, now_us: int, table: Timetable
) -> float:
    tick = Tick(job) if job in list(Tick) else Tick.NIGHTLY
    success = figures.successes.get(job)
    if success is None:
        due = last_fire(tick, table, calendar, now_us)
    else:
        due = next_fire(tick, table, calendar, to_micros(success.market_time))
    return max(0, now_us - due) / SECOND


def _forecast(figures: Figures, seal_after: int | str, retention: int | str) -> int | None:
    """Return the bytes of bars once all subscribed symbols have their history, at what a bar of
    this store takes now, or usually takes where there are few."""
    symbols = sum(figures.wanted.get(Timeframe.MIN_1, {}).values())
    if not symbols:
        return None
    per_row = figures.row_bytes / figures.rows if figures.rows > 100_000 else _ROW_BYTES
    per_sealed = figures.chunk_bytes / figures.sealed if figures.sealed > 100_000 else _CHUNK_BYTES
    sessions = 730 * _SESSIONS_A_DAY if retention == "never" else int(retention) * _SESSIONS_A_DAY
    as_rows = sessions if seal_after == "never" else min(float(seal_after), sessions)
    bytes_each = as_rows * per_row + (sessions - as_rows) * per_sealed
    return round(symbols * MINUTES_A_SESSION * bytes_each)
