"""Indicators through all tiers: the same values from each, whatever the window."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest

import marketdata as md
from marketdata.client import Client
from marketdata.clock import Deadline
from marketdata.indicator_updates import IndicatorUpdater
from marketdata.kept_indicators import KEPT_COLUMNS
from marketdata.protocols import Commit
from marketdata.sandbox import GeneratedMarket
from marketdata.spans import Span
from marketdata.types import COLUMNS, MINUTE, Bars, SeriesKey, Timeframe
from tests.stack import Stack, runtime, same, tiers

MANY = ["rsi_14", "ema_50", "sma_200", "macd_12_26_9", "bbands_20_2", "atr_14", "adx_14", "stoch"]
NEW_YORK = "America/New_York"


def close(left: pd.DataFrame, right: pd.DataFrame) -> None:
    """Assert that two frames agree within 1e-9, relative to each column's size."""
    assert list(left.columns) == list(right.columns)
    pd.testing.assert_index_equal(left.index, right.index)
    for name in left.columns:
        ours, theirs = left[name].to_numpy(), right[name].to_numpy()
        scale = np.nanmax(np.abs(theirs), initial=0.0)
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9 * scale, err_msg=name)


def computed(client: Client, *arguments: object, **options: object) -> pd.DataFrame:
    """Return indicators computed from stored bars: an end that is given is not served hot."""
    return client.get_indicators(*arguments, end="now", **options)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------- shape


def test_the_default_set_comes_from_the_cache_the_second_time(stack: Stack) -> None:
    frame = stack.client.get_indicators("AAPL", limit=20)
    assert len(frame) == 20
    assert tuple(frame.columns) == KEPT_COLUMNS
    assert set(frame.dtypes) == {np.dtype("float64")}
    assert not frame.isna().any().any()
    assert frame.index.name == "timestamp"
    again = stack.client.get_indicators("AAPL", limit=20)
    assert tiers(again) == "redis:1"
    same(frame, again)
    close(computed(stack.client, "AAPL", limit=20), again)
    again.loc[:, "rsi_14"] = -1.0
    same(frame, stack.client.get_indicators("AAPL", limit=20))


@pytest.mark.parametrize("timeframe", ["1min", "15min", "1day", "1week"])
def test_invariant_33_cached_equals_computed(stack: Stack, timeframe: str) -> None:
    symbols = ["AAPL", "KO"]
    for names in (None, ["macd_12_26_9", "rsi_9"], "BBU_20_2.0"):
        first = stack.client.get_indicators(symbols, names, timeframe, limit=30)
        hot = stack.client.get_indicators(symbols, names, timeframe, limit=30)
        assert tiers(hot) == "redis:2"
        same(first, hot)
        close(computed(stack.client, symbols, names, timeframe, limit=30), hot)


def test_columns_stand_in_the_order_asked_and_bars_before_them(stack: Stack) -> None:
    names: list[Any] = ["sma_10", {"bbands": {"length": 20, "std": 2.5}}, "RSI_14"]
    for _ in range(2):
        frame = stack.client.get_indicators("KO", names, "1min", limit=5, bars=True)
        bands = [f"bbands_20_2.5_{part}" for part in ("upper", "middle", "lower")]
        assert list(frame.columns) == [*COLUMNS, "sma_10", *bands, "rsi_14"]
        bars = stack.client.get_bars("KO", "1min", limit=5, adjustment="split")
        same(frame[list(COLUMNS)], bars)
    hot = stack.client.get_indicators("KO", "sma_10", "1min", limit=5, bars=True)
    hot = stack.client.get_indicators("KO", "sma_10", "1min", limit=5, bars=True)
    assert "redis" in tiers(hot)
    close(hot, frame[[*COLUMNS, "sma_10"]])


def test_vwap_beside_bars_is_the_indicator_and_stands_there_once(stack: Stack) -> None:
    alone = stack.client.get_indicators("KO", ["vwap", "sma_10"], "1min", limit=5)
    beside = stack.client.get_indicators("KO", ["vwap", "sma_10"], "1min", limit=5, bars=True)
    kept = [name for name in COLUMNS if name != "vwap"]
    assert list(beside.columns) == [*kept, "vwap", "sma_10"]
    same(beside[["vwap", "sma_10"]], alone)
    prices = stack.client.get_bars("KO", "1min", limit=5, adjustment="split")
    same(beside[kept], prices[kept])
    assert (beside["vwap"] != prices["vwap"]).any()
    field = stack.client.get_indicators("KO", "vwap", "1min", limit=5, bars=True, field="vwap")
    same(field.rename(columns={"KO": "vwap"}).rename_axis(columns=None), alone[["vwap"]])


