"""The sandbox as alpaca-py and plain HTTP see Alpaca."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np
import pytest
import requests

from marketdata.clock import FixedClock, to_micros
from marketdata.sandbox import Action, GeneratedMarket, Sandbox
from marketdata.spans import Span
from marketdata.types import CLOSE, OPEN, Bars

with warnings.catch_warnings():
    # alpaca-py imports the stream client of websockets that is on its way out.
    warnings.simplefilter("ignore", DeprecationWarning)
    from alpaca.common.exceptions import APIError
    from alpaca.data.enums import Adjustment, DataFeed
    from alpaca.data.historical import StockHistoricalDataClient
    from alpaca.data.historical.corporate_actions import CorporateActionsClient
    from alpaca.data.requests import (
        CorporateActionsRequest,
        StockBarsRequest,
        StockLatestBarRequest,
        StockLatestQuoteRequest,
        StockLatestTradeRequest,
        StockSnapshotRequest,
    )
    from alpaca.data.timeframe import TimeFrame, TimeFrameUnit
    from alpaca.trading.client import TradingClient
    from alpaca.trading.requests import GetCalendarRequest

NOW = datetime(2024, 7, 10, 15, 0, 30, tzinfo=UTC)
"""A Wednesday, 11:00:30 in New York."""
KEYS = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "secret"}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(clock=FixedClock(NOW)) as running:
        yield running


@pytest.fixture
def client(sandbox: Sandbox) -> StockHistoricalDataClient:
    return StockHistoricalDataClient("key", "secret", url_override=sandbox.url, raw_data=True)


@pytest.fixture
def trading(sandbox: Sandbox) -> TradingClient:
    return TradingClient("key", "secret", url_override=sandbox.url)


def get(sandbox: Sandbox, path: str, **params: Any) -> requests.Response:
    return requests.get(sandbox.url + path, params=params, headers=KEYS, timeout=20)


def truth(sandbox: Sandbox, symbol: str, start: datetime, end: datetime) -> Bars:
    span = Span(to_micros(start), to_micros(end))
    return Bars.concat(list(sandbox.source.minutes(symbol, span, "sip")))


def opens(rows: list[dict[str, Any]]) -> list[int]:
    return [to_micros(datetime.fromisoformat(r["t"])) for r in rows]


# --------------------------------------------------------------------------------------- bars


def test_alpaca_py_gets_every_bar_of_several_symbols_bit_for_bit(sandbox, client):
    start, end = datetime(2024, 6, 24, tzinfo=UTC), datetime(2024, 7, 9, tzinfo=UTC)
    sandbox.requests.clear()
    bars = client.get_stock_bars(
        StockBarsRequest(
            symbol_or_symbols=["MSFT", "AAPL", "NOPE", "UGA"],
            timeframe=TimeFrame.Minute,
            start=start,
            end=end,
            feed=DataFeed.SIP,
        )
    )
    assert sorted(bars) == ["AAPL", "MSFT", "UGA"]
    for symbol, rows in bars.items():
        expected = truth(sandbox, symbol, start, end)
        assert opens(rows) == expected.timestamp.tolist()
        for row, key in enumerate(("o", "h", "l", "c", "v", "vw", "n")):
            assert [float(r[key]) for r in rows] == expected.values[row].tolist()
    total = sum(map(len, bars.values()))
    assert sandbox.requests.count("/v2/stocks/bars") == -(-total // 10_000) >= 2


def test_alpaca_pys_own_models_parse(sandbox):
    client = StockHistoricalDataClient("key", "secret", url_override=sandbox.url)
    frame = client.get_stock_bars(
        StockBarsRequest(
            symbol_or_symbols="SPY",
            timeframe=TimeFrame.Day,
            start=datetime(2024, 1, 1, tzinfo=UTC),
            end=datetime(2024, 3, 1, tzinfo=UTC),
        )
    ).df
    assert len(frame) == 41
    assert list(frame.columns) == ["open", "high", "low", "close", "volume", "trade_count", "vwap"]


def test_pages_count_all_symbols_and_run_by_symbol_then_time(sandbox):
    params = {
        "symbols": "MSFT,AAPL",
        "timeframe": "1Min",
        "start": "2024-07-09T14:00:00Z",
        "end": "2024-07-09T14:09:00Z",
        "limit": 7,
    }
    seen: list[tuple[str, str]] = []
    sizes = []
    token = None
    while True:
        page = get(sandbox, "/v2/stocks/bars", page_token=token, **params).json()
        rows = [(s, r["t"]) for s, bars in page["bars"].items() for r in bars]
        sizes.append(len(rows))
        seen += rows
        token = page["next_page_token"]
        if token is None:
            break
    # The end is inclusive: ten minutes of each.
    assert sizes == [7, 7, 6]
    assert seen == sorted(seen)
    assert len(set(seen)) == 20


def test_a_full_last_page_has_no_token(sandbox):
    params = {"symbols": "AAPL", "timeframe": "1Min", "start": "2024-07-09T14:00:00Z"}
    page = get(sandbox, "/v2/stocks/bars", end="2024-07-09T14:04:59Z", limit=5, **params).json()
    assert len(page["bars"]["AAPL"]) == 5
    assert page["next_page_token"] is None


def test_default_limit_is_a_thousand(sandbox):
    page = get(
        sandbox, "/v2/stocks/bars", symbols="AAPL", timeframe="1Min", start="2024-07-01"
    ).json()
    assert len(page["bars"]["AAPL"]) == 1000


def test_single_symbol_paths_and_descending_order(sandbox):
    params = {"timeframe": "1Min", "start": "2024-07-09T14:00:00Z", "end": "2024-07-10T14:00:00Z"}
    up = get(sandbox, "/v2/stocks/AAPL/bars", limit=10_000, **params).json()
    assert up["symbol"] == "AAPL"
    down: list[dict[str, Any]] = []
    token = None
    while True:
        page = get(
            sandbox, "/v2/stocks/AAPL/bars", sort="desc", limit=300, page_token=token, **params
        ).json()
        down += page["bars"]
        token = page["next_page_token"]
        if token is None:
            break
    assert down == up["bars"][::-1]


@pytest.mark.parametrize("timeframe", ["5Min", "1Hour", "4Hour", "1Week", "3Month"])
def test_coarser_bars_page_like_one_answer(sandbox, timeframe):
    params = {
        "symbols": "AAPL,KO",
        "timeframe": timeframe,
        "start": "2024-01-03",
        "end": "2024-01-20" if timeframe == "5Min" else "2024-05-01",
    }
    whole = get(sandbox, "/v2/stocks/bars", limit=10_000, **params).json()
    assert whole["next_page_token"] is None
    pages: dict[str, list[dict[str, Any]]] = {}
    token = None
    while True:
        page = get(sandbox, "/v2/stocks/bars", limit=997, page_token=token, **params).json()
        for symbol, rows in page["bars"].items():
            pages.setdefault(symbol, []).extend(rows)
        token = page["next_page_token"]
        if token is None:
            break
    assert pages == whole["bars"]


def test_daily_bars_are_labelled_new_york_midnight(sandbox):
    page = get(
        sandbox,
        "/v2/stocks/bars",
        symbols="AAPL",
        timeframe="1Day",
        start="2024-03-07",
        end="2024-03-11",
    ).json()
    assert [r["t"] for r in page["bars"]["AAPL"]] == [
        "2024-03-07T05:00:00Z",
        "2024-03-08T05:00:00Z",
        "2024-03-11T04:00:00Z",
    ]


def test_nothing_beyond_the_clock(sandbox):
    page = get(
        sandbox, "/v2/stocks/bars", symbols="AAPL", timeframe="1Min", start="2024-07-10T14:50:00Z",
        end="2024-07-20T00:00:00Z",
    ).json()  # fmt: skip
    assert page["bars"]["AAPL"][-1]["t"] == "2024-07-10T14:59:00Z"


def test_split_adjustment(client):
    def closes(adjustment: Adjustment) -> list[float]:
        request = StockBarsRequest(
            symbol_or_symbols="NVDA",
            timeframe=TimeFrame(1, TimeFrameUnit.Day),
            start=datetime(2024, 6, 7, tzinfo=UTC),
            end=datetime(2024, 6, 11, tzinfo=UTC),
            adjustment=adjustment,
        )
        return [r["c"] for r in client.get_stock_bars(request)["NVDA"]]

    raw, split = closes(Adjustment.RAW), closes(Adjustment.SPLIT)
    assert split[1:] == raw[1:]
    assert split[0] == pytest.approx(raw[0] / 10, abs=0.005)
    paid = closes(Adjustment.ALL)
    assert all(p <= s for p, s in zip(paid, split, strict=True))


def test_iex_is_another_feed(sandbox):
    params = {"symbols": "CSCO", "timeframe": "1Day", "start": "2024-07-08", "end": "2024-07-08"}
    sip = get(sandbox, "/v2/stocks/bars", feed="sip", **params).json()["bars"]["CSCO"][0]
    iex = get(sandbox, "/v2/stocks/bars", feed="iex", **params).json()["bars"]["CSCO"][0]
    assert iex["v"] < 0.05 * sip["v"]
    assert get(sandbox, "/v2/stocks/bars", feed="otc", **params).json()["bars"] == {}


# ------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"timeframe": "1Min"}, "symbols is required"),
        ({"symbols": "AAPL"}, "timeframe is required"),
        ({"symbols": "AAPL", "timeframe": "60Min"}, "invalid timeframe: 60Min"),
        ({"symbols": "AAPL,br-k", "timeframe": "1Min"}, "invalid symbol: br-k"),
        ({"symbols": "A';DROP", "timeframe": "1Min"}, "invalid symbol: A';DROP"),
        ({"symbols": "AAPL", "timeframe": "1Min", "limit": "10001"}, "invalid limit"),
        ({"symbols": "AAPL", "timeframe": "1Min", "limit": "0"}, "invalid limit"),
        ({"symbols": "AAPL", "timeframe": "1Min", "feed": "nyse"}, "invalid feed: nyse"),
        ({"symbols": "AAPL", "timeframe": "1Min", "start": "yesterday"}, "RFC3339"),
        ({"symbols": "AAPL", "timeframe": "1Min", "page_token": "nonsense"}, "invalid page_token"),
        ({"symbols": "AAPL", "timeframe": "1Min", "adjustment": "none"}, "invalid adjustment"),
        (
            {"symbols": "AAPL", "timeframe": "1Min", "start": "2024-05-02", "end": "2024-05-01"},
            "end should not be before start",
        ),
    ],
)  # fmt: skip
def test_bad_parameters_are_400_with_a_message(sandbox, params, message):
    response = get(sandbox, "/v2/stocks/bars", **params)
    assert response.status_code == 400
    assert message in response.json()["message"]
    assert "X-RateLimit-Reset" in response.headers


def test_one_malformed_symbol_fails_its_whole_batch(sandbox, client):
    request = StockBarsRequest(
        symbol_or_symbols=[*(f"S{n:05d}" for n in range(199)), "TOOLONGNAME"],
        timeframe=TimeFrame.Day,
        start=NOW - timedelta(days=5),
    )
    with pytest.raises(APIError, match="invalid symbol: TOOLONGNAME") as error:
        client.get_stock_bars(request)
    assert error.value.status_code == 400


def test_no_keys_are_401(sandbox):
    url = sandbox.url + "/v2/stocks/bars?symbols=AAPL&timeframe=1Day"
    assert requests.get(url, timeout=20).status_code == 401
    with Sandbox(clock=FixedClock(NOW), api_keys=["mine"]) as guarded:
        assert get(guarded, "/v2/clock").status_code == 401
        mine = KEYS | {"APCA-API-KEY-ID": "mine"}
        assert requests.get(guarded.url + "/v2/clock", headers=mine, timeout=20).ok


def test_the_free_plan_refuses_recent_sip_data_only():
    bars = "/v2/stocks/bars"
    params = {"symbols": "AAPL", "timeframe": "1Min", "start": "2024-07-10T14:00:00Z"}
    with Sandbox(clock=FixedClock(NOW), entitled_sip=False) as free:
        for end in ("2024-07-10T14:50:00Z", "2024-07-11T00:00:00Z"):
            refused = get(free, bars, end=end, **params)
            assert refused.status_code == 403
            assert refused.json() == {
                "message": "subscription does not permit querying recent SIP data"
            }
        assert get(free, bars, end="2024-07-10T14:45:00Z", **params).ok
        assert get(free, bars, end="2024-07-10T14:50:00Z", feed="iex", **params).ok
        # Without an end the answer stops, silently, fifteen minutes back.
        silent = get(free, bars, **params).json()["bars"]["AAPL"]
        assert silent[-1]["t"] == "2024-07-10T14:45:00Z"
        latest = "/v2/stocks/bars/latest"
        assert get(free, latest, symbols="AAPL", feed="sip").status_code == 403
        delayed = get(free, latest, symbols="AAPL", feed="delayed_sip").json()["bars"]["AAPL"]
        assert delayed["t"] <= "2024-07-10T14:45:00Z"


def test_the_rate_limit_is_counted_per_key_and_announced():
    with Sandbox(clock=FixedClock(NOW), rate_limit=3, rate_window=60) as limited:
        answers = [get(limited, "/v2/clock") for _ in range(5)]
        assert [a.status_code for a in answers] == [200, 200, 200, 429, 429]
        assert [a.headers["X-RateLimit-Remaining"] for a in answers] == ["2", "1", "0", "0", "0"]
        assert answers[0].headers["X-RateLimit-Limit"] == "3"
        said = parsedate_to_datetime(answers[3].headers["Date"])
        assert 0 <= (said - NOW).total_seconds() < 1, "its one clock is the market's"
        assert 58 <= int(answers[3].headers["X-RateLimit-Reset"]) - said.timestamp() <= 61
        other = KEYS | {"APCA-API-KEY-ID": "other"}
        assert requests.get(limited.url + "/v2/clock", headers=other, timeout=20).ok


def test_answers_are_compressed_when_asked(sandbox):
    url = sandbox.url + "/v2/stocks/bars?symbols=AAPL&timeframe=1Min&start=2024-07-01"
    plain = requests.get(url, headers=KEYS | {"Accept-Encoding": "identity"}, timeout=20)
    packed = requests.get(url, headers=KEYS | {"Accept-Encoding": "gzip"}, timeout=20)
    assert packed.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in plain.headers
    assert int(packed.headers["Content-Length"]) < int(plain.headers["Content-Length"]) / 2
    assert packed.json() == plain.json()


# ---------------------------------------------------------------------- latest and snapshots


def test_latest_bar_trade_and_quote(client):
    symbols = ["AAPL", "NOPE"]
    bar = client.get_stock_latest_bar(StockLatestBarRequest(symbol_or_symbols=symbols))
    trade = client.get_stock_latest_trade(StockLatestTradeRequest(symbol_or_symbols=symbols))
    quote = client.get_stock_latest_quote(StockLatestQuoteRequest(symbol_or_symbols=symbols))
    assert list(bar) == list(trade) == list(quote) == ["AAPL"]
    assert bar["AAPL"]["t"] == "2024-07-10T14:59:00Z"
    assert trade["AAPL"]["p"] == bar["AAPL"]["c"]
    assert quote["AAPL"]["bp"] < trade["AAPL"]["p"] < quote["AAPL"]["ap"]


def test_snapshots_have_no_wrapper_and_null_for_the_unknown(sandbox):
    found = get(sandbox, "/v2/stocks/snapshots", symbols="AAPL,NOPE").json()
    assert found["NOPE"] is None
    snapshot = found["AAPL"]
    assert snapshot["dailyBar"]["t"] == "2024-07-10T04:00:00Z"
    assert snapshot["prevDailyBar"]["t"] == "2024-07-09T04:00:00Z"
    assert snapshot["dailyBar"]["c"] == snapshot["minuteBar"]["c"]
    single = get(sandbox, "/v2/stocks/AAPL/snapshot").json()
    assert single == {"symbol": "AAPL"} | snapshot


def test_alpaca_pys_snapshot_model_parses(sandbox):
    client = StockHistoricalDataClient("key", "secret", url_override=sandbox.url)
    found = client.get_stock_snapshot(StockSnapshotRequest(symbol_or_symbols=["AAPL", "S00001"]))
    assert found["AAPL"].latest_trade.price > 0
    assert found["S00001"].previous_daily_bar.volume > 0


# ------------------------------------------------------------------------- trading and actions


def test_assets(sandbox, trading):
    listed = {a.symbol: a for a in trading.get_all_assets()}
    assert {"AAPL", "BRK.B", "SPY"} <= set(listed)
    assert trading.get_asset("S01234").name.endswith("(SIMULATED)")
    with pytest.raises(APIError, match="asset not found for NOPE") as error:
        trading.get_asset("NOPE")
    assert error.value.status_code == 404


def test_calendar_and_clock(trading):
    days = trading.get_calendar(GetCalendarRequest(start=date(2024, 7, 1), end=date(2024, 7, 5)))
    assert [(d.date.day, d.close.hour) for d in days] == [(1, 16), (2, 16), (3, 13), (5, 16)]
    clock = trading.get_clock()
    assert clock.is_open
    assert clock.timestamp == NOW
    assert clock.next_close == datetime(2024, 7, 10, 20, 0, tzinfo=UTC)
    assert clock.next_open == datetime(2024, 7, 11, 13, 30, tzinfo=UTC)


def test_corporate_actions_are_filed_by_process_date(sandbox):
    client = CorporateActionsClient("key", "secret", url_override=sandbox.url, raw_data=True)

    def between(start: date, end: date) -> Any:
        request = CorporateActionsRequest(symbols=["NVDA", "GE", "KO"], start=start, end=end)
        return client.get_corporate_actions(request)

    found = between(date(2021, 1, 1), date(2024, 7, 1))
    assert [(a["symbol"], a["new_rate"]) for a in found["forward_splits"]] == [
        ("NVDA", 4),
        ("NVDA", 10),
    ]
    assert [(a["symbol"], a["old_rate"]) for a in found["reverse_splits"]] == [("GE", 8)]
    dividend = found["cash_dividends"][0]
    assert dividend["process_date"] > dividend["ex_date"]
    only_ex_date = between(*[date.fromisoformat(dividend["ex_date"])] * 2)
    assert not only_ex_date.get("cash_dividends")


def test_corporate_actions_page(sandbox):
    params = {"symbols": "KO,PEP,PG", "start": "2015-01-01", "end": "2024-07-01"}
    whole = get(sandbox, "/v1/corporate-actions", limit=1000, **params).json()
    assert whole["next_page_token"] is None
    seen: list[str] = []
    token = None
    while True:
        page = get(sandbox, "/v1/corporate-actions", limit=50, page_token=token, **params).json()
        seen += [a["id"] for a in page["corporate_actions"]["cash_dividends"]]
        token = page["next_page_token"]
        if token is None:
            break
    assert seen == [a["id"] for a in whole["corporate_actions"]["cash_dividends"]]
    assert len(seen) > 100


def test_actions_to_come_are_not_known_yet():
    before = FixedClock(datetime(2024, 5, 20, 15, tzinfo=UTC))
    params = {
        "symbols": "NVDA",
        "types": "forward_split",
        "start": "2024-06-01",
        "end": "2024-07-01",
    }
    with Sandbox(clock=before) as sandbox:
        assert get(sandbox, "/v1/corporate-actions", **params).json()["corporate_actions"] == {}
        before.advance(days=10)
        found = get(sandbox, "/v1/corporate-actions", **params).json()["corporate_actions"]
        assert json.dumps(found).count("2024-06-10") >= 1


def test_daily_open_is_the_first_regular_trade(sandbox, client):
    daily = client.get_stock_bars(
        StockBarsRequest(
            symbol_or_symbols="AAPL",
            timeframe=TimeFrame.Day,
            start=datetime(2024, 7, 9, 4, tzinfo=UTC),
            end=datetime(2024, 7, 9, 4, tzinfo=UTC),
        )
    )["AAPL"][0]
    regular = truth(
        sandbox,
        "AAPL",
        datetime(2024, 7, 9, 13, 30, tzinfo=UTC),
        datetime(2024, 7, 9, 20, tzinfo=UTC),
    )
    assert (daily["o"], daily["c"]) == (regular.values[OPEN, 0], regular.values[CLOSE, -1])
    assert np.isfinite(daily["vw"])


# ------------------------------------------------------------------------- names and their ends


@pytest.fixture
def renamed() -> Iterator[Sandbox]:
    market = GeneratedMarket()
    market.rename("FB", "META", date(2022, 6, 9))
    market.add_action(Action("DIS", date(2024, 6, 3), 1.5, 1.0, kind="stock_merger",
                             other_symbol="KO"))  # fmt: skip
    with Sandbox(market, clock=FixedClock(NOW)) as running:
        yield running


def closes_of(sandbox: Sandbox, symbol: str, **params: str) -> dict[str, float]:
    found = get(
        sandbox, "/v2/stocks/bars", symbols=symbol, timeframe="1Day", start="2022-06-06",
        end="2022-06-11", **params,
    ).json()  # fmt: skip
    return {bar["t"][:10]: bar["c"] for bar in found["bars"].get(symbol, [])}


def test_asof_maps_a_symbol_to_the_instrument_it_named_that_day(renamed):
    before, after = {"2022-06-06", "2022-06-07", "2022-06-08"}, {"2022-06-09", "2022-06-10"}
    assert closes_of(renamed, "META", asof="-").keys() == after
    assert closes_of(renamed, "FB", asof="-").keys() == before
    whole = closes_of(renamed, "META")
    assert whole.keys() == before | after, "today's mapping, which is the default"
    assert closes_of(renamed, "FB", asof="2022-01-03") == whole
    assert {**closes_of(renamed, "FB", asof="-"), **closes_of(renamed, "META", asof="-")} == whole


def test_names_given_up_are_inactive_assets(renamed):
    for symbol, status in (("FB", "inactive"), ("DIS", "inactive"), ("META", "active")):
        asset = get(renamed, f"/v2/assets/{symbol}").json()
        assert (asset["status"], asset["tradable"]) == (status, status == "active")
    listed = {
        status: {a["symbol"] for a in get(renamed, "/v2/assets", status=status).json()}
        for status in ("active", "inactive")
    }
    assert listed["inactive"] == {"FB", "DIS"}
    every = {a["symbol"] for a in get(renamed, "/v2/assets").json()}
    assert every == listed["active"] | listed["inactive"]


def test_name_changes_and_mergers_are_listed_under_both_names(renamed):
    def listed(symbols: str) -> dict[str, Any]:
        found = get(renamed, "/v1/corporate-actions", symbols=symbols, start="2022-01-01",
                    end="2024-07-10", types="name_change,stock_merger").json()  # fmt: skip
        return found["corporate_actions"]

    for name in ("FB", "META", "FB,META"):
        (change,) = listed(name)["name_changes"]
        assert (change["old_symbol"], change["new_symbol"]) == ("FB", "META")
        assert change["process_date"] == "2022-06-09"
        assert "ex_date" not in change
    for name in ("DIS", "KO"):
        (merger,) = listed(name)["stock_mergers"]
        assert (merger["acquiree_symbol"], merger["acquirer_rate"]) == ("DIS", 1.5)
        assert merger["effective_date"] == "2024-06-03"


def test_yahoo_knows_the_whole_history_under_the_new_name_and_no_old_one(renamed):
    chart = {"interval": "1d", "period1": "1654473600", "period2": "1654905600"}  # June 6 to 11
    found = get(renamed, "/v8/finance/chart/META", **chart).json()["chart"]["result"][0]
    assert len(found["timestamp"]) == 5
    for gone in ("FB", "DIS"):
        assert get(renamed, f"/v8/finance/chart/{gone}", **chart).status_code == 404
