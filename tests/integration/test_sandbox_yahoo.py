"""The sandbox as yfinance sees Yahoo."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
import yfinance as yf
from requests.adapters import HTTPAdapter
from yfinance.data import YfData
from yfinance.exceptions import YFPricesMissingError, YFRateLimitError

from marketdata.clock import FixedClock, to_micros
from marketdata.sandbox import Sandbox
from marketdata.spans import Span
from marketdata.types import CLOSE, SECOND, VOLUME, Bars

NOW = datetime(2024, 7, 10, 15, 0, 23, tzinfo=UTC)
"""A Wednesday, 11:00:23 in New York."""


class ToSandbox(HTTPAdapter):
    """Send what is meant for Yahoo to the sandbox."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    def send(self, request: Any, *args: Any, **settings: Any) -> Any:
        asked = urlsplit(request.url)
        moved = request.copy()
        moved.url = self._url + asked.path + (f"?{asked.query}" if asked.query else "")
        return super().send(moved, *args, **settings)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(clock=FixedClock(NOW)) as running:
        yield running


@pytest.fixture
def ticker(sandbox: Sandbox, tmp_path: Any) -> Iterator[Any]:
    yf.set_tz_cache_location(str(tmp_path))
    hidden = yf.config.debug.hide_exceptions
    yf.config.debug.hide_exceptions = False
    with requests.Session() as session:
        session.mount("https://", ToSandbox(sandbox.url))
        YfData.cache_get.cache_clear()
        yield lambda symbol: yf.Ticker(symbol, session=session)
    YfData.cache_get.cache_clear()
    yf.config.debug.hide_exceptions = hidden


def truth(sandbox: Sandbox, symbol: str, start: datetime, end: datetime) -> Bars:
    span = Span(to_micros(start), to_micros(end))
    return Bars.concat(list(sandbox.source.minutes(symbol, span, "sip")))


def test_a_closed_session_of_minutes(sandbox, ticker):
    day = {"start": datetime(2024, 7, 9, tzinfo=UTC), "end": datetime(2024, 7, 10, tzinfo=UTC)}
    frame = ticker("AAPL").history(interval="1m", **day, auto_adjust=False)
    expected = truth(
        sandbox,
        "AAPL",
        datetime(2024, 7, 9, 13, 30, tzinfo=UTC),
        datetime(2024, 7, 9, 20, tzinfo=UTC),
    )
    assert len(frame) == 390
    assert str(frame.index.tz) == "America/New_York"
    np.testing.assert_array_equal(frame["Close"], expected.values[CLOSE])
    np.testing.assert_array_equal(frame["Volume"], expected.values[VOLUME].round())


def test_extended_hours_have_no_volume(ticker):
    day = {"start": datetime(2024, 7, 9, 8, tzinfo=UTC), "end": datetime(2024, 7, 10, tzinfo=UTC)}
    frame = ticker("AAPL").history(interval="1m", prepost=True, **day)
    early = frame[frame.index < "2024-07-09 09:30"]
    assert len(early) > 100
    assert (early["Volume"] == 0).all()


def test_the_last_row_is_live_and_off_the_grid(sandbox, ticker):
    frame = ticker("AAPL").history(
        interval="1m", start=datetime(2024, 7, 10, 13, tzinfo=UTC), end=NOW + timedelta(days=1)
    )
    assert frame.index[-1].tz_convert("UTC") == NOW
    assert frame["Volume"].iloc[-1] == 0
    assert frame.index[-2].tz_convert("UTC") == datetime(2024, 7, 10, 14, 59, tzinfo=UTC)
    sandbox.yahoo.live_row = False
    YfData.cache_get.cache_clear()
    again = ticker("AAPL").history(
        interval="1m", start=datetime(2024, 7, 10, 13, tzinfo=UTC), end=NOW + timedelta(days=1)
    )
    assert (again.index.second == 0).all()


def test_quiet_minutes_are_rows_of_nulls(sandbox):
    start = int(datetime(2024, 7, 9, 13, 30, tzinfo=UTC).timestamp())
    params: dict[str, Any] = {"interval": "1m", "period1": start, "period2": start + 390 * 60}
    answer = requests.get(sandbox.url + "/v8/finance/chart/UGA", params=params, timeout=20).json()
    closes = answer["chart"]["result"][0]["indicators"]["quote"][0]["close"]
    assert len(closes) == 390
    assert 100 < closes.count(None) < 380


def test_prices_volume_and_dividends_are_split_adjusted(sandbox, ticker):
    frame = ticker("NVDA").history(start="2024-06-03", end="2024-06-20", auto_adjust=False)
    span = Span(
        to_micros(datetime(2024, 6, 3, tzinfo=UTC)), to_micros(datetime(2024, 6, 20, tzinfo=UTC))
    )
    raw = sandbox.source.days("NVDA", span, "sip")
    before = np.asarray(frame.index < "2024-06-10")
    np.testing.assert_allclose(frame["Close"][before], raw.values[CLOSE][before] / 10, rtol=1e-12)
    np.testing.assert_array_equal(frame["Close"][~before], raw.values[CLOSE][~before])
    np.testing.assert_allclose(frame["Volume"][before], raw.values[VOLUME][before] * 10, rtol=1e-6)
    assert frame["Stock Splits"].loc["2024-06-10"] == 10
    dividend = next(
        a for a in sandbox.source.actions("NVDA") if a.ex_date.isoformat() == "2024-06-06"
    )
    assert frame["Dividends"].loc["2024-06-06"] == pytest.approx(dividend.amount / 10)


