"""The Yahoo broker through the installed yfinance, over HTTP."""

from __future__ import annotations

import json
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest

from marketdata.brokers.yahoo import YahooBroker
from marketdata.clock import Deadline, FixedClock
from marketdata.corporate_actions import ActionKind, CorporateAction, splits_of
from marketdata.errors import BrokerResponseError, DataUnavailableError
from marketdata.protocols import BarsPage, BarsRequest
from marketdata.spans import Span
from marketdata.types import DAY, HOUR, Split, Timeframe
from tests.shared_data import SHARED, needs_shared_data
from tests.yahoo_server import (
    NEW_YORK,
    NOT_FOUND,
    Answer,
    Asked,
    Row,
    YahooServer,
    chart,
    chart_error,
    micros,
    seconds,
)

NOW = datetime(2024, 3, 11, 20, 30, tzinfo=NEW_YORK)


class Yahoo:
    """A small market: daily rows and minute rows by symbol, splits in every answer's span."""

    def __init__(self) -> None:
        self.minutes: dict[str, list[Row]] = {}
        self.days: dict[str, list[Row]] = {}
        self.splits: dict[str, dict[str, tuple[float, float]]] = {}
        self.server = YahooServer(self.answer)
        self.notices: list[str] = []

    def answer(self, asked: Asked) -> Answer | bytes:
        known = self.days if asked.interval == "1d" else self.minutes
        if asked.symbol not in {*self.minutes, *self.days}:
            return NOT_FOUND
        rows = [r for r in known.get(asked.symbol, []) if asked.start <= seconds(r[0]) < asked.end]
        splits = {
            day: ratio
            for day, ratio in self.splits.get(asked.symbol, {}).items()
            if asked.start <= seconds(f"{day} 09:30") < asked.end
        }
        return chart(asked.symbol, asked.interval, rows, splits)

    def broker(self, now: datetime = NOW, **options: object) -> YahooBroker:
        return YahooBroker(
            clock=FixedClock(now),
            base_url=self.server.url,
            on_notice=self.notices.append,
            **options,  # type: ignore[arg-type]
        )


@pytest.fixture
def yahoo() -> Iterator[Yahoo]:
    found = Yahoo()
    with found.server.running():
        yield found


def flat(time: str, price: float, volume: float = 100.0) -> Row:
    return (time, price, price, price, price, volume)


def walk(
    broker: YahooBroker, symbols: str, timeframe: Timeframe, start: str, end: str
) -> list[BarsPage]:
    request = BarsRequest(
        tuple(symbols.split()), timeframe, Span(micros(start), micros(end)), "yahoo"
    )
    return list(broker.pages(request, Deadline(20)))


