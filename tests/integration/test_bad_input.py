"""What people type by mistake: a typed error that says what to do, or the right answer; nothing is
stored, and nobody is asked where nobody needs to be."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest

import marketdata as md
from marketdata.client import connect
from tests.stack import BARS, Stack, same

TABLES = ("market_data_bars", "series", "symbol_metadata", "corporate_actions")


def tables(stack: Stack) -> dict[str, int]:
    """Return the number of rows of each table that holds data."""
    counts = {}
    with psycopg.connect(stack.settings["database_url"]) as connection:
        for name in TABLES:
            row = connection.execute(f"SELECT count(*) FROM marketdata.{name}").fetchone()
            assert row is not None
            counts[name] = row[0]
    return counts


@pytest.fixture
def untouched(stack: Stack) -> Iterator[Stack]:
    """A stack that holds a few bars before, and exactly those after."""
    stack.client.get_bars("AAPL", "1day", limit=3)
    stack.forget_calls()
    before = tables(stack)
    yield stack
    assert tables(stack) == before, "bad input was stored"


NAN = float("nan")
NEVER_ASKED: list[tuple[str, Any, dict[str, Any], type[md.MarketDataError], str]] = [
    # symbols
    ("two in one string", "AAPL MSFT", {}, md.InvalidSymbolError, "['AAPL', 'MSFT']"),
    ("comma", "AAPL,MSFT", {}, md.InvalidSymbolError, "pass a list"),
    ("injection", "AAPL'; DROP TABLE series; --", {}, md.InvalidSymbolError, "not a US equity"),
    ("injection listed", ["AAPL", "x' OR '1'='1"], {}, md.InvalidSymbolError, "not a US equity"),
    ("redis key", "AAPL}:{x", {}, md.InvalidSymbolError, "not a US equity"),
    ("path", "../../v2/account", {}, md.InvalidSymbolError, "not a US equity"),
    ("newline", "AAPL\r\nHost: x", {}, md.InvalidSymbolError, ""),
    ("null byte", "AA\0PL", {}, md.InvalidSymbolError, "not a US equity"),
    ("index", "^GSPC", {}, md.InvalidSymbolError, "indices"),
    ("unicode", "\uff21\uff21\uff30\uff2c", {}, md.InvalidSymbolError, "not a US equity"),
    ("empty string", "", {}, md.InvalidSymbolError, "not a US equity"),
    ("blank", "   ", {}, md.InvalidSymbolError, "not a US equity"),
    ("too long", "A" * 100_000, {}, md.InvalidSymbolError, "not a US equity"),
    ("empty list", [], {}, md.InvalidSymbolError, "no symbols"),
    ("none", None, {}, md.InvalidSymbolError, "AAPL"),
    ("bytes", b"AAPL", {}, md.InvalidSymbolError, "AAPL"),
    ("number", 7, {}, md.InvalidSymbolError, "AAPL"),
    ("nan", NAN, {}, md.InvalidSymbolError, "AAPL"),
    ("nan listed", ["AAPL", NAN], {}, md.InvalidSymbolError, "strings"),
    ("none listed", ["AAPL", None], {}, md.InvalidSymbolError, "strings"),
    ("bytes listed", [b"AAPL"], {}, md.InvalidSymbolError, "strings"),
    ("mapping", {"AAPL": 1}, {}, md.InvalidSymbolError, "AAPL"),
    # timeframe
    ("1M", "AAPL", {"timeframe": "1M"}, md.InvalidTimeframeError, "1min or 1month"),
    ("M", "AAPL", {"timeframe": "M"}, md.InvalidTimeframeError, "1min or 1month"),
    ("2min", "AAPL", {"timeframe": "2min"}, md.InvalidTimeframeError, "use one of"),
    ("0min", "AAPL", {"timeframe": "0min"}, md.InvalidTimeframeError, "use one of"),
    ("-1min", "AAPL", {"timeframe": "-1min"}, md.InvalidTimeframeError, "use one of"),
    ("nonsense", "AAPL", {"timeframe": "soon"}, md.InvalidTimeframeError, "use one of"),
    ("empty timeframe", "AAPL", {"timeframe": ""}, md.InvalidTimeframeError, "use one of"),
    ("no timeframe", "AAPL", {"timeframe": None}, md.InvalidTimeframeError, "use one of"),
    ("timedelta", "AAPL", {"timeframe": timedelta(minutes=1)}, md.InvalidTimeframeError, "string"),
    # moments
    ("naive datetime", "AAPL", {"start": datetime(2024, 3, 1, 9, 30)}, md.NaiveTimestampError,
     "2024-03-01T09:30:00-05:00"),
    ("naive text", "AAPL", {"start": "2024-03-11T09:30"}, md.NaiveTimestampError,
     "2024-03-11T09:30:00-04:00"),
    ("naive end", "AAPL", {"end": pd.Timestamp("2024-03-01 09:30")}, md.NaiveTimestampError, "zone"),
    ("naive numpy", "AAPL", {"start": np.datetime64("2024-03-01T09:30")}, md.NaiveTimestampError,
     "zone"),
    ("NaT", "AAPL", {"start": pd.NaT}, md.InvalidRangeError, "write a date"),
    ("numpy NaT", "AAPL", {"end": np.datetime64("NaT")}, md.InvalidRangeError, "write a date"),
    ("nan start", "AAPL", {"start": NAN}, md.InvalidRangeError, "write a date"),
    ("epoch seconds", "AAPL", {"start": 1_700_000_000}, md.InvalidRangeError, "write a date"),
    ("no such day", "AAPL", {"start": "2024-02-30"}, md.InvalidRangeError, "write a date"),
    ("American date", "AAPL", {"start": "03/01/2024"}, md.InvalidRangeError, "write a date"),
    ("empty start", "AAPL", {"start": ""}, md.InvalidRangeError, "write a date"),
    ("bytes start", "AAPL", {"start": b"2024-03-01"}, md.InvalidRangeError, "write a date"),
    ("year 0", "AAPL", {"start": "0000-01-01"}, md.InvalidRangeError, "write a date"),
    ("year 10000", "AAPL", {"end": "10000-01-01"}, md.InvalidRangeError, "write a date"),
    # ranges
    ("reversed", "AAPL", {"start": "2024-03-05", "end": "2024-03-01"}, md.InvalidRangeError,
     "exchange start and end"),
    ("empty", "AAPL", {"start": "2024-03-01", "end": "2024-03-01"}, md.InvalidRangeError,
     "next day"),
    ("future", "AAPL", {"start": "2024-03-20"}, md.InvalidRangeError, "future"),
    ("future both", "AAPL", {"start": "2030-01-01", "end": "2031-01-01"}, md.InvalidRangeError,
     "future"),
    ("year 9999 start", "AAPL", {"start": "9999-12-31"}, md.InvalidRangeError, "future"),
    ("last moment", "AAPL", {"start": "9999-12-31T23:59:59-12:00"}, md.InvalidRangeError, "future"),
    ("period and start", "AAPL", {"period": "1y", "start": "2024-01-01"}, md.InvalidRangeError,
     "contradict"),
    ("bad period", "AAPL", {"period": "soon"}, md.InvalidRangeError, "5d 1mo"),
    ("period 0d", "AAPL", {"period": "0d"}, md.InvalidRangeError, "5d 1mo"),
    ("period number", "AAPL", {"period": 5}, md.InvalidRangeError, "5d 1mo"),
    # limits
    ("limit 0", "AAPL", {"limit": 0}, md.InvalidRangeError, "1 or more"),
    ("limit -1", "AAPL", {"limit": -1}, md.InvalidRangeError, "1 or more"),
    ("limit True", "AAPL", {"limit": True}, md.InvalidRangeError, "1 or more"),
    ("limit 1.5", "AAPL", {"limit": 1.5}, md.InvalidRangeError, "1 or more"),
    ("limit nan", "AAPL", {"limit": NAN}, md.InvalidRangeError, "1 or more"),
    ("limit text", "AAPL", {"limit": "5"}, md.InvalidRangeError, "1 or more"),
    # choices
    ("adjustment", "AAPL", {"adjustment": "splits"}, md.RequestError, "raw, split"),
    ("as_of ahead", "AAPL", {"as_of": "2030-01-01"}, md.InvalidRangeError, "future"),
    ("as_of naive", "AAPL", {"as_of": "2024-01-01T10:00"}, md.NaiveTimestampError, "-05:00"),
    ("session", "AAPL", {"session": "premarket"}, md.RequestError, "regular, extended"),
    ("field", "AAPL", {"field": "Close"}, md.RequestError, "open, high"),
    ("field list", "AAPL", {"field": ["close"]}, md.RequestError, "open, high"),
    ("feed", "AAPL", {"feed": "nasdaq"}, md.RequestError, "sip"),
    ("feed number", "AAPL", {"feed": 1}, md.RequestError, "sip"),
    ("missing", "AAPL", {"missing": "ignore"}, md.RequestError, "raise, skip"),
    ("tz", "AAPL", {"tz": "Mars/Olympus"}, md.RequestError, "IANA"),
    ("tz path", "AAPL", {"tz": "../../etc/passwd"}, md.RequestError, "IANA"),
    ("tz number", "AAPL", {"tz": 5}, md.RequestError, "IANA"),
    ("tz None intraday", "AAPL", {"timeframe": "1min", "tz": None}, md.RequestError, "exchange"),
    ("timeout 0", "AAPL", {"timeout": 0}, md.RequestError, "more than 0"),
    ("timeout -1", "AAPL", {"timeout": -1}, md.RequestError, "more than 0"),
    ("timeout nan", "AAPL", {"timeout": NAN}, md.RequestError, "more than 0"),
    ("timeout text", "AAPL", {"timeout": "10s"}, md.RequestError, "more than 0"),
    ("timeout True", "AAPL", {"timeout": True}, md.RequestError, "more than 0"),
]  # fmt: skip


def test_bad_input_is_a_typed_error_and_asks_nobody(untouched: Stack) -> None:
    for name, symbols, options, error, words in NEVER_ASKED:
        with pytest.raises(md.MarketDataError) as caught:
            untouched.client.get_bars(symbols, **options)
        assert type(caught.value) is error, name
        assert not caught.value.transient, name
        assert words in str(caught.value), name
        assert len(str(caught.value)) < 500, name
        assert caught.value.cure, name
    assert len(untouched.sandbox.requests) == 0


def test_explain_and_gaps_check_their_input_alike(untouched: Stack) -> None:
    for name, symbols, options, error, _ in NEVER_ASKED:
        known = {k: v for k, v in options.items() if k in ("timeframe", "start", "end", "limit")}
        if known != options or error is md.UnsupportedRequestError:
            continue
        with pytest.raises(md.RequestError) as caught:
            untouched.client.explain(symbols, **known)
        assert type(caught.value) is error, name
        if "limit" not in options:
            with pytest.raises(md.RequestError):
                untouched.client.gaps(symbols, **({"start": "2024-01-01"} | known))
    assert len(untouched.sandbox.requests) == 0


def test_an_unknown_symbol_is_named_with_its_nearest(untouched: Stack) -> None:
    with pytest.raises(md.UnknownSymbolError, match=r"AAPLL.*did you mean AAPL") as caught:
        untouched.client.get_bars("AAPLL", "1day", limit=5)
    assert caught.value.facts["symbols"] == ["AAPLL"]
    untouched.forget_calls()
    with pytest.raises(md.UnknownSymbolError):
        untouched.client.get_bars("AAPLL", "1day", limit=5)
    assert untouched.calls() == 0, "an unknown symbol is remembered for a minute"


def test_several_unknown_among_500_are_all_named(stack: Stack) -> None:
    listed = [a.symbol for a in stack.sandbox.source.assets()]
    source = stack.sandbox.source
    known = [s for s in listed if source.first_day(s).year < 2023][:494]
    wrong = ["NOSUCH", "AAPLX", "ZZZZ.B", "QQQQQQQ", "MSFTT", "NVDAA"]
    symbols = sorted([*known, *wrong])
    before = tables(stack)
    with pytest.raises(md.UnknownSymbolError) as caught:
        stack.client.get_bars(symbols, "1day", limit=1)
    named: Any = caught.value.facts["symbols"]
    assert sorted(named) == sorted(wrong)
    for name in wrong:
        assert name in str(caught.value)
    assert 'missing="skip"' in str(caught.value)
    after = tables(stack)
    assert after["series"] - before["series"] == len(known), "the known ones are kept"
    stack.forget_calls()
    with pytest.warns(md.MissingSymbolsWarning):
        frame = stack.client.get_bars(symbols, "1day", limit=1, missing="skip")
    assert stack.calls() == 0
    assert set(frame.index.get_level_values(0)) == set(known)
    assert "NOSUCH" in frame.attrs["marketdata"]["missing"]


@pytest.mark.exact("it counts the requests sent")
def test_10_000_symbols(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack(at="2026-06-11T15:00:30-04:00")
    symbols = [f"S{n:05}" for n in range(1, 10_001)]
    started = time.monotonic()
    frame = stack.client.get_bars(symbols, "1day", limit=1, field="close", timeout=120)
    first = time.monotonic() - started
    requests = len(stack.sandbox.requests)
    stack.forget_calls()
    started = time.monotonic()
    again = stack.client.get_bars(symbols, "1day", limit=1, field="close")
    second = time.monotonic() - started
    print(f"10,000 symbols: {first:.1f} s and {requests} requests, again {second:.2f} s")
    assert frame.shape == (1, 10_000)
    assert frame.notna().all(axis=None)
    assert requests == 20, "500 symbols a request"
    assert stack.calls() == 0
    assert first < 90
    same(again, frame)


@pytest.mark.filterwarnings("ignore::marketdata.SplitInRangeWarning")
def test_dates_beyond_the_calendar_are_clamped(stack: Stack) -> None:
    whole = stack.client.get_bars("AAPL", "1day", start="2024-03-01")
    for end in ("9999-12-31", date(9999, 12, 31), "9999-12-31T23:59:59-12:00", "2600-01-01"):
        same(stack.client.get_bars("AAPL", "1day", start="2024-03-01", end=end), whole)
    everything = stack.client.get_bars("AAPL", "1day", period="max")
    for start in ("0001-01-01", date(1, 1, 1), "1492-10-12", "0001-01-01T00:00+14:00", "-9999y"):
        same(stack.client.get_bars("AAPL", "1day", start=start), everything)
    for offset in ("-99999999999999999999h", "-999999999999999999min", "-99999999999999d"):
        same(stack.client.get_bars("AAPL", "1day", start=offset), everything)


def test_before_the_brokers_history_is_an_empty_frame(stack: Stack) -> None:
    frame = stack.client.get_bars("AAPL", "1day", start="1960-01-01", end="1970-01-01")
    assert frame.empty
    assert list(frame.columns) == ["open", "high", "low", "close", "volume", "vwap", "trade_count"]
    assert frame.index.dtype == pd.DatetimeTZDtype("us", "UTC")
    assert stack.calls() == 0, "nobody has bars from before the calendar begins"


def test_a_window_without_any_trading(stack: Stack) -> None:
    stack.client.get_bars("AAPL", "1min", limit=1)
    stack.forget_calls()
    for start, end in (("2024-03-09", "2024-03-11"), ("2024-01-01", "2024-01-02")):
        for timeframe in ("1min", "1hour", "1day", "1week"):
            assert stack.client.get_bars("AAPL", timeframe, start=start, end=end).empty
    assert stack.calls() == 0


def test_a_future_end_is_now(untouched: Stack) -> None:
    stack = untouched
    today = stack.client.get_bars("AAPL", "1day", start="2024-03-12", end="2024-03-20")
    same(today, stack.client.get_bars("AAPL", "1day", start="2024-03-12"))
    (covered,) = stack.client.coverage("AAPL", "1day")
    assert covered.end <= pd.Timestamp("2024-03-14T19:00:30Z")


@pytest.mark.parametrize("limit", [10**6, 10**18, 10**30, np.int64(10**9)])
def test_a_huge_limit_is_all_there_is(stack: Stack, limit: Any) -> None:
    frame = stack.client.get_bars("ARM", "1day", limit=limit)
    assert 0 < len(frame) < 10_000
    assert frame.attrs["marketdata"]["truncated"] is True


def test_limits_of_numpy_are_fine(stack: Stack) -> None:
    three: Any = np.int32(3)
    assert len(stack.client.get_bars("AAPL", "1day", limit=three)) == 3
    assert len(stack.client.get_bars(np.array(["AAPL", "MSFT"]), "1day", limit=1)) == 2
    assert len(stack.client.get_bars(pd.Series(["AAPL", "MSFT"]), "1day", limit=1)) == 2
    names: Any = (s for s in ("aapl", "AAPL "))
    assert len(stack.client.get_bars(names, "1day", limit=1)) == 1


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("MARKETDATA_BROKR", "sandbox", "MARKETDATA_BROKER"),
        ("MARKETDATA_DATABSE_URL", "postgresql://x/y", "MARKETDATA_DATABASE_URL"),
        ("MARKETDATA_BROKER", "alpca", "alpaca"),
        ("MARKETDATA_TIMEOUT", "soon", "MARKETDATA_TIMEOUT"),
        ("MARKETDATA_TIMEOUT", "-1", "MARKETDATA_TIMEOUT"),
        ("MARKETDATA_CLOCK", "yesterday", "replay"),
        ("MARKETDATA_ADJUSTMENT", "splits", "split"),
        ("MARKETDATA_TZ", "Mars/Olympus", "MARKETDATA_TZ"),
        ("MARKETDATA_DATABASE_URL", "postgresql+psycopg://x/y", "postgresql://user"),
        ("MARKETDATA_REDIS_URL", "redsi://x", "redis://"),
        ("MARKETDATA_SCHEMA", "x; DROP TABLE y", "MARKETDATA_SCHEMA"),
    ],
)
def test_a_bad_variable_is_a_configuration_error(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    settings = {k: v for k, v in stack.settings.items() if k != name[11:].lower()}
    monkeypatch.setenv(name, value)
    with pytest.raises(md.ConfigurationError) as caught, connect(**settings) as client:
        client.get_bars("AAPL", "1day", limit=1)
    assert words in str(caught.value)
    assert "marketdata doctor" in str(caught.value) or caught.value.cure


def test_a_misspelt_keyword_setting(stack: Stack) -> None:
    with pytest.raises(md.ConfigurationError, match="broker"):
        connect(brokr="sandbox")
    assert stack.calls(BARS) == 0


def test_nan_and_infinity_never_reach_a_deadline() -> None:
    from marketdata.clock import Deadline

    assert Deadline(math.inf).remaining() == math.inf
    assert Deadline(None).remaining() == math.inf
