"""One call through three tiers: the same bars from each, and no call that is not needed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

import marketdata as md
from marketdata.protocols import ReadRequest
from marketdata.types import COLUMNS
from tests.stack import Stack, runtime, same, tiers

NEW_YORK = "America/New_York"


def three_tiers(stack: Stack, symbols: object, timeframe: str, **options: object) -> pd.DataFrame:
    """Read through the broker, PostgreSQL and Redis, assert equality, return the frame."""
    get = stack.client.get_bars
    first = get(symbols, timeframe, **options)  # type: ignore[arg-type]
    calls = stack.calls()
    stack.flush_redis()
    from_store = get(symbols, timeframe, **options)  # type: ignore[arg-type]
    again = get(symbols, timeframe, **options)  # type: ignore[arg-type]
    count = 1 if isinstance(symbols, str) else len(symbols)  # type: ignore[arg-type]
    assert "broker" in tiers(first)
    assert tiers(from_store) == f"postgres:{count}"
    if "end" not in options:  # the newest bars
        assert tiers(again) in (f"redis:{count}", f"postgres:{count}")
        assert "limit" not in options or tiers(again) == f"redis:{count}"
    assert stack.calls() == calls, "a covered read asked the broker"
    same(first, from_store)
    same(first, again)
    return again


def test_the_default_call_hits_redis_after_the_store_and_the_broker(stack: Stack) -> None:
    frame = three_tiers(stack, "AAPL", "1min", limit=500)
    assert tiers(frame) == "redis:1"
    assert len(frame) == 500
    # 15:00:30 less the settle delay of 3 s: the last closed bar opened at 14:59.
    assert frame.index[-1] == pd.Timestamp("2024-03-14T14:59", tz=NEW_YORK)


def test_frame_shape(stack: Stack) -> None:
    frame = stack.client.get_bars("AAPL", "1min", limit=50)
    assert frame.index.dtype == pd.DatetimeTZDtype("us", "UTC")
    assert frame.index.name == "timestamp"
    assert frame.index.is_monotonic_increasing
    assert frame.index.is_unique
    assert tuple(frame.columns) == COLUMNS
    assert set(frame.dtypes) == {np.dtype("float64")}
    for spoiled in (frame, stack.client.get_bars("AAPL", "1min", limit=50)):  # from store, Redis
        spoiled.loc[:, "open"] = -1.0
        spoiled.index.name = "mine"
        assert stack.client.get_bars("AAPL", "1min", limit=50).index.name == "timestamp"
    assert stack.client.get_bars("AAPL", "1min", limit=50)["open"].min() > 0, "frames share memory"


def test_collection_gives_a_multiindex_even_of_one(stack: Stack) -> None:
    frame = stack.client.get_bars(["MSFT", "AAPL"], "1day", limit=3)
    assert list(frame.index.names) == ["symbol", "timestamp"]
    assert list(frame.index.get_level_values(0).unique()) == ["AAPL", "MSFT"]
    assert frame.index.is_monotonic_increasing
    one = stack.client.get_bars({"MSFT"}, "1day", limit=3)
    same(one, frame.loc[["MSFT"]])
    single = stack.client.get_bars("MSFT", "1day", limit=3)
    same(single, one.droplevel(0))


def test_field_matrix(stack: Stack) -> None:
    matrix = stack.client.get_bars(["SPY", "AAPL"], "1day", limit=5, field="close")
    assert list(matrix.columns) == ["SPY", "AAPL"]
    same(
        matrix[["AAPL"]].rename_axis(columns=None),
        stack.client.get_bars("AAPL", "1day", limit=5)[["close"]].rename(columns={"close": "AAPL"}),
    )


@pytest.mark.parametrize(
    ("timeframe", "options"),
    [
        ("1min", {"start": "2024-03-11", "end": "2024-03-13"}),  # right after the DST change
        ("1min", {"start": "2023-11-02", "end": "2023-11-08"}),  # over the change back
        ("1min", {"start": "2023-11-22", "end": "2023-11-28", "session": "extended"}),  # half-day
        ("1min", {"limit": 700, "session": "extended"}),
        ("5min", {"limit": 100}),
        ("1hour", {"start": "2024-03-06", "end": "2024-03-13"}),
        ("4hour", {"start": "2024-03-06", "end": "2024-03-13", "session": "extended"}),
        ("1day", {"period": "2y"}),
        ("1week", {"period": "6mo"}),
        ("1month", {"period": "1y"}),
    ],
)
def test_invariant_04_three_tiers_one_answer(
    stack: Stack, timeframe: str, options: dict[str, object]
) -> None:
    for symbols in ("AAPL", ["AAPL", "MSFT", "BRK.B"]):
        frame = three_tiers(stack, symbols, timeframe, **options)
        assert len(frame) > 3


def test_invariant_04_random_windows(stack: Stack) -> None:
    source = random.Random(5)
    whole = stack.client.get_bars("AAPL", "1min", start="2024-02-26", end="2024-03-14")
    stack.forget_calls()
    for _ in range(25):
        low, high = sorted(source.sample(range(len(whole)), 2))
        start, end = whole.index[low], whole.index[high]
        same(stack.client.get_bars("AAPL", "1min", start=start, end=end), whole.iloc[low:high])
        limit = source.randrange(1, 900)
        last = stack.client.get_bars("AAPL", "1min", end=end, limit=limit)
        if high >= limit:
            same(last, whole.iloc[high - limit : high])
    assert stack.calls() == 0 or all(
        r.params["start"] < "2024-02-26T12" for r in stack.sandbox.requests
    )


def test_invariant_01_covered_read_makes_no_call(stack: Stack) -> None:
    stack.client.get_bars(["AAPL", "MSFT"], "1min", start="2024-03-11", end="2024-03-14")
    stack.forget_calls()
    for options in (
        {"start": "2024-03-11", "end": "2024-03-14"},
        {"start": "2024-03-12T10:00-04:00", "end": "2024-03-12T10:05-04:00"},
        {"end": "2024-03-14", "limit": 300},
    ):
        stack.client.get_bars(["MSFT", "AAPL"], "1min", **options)
        stack.client.get_bars("AAPL", "15min", **{**options, "limit": 30})  # type: ignore[arg-type]
    assert len(stack.sandbox.requests) == 0


def test_invariant_02_only_the_gap_is_asked(stack: Stack) -> None:
    stack.client.get_bars("AAPL", "1min", start="2024-03-05", end="2024-03-07")
    stack.forget_calls()
    stack.client.get_bars("AAPL", "1min", start="2024-03-04", end="2024-03-08")
    asked = sorted((r.params["start"], r.params["end"]) for r in stack.sandbox.requests)
    assert asked == [
        ("2024-03-04T09:00:00Z", "2024-03-05T00:59:59Z"),
        ("2024-03-07T09:00:00Z", "2024-03-08T00:59:59Z"),
    ]


def test_nights_and_weekends_cost_nothing(stack: Stack) -> None:
    stack.set_time("2024-03-15T20:05:00-04:00")  # Friday, after the late session
    stack.client.get_bars("AAPL", "1min", limit=500)
    stack.client.get_bars("AAPL", "1day", limit=10)
    stack.forget_calls()
    for moment in ("2024-03-16T12:00-04:00", "2024-03-17T23:00-04:00", "2024-03-18T03:59-04:00"):
        stack.set_time(moment)
        stack.client.get_bars("AAPL", "1min", limit=500)
        stack.client.get_bars("AAPL", "1day", limit=10)
    assert len(stack.sandbox.requests) == 0


def test_each_new_minute_is_one_small_request(stack: Stack) -> None:
    stack.client.get_bars("AAPL", "1min", limit=500)
    stack.forget_calls()
    for minute in range(1, 6):
        stack.set_time(f"2024-03-14T15:{minute:02}:05-04:00")
        frame = stack.client.get_bars("AAPL", "1min", limit=500)
        assert frame.index[-1] <= pd.Timestamp(f"2024-03-14T15:{minute - 1:02}", tz=NEW_YORK)
    assert stack.calls() == 5
    assert len(stack.client.coverage("AAPL", "1min")) == 1


def test_a_healthy_series_is_one_range(stack: Stack) -> None:
    for start in ("2024-03-11", "2024-03-04", "2024-03-08", "2024-02-29"):
        stack.client.get_bars("AAPL", "1min", start=start, end="2024-03-14")
    stack.client.get_bars("AAPL", "1min", start="2024-03-14")
    assert len(stack.client.coverage("AAPL", "1min")) == 1
    stack.client.get_bars("AAPL", "1day", start="2023-01-01", end="2023-06-01")
    stack.client.get_bars("AAPL", "1day", start="2023-06-01")
    (only,) = stack.client.coverage("AAPL", "1day")
    assert only.end <= datetime.fromisoformat("2024-03-14T04:00+00:00") + timedelta(days=1)


def test_invariant_06_coverage_ends_before_what_is_settled(stack: Stack) -> None:
    stack.client.get_bars("AAPL", "1min", start="2024-03-14", end="2024-03-16")
    (covered,) = stack.client.coverage("AAPL", "1min")
    assert covered.end == datetime(2024, 3, 14, 19, 0, tzinfo=UTC)
    stack.client.get_bars("AAPL", "1day", start="2024-03-11", end="2024-03-16")
    (covered,) = stack.client.coverage("AAPL", "1day")
    assert covered.end <= datetime(2024, 3, 14, 19, 0, 30, tzinfo=UTC)


def test_invariant_07_quiet_is_remembered(stack: Stack) -> None:
    stack.client.get_bars("AAPL", "1min", limit=5)
    window = {"start": "2024-03-02", "end": "2024-03-03"}  # a Saturday
    assert stack.client.get_bars("AAPL", "1min", **window).empty  # type: ignore[arg-type]
    early = {"start": "2024-03-13T04:00-04:00", "end": "2024-03-13T04:01-04:00"}
    first = stack.client.get_bars("AAPL", "1min", session="extended", **early)  # type: ignore[arg-type]
    stack.forget_calls()
    same(first, stack.client.get_bars("AAPL", "1min", session="extended", **early))  # type: ignore[arg-type]
    assert len(stack.sandbox.requests) == 0


def test_invariant_09_no_forming_bar_unless_asked(stack: Stack) -> None:
    from marketdata.sandbox import Fault

    stack.sandbox.faults.add(Fault("forming", match="/v2/stocks/bars", times=None))
    frame = stack.client.get_bars("AAPL", "1min", limit=5)
    assert frame.index[-1] == pd.Timestamp("2024-03-14T14:59", tz=NEW_YORK)
    stack.set_time("2024-03-14T15:03:30-04:00")
    closed = stack.client.get_bars("AAPL", "5min", limit=5)
    live = stack.client.get_bars("AAPL", "5min", limit=5, include_forming=True)
    assert live.index[-1] == pd.Timestamp("2024-03-14T15:00", tz=NEW_YORK)
    assert live.attrs["marketdata"]["forming"] is True
    same(live.iloc[:-1], closed)
    same(stack.client.get_bars("AAPL", "5min", limit=5), closed)


def test_forming_daily_bar(stack: Stack) -> None:
    frame = stack.client.get_bars("AAPL", "1day", limit=3, include_forming=True, tz=None)
    assert list(pd.DatetimeIndex(frame.index).date) == [
        date(2024, 3, day) for day in (11, 12, 13, 14)
    ]
    closed = stack.client.get_bars("AAPL", "1day", limit=3, tz=None)
    assert closed.index[-1].date() == date(2024, 3, 13)


def test_daily_bar_appears_twenty_minutes_after_the_close(stack: Stack) -> None:
    last = "2024-03-13"
    for moment, expected in (
        ("2024-03-14T16:19:59-04:00", last),
        ("2024-03-14T16:20:00-04:00", "2024-03-14"),
    ):
        stack.set_time(moment)
        frame = stack.client.get_bars("AAPL", "1day", limit=1, tz=None)
        assert str(frame.index[-1].date()) == expected


def test_derived_bars_equal_an_independent_computation(stack: Stack) -> None:
    minutes = stack.client.get_bars(
        "AAPL", "1min", start="2024-03-06", end="2024-03-14", tz="exchange"
    )
    fives = stack.client.get_bars(
        "AAPL", "5min", start="2024-03-06", end="2024-03-14", tz="exchange"
    )
    grouped = minutes.groupby(pd.DatetimeIndex(minutes.index).floor("5min"))
    same(
        fives[["open", "high", "low", "close"]],
        grouped.agg({"open": "first", "high": "max", "low": "min", "close": "last"}),
    )
    np.testing.assert_allclose(fives["volume"], grouped["volume"].sum(), rtol=1e-12)


def test_limit_inside_a_window_and_on_a_young_series(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    frame = stack.client.get_bars("AAPL", "1min", start="2024-03-13", end="2024-03-14", limit=20)
    assert len(frame) == 20
    assert frame.index[-1] == pd.Timestamp("2024-03-13T15:59", tz=NEW_YORK)
    listed = stack.client.get_bars("ARM", "1day", limit=2000)
    assert 0 < len(listed) < 2000
    assert listed.attrs["marketdata"]["truncated"] is True
    stack.forget_calls()
    same(stack.client.get_bars("ARM", "1day", limit=2000), listed)
    assert stack.calls() == 0


def test_another_client_reads_what_the_first_kept(stack: Stack) -> None:
    first = stack.client.get_bars("AAPL", "1min", limit=100)
    stack.forget_calls()
    with stack.connect() as other:
        same(other.get_bars("AAPL", "1min", limit=100), first)
    assert stack.calls() == 0


def test_invariant_10_feeds_do_not_mix(stack: Stack) -> None:
    sip = stack.client.get_bars("AAPL", "1min", start="2024-03-13", end="2024-03-14")
    iex = stack.client.get_bars("AAPL", "1min", start="2024-03-13", end="2024-03-14", feed="iex")
    assert iex["volume"].sum() < sip["volume"].sum() / 5
    stack.flush_redis()
    same(stack.client.get_bars("AAPL", "1min", start="2024-03-13", end="2024-03-14"), sip)
    same(
        stack.client.get_bars("AAPL", "1min", start="2024-03-13", end="2024-03-14", feed="IEX"), iex
    )
    with pytest.raises(md.RequestError, match="feed"):
        stack.client.get_bars("AAPL", "1min", limit=1, feed="nasdaq")


def test_provenance_is_small_and_plain(stack: Stack) -> None:
    import json

    symbols = [f"S{n:05}" for n in range(300)]
    with pytest.warns(md.MissingSymbolsWarning):  # a few of them are not listed yet
        frame = stack.client.get_bars(symbols, "1day", limit=2, missing="skip")
    facts = frame.attrs["marketdata"]
    assert all(isinstance(v, str | int | float | bool) for v in facts.values())
    assert len(json.dumps(facts)) < 1024
    assert facts["simulated"] is True
    assert facts["fetched_at"] <= facts["answered_at"]


def test_explain_gaps_and_coverage_fetch_nothing(stack: Stack) -> None:
    stack.client.get_bars("AAPL", "1min", start="2024-03-12", end="2024-03-13")
    stack.forget_calls()
    plan = stack.client.explain("AAPL", "1min", start="2024-03-11", end="2024-03-13")
    assert plan.calls == 1
    assert plan.bars == 960
    (gap,) = stack.client.gaps("AAPL", "1min", start="2024-03-11", end="2024-03-13")
    assert gap.start == datetime.fromisoformat("2024-03-11T04:00-04:00")
    assert gap.end == datetime.fromisoformat("2024-03-11T20:00-04:00")
    table = stack.client.gaps(["AAPL", "MSFT"], "1min", start="2024-03-11", end="2024-03-13")
    assert list(table["symbol"]) == ["AAPL", "MSFT"]
    assert len(stack.sandbox.requests) == 0


def test_unsettled_bars_that_a_later_read_jumped_over_are_still_read_again(stack: Stack) -> None:
    def read(start: str, end: str) -> None:
        day, zone = "2024-03-14T", "-04:00"
        stack.client.get_bars("AAPL", "1min", start=f"{day}{start}{zone}", end=f"{day}{end}{zone}")

    stack.set_time("2024-03-14T15:00:05-04:00")
    read("14:30", "15:00")
    stack.set_time("2024-03-14T15:45:00-04:00")
    read("15:20", "15:40")
    stack.forget_calls()
    read("14:30", "15:00")
    read("15:20", "15:40")
    assert stack.calls() == 0, "covered reads with nothing missing"
    read("14:30", "15:40")
    (request,) = stack.sandbox.requests
    assert request.params["start"] == "2024-03-14T18:59:00Z"  # 14:59, stored at 15:00:05
    stack.forget_calls()
    read("14:30", "15:41")
    (request,) = stack.sandbox.requests
    assert request.params["start"] == "2024-03-14T19:40:00Z", "settled by now"


def test_bars_stored_before_their_corrections_ride_along_with_the_next_request(
    stack: Stack,
) -> None:
    """A minute read 5 s after its end may still be corrected: the next gap begins with it."""
    stack.set_time("2024-03-14T15:00:05-04:00")
    stack.client.get_bars("AAPL", "1min", limit=30)
    stack.forget_calls()
    stack.set_time("2024-03-14T15:02:05-04:00")
    stack.client.get_bars("AAPL", "1min", limit=30)
    (request,) = stack.sandbox.requests
    assert request.params["start"] == "2024-03-14T18:59:00Z"  # 14:59, stored at 15:00:05
    stack.forget_calls()
    stack.set_time("2024-03-14T17:00:05-04:00")
    stack.client.get_bars("AAPL", "1day", limit=5)
    stack.set_time("2024-03-15T17:00:05-04:00")
    stack.forget_calls()
    stack.client.get_bars("AAPL", "1day", limit=5)
    (request,) = stack.sandbox.requests
    # The day before was read the same evening, before it was final.
    assert request.params["start"] == "2024-03-14T04:00:00Z"


def test_a_block_claims_only_what_was_read(stack: Stack) -> None:
    """Another client fetches the days before, between our plan and our read of the store."""
    other = stack.connect()
    store = runtime(stack.client).store
    read = store.read

    def late(requests: Sequence[ReadRequest]) -> object:
        store.read = read  # type: ignore[method-assign]
        other.get_bars("AAPL", "1min", start="2024-03-12", end="2024-03-14")
        return read(requests)

    store.read = late  # type: ignore[method-assign, assignment]
    stack.client.get_bars("AAPL", "1min", start="2024-03-14")
    window = "2024-03-13T15:00-04:00"
    through_redis = stack.client.get_bars("AAPL", "1min", start=window)
    stack.flush_redis()
    same(through_redis, stack.client.get_bars("AAPL", "1min", start=window))
    assert len(through_redis) > 380
    other.close()
