"""The aggregator killed, its servers and its broker failing: nothing is lost, nothing served wrong."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from marketdata import pausing, walks
from marketdata.brokers import alpaca_walk
from marketdata.cycle_report import CycleReport
from marketdata.errors import BrokerTimeoutError, StoreError
from marketdata.spans import Span
from marketdata.testing import Process
from marketdata.types import CLOSE
from tests.changing_market import ChangingMarket
from tests.cycles import Ward, assert_same_bars, micros, of_market, serves_from_redis
from tests.redis_process import RedisProcess
from tests.stack import BARS, Stack, tiers
from tests.stack_callers import until

BUSY = ["AAPL", "MSFT", "NVDA"]


def at(clock: str) -> str:
    return f"2026-03-12T{clock}-04:00"


def span(start: str, end: str) -> Span:
    return Span(micros(at(start)), micros(at(end)))


@pytest.fixture
def market() -> ChangingMarket:
    return ChangingMarket()


@pytest.fixture
def server() -> Iterator[RedisProcess]:
    with RedisProcess() as found:
        yield found


@pytest.fixture
def stack(make_stack: Callable[..., Stack], server: RedisProcess, market: ChangingMarket) -> Stack:
    """A stack whose Redis belongs to the test."""
    return make_stack(at=at("14:58:05"), source=market, redis_url=server.url)


@pytest.fixture
def ward(stack: Stack) -> Ward:
    """An aggregator in steady state at 14:59."""
    ward = Ward(stack, list(BUSY))
    ward.cycle()
    ward.cycle(at("14:59:05"))
    return ward


def assert_right(ward: Ward, market: ChangingMarket, end: str) -> None:
    """What is stored and what is served are the market's bars up to `end`."""
    asked = span("10:00", end)
    for symbol in ward.symbols:
        expected = of_market(market, symbol, asked)
        assert_same_bars(ward.stored(symbol, asked), expected)
        frame = ward.stack.client.get_bars(symbol, "1min", start=at("10:00:00"))
        assert frame["close"].tolist() == expected.values[CLOSE].tolist()
        newest = ward.stack.client.get_bars(symbol, "1min", limit=60)
        assert newest["close"].tolist() == expected.values[CLOSE, -60:].tolist()


# --------------------------------------------------------------------------------------- kills


def cycle_elsewhere(stack: Stack, killed_at: str | None = None) -> int:
    """Let another process do one cycle; return how it ended."""
    settings = {**stack.settings, "clock": repr(stack.clock)}
    command = ["-m", "tests.aggregator_process", json.dumps(settings), *BUSY]
    with Process(command, pause=(killed_at, "kill") if killed_at else None) as process:
        return process.finish()[0]


@pytest.mark.parametrize(
    "point",
    [
        pausing.BARS_WRITTEN,
        pausing.FLOOR_RAISED,
        pausing.COMMITTED,
        pausing.LANDED,
        pausing.CYCLE_BEFORE_BLOCKS,
        pausing.CYCLE_BEFORE_INDICATORS,
        pausing.CYCLE_BEFORE_NOTICE,
    ],
)
def test_fault_14_killed_at_any_point_the_next_read_is_right(
    stack: Stack, ward: Ward, market: ChangingMarket, point: str
):
    """With a bar corrected since: the killed process has read the correction, or not yet."""
    assert serves_from_redis(stack.client, BUSY)
    market.correct("AAPL", micros(at("14:58")), 123.4567)
    stack.set_time(at("15:00:05"))
    assert cycle_elsewhere(stack, point) == -signal.SIGKILL
    # Leases of the dead run out on real time; nobody waits for them here.
    with psycopg.connect(stack.settings["database_url"]) as connection:
        connection.execute("UPDATE marketdata.flights SET lease_until = now() - interval '1 s'")
    committed = point not in (pausing.BARS_WRITTEN, pausing.FLOOR_RAISED)
    label = span("14:58", "14:59")
    now = ward.stored("AAPL", label).values[CLOSE].tolist()
    assert (now == [123.4567]) == committed
    frame = stack.client.get_bars("AAPL", "1min", limit=5)
    assert frame["close"].iloc[-2] == 123.4567, "a read that fetches reads the minute before too"
    ward.cycle()
    assert_right(ward, market, "15:00")
    ward.cycle(at("15:01:05"))
    assert_right(ward, market, "15:01")
    assert serves_from_redis(stack.client, BUSY)


