"""What the Alpaca broker does on the server's bad days: faults 1 to 8, named by number."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from marketdata.brokers.alpaca import AlpacaBroker
from marketdata.calendars import calendar_for
from marketdata.clock import Deadline
from marketdata.errors import (
    BrokerError,
    BrokerResponseError,
    BrokerTimeoutError,
    BrokerUnavailableError,
    DataUnavailableError,
    RateLimitError,
)
from marketdata.protocols import BarsRequest
from marketdata.quality import gate
from marketdata.sandbox import Sandbox
from marketdata.types import HIGH, OPEN, TRADE_COUNT, VWAP, Bars, Timeframe
from tests.alpaca_on_sandbox import (
    Walked,
    assert_same,
    between,
    broker_on,
    request_for,
    sandbox_at,
    truth,
    walked,
)

BARS = "/v2/stocks/bars"
WEEK = between(datetime(2024, 3, 6, 5, tzinfo=UTC), datetime(2024, 3, 13, 4, tzinfo=UTC))
HOUR = between(datetime(2024, 3, 8, 15, tzinfo=UTC), datetime(2024, 3, 8, 16, tzinfo=UTC))
FIVE = ("AAPL", "AMZN", "KO", "MSFT", "TSLA")


@pytest.fixture(scope="module")
def running() -> Iterator[Sandbox]:
    with sandbox_at() as server:
        yield server


@pytest.fixture
def sandbox(running: Sandbox) -> Iterator[Sandbox]:
    running.faults.clear()
    running.requests.clear()
    yield running
    running.faults.clear()


@pytest.fixture
def broker(sandbox: Sandbox) -> AlpacaBroker:
    return broker_on(sandbox)


def walked_until_error(
    broker: AlpacaBroker, request: BarsRequest, kind: type[BaseException], seconds: float = 30
) -> tuple[Walked, Any]:
    found = Walked()
    with pytest.raises(kind) as caught:
        found.follow(broker.pages(request, Deadline(seconds)))
    return found, caught.value


def assert_proven_is_delivered(sandbox: Sandbox, found: Walked) -> None:
    for symbol in FIVE:
        bars = found.bars(symbol)
        for span in found.proven(symbol):
            assert_same(bars.within(span), truth(sandbox, symbol, span))


# ---------------------------------------------------------------------------------- 1: page two


def test_fault_01_page_two_of_three_fails(sandbox: Sandbox, broker: AlpacaBroker) -> None:
    request = request_for(*FIVE, span=WEEK)
    sandbox.faults.add("status", match=BARS, nth=2, times=None, status=500)
    found, error = walked_until_error(broker, request, BrokerUnavailableError)
    assert len(found.pages) == 1
    assert error.facts["attempts"] == 3
    assert sandbox.requests.count(BARS) == 1 + 3
    assert_proven_is_delivered(sandbox, found)
    assert found.proven("AAPL") == [WEEK]
    assert found.proven("TSLA") == []
    sandbox.faults.clear()
    again = walked(broker, request)
    assert len(again.pages) == 3
    for symbol in FIVE:
        assert_same(again.bars(symbol), truth(sandbox, symbol, WEEK))


def test_fault_01_one_failure_of_page_two_costs_one_request(
    sandbox: Sandbox, broker: AlpacaBroker
) -> None:
    sandbox.faults.add("status", match=BARS, nth=2, status=502)
    found = walked(broker, request_for(*FIVE, span=WEEK))
    assert sandbox.requests.count(BARS) == 3 + 1
    for symbol in FIVE:
        assert_same(found.bars(symbol), truth(sandbox, symbol, WEEK))


def test_a_walk_cut_by_its_deadline_keeps_what_its_pages_prove(
    sandbox: Sandbox, broker: AlpacaBroker
) -> None:
    sandbox.faults.add("stall", match=BARS, nth=3, times=None)
    found, _ = walked_until_error(
        broker, request_for(*FIVE, span=WEEK), BrokerTimeoutError, seconds=3
    )
    assert len(found.pages) == 2
    assert_proven_is_delivered(sandbox, found)


# ------------------------------------------------------------------------------------ 2: tokens


@pytest.mark.parametrize("kind", ["empty_token", "same_token"])
def test_fault_02_a_token_that_leads_nowhere(
    sandbox: Sandbox, broker: AlpacaBroker, kind: Any
) -> None:
    sandbox.faults.add(kind, match=BARS, nth=2, times=None)
    found, error = walked_until_error(broker, request_for(*FIVE, span=WEEK), BrokerResponseError)
    assert not error.transient
    assert sandbox.requests.count(BARS) <= 3
    timestamps = [found.bars(s).timestamp for s in FIVE]
    assert all(len(set(t.tolist())) == len(t) for t in timestamps)
    assert_proven_is_delivered(sandbox, found)


# ------------------------------------------------------------------------------------- 3: stall


def test_fault_03_a_server_that_never_answers(sandbox: Sandbox, broker: AlpacaBroker) -> None:
    sandbox.faults.add("stall", match="symbols=AAPL", times=None)
    begun = time.monotonic()
    outcome: list[BaseException] = []

    def stalled() -> None:
        try:
            walked(broker, request_for("AAPL", span=HOUR), seconds=1.0)
        except BrokerError as error:
            outcome.append(error)

    thread = threading.Thread(target=stalled)
    thread.start()
    assert_same(walked(broker, request_for("MSFT", span=HOUR)).bars("MSFT"),
                truth(sandbox, "MSFT", HOUR))  # fmt: skip
    thread.join(10)
    assert isinstance(outcome[0], BrokerTimeoutError)
    assert outcome[0].transient
    assert 1.0 <= time.monotonic() - begun < 1.5
    # One caller's short deadline does not make the broker count as down.
    assert broker.health()["breaker"] == "closed"


def test_fault_03_the_read_timeout_ends_a_stall_and_is_tried_again(sandbox: Sandbox) -> None:
    broker = broker_on(sandbox, timeouts=(1.0, 0.3))
    sandbox.faults.add("stall", match=BARS)
    found = walked(broker, request_for("AAPL", span=HOUR))
    assert_same(found.bars("AAPL"), truth(sandbox, "AAPL", HOUR))
    assert sandbox.requests.count(BARS) == 2


def test_fault_03_a_dripping_body_ends_at_the_deadline(
    sandbox: Sandbox, broker: AlpacaBroker
) -> None:
    sandbox.faults.add("drip", match=BARS, times=None, seconds=0.02)
    begun = time.monotonic()
    walked_until_error(broker, request_for("AAPL", span=HOUR), BrokerTimeoutError, seconds=0.7)
    assert time.monotonic() - begun < 1.2


# --------------------------------------------------------------------------------------- 4: 429


def test_fault_04_429_under_50_callers(sandbox: Sandbox, broker: AlpacaBroker) -> None:
    """Nobody sends between the first refusal's answer and the reset; then all finish."""
    refusal = sandbox.faults.add("rate_limit", match=BARS, seconds=2.0)
    with pytest.raises(RateLimitError) as caught:
        walked(broker, request_for("AAPL", span=HOUR), seconds=0.5)
    assert 1.0 < float(caught.value.facts["retry_after"]) <= 4.0  # type: ignore[arg-type]
    before = sandbox.requests.count(BARS)
    failures: list[BaseException] = []

    def one(symbol: str) -> None:
        try:
            walked(broker, request_for(symbol, span=HOUR))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(f"S{n:04d}",)) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    later = sandbox.requests.matching(BARS)[before:]
    assert len(later) == 50
    assert all(r.status == 200 for r in later)
    assert min(r.time for r in later) >= refusal.blocked_until


