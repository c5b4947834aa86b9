"""The rules of the shared request budget, on simulated time: the real SQL, asked at moments that
the test makes up.

Callers behave as `RequestGate` does: they ask, wait for as long as they were told (background work
2 s at most), and ask again.
"""

from __future__ import annotations

import heapq
import itertools
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marketdata.protocols import Priority
from tests.store_examples import migrated_store

START = 1_700_000_000.25
NAP = 2.0
LATE = 0.06
"""How late a caller comes back at most."""

LIVE, READ, BACKFILL, VERIFY = Priority


@dataclass
class Request:
    """One request, and when it was granted."""

    priority: Priority
    asked: float
    granted: float = float("inf")
    waits: list[float] = field(default_factory=list)
    greedy: bool = False
    """Once granted, its caller asks for the next one."""


class Budget:
    """The budget of one credential, asked at moments of the test's own."""

    def __init__(self, connection: psycopg.Connection, limit: int) -> None:
        self.connection = connection
        self.limit = limit
        self.credential = secrets.token_hex(8)
        connection.execute("INSERT INTO rate_budgets (credential) VALUES (%s)", (self.credential,))

    def take(self, priority: Priority, at: float) -> float:
        found = self.connection.execute(
            "SELECT wait FROM take_from_budget("
            "%s, %s, false, %s, NULL, NULL, '{}', NULL, to_timestamp(%s))",
            (self.credential, self.limit, int(priority), at),
        ).fetchone()
        assert found is not None
        return float(found[0])


def play(
    budget: Budget,
    requests: Sequence[Request],
    seconds: float,
    late: float = LATE,
    begin: float = 0.0,
) -> list[Request]:
    """Let callers ask from `begin` to `seconds` (after START); return all requests granted, in
    order."""
    number = itertools.count()
    todo = [(r.asked, next(number), r) for r in requests]
    heapq.heapify(todo)
    done: list[Request] = []
    while todo:
        now, _, request = heapq.heappop(todo)
        if now > seconds:
            break
        wait = budget.take(request.priority, START + now)
        if wait > 0:
            request.waits.append(wait)
            nap = min(wait, NAP) if request.priority.background else wait
            heapq.heappush(todo, (now + nap + late, next(number), request))
            continue
        request.granted = now
        done.append(request)
        if request.greedy:
            again = Request(request.priority, now + 0.02, greedy=True)
            heapq.heappush(todo, (again.asked, next(number), again))
    return done


def greedy(priority: Priority, begin: float = 0.0) -> Request:
    return Request(priority, begin, greedy=True)


def most_in_a_minute(done: Sequence[Request]) -> int:
    times = sorted(r.granted for r in done)
    most, first = 0, 0
    for at, moment in enumerate(times):
        while moment - times[first] >= 60:
            first += 1
        most = max(most, at - first + 1)
    return most


def assert_no_inversion(done: Sequence[Request]) -> None:
    """Nobody who waited saw somebody below him served meanwhile."""
    for waiter in done:
        if not waiter.waits:
            continue
        for other in done:
            if other.priority > waiter.priority:
                assert not waiter.asked < other.granted < waiter.granted


@pytest.fixture(scope="module")
def connection(postgres_url: str) -> Iterator[psycopg.Connection]:
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        url = urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
        with migrated_store(url):
            pass
        with psycopg.connect(url, options="-c search_path=marketdata") as found:
            yield found
            found.rollback()
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


priorities = st.sampled_from(list(Priority))
moments = st.floats(0, 150, allow_nan=False).map(lambda t: round(t, 3))
crowds = st.lists(st.builds(Request, priorities, moments), max_size=60)
callers = st.lists(st.builds(greedy, priorities, moments), max_size=3)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(limit=st.integers(1, 40), crowd=crowds, always=callers)
def test_invariant_21_no_minute_exceeds_the_limit_and_nobody_is_overtaken_from_below(
    connection: psycopg.Connection, limit: int, crowd: list[Request], always: list[Request]
):
    done = play(Budget(connection, limit), [*crowd, *always], 240)
    assert most_in_a_minute(done) <= limit
    assert_no_inversion(done)
    assert all(0 < wait <= 122 for r in done for wait in r.waits)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(limit=st.integers(2, 60), lowest=st.sampled_from([BACKFILL, VERIFY]), crowd=crowds)
