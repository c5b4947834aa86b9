"""Live indicators: what an updater keeps in PostgreSQL and Redis is what a fresh read computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest

import marketdata as md
from marketdata.indicator_updates import IndicatorUpdater
from marketdata.indicators import resolve
from marketdata.protocols import Commit
from marketdata.sandbox import Fault, GeneratedMarket
from marketdata.spans import Span
from marketdata.types import MINUTE, Bars, SeriesKey, Timeframe
from tests.stack import Stack, runtime, tiers

SYMBOLS = ["AAPL", "KO", "S0007"]


def key_of(stack: Stack, symbol: str, timeframe: str = "1min") -> SeriesKey:
    running = runtime(stack.client)
    return SeriesKey(running.provider, running.source.feed, symbol, Timeframe(timeframe))


def fetched(stack: Stack, symbols: Sequence[str], minutes: int = 2) -> dict[SeriesKey, Bars]:
    """Read the newest minutes into the store; return them as an aggregator hands them on."""
    frame = stack.client.get_bars(symbols, "1min", start=f"-{minutes + 1}min", session="extended")
    found = {}
    for symbol in symbols:
        own = frame.loc[frame.index.get_level_values(0) == symbol].droplevel(0)
        stamps = own.index.as_unit("us").asi8.astype(np.int64)  # type: ignore[attr-defined]
        found[key_of(stack, symbol)] = Bars(stamps, np.ascontiguousarray(own.to_numpy().T))
    return found


def fresh(stack: Stack, symbol: str, timeframe: str, rows: int = 64) -> pd.DataFrame:
    """The last values, computed from stored bars: with an end that is given, nothing is served or
    left in Redis."""
    return stack.client.get_indicators(symbol, None, timeframe, limit=rows, end="now")


def stored_latest(
    stack: Stack, symbol: str, timeframe: str
) -> tuple[pd.Timestamp, dict[str, float]]:
    with psycopg.connect(stack.settings["database_url"]) as connection:
        rows = connection.execute(
            'SELECT "timestamp", indicator_name, indicator_value FROM '
            "marketdata.market_data_indicators WHERE symbol = %s AND timeframe = %s "
            'ORDER BY "timestamp" DESC LIMIT 15',
            (symbol, timeframe),
        ).fetchall()
    (stamp,) = {row[0] for row in rows}
    return pd.Timestamp(stamp), {row[1]: row[2] for row in rows}


def near(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> None:
    scale = np.abs(right).max()
    np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-9 * scale)


def check(stack: Stack, symbol: str, timeframe: str = "1min", *, rows: int = 1) -> None:
    """The newest values in Redis and PostgreSQL are those of a fresh computation."""
    kept = stack.client.get_indicators(symbol, None, timeframe, limit=rows)
    assert tiers(kept) == "redis:1"
    anew = fresh(stack, symbol, timeframe, rows)
    pd.testing.assert_index_equal(kept.index, anew.index)
    near(kept.to_numpy(), anew.to_numpy())
    stamp, values = stored_latest(stack, symbol, timeframe)
    assert stamp == anew.index[-1]
    near(np.array([values[name] for name in anew.columns]), anew.iloc[-1].to_numpy())


@pytest.fixture
def updater(stack: Stack) -> IndicatorUpdater:
    stack.client.get_bars(SYMBOLS, "1min", limit=1000)
    return IndicatorUpdater(runtime(stack.client))


def pass_minutes(stack: Stack, updater: IndicatorUpdater, count: int = 1) -> None:
    """Let minutes pass, each with its update."""
    for _ in range(count):
        stack.clock.advance(minutes=1)
        updater.update(fetched(stack, SYMBOLS))


def test_begun_from_stored_bars_and_taken_on_minute_by_minute(
    stack: Stack, updater: IndicatorUpdater
) -> None:
    assert updater.update(fetched(stack, SYMBOLS)) == len(SYMBOLS)
    assert updater.counts["begun"] == len(SYMBOLS) == len(updater)
    for symbol in SYMBOLS:
        check(stack, symbol, rows=64)
    for _ in range(4):
        pass_minutes(stack, updater)
        for symbol in SYMBOLS:
            check(stack, symbol, rows=64)
    assert updater.counts["begun"] == len(SYMBOLS), "no state was lost"
    assert updater.counts["stepped"] >= 8


def test_several_bars_at_once_and_through_the_close(
    stack: Stack, updater: IndicatorUpdater
) -> None:
    updater.update(fetched(stack, SYMBOLS))
    stack.set_time("2024-03-14T15:05:30-04:00")
    updater.update(fetched(stack, SYMBOLS, 8))
    for symbol in SYMBOLS:
        check(stack, symbol, rows=30)
    stack.set_time("2024-03-14T16:20:30-04:00")  # bars of extended hours count for nothing here
    updater.update(fetched(stack, SYMBOLS, 400))
    stack.set_time("2024-03-14T16:40:30-04:00")
    updater.update(fetched(stack, SYMBOLS, 420))
    for symbol in SYMBOLS:
        check(stack, symbol, rows=30)
    assert updater.counts["begun"] == len(SYMBOLS)


def test_commits_of_others_in_between_begin_it_anew(
    stack: Stack, updater: IndicatorUpdater
) -> None:
    updater.update(fetched(stack, SYMBOLS))
    stack.clock.advance(minutes=1)
    fetched(stack, SYMBOLS)  # somebody else reads the minute that the updater never sees
    pass_minutes(stack, updater)
    for symbol in SYMBOLS:
        check(stack, symbol, rows=64)
    assert updater.counts["begun"] == 2 * len(SYMBOLS)


def test_told_revisions_allow_for_several_commits(stack: Stack, updater: IndicatorUpdater) -> None:
    updater.update(fetched(stack, SYMBOLS))
    keys = [key_of(stack, s) for s in SYMBOLS]
    store = runtime(stack.client).store
    before = {key: state.revision for key, state in store.states(keys).items()}
    stack.clock.advance(minutes=1)
    fetched(stack, SYMBOLS)
    stack.clock.advance(minutes=1)
    closed = fetched(stack, SYMBOLS, 3)
    after = {key: state.revision for key, state in store.states(keys).items()}
    assert all(after[key] > before[key] + 1 for key in keys)
    updater.update(closed, {key: (before[key], after[key]) for key in keys})
    for symbol in SYMBOLS:
        check(stack, symbol, rows=64)
    assert updater.counts["begun"] == len(SYMBOLS)


def test_a_corrected_older_bar_begins_the_series_anew(
    stack: Stack, updater: IndicatorUpdater
) -> None:
    updater.update(fetched(stack, SYMBOLS))
    old = fresh(stack, "KO", "1min", 1)
    corrected = correct(stack, "KO", -30)
    assert "redis" not in tiers(stack.client.get_indicators("KO", None, "1min", limit=1))
    stack.flush_redis()
    assert updater.update(corrected) == 1
    check(stack, "KO", rows=64)
    assert not np.allclose(fresh(stack, "KO", "1min", 1), old, rtol=1e-6)


def test_the_newest_bar_revised_is_one_step(stack: Stack, updater: IndicatorUpdater) -> None:
    updater.update(fetched(stack, SYMBOLS))
    updater.update(correct(stack, "KO", -1))
    check(stack, "KO", rows=64)
    pass_minutes(stack, updater)
    check(stack, "KO", rows=64)
    assert updater.counts["begun"] == len(SYMBOLS)


def correct(stack: Stack, symbol: str, index: int) -> dict[SeriesKey, Bars]:
    """Store another version of a bar of the day; return it as it is handed on."""
    running = runtime(stack.client)
    frame = stack.client.get_bars(symbol, "1min", limit=100)
    stamps = frame.index.as_unit("us").asi8  # type: ignore[attr-defined]
    values = np.ascontiguousarray(frame.to_numpy()[index][:, None]) * 1.01
    bars = Bars(np.array([stamps[index]], np.int64), values)
    key, now_us = key_of(stack, symbol), stack.clock.now_us()
    span = Span(int(stamps[index]), int(stamps[index]) + MINUTE)
    commit = Commit(key, bars, span, now_us, now_us, now_us)
    running.store.commit([commit], before_commit=running.cache.raise_floor)
    return {key: bars}


def test_quiet_minutes_keep_the_block_current(stack: Stack) -> None:
    symbol = "BRK.A"  # a handful of trades a day
    stack.client.get_bars(symbol, "1min", limit=1000)
    updater = IndicatorUpdater(runtime(stack.client))
    updater.update(fetched(stack, [symbol]))
    quiet = 0
    for _ in range(6):
        stack.clock.advance(minutes=1)
        closed = fetched(stack, [symbol])
        quiet += updater.update(closed) == 0
        check(stack, symbol, rows=20)
    assert quiet
    assert updater.counts["begun"] == 1


def test_wanted_timeframes_are_derived(stack: Stack) -> None:
    wanted = [("AAPL", Timeframe.MIN_5, 0), ("KO", Timeframe.MIN_1, 0), ("KO", Timeframe.MIN_15, 0)]
    stack.client.get_indicators("AAPL", None, "5min", limit=1)
    stack.client.get_indicators("KO", None, "15min", limit=1)
    stack.flush_redis()
    updater = IndicatorUpdater(runtime(stack.client), wanted=lambda: wanted)
    updater.update(fetched(stack, ["AAPL", "KO", "S0007"]))
    assert len(updater) == 3
    for _ in range(16):
        stack.clock.advance(minutes=1)
        updater.update(fetched(stack, ["AAPL", "KO", "S0007"]))
    check(stack, "AAPL", "5min", rows=60)
    check(stack, "KO", "15min", rows=60)
    check(stack, "KO", "1min", rows=60)
    assert updater.counts["begun"] == 3
    wanted.pop()
    updater._targets_until = 0.0
    updater.update(fetched(stack, ["AAPL", "KO"]))
    assert len(updater) == 2


def test_invariant_31_a_late_split_begins_it_anew(make_stack: Callable[..., Stack]) -> None:
    market = GeneratedMarket(seed=3)
    market.add_split("KO", date(2024, 3, 14), 4, 1, announced=date(2024, 3, 14))
    stack = make_stack(source=market, at="2024-03-13T19:00:00-04:00")
    stack.client.get_bars(["KO", "PEP"], "1min", limit=1000)
    updater = IndicatorUpdater(runtime(stack.client))
    updater.update(fetched(stack, ["KO", "PEP"]))
    before = stack.client.get_indicators("KO", None, "1min", limit=1)
    stack.set_time("2024-03-14T09:40:30-04:00")
    stack.client.get_bars("KO", "1day", limit=5, adjustment="split")  # somebody hears of it
    with pytest.warns(md.SplitInRangeWarning):
        closed = fetched(stack, ["KO", "PEP"], 1000)
    updater.update(closed)
    for symbol in ("KO", "PEP"):
        check(stack, symbol, rows=30)
    after = stack.client.get_indicators("KO", None, "1min", limit=1)
    assert after["sma_200"].iloc[0] < before["sma_200"].iloc[0] / 2
    _, values = stored_latest(stack, "KO", "1min")
    assert values["sma_200"] == pytest.approx(after["sma_200"].iloc[0])


def test_too_little_history_waits_and_is_filled(stack: Stack) -> None:
    dense = ["AAPL", "KO"]
    stack.client.get_bars(dense, "1min", limit=100)
    updater = IndicatorUpdater(runtime(stack.client))
    assert updater.update(fetched(stack, dense)) == 0
    assert updater.counts["waiting"] == len(dense)
    calls = stack.calls()
    stack.clock.advance(minutes=1)
    updater.update(fetched(stack, dense))
    assert stack.calls() == calls + 1, "an update asks for no history"
    assert len(updater) == 0
    stop = threading.Event()
    assert updater.fill(stop) == len(dense)
    assert updater.counts["waiting"] == 0
    for symbol in dense:
        check(stack, symbol, rows=64)
    stack.clock.advance(minutes=1)
    updater.update(fetched(stack, dense))
    for symbol in dense:
        check(stack, symbol, rows=64)
    stop.set()
    assert updater.fill(stop) == 0


def test_a_fill_that_fails_is_made_again(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.client.get_bars("AAPL", "1min", limit=100)
    updater = IndicatorUpdater(runtime(stack.client))
    updater.update(fetched(stack, ["AAPL"]))
    stop = threading.Event()
    with monkeypatch.context() as broken:
        broken.setattr(updater._stepper.store, "save", _gone)
        with pytest.raises(md.StoreUnavailableError):
            updater.fill(stop)
    assert len(updater) == 0
    assert updater.fill(stop) == 1
    check(stack, "AAPL", rows=64)


def test_a_young_series_is_filled_from_its_first_bar(stack: Stack) -> None:
    stack.client.get_bars("ARM", "1day", limit=3)
    updater = IndicatorUpdater(runtime(stack.client))
    key = key_of(stack, "ARM", "1day")
    assert updater.update({key: Bars.empty()}) == 0
    assert updater.fill(threading.Event()) == 1
    anew = fresh(stack, "ARM", "1day", 1)
    _, values = stored_latest(stack, "ARM", "1day")
    assert "sma_200" not in values
    assert values["rsi_14"] == pytest.approx(anew["rsi_14"].iloc[0], rel=1e-9)


def test_history_is_kept_for_the_timeframes_a_setting_names(
    make_stack: Callable[..., Stack],
) -> None:
    stack = make_stack(indicator_history="1min", at="2024-03-14T15:00:30-04:00")
    stack.client.get_bars("KO", "1min", limit=1000)
    updater = IndicatorUpdater(runtime(stack.client))
    updater.update(fetched(stack, ["KO"]))
    for _ in range(3):
        stack.clock.advance(minutes=2)
        updater.update(fetched(stack, ["KO"], 4))
    with psycopg.connect(stack.settings["database_url"]) as connection:
        rows = connection.execute(
            "SELECT indicator_value FROM marketdata.market_data_indicators "
            "WHERE indicator_name = 'ema_50' ORDER BY \"timestamp\""
        ).fetchall()
    assert len(rows) > 100
    anew = fresh(stack, "KO", "1min", len(rows))
    near(np.array(rows).ravel(), anew["ema_50"].to_numpy())


def test_an_update_that_fails_is_made_good_by_the_next(
    stack: Stack, updater: IndicatorUpdater, monkeypatch: pytest.MonkeyPatch
) -> None:
    updater.update(fetched(stack, SYMBOLS))
    stack.clock.advance(minutes=1)
    closed = fetched(stack, SYMBOLS)
    with monkeypatch.context() as broken:
        broken.setattr(updater._stepper.store, "save", _gone)
        with pytest.raises(md.StoreUnavailableError):
            updater.update(closed)
    pass_minutes(stack, updater)
    for symbol in SYMBOLS:
        check(stack, symbol, rows=64)


def _gone(*_: object) -> int:
    raise md.StoreUnavailableError("PostgreSQL is away")


def test_series_whose_splits_are_not_known_are_left_out(
    stack: Stack, updater: IndicatorUpdater
) -> None:
    stack.sandbox.faults.add(Fault("status", match="/v1/corporate-actions", status=500, times=None))
    assert updater.update(fetched(stack, SYMBOLS)) == 0
    assert updater.counts["unadjusted"] == len(SYMBOLS)


def test_other_indicators_than_the_kept_ones(stack: Stack) -> None:
    stack.client.get_bars("KO", "1min", limit=12_000)
    chosen = resolve(["atr_14", "vwap", "relative_volume_20"])
    updater = IndicatorUpdater(runtime(stack.client), chosen)
    updater.update(fetched(stack, ["KO"]))
    for _ in range(3):
        stack.clock.advance(minutes=1)
        updater.update(fetched(stack, ["KO"]))
    names = ["atr_14", "vwap", "relative_volume_20"]
    anew = stack.client.get_indicators("KO", names, "1min", limit=1)
    _, values = stored_latest(stack, "KO", "1min")
    near(np.array([values[name] for name in names]), anew.iloc[0].to_numpy())
    assert updater.counts["begun"] == 1


def test_readers_never_see_a_value_that_is_not_so(stack: Stack, updater: IndicatorUpdater) -> None:
    updater.update(fetched(stack, SYMBOLS))
    seen: list[pd.DataFrame] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.append(stack.client.get_indicators("KO", None, "1min", limit=20))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        pass_minutes(stack, updater, 8)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    truth = fresh(stack, "KO", "1min", 40)
    assert {tiers(frame) for frame in seen} >= {"redis:1"}
    for frame in {frame.index[-1]: frame for frame in seen}.values():
        near(frame.to_numpy(), truth.loc[frame.index].to_numpy())
    assert all(len(frame) == 20 for frame in seen)


def test_bars_that_others_stored_get_their_values_though_nothing_new_closes(stack: Stack) -> None:
    stack.client.get_bars("AAPL", "1min", limit=1000)
    stack.client.get_bars("KO", "1day", limit=1200)
    wanted = [
        ("AAPL", Timeframe.MIN_1, 0),
        ("KO", Timeframe.DAY_1, 0),
        ("MSFT", Timeframe.MIN_1, 0),
    ]
    updater = IndicatorUpdater(runtime(stack.client), wanted=lambda: wanted)
    assert updater.fill(threading.Event()) == 2, "of MSFT nothing is stored yet"
    check(stack, "AAPL", rows=64)
    check(stack, "KO", "1day", rows=64)
    assert updater.fill(threading.Event()) == 0
    # Another process finds them stored; one that ended before it had the values does not.
    assert (
        IndicatorUpdater(runtime(stack.client), wanted=lambda: wanted).fill(threading.Event()) == 0
    )
    stack.clock.advance(minutes=1)
    fetched(stack, ["AAPL"])
    later = IndicatorUpdater(runtime(stack.client), wanted=lambda: wanted)
    assert later.fill(threading.Event()) == 1
    check(stack, "AAPL")
    wanted.append(("AAPL", Timeframe.MIN_5, 0))
    later._targets_until = 0.0
    assert later.fill(threading.Event()) == 1
    check(stack, "AAPL", "5min")
    stack.clock.advance(minutes=1)
    assert later.update(fetched(stack, ["AAPL"])) == 1
    check(stack, "AAPL")