def test_a_collection_gives_a_multiindex_and_a_field_a_matrix(stack: Stack) -> None:
    frame = stack.client.get_indicators(["MSFT", "AAPL"], "rsi_14", limit=3)
    assert list(frame.index.names) == ["symbol", "timestamp"]
    assert list(frame.index.get_level_values(0).unique()) == ["AAPL", "MSFT"]
    matrix = stack.client.get_indicators(["MSFT", "AAPL"], limit=3, field="rsi_14")
    assert list(matrix.columns) == ["MSFT", "AAPL"]
    np.testing.assert_array_equal(matrix["AAPL"], frame.loc["AAPL", "rsi_14"])
    prices = stack.client.get_indicators(["MSFT", "AAPL"], limit=3, field="close", bars=True)
    assert (prices > 1).all().all()
    with pytest.raises(md.RequestError, match="field"):
        stack.client.get_indicators("AAPL", "rsi_14", field="close")


def test_an_empty_range_keeps_the_shape(stack: Stack) -> None:
    frame = stack.client.get_indicators(
        "AAPL", "macd_12_26_9", "1min", start="2024-03-09", end="2024-03-10"
    )
    assert len(frame) == 0
    assert len(frame.columns) == 3
    assert frame.index.dtype == pd.DatetimeTZDtype("us", "UTC")


def test_zones_and_naive_dates(stack: Stack) -> None:
    dates = stack.client.get_indicators("AAPL", "rsi_14", limit=2, tz=None)
    assert str(dates.index[-1]) == "2024-03-13 00:00:00"
    local = stack.client.get_indicators("AAPL", "rsi_14", "1min", limit=2, tz="exchange")
    assert str(local.index.tz) == NEW_YORK  # type: ignore[attr-defined]


def test_what_cannot_be_right_is_refused_with_the_nearest_names(stack: Stack) -> None:
    get = stack.client.get_indicators
    with pytest.raises(md.RequestError, match=r"'rsj_14'.*rsi"):
        get("AAPL", "rsj_14")
    with pytest.raises(md.RequestError, match="length of rsi"):
        get("AAPL", "rsi_0")
    with pytest.raises(md.RequestError, match="raw, split, dividend, all"):
        get("AAPL", adjustment="total")  # type: ignore[arg-type]
    with pytest.raises(md.InvalidTimeframeError):
        get("AAPL", None, "7min")
    assert len(stack.sandbox.requests) == 0
    with pytest.raises(md.UnknownSymbolError, match="NOSUCH"):
        get(["AAPL", "NOSUCH"], limit=3)
    with pytest.warns(md.MissingSymbolsWarning):
        frame = get(["AAPL", "NOSUCH"], limit=3, missing="skip")
    assert list(frame.index.get_level_values(0).unique()) == ["AAPL"]


def test_provenance_is_small_and_plain(stack: Stack) -> None:
    symbols = ["AAPL", "MSFT", "KO", "PEP", "JPM", "BAC", "WFC", "GS", "MS", "V", "MA", "HD"]
    for frame in (
        stack.client.get_indicators("AAPL", limit=3),
        stack.client.get_indicators("AAPL", limit=3),
        stack.client.get_indicators(symbols, [*MANY, "cci_20", "mfi_14"], limit=3),
    ):
        facts = frame.attrs["marketdata"]
        assert all(isinstance(v, str | int | float | bool) for v in facts.values())
        assert len(repr(dict(facts)).encode()) < 1024
        assert facts["indicators"]
        assert facts["action_version"]
        assert facts["unstabilised"] is False
        assert copy.deepcopy(facts) is facts


def test_the_catalogue(stack: Stack) -> None:
    listed = stack.client.indicators(pandas_ta=False)
    assert {"rsi", "macd", "bbands", "vwap"} <= set(listed["name"])


# ------------------------------------------------------------------------------------ windows


