"""Alpaca's wire format: bars, times, latest data, statuses."""

from __future__ import annotations

import json
import math
import pickle
import random
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from marketdata.brokers.alpaca_wire import (
    error_of_status,
    is_recent_refusal,
    may_be_a_symbol,
    parse_bars,
    parse_latest,
    parse_times,
    refused_by,
    retry_after,
    words_of,
)
from marketdata.clock import to_micros
from marketdata.errors import (
    AuthenticationError,
    BrokerResponseError,
    BrokerUnavailableError,
    DataUnavailableError,
    RateLimitError,
)
from marketdata.quality import NO_TIMESTAMP
from marketdata.types import COLUMNS, TRADE_COUNT, VOLUME, VWAP
from tests.shared_data import SHARED, needs_shared_data

BAR = {"t": "2022-01-03T09:00:00Z", "o": 178.26, "h": 178.34, "l": 177.76, "c": 178.08,
       "v": 60937, "n": 1727, "vw": 177.954244}  # fmt: skip


def bar(**changes: Any) -> dict[str, Any]:
    return {**BAR, **changes}


def micros(text: str) -> int:
    return to_micros(datetime.fromisoformat(text))


def test_a_bar_keeps_every_field_in_its_row() -> None:
    bars = parse_bars([BAR])
    assert bars.timestamp.tolist() == [micros("2022-01-03T09:00:00+00:00")]
    assert bars.values[:, 0].tolist() == [178.26, 178.34, 177.76, 178.08, 60937, 177.954244, 1727]
    assert bars.values.shape == (len(COLUMNS), 1)
    assert bars.values.flags.c_contiguous


def test_no_bars_parse_to_none() -> None:
    assert len(parse_bars([])) == 0


def test_invariant_26_fractional_volume_and_sub_cent_prices_are_exact() -> None:
    rows = json.loads('[{"t":"2026-03-02T14:30:00Z","o":0.00015,"h":1.123456789,"l":0.0001,'
                      '"c":0.1,"v":1234567.000001,"n":3,"vw":0.30000000000000004}]')  # fmt: skip
    values = parse_bars(rows).values[:, 0]
    assert values.tolist() == [0.00015, 1.123456789, 0.0001, 0.1, 1234567.000001,
                               0.30000000000000004, 3]  # fmt: skip


@pytest.mark.parametrize("missing", ["vw", "n", "o", "v"])
def test_a_missing_value_is_nan_in_its_row_only(missing: str) -> None:
    rows = [BAR, {k: v for k, v in BAR.items() if k != missing}, BAR]
    bars = parse_bars(rows)
    assert np.isnan(bars.values).sum(axis=0).tolist() == [0, 1, 0]


@pytest.mark.parametrize("absent", [{"vw": None, "n": None}, {}])
def test_sources_without_vwap_and_count_parse_in_columns(
    absent: dict[str, None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marketdata.brokers.alpaca_wire._parse_bars_one_by_one", None)
    row = {k: v for k, v in BAR.items() if k not in ("vw", "n")} | absent
    bars = parse_bars([row] * 3)
    assert np.isnan(bars.values[[VWAP, TRADE_COUNT]]).all()
    assert not np.isnan(bars.values[: VOLUME + 1]).any()


@pytest.mark.parametrize("value", [None, "not a number", [], {}, 10**400])
def test_an_unreadable_value_is_nan(value: object) -> None:
    bars = parse_bars([bar(v=value), BAR])
    assert math.isnan(bars.values[VOLUME, 0])
    assert bars.values[VOLUME, 1] == 60937


@pytest.mark.parametrize("row", [None, 7, "bar", [], {}])
def test_a_row_that_is_no_bar_does_not_cost_its_neighbours(row: object) -> None:
    bars = parse_bars([BAR, row, BAR])
    assert bars.timestamp[1] == NO_TIMESTAMP
    assert bars.timestamp[0] == bars.timestamp[2] != NO_TIMESTAMP
    assert not np.isnan(bars.values[:, [0, 2]]).any()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2022-01-03T09:00:00Z", "2022-01-03T09:00:00+00:00"),
        ("2022-01-03T09:00:00.086175744Z", "2022-01-03T09:00:00.086175+00:00"),
        ("2022-01-03T09:00:00.999999999Z", "2022-01-03T09:00:00.999999+00:00"),
        ("2022-01-03T04:00:00-05:00", "2022-01-03T09:00:00+00:00"),
        ("1969-12-31T23:59:59.5Z", "1969-12-31T23:59:59.500000+00:00"),
    ],
)
def test_times_are_cut_to_microseconds(text: str, expected: str) -> None:
    assert parse_times([text]).tolist() == [micros(expected)]
    assert parse_times([text, "2022-01-03T09:00:00Z"]).tolist()[0] == micros(expected)


