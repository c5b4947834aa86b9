"""The contract of the `Broker` port, run against every broker.

To add a broker: a function that opens one on a sandbox, and its name in `BROKERS`. Prices are
compared with what the sandbox's market holds; whatever a broker does not carry (vwap, trade
count) is left out of the comparison.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pytest

from marketdata.brokers.yahoo import YahooBroker
from marketdata.calendars import calendar_for
from marketdata.clock import Deadline
from marketdata.corporate_actions import ActionKind, splits_of
from marketdata.errors import (
    BrokerError,
    BrokerTimeoutError,
    DataUnavailableError,
    MarketDataError,
    RateLimitError,
)
from marketdata.protocols import BarsRequest, Broker, Priority, RateBudget
from marketdata.quality import gate
from marketdata.sandbox import Sandbox
from marketdata.spans import Span
from marketdata.types import CLOSE, OPEN, Bars, Split, Timeframe
from tests.alpaca_on_sandbox import Walked, between, broker_on, sandbox_at, truth, walked

OpenBroker = Callable[[Sandbox, RateBudget | None], Broker]


def _alpaca(sandbox: Sandbox, budget: RateBudget | None) -> Broker:
    return broker_on(sandbox, budget=budget)


def _yahoo(sandbox: Sandbox, budget: RateBudget | None) -> Broker:
    return YahooBroker(clock=sandbox.clock, base_url=sandbox.url, budget=budget)


BROKERS: dict[str, OpenBroker] = {
    "alpaca": _alpaca,
    "yahoo": _yahoo,
}

SESSION = between(datetime(2024, 3, 12, 13, 30, tzinfo=UTC), datetime(2024, 3, 12, 20, tzinfo=UTC))
DAYS = between(datetime(2024, 2, 26, 5, tzinfo=UTC), datetime(2024, 3, 12, 20, tzinfo=UTC))
NIGHT = between(datetime(2024, 3, 10, 12, tzinfo=UTC), datetime(2024, 3, 10, 20, tzinfo=UTC))
YEARS = between(datetime(2020, 1, 2, 5, tzinfo=UTC), datetime(2023, 1, 3, 5, tzinfo=UTC))


@dataclass(frozen=True)
class Subject:
    sandbox: Sandbox
    broker: Broker
    open: OpenBroker

    def request(self, *symbols: str, span: Span, timeframe: str = "1min") -> BarsRequest:
        return BarsRequest(symbols, Timeframe(timeframe), span, self.broker.default_feed)


@pytest.fixture(scope="module")
def running() -> Iterator[Sandbox]:
    with sandbox_at() as server:
        yield server


@pytest.fixture(params=BROKERS)
def subject(request: pytest.FixtureRequest, running: Sandbox) -> Iterator[Subject]:
    running.faults.clear()
    running.requests.clear()
    open_broker = BROKERS[request.param]
    yield Subject(running, open_broker(running, None), open_broker)
    running.faults.clear()


def assert_same_prices(found: Bars, expected: Bars) -> None:
    assert found.timestamp.tolist() == expected.timestamp.tolist()
    prices = slice(OPEN, CLOSE + 1)
    np.testing.assert_allclose(found.values[prices], expected.values[prices], rtol=1e-6)


def gated(subject: Subject, found: Walked, symbol: str, request: BarsRequest) -> Bars:
    now_us = subject.sandbox.clock.now_us()
    report = gate(
        found.bars(symbol),
        span=request.span,
        timeframe=request.timeframe,
        calendar=calendar_for("XNYS", now_us),
        now_us=now_us,
    )
    assert report.rejected == {}
    return report.bars


# --------------------------------------------------------------------------------- capabilities


def test_capabilities_answer_every_question_of_planning(subject: Subject) -> None:
    feed = subject.broker.default_feed
    found = subject.broker.capabilities(feed)
    assert feed in found.feeds
    assert subject.broker.provider
    bases = {way.base for ways in found.bases.values() for way in ways}
    assert all(found.bases[timeframe] for timeframe in (Timeframe.MIN_1, Timeframe.DAY_1))
    assert bases <= set(found.max_span)
    assert found.settle_delay > 0
    assert found.daily_settle_delay > 0
    assert found.batch_symbols > 0
    assert found.page_rows > 0
    assert found.earliest < SESSION.start
    assert subject.sandbox.requests.count() == 0


# ----------------------------------------------------------------------------------------- bars


def test_a_whole_walk_gives_the_markets_minutes_and_proves_the_span(subject: Subject) -> None:
    request = subject.request("MSFT", "AAPL", span=SESSION)
    found = walked(subject.broker, request)
    for symbol in request.symbols:
        bars = gated(subject, found, symbol, request)
        assert_same_prices(bars, truth(subject.sandbox, symbol, SESSION))
        assert found.proven(symbol) == [SESSION]
    assert found.refused == {}
    for page in found.pages:
        for symbol, bars in page.bars.items():
            proven = page.proven[symbol]
            assert ((bars.timestamp >= proven.start) & (bars.timestamp < proven.end)).all()


def test_daily_bars_are_labelled_by_exchange_midnight_across_dst(subject: Subject) -> None:
    request = subject.request("AAPL", span=DAYS, timeframe="1day")
    found = walked(subject.broker, request)
    bars = gated(subject, found, "AAPL", request)
    assert_same_prices(bars, truth(subject.sandbox, "AAPL", DAYS, daily=True))
    assert found.proven("AAPL") == [DAYS]
    midnights = calendar_for("XNYS", subject.sandbox.clock.now_us()).midnight
    assert np.isin(bars.timestamp, midnights).all()


def test_prices_before_a_split_are_raw(subject: Subject) -> None:
    span = between(datetime(2020, 8, 24, 4, tzinfo=UTC), datetime(2020, 9, 5, 4, tzinfo=UTC))
    request = subject.request("AAPL", span=span, timeframe="1day")
    bars = gated(subject, walked(subject.broker, request), "AAPL", request)
    assert_same_prices(bars, truth(subject.sandbox, "AAPL", span, daily=True))
    assert bars.values[CLOSE].max() > 2.5 * bars.values[CLOSE].min()


def test_a_closed_market_is_proven_quiet(subject: Subject) -> None:
    found = walked(subject.broker, subject.request("AAPL", span=NIGHT))
    assert len(found.bars("AAPL")) == 0
    assert found.proven("AAPL") == [NIGHT]


def test_no_bar_lies_outside_the_span(subject: Subject) -> None:
    span = Span(SESSION.start + 60_000_000, SESSION.start + 240_000_000)
    bars = walked(subject.broker, subject.request("AAPL", span=span)).bars("AAPL")
    assert bars.timestamp.min() == span.start
    assert bars.timestamp.max() < span.end


def test_a_walk_may_be_left(subject: Subject) -> None:
    pages = subject.broker.pages(subject.request("AAPL", "MSFT", span=SESSION), Deadline(30))
    next(pages)
    del pages
    found = walked(subject.broker, subject.request("AAPL", span=SESSION))
    assert found.proven("AAPL") == [SESSION]


def test_many_threads_may_walk_at_once(subject: Subject) -> None:
    outcomes: list[object] = []

    def one(symbol: str) -> None:
        try:
            found = walked(subject.broker, subject.request(symbol, span=SESSION), seconds=60)
            assert_same_prices(found.bars(symbol), truth(subject.sandbox, symbol, SESSION))
            outcomes.append(None)
        except BaseException as error:
            outcomes.append(error)

    symbols = ("AAPL", "MSFT", "KO", "TSLA", "AMZN", "NVDA")
    threads = [threading.Thread(target=one, args=(s,)) for s in symbols]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert outcomes == [None] * len(symbols)


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 500, 503])
def test_invariant_08_no_status_is_ever_an_empty_answer(subject: Subject, status: int) -> None:
    subject.sandbox.faults.add("status", status=status, times=None)
    found = Walked()
    with pytest.raises((BrokerError, DataUnavailableError)):
        found.follow(subject.broker.pages(subject.request("AAPL", span=SESSION), Deadline(10)))
    assert found.pages == [] or found.proven("AAPL") == []


@pytest.mark.parametrize("kind", ["cut", "html", "json", "reset"])
def test_a_broken_answer_is_a_transient_error(subject: Subject, kind: str) -> None:
    subject.sandbox.faults.add(kind, times=None)  # type: ignore[arg-type]
    with pytest.raises(BrokerError) as caught:
        walked(subject.broker, subject.request("AAPL", span=SESSION), seconds=10)
    assert caught.value.transient


@pytest.mark.parametrize("kind", ["cut", "json", "reset"])
def test_one_broken_answer_is_repaired(subject: Subject, kind: str) -> None:
    subject.sandbox.faults.add(kind)  # type: ignore[arg-type]
    found = walked(subject.broker, subject.request("AAPL", span=SESSION))
    assert_same_prices(found.bars("AAPL"), truth(subject.sandbox, "AAPL", SESSION))


def test_invariant_20_a_mute_server_is_left_at_the_deadline(subject: Subject) -> None:
    subject.sandbox.faults.add("stall", times=None)
    begun = time.monotonic()
    with pytest.raises(BrokerTimeoutError):
        walked(subject.broker, subject.request("AAPL", span=SESSION), seconds=1.0)
    assert time.monotonic() - begun < 2.0


# --------------------------------------------------------------------------------------- budget


class Spent:
    """A budget with `left` requests, and none after."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.credentials: set[str] = set()

    def take(
        self, credential: str, limit_per_minute: int, priority: Priority = Priority.READ
    ) -> float:
        assert limit_per_minute > 0
        self.credentials.add(credential)
        self.left -= 1
        return 0.0 if self.left >= 0 else 30.0

    def told(self, credential: str, limit_per_minute: int, left: int | None) -> None:
        """It knows its limit."""

    def pause(self, credential: str, seconds: float) -> None:
        self.credentials.add(credential)