def test_minutes_with_extended_hours_one_page_a_symbol(yahoo: Yahoo) -> None:
    yahoo.minutes = {
        "BRK-B": [flat("2024-03-11 04:00", 76.5999984741211, 0), flat("2024-03-11 19:59", 77.25)],
        "AAPL": [flat("2024-03-11 09:30", 170.1)],
    }
    broker = yahoo.broker()
    pages = walk(broker, "AAPL BRK.B", Timeframe.MIN_1, "2024-03-11 04:00", "2024-03-11 20:00")
    span = Span(micros("2024-03-11 04:00"), micros("2024-03-11 20:00"))
    assert [dict(p.proven) for p in pages] == [{"AAPL": span}, {"BRK.B": span}]
    bars = pages[1].bars["BRK.B"]
    assert bars.timestamp.tolist() == [micros("2024-03-11 04:00"), micros("2024-03-11 19:59")]
    assert bars.values[:5, 0].tolist() == [76.5999984741211] * 4 + [0.0]
    assert yahoo.server.asked[1] == Asked("BRK-B", "1m", *(t // 10**6 for t in span))


def test_cookie_and_crumb_are_asked_once(yahoo: Yahoo) -> None:
    yahoo.minutes = {"AAPL": [flat("2024-03-11 09:30", 170.1)]}
    broker = yahoo.broker()
    for _ in range(3):
        walk(broker, "AAPL", Timeframe.MIN_1, "2024-03-11 09:30", "2024-03-11 09:31")
    assert sorted(set(yahoo.server.paths)) == ["/", "/v1/test/getcrumb", "/v8/finance/chart/AAPL"]
    assert len(yahoo.server.paths) == 2 + 3


def test_long_spans_are_walked_in_pieces_yahoo_takes(yahoo: Yahoo) -> None:
    yahoo.minutes = {"AAPL": [flat(f"2024-03-{day:02} 10:00", day) for day in (1, 4, 8, 11)]}
    broker = yahoo.broker()
    pages = walk(broker, "AAPL", Timeframe.MIN_1, "2024-02-20 04:00", "2024-03-11 20:00")
    minutes = [a for a in yahoo.server.asked if a.interval == "1m"]
    assert len(minutes) == len(pages) == 3
    assert all(a.end - a.start <= 7 * 86400 for a in minutes)
    joined = [p.proven["AAPL"] for p in pages]
    assert joined[0].start == micros("2024-02-20 04:00")
    assert joined[-1].end == micros("2024-03-11 20:00")
    assert all(a.end == b.start for a, b in pairwise(joined))
    assert [t for p in pages for t in p.bars["AAPL"].values[0]] == [1, 4, 8, 11]


def test_nothing_is_proven_of_the_future(yahoo: Yahoo) -> None:
    yahoo.minutes = {"AAPL": [flat("2024-03-11 20:29", 1.0), flat("2024-03-11 20:30", 2.0)]}
    (page,) = walk(yahoo.broker(), "AAPL", Timeframe.MIN_1, "2024-03-11 04:00", "2024-03-12 04:00")
    assert page.proven["AAPL"].end == micros("2024-03-11 20:30")


def test_days_are_labelled_by_exchange_midnight_across_dst(yahoo: Yahoo) -> None:
    yahoo.days = {"AAPL": [flat("2024-03-08 09:30", 1.0), flat("2024-03-11 16:00:01", 2.0)]}
    (page,) = walk(yahoo.broker(), "AAPL", Timeframe.DAY_1, "2024-03-08 00:00", "2024-03-11 16:00")
    bars = page.bars["AAPL"]
    assert bars.timestamp.tolist() == [micros("2024-03-08 00:00"), micros("2024-03-11 00:00")]
    assert len(yahoo.server.asked) == 1  # the answer reaches today: its own splits are all


def test_a_quiet_span_is_proven_empty(yahoo: Yahoo) -> None:
    yahoo.days = {"AAPL": []}
    (page,) = walk(yahoo.broker(), "AAPL", Timeframe.MIN_1, "2024-03-09 04:00", "2024-03-10 04:00")
    assert len(page.bars["AAPL"]) == 0
    assert page.proven["AAPL"] == Span(micros("2024-03-09 04:00"), micros("2024-03-10 04:00"))


def test_prices_before_a_split_come_back_raw(yahoo: Yahoo) -> None:
    yahoo.days = {"NVDA": [flat("2024-03-01 09:30", 20.6, 4000), flat("2024-03-11 09:30", 21.5)]}
    yahoo.minutes = {"NVDA": [flat("2024-03-01 10:00", 20.58, 40), flat("2024-03-01 10:01", 20.6)]}
    yahoo.splits = {"NVDA": {"2024-03-06": (4, 1)}}
    broker = yahoo.broker()
    (page,) = walk(broker, "NVDA", Timeframe.DAY_1, "2024-03-01 00:00", "2024-03-11 16:00")
    assert page.bars["NVDA"].values[3].tolist() == [82.4, 21.5]
    assert page.bars["NVDA"].values[4].tolist() == [1000.0, 100.0]
    (minutes,) = walk(broker, "NVDA", Timeframe.MIN_1, "2024-03-01 04:00", "2024-03-01 20:00")
    assert minutes.bars["NVDA"].values[3].tolist() == [82.32, 82.4]
    assert minutes.bars["NVDA"].values[4].tolist() == [10.0, 25.0]
    assert len(yahoo.notices) == 1
    assert "4:1 on 2024-03-06" in yahoo.notices[0]


def test_a_split_after_the_window_is_asked_for_separately(yahoo: Yahoo) -> None:
    yahoo.days = {"NVDA": [flat("2024-03-01 09:30", 20.6), flat("2024-03-04 09:30", 21.0)]}
    yahoo.splits = {"NVDA": {"2024-03-06": (4, 1)}}
    broker = yahoo.broker()
    for _ in range(2):
        (page,) = walk(broker, "NVDA", Timeframe.DAY_1, "2024-03-01 00:00", "2024-03-04 16:00")
        assert page.bars["NVDA"].values[3].tolist() == [82.4, 84.0]
    assert len(yahoo.server.asked) == 3  # bars, splits, bars: the splits are remembered
    assert yahoo.server.asked[1].end > seconds("2024-03-11 20:30")


def test_todays_minutes_need_no_splits(yahoo: Yahoo) -> None:
    yahoo.minutes = {"NVDA": [flat("2024-03-11 10:00", 21.5)]}
    yahoo.splits = {"NVDA": {"2024-03-11": (4, 1)}}
    (page,) = walk(yahoo.broker(), "NVDA", Timeframe.MIN_1, "2024-03-11 04:00", "2024-03-11 20:00")
    assert page.bars["NVDA"].values[3].tolist() == [21.5]
    assert len(yahoo.server.asked) == 1


def test_on_the_ex_date_raw_prices_wait_until_yahoo_shows_its_basis(yahoo: Yahoo) -> None:
    """Yahoo may name a split before it adjusts the history; nothing wrong may be stored."""
    yahoo.days = {"NVDA": [flat("2024-03-07 09:30", 84.0), flat("2024-03-08 09:30", 82.4)]}
    yahoo.splits = {"NVDA": {"2024-03-11": (4, 1)}}
    morning = datetime(2024, 3, 11, 8, 0, tzinfo=NEW_YORK)
    with pytest.raises(DataUnavailableError, match="after the open"):
        walk(yahoo.broker(morning), "NVDA", Timeframe.DAY_1, "2024-03-07 00:00", "2024-03-08 16:00")
    noon = yahoo.broker(datetime(2024, 3, 11, 12, 0, tzinfo=NEW_YORK))
    yahoo.days["NVDA"].append(flat("2024-03-11 12:00", 20.9))
    for end in ("2024-03-08 16:00", "2024-03-11 16:00"):
        with pytest.raises(DataUnavailableError, match="not adjusted"):
            walk(noon, "NVDA", Timeframe.DAY_1, "2024-03-07 00:00", end)
    yahoo.days["NVDA"][:2] = [flat("2024-03-07 09:30", 21.0), flat("2024-03-08 09:30", 20.6)]
    (page,) = walk(noon, "NVDA", Timeframe.DAY_1, "2024-03-07 00:00", "2024-03-11 16:00")
    assert page.bars["NVDA"].values[3].tolist() == [84.0, 82.4]


def test_contradicting_answers_about_splits_are_refused(yahoo: Yahoo) -> None:
    yahoo.days = {"NVDA": [flat("2024-03-01 09:30", 20.6), flat("2024-03-07 09:30", 21.0)]}

    def answer(asked: Asked) -> bytes:
        splits = {"2024-03-06": (4, 1)} if asked.interval == "1h" else {}
        rows = yahoo.days["NVDA"] if asked.interval == "1h" else []
        return chart("NVDA", asked.interval, rows, splits)

    yahoo.server.answer = answer
    with pytest.raises(DataUnavailableError, match="contradict"):
        walk(yahoo.broker(), "NVDA", Timeframe.HOUR_1, "2024-03-01 04:00", "2024-03-08 20:00")


def test_a_remembered_list_without_the_newest_split_is_asked_again(yahoo: Yahoo) -> None:
    yahoo.days = {"NVDA": [flat("2024-03-01 09:30", 20.6)]}
    yahoo.minutes = {"NVDA": [flat("2024-03-01 09:30", 20.6), flat("2024-03-07 09:30", 21.0)]}
    broker = yahoo.broker()
    span = Span(micros("2024-03-01 00:00"), micros("2024-03-12 00:00"))
    assert broker.actions(["NVDA"], span, Deadline(5)) == {"NVDA": []}
    yahoo.splits = {"NVDA": {"2024-03-06": (4, 1)}}
    (page,) = walk(broker, "NVDA", Timeframe.MIN_15, "2024-03-01 04:00", "2024-03-08 20:00")
    assert page.bars["NVDA"].values[3].tolist() == [82.4, 21.0]


def test_splits_lie_within_the_span_asked(yahoo: Yahoo) -> None:
    yahoo.days = {"AAPL": [], "NVDA": []}
    yahoo.splits = {"NVDA": {"2024-03-06": (4, 1), "2024-02-01": (1, 10)}}
    found = yahoo.broker().actions(
        ["AAPL", "NVDA", "NOSUCH"],
        Span(micros("2024-01-01 00:00"), micros("2024-03-06 00:00")),
        Deadline(5),
    )
    assert {symbol: splits_of(actions) for symbol, actions in found.items()} == {
        "AAPL": [],
        "NVDA": [Split(micros("2024-02-01 00:00"), 1.0, 10.0)],
        "NOSUCH": [],
    }


def test_an_unknown_symbol_is_refused_and_the_others_are_served(yahoo: Yahoo) -> None:
    yahoo.minutes = {"AAPL": [flat("2024-03-11 09:30", 170.1)]}
    pages = walk(
        yahoo.broker(), "NOSUCH AAPL", Timeframe.MIN_1, "2024-03-11 04:00", "2024-03-11 20:00"
    )
    assert pages[0].refused == {"NOSUCH": "No data found, symbol may be delisted"}
    assert not pages[0].proven
    assert len(pages[1].bars["AAPL"]) == 1


def test_a_denied_span_of_a_known_symbol_is_an_error(yahoo: Yahoo) -> None:
    yahoo.days = {"AAPL": []}
    yahoo.server.faults = [NOT_FOUND]
    with pytest.raises(BrokerResponseError) as caught:
        walk(yahoo.broker(), "AAPL", Timeframe.MIN_1, "2024-03-11 04:00", "2024-03-11 20:00")
    assert caught.value.transient


def test_too_old_is_unavailable_and_before_the_listing_is_empty(yahoo: Yahoo) -> None:
    yahoo.days = {"AAPL": []}
    yahoo.server.faults = [
        chart_error(422, "Unprocessable Entity", "1m data not available for startTime=1"),
        chart_error(400, "Bad Request", "Data doesn't exist for startDate = 1, endDate = 2"),
    ]
    broker = yahoo.broker()
    with pytest.raises(DataUnavailableError, match="30 days"):
        walk(broker, "AAPL", Timeframe.MIN_1, "2024-01-11 04:00", "2024-01-11 20:00")
    (page,) = walk(broker, "AAPL", Timeframe.DAY_1, "1981-01-05 00:00", "1981-01-09 16:00")
    assert len(page.bars["AAPL"]) == 0
    assert page.proven


def test_verdicts(yahoo: Yahoo) -> None:
    yahoo.days = {"AAPL": [flat("2024-03-11 09:30", 170.1)]}
    broker = yahoo.broker()
    assert (
        broker.verdict("AAPL", Deadline(5)).known,
        broker.verdict("AAPL", Deadline(5)).name,
    ) == (
        True,
        "AAPL Inc.",
    )
    assert broker.verdict("NOSUCH", Deadline(5)).known is False
    yahoo.server.answer = lambda asked: Answer(b"not found", 404)
    assert broker.verdict("AAPL", Deadline(5)).known is None
    assert broker.symbols(Deadline(5)) == []


def test_the_latest_bar_is_the_newest_closed_minute(yahoo: Yahoo) -> None:
    yahoo.minutes = {
        "AAPL": [flat("2024-03-11 19:58", 170.0), flat("2024-03-11 19:59", 171.0)],
        "MSFT": [flat("2024-03-08 19:00", 400.0)],
    }
    now = datetime(2024, 3, 11, 19, 59, 30, tzinfo=NEW_YORK)
    found = yahoo.broker(now).latest("bar", ["AAPL", "MSFT", "NOSUCH"], "yahoo", Deadline(5))
    assert set(found) == {"AAPL", "MSFT"}
    assert found["AAPL"]["timestamp"] == micros("2024-03-11 19:58")
    assert found["AAPL"]["close"] == 170.0
    assert found["MSFT"]["timestamp"] == micros("2024-03-08 19:00")


@pytest.mark.parametrize("kind", ["trade", "quote", "snapshot"])
def test_what_yahoo_does_not_have_is_unavailable(yahoo: Yahoo, kind: str) -> None:
    with pytest.raises(DataUnavailableError, match=kind):
        yahoo.broker().latest(kind, ["AAPL"], "yahoo", Deadline(5))
    assert yahoo.server.paths == []


def test_another_feed_is_never_relabelled(yahoo: Yahoo) -> None:
    with pytest.raises(DataUnavailableError, match="sip"):
        yahoo.broker().capabilities("sip")


def test_capabilities_stay_inside_yahoos_limits(yahoo: Yahoo) -> None:
    caps = yahoo.broker().capabilities("yahoo")
    assert set(caps.bases) == set(Timeframe)
    longest = caps.max_span[Timeframe.MIN_1]
    assert longest is not None
    assert longest < 7 * DAY
    for ways in caps.bases.values():
        assert all(way.base in caps.max_span for way in ways)
    assert [w.base for w in caps.bases[Timeframe.HOUR_4]] == [Timeframe.MIN_1, Timeframe.HOUR_1]
    assert caps.bases[Timeframe.MIN_1][0].max_age == 29 * DAY
    assert caps.bases[Timeframe.WEEK_1][0].max_age is None


def test_nothing_reaches_the_user_but_bars(
    yahoo: Yahoo, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    yahoo.days = {"AAPL": [flat("2024-03-08 09:30", 1.0)]}
    yahoo.splits = {"AAPL": {"2024-03-08": (4, 1)}}
    broker = yahoo.broker()
    with warnings.catch_warnings(), caplog.at_level(logging.INFO):
        warnings.simplefilter("error")
        walk(broker, "AAPL", Timeframe.DAY_1, "2024-03-01 00:00", "2024-03-11 16:00")
        walk(broker, "AAPL", Timeframe.MIN_1, "2024-03-09 04:00", "2024-03-10 04:00")
        walk(broker, "NOSUCH", Timeframe.DAY_1, "2024-03-01 00:00", "2024-03-11 16:00")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_threads_share_a_broker(yahoo: Yahoo) -> None:
    symbols = [f"S{i}" for i in range(8)]
    yahoo.minutes = {s: [flat("2024-03-11 09:30", i + 1)] for i, s in enumerate(symbols)}
    broker, got = yahoo.broker(), {}

    def fetch(symbol: str) -> None:
        (page,) = walk(broker, symbol, Timeframe.MIN_1, "2024-03-11 04:00", "2024-03-11 20:00")
        got[symbol] = page.bars[symbol].values[0].tolist()

    threads = [threading.Thread(target=fetch, args=(s,)) for s in symbols]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {s: [i + 1.0] for i, s in enumerate(symbols)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_opens_its_own_line(yahoo: Yahoo) -> None:
    yahoo.minutes = {"AAPL": [flat("2024-03-11 09:30", 170.1)]}
    broker = yahoo.broker()
    line = broker._line
    with line._lock:  # as if another thread were asking while we fork
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                pages = walk(
                    broker, "AAPL", Timeframe.MIN_1, "2024-03-11 04:00", "2024-03-11 20:00"
                )
                os._exit(0 if len(pages[0].bars["AAPL"]) == 1 else 1)
            finally:
                os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# -------------------------------------------------------------------------------- recorded answers


def recorded(yahoo: Yahoo, name: str) -> dict[str, Any]:
    """Serve a recorded answer whatever is asked; return its own columns."""
    body = (SHARED / "yahoo" / name).read_bytes()
    empty = chart("AAPL", "1d", [])
    interval = "1m" if "-1m-" in name else "1d"
    yahoo.server.answer = lambda asked: body if asked.interval == interval else empty
    result = json.loads(body)["chart"]["result"][0]
    quote = result["indicators"]["quote"][0]
    columns = {k: np.array(v, np.float64) for k, v in quote.items()}
    return {"timestamp": np.array(result.get("timestamp", [])), **columns}


@needs_shared_data
def test_a_recorded_session_of_minutes_comes_bit_for_bit(yahoo: Yahoo) -> None:
    sent = recorded(yahoo, "AAPL-1m-2018-05-29.json")
    now = datetime(2018, 5, 29, 20, 30, tzinfo=NEW_YORK)
    (page,) = walk(
        yahoo.broker(now), "AAPL", Timeframe.MIN_1, "2018-05-29 04:00", "2018-05-29 20:00"
    )
    bars = page.bars["AAPL"]
    assert len(bars) == 390
    assert (bars.timestamp == sent["timestamp"] * 10**6).all()
    for row, name in enumerate(("open", "high", "low", "close", "volume")):
        assert (bars.values[row] == sent[name]).all()


@needs_shared_data
def test_a_recorded_weekend_is_quiet(yahoo: Yahoo) -> None:
    recorded(yahoo, "AAPL-1m-empty-weekend.json")
    now = datetime(2025, 2, 20, 8, 0, tzinfo=NEW_YORK)
    (page,) = walk(
        yahoo.broker(now), "AAPL", Timeframe.MIN_1, "2025-02-15 00:00", "2025-02-17 00:00"
    )
    assert len(page.bars["AAPL"]) == 0
    assert page.proven["AAPL"].end == micros("2025-02-17 00:00")


@needs_shared_data
def test_recorded_days_from_a_split_on_come_bit_for_bit(yahoo: Yahoo) -> None:
    sent = recorded(yahoo, "AAPL-1d-split-dividend-2020.json")
    now = datetime(2020, 11, 6, 20, 0, tzinfo=NEW_YORK)
    broker = yahoo.broker(now)
    (page,) = walk(broker, "AAPL", Timeframe.DAY_1, "2020-08-31 00:00", "2020-11-07 00:00")
    bars = page.bars["AAPL"]
    assert len(bars) == 49
    assert bars.timestamp[0] == micros("2020-08-31 00:00")
    assert bars.timestamp[-1] == micros("2020-11-06 00:00")  # the other side of the DST change
    assert (bars.values[3] == sent["close"]).all()
    found = broker.actions(
        ["AAPL"], Span(micros("2020-08-31 00:00"), micros("2020-11-07 00:00")), Deadline(5)
    )
    assert found == {
        "AAPL": [
            CorporateAction("AAPL", ActionKind.SPLIT, micros("2020-08-31 00:00"), new=4.0, old=1.0),
            CorporateAction(
                "AAPL", ActionKind.CASH_DIVIDEND, micros("2020-11-06 00:00"), cash=0.205
            ),
        ]
    }


@needs_shared_data
@pytest.mark.parametrize(
    ("symbol", "paid"),
    [
        (
            "AAPL",  # 7:1 on 2014-06-09
            {"2012-08-09": 2.65, "2012-11-07": 2.65, "2013-02-07": 2.65, "2013-05-09": 3.05,
             "2014-05-08": 3.29, "2014-08-07": 0.47},
        ),
        ("KO", {"2012-03-13": 0.51, "2012-06-13": 0.51, "2012-09-12": 0.255}),  # 2:1 on 2012-08-13
    ],
)  # fmt: skip
def test_recorded_dividends_come_as_they_were_declared(
    yahoo: Yahoo, symbol: str, paid: dict[str, float]
) -> None:
    """Prices and dividends as Yahoo had them, divided by the split that came later."""
    days = pd.read_csv(SHARED / "daily" / "actions4_2012-2014.csv.gz")
    days = days[days["symbol"] == symbol]
    labels = [str(t)[:10] for t in pd.to_datetime(days["timestamp"]).dt.tz_convert(NEW_YORK.key)]
    columns = zip(*(days[c] for c in ("open", "high", "low", "close", "volume")), strict=True)
    rows = [(f"{day} 09:30", *row) for day, row in zip(labels, columns, strict=True)]
    splits = {d: (r, 1) for d, r in zip(labels, days["split"], strict=True) if r != 1}
    body = json.loads(chart(symbol, "1d", rows, splits))
    body["chart"]["result"][0]["events"]["dividends"] = {
        str(seconds(f"{day} 09:30")): {"date": seconds(f"{day} 09:30"), "amount": amount}
        for day, amount in zip(labels, days["dividend"], strict=True)
        if amount
    }
    yahoo.server.answer = lambda asked: json.dumps(body).encode()
    broker = yahoo.broker(datetime(2014, 12, 31, 20, 0, tzinfo=NEW_YORK))
    span = Span(micros("2012-01-03 00:00"), micros("2015-01-01 00:00"))
    found = broker.actions([symbol], span, Deadline(5))[symbol]
    declared = {a.ex_date: a.cash for a in found if a.kind is ActionKind.CASH_DIVIDEND}
    assert len(declared) >= 9
    for day, amount in paid.items():
        # As exact as five decimals of a seventh are.
        assert declared[micros(f"{day} 00:00")] == pytest.approx(amount, abs=4e-5), day


def test_what_was_paid_before_a_split_in_doubt_is_not_told(yahoo: Yahoo) -> None:
    """The split is named, the prices are not divided yet: nobody knows about the dividends."""
    rows = [flat("2024-03-07 09:30", 800.0), flat("2024-03-08 09:30", 80.0)]
    body = json.loads(chart("NVDA", "1d", rows, {"2024-03-08": (10, 1)}))
    result = body["chart"]["result"][0]
    broker = yahoo.broker()
    span = Span(micros("2024-03-01 00:00"), micros("2024-03-12 00:00"))
    yahoo.server.answer = lambda asked: json.dumps(body).encode()
    assert [a.kind for a in broker.actions(["NVDA"], span, Deadline(5))["NVDA"]] == ["split"]
    at = seconds("2024-03-05 09:30")
    result["events"]["dividends"] = {str(at): {"date": at, "amount": 0.4}}
    with pytest.raises(DataUnavailableError, match="not adjusted for it"):
        broker.actions(["NVDA"], span, Deadline(5))


@needs_shared_data
def test_a_recorded_london_listing_is_refused(yahoo: Yahoo) -> None:
    body = (SHARED / "yahoo" / "OCDO.L-1d.json").read_bytes()
    yahoo.server.answer = lambda asked: body.replace(b'"OCDO.L"', b'"OCDO"')
    now = datetime(2025, 2, 20, 8, 0, tzinfo=NEW_YORK)
    with pytest.raises(DataUnavailableError, match="London"):
        walk(yahoo.broker(now), "OCDO", Timeframe.DAY_1, "2020-01-02 00:00", "2020-01-03 00:00")


def test_hours_are_those_of_the_session(yahoo: Yahoo) -> None:
    """A row of the last half hour before the close is over at the close."""
    yahoo.minutes = {"AAPL": [flat("2024-03-11 14:30", 1.0), flat("2024-03-11 15:30", 2.0)]}
    now = datetime(2024, 3, 11, 16, 1, tzinfo=NEW_YORK)
    (page,) = walk(
        yahoo.broker(now), "AAPL", Timeframe.HOUR_1, "2024-03-11 04:00", "2024-03-11 16:00"
    )
    assert page.bars["AAPL"].timestamp[-1] == micros("2024-03-11 16:00") - HOUR // 2
