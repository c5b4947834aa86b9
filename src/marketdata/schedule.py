"""When the daemon acts: marks on the exchange's clock, in the calendar's days. Pure.

A *mark* is a moment at which new bars close: each minute of the regular session, every quarter of
an hour around it, and the moments at which days become final. The daemon acts a few seconds after
a mark, once the bars have settled. Jobs work out for themselves what is to be done, from what is
stored: an act that comes late, twice or never costs time, not bars.

=========  =====================================================================================
cycle      every ``poll`` seconds of the regular session (09:30-16:00, half-days to 13:00) and at
           its close; one correction delay later; every ``poll_after_hours`` of the extended hours
           (04:00-20:00, half-days to 17:00) and at their end; when the session is final, when its
           daily bar has closed, and when that is final, next morning. Else never.
reconcile  every five minutes, day and night
actions    each local date at every one of ``actions_at``, with the same care for clock changes
nightly    once a local date, at ``nightly_at``: the hour that autumn repeats counts once, one
           that spring leaves out is made up for after the gap
=========  =====================================================================================
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Final

from marketdata.calendars import TradingCalendar
from marketdata.clock import from_micros, to_micros
from marketdata.planning import CORRECTION_DELAY, DAILY_FINAL_DELAY, FINAL_DELAY
from marketdata.types import HOUR, MINUTE, SECOND

RECONCILE_EVERY: Final = 5 * MINUTE
_RECONCILE_OFFSET: Final = 30 * SECOND
"""Half a minute after the mark, when the cycle is over."""
NIGHT: Final = 5 * HOUR
"""For how long after its time a night that was missed is made up for."""


class Tick(StrEnum):
    """What the daemon is woken for."""

    CYCLE = "cycle"
    RECONCILE = "reconcile"
    ACTIONS = "actions"
    NIGHTLY = "nightly"


@dataclass(frozen=True, slots=True)
class Timetable:
    """The settings that decide when, durations in microseconds."""

    poll: int = MINUTE
    poll_after_hours: int = 15 * MINUTE
    nightly_at: str = "01:00"
    """``HH:MM`` in the exchange's zone."""
    settle_delay: int = 3 * SECOND
    """After a bar's end before it counts as closed; the daemon acts no earlier after any mark."""
    daily_settle_delay: int = 20 * MINUTE
    """After the session's close before its daily bar counts as closed."""
    jitter: int = 0
    """Added to every act, so that many daemons do not ask one broker in the same instant."""
    actions_at: tuple[str, ...] = ("06:15", "18:15")
    """``HH:MM`` in the exchange's zone; none is never."""

    @property
    def offset(self) -> int:
        return self.settle_delay + self.jitter


def next_fire(tick: Tick, table: Timetable, calendar: TradingCalendar, after_us: int) -> int:
    """Return the first moment after `after_us` (exclusive) at which `tick` is due.

    Both in microseconds UTC of market time. At the calendar's end, where nothing is known, the
    answer is its horizon.
    """
    if tick is Tick.RECONCILE:
        at = after_us - _RECONCILE_OFFSET
        return at - at % RECONCILE_EVERY + RECONCILE_EVERY + _RECONCILE_OFFSET
    if tick in (Tick.NIGHTLY, Tick.ACTIONS):
        daily = _daily_marks(tick, table, calendar, after_us)
        return next((at for at in daily if at > after_us), calendar.horizon)
    marks = _marks_around(table, calendar, after_us - table.offset)
    at = bisect_right(marks, after_us - table.offset)
    return marks[at] + table.offset if at < len(marks) else calendar.horizon


def last_fire(tick: Tick, table: Timetable, calendar: TradingCalendar, now_us: int) -> int:
    """Return the last moment at or before `now_us` at which `tick` was due."""
    if tick is Tick.RECONCILE:
        return next_fire(tick, table, calendar, now_us) - RECONCILE_EVERY
    if tick in (Tick.NIGHTLY, Tick.ACTIONS):
        daily = _daily_marks(tick, table, calendar, now_us)
        return next((at for at in reversed(daily) if at <= now_us), calendar.first)
    marks = _marks_around(table, calendar, now_us - table.offset)
    return marks[bisect_right(marks, now_us - table.offset) - 1] + table.offset


def last_mark(table: Timetable, calendar: TradingCalendar, now_us: int) -> int:
    """Return the newest mark the cycle has been due for by `now_us`: bars before it should be
    there, unless that cycle is still running."""
    return last_fire(Tick.CYCLE, table, calendar, now_us) - table.offset


def actions_due(table: Timetable, calendar: TradingCalendar, now_us: int) -> str | None:
    """Return the occasion, date and time, at which corporate actions are to be asked for now or
    can still be, else None."""
    began = last_fire(Tick.ACTIONS, table, calendar, now_us)
    if now_us - began > NIGHT:
        return None
    return f"{from_micros(began).astimezone(calendar.zone):%Y-%m-%d %H:%M}"


def _daily_marks(tick: Tick, table: Timetable, calendar: TradingCalendar, moment: int) -> list[int]:
    """Return when a daily tick is due in the days around `moment`, ascending."""
    times = table.actions_at if tick is Tick.ACTIONS else (table.nightly_at,)
    today = calendar.today(moment)
    days = (today + timedelta(days=n) for n in (-2, -1, 0, 1, 2))
    return sorted(_local_time(text, calendar, day) for day in days for text in times)


def _local_time(text: str, calendar: TradingCalendar, day: date) -> int:
    hour, minute = map(int, text.split(":"))
    # fold=0: the first of two equal hours in autumn; in spring, as far behind the gap as asked.
    moment = datetime(day.year, day.month, day.day, hour, minute, tzinfo=calendar.zone)
    return to_micros(moment)


def night_of(table: Timetable, calendar: TradingCalendar, now_us: int) -> date | None:
    """Return the night whose work is due or can still be made up for at `now_us`, else None."""
    began = last_fire(Tick.NIGHTLY, table, calendar, now_us)
    if now_us - began > NIGHT:
        return None
    return from_micros(began).astimezone(calendar.zone).date()


# -------------------------------------------------------------------------------- cycle's marks


def _marks_around(table: Timetable, calendar: TradingCalendar, moment: int) -> list[int]:
    """Return the marks of the sessions around `moment`, ascending; at least one lies before it
    and, inside the calendar, one after it."""
    at = calendar.session_at(moment)
    found: set[int] = set()
    for index in range(max(at - 1, 0), min(at + 2, len(calendar.open))):
        regular = calendar.session_span(index, "regular")
        extended = calendar.session_span(index, "extended")
        found.update(
            _session_marks(
                table,
                calendar.session_span(index, "daily").start,
                extended.start,
                regular.start,
                regular.end,
                extended.end,
            )
        )
    return sorted(found)


@lru_cache(maxsize=8)
def _session_marks(
    table: Timetable,
    midnight: int,
    extended_open: int,
    open_: int,
    close: int,
    extended_close: int,
) -> tuple[int, ...]:
    poll, quiet = table.poll, table.poll_after_hours
    return (
        *range(extended_open + quiet, open_ + 1, quiet),
        *range(open_ + poll, close, poll),
        close,
        close + CORRECTION_DELAY,
        close + table.daily_settle_delay,
        *range(close + quiet, extended_close, quiet),
        extended_close,
        extended_close + FINAL_DELAY,
        midnight + DAILY_FINAL_DELAY,
    )