@pytest.mark.parametrize(
    ("symbol", "timeframe", "now"),
    [
        ("AAPL", "1min", "2024-03-14T15:00:30-04:00"),  # past the change to summer time
        ("UGA", "1min", "2024-03-12T11:00:30-04:00"),  # sparse
        ("WMT", "1min", "2024-02-27T15:00:30-05:00"),  # a split the day before
        ("KO", "5min", "2023-11-27T12:00:30-05:00"),  # a half-day and a holiday
        ("WMT", "15min", "2024-03-14T15:00:30-04:00"),
        ("WMT", "1day", "2024-03-14T15:00:30-04:00"),
        ("WMT", "1week", "2024-03-14T15:00:30-04:00"),
    ],
)
def test_two_windows_that_share_a_bar_agree(
    make_stack: Callable[..., Stack], symbol: str, timeframe: str, now: str
) -> None:
    stack = make_stack(at=now)
    get = stack.client.get_indicators
    names = [*MANY, "vwap", "obv"] if timeframe == "1min" else MANY
    long = get(symbol, names, timeframe, limit=700)
    assert not long.isna().any().any()
    chance = random.Random(5)
    for _ in range(8):
        low = chance.randrange(0, 690)
        high = chance.randrange(low + 1, 700)
        window = long.iloc[low:high]
        options = {"start": window.index[0], "end": window.index[-1] + pd.Timedelta(seconds=1)}
        close(get(symbol, names, timeframe, **options), window)
        limit = chance.randrange(1, 300)
        if high - limit >= 0:
            newest = get(symbol, names, timeframe, limit=limit, end=options["end"])
            close(newest, long.iloc[high - limit : high])


def test_relative_volume_has_its_sessions_before_it(stack: Stack) -> None:
    get = stack.client.get_indicators
    long = get("KO", "relative_volume_20", "5min", limit=200)
    assert not long.isna().any().any()
    close(get("KO", "relative_volume_20", "5min", limit=7), long.tail(7))
    close(get("KO", "relative_volume_20", "5min", start=long.index[150]), long.iloc[150:])


def test_no_value_changes_when_bars_are_appended(stack: Stack) -> None:
    before = stack.client.get_indicators("AAPL", MANY, "1min", limit=50)
    stack.clock.advance(minutes=7)
    after = stack.client.get_indicators("AAPL", MANY, "1min", limit=57)
    close(after.iloc[:50], before)


def test_values_are_missing_only_where_the_series_itself_begins(stack: Stack) -> None:
    frame = stack.client.get_indicators("ARM", ["rsi_14", "sma_50"], start="2023-09-01")
    first = pd.Timestamp("2023-09-14", tz=NEW_YORK)
    assert frame.index[0] == first
    assert frame["rsi_14"].isna().sum() == 14
    assert frame["sma_50"].isna().sum() == 49
    later = stack.client.get_indicators("ARM", ["rsi_14", "sma_50"], limit=20)
    close(later, frame.tail(20))
    assert later.attrs["marketdata"]["truncated"] is False
    everything = stack.client.get_indicators("ARM", "rsi_14", limit=500)
    assert len(everything) == len(frame)
    assert everything.attrs["marketdata"]["truncated"] is True
    assert everything.attrs["marketdata"]["unstabilised"] is False


def test_the_forming_bar_feeds_values_only_on_request(stack: Stack) -> None:
    stack.set_time("2024-03-14T15:02:30-04:00")
    get = stack.client.get_indicators
    closed = get("AAPL", "sma_10", "5min", limit=3)
    frame = get("AAPL", "sma_10", "5min", limit=3, include_forming=True)
    assert len(frame) == 4
    assert frame.index[-1] == pd.Timestamp("2024-03-14T15:00", tz=NEW_YORK)
    assert frame.attrs["marketdata"]["forming"] is True
    same(frame.iloc[:3], closed)
    same(get("AAPL", "sma_10", "5min", limit=3), closed)


# ---------------------------------------------------------------------------- freshness and age


def test_the_block_is_current_only_until_the_next_bar(stack: Stack) -> None:
    get = stack.client.get_indicators
    get("AAPL", None, "1min", limit=3)
    stack.clock.advance(minutes=1)
    frame = get("AAPL", None, "1min", limit=3)
    assert "redis" not in tiers(frame)
    assert frame.index[-1] == pd.Timestamp("2024-03-14T15:00", tz=NEW_YORK)
    same(get("AAPL", None, "1min", limit=3), frame)
    assert tiers(get("AAPL", None, "1min", limit=3)) == "redis:1"