def test_invariant_21_nothing_is_sent_that_the_budget_does_not_grant(subject: Subject) -> None:
    broker = subject.open(subject.sandbox, Spent(0))
    with pytest.raises(RateLimitError) as caught:
        walked(broker, subject.request("AAPL", span=SESSION), seconds=5)
    assert caught.value.facts["retry_after"] == 30.0
    assert subject.sandbox.requests.count() == 0


def test_invariant_21_every_request_is_taken_from_the_budget(subject: Subject) -> None:
    budget = Spent(1000)
    broker = subject.open(subject.sandbox, budget)
    walked(broker, subject.request("AAPL", "MSFT", span=SESSION))
    broker.actions(["AAPL"], YEARS, Deadline(30))
    assert 1000 - budget.left == subject.sandbox.requests.count() > 0


# -------------------------------------------------------------------- splits, assets, latest


def test_splits_by_ex_date_for_every_symbol_asked(subject: Subject) -> None:
    actions = subject.broker.actions(["AAPL", "MSFT", "TSLA"], YEARS, Deadline(30))
    found = {symbol: splits_of(listed) for symbol, listed in actions.items()}
    ex_date = calendar_for("XNYS", YEARS.end).midnight_of(datetime(2020, 8, 31, tzinfo=UTC).date())
    assert found["AAPL"] == [Split(ex_date, 4.0, 1.0)]
    assert found["MSFT"] == []
    assert [s.ratio for s in found["TSLA"]] == [5.0, 3.0]


