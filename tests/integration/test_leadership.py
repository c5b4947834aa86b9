"""Who acts: leases and jobs' locks on a real PostgreSQL."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import psycopg
import pytest

from marketdata.clock import FixedClock, to_micros
from marketdata.errors import BrokerUnavailableError, StoreUnavailableError
from marketdata.jobs import Job, JobRunner
from marketdata.leadership import Lease, ProcessLeases, StopSignal, elapsed, this_process
from marketdata.statistics import Statistics
from marketdata.store import PostgresStore
from marketdata.store.figures import PostgresFigures
from marketdata.store.job_runs import KEPT_RUNS, PostgresJobRuns
from marketdata.store.leases import PostgresLeases
from marketdata.testing import FlakyProxy

NEVER = 3600.0


@pytest.fixture
def store(database_url: str) -> Iterator[PostgresStore]:
    with PostgresStore(database_url) as store:
        store.migrate()
        yield store


@pytest.fixture
def book(store: PostgresStore, database_url: str) -> Iterator[PostgresLeases]:
    book = PostgresLeases(database_url)
    yield book
    book.close()


@pytest.fixture
def process(store: PostgresStore, database_url: str) -> Iterator[Callable[..., ProcessLeases]]:
    """A maker of what each of several processes would have."""
    with ExitStack() as closing:

        def make(**options: Any) -> ProcessLeases:
            leases = ProcessLeases(PostgresLeases(database_url), **options)
            closing.callback(leases.close)
            return leases

        yield make


def longer(found: list[str], than: int) -> bool:
    return len(found) > than


def until(condition: Callable[[], object], seconds: float = 10) -> float:
    """Wait until something holds; return how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come"
        time.sleep(0.01)
    return time.monotonic() - began


# ------------------------------------------------------------------------------------- leases


def test_a_lease_has_one_holder_and_a_growing_fence(book: PostgresLeases):
    assert book.acquire("x", token="a", holder="A", seconds=60) == 1
    assert book.acquire("x", token="b", holder="B", seconds=60) is None
    assert book.renew({"x": 1}, token="b", seconds=60) == set(), "not ours"
    assert book.renew({"x": 2}, token="a", seconds=60) == set(), "not this fence"
    assert book.renew({"x": 1}, token="a", seconds=60) == {"x"}
    book.release("x", token="b", fence=1)
    assert book.acquire("x", token="b", holder="B", seconds=60) is None, "only its holder gives it"
    book.release("x", token="a", fence=1)
    assert book.acquire("x", token="b", holder="B", seconds=60) == 2
    (held,) = book.holdings()
    assert (held.name, held.holder, held.fence, held.live) == ("x", "B", 2, True)


def test_a_lease_that_ran_out_is_not_renewed_even_where_nobody_took_it(book: PostgresLeases):
    assert book.acquire("x", token="a", holder="A", seconds=0.05) == 1
    until(lambda: not book.holdings()[0].live)
    assert book.renew({"x": 1}, token="a", seconds=60) == set()
    assert book.acquire("x", token="a", holder="A", seconds=60) == 2


def test_of_many_who_ask_at_once_one_gets_it(book: PostgresLeases):
    with ThreadPoolExecutor(16) as pool:
        found = list(
            pool.map(lambda n: book.acquire("x", token=str(n), holder="?", seconds=60), range(64))
        )
    assert [fence for fence in found if fence is not None] == [1]


def test_a_holder_stops_believing_before_anybody_else_may_have_it(
    process: Callable[..., ProcessLeases], book: PostgresLeases
):
    ours = process(seconds=3.0, renew_every=NEVER)
    lease = ours.take("x")
    assert lease is not None
    assert lease.held
    until(lambda: not lease.held)
    assert book.acquire("x", token="b", holder="B", seconds=60) is None, "still ours over there"
    until(lambda: book.acquire("x", token="b", holder="B", seconds=60))


