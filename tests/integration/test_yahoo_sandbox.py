"""Yahoo and Alpaca asked about one simulated market must agree on its raw prices."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import numpy as np
import pytest

from marketdata.brokers.alpaca import AlpacaBroker
from marketdata.brokers.yahoo import YahooBroker
from marketdata.calendars import calendar_for
from marketdata.clock import Deadline, FixedClock
from marketdata.corporate_actions import ActionKind
from marketdata.protocols import BarsRequest, Broker
from marketdata.quality import gate
from marketdata.resample import resample
from marketdata.sandbox import GeneratedMarket, Sandbox
from marketdata.spans import Span
from marketdata.types import CLOSE, OPEN, VOLUME, Bars, Timeframe
from tests.yahoo_server import NEW_YORK, micros

NOW = datetime(2024, 7, 10, 11, 30, 23, tzinfo=NEW_YORK)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    market = GeneratedMarket(7)
    with Sandbox(market, clock=FixedClock(NOW)) as running:
        yield running


@pytest.fixture
def yahoo(sandbox: Sandbox) -> YahooBroker:
    return YahooBroker(clock=FixedClock(NOW), base_url=sandbox.url, provider="sandbox")


@pytest.fixture
def alpaca(sandbox: Sandbox) -> AlpacaBroker:
    return AlpacaBroker(
        key_id="key", secret_key="secret", data_url=sandbox.url, clock=FixedClock(NOW)
    )


def fetch(broker: Broker, symbol: str, timeframe: Timeframe, start: str, end: str) -> Bars:
    """Return the gated bars of a whole walk."""
    span = Span(micros(start), micros(end))
    request = BarsRequest((symbol,), timeframe, span, broker.default_feed)
    found = []
    for page in broker.pages(request, Deadline(60)):
        report = gate(
            page.bars.get(symbol, Bars.empty()),
            span=span,
            timeframe=timeframe,
            calendar=calendar_for("XNYS", span.end),
            now_us=None,
        )
        assert not report.rejected
        found.append(report.bars)
    return Bars.concat(found)


def assert_same_prices(left: Bars, right: Bars) -> None:
    assert len(left) > 0
    assert left.timestamp.tolist() == right.timestamp.tolist()
    prices = slice(OPEN, CLOSE + 1)
    np.testing.assert_array_equal(left.values[prices], right.values[prices])


@pytest.mark.parametrize(
    ("symbol", "start"),
    [
        ("NVDA", "2021-01-04"),
        ("AAPL", "2019-01-02"),
        ("TSLA", "2020-01-02"),
        ("GE", "2021-01-04"),
        ("MSFT", "2023-01-03"),
    ],
)
def test_raw_days_are_the_same_from_both(
    yahoo: YahooBroker, alpaca: AlpacaBroker, symbol: str, start: str
) -> None:
    """Across splits: Yahoo's answer is adjusted for all of them, Alpaca's is raw."""
    asked = (symbol, Timeframe.DAY_1, f"{start} 00:00", "2024-07-09 16:00")
    ours, theirs = fetch(yahoo, *asked), fetch(alpaca, *asked)
    assert_same_prices(ours, theirs)
    # Whole shares of today: behind GE's 1:8 they are eight shares of then.
    np.testing.assert_allclose(ours.values[VOLUME], theirs.values[VOLUME], rtol=0, atol=8.0)


def test_actions_are_the_same_from_both(yahoo: YahooBroker, alpaca: AlpacaBroker) -> None:
    symbols = ["AAPL", "NVDA", "TSLA", "MSFT"]
    span = Span(micros("2019-01-02 00:00"), micros("2024-07-10 00:00"))
    ours = yahoo.actions(symbols, span, Deadline(20))
    theirs = alpaca.actions(symbols, span, Deadline(20))
    assert {a.kind for actions in ours.values() for a in actions} == {
        ActionKind.SPLIT,
        ActionKind.CASH_DIVIDEND,
    }
    for symbol in symbols:
        mine, others = ours[symbol], theirs[symbol]
        assert [(a.kind, a.ex_date, a.new) for a in mine] == [
            (a.kind, a.ex_date, a.new) for a in others
        ]
        # Yahoo states what was paid on today's share basis, to six decimals.
        paid = [(a.cash or 0.0, b.cash or 0.0) for a, b in zip(mine, others, strict=True)]
        np.testing.assert_allclose(*np.array(paid).T, rtol=0, atol=2e-5)


def test_minutes_are_the_same_from_both_across_several_requests(
    yahoo: YahooBroker, alpaca: AlpacaBroker
) -> None:
    asked = ("AAPL", Timeframe.MIN_1, "2024-06-24 04:00", "2024-07-10 11:29")
    ours, theirs = fetch(yahoo, *asked), fetch(alpaca, *asked)
    assert_same_prices(ours, theirs)
    regular = calendar_for("XNYS", ours.timestamp[-1]).mask(ours.timestamp, "regular")
    np.testing.assert_array_equal(
        ours.values[VOLUME, regular], theirs.values[VOLUME, regular].round()
    )
    assert not ours.values[VOLUME, ~regular].any()


@pytest.mark.parametrize(
    ("symbol", "timeframe", "start", "end"),
    [
        # with a half-day and a holiday
        ("AAPL", Timeframe.MIN_5, "2024-07-01 04:00", "2024-07-05 20:00"),
        ("AAPL", Timeframe.MIN_15, "2024-07-01 04:00", "2024-07-05 20:00"),
        ("AAPL", Timeframe.HOUR_1, "2024-07-01 04:00", "2024-07-05 20:00"),
        # across a 10:1 split
        ("NVDA", Timeframe.MIN_15, "2024-06-05 04:00", "2024-06-12 20:00"),
        ("NVDA", Timeframe.HOUR_1, "2024-06-05 04:00", "2024-06-12 20:00"),
    ],
)
def test_yahoos_coarse_bars_are_those_derived_from_minutes(
    yahoo: YahooBroker,
    alpaca: AlpacaBroker,
    symbol: str,
    timeframe: Timeframe,
    start: str,
    end: str,
) -> None:
    ours = fetch(yahoo, symbol, timeframe, start, end)
    minutes = fetch(alpaca, symbol, Timeframe.MIN_1, start, end)
    calendar = calendar_for("XNYS", minutes.timestamp[-1])
    assert_same_prices(ours, resample(minutes, Timeframe.MIN_1, timeframe, calendar, "extended"))


def test_the_running_market_gives_closed_bars_only(yahoo: YahooBroker, sandbox: Sandbox) -> None:
    bars = fetch(yahoo, "AAPL", Timeframe.MIN_1, "2024-07-10 09:30", "2024-07-10 16:00")
    assert bars.timestamp[-1] == micros("2024-07-10 11:29")
    days = fetch(yahoo, "AAPL", Timeframe.DAY_1, "2024-07-08 00:00", "2024-07-11 00:00")
    assert days.timestamp[-1] == micros("2024-07-09 00:00")
    latest = yahoo.latest("bar", ["AAPL"], "yahoo", Deadline(10))["AAPL"]
    assert latest["timestamp"] == micros("2024-07-10 11:29")
    assert latest["close"] == bars.values[CLOSE, -1]


def test_verdicts_of_the_sandbox(yahoo: YahooBroker) -> None:
    assert yahoo.verdict("AAPL", Deadline(10)).known is True
    assert yahoo.verdict("NOSUCH", Deadline(10)).known is False