@pytest.mark.parametrize("text", ["", "Z", "yesterday", "2022-01-03T09:00:00", "2022-13-03T09:00Z"])
def test_unreadable_times_are_marked(text: str) -> None:
    good = "2022-01-03T09:00:00Z"
    assert parse_times([good, text, good]).tolist() == [
        micros("2022-01-03T09:00:00+00:00"),
        NO_TIMESTAMP,
        micros("2022-01-03T09:00:00+00:00"),
    ]


def test_fast_and_slow_parsing_agree() -> None:
    draw = random.Random(7)
    rows = [
        bar(t=f"2024-0{draw.randint(1, 9)}-1{draw.randint(0, 9)}T1{draw.randint(0, 9)}:30:00Z",
            o=draw.random(), v=draw.randint(0, 10**9))
        for _ in range(200)
    ]  # fmt: skip
    fast = parse_bars(rows)
    slow = parse_bars([*rows, None])
    np.testing.assert_array_equal(fast.timestamp, slow.timestamp[:-1])
    np.testing.assert_array_equal(fast.values, slow.values[:, :-1])


@needs_shared_data
def test_the_recorded_answers_parse_completely() -> None:
    recorded = json.loads((SHARED / "alpaca/responses.json").read_text())
    parsed = 0
    for answer in recorded:
        if "/v2/stocks/bars?" not in answer["url"] or not answer["body"].get("bars"):
            continue
        for rows in answer["body"]["bars"].values():
            bars = parse_bars(rows)
            assert (bars.timestamp != NO_TIMESTAMP).all()
            assert not np.isnan(bars.values[: VOLUME + 1]).any()
            parsed += len(bars)
    assert parsed >= 4


# --------------------------------------------------------------------------------------- latest


def test_latest_answers_get_plain_names() -> None:
    assert parse_latest("bar", BAR) == {
        "timestamp": micros("2022-01-03T09:00:00+00:00"), "open": 178.26, "high": 178.34,
        "low": 177.76, "close": 178.08, "volume": 60937.0, "vwap": 177.954244,
        "trade_count": 1727.0,
    }  # fmt: skip
    trade = {"c": ["@", "T"], "i": 1, "p": 178.26, "s": 246, "t": "2022-01-03T09:00:00.086175744Z",
             "x": "P", "z": "C"}  # fmt: skip
    assert parse_latest("trade", trade) == {
        "timestamp": micros("2022-01-03T09:00:00.086175+00:00"), "price": 178.26, "size": 246.0,
        "exchange": "P", "conditions": ["@", "T"], "id": 1, "tape": "C",
    }  # fmt: skip
    quote = {"ap": 387.7, "as": 1, "ax": "C", "bp": 387.67, "bs": 1, "bx": "N", "c": ["R"],
             "t": "2021-02-06T13:35:08.946977536Z", "z": "C"}  # fmt: skip
    parsed = parse_latest("quote", quote)
    assert parsed is not None
    assert (parsed["bid_price"], parsed["ask_price"]) == (387.67, 387.7)


