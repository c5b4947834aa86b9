"""Clocks that run ahead or behind, jump, and are changed at night; days on which nobody trades."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from typing import Any

import pandas as pd
import pytest

from marketdata.aggregator import Aggregator
from marketdata.client import Client
from marketdata.clock import Clock, FixedClock, from_micros, to_micros
from marketdata.config import Settings
from marketdata.jobs import NIGHTLY
from marketdata.protocols import ReadRequest
from marketdata.testing import JumpingClock, SkewedClock
from marketdata.testing.clocks import (
    AUTUMN_NIGHT,
    EXCHANGE_ZONE,
    HALF_DAYS,
    SPRING_NIGHT,
    UNPLANNED_CLOSURES,
    moments,
    night_of,
)
from marketdata.types import CLOSE, MINUTE
from marketdata.warning_types import DelayedDataWarning
from tests.cycles import of_market
from tests.daemons import until
from tests.integration.test_daemon_nights import Night, make_night
from tests.replayed_market import nowhere
from tests.stack import Stack, runtime, same, span

__all__ = ["make_night", "nowhere"]

HOT: dict[str, Any] = {"symbols": "AAPL", "timeframe": "1min", "limit": 500}
HOUR = 3600.0


@contextmanager
def seen_by(stack: Stack, clock: Clock) -> Iterator[Client]:
    """A client on the stack's servers whose own clock is another one."""
    settings = Settings.load(**{**stack.settings, "clock": repr(clock)})
    with Client(settings, clock=clock) as client, warnings.catch_warnings():
        warnings.simplefilter("ignore", DelayedDataWarning)
        yield client


def closed_by(stack: Stack) -> int:
    """Return up to when minute bars are closed by the market's true time."""
    now = stack.clock.now_us() - 3_000_000
    return now - now % MINUTE


def assert_true_so_far(stack: Stack) -> None:
    """Invariants 6 and 9, by the market's true time: no coverage and no bar beyond what is closed,
    and every bar stored is the market's."""
    store = runtime(stack.client).store
    keys = [key for key in store.series() if key.timeframe.intraday]
    for key, state in store.states(keys).items():
        assert state.coverage
        assert state.coverage[-1].end <= closed_by(stack), "covered what has not happened yet"
        for covered in state.coverage:
            expected = of_market(stack.sandbox.source, key.symbol, covered)
            found = store.read([ReadRequest(key, covered)])[key][1]
            assert found.timestamp.tolist() == expected.timestamp.tolist()
            assert found.values[CLOSE].tolist() == expected.values[CLOSE].tolist()


def local_labels(frame: pd.DataFrame) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(frame.index).tz_convert(EXCHANGE_ZONE)


def assert_right(stack: Stack, start: str) -> None:
    """Assert that a client with the true time gets all the market has from `start` on."""
    asked = span(start, from_micros(closed_by(stack)).isoformat())
    frame = stack.client.get_bars("AAPL", "1min", start=start, session="extended")
    expected = of_market(stack.sandbox.source, "AAPL", asked)
    assert frame["close"].tolist() == expected.values[CLOSE].tolist()


# --------------------------------------------------------------------------------- skew and jumps


@pytest.mark.parametrize("seconds", [-90.0, 90.0, -HOUR, HOUR])
def test_fault_24_invariants_06_09_a_clock_that_is_off(stack: Stack, seconds: float) -> None:
    """What a machine with a wrong clock stores is true, and hurts nobody with the right one."""
    with seen_by(stack, SkewedClock(stack.clock, seconds)) as client:
        for _ in range(4):
            frame = client.get_bars(**HOT)
            assert frame.index[-1] <= pd.Timestamp(closed_by(stack), unit="us", tz="UTC")
            assert_true_so_far(stack)
            stack.clock.advance(minutes=1)
        assert_right(stack, "2024-03-14T12:00-04:00")
        assert_true_so_far(stack)


