"""Yahoo failing in the ways it does: typed errors, nothing hidden, nothing remembered."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler

import pytest

from marketdata.brokers.resilience import CircuitBreaker, RequestGate
from marketdata.brokers.yahoo import YahooBroker
from marketdata.brokers.yahoo_session import (
    YahooLine,
    _browser_session,
    _ChartStoppedError,
    _CookiePause,
    _Exchange,
)
from marketdata.clock import Deadline, FixedClock
from marketdata.errors import (
    AuthenticationError,
    BrokerResponseError,
    BrokerTimeoutError,
    BrokerUnavailableError,
    MarketDataError,
    RateLimitError,
)
from marketdata.protocols import BarsRequest, Priority
from marketdata.spans import Span
from marketdata.types import Bars, Timeframe
from tests.yahoo_server import NEW_YORK, Answer, Asked, YahooServer, chart, micros

NOW = datetime(2024, 3, 11, 20, 30, tzinfo=NEW_YORK)
SPAN = Span(micros("2024-03-11 04:00"), micros("2024-03-11 20:00"))


class Budget:
    """A rate budget that counts, and refuses what it is told to."""

    def __init__(self, allowed: int = 1000) -> None:
        self.allowed = allowed
        self.taken = 0
        self.pauses: list[float] = []

    def take(
        self, credential: str, limit_per_minute: int, priority: Priority = Priority.READ
    ) -> float:
        if self.taken >= self.allowed:
            return 30.0
        self.taken += 1
        return 0.0

    def told(self, credential: str, limit_per_minute: int, left: int | None) -> None:
        """It knows its limit."""

    def pause(self, credential: str, seconds: float) -> None:
        self.pauses.append(seconds)
        self.allowed = self.taken


def answer(asked: Asked) -> bytes:
    return chart(asked.symbol, asked.interval, [("2024-03-11 09:30", 1, 2, 1, 2, 10)])


@pytest.fixture
def server() -> Iterator[YahooServer]:
    with YahooServer(answer).running() as running:
        yield running


def broker(server: YahooServer, budget: Budget | None = None) -> YahooBroker:
    return YahooBroker(
        clock=FixedClock(NOW),
        base_url=server.url,
        budget=budget,
        timeouts=(1.0, 0.3),
        sleep=lambda seconds: None,
    )


def fetch(source: YahooBroker, seconds: float = 10.0, symbol: str = "AAPL") -> Bars:
    request = BarsRequest((symbol,), Timeframe.MIN_1, SPAN, "yahoo")
    (page,) = source.pages(request, Deadline(seconds))
    assert page.proven == {symbol: SPAN}
    return page.bars[symbol]


def test_fault_09_after_a_500_the_same_closed_range_is_asked_again(server: YahooServer) -> None:
    server.faults = [Answer(b"oops", 500)] * 3
    source = broker(server)
    with pytest.raises(BrokerUnavailableError) as caught:
        fetch(source)
    assert caught.value.transient
    failed = len(server.asked)
    assert len(fetch(source)) == 1
    assert len(server.asked) == failed + 1
    assert len(fetch(source)) == 1
    assert len(server.asked) == failed + 2


def test_a_500_costs_one_request_an_attempt(server: YahooServer) -> None:
    server.faults = [Answer(b"oops", 500)] * 10
    with pytest.raises(BrokerUnavailableError) as caught:
        fetch(broker(server))
    assert len(server.asked) == caught.value.facts["attempts"]
    assert len(server.paths) == len(server.asked) + 2  # one cookie, one crumb


def test_a_passing_500_is_retried(server: YahooServer) -> None:
    server.faults = [Answer(b"oops", 502)]
    assert len(fetch(broker(server))) == 1


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Answer(answer(Asked("AAPL", "1m", 0, 0)), cut=40), BrokerResponseError),
        (Answer(answer(Asked("AAPL", "1m", 0, 0))[:-40]), BrokerResponseError),
        (Answer(b"<html>down</html>", 503), BrokerUnavailableError),
        (Answer(b"<html>Will be right back</html>"), BrokerResponseError),
        (Answer(b"\x1f\x8bnot gzip", headers={"Content-Encoding": "gzip"}), BrokerResponseError),
        (Answer(b'{"chart":null}'), BrokerResponseError),
        (Answer(b""), BrokerResponseError),
    ],
    ids=["cut", "cut inside", "503", "html", "gzip", "null", "nothing"],
)
def test_fault_05_a_damaged_answer_is_a_transient_error(
    server: YahooServer, fault: Answer, kind: type[MarketDataError]
) -> None:
    server.faults = [fault] * 3
    source = broker(server)
    with pytest.raises(kind) as caught:
        fetch(source)
    assert caught.value.transient
    server.faults = []
    assert len(fetch(source)) == 1


def test_fault_03_a_server_that_never_answers_ends_with_the_deadline(server: YahooServer) -> None:
    server.faults = [Answer(b"", stall=30.0)] * 10
    source = broker(server)
    begun = time.monotonic()
    with pytest.raises(BrokerTimeoutError) as caught:
        fetch(source, seconds=0.8)
    assert time.monotonic() - begun < 2.0
    assert caught.value.transient
    server.faults = []
    assert len(fetch(source, symbol="MSFT")) == 1


def test_a_refused_connection_is_typed(server: YahooServer) -> None:
    source = YahooBroker(
        clock=FixedClock(NOW), base_url="http://127.0.0.1:9", sleep=lambda seconds: None
    )
    with pytest.raises(BrokerUnavailableError):
        fetch(source)


def test_fault_04_a_429_pauses_everybody_and_is_not_repeated(server: YahooServer) -> None:
    server.faults = [Answer(b"Too Many Requests", 429, {"Retry-After": "40"})]
    budget = Budget()
    source = broker(server, budget)
    with pytest.raises(RateLimitError) as caught:
        fetch(source)
    assert budget.pauses == [40.0]
    assert len(server.asked) == 1
    retry_after = caught.value.facts["retry_after"]
    assert isinstance(retry_after, float)
    assert 10 < retry_after <= 40
    with pytest.raises(RateLimitError):
        fetch(source)
    assert len(server.asked) == 1


def test_a_429_without_a_time_pauses_a_minute(server: YahooServer) -> None:
    server.faults = [Answer(b"Too Many Requests", 429)]
    budget = Budget()
    with pytest.raises(RateLimitError):
        fetch(broker(server, budget))
    assert budget.pauses == [60.0]


def test_every_request_is_paid_for(server: YahooServer) -> None:
    budget = Budget()
    source = broker(server, budget)
    fetch(source)
    fetch(source)
    assert budget.taken == len(server.paths)
    server.faults = [Answer(b"{}", 401)] * 2
    with pytest.raises(AuthenticationError):
        fetch(source)
    assert budget.taken == len(server.paths)


def test_a_spent_budget_is_said_before_anything_is_sent(server: YahooServer) -> None:
    with pytest.raises(RateLimitError) as caught:
        fetch(broker(server, Budget(allowed=0)))
    assert server.paths == []
    assert caught.value.facts["retry_after"] == 30.0


def test_a_stale_cookie_is_renewed_once(server: YahooServer) -> None:
    source = broker(server)
    fetch(source)
    server.faults = [Answer(b'{"finance":{"error":{"code":"Unauthorized"}}}', 401)]
    before = len(server.paths)
    assert len(fetch(source)) == 1
    assert len(server.paths) - before <= 6
    server.faults = [Answer(b"{}", 401)] * 9
    before = len(server.paths)
    with pytest.raises(AuthenticationError, match="401"):
        fetch(source)
    assert len(server.paths) - before <= 7


def test_a_blocked_cookie_host_costs_one_wait_and_no_data() -> None:
    class NoCookies(YahooServer):
        def handle(self, request: BaseHTTPRequestHandler) -> None:
            if "chart" in request.path:
                super().handle(request)
            else:
                self.paths.append("blocked")
                self.released.wait(30)

    with NoCookies(answer).running() as running:
        source = broker(running)
        assert len(fetch(source)) == 1
        assert len(fetch(source)) == 1
        assert running.paths.count("blocked") == 1


def test_the_breaker_opens_and_spares_a_dead_yahoo(server: YahooServer) -> None:
    server.faults = [Answer(b"oops", 500)] * 50
    source = broker(server)
    for _ in range(3):
        with pytest.raises(BrokerUnavailableError):
            fetch(source)
    assert source.breaker.state == "open"
    sent = len(server.paths)
    with pytest.raises(BrokerUnavailableError):
        fetch(source)
    assert len(server.paths) == sent


# ------------------------------------------------------------- the session for the real Yahoo


@pytest.fixture
def exchange() -> _Exchange:
    return _Exchange(
        RequestGate("yahoo", 60, None), _CookiePause(), timeouts=(0.5, 0.3), deadline=Deadline(5)
    )


def through_browser(exchange: _Exchange, url: str) -> None:
    line = YahooLine(
        RequestGate("yahoo", 60, None), CircuitBreaker("Yahoo"), base_url=None, timeouts=(0.5, 0.3)
    )
    line._exchange = exchange
    with _browser_session(line) as session:
        session.get(f"{url}/v8/finance/chart/AAPL", params={"interval": "1m", **PERIOD}, timeout=30)


PERIOD = {"period1": 1, "period2": 2}


def test_the_browser_session_brings_the_body(server: YahooServer, exchange: _Exchange) -> None:
    through_browser(exchange, server.url)
    assert exchange.body == answer(Asked("AAPL", "1m", 1, 2))
    assert exchange.failure is None


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Answer(b"", stall=30.0), BrokerTimeoutError),
        (Answer(answer(Asked("AAPL", "1m", 0, 0)), cut=40), BrokerResponseError),
        (Answer(b"\x1f\x8bnot gzip", headers={"Content-Encoding": "gzip"}), BrokerResponseError),
        (Answer(b"oops", 500), BrokerUnavailableError),
        (Answer(b"Too Many Requests", 429), RateLimitError),
    ],
    ids=["stalled", "cut", "gzip", "500", "429"],
)
def test_the_browser_session_fails_with_our_errors(
    server: YahooServer, exchange: _Exchange, fault: Answer, kind: type[MarketDataError]
) -> None:
    server.faults = [fault]
    with pytest.raises(_ChartStoppedError):
        through_browser(exchange, server.url)
    assert type(exchange.failure) is kind
    assert exchange.failure.transient


def test_the_browser_session_without_a_server(exchange: _Exchange) -> None:
    with pytest.raises(_ChartStoppedError):
        through_browser(exchange, "http://127.0.0.1:9")
    assert isinstance(exchange.failure, BrokerUnavailableError)