# --------------------------------------------------------------------------------------- Redis


def test_without_redis_a_cycle_stores_and_says_which_blocks_are_lost(
    stack: Stack, ward: Ward, market: ChangingMarket, server: RedisProcess
):
    server.stop()
    began = time.monotonic()
    report = ward.cycle(at("15:00:05"))
    assert time.monotonic() - began < 5
    assert report.failed == ()
    assert report.changed == 3
    assert report.blocks_grown == 0
    server.start()
    assert report.blocks_lost == 3
    until(lambda: found_again(ward))
    report = ward.cycle(at("15:01:05"))
    assert (report.blocks_rebuilt, report.blocks_lost) == (3, 0)
    assert_right(ward, market, "15:01")
    assert serves_from_redis(stack.client, BUSY)


def found_again(ward: Ward) -> bool:
    ward.runtime.cache.get([ward.key("AAPL")])
    return ward.runtime.cache._link.breaker.is_closed()


def test_with_redis_frozen_in_mid_cycle_no_stale_bar_is_served(
    stack: Stack, ward: Ward, market: ChangingMarket, server: RedisProcess
):
    """The floor is raised; then Redis freezes before the block grows. Thawed, the block is old."""
    cache = ward.runtime.cache
    grow = cache.grow

    def freeze_first(*arguments: object) -> dict[object, int]:
        server.freeze()
        return grow(*arguments)  # type: ignore[arg-type, return-value]

    cache.grow = freeze_first  # type: ignore[method-assign, assignment]
    market.correct("AAPL", micros(at("14:58")), 66.25)
    try:
        report = ward.cycle(at("15:00:05"))
    finally:
        server.thaw()
        cache.grow = grow  # type: ignore[method-assign]
    assert report.failed == ()
    assert_right(ward, market, "15:00")
    ward.cycle(at("15:01:05"))
    assert_right(ward, market, "15:01")


# ---------------------------------------------------------------------------------- PostgreSQL


