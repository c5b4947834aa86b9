"""When the daemon acts: the clock replayed over days that clocks and calendars get wrong."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketdata.calendars import EXCHANGE, TradingCalendar, calendar_for
from marketdata.clock import from_micros, to_micros
from marketdata.schedule import (
    NIGHT,
    Tick,
    Timetable,
    actions_due,
    last_fire,
    last_mark,
    next_fire,
    night_of,
)
from marketdata.types import DAY, HOUR, MINUTE, SECOND

NEW_YORK = ZoneInfo("America/New_York")
TABLE = Timetable()


@pytest.fixture(scope="module")
def calendar() -> TradingCalendar:
    return calendar_for(EXCHANGE, at("2026-06-01 00:00"))


def at(text: str, fold: int = 0) -> int:
    """Return a moment of New York in microseconds UTC."""
    return to_micros(datetime.fromisoformat(text).replace(tzinfo=NEW_YORK, fold=fold))


def clock(moment: int) -> str:
    """Return the New York wall clock, with the zone where it is needed to tell two hours apart."""
    return f"{from_micros(moment).astimezone(NEW_YORK):%a %H:%M:%S}"


def fires(tick: Tick, calendar: TradingCalendar, start: int, end: int) -> Iterator[int]:
    """Yield every moment in ``[start, end)`` at which a daemon with a perfect clock acts."""
    moment = start - 1
    while (moment := next_fire(tick, TABLE, calendar, moment)) < end:
        yield moment


def every(minutes: int, first: str, last: str) -> list[str]:
    """Return the wall-clock times from `first` to `last`, both included, three seconds late."""
    day = "2000-01-01 "
    moment, end = datetime.fromisoformat(day + first), datetime.fromisoformat(day + last)
    found = []
    while moment <= end:
        found.append(f"{moment:%H:%M}:03")
        moment += timedelta(minutes=minutes)
    return found


FULL_DAY = [
    *every(15, "04:15", "09:30"),  # before the market opens
    *every(1, "09:31", "16:00"),  # each minute of the session, as it closes
    "16:01:03",  # the last minute as the broker corrected it
    "16:15:03",
    "16:20:03",  # the daily bar has closed
    *every(15, "16:30", "20:00"),  # after hours
    "21:00:03",  # the session is final
]
HALF_DAY = [
    *every(15, "04:15", "09:30"),
    *every(1, "09:31", "13:00"),
    "13:01:03",
    "13:15:03",
    "13:20:03",
    *every(15, "13:30", "17:00"),
    "18:00:03",
]

DAYS = {
    # day: (what it is, when the cycle runs, when the night's work begins)
    "2024-03-08": ("a Friday", ["10:00:03", *FULL_DAY], ["01:00:00"]),
    "2024-03-09": ("Saturday: Friday's daily bar becomes final", ["10:00:03"], ["01:00:00"]),
    "2024-03-10": ("Sunday without an hour from two to three", [], ["01:00:00"]),
    "2024-03-11": ("Monday of summer time", FULL_DAY, ["01:00:00"]),
    "2024-10-31": ("a Thursday", ["10:00:03", *FULL_DAY], ["01:00:00"]),
    "2024-11-02": ("Saturday", ["10:00:03"], ["01:00:00"]),
    "2024-11-03": ("Sunday whose hour from one to two comes twice", [], ["01:00:00"]),
    "2024-11-04": ("Monday of winter time", FULL_DAY, ["01:00:00"]),
    "2024-11-27": ("the day before Thanksgiving", ["10:00:03", *FULL_DAY], ["01:00:00"]),
    "2024-11-28": ("Thanksgiving", ["10:00:03"], ["01:00:00"]),
    "2024-11-29": ("the half-day after it", HALF_DAY, ["01:00:00"]),
    "2024-11-30": ("Saturday after a half-day", ["10:00:03"], ["01:00:00"]),
    "2024-12-01": ("Sunday", [], ["01:00:00"]),
    "2012-10-29": ("closed by a hurricane, on a Monday", [], ["01:00:00"]),
    "2018-12-05": ("closed for a day of mourning", ["10:00:03"], ["01:00:00"]),
    "2025-01-09": ("closed for a day of mourning", ["10:00:03"], ["01:00:00"]),
}


@pytest.mark.parametrize("day", DAYS)
def test_what_a_person_would_expect(day: str, calendar: TradingCalendar):
    _, cycles, nights = DAYS[day]
    start = at(f"{day} 00:00")
    end = to_micros(datetime.fromisoformat(day).replace(tzinfo=NEW_YORK) + timedelta(days=1))
    ran = [clock(m)[4:] for m in fires(Tick.CYCLE, calendar, start, end)]
    assert ran == sorted(set(cycles))
    assert [clock(m)[4:] for m in fires(Tick.NIGHTLY, calendar, start, end)] == nights


def test_a_day_has_this_many_calls(calendar: TradingCalendar):
    """What a daemon costs its broker, before symbols are counted."""
    day = at("2024-03-14 00:00")
    assert sum(1 for _ in fires(Tick.CYCLE, calendar, day, day + DAY)) == 431
    assert sum(1 for _ in fires(Tick.RECONCILE, calendar, day, day + DAY)) == 288


@pytest.mark.parametrize(("day", "hours"), [("2024-03-10", 23), ("2024-11-03", 25)])
def test_subscriptions_are_reconciled_every_five_minutes_of_a_short_or_long_day(
    day: str, hours: int, calendar: TradingCalendar
):
    start = at(f"{day} 00:00")
    found = list(fires(Tick.RECONCILE, calendar, start, start + hours * HOUR))
    assert len(found) == hours * 12
    assert {b - a for a, b in pairwise(found)} == {5 * MINUTE}


def test_corporate_actions_are_asked_for_at_their_times_every_date(calendar: TradingCalendar):
    start, end = at("2024-03-08 00:00"), at("2024-03-12 00:00")  # over a change of clocks
    found = [clock(m) for m in fires(Tick.ACTIONS, calendar, start, end)]
    assert found == [f"{d} {t}:00" for d in ("Fri", "Sat", "Sun", "Mon") for t in TABLE.actions_at]
    morning, evening = at("2024-03-08 06:15"), at("2024-03-08 18:15")
    assert last_fire(Tick.ACTIONS, TABLE, calendar, evening - 1) == morning
    assert actions_due(TABLE, calendar, morning - 1) is None
    assert actions_due(TABLE, calendar, morning) == "2024-03-08 06:15"
    assert actions_due(TABLE, calendar, morning + NIGHT) == "2024-03-08 06:15"
    assert actions_due(TABLE, calendar, morning + NIGHT + 1) is None
    assert actions_due(TABLE, calendar, evening + HOUR) == "2024-03-08 18:15"


def test_corporate_actions_may_never_be_asked_for(calendar: TradingCalendar):
    never = Timetable(actions_at=())
    now = at("2024-03-08 06:15")
    assert next_fire(Tick.ACTIONS, never, calendar, now) == calendar.horizon
    assert actions_due(never, calendar, now) is None


# ----------------------------------------------------------------------------- nights and clocks


@pytest.mark.parametrize("time", ["01:00", "01:30", "01:59"])
def test_the_hour_that_repeats_runs_once(time: str, calendar: TradingCalendar):
    table = Timetable(nightly_at=time)
    first, second = at(f"2024-11-03 {time}"), at(f"2024-11-03 {time}", fold=1)
    assert second - first == HOUR
    assert next_fire(Tick.NIGHTLY, table, calendar, first - 1) == first
    assert next_fire(Tick.NIGHTLY, table, calendar, first) == at(f"2024-11-04 {time}")
    assert last_fire(Tick.NIGHTLY, table, calendar, second) == first


@pytest.mark.parametrize("time", ["02:00", "02:30", "02:59"])
def test_the_hour_that_is_missing_runs_once_behind_the_gap(time: str, calendar: TradingCalendar):
    table = Timetable(nightly_at=time)
    day = at("2024-03-10 00:00")
    found = next_fire(Tick.NIGHTLY, table, calendar, day)
    assert clock(found) == f"Sun 03:{time[3:]}:00"
    assert next_fire(Tick.NIGHTLY, table, calendar, found) == at(f"2024-03-11 {time}")


def test_a_night_is_made_up_for_until_morning(calendar: TradingCalendar):
    began = at("2024-11-03 01:00")
    assert str(night_of(TABLE, calendar, began)) == "2024-11-03"
    assert str(night_of(TABLE, calendar, began + HOUR)) == "2024-11-03"  # 01:00 once more
    assert str(night_of(TABLE, calendar, began + NIGHT)) == "2024-11-03"
    assert night_of(TABLE, calendar, began + NIGHT + 1) is None
    assert night_of(TABLE, calendar, began - 1) is None


# ---------------------------------------------------------------------------------- settings


def test_polls_as_set(calendar: TradingCalendar):
    table = Timetable(poll=7 * MINUTE, poll_after_hours=HOUR, nightly_at="23:30")
    day = at("2024-03-14 00:00")
    moment, found = day, []
    while (moment := next_fire(Tick.CYCLE, table, calendar, moment)) < day + DAY:
        found.append(clock(moment)[4:9])
    assert found[:6] == ["05:00", "06:00", "07:00", "08:00", "09:00", "09:37"]
    assert "16:00" in found, "the close is a mark whatever the poll"
    assert found[-5:] == ["17:00", "18:00", "19:00", "20:00", "21:00"]
    assert next_fire(Tick.NIGHTLY, table, calendar, day) == at("2024-03-14 23:30")


def test_a_delayed_feed_is_asked_when_it_answers(calendar: TradingCalendar):
    delayed = Timetable(settle_delay=16 * MINUTE, jitter=2 * SECOND)
    assert clock(next_fire(Tick.CYCLE, delayed, calendar, at("2024-03-14 10:00"))) == "Thu 10:00:02"
    after_close = [at("2024-03-14 16:10")]
    for _ in range(8):
        after_close.append(next_fire(Tick.CYCLE, delayed, calendar, after_close[-1]))
    assert "Thu 16:16:02" in map(clock, after_close)
    assert last_mark(delayed, calendar, at("2024-03-14 10:16:30")) == at("2024-03-14 10:00")


def test_marks_are_due_once_the_act_is(calendar: TradingCalendar):
    assert last_mark(TABLE, calendar, at("2024-03-14 10:05:02")) == at("2024-03-14 10:04")
    assert last_mark(TABLE, calendar, at("2024-03-14 10:05:03")) == at("2024-03-14 10:05")
    assert last_mark(TABLE, calendar, at("2024-03-16 15:00")) == at("2024-03-16 10:00")


# -------------------------------------------------------------------------------- properties

moments = st.integers(at("2019-01-01 00:00"), at("2026-06-01 00:00"))
tables = st.builds(
    Timetable,
    poll=st.sampled_from([MINUTE, 90 * SECOND, 5 * MINUTE, HOUR]),
    poll_after_hours=st.sampled_from([MINUTE, 15 * MINUTE, HOUR, DAY]),
    nightly_at=st.sampled_from(["00:00", "01:00", "02:30", "23:59"]),
    settle_delay=st.sampled_from([3 * SECOND, 16 * MINUTE]),
    jitter=st.integers(0, 5 * SECOND),
)


@given(tick=st.sampled_from(list(Tick)), table=tables, moment=moments)
def test_last_and_next_leave_no_hole(tick: Tick, table: Timetable, moment: int):
    calendar = calendar_for(EXCHANGE, moment)
    last = last_fire(tick, table, calendar, moment)
    following = next_fire(tick, table, calendar, moment)
    assert last <= moment < following
    assert next_fire(tick, table, calendar, last) == following
    assert last_fire(tick, table, calendar, following) == following


@given(moment=moments)
def test_an_open_market_is_never_left_for_longer_than_the_poll(moment: int):
    calendar = calendar_for(EXCHANGE, moment)
    if calendar.is_open(moment - TABLE.offset):
        assert next_fire(Tick.CYCLE, TABLE, calendar, moment) - moment <= MINUTE


@given(moment=moments)
def test_a_closed_market_costs_nothing_but_what_is_due(moment: int):
    """Outside extended hours only the moments at which a session and its daily bar become final."""
    calendar = calendar_for(EXCHANGE, moment)
    following = next_fire(Tick.CYCLE, TABLE, calendar, moment)
    mark = following - TABLE.offset
    if not calendar.is_open(mark - 1, "extended"):
        at_session = calendar.session_at(mark - 1)
        ends = [
            (calendar.session_span(i, "regular").end, calendar.session_span(i, "extended").end)
            for i in (at_session - 1, at_session)
        ]
        mornings = {
            calendar.session_span(i, "daily").start + 34 * HOUR
            for i in (at_session - 1, at_session)
        }
        assert mark in mornings | {e + HOUR for _, e in ends}
