"""The Alpaca broker over HTTP, against the sandbox."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from marketdata.brokers.alpaca import DATA_URL, AlpacaBroker
from marketdata.calendars import calendar_for
from marketdata.clock import Deadline, FixedClock, SystemClock, from_micros
from marketdata.corporate_actions import ActionKind, splits_of
from marketdata.errors import (
    AuthenticationError,
    BrokerResponseError,
    BrokerUnavailableError,
    DataUnavailableError,
)
from marketdata.protocols import BarsRequest
from marketdata.quality import gate
from marketdata.sandbox import FileMarket, GeneratedMarket, Sandbox
from marketdata.spans import Span
from marketdata.types import DAY, MINUTE, VOLUME, Timeframe, canonical_symbol
from tests.alpaca_on_sandbox import (
    KEY,
    NOW,
    SECRET,
    assert_same,
    between,
    broker_on,
    request_for,
    sandbox_at,
    truth,
    walked,
)
from tests.shared_data import SHARED, needs_shared_data

SESSION = between(datetime(2024, 3, 8, 9, tzinfo=UTC), datetime(2024, 3, 9, 1, tzinfo=UTC))
WEEK = between(datetime(2024, 3, 6, 5, tzinfo=UTC), datetime(2024, 3, 13, 4, tzinfo=UTC))
BARS = "/v2/stocks/bars"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with sandbox_at() as server:
        yield server


@pytest.fixture
def broker(sandbox: Sandbox) -> AlpacaBroker:
    sandbox.faults.clear()
    sandbox.requests.clear()
    return broker_on(sandbox)


# ----------------------------------------------------------------------------------------- bars


def test_minutes_arrive_as_they_are(sandbox: Sandbox, broker: AlpacaBroker) -> None:
    found = walked(broker, request_for("AAPL", span=SESSION))
    assert_same(found.bars("AAPL"), truth(sandbox, "AAPL", SESSION))
    assert found.proven("AAPL") == [SESSION]
    assert found.rejected == {}


def test_many_symbols_on_many_pages_arrive_as_they_are(
    sandbox: Sandbox, broker: AlpacaBroker
) -> None:
    symbols = ("TSLA", "AAPL", "MSFT", "BRK.B", "KO")
    found = walked(broker, request_for(*symbols, span=WEEK))
    assert len(found.pages) == sandbox.requests.count(BARS) > 1
    for symbol in symbols:
        assert_same(found.bars(symbol), truth(sandbox, symbol, WEEK))
        assert found.proven(symbol) == [WEEK]


def test_invariant_27_daily_bars_carry_exchange_midnights_across_dst(
    sandbox: Sandbox, broker: AlpacaBroker
) -> None:
    found = walked(broker, request_for("AAPL", span=WEEK, timeframe="1day"))
    bars = found.bars("AAPL")
    assert_same(bars, truth(sandbox, "AAPL", WEEK, daily=True))
    assert [from_micros(int(t)).isoformat() for t in bars.timestamp] == [
        "2024-03-06T05:00:00+00:00",
        "2024-03-07T05:00:00+00:00",
        "2024-03-08T05:00:00+00:00",
        "2024-03-11T04:00:00+00:00",
        "2024-03-12T04:00:00+00:00",
    ]


def test_a_quiet_symbol_is_proven_empty(broker: AlpacaBroker) -> None:
    night = between(datetime(2024, 3, 9, 12, tzinfo=UTC), datetime(2024, 3, 9, 20, tzinfo=UTC))
    found = walked(broker, request_for("AAPL", "NOSUCH", span=night))
    assert found.proven("AAPL") == found.proven("NOSUCH") == [night]
    assert len(found.bars("NOSUCH")) == 0


def test_the_window_is_half_open(sandbox: Sandbox, broker: AlpacaBroker) -> None:
    opening = datetime(2024, 3, 8, 14, 30, tzinfo=UTC)
    span = between(opening, opening + timedelta(minutes=3))
    bars = walked(broker, request_for("AAPL", span=span)).bars("AAPL")
    assert bars.timestamp[0] == span.start
    assert bars.timestamp[-1] == span.end - MINUTE


def test_a_walk_may_be_left_at_any_page(sandbox: Sandbox, broker: AlpacaBroker) -> None:
    pages = broker.pages(request_for("AAPL", "MSFT", "TSLA", span=WEEK), Deadline(30))
    next(pages)
    pages.close()  # type: ignore[attr-defined]
    assert sandbox.requests.count(BARS) == 1


def test_empty_spans_and_no_symbols_ask_nothing(sandbox: Sandbox, broker: AlpacaBroker) -> None:
    assert walked(broker, request_for("AAPL", span=Span(5, 5))).pages == []
    assert walked(broker, request_for(span=SESSION)).pages == []
    assert sandbox.requests.count() == 0


def test_what_is_sent_says_everything(sandbox: Sandbox, broker: AlpacaBroker) -> None:
    walked(broker, request_for("MSFT", "AAPL", span=SESSION, feed="iex"))
    sent = sandbox.requests[-1].params
    assert sent == {
        "symbols": "AAPL,MSFT", "timeframe": "1Min", "start": "2024-03-08T09:00:00Z",
        "end": "2024-03-09T00:59:59Z", "limit": "10000", "adjustment": "raw", "asof": "-",
        "feed": "iex", "sort": "asc",
    }  # fmt: skip


def test_500_symbols_fit_one_request(sandbox: Sandbox, broker: AlpacaBroker) -> None:
    symbols = tuple(f"S{n:04d}" for n in range(500))
    day = between(datetime(2024, 3, 8, 5, tzinfo=UTC), datetime(2024, 3, 9, 5, tzinfo=UTC))
    found = walked(broker, request_for(*symbols, span=day, timeframe="1day"))
    assert sandbox.requests.count(BARS) == 1
    assert all(found.proven(s) == [day] for s in symbols)


# ------------------------------------------------------------------------- one malformed symbol


def test_one_malformed_symbol_does_not_fail_a_batch_of_200(
    sandbox: Sandbox, broker: AlpacaBroker
) -> None:
    symbols = (*(f"S{n:04d}" for n in range(199)), "BAD$SYM")
    day = between(datetime(2024, 3, 8, 5, tzinfo=UTC), datetime(2024, 3, 9, 5, tzinfo=UTC))
    found = walked(broker, request_for(*symbols, span=day, timeframe="1day"))
    assert list(found.refused) == ["BAD$SYM"]
    assert "invalid symbol" in found.refused["BAD$SYM"]
    assert found.proven("BAD$SYM") == []
    assert all(found.proven(s) == [day] for s in symbols[:-1])
    assert sandbox.requests.count(BARS) == 2


def test_a_malformed_symbol_nobody_names_is_found_by_halving(
    sandbox: Sandbox, broker: AlpacaBroker
) -> None:
    sandbox.faults.add("status", match="BAD$SYM", status=400, body='{"message":"bad request"}',
                       times=None)  # fmt: skip
    symbols = (*(f"S{n:04d}" for n in range(99)), "BAD$SYM")
    day = between(datetime(2024, 3, 8, 5, tzinfo=UTC), datetime(2024, 3, 9, 5, tzinfo=UTC))
    found = walked(broker, request_for(*symbols, span=day, timeframe="1day"))
    assert list(found.refused) == ["BAD$SYM"]
    assert all(found.proven(s) == [day] for s in symbols[:-1])
    assert sandbox.requests.count(BARS) <= 2 * 7 + 1


def test_a_request_that_is_wrong_as_a_whole_is_not_blamed_on_symbols(
    sandbox: Sandbox, broker: AlpacaBroker
) -> None:
    sandbox.faults.add("status", status=400, body='{"message":"invalid timeframe: 1Min"}',
                       times=None)  # fmt: skip
    with pytest.raises(BrokerResponseError) as caught:
        walked(broker, request_for("AAPL", "MSFT", span=SESSION))
    assert not caught.value.transient
    assert sandbox.requests.count(BARS) == 1
    sandbox.faults.clear()
    sandbox.faults.add("status", status=400, body='{"message":"no"}', times=None)
    with pytest.raises(BrokerResponseError):
        walked(broker, request_for("AAPL", "MSFT", span=SESSION))


def test_a_single_malformed_symbol_is_refused_not_raised(broker: AlpacaBroker) -> None:
    found = walked(broker, request_for("BAD$SYM", span=SESSION))
    assert list(found.refused) == ["BAD$SYM"]
    assert found.bars("BAD$SYM").timestamp.tolist() == []


# ------------------------------------------------------------------------------ recent SIP data


def test_a_free_key_learns_its_delay_once_and_says_so() -> None:
    now = datetime(2024, 3, 13, 15, 0, tzinfo=UTC)  # in the session
    with sandbox_at(now, entitled_sip=False) as sandbox:
        notices: list[str] = []
        broker = broker_on(sandbox, on_notice=notices.append)
        assert broker.capabilities("sip").settle_delay == 3_000_000
        recent = between(now - timedelta(hours=1), now)
        for _ in range(2):
            with pytest.raises(DataUnavailableError) as caught:
                walked(broker, request_for("AAPL", span=recent))
            assert caught.value.facts["settle_delay"] == 960.0
        assert broker.capabilities("sip").settle_delay == 960_000_000
        assert broker.capabilities("iex").settle_delay == 3_000_000
        assert len(notices) == 1
        assert "16 minutes" in notices[0]
        assert sandbox.requests.count(BARS) == 1, "what is known to be refused is not asked"
        older = between(now - timedelta(hours=1), now - timedelta(minutes=16))
        bars = walked(broker, request_for("AAPL", span=older)).bars("AAPL")
        assert_same(bars, truth(sandbox, "AAPL", older))
        assert {r.params["feed"] for r in sandbox.requests} == {"sip"}


def test_a_free_key_gets_todays_daily_bar_without_a_refusal() -> None:
    now = datetime(2024, 3, 13, 20, 21, tzinfo=UTC)  # 16:21 in New York
    with sandbox_at(now, entitled_sip=False) as sandbox:
        broker = broker_on(sandbox)
        today = between(datetime(2024, 3, 13, 4, tzinfo=UTC), datetime(2024, 3, 14, 4, tzinfo=UTC))
        bars = walked(broker, request_for("AAPL", span=today, timeframe="1day")).bars("AAPL")
        assert_same(bars, truth(sandbox, "AAPL", today, daily=True))
        assert broker.capabilities("sip").settle_delay == 3_000_000


# ---------------------------------------------------------------------- splits, assets, latest


def test_splits_come_with_their_ex_date_midnight(broker: AlpacaBroker) -> None:
    span = between(datetime(2020, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC))
    found = broker.actions(["AAPL", "TSLA", "MSFT"], span, Deadline(30))
    assert {s: [x.ratio for x in splits_of(actions)] for s, actions in found.items()} == {
        "AAPL": [4.0],
        "TSLA": [5.0, 3.0],
        "MSFT": [],
    }
    assert (
        splits_of(found["AAPL"])[0].ex_date
        == between(datetime(2020, 8, 31, 4, tzinfo=UTC), datetime(2020, 9, 1, tzinfo=UTC)).start
    )


def test_the_ex_date_decides_not_the_day_of_processing() -> None:
    with sandbox_at() as sandbox:
        assert isinstance(sandbox.source, GeneratedMarket)
        sandbox.source.add_split("AAPL", date(2024, 2, 20), 3, process_date=date(2024, 3, 12),
                                 announced=date(2024, 3, 12))  # fmt: skip
        broker = broker_on(sandbox)
        ex_date = datetime(2024, 2, 20, 5, tzinfo=UTC)
        inside = between(ex_date, ex_date + timedelta(days=1))
        outside = between(ex_date + timedelta(days=1), ex_date + timedelta(days=9))
        found = broker.actions(["AAPL"], inside, Deadline(9))["AAPL"]
        assert [(a.kind, a.new) for a in found] == [(ActionKind.SPLIT, 3.0)]
        assert broker.actions(["AAPL"], outside, Deadline(9))["AAPL"] == []


def test_a_malformed_symbol_does_not_cost_the_others_their_splits(
    sandbox: Sandbox, broker: AlpacaBroker
) -> None:
    sandbox.faults.add("status", match="B@D", status=400, body='{"message":"invalid symbol: B@D"}')
    span = between(datetime(2020, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC))
    found = broker.actions(["B@D", "AAPL"], span, Deadline(30))
    assert found["B@D"] == []
    assert len(splits_of(found["AAPL"])) == 1


def test_splits_may_be_asked_for_all_time(broker: AlpacaBroker) -> None:
    found = broker.actions(["AAPL"], Span(-(2**60), 2**60), Deadline(30))
    assert [s.ratio for s in splits_of(found["AAPL"])] == [7.0, 4.0]


def test_verdicts(sandbox: Sandbox, broker: AlpacaBroker) -> None:
    assert broker.verdict("AAPL", Deadline(9)).known is True
    assert broker.verdict("AAPL", Deadline(9)).name
    assert broker.verdict("BRK.B", Deadline(9)).known is True
    assert broker.verdict("NOSUCH", Deadline(9)).known is False


@pytest.mark.parametrize(
    ("status", "body"),
    [(401, '{"message":"no"}'), (403, '{"message":"asset forbidden"}'), (404, "<html>404</html>"),
     (404, '{"message":"Not Found"}'), (429, "{}"), (500, "{}"), (200, "[]"), (302, "")],
)  # fmt: skip
def test_only_a_definite_answer_is_a_verdict(
    sandbox: Sandbox, broker: AlpacaBroker, status: int, body: str
) -> None:
    sandbox.faults.add("status", match="/v2/assets", status=status, body=body, times=None)
    assert broker.verdict("AAPL", Deadline(1.5)).known is None


def test_no_server_is_no_verdict() -> None:
    broker = AlpacaBroker(key_id=KEY, secret_key=SECRET, data_url="http://127.0.0.1:1",
                          provider="sandbox", clock=SystemClock())  # fmt: skip
    assert broker.verdict("AAPL", Deadline(5)).known is None


def test_symbols_are_listed_once_an_hour(sandbox: Sandbox, broker: AlpacaBroker) -> None:
    names = broker.symbols(Deadline(9))
    assert names == sorted(names)
    assert {"AAPL", "BRK.B"} <= set(names)
    broker.symbols(Deadline(9))
    assert sandbox.requests.count("/v2/assets") == 1


@pytest.mark.parametrize("kind", ["bar", "trade", "quote", "snapshot"])
def test_latest(broker: AlpacaBroker, kind: str) -> None:
    found = broker.latest(kind, ["AAPL", "MSFT", "NOSUCH", "BAD$SYM"], "sip", Deadline(9))
    assert set(found) == {"AAPL", "MSFT"}
    newest = found["AAPL"]["minute_bar"] if kind == "snapshot" else found["AAPL"]
    assert NOW.timestamp() * 1e6 - 3600e6 < newest["timestamp"] < NOW.timestamp() * 1e6


def test_latest_of_a_free_key_says_which_feeds_remain() -> None:
    with sandbox_at(entitled_sip=False) as sandbox:
        broker = broker_on(sandbox)
        with pytest.raises(DataUnavailableError, match="delayed_sip"):
            broker.latest("trade", ["AAPL"], "sip", Deadline(9))
        assert "AAPL" in broker.latest("trade", ["AAPL"], "delayed_sip", Deadline(9))


# --------------------------------------------------------------------------- keys, feeds, limits


def test_invalid_keys_are_an_authentication_error_and_never_shown() -> None:
    with sandbox_at(api_keys=["another"]) as sandbox:
        broker = broker_on(sandbox)
        with pytest.raises(AuthenticationError) as caught:
            walked(broker, request_for("AAPL", span=SESSION))
        assert sandbox.requests.count(BARS) == 1
        shown = [repr(broker), str(caught.value), repr(caught.value.to_record())]
        chain: BaseException | None = caught.value
        while chain is not None:
            shown.append(repr(chain) + repr(vars(chain)))
            chain = chain.__cause__ or chain.__context__
        for text in shown:
            assert SECRET not in text
            assert KEY not in text


def test_connection_errors_do_not_carry_the_request() -> None:
    broker = AlpacaBroker(key_id=KEY, secret_key=SECRET, data_url="http://127.0.0.1:1",
                          provider="sandbox", clock=FixedClock(NOW))  # fmt: skip
    with pytest.raises(BrokerUnavailableError) as caught:
        walked(broker, request_for("AAPL", span=SESSION))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_server_that_echoes_the_keys_does_not_get_them_into_the_error(
    sandbox: Sandbox, broker: AlpacaBroker
) -> None:
    sandbox.faults.add("status", status=400, body=f'{{"message":"bad {KEY} and {SECRET}"}}')
    with pytest.raises(Exception, match=r"\*\*\*") as caught:
        walked(broker, BarsRequest(("AAPL",), Timeframe.DAY_1, WEEK, "sip"))
    assert SECRET not in str(caught.value)


def test_missing_keys_are_said_at_once() -> None:
    with pytest.raises(AuthenticationError):
        AlpacaBroker(key_id="", secret_key="", clock=FixedClock(NOW))


def test_redirects_are_refused(sandbox: Sandbox, broker: AlpacaBroker) -> None:
    sandbox.faults.add("status", status=302, headers={"Location": "http://127.0.0.1:1/"}, body="")
    with pytest.raises(BrokerResponseError, match="redirect") as caught:
        walked(broker, request_for("AAPL", span=SESSION))
    assert not caught.value.transient
    assert sandbox.requests.count() == 1


@pytest.mark.parametrize("feed", ["delayed_sip", "overnight", "nasdaq", ""])
def test_feeds_without_history_are_refused_unasked(
    sandbox: Sandbox, broker: AlpacaBroker, feed: str
) -> None:
    with pytest.raises(DataUnavailableError):
        walked(broker, request_for("AAPL", span=SESSION, feed=feed))
    with pytest.raises(DataUnavailableError):
        broker.capabilities(feed)
    assert sandbox.requests.count() == 0


def test_the_limit_is_learnt_from_the_headers(broker: AlpacaBroker) -> None:
    assert broker.health()["requests_per_minute"] == 200
    walked(broker, request_for("AAPL", span=SESSION))
    assert broker.health()["requests_per_minute"] == 10_000


def test_the_trading_url_follows_a_foreign_data_url() -> None:
    own = AlpacaBroker(key_id=KEY, secret_key=SECRET, clock=FixedClock(NOW))
    assert own._data.url == DATA_URL
    assert own._trading.url == "https://paper-api.alpaca.markets"
    foreign = AlpacaBroker(key_id=KEY, secret_key=SECRET, clock=FixedClock(NOW),
                           data_url="https://example.test/")  # fmt: skip
    assert foreign._trading is foreign._data
    assert foreign._data.url == "https://example.test"


# --------------------------------------------------------------------------- threads and forks


def test_many_threads_walk_at_once(sandbox: Sandbox, broker: AlpacaBroker) -> None:
    symbols = [f"S{n:04d}" for n in range(40)]
    failures: list[BaseException] = []

    def one(symbol: str) -> None:
        try:
            day = Span(SESSION.start, SESSION.end)
            bars = walked(broker, request_for(symbol, span=day)).bars(symbol)
            assert_same(bars, truth(sandbox, symbol, day))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(s,)) for s in symbols]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_a_fork_opens_its_own_connections(sandbox: Sandbox, broker: AlpacaBroker) -> None:
    request = request_for("AAPL", span=SESSION)
    expected = len(walked(broker, request).bars("AAPL"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if len(walked(broker, request).bars("AAPL")) == expected else 1)
    assert len(walked(broker, request).bars("AAPL")) == expected
    assert os.waitpid(child, 0)[1] == 0


# ------------------------------------------------------------------------------------ real data


def test_every_bar_passes_the_gates(sandbox: Sandbox, broker: AlpacaBroker) -> None:
    calendar = calendar_for("XNYS", sandbox.clock.now_us())
    bars = walked(broker, request_for("AAPL", span=WEEK)).bars("AAPL")
    report = gate(bars, span=WEEK, timeframe=Timeframe.MIN_1, calendar=calendar,
                  now_us=WEEK.end + DAY)  # fmt: skip
    assert report.rejected == {}
    assert report.bars is bars


@needs_shared_data
@pytest.mark.parametrize("name", ["minute/us24_2019-02.csv.gz", "daily/us88_2012-2017.csv.gz"])
def test_real_prices_arrive_bar_for_bar(name: str) -> None:
    frame = pd.read_csv(SHARED / name, float_precision="round_trip")
    frame = frame.dropna(subset=["open", "high", "low", "close", "volume"])
    minutes = name.startswith("minute")
    with Sandbox(FileMarket(SHARED / name)) as sandbox:
        broker = broker_on(sandbox)
        span = between(datetime(2012, 1, 2, tzinfo=UTC), datetime(2020, 1, 2, tzinfo=UTC))
        spelt = {canonical_symbol(s): s for s in frame["symbol"].unique()}
        symbols = tuple(sorted(spelt))
        request = request_for(*symbols, span=span, timeframe="1min" if minutes else "1day")
        found = walked(broker, request, seconds=120)
    calendar = calendar_for("XNYS", span.end)
    for symbol in symbols:
        rows = frame[frame["symbol"] == spelt[symbol]]
        report = gate(found.bars(symbol), span=span, timeframe=request.timeframe,
                      calendar=calendar, now_us=None)  # fmt: skip
        expected = pd.DatetimeIndex(rows["timestamp"]).as_unit("us").asi8
        np.testing.assert_array_equal(report.bars.timestamp, expected)
        np.testing.assert_array_equal(
            report.bars.values[: VOLUME + 1],
            rows[["open", "high", "low", "close", "volume"]].to_numpy(np.float64).T,
        )
        assert np.isnan(report.bars.values[VOLUME + 1 :]).all()
        assert found.proven(symbol) == [span]