def correct(stack: Stack, symbol: str, index: int) -> None:
    """Let the store learn that an older bar of the day was another one."""
    running = runtime(stack.client)
    key = SeriesKey(running.provider, running.source.feed, symbol, Timeframe.MIN_1)
    frame = stack.client.get_bars(symbol, "1min", limit=100)
    stamp = int(frame.index.asi8[index])  # type: ignore[attr-defined]
    values = frame.to_numpy()[index] * 1.01
    now_us = stack.clock.now_us()
    bars = Bars(np.array([stamp]), np.ascontiguousarray(values[:, None]))
    commit = Commit(key, bars, Span(stamp, stamp + MINUTE), now_us, now_us, now_us)
    running.store.commit([commit], before_commit=running.cache.raise_floor)


def test_a_corrected_older_bar_changes_the_values_at_once(stack: Stack) -> None:
    get = stack.client.get_indicators
    before = get("AAPL", None, "1min", limit=5)
    assert tiers(get("AAPL", None, "1min", limit=5)) == "redis:1"
    correct(stack, "AAPL", -15)
    after = get("AAPL", None, "1min", limit=5)
    assert tiers(after) == "postgres:1"
    assert (after["sma_20"] != before["sma_20"]).all()
    assert after.attrs["marketdata"]["fingerprint"] != before.attrs["marketdata"]["fingerprint"]
    again = get("AAPL", None, "1min", limit=5)
    assert tiers(again) == "redis:1"
    same(again, after)


def test_fault_25_a_late_split_switches_values_at_once(make_stack: Callable[..., Stack]) -> None:
    market = GeneratedMarket(seed=3)
    market.add_split("KO", date(2024, 3, 8), 4, 1, announced=date(2024, 3, 15))
    stack = make_stack(source=market)
    get = stack.client.get_indicators
    one = get("KO", limit=40)
    assert tiers(get("KO", limit=40)) == "redis:1"
    stack.set_time("2024-03-15T09:00:00-04:00")
    running = runtime(stack.client)
    running.actions.checked(running.provider, ["KO"], 0, Deadline(20))
    two = get("KO", limit=40)
    assert tiers(two) != "redis:1"
    assert one["sma_200"].iloc[-1] > 3 * two["sma_200"].iloc[-1], "nobody had told of the split"
    assert two["sma_200"].iloc[-1] < 2 * two["sma_10"].iloc[-1]
    assert two.attrs["marketdata"]["action_version"] != one.attrs["marketdata"]["action_version"]
    other = stack.connect()
    try:
        same(other.get_indicators("KO", limit=40), two)
        assert tiers(other.get_indicators("KO", limit=40)) == "redis:1"
    finally:
        other.close()


def test_an_announced_split_counts_from_its_day_on(make_stack: Callable[..., Stack]) -> None:
    market = GeneratedMarket(seed=3)
    market.add_split("KO", date(2024, 3, 15), 4, 1, announced=date(2024, 3, 1))
    stack = make_stack(source=market, at="2024-03-14T23:30:00-04:00")
    get = stack.client.get_indicators
    before = get("KO", limit=5, bars=True)
    same(before[list(COLUMNS)], stack.client.get_bars("KO", limit=5))
    assert tiers(get("KO", limit=5)) == "redis:1"
    updater = IndicatorUpdater(runtime(stack.client))
    stack.set_time("2024-03-15T00:30:00-04:00")  # no bar has come since, nobody was asked again
    after = get("KO", limit=5)
    assert tiers(after) != "redis:1"
    np.testing.assert_allclose(after["sma_200"], before["sma_200"] / 4, rtol=1e-9)
    same(get("KO", limit=5), after)
    assert tiers(get("KO", limit=5)) == "redis:1"
    key = SeriesKey(runtime(stack.client).provider, "sip", "KO", Timeframe.DAY_1)
    assert updater.update({key: Bars.empty()}) == 1
    close(get("KO", limit=5), after)
    assert tiers(get("KO", limit=5)) == "redis:1"


def test_splits_are_asked_for_again_after_half_a_day(stack: Stack) -> None:
    get = stack.client.get_indicators
    stack.set_time("2024-03-14T17:00:00-04:00")
    get("KO", limit=3)
    assert tiers(get("KO", limit=3)) == "redis:1"
    stack.set_time("2024-03-15T06:00:00-04:00")  # no bar is due
    assert tiers(get("KO", limit=3)) != "redis:1"
    assert tiers(get("KO", limit=3)) == "redis:1"


