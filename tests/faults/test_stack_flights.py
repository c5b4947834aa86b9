"""Single flight on the whole stack: many processes, many threads, one walk of the broker's pages."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import pytest

import marketdata as md
from marketdata.sandbox import Fault
from marketdata.store import PostgresStore
from tests.redis_process import RedisProcess
from tests.stack import BARS, Stack, runtime, same
from tests.stack_callers import (
    Gathering,
    Member,
    Outcome,
    ask,
    ask_together,
    crew,
    digest,
    long_listed,
    until,
)

PROCESSES, THREADS = 4, 50
WINDOW: dict[str, Any] = {
    "symbols": "AAPL",
    "timeframe": "1min",
    "start": "2024-03-12",
    "end": "2024-03-14",
}
PAGE = 700
# 14 sessions of up to 960 minutes: two pages of 10,000 bars.
LONG: dict[str, Any] = {**WINDOW, "start": "2024-02-22", "end": "2024-03-13"}


@pytest.fixture(scope="module")
def members() -> Iterator[list[Member]]:
    with crew(PROCESSES) as found:
        yield found


@pytest.fixture
def redis_down() -> Iterator[str]:
    """The URL of a Redis that has just died."""
    server = RedisProcess()
    with server:
        server.stop()
        yield server.url


def settings_of(stack: Stack, **changed: Any) -> dict[str, Any]:
    return {**stack.settings, "clock": repr(stack.clock), **changed}


def control(stack: Stack, question: dict[str, Any]) -> tuple[str, int]:
    """Return digest and pages of the right answer, fetched by a client without a past."""
    if question is not LONG:
        stack.sandbox.faults.add(short_pages())
    with PostgresStore(stack.settings["database_url"], schema="control") as store:
        store.migrate()
    with stack.connect(database_schema="control") as client:
        frame = client.get_bars(**question)
        told = frame.attrs["marketdata"]["broker_pages"]
    stack.sandbox.faults.clear()
    stack.forget_calls()
    return digest(frame), told


def short_pages() -> Fault:
    """Order pages of 700 bars, three for all of `WINDOW`; order the real fault before."""
    return Fault("short_page", match=BARS, times=None, limit=PAGE)


def all_together(
    stack: Stack, members: list[Member], hold: Fault, **settings: Any
) -> list[Outcome]:
    """Let every process ask on every thread; release the broker's answer once all wait."""
    for member in members:
        member.start(settings_of(stack, **settings), [LONG] * THREADS)
    for member in members:
        member.gathered()
    hold.release()
    return [outcome for member in members for outcome in member.answers()]


@pytest.mark.parametrize("redis", ["up", "down"])
def test_fault_20_200_callers_of_4_processes_make_one_walk(
    make_stack: Callable[..., Stack], members: list[Member], redis_down: str, redis: str
) -> None:
    stack = make_stack(**({"redis_url": redis_down} if redis == "down" else {}))
    right, _ = control(stack, LONG)
    walk = 2
    hold = stack.sandbox.faults.add(Fault("hold", match=BARS))
    outcomes = all_together(stack, members, hold)
    assert len(outcomes) == PROCESSES * THREADS
    assert {o.error for o in outcomes} == {""}
    assert {o.digest for o in outcomes} == {right}
    assert stack.calls() == walk, "one upstream walk"
    assert [o.pages for o in outcomes if o.pages] == [walk], "one caller walked"
    (covered,) = stack.client.coverage("AAPL", "1min")
    assert covered.start.date().isoformat() <= "2024-02-22"


@pytest.mark.parametrize("redis", ["up", "down"])
def test_fault_20_200_callers_get_the_one_error(
    make_stack: Callable[..., Stack], members: list[Member], redis_down: str, redis: str
) -> None:
    stack = make_stack(**({"redis_url": redis_down} if redis == "down" else {}))
    hold = stack.sandbox.faults.add(Fault("hold", match=BARS))
    stack.sandbox.faults.add(Fault("status", match=BARS, nth=2, times=None, status=500))
    outcomes = all_together(stack, members, hold)
    assert len(outcomes) == PROCESSES * THREADS
    assert {o.error for o in outcomes} == {"BrokerUnavailableError"}
    assert len({o.words for o in outcomes}) == 1, "one error, told to all"
    assert stack.calls() == 1 + 3, "page 1, then page 2 with its bounded retries, once for all"
    stack.sandbox.faults.clear()
    stack.forget_calls()
    right = stack.client.get_bars(**LONG)
    first, *_ = stack.sandbox.requests.matching(BARS)
    assert first.params["start"] > "2024-03-08", "the finished page is kept, the error is not"
    assert digest(right) == control(stack, LONG)[0]