def test_dividends_are_on_the_share_basis_of_their_own_day(subject: Subject) -> None:
    """AAPL's and TSLA's splits of August 2020 and 2022 lie between dividends of AAPL and KO."""
    found = subject.broker.actions(["AAPL", "KO", "AMZN"], YEARS, Deadline(30))
    market = subject.sandbox.source
    calendar = calendar_for("XNYS", YEARS.end)
    for symbol in ("AAPL", "KO"):
        paid = {a.ex_date: a.cash for a in found[symbol] if a.kind is ActionKind.CASH_DIVIDEND}
        expected = {
            moment: a.amount
            for a in market.actions(symbol)
            if a.amount and YEARS.start <= (moment := calendar.midnight_of(a.ex_date)) < YEARS.end
        }
        assert paid == pytest.approx(expected, abs=2e-5), symbol
        assert len(paid) == 12
    assert not any(a.kind is ActionKind.CASH_DIVIDEND for a in found["AMZN"])
    for listed in found.values():
        assert [a.ex_date for a in listed] == sorted(a.ex_date for a in listed)


def test_an_error_is_never_an_answer_without_actions(subject: Subject) -> None:
    subject.sandbox.faults.add("status", status=500, times=None)
    with pytest.raises(BrokerError):
        subject.open(subject.sandbox, None).actions(["AAPL"], YEARS, Deadline(4))


def test_a_verdict_is_definite_or_none_and_never_an_error(subject: Subject) -> None:
    assert subject.broker.verdict("AAPL", Deadline(10)).known is True
    subject.sandbox.faults.add("status", status=500, times=None)
    assert subject.broker.verdict("MSFT", Deadline(5)).known is None
    assert subject.broker.verdict("NVDA", Deadline(0)).known is None


def test_symbols_are_a_list_of_names(subject: Subject) -> None:
    names = subject.broker.symbols(Deadline(10))
    assert all(isinstance(name, str) for name in names)
    assert not names or "AAPL" in names


def test_latest_or_a_typed_error(subject: Subject) -> None:
    feed = subject.broker.default_feed
    if subject.broker.capabilities(feed).latest_feeds:
        newest = subject.broker.latest("trade", ["AAPL", "NOSUCH"], feed, Deadline(10))
        assert list(newest) == ["AAPL"]
        assert isinstance(newest["AAPL"]["timestamp"], int)
        assert newest["AAPL"]["price"] > 0
    else:
        with pytest.raises(DataUnavailableError):
            subject.broker.latest("trade", ["AAPL"], feed, Deadline(10))


def test_an_unknown_feed_is_an_error_that_says_so(subject: Subject) -> None:
    with pytest.raises(MarketDataError):
        subject.broker.latest("bar", ["AAPL"], "no-such-feed", Deadline(10))


def test_health_counts_the_requests_and_asks_nothing(subject: Subject) -> None:
    before = subject.broker.health()["requests_sent"]
    subject.broker.verdict("AAPL", Deadline(10))
    asked = len(subject.sandbox.requests)
    after = subject.broker.health()["requests_sent"]
    assert len(subject.sandbox.requests) == asked
    assert isinstance(before, int)
    assert isinstance(after, int)
    assert after - before >= 1
    assert set(subject.broker.health()) == {
        "breaker", "requests_sent", "requests_per_minute", "requests_left",
    }  # fmt: skip


def test_closing_may_be_repeated_and_is_not_the_end(subject: Subject) -> None:
    subject.broker.close()
    assert subject.broker.verdict("AAPL", Deadline(10)).known is True
    subject.broker.close()
    subject.broker.close()
    assert subject.broker.verdict("MSFT", Deadline(10)).known is True
