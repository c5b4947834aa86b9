"""Yahoo's bars through the whole stack: broker, PostgreSQL, Redis."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from marketdata.client import Client
from marketdata.errors import BrokerUnavailableError, DataUnavailableError, UnknownSymbolError
from marketdata.sandbox import Fault
from tests.stack import Stack, pages, same, tiers

CHART = "/v8/finance/chart"


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with stack.connect(broker="yahoo", yahoo_url=stack.sandbox.url) as client:
        stack.forget_calls()
        yield client


def calls(stack: Stack) -> int:
    return stack.calls(CHART)


def test_three_tiers_one_answer(stack: Stack, client: Client) -> None:
    asked: dict[str, Any] = {"start": "2024-03-11", "end": "2024-03-14", "session": "extended"}
    first = client.get_bars("AAPL", "1min", **asked)
    fetched = calls(stack)
    assert fetched > 0
    assert first.attrs["marketdata"]["feed"] == "yahoo"
    again = client.get_bars("AAPL", "1min", **asked)
    stack.flush_redis()
    stored = client.get_bars("AAPL", "1min", **asked)
    same(first, again)
    same(first, stored)
    assert calls(stack) == fetched
    assert tiers(stored).startswith("postgres")


def test_old_hours_come_from_yahoos_own_and_new_ones_from_minutes(
    stack: Stack, client: Client
) -> None:
    frame = client.get_bars("AAPL", "1hour", start="2024-01-02", end="2024-03-14")
    per_day = frame.groupby(
        pd.DatetimeIndex(frame.index).tz_convert("America/New_York").date
    ).size()
    assert set(per_day) == {7}  # 09:30 to 15:30
    assert len(per_day) == 50
    fetched = calls(stack)
    same(frame, client.get_bars("AAPL", "1hour", start="2024-01-02", end="2024-03-14"))
    assert calls(stack) == fetched


def test_minutes_older_than_yahoo_keeps_are_unavailable(client: Client) -> None:
    with pytest.raises(DataUnavailableError):
        client.get_bars("AAPL", "1min", start="2023-12-01", end="2023-12-05")


def test_raw_and_split_views_of_a_split(stack: Stack, client: Client) -> None:
    """Stored raw, adjusted on read: back to what Yahoo sent, up to its own 32-bit noise."""
    asked: dict[str, Any] = {"start": "2024-02-20", "end": "2024-03-05"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the raw read across a split is what is asked for
        raw = client.get_bars("WMT", "1day", **asked)["close"]
    adjusted = client.get_bars("WMT", "1day", adjustment="split", **asked)["close"]
    ex_date = pd.Timestamp("2024-02-26", tz="America/New_York")
    ratio = raw / adjusted
    before, after = ratio[ratio.index < ex_date], ratio[ratio.index >= ex_date]
    assert (len(before), len(after)) == (4, 6)
    assert before.round(9).eq(3.0).all()
    assert after.eq(1.0).all()


def test_fault_09_a_500_is_an_error_and_the_next_call_has_the_data(
    stack: Stack, client: Client
) -> None:
    asked: dict[str, Any] = {"start": "2024-02-01", "end": "2024-02-10"}
    stack.sandbox.faults.add(Fault("status", match=CHART, status=500, times=3))
    with pytest.raises(BrokerUnavailableError):
        client.get_bars("AAPL", "1day", **asked)
    frame = client.get_bars("AAPL", "1day", **asked)
    assert len(frame) == 7
    assert pages(frame) == 1


def test_an_unknown_symbol_is_said_and_not_stored(stack: Stack, client: Client) -> None:
    with pytest.raises(UnknownSymbolError):
        client.get_bars("NOSUCH", "1day", start="2024-02-01", end="2024-02-10")
    assert client.coverage("NOSUCH", "1day") == []