def test_a_leader_killed_in_its_walk_is_succeeded(stack: Stack, members: list[Member]) -> None:
    right, walk = control(stack, WINDOW)
    hold = stack.sandbox.faults.add(Fault("hold", match=BARS, nth=2))
    stack.sandbox.faults.add(short_pages())
    with crew(1) as (leader,):
        leader.start(settings_of(stack), [WINDOW], lease=2.0)
        assert hold.wait_fired(60)
        for member in members:
            member.start(settings_of(stack), [WINDOW] * 5, lease=2.0)
        for member in members:
            member.gathered()
        leader.kill()
    outcomes = [o for member in members for o in member.answers()]
    assert {(o.error, o.digest) for o in outcomes} == {("", right)}
    # The dead one's page 1 is kept, its page 2 was asked and lost; nobody asks page 1 again.
    assert stack.calls() == 1 + 1 + (walk - 1)
    assert [o.pages for o in outcomes if o.pages] == [walk - 1]
    assert len(stack.client.coverage("AAPL", "1min")) == 1


def test_a_leaders_deadline_is_its_own(stack: Stack, members: list[Member]) -> None:
    """Who has more time goes on where the hasty leader stopped, in its process and in others."""
    right, walk = control(stack, WINDOW)
    hold = stack.sandbox.faults.add(Fault("hold", match=BARS, nth=2))
    stack.sandbox.faults.add(short_pages())
    hasty: list[Outcome] = []
    leading = threading.Thread(
        target=lambda: hasty.append(ask(stack.client, {**WINDOW, "timeout": 7.0}))
    )
    leading.start()
    assert hold.wait_fired()
    gathering = Gathering(runtime(stack.client))
    members[0].start(settings_of(stack), [WINDOW] * 10)
    members[0].gathered()
    patient: list[Outcome] = []
    following = threading.Thread(
        target=lambda: patient.extend(ask_together(stack.client, [WINDOW] * 10))
    )
    following.start()
    until(lambda: gathering._waiting == 10)
    leading.join()
    following.join()
    outcomes = patient + members[0].answers()
    assert hasty[0].error == "BrokerTimeoutError"
    assert f"kept 1 finished pages with {PAGE} bars" in hasty[0].words
    assert hasty[0].seconds < 8
    assert {(o.error, o.digest) for o in outcomes} == {("", right)}
    assert walk == 3
    assert stack.calls() == 2 + (walk - 1)


def test_a_spent_budget_is_waited_for_by_those_who_have_the_time(stack: Stack) -> None:
    running = runtime(stack.client)
    stack.client.get_bars("MSFT", "1day", limit=1)
    broker: Any = running.broker
    gate = broker._data.caller.gate
    gate.pause(1.5)
    hasty = ask(stack.client, {**WINDOW, "timeout": 0.5})
    assert hasty.error == "RateLimitError"
    assert 0 < hasty.facts["retry_after"] < 2
    hold = Gathering(running)
    questions: list[dict[str, Any]] = [{**WINDOW, "timeout": 0.9}, *([WINDOW] * 5)]
    stack.forget_calls()
    outcomes = ask_together(stack.client, questions)
    assert hold._boarded >= 1
    assert {o.error for o in outcomes[1:]} == {""}
    assert outcomes[0].error in ("", "RateLimitError", "BrokerTimeoutError")
    assert stack.calls() == 1


def test_fifty_windows_of_one_series_at_once(stack: Stack) -> None:
    """Flights are per series: whoever waited for another window goes on with its own."""
    days = [f"2024-{month:02}-{day:02}" for month in (1, 2) for day in range(2, 27)]
    questions = [
        {"symbols": "AAPL", "timeframe": "1min", "start": f"{d}T10:00-05:00",
         "end": f"{d}T11:00-05:00"}
        for d in days
    ]  # fmt: skip
    outcomes = ask_together(stack.client, questions)
    assert {o.error for o in outcomes} == {""}
    whole = stack.client.get_bars("AAPL", "1min", start="2024-01-02", end="2024-02-27")
    for question, outcome in zip(questions, outcomes, strict=True):
        inside = whole[question["start"] : question["end"]].iloc[:-1]
        assert outcome.rows == len(inside) if len(inside) == 0 else outcome.digest == digest(inside)


