"""What one cycle reads follows from what is stored, whichever ticks came before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata import freshness, planning
from marketdata.calendars import EXCHANGE, TradingCalendar, calendar_for
from marketdata.clock import to_micros
from marketdata.freshness import Read, Work
from marketdata.planning import Fetch
from marketdata.protocols import BaseTimeframe, Capabilities, SeriesState
from marketdata.spans import Span, intersect, normalise, subtract
from marketdata.types import DAY, HOUR, MINUTE, SECOND, SeriesKey, Timeframe

NY: Final = "America/New_York"
MIN, DAILY = Timeframe.MIN_1, Timeframe.DAY_1


def at(text: str) -> int:
    """Return an instant of New York, microseconds UTC."""
    from zoneinfo import ZoneInfo

    return to_micros(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(NY)))


def span(start: str, end: str) -> Span:
    return Span(at(start), at(end))


CALENDAR: Final[TradingCalendar] = calendar_for(EXCHANGE, at("2026-01-02"))


def capabilities(delay: int = 3 * SECOND, batch: int = 500) -> Capabilities:
    return Capabilities(
        bases={t: (BaseTimeframe(MIN if t.intraday else DAILY, None),) for t in Timeframe},
        max_span={MIN: None, DAILY: None},
        settle_delay=delay,
        daily_settle_delay=20 * MINUTE,
        feeds=("sip",),
        batch_symbols=batch,
        page_rows=10_000,
        latest_feeds=(),
        earliest=at("2016-01-04"),
    )


CAPS: Final = capabilities()


def key(number: int = 1, base: Timeframe = MIN) -> SeriesKey:
    return SeriesKey("alpaca", "sip", f"S{number:05d}", base)


def work(states: dict[SeriesKey, SeriesState], now: int, caps: Capabilities = CAPS) -> Work:
    return freshness.work(states, CALENDAR, caps, now)


def reads(
    state: SeriesState, now: str, base: Timeframe = MIN, delay: int = 3 * SECOND
) -> list[Read]:
    caps = capabilities(delay)
    moment = freshness.Moment.at(base, CALENDAR, caps, at(now))
    return freshness.reads(moment, state, CALENDAR)


@dataclass
class Store:
    """What the store would hold after each fetch; the rules of `protocols.BarStore.commit`."""

    caps: Capabilities = CAPS
    states: dict[SeriesKey, SeriesState] = field(default_factory=dict)
    fetched: list[Fetch] = field(default_factory=list)

    def cycle(self, now: int, fail: Iterable[int] = ()) -> Work:
        """Make every fetch of a cycle at `now`, but those whose number is in `fail`."""
        plan = work(self.states, now, self.caps)
        for number, fetch in enumerate((*plan.urgent, *plan.later)):
            if number not in fail:
                self.fetched.append(fetch)
                for each in fetch.keys:
                    self.states[each] = self._stored(self.states[each], fetch, now)
        return plan

    def _stored(self, state: SeriesState, fetch: Fetch, now: int) -> SeriesState:
        base = fetch.base
        edge = planning.frontier(CALENDAR, base, self.caps, now)
        delay = self.caps.settle_delay if base.intraday else self.caps.daily_settle_delay
        covered = planning.recordable(fetch.span, CALENDAR, base, edge, now - delay)
        settling = planning.settling(CALENDAR, base, now)
        settled = [Span(covered.start, min(covered.end, settling.settled_until))]
        final = [Span(covered.start, min(covered.end, settling.final_until))]
        first_time = subtract([covered], state.coverage)
        return SeriesState(
            coverage=normalise([*state.coverage, covered]),
            unsettled=subtract(normalise([*state.unsettled, *first_time]), normalise(settled)),
            final=normalise([*state.final, *final]),
            fetched_us=max(now, state.fetched_us or now),
        )


def store_of(*keys: SeriesKey, caps: Capabilities = CAPS) -> Store:
    return Store(caps, dict.fromkeys(keys, SeriesState()))


def minutes(start: str, end: str, every: int = 1, seconds: int = 5) -> list[int]:
    """Return ticks `seconds` after every so many minutes, the first at `start`."""
    return list(range(at(start) + seconds * SECOND, at(end), every * MINUTE))


# ------------------------------------------------------------------------------- one moment


def test_a_new_series_gets_the_newest_block_and_no_more():
    (read,) = reads(SeriesState(), "2026-03-12 15:00:05")
    # 330 regular minutes of today, and the last 170 of yesterday.
    assert read == Read(span("2026-03-11 13:10", "2026-03-12 15:00"), again=False)
    (daily,) = reads(SeriesState(), "2026-03-12 15:00:05", DAILY)
    assert daily.span.end == at("2026-03-11 16:00")
    assert planning.expected_bars(daily.span, DAILY, CALENDAR) == 500


def test_older_gaps_are_left_to_the_backfill():
    old = span("2026-01-05 04:00", "2026-01-06 20:00")
    recent = span("2026-03-11 12:00", "2026-03-12 14:59")
    state = SeriesState(coverage=[old, recent], final=[Span(recent.start, at("2026-03-12 04:00"))])
    (read,) = reads(state, "2026-03-12 15:00:05")
    assert read.span == span("2026-03-12 14:59", "2026-03-12 15:00")


def test_the_minute_before_is_read_again_with_the_new_one():
    state = SeriesState(
        coverage=[span("2026-03-01 04:00", "2026-03-12 14:59")],
        unsettled=[span("2026-03-12 14:58", "2026-03-12 14:59")],
        final=[span("2026-03-01 04:00", "2026-03-12 04:00")],
    )
    (read,) = reads(state, "2026-03-12 15:00:05")
    assert read == Read(span("2026-03-12 14:58", "2026-03-12 15:00"), again=False)


def test_corrections_are_asked_for_where_no_new_bar_is():
    state = SeriesState(
        coverage=[span("2026-03-01 04:00", "2026-03-12 20:00:02")],
        unsettled=[span("2026-03-12 19:59", "2026-03-12 20:00:02")],
        final=[span("2026-03-01 04:00", "2026-03-12 04:00")],
    )
    assert reads(state, "2026-03-12 20:00:30") == []
    (read,) = reads(state, "2026-03-12 20:01:05")
    assert read == Read(span("2026-03-12 19:59", "2026-03-12 20:00"), again=True)


def test_the_session_is_read_again_an_hour_after_it():
    state = SeriesState(
        coverage=[span("2026-03-01 04:00", "2026-03-12 20:10")],
        final=[span("2026-03-01 04:00", "2026-03-12 04:00")],
    )
    assert reads(state, "2026-03-12 20:59:59") == []
    (read,) = reads(state, "2026-03-12 21:00:01")
    assert read == Read(span("2026-03-12 04:00", "2026-03-12 20:00"), again=True)


def test_of_a_session_only_what_is_covered_is_read_again():
    state = SeriesState(coverage=[span("2026-03-11 13:10", "2026-03-12 21:00")])
    first, second = reads(state, "2026-03-12 21:00:01")
    assert first.span == span("2026-03-11 13:10", "2026-03-11 20:00")
    assert second.span == span("2026-03-12 04:00", "2026-03-12 20:00")


def test_no_more_than_ten_sessions_are_made_final():
    state = SeriesState(coverage=[span("2026-01-05 04:00", "2026-03-12 21:00")])
    starts = [read.span.start for read in reads(state, "2026-03-12 21:00:01")]
    days = (
        "02-27",
        "03-02",
        "03-03",
        "03-04",
        "03-05",
        "03-06",
        "03-09",
        "03-10",
        "03-11",
        "03-12",
    )
    assert starts == [at(f"2026-{day} 04:00") for day in days]


def test_a_daily_bar_is_read_after_the_close_in_the_evening_and_next_morning():
    store = store_of(key(base=DAILY))
    store.cycle(at("2026-03-11 12:00"))
    expected = {
        "2026-03-11 16:19:59": [],
        "2026-03-11 16:20:01": [("2026-03-11 00:00", False)],
        "2026-03-11 16:35:00": [],
        "2026-03-11 20:59:59": [],
        "2026-03-11 21:00:01": [("2026-03-11 00:00", True)],
        "2026-03-11 21:15:00": [],
        "2026-03-12 09:59:59": [],
        "2026-03-12 10:00:01": [("2026-03-11 00:00", True)],
        "2026-03-12 10:15:00": [],
    }
    seen = {}
    for moment in expected:
        plan = store.cycle(at(moment))
        seen[moment] = [(f.span.start, f.again) for f in (*plan.urgent, *plan.later)]
    assert seen == {m: [(at(s), again) for s, again in what] for m, what in expected.items()}


def test_a_delayed_feed_has_no_corrections_to_wait_for():
    store = store_of(key(), caps=capabilities(16 * MINUTE))
    for now in minutes("2026-03-12 15:00", "2026-03-12 15:10"):
        plan = store.cycle(now)
    (fetch,) = plan.urgent
    assert fetch.span == span("2026-03-12 14:52", "2026-03-12 14:53")
    assert store.states[key()].unsettled == []


@pytest.mark.parametrize(
    "quiet",
    [
        "2026-03-14 12:00",  # a Saturday
        "2026-07-03 12:00",  # Independence Day, observed
        "2025-01-09 12:00",  # a day of mourning
        "2026-03-12 02:00",  # before the market
    ],
)
def test_nothing_is_asked_while_the_market_is_closed(quiet: str):
    store = store_of(key(), key(base=DAILY))
    # A day after the last session everything is final.
    store.cycle(at(quiet) - 16 * HOUR)
    store.cycle(at(quiet))
    assert len(store.cycle(at(quiet) + 15 * MINUTE)) == 0


def test_a_half_day_ends_early():
    store = store_of(key(), key(base=DAILY))
    store.cycle(at("2026-11-27 12:00:05"))
    asked = {}
    for now in minutes("2026-11-27 12:45", "2026-11-27 19:00", every=15, seconds=0):
        plan = store.cycle(now)
        asked[now] = [(f.base, f.span, f.again) for f in (*plan.urgent, *plan.later)]
    daily = [(now, w) for now, work in asked.items() for w in work if w[0] is DAILY]
    assert [(now, again) for now, (_, _, again) in daily] == [
        (at("2026-11-27 13:30"), False),  # 20 minutes after the close, and the next tick
        (at("2026-11-27 18:00"), True),
    ]
    last = [w for work in asked.values() for w in work if w[0] is MIN]
    assert max(w[1].end for w in last) == at("2026-11-27 17:00")
    assert last[-1] == (MIN, span("2026-11-27 04:00", "2026-11-27 17:00"), True)


@pytest.mark.parametrize(
    ("friday", "monday"),
    [("2026-03-06", "2026-03-09"), ("2026-10-30", "2026-11-02")],  # spring and autumn
)
def test_over_a_change_of_the_clocks_coverage_stays_one_span(friday: str, monday: str):
    store = store_of(key(), key(base=DAILY))
    for now in minutes(f"{friday} 15:00", f"{monday} 11:00", every=15):
        store.cycle(now)
    for base in (MIN, DAILY):
        state = store.states[key(base=base)]
        assert len(state.coverage) == 1
        assert len(state.final) == 1
        today = Span(at(f"{monday} 00:00"), at(f"{monday} 23:00"))
        hours = planning.stored_hours(base)
        assert CALENDAR.trading_spans(state.final[0], hours)[-1].end > at(f"{friday} 15:59")
        assert not CALENDAR.trading_spans(state.final[0].clip(today), hours)


# -------------------------------------------------------------------------- requests shared


def steady(count: int, end: str = "2026-03-12 14:59") -> dict[SeriesKey, SeriesState]:
    covered = SeriesState(
        coverage=[span("2026-03-01 04:00", end)],
        unsettled=[Span(at(end) - MINUTE, at(end))],
        final=[span("2026-02-27 20:00", "2026-03-12 04:00")],
    )
    return {key(n): covered for n in range(count)}


def test_ten_thousand_series_are_twenty_requests():
    plan = work(steady(10_000), at("2026-03-12 15:00:05"))
    assert [len(f.keys) for f in plan.urgent] == [500] * 20
    assert {f.span for f in plan.urgent} == {span("2026-03-12 14:58", "2026-03-12 15:00")}
    assert plan.later == ()


def test_series_some_minutes_behind_share_the_requests_of_the_others():
    states = steady(10_000)
    for behind in range(1, 12):
        for n in range(behind, 1000, 50):
            states[key(n)] = steady(1, f"2026-03-12 14:{59 - behind}")[key(0)]
    plan = work(states, at("2026-03-12 15:00:05"))
    assert len(plan.urgent) == 20
    assert sorted(k for f in plan.urgent for k in f.keys) == sorted(states)
    bars = [planning.expected_bars(f.span, MIN, CALENDAR) for f in plan.urgent]
    assert bars.count(2) == 19, "those that are up to date pay nothing for the others"
    assert max(bars) <= 2 + 11 + 1


def test_long_reads_share_requests_too_but_within_bounds():
    states = {}
    for n in range(300):
        end = at("2026-03-12 14:00") - n * MINUTE
        known = Span(at("2026-03-01 04:00"), end)
        states[key(n)] = SeriesState(coverage=[known], final=[known])
    plan = work(states, at("2026-03-12 15:00:05"))
    fetches = [*plan.urgent, *plan.later]
    assert len(fetches) < 10
    asked = needed = 0
    for fetch in fetches:
        for each in fetch.keys:
            needed += (at("2026-03-12 15:00") - states[each].coverage[-1].end) // MINUTE
            asked += planning.expected_bars(fetch.span, MIN, CALENDAR)
    assert asked <= 2 * needed + freshness.MERGE_BARS * len(states)


def test_what_is_urgent_comes_before_blocks_and_sessions():
    states = steady(600) | {key(n): SeriesState() for n in range(600, 700)}
    plan = work(states, at("2026-03-12 15:00:05"))
    assert [len(f.keys) for f in plan.urgent] == [500, 100]
    (load,) = plan.later
    assert load.keys == tuple(key(n) for n in range(600, 700))
    assert not load.again


def test_a_read_for_corrections_in_a_batch_makes_it_a_read_again():
    # Two were fetched by somebody else a minute early: no gap, but corrections.
    states = steady(10)
    for n in (3, 4):
        states[key(n)] = SeriesState(
            coverage=[span("2026-03-01 04:00", "2026-03-12 15:00")],
            unsettled=[span("2026-03-12 14:58", "2026-03-12 15:00")],
            final=[span("2026-02-27 20:00", "2026-03-12 04:00")],
        )
    (fetch,) = work(states, at("2026-03-12 15:00:05")).urgent
    assert fetch.again
    assert fetch.span == span("2026-03-12 14:58", "2026-03-12 15:00")


def test_the_order_of_those_who_want_them_is_kept():
    states = {key(n): SeriesState() for n in (5, 3, 9)}
    (load,) = work(states, at("2026-03-12 15:00:05")).later
    assert [k.symbol for k in load.keys] == ["S00005", "S00003", "S00009"]


def test_a_failed_request_is_made_again_by_the_next_cycle():
    store = store_of(*(key(n) for n in range(3)), caps=capabilities(batch=1))
    store.cycle(at("2026-03-12 15:00:05"))
    store.cycle(at("2026-03-12 15:01:05"), fail=[1])
    plan = store.cycle(at("2026-03-12 15:02:05"))
    minute = at("2026-03-12 15:00")
    assert {f.keys[0].symbol: f.span.start for f in plan.urgent} == {
        "S00000": minute,
        "S00001": minute - MINUTE,  # what it lacks, and the minute before once more
        "S00002": minute,
    }
    ends = {state.coverage[-1].end for state in store.states.values()}
    assert ends == {at("2026-03-12 15:02")}


# ----------------------------------------------------------------- missed, late, doubled ticks

DAYS: Final = ("2026-03-12", "2026-11-27", "2026-03-06", "2026-10-30", "2026-07-02")
"""An ordinary Thursday, a half-day, the Fridays before the clocks change, one before a holiday."""


def final_state(store: Store) -> Sequence[object]:
    """Return what is stored, in trading time: how far into the night an answer reaches depends on
    when it was given."""

    def trading(spans: Sequence[Span], base: Timeframe) -> list[Span]:
        hours = planning.stored_hours(base)
        return [t for s in spans for t in CALENDAR.trading_spans(s, hours)]

    return [
        [trading(spans, base) for spans in (state.coverage, state.unsettled, state.final)]
        for base in (MIN, DAILY)
        for state in [store.states[key(base=base)]]
    ]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), day=st.sampled_from(DAYS))
def test_invariant_39_whatever_ticks_come_the_end_is_the_same(data: st.DataObject, day: str):
    """Every tick on time, against ticks that are dropped, late or doubled: after the same last
    cycles the store says the same."""
    on_time = [
        *minutes(f"{day} 09:20", f"{day} 09:40"),
        *minutes(f"{day} 12:50", f"{day} 13:10"),
        *minutes(f"{day} 15:50", f"{day} 16:30"),
        *minutes(f"{day} 16:45", f"{day} 20:10", every=15),
    ]
    disturbed: list[int] = []
    fates = data.draw(
        st.lists(
            st.sampled_from(["keep", "drop", "late", "twice"]),
            min_size=len(on_time),
            max_size=len(on_time),
        )
    )
    for tick, fate in zip(on_time, fates, strict=True):
        if fate == "late":
            disturbed.append(tick + data.draw(st.integers(0, 20)) * 11 * SECOND)
        elif fate != "drop":
            disturbed += [tick] * (1 + (fate == "twice"))
    morning = at(day) + DAY + 10 * HOUR
    last = [at(f"{day} 21:30:00"), morning + 2 * HOUR, morning + 2 * HOUR + 61 * SECOND]
    start = at(f"{day} 09:00:05")
    ideal, real = (store_of(key(), key(base=DAILY)) for _ in range(2))
    for store, ticks in ((ideal, on_time), (real, sorted(disturbed))):
        for now in (start, *ticks, *last):
            store.cycle(now)
    assert final_state(real) == final_state(ideal)
    state = real.states[key()]
    regular = CALENDAR.trading_spans(span(f"{day} 00:00", f"{day} 23:00"), "regular")
    assert intersect(state.final, regular) == regular
    assert len(state.coverage) == 1


@settings(max_examples=40, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 400), min_size=1, max_size=8),
    offset=st.integers(0, 26 * 60),
)
def test_after_every_cycle_no_closed_minute_is_missing(gaps: list[int], offset: int):
    store = store_of(key())
    now = at("2026-03-12 00:00:05") + offset * MINUTE
    for minutes_on in gaps:
        store.cycle(now)
        state = store.states[key()]
        moment = freshness.Moment.at(MIN, CALENDAR, CAPS, now)
        assert planning.gaps(moment.asked, state, CALENDAR, MIN) == []
        assert work(store.states, now).urgent == ()
        assert work(store.states, now).later == ()
        now += minutes_on * MINUTE


def test_a_day_of_ten_thousand_symbols_stays_under_ten_thousand_pages():
    """390 cycles in the session, one each quarter of an hour around it, and every re-read; with
    as many bars as a dense market has, 10,000 to a page."""
    store = store_of(key(), key(base=DAILY))
    store.cycle(at("2026-03-11 21:30"))
    store.fetched.clear()
    ticks = [
        *minutes("2026-03-12 04:00", "2026-03-12 09:30", every=15),
        *minutes("2026-03-12 09:31", "2026-03-12 16:01"),
        *minutes("2026-03-12 16:15", "2026-03-12 21:16", every=15),
    ]
    pages = 0
    for now in ticks:
        store.cycle(now)
    for fetch in store.fetched:
        bars = planning.expected_bars(fetch.span, fetch.base, CALENDAR)
        if fetch.base is MIN and bars > 30:
            # A session read again: one bar in four of the extended hours is traded.
            bars = 390 + (bars - 390) // 4
        pages += 20 * max(1, -(-bars * 500 // 10_000))
    assert len(ticks) == 390 + 22 + 21
    assert pages < 10_000
