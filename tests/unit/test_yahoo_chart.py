"""What one chart answer of Yahoo's says."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest

from marketdata.brokers.yahoo_chart import (
    Payment,
    SymbolNotFoundError,
    read_chart,
    read_payments,
    read_splits,
)
from marketdata.brokers.yahoo_errors import Refusal
from marketdata.brokers.yahoo_session import Reply
from marketdata.calendars import calendar_for
from marketdata.errors import BrokerResponseError, DataUnavailableError, MarketDataError
from marketdata.spans import Span
from marketdata.types import Bars, Timeframe
from tests.yahoo_server import chart, micros, seconds

NOW = micros("2024-03-11 20:30")
CALENDAR = calendar_for("XNYS", NOW)
DAY_SPAN = Span(micros("2024-03-08 04:00"), micros("2024-03-08 20:00"))


def read(
    body: bytes,
    frame: pd.DataFrame | None = None,
    *,
    error: Exception | None = None,
    timeframe: Timeframe = Timeframe.MIN_1,
    now: int = NOW,
    refusal: Refusal | None = None,
) -> Bars:
    reply = Reply(frame, error, body, refusal)
    return read_chart(reply, "BRK.B", timeframe, DAY_SPAN, calendar=CALENDAR, now_us=now).bars


def frame(*rows: tuple[str, float, float]) -> pd.DataFrame:
    """Return what yfinance makes of rows of (New York time, price, volume)."""
    index = pd.DatetimeIndex([pd.Timestamp(t, tz="America/New_York") for t, _, _ in rows])
    columns = {name: [p for _, p, _ in rows] for name in ("Open", "High", "Low", "Close")}
    return pd.DataFrame({**columns, "Volume": [v for _, _, v in rows]}, index=index)


def minute_chart(*rows: tuple[str, float, float], **meta: Any) -> bytes:
    return chart("BRK-B", "1m", [(t, p, p, p, p, v) for t, p, v in rows], **meta)


MINUTES = (("2024-03-08 09:30", 76.5999984741211, 10.0), ("2024-03-08 09:31", 76.7, 11.0))


def test_bars_come_bit_for_bit() -> None:
    bars = read(minute_chart(*MINUTES), frame(*MINUTES))
    assert bars.timestamp.tolist() == [micros(t) for t, _, _ in MINUTES]
    assert bars.values[0].tolist() == [76.5999984741211, 76.7]
    assert bars.values[4].tolist() == [10.0, 11.0]
    assert pd.isna(bars.values[5:]).all()


@pytest.mark.parametrize("live", ["2024-03-08 09:32:23", "2024-03-08 16:00:01"])
def test_fault_10_a_live_row_off_the_grid_is_left_out(live: str) -> None:
    rows = (*MINUTES, (live, 77.0, 0.0))
    bars = read(minute_chart(*rows), frame(*rows))
    assert bars.timestamp.tolist() == [micros(t) for t, _, _ in MINUTES]


def test_fault_10_a_bar_that_is_not_over_is_left_out() -> None:
    bars = read(minute_chart(*MINUTES), frame(*MINUTES), now=micros("2024-03-08 09:31:59"))
    assert bars.timestamp.tolist() == [micros("2024-03-08 09:30")]
    over = read(minute_chart(*MINUTES), frame(*MINUTES), now=micros("2024-03-08 09:32"))
    assert len(over) == 2


def test_fault_10_a_live_row_folded_into_a_closed_bar_is_taken_out_again() -> None:
    sent = minute_chart(*MINUTES, ("2024-03-08 09:31:23", 99.0, 500.0))
    folded = frame(MINUTES[0], ("2024-03-08 09:31", 99.0, 511.0))
    bars = read(sent, folded)
    assert bars.values[3].tolist() == [76.5999984741211, 76.7]
    assert bars.values[4].tolist() == [10.0, 11.0]


def test_hours_are_anchored_at_the_open_and_cut_at_the_close() -> None:
    rows = (("2024-03-08 09:30", 1.0, 1.0), ("2024-03-08 15:30", 2.0, 1.0))
    body = chart("BRK-B", "1h", [(t, p, p, p, p, v) for t, p, v in rows])
    now = micros("2024-03-08 16:00")
    bars = read(body, frame(*rows), timeframe=Timeframe.HOUR_1, now=now)
    assert bars.timestamp.tolist() == [micros(t) for t, _, _ in rows]


def test_a_daily_bar_counts_from_its_close() -> None:
    rows = (("2024-03-08 00:00", 1.0, 1.0),)
    body = chart("BRK-B", "1d", [("2024-03-08 09:30", 1, 1, 1, 1, 1)])
    span = Span(micros("2024-03-08 00:00"), micros("2024-03-09 00:00"))

    def count(now: str) -> int:
        reply = Reply(frame(*rows), None, body)
        told = read_chart(
            reply, "BRK.B", Timeframe.DAY_1, span, calendar=CALENDAR, now_us=micros(now)
        )
        return len(told.bars)

    assert [count("2024-03-08 15:59"), count("2024-03-08 16:00")] == [0, 1]


def test_null_rows_are_no_bars_and_a_half_null_one_is_left_to_the_gates() -> None:
    body = chart(
        "BRK-B",
        "1m",
        [
            ("2024-03-08 09:30", None, None, None, None, None),
            ("2024-03-08 09:31", None, 2, 1, 1, 5),
            ("2024-03-08 09:32", 1, 1, 1, 1, 1),
        ],
    )
    told = frame(
        ("2024-03-08 09:30", float("nan"), 0),
        ("2024-03-08 09:31", 1.5, 5),
        ("2024-03-08 09:32", 1.0, 1),
    )
    told.loc[told.index[1], "Open"] = float("nan")
    bars = read(body, told)
    assert bars.timestamp.tolist() == [micros("2024-03-08 09:31"), micros("2024-03-08 09:32")]


def test_a_quiet_span_is_empty_whatever_yfinance_thinks() -> None:
    assert len(read(chart("BRK-B", "1m", []), None, error=ValueError("possibly delisted"))) == 0


def test_before_the_first_trade_is_empty() -> None:
    told = Refusal(400, "Bad Request", "Data doesn't exist for startDate = 1, endDate = 2")
    assert len(read(b"", refusal=told)) == 0


def test_too_old_names_the_horizon() -> None:
    words = (
        "1m data not available for startTime=1 and endTime=2. "
        "The requested range must be within the last 30 days."
    )
    with pytest.raises(DataUnavailableError, match="30 days") as caught:
        read(b"", refusal=Refusal(422, "Unprocessable Entity", words))
    assert caught.value.facts["horizon_days"] == 30
    assert not caught.value.transient


def test_not_found_is_its_own_outcome_also_with_status_200() -> None:
    words = "No data found, symbol may be delisted"
    body = json.dumps({"chart": {"error": {"code": "Not Found", "description": words}}}).encode()
    for refusal in (Refusal(404, "Not Found", words), None):
        with pytest.raises(SymbolNotFoundError, match="delisted"):
            read(body, refusal=refusal)


BAD_BODIES = {
    "html": b"<html>Will be right back</html>",
    "cut": minute_chart(*MINUTES)[:-20],
    "null": b"null",
    "no result": b'{"chart":{"result":null,"error":null}}',
    "empty result": b'{"chart":{"result":[],"error":null}}',
    "finance": b'{"finance":{"result":null,"error":{"code":"Unauthorized"}}}',
    "no quote": b'{"chart":{"result":[{"meta":{},"indicators":{}}],"error":null}}',
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_fault_05_what_is_no_chart_is_a_transient_error(body: bytes) -> None:
    with pytest.raises(BrokerResponseError) as caught:
        read(body, None, error=ValueError())
    assert caught.value.transient


def test_prices_that_yfinance_loses_are_an_error_not_a_quiet_span() -> None:
    with pytest.raises(BrokerResponseError):
        read(minute_chart(*MINUTES), frame())
    with pytest.raises(BrokerResponseError):
        read(minute_chart(*MINUTES), None, error=KeyError("currency"))


WRONG: dict[str, tuple[dict[str, Any], type[MarketDataError]]] = {
    "symbol": ({"symbol": "BRK-A"}, BrokerResponseError),
    "granularity": ({"dataGranularity": "1d"}, BrokerResponseError),
    "zone": ({"exchangeTimezoneName": "Europe/London"}, DataUnavailableError),
    "currency": ({"currency": "CAD"}, DataUnavailableError),
}


@pytest.mark.parametrize(("meta", "kind"), WRONG.values(), ids=WRONG)
def test_an_answer_to_another_question_is_refused(
    meta: dict[str, Any], kind: type[MarketDataError]
) -> None:
    body = json.loads(minute_chart(*MINUTES))
    body["chart"]["result"][0]["meta"].update(meta)
    with pytest.raises(kind):
        read(json.dumps(body).encode(), frame(*MINUTES))


# --------------------------------------------------------------------------------------- splits


def event(day: str, new: Any, old: Any) -> dict[str, Any]:
    return {"date": seconds(f"{day} 09:30"), "numerator": new, "denominator": old}


def splits_of(*events: dict[str, Any]) -> list[tuple[int, float, float]]:
    keyed = {str(i): e for i, e in enumerate(events)}
    return [(s.ex_date, s.new, s.old) for s in read_splits({"events": {"splits": keyed}}, CALENDAR)]


def test_splits_are_labelled_by_exchange_midnight_and_ascend() -> None:
    found = splits_of(event("2022-07-18", 20, 1), event("2020-08-31", 4, 1))
    assert found == [
        (micros("2020-08-31 00:00"), 4.0, 1.0),
        (micros("2022-07-18 00:00"), 20.0, 1.0),
    ]
    assert splits_of() == []


def test_a_split_named_twice_counts_once() -> None:
    assert len(splits_of(event("2020-08-31", 4, 1), event("2020-08-31", 8, 2))) == 1


@pytest.mark.parametrize(
    "events",
    [
        [event("2020-08-31", 4, 1), event("2020-08-31", 7, 1)],
        [event("2020-08-31", 0, 1)],
        [event("2020-08-31", "?", 1)],
        [{"date": seconds("2020-08-31 09:30")}],
    ],
    ids=["contradictory", "zero", "words", "missing"],
)
def test_splits_that_make_no_sense_make_raw_prices_unavailable(events: list[Any]) -> None:
    with pytest.raises(DataUnavailableError, match="split"):
        splits_of(*events)


# ------------------------------------------------------------------------------------- payments


def paid(day: str, amount: Any) -> dict[str, Any]:
    return {"date": seconds(f"{day} 09:30"), "amount": amount}


def payments_of(**kinds: list[dict[str, Any]]) -> list[Payment]:
    keyed = {kind: {str(e["date"]): e for e in events} for kind, events in kinds.items()}
    return list(read_payments({"events": keyed}, CALENDAR))


def test_dividends_and_capital_gains_are_labelled_by_exchange_midnight() -> None:
    found = payments_of(
        dividends=[paid("2023-12-20", 0.4), paid("2023-03-15", 0.123456789)],
        capitalGains=[paid("2023-12-20", 2.25)],
    )
    assert found == [
        Payment(micros("2023-03-15 00:00"), 0.123456789),
        Payment(micros("2023-12-20 00:00"), 0.4),
        Payment(micros("2023-12-20 00:00"), 2.25, gain=True),
    ]
    assert payments_of() == []
    assert payments_of(dividends=[paid("2023-12-20", 0.0)]) == []


@pytest.mark.parametrize("amount", [None, "?", float("nan"), float("inf"), -0.1])
def test_a_payment_that_makes_no_sense_costs_the_payments_and_not_the_bars(amount: Any) -> None:
    with pytest.raises(DataUnavailableError, match="payment"):
        payments_of(dividends=[paid("2023-12-20", amount)])
    body = json.loads(minute_chart(*MINUTES))
    events = {"dividends": {"1": paid("2024-03-08", amount)}}
    body["chart"]["result"][0]["events"] = events
    reply = Reply(frame(*MINUTES), None, json.dumps(body).encode(), None)
    found = read_chart(reply, "BRK.B", Timeframe.MIN_1, DAY_SPAN, calendar=CALENDAR, now_us=NOW)
    assert len(found.bars) == 2
    assert found.payments == ()
    assert isinstance(found.doubt, DataUnavailableError)
