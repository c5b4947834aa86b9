"""`follow` while Redis, PostgreSQL, the broker and the daemon fail, forget and come back: every bar
once, in order."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, LiteralString

import pandas as pd
import psycopg
import pytest

import marketdata as md
from marketdata.aggregator import Aggregator
from tests.following import follow, labels, take
from tests.redis_process import RedisProcess
from tests.stack import BARS, Stack, runtime, same
from tests.stack_callers import until

SYMBOLS = ["AAPL", "MSFT", "S00901"]
START = "2024-03-14T15:00-04:00"


@pytest.fixture
def server() -> Iterator[RedisProcess]:
    with RedisProcess() as found:
        yield found


@pytest.fixture
def stack(make_stack: Callable[..., Stack], server: RedisProcess) -> Stack:
    """A stack whose Redis belongs to the test."""
    return make_stack(redis_url=server.url)


def truth(stack: Stack, taken: list[pd.DataFrame]) -> pd.DataFrame:
    """Return what a client that saw none of it reads from an empty store."""
    end = taken[-1].index[-1][1] + pd.Timedelta("1s")
    with stack.connect(database_schema="untouched") as other:
        return other.get_bars(SYMBOLS, "1min", start=START, end=end)


def assert_once_and_in_order(stack: Stack, taken: list[pd.DataFrame]) -> None:
    times = [frame.index[0][1] for frame in taken]
    assert times == sorted(set(times)), "twice, or out of order"
    same(pd.concat(taken).sort_index(), truth(stack, taken))


class Daemon:
    """The aggregator on a stack of its own: it stores what is subscribed, and says so."""

    def __init__(self, stack: Stack) -> None:
        self._client = stack.connect()
        self._aggregator = Aggregator(runtime(self._client), threading.Event())

    def cycle(self) -> None:
        report = self._aggregator.cycle()
        assert not report.failed
        assert report.series == len(SYMBOLS), "it does not know what is followed"

    def stop(self) -> None:
        self._client.close()


def minutes(count: int) -> list[str]:
    """Return when each of the next minutes is due."""
    first = pd.Timestamp("2024-03-14T15:01:03-04:00")
    return [(first + pd.Timedelta(n, "min")).isoformat() for n in range(count)]


def test_over_daemon_restarts_and_redis_flushes_every_bar_comes_once(
    stack: Stack, server: RedisProcess
) -> None:
    """The acceptance case: a daemon that comes and goes, a Redis that forgets and is killed."""
    following, waiter = follow(stack.client, stack.clock, SYMBOLS)
    source = random.Random(7)
    daemon: list[Daemon] = []

    def minute(n: int) -> None:
        if n in (3, 14, 25):
            daemon.append(Daemon(stack))
        if n in (10, 21):
            daemon.pop().stop()
        if n in (5, 16, 27):
            stack.flush_redis()
        if n == 18:
            server.stop()
        if n == 20:
            server.start()
        for each in daemon:
            each.cycle()
        if n not in (18, 19) and source.random() < 0.2:
            stack.flush_redis()

    for n, moment in enumerate(minutes(32)):
        waiter.at(moment, lambda n=n: minute(n))  # type: ignore[misc]
    taken = take(following, 32)
    for each in daemon:
        each.stop()
    assert_once_and_in_order(stack, taken)
    assert labels([taken[-1]])[0] == "AAPL 03-14 15:31"


def test_redis_restarted_while_it_listens(stack: Stack, server: RedisProcess) -> None:
    following, waiter = follow(stack.client, stack.clock, SYMBOLS)
    listener = runtime(stack.client).listener
    assert listener.wait_connected(5)
    taken = take(following, 2)
    server.stop()
    until(lambda: not listener.wait_connected(0), 5)
    taken += take(following, 2)
    server.start()
    assert listener.wait_connected(10), "it does not come back by itself"
    assert waiter.woken.wait(5), "notices may have been lost: it must look"
    waiter.woken.clear()
    daemon = Daemon(stack)
    until(lambda: daemon.cycle() or waiter.woken.wait(0.2), 10)  # type: ignore[func-returns-value]
    taken += take(following, 2)
    daemon.stop()
    assert_once_and_in_order(stack, taken)


def test_a_frozen_redis_delays_nothing_for_long(stack: Stack, server: RedisProcess) -> None:
    following, _ = follow(stack.client, stack.clock, SYMBOLS)
    taken = take(following, 2)
    server.freeze()
    try:
        taken += take(following, 5)
    finally:
        server.thaw()
    taken += take(following, 2)
    assert_once_and_in_order(stack, taken)


def execute(stack: Stack, statement: LiteralString) -> None:
    with psycopg.connect(stack.settings["database_url"], autocommit=True) as connection:
        connection.execute(statement)


def terminate_all(stack: Stack) -> None:
    execute(
        stack,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'marketdata'",
    )


def test_connections_to_postgres_are_killed_all_the_time(stack: Stack) -> None:
    following, waiter = follow(stack.client, stack.clock, SYMBOLS)
    stop = threading.Event()

    def kill() -> None:
        pause = 0.03
        while not stop.wait(pause):
            terminate_all(stack)
            pause *= 1.05  # a busy machine may need longer for one read

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        taken = take(following, 15)
    finally:
        stop.set()
        killer.join()
    print(f"{waiter.pauses} reads were tried again")
    assert_once_and_in_order(stack, taken)


def test_postgres_away_for_minutes_is_waited_out(stack: Stack) -> None:
    following, waiter = follow(stack.client, stack.clock, SYMBOLS)
    taken = take(following, 3)
    store: Any = runtime(stack.client).store
    good = dict(store.database._parameters)

    def away() -> None:
        gone = {k: v for k, v in good.items() if k != "hostaddr"}
        store.database._parameters = {**gone, "host": "127.0.0.1", "port": "9"}
        store.database.close()
        stack.flush_redis()

    def wait_a_minute() -> None:
        stack.clock.advance(minutes=1)
        if waiter.pauses == 4:
            store.database._parameters = good

    away()
    waiter.on_pause = wait_a_minute
    taken += take(following, 8)
    assert waiter.pauses == 4
    assert_once_and_in_order(stack, taken)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_broker_that_fails_is_asked_again(stack: Stack, status: int) -> None:
    following, waiter = follow(stack.client, stack.clock, SYMBOLS, timeout=0.8)
    taken = take(following, 2)
    stack.sandbox.faults.add(
        "status", match=BARS, status=status, times=4, headers={"Retry-After": "1"}
    )

    def wait() -> None:
        stack.clock.advance(seconds=20)
        if status == 429 and waiter.pauses == 5:  # the minute that it costs is over
            execute(stack, "DELETE FROM marketdata.rate_budgets")
            stack.sandbox.faults.clear()
            stack.client.close()

    waiter.on_pause = wait
    taken += take(following, 4)
    assert waiter.pauses > 0, "the fault did not reach it"
    stack.sandbox.faults.clear()
    assert_once_and_in_order(stack, taken)


def test_what_cannot_be_cured_is_raised_and_can_be_gone_on_from(stack: Stack) -> None:
    following, waiter = follow(stack.client, stack.clock, SYMBOLS)
    taken = take(following, 2)
    stack.sandbox.faults.add("status", match=BARS, status=401, times=None)
    with pytest.raises(md.AuthenticationError):
        next(following)
    assert waiter.pauses == 0
    stack.sandbox.faults.clear()
    taken += take(following, 3)
    assert_once_and_in_order(stack, taken)


def test_without_a_broker_the_daemon_is_waited_for(stack: Stack) -> None:
    """A host that may not reach the broker follows what another one stores."""
    running = runtime(stack.client)
    running.store.adopt(running.provider, running.source.feed)  # simulated bars leave no mark
    daemon = Daemon(stack)
    reader = stack.connect(broker="none")
    following, waiter = follow(reader, stack.clock, SYMBOLS)
    for moment in minutes(3):
        waiter.at(moment, daemon.cycle)
    taken = take(following, 3)
    waiter.on_pause = lambda: daemon.cycle() if waiter.pauses == 5 else None
    taken += take(following, 1)  # this time the daemon is late
    assert waiter.pauses == 5
    reader.close()
    daemon.stop()
    assert_once_and_in_order(stack, taken)


def test_a_follower_that_is_restarted_at_random_goes_on(stack: Stack) -> None:
    source = random.Random(3)
    taken: list[pd.DataFrame] = []
    start: object = START
    while len(taken) < 40:
        client = stack.connect()
        following, _ = follow(client, stack.clock, SYMBOLS, start=start)
        taken += take(following, source.randrange(1, 6))
        client.close()
        if source.random() < 0.5:
            stack.clock.advance(minutes=source.randrange(1, 5))
        if source.random() < 0.3:
            stack.flush_redis()
        start = taken[-1].index[-1][1] + pd.Timedelta(1, "us")
    assert_once_and_in_order(stack, taken)


def test_on_a_running_clock_with_real_threads(stack: Stack, server: RedisProcess) -> None:
    """Nothing is stepped: four market minutes a second, and Redis dies and forgets meanwhile."""
    client = md.connect(
        **{**stack.settings, "alpaca_url": None, "alpaca_trading_url": None},
        clock="replay:2024-03-14T15:00:00-04:00@240",
    )
    with client, client.follow(["AAPL", "MSFT"], start=START) as following:
        taken = [next(following) for _ in range(6)]
        stack.flush_redis()
        taken += [next(following) for _ in range(4)]
        server.stop()
        taken += [next(following) for _ in range(4)]
        server.start()
        taken += [next(following) for _ in range(4)]
    times = [frame.index[0][1] for frame in taken]
    assert times == list(pd.date_range(START, periods=18, freq="min").tz_convert("UTC"))
    assert {len(frame) for frame in taken} == {2}