def test_fault_04_many_in_flight_are_refused_together_and_all_finish(
    sandbox: Sandbox, broker: AlpacaBroker
) -> None:
    sandbox.faults.add("rate_limit", match=BARS, seconds=1.0)
    done: list[int] = []

    def one(symbol: str) -> None:
        done.append(len(walked(broker, request_for(symbol, span=HOUR)).pages))

    threads = [threading.Thread(target=one, args=(f"S{n:04d}",)) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert done == [1] * 50


# ----------------------------------------------------------------------------- 5: broken bodies


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("cut", BrokerResponseError),
        ("html", BrokerUnavailableError),
        ("bars_null", BrokerResponseError),
        ("gzip", BrokerResponseError),
        ("json", BrokerResponseError),
        ("reset", BrokerUnavailableError),
    ],
)
def test_fault_05_a_broken_answer_is_a_typed_transient_error(
    sandbox: Sandbox, broker: AlpacaBroker, kind: Any, error: type[BrokerError]
) -> None:
    sandbox.faults.add(kind, match=BARS, times=None)
    found, raised = walked_until_error(broker, request_for("AAPL", span=HOUR), error)
    assert raised.transient
    assert found.pages == []
    sandbox.faults.clear()
    broker = broker_on(sandbox)
    assert_same(walked(broker, request_for("AAPL", span=HOUR)).bars("AAPL"),
                truth(sandbox, "AAPL", HOUR))  # fmt: skip


@pytest.mark.parametrize("kind", ["cut", "html", "gzip", "json", "reset"])
def test_fault_05_once_is_repaired_by_the_retry(
    sandbox: Sandbox, broker: AlpacaBroker, kind: Any
) -> None:
    sandbox.faults.add(kind, match=BARS)
    found = walked(broker, request_for("AAPL", span=HOUR))
    assert_same(found.bars("AAPL"), truth(sandbox, "AAPL", HOUR))
    assert sandbox.requests.count(BARS) == 2


