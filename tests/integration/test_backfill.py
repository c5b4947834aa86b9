"""A backfill on the whole stack: plan, run, limits, failures, and who goes first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import urlsplit

import psycopg
import pytest

from marketdata import backfill_plan as planner
from marketdata import backfill_run
from marketdata.backfill import Backfill, Limits, Wanted
from marketdata.backfill_plan import FAILED, QUIET, VENDOR_HAS_NONE
from marketdata.backfill_report import BackfillProgress, BackfillReport
from marketdata.brokers.resilience import RequestGate
from marketdata.clock import Deadline
from marketdata.errors import (
    AuthenticationError,
    BrokerUnavailableError,
    ConfigurationError,
    RateLimitError,
    RequestError,
    StoreError,
)
from marketdata.protocols import Priority, ReadRequest
from marketdata.spans import Span
from marketdata.types import DAY, SeriesKey, Timeframe
from marketdata.verifying import verify
from tests.stack import BARS, Stack, runtime

MakeStack = Callable[..., Stack]

SYMBOLS = ("AAPL", "KO", "S00001")
WEEKS = Wanted(symbols=SYMBOLS, start="2024-02-20")
ALL = Limits(max_symbols=0)


def job(stack: Stack, stop: threading.Event | None = None) -> Backfill:
    return Backfill(runtime(stack.client), stop)


def missing(stack: Stack, wanted: Wanted = WEEKS) -> list[str]:
    """Return what a run would still fetch, as ``AAPL 1min``."""
    return [f"{k.symbol} {k.timeframe}" for k in job(stack).plan(wanted, ALL).audit.missing]


def gaps(stack: Stack, wanted: Wanted) -> set[tuple[str, str, str]]:
    found = job(stack).plan(wanted, ALL).audit.gaps()
    return {(g.key.symbol, g.key.timeframe.value, g.state) for g in found}


# ------------------------------------------------------------------------------------ filling


@pytest.mark.exact("it counts the requests sent")
def test_a_plan_asks_nobody_and_a_run_leaves_nothing(stack: Stack):
    plan = job(stack).plan(WEEKS)
    assert stack.calls() == 0
    assert plan.this_run.symbols == 3
    report = job(stack).run(WEEKS)
    assert (report.ended, report.complete) == ("complete", True)
    assert stack.calls() == report.calls <= plan.this_run.calls
    assert 0 < report.bars <= plan.this_run.bars
    assert missing(stack) == []
    stack.forget_calls()
    again = job(stack).run(WEEKS)
    assert (again.bars, again.calls, stack.calls()) == (0, 0, 0)


def test_what_is_filled_reads_like_what_a_read_fetched(make_stack: MakeStack):
    stack = make_stack()
    job(stack).run(WEEKS)
    stack.forget_calls()
    filled = {
        t: stack.client.get_bars(SYMBOLS, t, start="2024-02-20", session="extended")
        for t in ("1min", "5min", "1day")
    }
    assert stack.calls() == 0
    with psycopg.connect(stack.settings["database_url"]) as connection:
        connection.execute("DROP SCHEMA marketdata CASCADE")
    runtime(stack.client).store.migrate()
    stack.flush_redis()
    with stack.connect() as other:
        for timeframe, frame in filled.items():
            fetched = other.get_bars(SYMBOLS, timeframe, start="2024-02-20", session="extended")
            assert frame.equals(fetched)
    assert stack.calls() > 0


def test_settled_sessions_are_sealed_and_the_newest_stay_rows(stack: Stack):
    report = job(stack).run(WEEKS)
    store = runtime(stack.client).store
    minutes = [h for h in store.holdings() if h.key.timeframe is Timeframe.MIN_1]
    assert all(h.sealed_count > 0 and h.row_count > 0 for h in minutes)
    days = [h for h in store.holdings() if h.key.timeframe is Timeframe.DAY_1]
    assert all(h.sealed_count == 0 for h in days)
    assert sum(h.bar_count for h in store.holdings()) == report.bars


def test_gaps_are_filled_in_both_directions_and_in_the_middle(stack: Stack):
    stack.client.get_bars("AAPL", "1min", start="2024-02-26", end="2024-02-28")
    stack.client.get_bars("AAPL", "1min", start="2024-03-06T12:00-05:00", end="2024-03-08")
    wanted = replace(WEEKS, symbols=("AAPL",))
    job(stack).run(wanted)
    assert len(stack.client.coverage("AAPL", "1min")) == 1
    assert missing(stack, wanted) == []


def test_a_symbol_that_is_listed_inside_the_window_is_quiet_before(make_stack: MakeStack):
    stack = make_stack(at="2024-06-20T15:00:30-04:00")
    wanted = Wanted(symbols=("RDDT", "AAPL"), start="2024-01-15")
    report = job(stack).run(wanted)
    assert report.complete
    assert not [f for f in report.filled if f.doubt]
    assert gaps(stack, wanted) == {("RDDT", "1day", QUIET), ("RDDT", "1min", QUIET)}


def test_yahoos_old_minutes_are_nobodys_to_give(make_stack: MakeStack):
    stack = make_stack()
    with stack.connect(broker="yahoo", yahoo_url=stack.sandbox.url) as client:
        filling = Backfill(runtime(client))
        wanted = Wanted(symbols=("KO",), start="2024-01-02")
        report = filling.run(wanted)
        assert report.complete
        states = {(g.key.timeframe.value, g.state) for g in filling.plan(wanted).audit.gaps()}
        assert states == {("1min", VENDOR_HAS_NONE)}
        assert {f.key.timeframe.value: f.bars > 0 for f in report.filled} == {
            "1day": True,
            "1min": True,
        }


# ------------------------------------------------------------------------- whose, and how many


def test_subscribed_symbols_by_priority_and_minutes_only_where_wanted(stack: Stack):
    stack.client.subscribe(["KO"], "1day", owner="slow")
    stack.client.subscribe(["AAPL"], "5min", owner="quick")
    stack.client.subscribe(["MSFT"], "1min", owner="first", priority=5)
    series = job(stack).plan(Wanted(start="2024-03-01")).scope.series
    assert [f"{k.symbol} {k.timeframe}" for k in series] == [
        "MSFT 1day", "AAPL 1day", "KO 1day", "MSFT 1min", "AAPL 1min",
    ]  # fmt: skip


def test_without_subscriptions_what_is_stored(stack: Stack):
    assert job(stack).plan(Wanted()).scope.series == ()
    stack.client.get_bars("AAPL", "1day", limit=5)
    series = job(stack).plan(Wanted()).scope.series
    assert [f"{k.symbol} {k.timeframe}" for k in series] == ["AAPL 1day", "AAPL 1min"]


def test_a_run_ends_after_the_minutes_of_so_many_symbols(stack: Stack):
    report = job(stack).run(WEEKS, Limits(max_symbols=2))
    assert report.ended == "max-symbols"
    assert report.complete
    assert missing(stack) == ["S00001 1min"]
    assert report.left.symbols == 1
    assert job(stack).run(WEEKS, Limits(max_symbols=2)).ended == "complete"
    assert missing(stack) == []


@pytest.mark.exact("it counts the requests sent")
def test_a_run_ends_after_so_many_calls_and_goes_on_from_there(stack: Stack):
    ends = []
    for _ in range(20):
        stack.forget_calls()
        report = job(stack).run(WEEKS, Limits(max_calls=2))
        assert stack.calls() == report.calls <= 2
        ends.append(report.ended)
        if report.ended == "complete":
            break
        assert report.left.calls > 0
    assert ends == ["max-calls"] * (len(ends) - 1) + ["complete"]
    assert missing(stack) == []


def test_calls_that_are_counted_out_are_not_in_vain_where_they_are_slow(stack: Stack):
    stack.sandbox.faults.add("slow", match="/bars", seconds=0.7, times=None)
    wanted = replace(WEEKS, symbols=("AAPL",))
    report = job(stack).run(wanted, Limits(max_calls=2))
    assert (report.ended, report.calls) == ("max-calls", 2)
    assert {f.key.timeframe.value for f in report.filled} == {"1day", "1min"}


def test_a_run_ends_at_a_time_in_new_york(stack: Stack):
    stack.set_time("2024-03-14T05:00:00-04:00")

    def at_six(_progress: BackfillProgress) -> None:
        stack.set_time("2024-03-14T06:00:00-04:00")

    report = job(stack).run(WEEKS, Limits(until="06:00"), at_six)
    assert report.ended == "until"
    assert report.bars > 0
    assert missing(stack)
    assert job(stack).run(WEEKS, Limits(until="06:00")).ended == "complete"


def test_a_stopped_run_keeps_what_is_complete_and_goes_on(stack: Stack):
    stop = threading.Event()

    def after_days(progress: BackfillProgress) -> None:
        if progress.now.startswith("1min"):
            stop.set()

    stopped = job(stack, stop).run(WEEKS, ALL, after_days)
    assert stopped.stopped
    assert stopped.bars > 0
    rest = job(stack).run(WEEKS, ALL)
    assert rest.ended == "complete"
    assert missing(stack) == []


def test_stopping_does_not_wait_for_a_silent_broker(stack: Stack):
    fault = stack.sandbox.faults.add("hold", match="1Min")
    stop = threading.Event()
    filling = job(stack, stop)
    found: list[BackfillReport] = []
    thread = threading.Thread(target=lambda: found.append(filling.run(WEEKS, ALL)))
    thread.start()
    assert fault.wait_fired()
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    assert found[0].stopped
    fault.release()


@pytest.mark.parametrize(
    "wanted", [Wanted(symbols=("AAPL",), years=0), Wanted(symbols=("AAPL",), start="2030-01-01")]
)
def test_a_range_that_cannot_be_is_refused(stack: Stack, wanted: Wanted):
    with pytest.raises(RequestError):
        job(stack).plan(wanted)


# -------------------------------------------------------------------------------- what fails


@pytest.mark.exact("it names the error of a fault of its own")
def test_one_failing_symbol_fails_alone_and_is_tried_again_later(stack: Stack):
    fault = stack.sandbox.faults.add("status", match="KO", times=None)
    report = job(stack).run(WEEKS)
    assert {(f.key.symbol, f.key.timeframe.value) for f in report.failed} == {
        ("KO", "1day"), ("KO", "1min"),
    }  # fmt: skip
    assert "500" in report.failed[0].error
    assert not report.complete
    assert {f.key.symbol for f in report.filled} == {"AAPL", "S00001"}
    assert {(s, t) for s, t, state in gaps(stack, WEEKS) if state == FAILED} == {
        ("KO", "1day"), ("KO", "1min"),
    }  # fmt: skip

    asked = fault.seen
    waiting = job(stack).run(replace(WEEKS, timeframes=(Timeframe.DAY_1,)))
    assert (waiting.complete, fault.seen) == (False, asked)
    assert waiting.failed == report.failed[:1], "it lacks what it lacked"

    stack.sandbox.faults.clear()
    stack.clock.advance(hours=3)
    healed = job(stack).run(WEEKS)
    assert healed.complete
    assert not job(stack).failures(list(job(stack).plan(WEEKS).scope.series))
    assert not [g for g in gaps(stack, WEEKS) if g[2] == FAILED]


def test_each_failure_doubles_the_wait_and_a_reset_ends_it(stack: Stack):
    wanted = Wanted(symbols=("KO",), timeframes=(Timeframe.DAY_1,), start="2024-02-20")
    key = SeriesKey("sandbox", "sip", "KO", Timeframe.DAY_1)
    book, now_us = runtime(stack.client).backfill_log, stack.clock.now_us()
    stretch = Span(now_us - 10 * DAY, now_us)
    for attempt in (1, 2, 3):
        # Of another length each time, as gaps are.
        part = Span(stretch.start - attempt * DAY, stretch.end)
        failure = book.failed(key, part, "broken", now_us, planner.next_retry)
        assert failure.attempts == attempt
        assert (
            0.8 <= (failure.retry_us - now_us) / (planner.FIRST_RETRY * 2 ** (attempt - 1)) <= 1.2
        )
        assert book.failures([key]) == [failure]
    assert ("KO", "1day", FAILED) in gaps(stack, wanted)
    before = {g.state for g in job(stack).plan(replace(wanted, retry_failed=True)).audit.gaps()}
    assert before == {"never asked"}
    assert job(stack).reset(wanted) == 1
    assert gaps(stack, wanted) == {("KO", "1day", "never asked")}


def test_symbols_that_do_not_exist_are_told_apart_from_quiet_ones(stack: Stack):
    wanted = replace(WEEKS, symbols=("AAPL", "ZZZZ", "NOPE1"))
    report = job(stack).run(wanted)
    errors = {f.key.symbol: f.error for f in report.failed}
    assert set(errors) == {"ZZZZ", "NOPE1"}
    assert "knows no symbol" in errors["ZZZZ"]
    assert "refuses" in errors["NOPE1"]
    assert missing(stack, wanted) == []
    assert {k.symbol for k in runtime(stack.client).store.series()} == {"AAPL"}


def test_refused_keys_end_the_run_at_once(make_stack: MakeStack):
    stack = make_stack(market={"api_keys": ["another"]})
    with pytest.raises(AuthenticationError):
        job(stack).run(WEEKS)
    assert stack.calls() <= 3
    assert not gaps(stack, WEEKS) - {
        (s, t, "never asked") for s in SYMBOLS for t in ("1day", "1min")
    }


def test_without_a_broker_there_is_a_plan_and_no_run(stack: Stack):
    with stack.connect(broker="none") as client:
        offline = Backfill(runtime(client))
        assert offline.plan(WEEKS).this_run.chunks
        with pytest.raises(ConfigurationError, match="no broker"):
            offline.run(WEEKS)
        with pytest.raises(ConfigurationError, match="no broker"):
            verify(runtime(client))


def test_a_broker_that_is_down_ends_the_run_and_no_symbol_is_blamed(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backfill_run, "_MOST_OUTAGES", 0)
    stack.sandbox.faults.add("status", status=503, times=None)
    with pytest.raises(BrokerUnavailableError, match="503") as raised:
        job(stack).run(WEEKS)
    assert "run it again" in str(raised.value)
    assert {state for _, _, state in gaps(stack, WEEKS)} == {"never asked"}


def test_a_store_that_takes_no_writes_ends_the_run(stack: Stack):
    store = runtime(stack.client).store
    url = stack.settings["database_url"]
    name = urlsplit(url).path[1:]

    def read_only(_progress: BackfillProgress) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        store.close()

    with pytest.raises(StoreError):
        job(stack).run(WEEKS, ALL, read_only)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
        # The claim of the run that failed could not be ended, and lasts for ten seconds.
        connection.execute("UPDATE marketdata.flights SET lease_until = now() - interval '1 s'")
    store.close()
    assert job(stack).run(WEEKS, ALL).complete
    assert missing(stack) == []


def test_a_series_that_the_store_refuses_fails_alone(stack: Stack):
    with psycopg.connect(stack.settings["database_url"], autocommit=True) as connection:
        connection.execute(
            "ALTER TABLE marketdata.market_data_bars_daily ADD CHECK (symbol <> 'KO') NOT VALID"
        )
    report = job(stack).run(replace(WEEKS, timeframes=(Timeframe.DAY_1,)))
    assert [f.key.symbol for f in report.failed] == ["KO"]
    assert {f.key.symbol for f in report.filled} == {"AAPL", "S00001"}


def test_refused_requests_are_waited_for(stack: Stack):
    fault = stack.sandbox.faults.add("rate_limit", match="1Min", seconds=0.5)
    assert job(stack).run(WEEKS).complete
    assert fault.fired >= 1
    assert missing(stack) == []


def test_bad_rows_are_counted_and_their_neighbours_kept(stack: Stack):
    stack.sandbox.faults.add("bad_rows", match="1Min", rows=["nan", "negative_volume"])
    report = job(stack).run(WEEKS)
    assert report.complete
    assert sum(report.rejected.values()) == 2


def test_a_key_without_the_last_quarter_of_an_hour_gets_the_rest(make_stack: MakeStack):
    stack = make_stack(market={"entitled_sip": False})
    report = job(stack).run(WEEKS)
    assert report.complete
    assert missing(stack) == []


# ------------------------------------------------------------------------- beside other work


def test_two_backfills_share_the_work(stack: Stack):
    alone = job(stack).plan(WEEKS, ALL)
    reports: list[BackfillReport] = []
    with stack.connect() as other:
        jobs = [job(stack), Backfill(runtime(other))]
        threads = [
            threading.Thread(target=lambda j=j: reports.append(j.run(WEEKS, ALL))) for j in jobs
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert all(r.complete for r in reports)
    assert missing(stack) == []
    assert stack.calls() <= alone.this_run.calls


def test_a_live_read_does_not_wait_for_a_backfill_of_the_same_series(stack: Stack):
    held = stack.sandbox.faults.add("hold", match="2024-02-20T")
    filling = job(stack)
    found: list[BackfillReport] = []
    thread = threading.Thread(target=lambda: found.append(filling.run(WEEKS, ALL)))
    thread.start()
    assert held.wait_fired()
    frame = stack.client.get_bars("AAPL", "1min", start="2024-03-14", timeout=5)
    assert len(frame) > 300
    # Even of the very days that the backfill is asking for.
    frame = stack.client.get_bars("AAPL", "1day", start="2024-02-21", timeout=5)
    assert len(frame) == 16
    assert not found
    held.release()
    thread.join(20)
    assert found[0].complete


def test_background_work_leaves_a_part_of_the_budget(stack: Stack):
    budget = runtime(stack.client).store
    background = RequestGate("shared", 60, budget, priority=Priority.BACKFILL)
    live = RequestGate("shared", 60, budget, priority=Priority.LIVE)
    reads = RequestGate("shared", 60, budget)
    for _ in range(7):
        background.acquire(Deadline(0.01))
    with pytest.raises(RateLimitError) as caught:
        background.acquire(Deadline(0.01))
    assert 0 < caught.value.facts["retry_after"] <= 1, "an eighth at once, then evenly"
    for _ in range(10):
        live.acquire(Deadline(0.01))
    for _ in range(43):
        reads.acquire(Deadline(0.01))
    with pytest.raises(RateLimitError) as caught:
        background.acquire(Deadline(0.01))
    assert caught.value.facts["retry_after"] > 50, "the rest is for reads, and for the next cycle"
    assert (background.granted, live.granted, reads.granted) == (7, 10, 43)


@pytest.mark.exact("it spends the budget to the last request")
def test_a_spent_budget_holds_up_the_backfill_and_no_live_read(make_stack: MakeStack):
    stack = make_stack(market={"rate_limit": 60})
    stop = threading.Event()
    busy = Wanted(symbols=("AAPL", "MSFT", "NVDA", "TSLA"), start="2023-08-01")
    filling = job(stack, stop)
    found: list[BackfillReport] = []
    thread = threading.Thread(target=lambda: found.append(filling.run(busy, ALL)))
    thread.start()
    broker = runtime(stack.client).broker_for(Priority.BACKFILL)
    deadline = Deadline(30)
    while broker.health()["requests_sent"] < 9:
        assert not deadline.expired
        stop.wait(0.05)
    began = time.monotonic()
    for symbol in ("KO", "AMD", "INTC", "F"):
        assert len(stack.client.get_bars(symbol, "1min", limit=100, timeout=5)) == 100
    assert time.monotonic() - began < 5
    stop.set()
    thread.join(10)
    assert not thread.is_alive(), "it ends although it waits for its turn"
    assert found[0].stopped
    assert found[0].calls < 20


def test_the_backfills_broker_is_the_readers_with_a_lower_priority(stack: Stack):
    stack.client.get_bars("AAPL", limit=1)
    running = runtime(stack.client)
    everything = running.broker.health()["requests_per_minute"]
    assert everything == 10_000
    backfill = running.broker_for(Priority.BACKFILL)
    assert backfill.health()["requests_per_minute"] == 9_500
    assert running.broker_for(Priority.BACKFILL) is backfill
    assert running.broker_for(Priority.READ) is running.broker
    others = {id(running.broker_for(p)) for p in Priority}
    assert len(others) == 4


def test_what_the_backfills_broker_asks_is_counted_and_it_is_closed(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
):
    running = runtime(stack.client)
    assert running.broker.verdict("AAPL", Deadline(5)).known
    before = stack.client.stats()["broker_requests"]
    assert running.broker_for(Priority.BACKFILL).verdict("KO", Deadline(5)).known
    assert stack.client.stats()["broker_requests"] == before + 1
    closed = []
    monkeypatch.setattr(running.broker_for(Priority.BACKFILL), "close", lambda: closed.append(True))
    stack.client.close()
    assert closed == [True]


def test_bars_committed_by_a_backfill_are_read_at_once(stack: Stack):
    stale = stack.client.get_bars("AAPL", "1min", limit=300)
    assert len(stale) == 300
    job(stack).run(WEEKS)
    key = SeriesKey("sandbox", "sip", "AAPL", Timeframe.MIN_1)
    store = runtime(stack.client).store
    state = store.states([key])[key]
    _, bars = store.read([ReadRequest(key, Span(0, state.coverage[-1].end))])[key]
    assert int(bars.timestamp[-1]) - int(bars.timestamp[0]) > 20 * DAY
    frame = stack.client.get_bars("AAPL", "1min", limit=5_000)
    assert len(frame) == 5_000
    assert stack.calls(BARS) > 0