def test_a_snapshot_may_lack_parts_and_an_unknown_one_is_absent() -> None:
    snapshot = parse_latest("snapshot", {"minuteBar": BAR, "prevDailyBar": None})
    assert snapshot is not None
    assert snapshot["previous_daily_bar"] is None
    assert snapshot["minute_bar"]["close"] == 178.08
    assert parse_latest("snapshot", None) is None
    assert parse_latest("bar", {}) is None


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("status", range(100, 600))
def test_every_status_has_an_error(status: int) -> None:
    error = error_of_status(status, "said", 3.0)
    expected: dict[int, tuple[type, bool]] = {
        401: (AuthenticationError, False),
        403: (AuthenticationError, False),
        408: (BrokerUnavailableError, True),
        429: (RateLimitError, True),
    }
    if status in expected:
        kind, transient = expected[status]
    elif status >= 500:
        kind, transient = BrokerUnavailableError, True
    else:
        kind, transient = BrokerResponseError, status < 300
    assert type(error) is kind
    assert error.transient is transient
    assert error.facts["status"] == status
    assert type(pickle.loads(pickle.dumps(error))) is kind


def test_403_is_told_apart_by_its_body() -> None:
    recent = "subscription does not permit querying recent SIP data"
    assert isinstance(error_of_status(403, recent), DataUnavailableError)
    assert is_recent_refusal(403, recent)
    otc = "subscription does not permit querying OTC data"
    assert isinstance(error_of_status(403, otc), DataUnavailableError)
    assert not is_recent_refusal(403, otc)
    assert isinstance(error_of_status(403, "forbidden."), AuthenticationError)


def test_words_come_without_markup_and_without_secrets() -> None:
    assert words_of('{"code":400,"message":"invalid \\"symbol\\""}') == 'invalid \\"symbol\\"'
    assert words_of("<html><h1>502  Bad\nGateway</h1></html>") == "502 Bad Gateway"
    assert (
        words_of('{"message":"bad key PK1234 / s3cret"}', ("s3cret", "PK1234"))
        == "bad key *** / ***"
    )
    assert len(words_of("x" * 5000)) == 200
    assert words_of('{"message":"asset not found"}', ("k", "s")) == "asset not found"


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"X-RateLimit-Reset": "1007"}, 7.0),
        ({"X-RateLimit-Reset": "1007", "Retry-After": "9"}, 9.0),
        ({"X-RateLimit-Reset": "990"}, 0.0),
        ({"X-RateLimit-Reset": "soon", "Retry-After": "nan"}, None),
        # The broker's own clock counts: it shows 1970-01-01 00:16:30 = 990.
        ({"X-RateLimit-Reset": "1000", "Date": "Thu, 01 Jan 1970 00:16:30 GMT"}, 10.0),
    ],
)
def test_the_wait_after_429(headers: dict[str, str], wait: float | None) -> None:
    assert retry_after(headers, 1000.0) == wait


def test_named_symbols_are_found_in_the_brokers_words() -> None:
    asked = ["AAPL", "BRK.B", "B@D", "TAOP:NASDAQ"]
    assert refused_by("alpaca answered 400: invalid symbol: B@D", asked) == ["B@D"]
    assert refused_by("invalid symbol: TAOP:NASDAQ", asked) == ["TAOP:NASDAQ"]
    assert refused_by("invalid symbols: B@D, BRK.B", asked) == ["BRK.B", "B@D"]
    assert refused_by("invalid symbol: XYZ", asked) == []
    assert refused_by("bad request", asked) == []


def test_a_400_about_another_parameter_is_not_blamed_on_symbols() -> None:
    assert not may_be_a_symbol("invalid timeframe: 9Min")
    assert not may_be_a_symbol("end should not be before start")
    assert may_be_a_symbol("bad request")
    assert may_be_a_symbol("invalid symbol at position 3")