def test_a_lease_is_renewed_for_as_long_as_its_process_is_fit(
    process: Callable[..., ProcessLeases],
):
    fit = threading.Event()
    fit.set()
    ours = process(seconds=2.0, renew_every=0.1, fit=fit.is_set)
    lease = ours.take("x")
    assert lease is not None
    began = elapsed()
    until(lambda: elapsed() - began > 2.2)
    assert lease.held
    fit.clear()
    until(lambda: not lease.held)


def test_lost_connections_lose_no_lease(process: Callable[..., ProcessLeases], database_url: str):
    ours = process(seconds=2.0, renew_every=0.1)
    lease = ours.take("x")
    assert lease is not None
    with psycopg.connect(database_url, autocommit=True) as admin:
        for _ in range(5):
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'marketdata-lease' AND datname = current_database()"
            )
            time.sleep(0.1)
    began = elapsed()
    until(lambda: elapsed() - began > 2.2)
    assert lease.held


def test_a_lease_taken_by_somebody_else_is_noticed(
    process: Callable[..., ProcessLeases], database_url: str
):
    """As after the server's clock was set forward."""
    ours = process(seconds=60, renew_every=0.05)
    lease = ours.take("x")
    assert lease is not None
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute("UPDATE marketdata.leases SET token = 'b', fence = fence + 1")
    until(lambda: not lease.held)


def test_leases_given_back_can_be_taken_at_once(process: Callable[..., ProcessLeases]):
    one, other = process(), process()
    with one.holding("x") as lease:
        assert lease is not None
        assert one.take("x") is None, "not twice, by the same process either"
        assert other.take("x") is None
    assert not lease.held
    with other.holding("x") as lease:
        assert lease is not None


def test_without_the_server_nobody_gets_a_lease(process: Callable[..., ProcessLeases]):
    ours = ProcessLeases(PostgresLeases("postgresql://nobody@127.0.0.1:9/nowhere"))
    with pytest.raises(StoreUnavailableError):
        ours.take("x")
    assert not ours.is_leader()
    ours.close()