def test_a_clock_that_is_ahead_is_said_once(stack: Stack) -> None:
    settings = Settings.load(**stack.settings)
    with Client(settings, clock=SkewedClock(stack.clock, 80)) as client:
        with pytest.warns(DelayedDataWarning, match="clock is about 90 s ahead"):
            client.get_bars(**HOT)
        stack.clock.advance(minutes=1)
        client.get_bars(**HOT)


def test_a_fixed_market_time_is_no_clock_that_is_ahead(stack: Stack) -> None:
    """A replayed hour of today is not to be delayed because the server knows what time it is."""
    settings = Settings.load(**stack.settings)
    ahead = FixedClock(from_micros(stack.clock.now_us() + 80_000_000))
    with Client(settings, clock=ahead) as client, warnings.catch_warnings():
        warnings.simplefilter("error", DelayedDataWarning)
        client.get_bars(**HOT)


@pytest.mark.parametrize("hours", [1, -1])
def test_fault_24_invariants_06_09_a_clock_that_jumps_and_comes_back(
    stack: Stack, hours: int
) -> None:
    clock = JumpingClock(from_micros(stack.clock.now_us()))
    with seen_by(stack, clock) as client:
        before = client.get_bars(**HOT)
        clock.jump(hours=hours)
        during = client.get_bars(**HOT)
        assert during.index[-1] <= before.index[-1]
        assert_true_so_far(stack)
        clock.jump(hours=-hours)
        same(client.get_bars(**HOT), before)
        for each in (stack.clock, clock):
            each.advance(minutes=5)
        assert client.get_bars(**HOT).index[-1] == before.index[-1] + pd.Timedelta(minutes=5)
        assert_right(stack, "2024-03-14T12:00-04:00")


@pytest.mark.parametrize("seconds", [-90.0, 90.0])
def test_fault_24_an_aggregator_whose_clock_is_off(stack: Stack, seconds: float) -> None:
    """A whole hour of its cycles; then one with the right clock needs nothing but what is new."""
    clock = SkewedClock(stack.clock, seconds)
    with seen_by(stack, clock) as client:
        aggregator = Aggregator(
            runtime(client), threading.Event(), wanted=lambda: [("AAPL", "1min")]
        )
        for _ in range(10):
            report = aggregator.cycle()
            assert not report.failed
            assert_true_so_far(stack)
            stack.clock.advance(minutes=1)
    assert_right(stack, "2024-03-14T12:00-04:00")


# ------------------------------------------------------------------------------- nights and days


@pytest.mark.parametrize("day", [SPRING_NIGHT, AUTUMN_NIGHT])
def test_fault_24_a_night_in_which_clocks_change_and_jump_works_once(
    make_night: Callable[..., Night], day: date
) -> None:
    """The nightly work is due at 01:00. The clock is set back an hour when it is done, and later
    put on by one: nothing is done twice, nothing is left out."""
    clock = JumpingClock(_local(day, "00:58"), speed=2400.0)
    night = make_night(clock)
    until(lambda: len(night.night) >= len(NIGHTLY))
    clock.jump(hours=-1)
    until(lambda: clock.now_us() > to_micros(_local(day, "01:40")), 30)
    clock.jump(hours=1)
    until(lambda: clock.now_us() > to_micros(_local(day, "04:00")), 30)
    assert night.night == list(NIGHTLY)


def _local(day: date, time: str) -> datetime:
    hour, minute = map(int, time.split(":"))
    return datetime(day.year, day.month, day.day, hour, minute, tzinfo=EXCHANGE_ZONE)