def test_overlapping_batches_fetch_each_symbol_once(stack: Stack, members: list[Member]) -> None:
    symbols = ["AAPL", "MSFT", "NVDA", "SPY", "TSLA", "BRK.B", *long_listed(stack, 6)]
    source = random.Random(4)
    window: dict[str, Any] = {"timeframe": "1min", "start": "2024-03-13", "end": "2024-03-14"}
    asked = [[{"symbols": source.sample(symbols, 4), **window} for _ in range(10)] for _ in members]
    for member, questions in zip(members, asked, strict=True):
        member.start(settings_of(stack), questions)
    outcomes = [o for member in members for o in member.answers()]
    assert {o.error for o in outcomes} == {""}
    fetched = Counter(
        s for r in stack.sandbox.requests.matching(BARS) for s in r.params["symbols"].split(",")
    )
    assert fetched == dict.fromkeys(symbols, 1)
    for question, outcome in zip(chain(*asked), outcomes, strict=True):
        assert outcome.digest == digest(stack.client.get_bars(**question))


@pytest.mark.exact("50 threads and two proxies on one interpreter pass the time-out of Redis")
def test_hot_keys_of_many_symbols_under_50_threads(stack: Stack) -> None:
    symbols = ["AAPL", "MSFT", "SPY", "BRK.B", "NVDA", *(f"S{n:05}" for n in range(1, 16))]
    expected = {s: stack.client.get_bars(s, "1min", limit=100) for s in symbols}
    stack.forget_calls()
    questions = [
        {"symbols": s, "timeframe": "1min", "limit": 100} for s in symbols for _ in range(10)
    ]
    for outcomes in (ask_together(stack.client, questions[n::4]) for n in range(4)):
        assert {(o.error, o.tiers) for o in outcomes} == {("", "redis:1")}
    for question, outcome in zip(
        questions[::4], ask_together(stack.client, questions[::4]), strict=True
    ):
        assert outcome.digest == digest(expected[question["symbols"]])
    assert len(stack.sandbox.requests) == 0


@pytest.mark.exact("it counts pages up to a fault of its own")
def test_a_walk_of_30_pages_cut_at_page_18_goes_on_from_there(stack: Stack) -> None:
    right, _ = control(stack, WINDOW)
    faults = stack.sandbox.faults
    faults.add(Fault("stall", match=BARS, nth=18))
    faults.add(Fault("short_page", match=BARS, times=None, limit=60))
    with pytest.raises(md.BrokerTimeoutError) as caught:
        stack.client.get_bars(**WINDOW, timeout=6)
    assert caught.value.facts["pages_kept"] >= 17
    assert caught.value.facts["bars_kept"] >= 17 * 60
    assert "kept 17 finished pages with 1020 bars" in str(caught.value)
    assert "call again" in str(caught.value)
    assert stack.calls() == 18
    (covered,) = stack.client.coverage("AAPL", "1min")
    stack.forget_calls()
    again = stack.client.get_bars(**WINDOW)
    assert digest(again) == right
    first, *_ = stack.sandbox.requests.matching(BARS)
    assert first.params["start"] == covered.end.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert 10 <= stack.calls() <= 15, "only the rest"
    stack.forget_calls()
    same(stack.client.get_bars(**WINDOW), again)
    assert stack.calls() == 0


def test_a_forked_child_reads_on_its_own_connections(stack: Stack) -> None:
    import os

    expected = digest(stack.client.get_bars("AAPL", "1min", limit=100))
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reading)
            found = [
                digest(stack.client.get_bars("AAPL", "1min", limit=100)),
                # from the store and the broker as well
                digest(stack.client.get_bars("MSFT", "1min", start="2024-03-12", end="2024-03-13")),
            ]
            os.write(writing, " ".join(found).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read().split()
    assert os.waitpid(child, 0)[1] == 0
    assert told[0] == expected
    stack.forget_calls()
    msft = stack.client.get_bars("MSFT", "1min", start="2024-03-12", end="2024-03-13")
    assert told[1] == digest(msft)
    assert stack.calls() == 0, "what the child fetched is kept"
    assert digest(stack.client.get_bars("AAPL", "1min", limit=100)) == expected
