"""Market time becomes real time: the scheduler on replayed, fixed and jumping clocks."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise

import pytest

from marketdata.calendars import EXCHANGE, TradingCalendar, calendar_for
from marketdata.clock import Clock, FixedClock, ReplayClock, to_micros
from marketdata.schedule import Tick, Timetable
from marketdata.ticking import MarketTrigger, Ticker
from marketdata.types import MINUTE, SECOND

OPEN = datetime.fromisoformat("2024-03-14T15:00:30-04:00")
MICROSECOND = timedelta(microseconds=1)


def calendar() -> TradingCalendar:
    return calendar_for(EXCHANGE, to_micros(OPEN))


def until(condition: Callable[[], object], seconds: float = 20) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come"
        time.sleep(0.01)
    return time.monotonic() - began


class Ticks:
    """A ticker whose ticks are written down."""

    def __init__(self, clock: Clock, work: Callable[[], None] = lambda: None) -> None:
        self.clock = clock
        self.cycles: list[int] = []
        self.passed_over: Counter[str] = Counter()
        self._work = work
        self.ticker = Ticker(
            clock,
            Timetable,
            calendar,
            {Tick.CYCLE: self._cycle, Tick.NIGHTLY: self._fail},
            lambda tick, reason: self.passed_over.update([f"{tick} {reason}"]),
        )
        self.ticker.start()

    def _cycle(self) -> None:
        self.cycles.append(self.clock.now_us())
        self._work()

    def _fail(self) -> None:
        raise RuntimeError("this one always does")


@pytest.fixture
def ticking() -> Iterator[Callable[..., Ticks]]:
    with ExitStack() as closing:

        def make(clock: Clock, work: Callable[[], None] = lambda: None) -> Ticks:
            ticks = Ticks(clock, work)
            closing.callback(ticks.ticker.stop, 10)
            return ticks

        yield make


# ---------------------------------------------------------------------------------- the trigger


def standing(speed: float) -> FixedClock:
    """Return a clock that is about to move, so that what is due in market time is known."""
    clock = FixedClock(OPEN)
    clock.speed = speed
    return clock


def assert_due_in(seconds: float, next_fire_time: Callable[[datetime], datetime]) -> datetime:
    """Assert what the next tick is by the real time at which it was asked for, whenever that was."""
    before = datetime.now(UTC)
    fires = next_fire_time(before)
    wait, rounding = timedelta(seconds=seconds), MICROSECOND
    assert before + wait - rounding <= fires <= datetime.now(UTC) + wait + rounding
    return fires


@pytest.mark.parametrize("speed", [1.0, 60.0, 3600.0])
def test_a_mark_of_the_market_is_a_moment_of_real_time(speed: float):
    trigger = MarketTrigger(Tick.CYCLE, standing(speed), Timetable, calendar)
    assert_due_in(33 / speed, partial(trigger.get_next_fire_time, None))


def test_a_tick_never_comes_twice_for_one_mark():
    """However the two clocks round, what follows a tick is the next mark."""
    clock = ReplayClock(OPEN, 7.0)
    trigger = MarketTrigger(Tick.CYCLE, clock, Timetable, calendar)
    fired: list[datetime] = []
    previous = None
    for _ in range(50):
        previous = trigger.get_next_fire_time(previous, datetime.now(UTC))
        # APScheduler asks twice: for runs that are due already, and for the next one.
        assert trigger.get_next_fire_time(fired[-1] if fired else None, datetime.now(UTC)) == (
            pytest.approx(previous, abs=timedelta(milliseconds=50))
        )
        fired.append(previous)
    gaps = {round((b - a).total_seconds() * 7) for a, b in pairwise(fired)}
    assert gaps == {60}


def test_a_standing_clock_makes_nothing_due():
    trigger = MarketTrigger(Tick.CYCLE, FixedClock(OPEN), Timetable, calendar)
    now = datetime.now(UTC)
    assert trigger.get_next_fire_time(None, now) - now > timedelta(days=300)


def test_once_more_comes_beside_the_timetable():
    trigger = MarketTrigger(Tick.CYCLE, standing(1.0), Timetable, calendar)
    trigger.again_at(to_micros(OPEN) + 5 * SECOND)
    first = assert_due_in(5, partial(trigger.get_next_fire_time, None))
    assert_due_in(33, partial(trigger.get_next_fire_time, first))


# ----------------------------------------------------------------------------------- the ticker


def test_a_replay_ticks_once_a_market_minute(ticking: Callable[..., Ticks]):
    ticks = ticking(ReplayClock(OPEN, 200.0))
    until(lambda: len(ticks.cycles) >= 6)
    marks = [(moment - 3 * SECOND) // MINUTE for moment in ticks.cycles]
    assert marks == sorted(set(marks)), "none twice"
    assert marks[-1] - marks[0] <= 7, "none left out"
    late = [(moment - 3 * SECOND) % MINUTE / SECOND / 200 for moment in ticks.cycles]
    assert min(late) < 0.1, "seconds of real time behind the mark"


def test_a_tick_that_still_runs_is_skipped_and_counted(ticking: Callable[..., Ticks]):
    go_on = threading.Event()
    ticks = ticking(ReplayClock(OPEN, 600.0), lambda: go_on.wait(20) and None)
    until(lambda: ticks.passed_over["cycle skipped"] >= 3)
    assert len(ticks.cycles) == 1
    assert ticks.ticker.running == {Tick.CYCLE}
    go_on.set()
    until(lambda: len(ticks.cycles) > 2)


def test_a_tick_that_fails_is_counted_and_comes_again(ticking: Callable[..., Ticks]):
    ticks = ticking(FixedClock(OPEN))
    ticks.ticker.now(Tick.NIGHTLY)
    until(lambda: ticks.passed_over["nightly error"] == 1)
    ticks.ticker.now(Tick.NIGHTLY)
    until(lambda: ticks.passed_over["nightly error"] == 2)


def test_a_clock_that_is_set_is_followed(ticking: Callable[..., Ticks]):
    clock = FixedClock(OPEN)
    ticks = ticking(clock)
    ticks.ticker.watch_clock()
    assert ticks.cycles == []
    clock.advance(hours=1)
    ticks.ticker.watch_clock()
    until(lambda: ticks.cycles)
    assert ticks.passed_over == {"cycle missed": 1}
    clock.advance(hours=-2)
    ticks.ticker.watch_clock()
    assert len(ticks.cycles) == 1, "what was is not done again"


def test_a_replay_is_no_jump(ticking: Callable[..., Ticks], caplog: pytest.LogCaptureFixture):
    ticks = ticking(ReplayClock(OPEN, 100.0))
    for _ in range(20):
        ticks.ticker.watch_clock()
        time.sleep(0.01)
    assert "jumped" not in caplog.text


def test_the_loop_says_that_it_turns(ticking: Callable[..., Ticks]):
    ticks = ticking(FixedClock(OPEN))
    until(lambda: ticks.ticker.heartbeat_age() < 0.5)
    until(lambda: ticks.ticker.heartbeat_age() > 0.6)
    until(lambda: ticks.ticker.heartbeat_age() < 0.5)


def test_stopping_waits_for_what_runs_and_no_longer(ticking: Callable[..., Ticks]):
    go_on = threading.Event()
    ticks = ticking(FixedClock(OPEN), lambda: go_on.wait(20) and None)
    ticks.ticker.now(Tick.CYCLE)
    until(lambda: ticks.cycles)
    began = time.monotonic()
    assert ticks.ticker.stop(0.3) is False
    assert time.monotonic() - began < 5
    go_on.set()
    assert ticks.ticker.stop(10) is True
    ticks.ticker.now(Tick.CYCLE)
    assert len(ticks.cycles) == 1