def test_when_the_others_have_gone_whoever_is_left_goes_on(
    connection: psycopg.Connection, limit: int, lowest: Priority, crowd: list[Request]
):
    """No deadlock: nobody above wants anything after 150 s and what waited has had its turn."""
    budget = Budget(connection, limit)
    play(budget, crowd, 600)
    done = play(budget, [greedy(lowest, 700)], 1000)
    assert done[0].granted == 700
    most = 5 * (limit - min(max(-(-limit // 20), 2), limit // 2))
    assert 0.9 * most - 2 <= len(done) <= most + 2


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    limit=st.integers(20, 100),
    share=st.floats(0.02, 0.45),
    jitter=st.lists(st.floats(0, 2), min_size=6, max_size=6),
)
def test_a_cycle_at_the_top_of_the_minute_finds_its_budget(
    connection: psycopg.Connection, limit: int, share: float, jitter: list[float]
):
    """Whatever a backfill and a verification take between them. What they took before the first
    cycle was known counts for a minute: from the third one on no request waits."""
    size = max(1, int(limit * share))
    starts = [60.0 * n + 7 + j for n, j in enumerate(jitter)]
    cycles = [Request(LIVE, round(s + 0.05 * n, 3)) for s in starts for n in range(size)]
    done = play(Budget(connection, limit), [greedy(BACKFILL), greedy(VERIFY), *cycles], 400)
    assert most_in_a_minute(done) <= limit
    assert_no_inversion(done)
    assert [r.granted for r in cycles[2 * size :]] == [r.asked for r in cycles[2 * size :]]
    background = sum(100 < r.granted < 400 for r in done if r.priority.background)
    assert background >= 0.85 * 5 * (limit - 2 * size - max(-(-limit // 20), 2) - 1)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(limit=st.integers(20, 100), begin=st.floats(61, 120))
def test_reads_that_come_unannounced_are_served_at_once_and_soon(
    connection: psycopg.Connection, limit: int, begin: float
):
    """A backfill has the whole budget to itself: the floor is there for the first reads, and the
    others get what comes free evenly, one after the other."""
    budget = Budget(connection, limit)
    floor = max(-(-limit // 20), 2)
    reads = [Request(READ, begin) for _ in range(limit // 2)]
    done = play(budget, [greedy(BACKFILL), *reads], 400)
    waited = sorted(r.granted - r.asked for r in reads)
    assert waited[floor - 1] == 0
    assert waited[-1] <= 61, "all of them within a minute: none was taken from them"
    assert_no_inversion(done)


def test_a_backfill_alone_begins_with_an_eighth_and_keeps_an_even_pace(
    connection: psycopg.Connection,
):
    done = play(Budget(connection, 120), [greedy(BACKFILL)], 300)
    times = [r.granted for r in done]
    assert sum(t < 1 for t in times) == 16
    for begin in range(70, 290, 10):
        assert 12 <= sum(begin <= t < begin + 10 for t in times) <= 21
    assert most_in_a_minute(done) == 114


def test_a_burst_of_the_day_is_forgotten_after_ten_minutes(connection: psycopg.Connection):
    budget = Budget(connection, 60)
    play(budget, [Request(LIVE, 0.01 * n) for n in range(50)], 10)
    assert budget.take(BACKFILL, START + 62) > 0, "the next burst's"
    assert budget.take(READ, START + 62) == 0, "reads leave half at most"
    assert [r.granted for r in play(budget, [Request(BACKFILL, 700)], 900)] == [700]


def test_verify_gives_way_to_a_backfill_that_waits(connection: psycopg.Connection):
    done = play(Budget(connection, 60), [greedy(VERIFY), greedy(BACKFILL, 120)], 240)
    late = [r for r in done if r.granted > 122]
    assert {r.priority for r in late} == {BACKFILL}


def test_invariant_22_after_a_pause_the_live_cycle_goes_first(connection: psycopg.Connection):
    budget = Budget(connection, 60)
    budget.take(READ, START)
    connection.execute(
        "UPDATE rate_budgets SET paused_until = to_timestamp(%s) WHERE credential = %s",
        (START + 40, budget.credential),
    )
    asked = [Request(p, 1.0 + 0.1 * p) for p in (VERIFY, BACKFILL, READ, LIVE)]
    done = play(budget, asked, 300)
    assert [r.priority for r in done] == [LIVE, READ, BACKFILL, VERIFY]
    assert 40 <= done[0].granted < 40.2