def test_the_line_notices_a_peer_that_vanished(database_url: str):
    """Well inside a lease, even where nothing is being sent."""
    with (
        FlakyProxy(database_url) as way,
        PostgresLeases(way.url)._database.connect() as connection,
        socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as line,
    ):
        assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        if hasattr(socket, "TCP_KEEPIDLE"):  # Linux
            idle, every, count = (
                line.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + every * count < 15
            unacknowledged = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert 0 < unacknowledged < 15_000


# ------------------------------------------------------------------------------------- leading


def test_one_leads_and_the_next_follows_at_once(process: Callable[..., ProcessLeases]):
    quick = {"seconds": 5.0, "renew_every": 0.2, "poll_every": 0.1}
    gained: list[str] = []
    one, two, three = (process(**quick) for _ in range(3))
    for name, each in (("one", one), ("two", two), ("three", three)):
        each.lead(on_gain=partial(gained.append, name))
    by_name = {"one": one, "two": two, "three": three}
    for turn in range(3):
        until(partial(longer, gained, turn))
        leaders = [name for name, each in by_name.items() if each.is_leader()]
        assert leaders == gained[-1:]
        by_name.pop(gained[-1]).close()
    assert sorted(gained) == ["one", "three", "two"]


def test_holders_have_a_name():
    user, _, rest = this_process().partition("@")
    host, _, pid = rest.partition("/")
    assert user
    assert host
    assert pid.isdigit()


# ---------------------------------------------------------------------------------- stop signal


def test_a_stop_signal_is_set_by_whatever_ends_the_right_to_act():
    outer = threading.Event()
    lease, other = Lease("a", 1, elapsed() + 60), Lease("b", 1, elapsed() + 60)
    signal = StopSignal(outer)
    signal.arm([lease, other])
    assert not signal.is_set()
    other.lose()
    assert signal.is_set()
    signal.arm([lease])
    assert not signal.is_set()
    lease.extend(elapsed())
    assert signal.is_set()
    lease.extend(elapsed() + 60)
    assert not signal.is_set()
    outer.set()
    assert signal.is_set()
    assert signal.wait(60)


def test_waiting_on_a_stop_signal_ends_with_the_lease():
    signal = StopSignal(threading.Event())
    signal.arm([Lease("a", 1, elapsed() + 1.0)])
    assert signal.wait(0.05) is False
    began = time.monotonic()
    assert signal.wait(30) is True
    assert time.monotonic() - began < 5


# ----------------------------------------------------------------------------------------- jobs


@dataclass(frozen=True)
class _Report:
    numbers: dict[str, int]
    failed: tuple[str, ...] = ()
    stopped: bool = False

    def summary(self) -> dict[str, int]:
        return self.numbers


class _Runtime:
    """As much of a running stack as the runner itself needs."""

    def __init__(self) -> None:
        self.clock = FixedClock(datetime.fromisoformat("2024-03-14T15:00:00-04:00"))
        self.statistics = Statistics()


class Jobs:
    """A runner over jobs of the test's own."""

    def __init__(
        self, store: PostgresStore, leases: ProcessLeases, book: PostgresLeases, **works: Any
    ) -> None:
        self.runtime = _Runtime()
        self.runs = PostgresJobRuns(store.database)
        self.prepared: list[str] = []
        self.stop = threading.Event()
        self.signals: dict[str, threading.Event] = {}

        def job(name: str, work: Callable[[threading.Event], _Report]) -> Job:
            def prepare(_: object, signal: threading.Event) -> Callable[[], _Report]:
                self.prepared.append(name)
                self.signals[name] = signal
                return lambda: work(signal)

            return Job(name, "", prepare)

        table = {name: job(name, work) for name, work in works.items()}
        self.runner = JobRunner(
            self.runtime,  # type: ignore[arg-type]
            leases,
            book,
            self.runs,
            self.stop,
            table,
        )


def test_a_run_leaves_a_row(
    store: PostgresStore, process: Callable[..., ProcessLeases], book: PostgresLeases
):
    jobs = Jobs(
        store,
        process(),
        book,
        fine=lambda _: _Report({"bars": 3, "calls": 1}),
        partly=lambda _: _Report({}, failed=("AAPL",)),
        early=lambda _: _Report({}, stopped=True),
        broken=lambda _: 1 / 0,
    )
    assert jobs.runner.run("fine").outcome == "done"
    assert jobs.runner.run("partly").failed == ("AAPL",)
    assert jobs.runner.run("early").outcome == "stopped"
    assert isinstance(jobs.runner.run("broken").error, ZeroDivisionError)
    rows = {name: jobs.runs.recent(name)[0] for name in ("fine", "partly", "early", "broken")}
    assert [r.outcome for r in rows.values()] == ["done", "incomplete", "stopped", "failed"]
    assert rows["fine"].summary == {"bars": 3, "calls": 1}
    assert to_micros(rows["fine"].market_time) == jobs.runtime.clock.now_us()
    assert rows["broken"].error == {
        "type": "ZeroDivisionError",
        "message": "division by zero",
        "cure": None,
    }
    assert jobs.runtime.statistics.snapshot()["bars_fetched"] == 3


def test_a_job_never_runs_twice_at_once(
    store: PostgresStore, process: Callable[..., ProcessLeases], book: PostgresLeases
):
    begun, go_on = threading.Event(), threading.Event()

    def slow(_: threading.Event) -> _Report:
        begun.set()
        assert go_on.wait(10)
        return _Report({})

    here, there = process(), process()
    jobs, others = Jobs(store, here, book, slow=slow), Jobs(store, there, book, slow=slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(jobs.runner.run, "slow")
        assert begun.wait(10)
        for runner in (others.runner, jobs.runner):
            ended = runner.run("slow")
            assert ended.outcome == "busy"
            assert ended.holder is not None
            assert ended.holder.holder == here.holder
        go_on.set()
        assert first.result().outcome == "done"
    assert others.runner.run("slow").outcome == "done"
    assert len(jobs.runs.recent("slow")) == 2


def test_a_night_is_worked_through_once_and_again_only_where_it_failed(
    store: PostgresStore, process: Callable[..., ProcessLeases], book: PostgresLeases
):
    outcomes = [BrokerUnavailableError("down"), None, None]

    def work(_: threading.Event) -> _Report:
        error = outcomes.pop(0)
        if error is not None:
            raise error
        return _Report({})

    jobs = Jobs(store, process(), book, backfill=work)
    again = Jobs(store, process(), book, backfill=work)  # another daemon, the same night
    assert jobs.runner.run("backfill", occasion="2024-11-03").outcome == "failed"
    assert again.runner.run("backfill", occasion="2024-11-03").outcome == "done"
    assert jobs.runner.run("backfill", occasion="2024-11-03").outcome == "over"
    assert jobs.runner.run("backfill", occasion="2024-11-04").outcome == "done"
    assert [r.occasion for r in jobs.runs.recent("backfill")] == [
        "2024-11-04", "2024-11-03", "2024-11-03",
    ]  # fmt: skip


def test_a_run_whose_process_went_away_is_lost_and_says_nothing_later(
    store: PostgresStore, process: Callable[..., ProcessLeases], book: PostgresLeases
):
    jobs = Jobs(store, process(), book, cycle=lambda _: _Report({}))
    number = jobs.runs.start("cycle", occasion=None, market_us=0, holder="gone", fence=1)
    assert jobs.runner.run("cycle").outcome == "done"
    jobs.runs.finish(number, "cycle", "done")
    assert [r.outcome for r in jobs.runs.recent("cycle")] == ["done", "lost"]


def test_a_job_stops_when_the_right_to_lead_is_lost(
    store: PostgresStore, process: Callable[..., ProcessLeases], book: PostgresLeases
):
    def work(stop: threading.Event) -> _Report:
        stop.wait(30)
        return _Report({}, stopped=stop.is_set())

    right = Lease("daemon", 1, elapsed() + 0.5)
    jobs = Jobs(store, process(), book, cycle=work)
    began = time.monotonic()
    assert jobs.runner.run("cycle", right=(right,)).outcome == "stopped"
    assert time.monotonic() - began < 10


def test_work_is_prepared_once_and_anew_after_an_error(
    store: PostgresStore, process: Callable[..., ProcessLeases], book: PostgresLeases
):
    broken = [False, False, True, False]

    def work(_: threading.Event) -> _Report:
        if broken.pop(0):
            raise StoreUnavailableError("gone")
        return _Report({})

    jobs = Jobs(store, process(), book, cycle=work)
    for _ in range(4):
        jobs.runner.run("cycle")
    assert jobs.prepared == ["cycle", "cycle"]
    jobs.runner.forget()
    assert not jobs.runner._prepared


def test_the_log_of_runs_is_bounded_and_keeps_the_last_success(
    store: PostgresStore, database_url: str
):
    runs = PostgresJobRuns(store.database)
    number = runs.start("cycle", occasion=None, market_us=0, holder="a", fence=1)
    runs.finish(number, "cycle", "done", summary={"bars": 1})
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(
            "INSERT INTO marketdata.job_runs (job, finished_at, outcome, market_time, holder, fence)"
            " SELECT 'cycle', now(), 'failed', now(), 'a', 1 FROM generate_series(1, %s)",
            (KEPT_RUNS + 50,),
        )
    number = runs.start("cycle", occasion=None, market_us=0, holder="a", fence=1)
    runs.finish(number, "cycle", "failed")
    kept = runs.recent("cycle", 10_000)
    assert len(kept) == KEPT_RUNS + 1
    assert kept[-1].summary == {"bars": 1}
    look = PostgresFigures(store.database).look()
    assert look.successes["cycle"].summary == {"bars": 1}
    assert look.failures["cycle"] == KEPT_RUNS


def test_ticks_that_were_passed_over_are_counted_for_a_day(store: PostgresStore):
    runs = PostgresJobRuns(store.database)
    for reason in ("skipped", "skipped", "missed"):
        runs.pass_over("cycle", reason, market_us=0, holder="a")
    look = PostgresFigures(store.database).look()
    assert look.passed_over == {("cycle", "skipped"): 2, ("cycle", "missed"): 1}
    assert look.runs == {}, "they are no runs"