def test_adjusted_close_takes_dividends_off(ticker):
    frame = ticker("KO").history(start="2024-05-01", end="2024-07-01", auto_adjust=False)
    (ex,) = frame.index[frame["Dividends"] > 0]
    at = frame.index.get_loc(ex)
    paid, before = frame["Dividends"].iloc[at], frame["Close"].iloc[at - 1]
    ratio = frame["Adj Close"] / frame["Close"]
    assert ratio.iloc[at - 1] == pytest.approx(1 - paid / before)
    assert (ratio.iloc[at:] == 1).all()


def test_a_split_to_come_is_not_in_the_prices(sandbox, ticker):
    sandbox.clock = FixedClock(datetime(2024, 6, 7, 21, tzinfo=UTC))
    frame = ticker("NVDA").history(start="2024-06-06", end="2024-06-20", auto_adjust=False)
    raw = sandbox.source.days(
        "NVDA", Span(to_micros(frame.index[0]), to_micros(frame.index[-1]) + 1), "sip"
    )
    np.testing.assert_array_equal(frame["Close"], raw.values[CLOSE])
    assert (frame["Stock Splits"] == 0).all()


def test_symbols_with_a_class_and_etfs(ticker):
    assert len(ticker("BRK-B").history(start="2024-07-01", end="2024-07-09")) == 5
    assert "Capital Gains" in ticker("SPY").history(start="2024-07-01", end="2024-07-09")


@pytest.mark.parametrize("interval", ["2m", "5m", "15m", "30m", "60m", "90m", "1h"])
def test_intraday_intervals_begin_at_the_opening(ticker, interval):
    day = {"start": datetime(2024, 7, 8, tzinfo=UTC), "end": datetime(2024, 7, 10, tzinfo=UTC)}
    frame = ticker("AAPL").history(interval=interval, **day)
    minutes = int(interval[:-1]) * (60 if interval.endswith("h") else 1)
    assert len(frame) == 2 * -(-390 // minutes)
    assert frame.index[0].strftime("%H:%M") == "09:30"


@pytest.mark.parametrize("interval", ["1wk", "1mo", "3mo"])
def test_coarse_intervals(ticker, interval):
    frame = ticker("AAPL").history(interval=interval, start="2023-01-01", end="2024-01-01")
    assert len(frame) == {"1wk": 52, "1mo": 12, "3mo": 4}[interval]


@pytest.mark.parametrize("period", ["1d", "5d", "1mo", "1y", "ytd", "max"])
def test_ranges(sandbox, period):
    url = sandbox.url + "/v8/finance/chart/AAPL"
    answer = requests.get(url, params={"range": period, "interval": "1d"}, timeout=20).json()
    stamps = answer["chart"]["result"][0]["timestamp"]
    assert stamps[-1] == to_micros(NOW) // SECOND
    expected = {"1d": 1, "5d": 5, "1mo": 21, "1y": 252, "ytd": 131, "max": 8695}
    assert len(stamps) == pytest.approx(expected[period], abs=2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"interval": "1m", "start": "2024-07-01"}, "Only 8 days worth"),
        ({"interval": "1m", "start": "2024-06-03", "end": "2024-06-05"}, "within the last 30 days"),
        (
            {"interval": "15m", "start": "2024-05-01", "end": "2024-05-02"},
            "within the last 60 days",
        ),
        (
            {"interval": "1h", "start": "2022-06-01", "end": "2022-06-02"},
            "within the last 730 days",
        ),
    ],
)
def test_yahoos_limits_on_old_intraday_data(sandbox, ticker, settings, words):
    with pytest.raises(YFPricesMissingError, match=words):
        ticker("AAPL").history(**settings)
    assert sandbox.requests[-1].status == 422


def test_unknown_symbols_are_404(sandbox):
    response = requests.get(sandbox.url + "/v8/finance/chart/NOPE", timeout=20)
    assert response.status_code == 404
    assert response.json()["chart"] == {
        "result": None,
        "error": {"code": "Not Found", "description": "No data found, symbol may be delisted"},
    }


def test_a_weekend_is_an_answer_without_rows(sandbox):
    start = int(datetime(2024, 7, 6, 4, tzinfo=UTC).timestamp())
    params: dict[str, Any] = {"interval": "1m", "period1": start, "period2": start + 86_400}
    answer = requests.get(sandbox.url + "/v8/finance/chart/AAPL", params=params, timeout=20).json()
    result = answer["chart"]["result"][0]
    assert "timestamp" not in result
    assert result["indicators"] == {"quote": [{}]}


def test_too_many_requests(sandbox, ticker):
    sandbox.faults.add("status", status=429, body="Too Many Requests", times=None)
    with pytest.raises(YFRateLimitError):
        ticker("AAPL").history(start="2024-07-01", end="2024-07-09")


def test_the_consent_pages_lead_back_to_the_data(sandbox, ticker):
    # The first refusal makes yfinance walk through crumb and consent, and ask again.
    sandbox.faults.add("status", match="/v8/", status=500)
    assert len(ticker("AAPL").history(start="2024-07-01", end="2024-07-09")) == 5
    assert sandbox.requests.count("/v8/finance/chart") >= 2