def test_what_is_not_kept_is_never_taken_for_it(stack: Stack) -> None:
    get = stack.client.get_indicators
    get("WMT", limit=10)
    split = get("WMT", limit=10)
    assert tiers(split) == "redis:1"
    with pytest.warns(md.SplitInRangeWarning):
        raw = get("WMT", limit=10, adjustment="raw")
    assert "redis" not in tiers(raw) or not raw["sma_200"].equals(split["sma_200"])
    assert (raw["sma_200"] > 1.5 * split["sma_200"]).all()
    extended = get("KO", None, "1min", limit=10, session="extended")
    regular = get("KO", None, "1min", limit=10)
    assert not extended["ema_50"].equals(regular["ema_50"])
    assert len(get("KO", limit=65)) == 65


# ------------------------------------------------------------------------------ limited history


def test_without_a_broker_stored_bars_are_history_enough_to_answer(
    make_stack: Callable[..., Stack],
) -> None:
    stack = make_stack()
    full = stack.client.get_indicators("KO", ["rsi_14", "sma_10"], "1day", start="2022-01-01")
    stack.client.get_bars("PEP", "1day", start="2023-12-01")
    offline = stack.connect(broker="none")
    try:
        runtime(offline).source = runtime(stack.client).source
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            frame = offline.get_indicators("KO", ["rsi_14", "sma_10"], "1day", start="2024-02-01")
        close(frame, full.loc["2024-02-01":])
        with pytest.warns(md.ShortHistoryWarning, match="PEP") as caught:
            short = offline.get_indicators("PEP", ["rsi_14", "sma_10"], start="2024-02-01")
        assert len(caught) == 1
        assert short.attrs["marketdata"]["unstabilised"] is True
        assert not short.isna().any().any(), "what is stored before the window is used"
        with pytest.raises(md.DataUnavailableError, match="marketdata backfill"):
            offline.get_indicators("PEP", "rsi_14", start="2023-01-01")
    finally:
        offline.close()


def test_yahoo_s_minutes_reach_back_a_month_and_that_is_said(
    make_stack: Callable[..., Stack],
) -> None:
    stack = make_stack()
    yahoo = stack.connect(broker="yahoo", yahoo_url=stack.sandbox.url)
    try:
        with pytest.warns(md.ShortHistoryWarning) as caught:
            frame = yahoo.get_indicators("AAPL", "rsi_14", "1min", start="-28d")
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert len(frame) > 5000
        assert frame.attrs["marketdata"]["unstabilised"] is True
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            recent = yahoo.get_indicators("AAPL", "rsi_14", "1min", limit=20)
        assert recent.attrs["marketdata"]["unstabilised"] is False
        close(recent, frame.tail(20))
    finally:
        yahoo.close()


def test_what_a_read_computed_is_stored_for_sql(stack: Stack) -> None:
    def rows() -> list[tuple[Any, ...]]:
        with psycopg.connect(stack.settings["database_url"]) as connection:
            return connection.execute(
                'SELECT symbol, timeframe, "timestamp", indicator_name, indicator_value, provider, '
                "feed, adjustment, action_version FROM marketdata.market_data_indicators "
                "ORDER BY symbol, indicator_name"
            ).fetchall()

    frame = stack.client.get_indicators(["AAPL", "KO"], timeframe="1min", limit=5)
    found = rows()
    assert len(found) == 2 * len(KEPT_COLUMNS)
    for symbol, timeframe, moment, name, value, *rest in found:
        last = frame.loc[symbol].iloc[-1]
        assert (timeframe, moment, value) == ("1min", last.name, last[name])
        assert rest[:3] == ["sandbox", "sip", "split"]
    stack.clock.advance(minutes=1)
    stack.client.get_indicators("KO", "rsi_14", "1min", limit=1)
    assert {row[0]: row[2] for row in rows()}["KO"] > found[-1][2]
    before = rows()
    stack.client.get_indicators("KO", ["rsi_14", "atr_14"], "1min", limit=1)
    stack.client.get_indicators("KO", None, "1min", limit=9, adjustment="raw")
    stack.client.get_indicators("KO", None, "1min", limit=9, end="now")
    assert rows() == before, "only of what is kept, and only the newest"


def test_values_that_cannot_be_stored_are_given_all_the_same(stack: Stack) -> None:
    stack.client.get_bars("KO", "1min", limit=1200)
    with psycopg.connect(stack.settings["database_url"], autocommit=True) as connection:
        connection.execute("ALTER TABLE marketdata.indicator_latest ADD CHECK (false) NOT VALID")
    for _ in range(2):
        assert len(stack.client.get_indicators("KO", None, "1min", limit=5)) == 5
