"""Indicators while Redis is frozen, empty or left behind: slower, never wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pytest

from marketdata.indicator_updates import IndicatorUpdater
from marketdata.types import Bars, SeriesKey
from tests.integration.test_indicator_updates import check, correct, fetched, fresh, near
from tests.redis_process import RedisProcess
from tests.stack import Stack, runtime, tiers

SYMBOLS = ["AAPL", "KO"]


@pytest.fixture
def server() -> Iterator[RedisProcess]:
    with RedisProcess() as process:
        yield process


@pytest.fixture
def stack(make_stack: Callable[..., Stack], server: RedisProcess) -> Stack:
    """A stack on a Redis of its own, with history of two symbols."""
    stack = make_stack(redis_url=server.url)
    stack.client.get_bars(SYMBOLS, "1min", limit=1000)
    return stack


@pytest.fixture
def updater(stack: Stack) -> IndicatorUpdater:
    updater = IndicatorUpdater(runtime(stack.client))
    updater.update(fetched(stack, SYMBOLS))
    return updater


def next_minute(stack: Stack) -> dict[SeriesKey, Bars]:
    stack.clock.advance(minutes=1)
    return fetched(stack, SYMBOLS)


def right(stack: Stack, symbol: str) -> pd.DataFrame:
    """Assert that a read gives what is computed from stored bars; return it."""
    frame = stack.client.get_indicators(symbol, None, "1min", limit=20)
    anew = fresh(stack, symbol, "1min", 20)
    pd.testing.assert_index_equal(frame.index, anew.index)
    near(frame.to_numpy(), anew.to_numpy())
    return frame


def until_served(stack: Stack, symbol: str) -> None:
    end = time.monotonic() + 10
    while tiers(right(stack, symbol)) != "redis:1":
        assert time.monotonic() < end, "Redis was not found again"
        time.sleep(0.02)


def test_fault_12_a_frozen_redis_costs_milliseconds(
    stack: Stack, updater: IndicatorUpdater, server: RedisProcess
) -> None:
    server.freeze()
    try:
        began = time.monotonic()
        closed = next_minute(stack)
        assert updater.update(closed) == len(SYMBOLS)
        for symbol in SYMBOLS:
            assert tiers(right(stack, symbol)) == "postgres:1"
        assert time.monotonic() - began < 4
    finally:
        server.thaw()
    for symbol in SYMBOLS:
        until_served(stack, symbol)
    updater.update(next_minute(stack))
    for symbol in SYMBOLS:
        check(stack, symbol, rows=20)


def test_fault_13_an_emptied_redis_fills_again_record_by_record(
    stack: Stack, updater: IndicatorUpdater, server: RedisProcess
) -> None:
    server.stop()
    updater.update(next_minute(stack))
    server.start()
    end = time.monotonic() + 10
    while not runtime(stack.client).cache._link.breaker.is_closed():
        assert time.monotonic() < end
        runtime(stack.client).cache.get([])
        stack.client.get_bars("PEP", "1day", limit=1)
        time.sleep(0.02)
    for _ in range(3):
        updater.update(next_minute(stack))
    check(stack, "KO", rows=3)
    assert tiers(right(stack, "AAPL")) == "postgres:1", "more than it holds is computed"
    assert tiers(right(stack, "AAPL")) == "redis:1"


@pytest.mark.parametrize("corrected", [False, True])
def test_fault_14_a_daemon_that_died_between_postgresql_and_redis(
    stack: Stack, updater: IndicatorUpdater, corrected: bool
) -> None:
    before = right(stack, "KO")
    assert tiers(right(stack, "KO")) == "redis:1"
    closed = correct(stack, "KO", -40) if corrected else next_minute(stack)
    child = os.fork()
    if child == 0:
        dying = IndicatorUpdater(runtime(stack.client))
        for method in ("step", "put"):
            setattr(dying._stepper.cache, method, lambda *_: os._exit(9))
        dying.update(closed)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    after = right(stack, "KO")
    assert tiers(after) == "postgres:1", "what Redis held is below the floor"
    assert not np.array_equal(before.to_numpy(), after.to_numpy())
    assert tiers(right(stack, "KO")) == "redis:1"
    another = IndicatorUpdater(runtime(stack.client))  # the daemon begins again
    another.update(closed)
    another.update(next_minute(stack))
    for symbol in SYMBOLS:
        check(stack, symbol, rows=20)


def test_fault_21_a_paused_leader_comes_back_and_changes_nothing(
    stack: Stack, updater: IndicatorUpdater
) -> None:
    old = next_minute(stack)
    leader = IndicatorUpdater(runtime(stack.client))
    leader.update(next_minute(stack))
    kept = stack.client.get_indicators("KO", None, "1min", limit=20)
    updater.update(old)  # bars of a cycle that is long over
    again = stack.client.get_indicators("KO", None, "1min", limit=20)
    assert tiers(again) == "redis:1"
    near(again.to_numpy(), kept.to_numpy())
    for symbol in SYMBOLS:
        check(stack, symbol, rows=20)
    leader.update(next_minute(stack))
    for symbol in SYMBOLS:
        check(stack, symbol, rows=20)


def test_older_records_that_come_late_are_refused(stack: Stack, updater: IndicatorUpdater) -> None:
    stepper = updater._stepper
    late: list[tuple[object, ...]] = []
    store, cache = stepper.store.save, stepper.cache.step

    def save(*arguments: object) -> int:
        late.append(arguments)
        return store(*arguments)  # type: ignore[arg-type]

    steps: list[object] = []

    def step(found: object) -> int:
        steps.append(found)
        return cache(found)  # type: ignore[arg-type]

    stepper.store.save, stepper.cache.step = save, step  # type: ignore[method-assign,assignment]
    updater.update(next_minute(stack))
    updater.update(next_minute(stack))
    assert store(*late[0]) == 0  # type: ignore[arg-type]
    assert cache(steps[0]) == 0  # type: ignore[arg-type]
    for symbol in SYMBOLS:
        check(stack, symbol, rows=20)