# --------------------------------------------------------------------------------------- 6: 403


def test_fault_06_recent_sip_is_refused_once_and_never_replaced() -> None:
    now = datetime(2024, 3, 13, 15, 0, tzinfo=UTC)
    with sandbox_at(now, entitled_sip=False) as sandbox:
        broker = broker_on(sandbox)
        with pytest.raises(DataUnavailableError) as caught:
            walked(broker, request_for("AAPL", span=between(now - timedelta(hours=1), now)))
        assert not caught.value.transient
        assert caught.value.facts["settle_delay"] == 960.0
        assert caught.value.facts["attempts"] == 1
        assert [r.params["feed"] for r in sandbox.requests] == ["sip"]


# ---------------------------------------------------------------------------------- 7, 8: dirt


def gated(sandbox: Sandbox, bars: Bars) -> Any:
    calendar = calendar_for("XNYS", sandbox.clock.now_us())
    return gate(bars, span=HOUR, timeframe=Timeframe.MIN_1, calendar=calendar,
                now_us=sandbox.clock.now_us())  # fmt: skip


def test_fault_07_dirty_rows_go_and_the_good_ones_beside_them_stay(
    sandbox: Sandbox, broker: AlpacaBroker
) -> None:
    dirt = ("nan", "null", "infinite", "negative_volume", "zero_price", "high_below_low",
            "off_grid", "out_of_window", "missing_keys", "duplicate", "unsorted",
            "wrong_symbol")  # fmt: skip
    sandbox.faults.add("bad_rows", match=BARS, rows=dirt)
    found = walked(broker, request_for("AAPL", span=HOUR))
    assert found.rejected == {"wrong_symbol": 1, "out_of_window": 1}
    assert found.proven("AAPL") == [HOUR]
    report = gated(sandbox, found.bars("AAPL"))
    assert report.rejected == {
        "off_grid": 1, "price": 4, "range": 1, "volume": 1, "duplicate": 1,
    }  # fmt: skip
    expected = truth(sandbox, "AAPL", HOUR)
    kept = [0, *range(9, len(expected))]  # rows 1 to 8 were spoilt
    assert report.bars.timestamp.tolist() == expected.timestamp[kept].tolist()
    missing_keys = report.bars.values[:, 1]
    assert (missing_keys[:VWAP] == expected.values[:VWAP, 9]).all()
    assert (missing_keys[[VWAP, TRADE_COUNT]] != missing_keys[[VWAP, TRADE_COUNT]]).all()


def test_fault_08_an_open_above_the_high_is_kept_and_flagged(
    sandbox: Sandbox, broker: AlpacaBroker
) -> None:
    sandbox.faults.add("bad_rows", match=BARS, rows=("open_above_high",))
    report = gated(sandbox, walked(broker, request_for("AAPL", span=HOUR)).bars("AAPL"))
    assert report.rejected == {}
    assert report.flagged >= 1
    assert report.bars.values[OPEN, 1] > report.bars.values[HIGH, 1]


def test_invariant_09_a_forming_bar_does_not_pass_the_gates() -> None:
    now = datetime(2024, 3, 8, 15, 10, 30, tzinfo=UTC)
    with sandbox_at(now) as sandbox:
        sandbox.faults.add("forming", match=BARS)
        found = walked(broker_on(sandbox), request_for("AAPL", span=HOUR)).bars("AAPL")
        report = gated(sandbox, found)
        assert report.rejected == {"forming": 1}
        assert_same(report.bars, truth(sandbox, "AAPL", HOUR).within(
            between(datetime(2024, 3, 8, 15, tzinfo=UTC), now - timedelta(minutes=1))
        ))  # fmt: skip


# ------------------------------------------------------------------------------ a broker down


def test_a_broker_that_is_down_fails_fast_and_recovers(
    sandbox: Sandbox, broker: AlpacaBroker
) -> None:
    sandbox.faults.add("status", match=BARS, status=503, times=None)
    for _ in range(2):
        walked_until_error(broker, request_for("AAPL", span=HOUR), BrokerUnavailableError)
    assert broker.health()["breaker"] == "open"
    sent = sandbox.requests.count(BARS)
    begun = time.monotonic()
    _, error = walked_until_error(broker, request_for("AAPL", span=HOUR), BrokerUnavailableError)
    assert time.monotonic() - begun < 0.1
    assert error.facts["retry_after"] > 0
    assert sandbox.requests.count(BARS) == sent
    sandbox.faults.clear()
    broker._data.caller.breaker._open_seconds = 0.0
    assert_same(walked(broker, request_for("AAPL", span=HOUR)).bars("AAPL"),
                truth(sandbox, "AAPL", HOUR))  # fmt: skip
    assert broker.health()["breaker"] == "closed"