def end_sessions(stack: Stack) -> None:
    with psycopg.connect(stack.settings["database_url"], autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_fault_16_sessions_ended_in_mid_cycle(stack: Stack, ward: Ward, market: ChangingMarket):
    for minute in range(5):
        held = stack.sandbox.faults.add("hold", match=BARS)
        reports: list[CycleReport] = []
        stack.set_time(at(f"15:0{minute}:05"))
        walking = threading.Thread(target=lambda seen=reports: seen.append(ward.cycle()))
        walking.start()
        assert held.wait_fired()
        end_sessions(stack)
        held.release()
        walking.join(30)
        (report,) = reports
        assert all(f.transient and f.error == "StoreUnavailableError" for f in report.failed)
    ward.cycle(at("15:06:05"))
    assert_right(ward, market, "15:06")


def test_without_postgresql_the_cycle_raises_at_once_and_claims_nothing(
    stack: Stack, ward: Ward, market: ChangingMarket
):
    database = ward.runtime.store.database
    known = dict(database._parameters)
    database._parameters.update(host="127.0.0.1", port="1")
    database.close()
    began = time.monotonic()
    with pytest.raises(StoreError) as caught:
        ward.cycle(at("15:00:05"))
    assert time.monotonic() - began < 10
    assert caught.value.transient
    database._parameters.clear()
    database._parameters.update(known)
    ward.cycle(at("15:01:05"))
    assert_right(ward, market, "15:01")


# -------------------------------------------------------------------------------------- broker


@pytest.mark.parametrize("kind", ["status", "html", "cut", "reset", "json", "bars_null"])
def test_a_failing_broker_is_reported_and_nothing_is_claimed(
    stack: Stack, ward: Ward, market: ChangingMarket, kind: str
):
    before = {s: ward.state(s) for s in BUSY}
    stack.sandbox.faults.add(kind, match=BARS, times=None)  # type: ignore[arg-type]
    report = ward.cycle(at("15:00:05"))
    (failure,) = report.failed
    assert failure.symbols == tuple(BUSY)
    assert failure.transient
    assert failure.error in ("BrokerUnavailableError", "BrokerResponseError")
    assert ward.told == []
    assert {s: ward.state(s) for s in BUSY} == before
    stack.sandbox.faults.clear()
    ward.runtime.broker._data.caller.breaker.succeeded()  # type: ignore[attr-defined]
    assert ward.cycle(at("15:01:05")).failed == ()
    assert_right(ward, market, "15:01")


def test_a_broker_that_is_down_costs_a_large_cycle_little(stack: Stack, market: ChangingMarket):
    """After a few failures in a row the breaker answers for the other requests."""
    ward = Ward(stack, [f"S{n:05d}" for n in range(1, 4001)])
    stack.sandbox.faults.add("status", match=BARS, status=503, times=None)
    stack.forget_calls()
    began = time.monotonic()
    report = ward.cycle()
    assert time.monotonic() - began < 30
    assert sum(len(f.symbols) for f in report.failed) == 4000
    assert stack.calls() < 20


def test_a_rate_limit_is_waited_for(stack: Stack, ward: Ward, market: ChangingMarket):
    stack.sandbox.faults.add("rate_limit", match=BARS, seconds=1.0)
    report = ward.cycle(at("15:00:05"))
    assert report.failed == ()
    assert_right(ward, market, "15:00")


def test_refused_keys_are_asked_with_once_and_not_for_every_batch(stack: Stack):
    ward = Ward(stack, [f"S{n:05d}" for n in range(1, 3001)])
    stack.sandbox.faults.add("status", match=BARS, status=401, times=None)
    stack.forget_calls()
    report = ward.cycle()
    assert {f.error for f in report.failed} == {"AuthenticationError"}
    assert sum(len(f.symbols) for f in report.failed) == 3000
    assert stack.calls() <= 3


def test_a_batch_that_one_symbol_spoils_is_halved_until_it_stands_alone(
    stack: Stack, market: ChangingMarket
):
    """The server answers 404 to whatever names this symbol: no error that names one."""
    ward = Ward(stack, [*BUSY, "TSLA", "INTC"])
    stack.sandbox.faults.add("status", match="TSLA", status=404, times=None)
    report = ward.cycle()
    assert [f.symbols for f in report.failed] == [("TSLA",)]
    assert serves_from_redis(stack.client, BUSY)
    stack.forget_calls()
    report = ward.cycle(at("15:00:05"))
    assert report.failed == ()
    assert report.unknown == ("TSLA",)
    assert stack.calls() == 1


def test_a_stop_during_a_long_walk_keeps_its_finished_pages(
    stack: Stack, market: ChangingMarket, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(alpaca_walk, "PAGE_ROWS", 700)
    ward = Ward(stack, [*BUSY, "TSLA", "INTC"])
    held = stack.sandbox.faults.add("hold", match=BARS, nth=2)
    reports: list[CycleReport] = []
    walking = threading.Thread(target=lambda: reports.append(ward.cycle()))
    walking.start()
    assert held.wait_fired()
    ward.stop.set()
    held.release()
    walking.join(20)
    (report,) = reports
    assert report.stopped
    assert report.postponed == 1
    assert report.bars == 1400
    ward.stop.clear()
    assert ward.cycle().postponed == 0
    assert_right(ward, market, "14:58")


def test_a_stop_does_not_wait_for_a_broker_that_never_answers(
    stack: Stack, ward: Ward, market: ChangingMarket, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(walks, "STOP_PATIENCE", 0.5)
    held = stack.sandbox.faults.add("hold", match=BARS)
    reports: list[CycleReport] = []
    stack.set_time(at("15:00:05"))
    walking = threading.Thread(target=lambda: reports.append(ward.cycle()))
    walking.start()
    assert held.wait_fired()
    began = time.monotonic()
    ward.stop.set()
    walking.join(20)
    assert time.monotonic() - began < 5
    (report,) = reports
    assert report.stopped
    held.release()
    ward.stop.clear()
    # What was left to itself ends by itself; until then its flight is its own.
    ward.cycle(at("15:01:05"))
    assert_right(ward, market, "15:01")


def test_reads_of_covered_bars_do_not_wait_for_a_read_again(
    stack: Stack, ward: Ward, market: ChangingMarket
):
    """The evening's re-read is a flight like any other: who needs no request does not see it, who
    needs one waits for it and then asks for what is still missing."""
    ward.cycle(at("20:15:00"))
    held = stack.sandbox.faults.add("hold", match=BARS)
    reports: list[CycleReport] = []
    stack.set_time(at("21:00:05"))
    walking = threading.Thread(target=lambda: reports.append(ward.cycle()))
    walking.start()
    assert held.wait_fired()
    stack.forget_calls()
    began = time.monotonic()
    assert serves_from_redis(stack.client, BUSY)
    assert len(stack.client.get_bars("AAPL", "1min", start=at("10:00:00"))) > 300
    assert time.monotonic() - began < 2
    assert stack.calls() == 0
    with pytest.raises(BrokerTimeoutError, match="another caller's fetch"):
        stack.client.get_bars("AAPL", "1min", start="2026-03-02", end="2026-03-03", timeout=0.3)
    held.release()
    walking.join(30)
    assert reports[0].failed == ()
    assert ward.cycle().due == 0


def test_an_error_of_a_read_again_is_reported_and_repeated(
    stack: Stack, ward: Ward, market: ChangingMarket
):
    ward.cycle(at("20:15:00"))
    label = int(ward.stored("AAPL", span("12:00", "13:00")).timestamp[0])
    market.correct("AAPL", label, 31.5)
    stack.sandbox.faults.add("status", match=BARS, status=500, times=None)
    report = ward.cycle(at("21:00:05"))
    assert [f.symbols for f in report.failed] == [tuple(BUSY)]
    stack.sandbox.faults.clear()
    ward.runtime.broker._data.caller.breaker.succeeded()  # type: ignore[attr-defined]
    assert ward.cycle(at("21:15:05")).due == 3
    assert 31.5 in ward.stored("AAPL", span("12:00", "13:00")).values[CLOSE]


def test_fault_21_a_stale_leader_changes_nothing(stack: Stack, ward: Ward, market: ChangingMarket):
    """A process held up in the middle of its request, while another has gone on."""
    held = stack.sandbox.faults.add("hold", match=BARS)
    slow = Ward(stack, list(BUSY))
    reports: list[CycleReport] = []
    stack.set_time(at("15:00:05"))
    walking = threading.Thread(target=lambda: reports.append(slow.cycle()))
    walking.start()
    assert held.wait_fired()
    # Its leases have run out, and the other takes over, in a process of its own.
    with psycopg.connect(stack.settings["database_url"]) as connection:
        connection.execute("UPDATE marketdata.flights SET lease_until = now() - interval '1 s'")
    market.correct("AAPL", micros(at("14:58")), 44.5)
    stack.set_time(at("15:02:05"))
    assert cycle_elsewhere(stack) == 0
    assert_same_bars(
        ward.stored("AAPL", span("14:50", "15:02")), of_market(market, "AAPL", span("14:50", "15:02"))
    )  # fmt: skip
    held.release()
    walking.join(30)
    assert len(reports) == 1
    assert_right(ward, market, "15:02")
    frame = stack.client.get_bars("AAPL", "1min", limit=5)
    assert 44.5 in frame["close"].tolist()
    assert tiers(frame) == "redis:1"