@pytest.mark.parametrize("day", [SPRING_NIGHT, AUTUMN_NIGHT])
def test_fault_24_invariant_27_days_around_a_change_of_clocks(
    make_stack: Callable[..., Stack], day: date
) -> None:
    """Read hour by hour through the night: each session has one bar, at its own midnight."""
    evening, morning = night_of(day)
    stack = make_stack(at=evening.isoformat())
    first = (day - timedelta(days=6)).isoformat()
    seen = []
    for moment in moments(evening, morning + timedelta(hours=1), hours=1):
        stack.clock.set(moment)
        frame = stack.client.get_bars("AAPL", "1day", start=first)
        seen.append(frame)
        assert frame.index.is_unique
        local = local_labels(frame)
        assert set(local.hour) == {0}
        assert local[-1].date() == day - timedelta(days=2), "the Friday before"
    assert len(list(moments(evening, morning, hours=1))) == (7 if day == SPRING_NIGHT else 9)
    for each in seen[1:]:
        same(each, seen[0])
    assert stack.calls() <= 2, "a night costs nothing"
    stack.clock.set(morning + timedelta(days=2, hours=12))
    after = stack.client.get_bars("AAPL", "1day", start=first)
    added = local_labels(after)[len(seen[0]) :]
    assert [t.date() for t in added] == [day + timedelta(days=1)], "Monday, and no Sunday"
    shift = {t.utcoffset() for t in local_labels(after)}
    assert shift == {timedelta(hours=-4), timedelta(hours=-5)}


@pytest.mark.parametrize("day", UNPLANNED_CLOSURES)
def test_fault_24_invariant_28_a_day_that_was_closed_without_a_rule(
    make_stack: Callable[..., Stack], day: date
) -> None:
    stack = make_stack(at=f"{day}T12:00:00-05:00")
    week: dict[str, Any] = {
        "start": (day - timedelta(days=5)).isoformat(),
        "end": (day + timedelta(1)).isoformat(),
    }
    daily = stack.client.get_bars("AAPL", "1day", **week)
    assert day not in {t.date() for t in local_labels(daily)}
    minutes = stack.client.get_bars("AAPL", "1min", **week)
    assert day not in {t.date() for t in local_labels(minutes)}
    assert stack.client.gaps("AAPL", "1min", **week) == []
    stack.forget_calls()
    for hour in (10, 13, 17):
        stack.set_time(f"{day}T{hour}:00:00-05:00")
        same(stack.client.get_bars("AAPL", "1min", **week), minutes)
        stack.client.get_bars("AAPL", "1min", start=day.isoformat())
    assert stack.calls() == 0, "nothing is asked on a day without trading"


@pytest.mark.parametrize("day", HALF_DAYS)
def test_fault_24_invariant_28_a_half_day_has_210_minutes(
    make_stack: Callable[..., Stack], day: date
) -> None:
    offset = "-04:00" if day.month == 7 else "-05:00"
    stack = make_stack(at=f"{day}T17:30:00{offset}")
    today: dict[str, Any] = {"start": day.isoformat(), "end": (day + timedelta(days=1)).isoformat()}
    hours = (
        runtime(stack.client)
        .calendar()
        .trading_spans(span(f"{day}T00:00:00{offset}", f"{day}T23:59:59{offset}"), "regular")
    )
    assert sum(each.end - each.start for each in hours) == 210 * MINUTE
    assert stack.client.explain("AAPL", "1min", **today).bars == 330 + 210 + 240
    frame = stack.client.get_bars("SPY", "1min", **today)
    local = local_labels(frame)
    assert len(frame) <= 210
    assert local[-1].time() < time(13)
    assert len(stack.client.get_bars("SPY", "1day", **today)) == 1, "its daily bar has closed"
    stack.forget_calls()
    stack.set_time(f"{day}T18:30:00{offset}")
    same(stack.client.get_bars("SPY", "1min", **today), frame)
    assert stack.calls() == 0


def test_fault_24_invariant_09_a_daily_bar_of_a_clock_that_is_ahead(stack: Stack) -> None:
    """By a clock two hours ahead the session is over; what it has so far is no bar."""
    daily: dict[str, Any] = {"symbols": "AAPL", "timeframe": "1day", "limit": 5}
    with seen_by(stack, SkewedClock(stack.clock, 2 * HOUR)) as client:
        found = local_labels(client.get_bars(**daily))
        assert found[-1].date() == date(2024, 3, 13)
        assert runtime(client).store.holdings(["AAPL"])[0].bar_count >= 5
    assert local_labels(stack.client.get_bars(**daily))[-1].date() == date(2024, 3, 13)
    stack.set_time("2024-03-14T16:21:00-04:00")
    assert local_labels(stack.client.get_bars(**daily))[-1].date() == date(2024, 3, 14)
