"""Coverage and gaps: what is stored and what is not, also where two stored series can answer."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import pytest

from marketdata.client import Client
from tests.stack import Stack

NEW_YORK = "America/New_York"


def at(text: str) -> pd.Timestamp:
    return pd.Timestamp(text, tz=NEW_YORK)


@pytest.fixture
def yahoo(stack: Stack) -> Iterator[Client]:
    with stack.connect(broker="yahoo", yahoo_url=stack.sandbox.url) as client:
        yield client


def test_hours_stored_natively_are_covered_and_no_gap(yahoo: Client) -> None:
    """It is March: January's minutes are too old for Yahoo, so its own hours are kept."""
    january = {"start": "2024-01-02", "end": "2024-02-01"}
    (before,) = yahoo.gaps("AAPL", "1hour", start="2024-01-02", end="2024-02-01")
    assert (before.start, before.end) == (at("2024-01-02 04:00"), at("2024-01-31 20:00"))
    yahoo.get_bars("AAPL", "1hour", **january)  # type: ignore[arg-type]
    assert yahoo.gaps("AAPL", "1hour", start="2024-01-02", end="2024-02-01") == []
    (covered,) = yahoo.coverage("AAPL", "1hour")
    assert covered.start <= at("2024-01-02 04:00")
    assert covered.end >= at("2024-01-31 20:00")
    assert covered.end <= at("2024-02-01 04:00"), "nothing of February was asked"


def test_hours_of_both_kinds_are_one_coverage(yahoo: Client) -> None:
    yahoo.get_bars("AAPL", "1hour", start="2024-01-02")
    assert yahoo.gaps("AAPL", "1hour", start="2024-01-02") == []
    (covered,) = yahoo.coverage("AAPL", "1hour")
    assert covered.start <= at("2024-01-02 04:00")
    assert covered.end >= at("2024-03-14 14:00")


def test_gaps_are_what_explain_would_fetch(yahoo: Client) -> None:
    yahoo.get_bars("AAPL", "1hour", start="2024-01-08", end="2024-01-13")
    yahoo.get_bars("AAPL", "1min", start="2024-03-11", end="2024-03-13")
    plan = yahoo.explain("AAPL", "1hour", start="2024-01-02", session="extended")
    planned = [(s.start, s.end) for s in plan.spans if s.tier == "broker"]
    found = yahoo.gaps("AAPL", "1hour", start="2024-01-02")
    assert len(found) >= 3
    merged = [(g.start.isoformat(), g.end.isoformat()) for g in found]
    assert {start for start, _ in merged} <= {start for start, _ in planned}
    assert {end for _, end in merged} <= {end for _, end in planned}


def test_what_the_broker_no_longer_gives_is_marked(yahoo: Client) -> None:
    frame = yahoo.gaps(["AAPL", "MSFT"], "1min", start="2024-01-02")
    assert list(frame.columns) == ["symbol", "start", "end", "state"]
    mine = frame[frame["symbol"] == "AAPL"]
    assert list(mine["state"]) == ["unavailable", "never asked"]
    assert mine["start"].iloc[0] == at("2024-01-02 04:00")
    assert mine["end"].iloc[0] <= mine["start"].iloc[1]
    assert len(yahoo.gaps("AAPL", "1min", start="2024-01-02")) == 2
    yahoo.get_bars("AAPL", "1min", start="2024-03-01")
    assert len(yahoo.gaps("AAPL", "1min", start="2024-03-01")) == 0


def test_derived_bars_are_covered_where_their_base_is(stack: Stack) -> None:
    client = stack.client
    client.get_bars("AAPL", "1min", start="2024-03-11", end="2024-03-13")
    (minutes,) = client.coverage("AAPL", "1min")
    (hours,) = client.coverage("AAPL", "1hour")
    assert hours == minutes
    assert client.coverage("AAPL", "1day") == []
    assert client.gaps("AAPL", "1hour", start="2024-03-11", end="2024-03-13") == []
    frame = client.coverage(["AAPL", "MSFT"], "1hour")
    assert list(frame.columns) == ["symbol", "start", "end"]
    assert list(frame["symbol"]) == ["AAPL"]


def test_a_collection_without_gaps_is_an_empty_frame_of_the_same_shape(stack: Stack) -> None:
    stack.client.get_bars("AAPL", "1day", start="2024-03-01")
    frame = stack.client.gaps(["AAPL"], "1day", start="2024-03-01")
    assert frame.empty
    assert list(frame.columns) == ["symbol", "start", "end", "state"]
    assert frame["start"].dtype == pd.DatetimeTZDtype("us", "UTC")
