"""Batch values against TA-Lib, published reference vectors, pandas-ta and plain arithmetic."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pandas as pd
import pytest

from marketdata.indicators import DEFAULT, UNBOUNDED, compute, history, resolve
from marketdata.types import Bars, Floats, Int64s, Timeframe
from tests.indicator_series import (
    assert_close,
    bars_of,
    cut,
    days,
    minutes,
    read,
    scale_of,
    talib_answers,
    walk,
)
from tests.shared_data import SHARED, needs_shared_data

COMPARED = [
    *[indicator.name for indicator in DEFAULT],
    *["atr_14", "natr_14", "true_range", "adx_14", "stoch_14_3_3", "cci_20", "mfi_14", "willr_14"],
    *["roc_10", "mom_10", "wma_20", "dema_20", "tema_20", "stdev_20"],
]


def values_of(names: object, bars: Bars, sessions: Int64s) -> dict[str, Floats]:
    indicators = resolve(names)  # type: ignore[arg-type]
    columns = [column for indicator in indicators for column in indicator.columns]
    return dict(zip(columns, compute(indicators, bars, sessions), strict=True))


# ------------------------------------------------------------------------------- against TA-Lib


@needs_shared_data
@pytest.mark.parametrize(
    "path", ["minute/us24_2019-02.csv.gz", "daily/us88_2012-2017.csv.gz"], ids=["minute", "daily"]
)
def test_values_are_talibs_on_real_prices(path):
    compared = 0
    for symbol, bars, sessions in read(path):
        got = values_of(COMPARED, bars, sessions)
        wanted = talib_answers(bars)
        for column in got:
            scale = scale_of(column, bars)
            # Two 1e-9 apart are the same; CCI of TA-Lib carries its own rounding where it is 0.
            loose = 1e3 if column.startswith("cci") else 1.0
            skip = 27 if column.startswith("adx_14_dm") else 0
            what = f"{symbol} {column}"
            assert_close(got[column][skip:], wanted[column][skip:], scale * loose, what)
            compared += 1
    assert compared >= 24 * 30


@needs_shared_data
def test_the_default_set_is_talibs_to_the_last_bit_on_real_prices():
    for symbol, bars, sessions in read("minute/us24_2019-02.csv.gz"):
        got, wanted = values_of(None, bars, sessions), talib_answers(bars)
        for column, row in got.items():
            np.testing.assert_array_equal(row, wanted[column], err_msg=f"{symbol} {column}")


def reference_bars() -> tuple[Bars, Int64s]:
    frame = pd.read_csv(SHARED / "indicators" / "quotes-default.csv")
    frame.columns = frame.columns.str.lower()
    stamp = frame.columns[0]
    dates = pd.DatetimeIndex(pd.to_datetime(frame[stamp])).tz_localize("America/New_York")
    timestamp = dates.tz_convert("UTC").as_unit("us").asi8
    values = np.full((7, len(frame)), np.nan)
    values[:5] = frame[["open", "high", "low", "close", "volume"]].to_numpy(np.float64).T
    return Bars(timestamp, values), np.arange(len(frame), dtype=np.int64)


def standard(name: str, field: str) -> Floats:
    rows = json.loads((SHARED / "indicators" / f"{name}.standard.json").read_text("utf-8"))
    return np.array([np.nan if row[field] is None else row[field] for row in rows])


@needs_shared_data
@pytest.mark.parametrize(
    ("column", "file", "field", "start"),
    [
        ("sma_20", "sma", "sma", 0),
        ("ema_20", "ema", "ema", 0),
        ("rsi_14", "rsi", "rsi", 0),
        ("bbands_20_2_upper", "bb", "upperBand", 0),
        ("bbands_20_2_middle", "bb", "sma", 0),
        ("bbands_20_2_lower", "bb", "lowerBand", 0),
        ("atr_14", "atr", "atr", 0),
        ("stoch_14_3_3_stochk", "stoch", "k", 17),  # ours is blank until both are there
        ("stoch_14_3_3_stochd", "stoch", "d", 0),
        ("macd_12_26_9", "macd", "macd", 150),
        ("macd_12_26_9_signal", "macd", "signal", 150),
        ("macd_12_26_9_hist", "macd", "histogram", 150),
        ("adx_14", "adx", "adx", 300),
        ("adx_14_dmp", "adx", "pdi", 300),
        ("adx_14_dmn", "adx", "mdi", 300),
    ],
)
def test_values_are_the_reference_vectors(column, file, field, start):
    bars, sessions = reference_bars()
    wanted = standard(file, field)
    got = values_of([column], bars, sessions)[column]
    assert len(got) == len(wanted) == 502
    # The vectors were seeded otherwise, where a start is given: 1e-7 of what remains of that.
    rtol = 1e-9 if not start or start == 17 else 1e-5
    np.testing.assert_allclose(got[start:], wanted[start:], rtol=rtol, atol=1e-9)


@needs_shared_data
def test_volume_flows_are_the_reference_vectors_in_differences():
    bars, sessions = reference_bars()
    got = values_of("obv", bars, sessions)["obv"]
    np.testing.assert_allclose(np.diff(got), np.diff(standard("obv", "obv")), rtol=1e-9)


@needs_shared_data
def test_values_are_talibs_recorded_ones():
    bars, sessions = reference_bars()
    with gzip.open(SHARED / "indicators" / "talib-on-default.csv.gz", "rt") as file:
        wanted = pd.read_csv(file)
    ours = {f"{kind}_{n}": f"{kind}_{n}" for kind in ("sma", "ema") for n in (5, 10, 20, 50, 200)}
    ours |= {f"{kind}_{n}": f"{kind}_{n}" for kind in ("rsi", "atr") for n in (7, 14, 21)}
    ours |= {
        "macd": "macd_12_26_9",
        "macd_signal": "macd_12_26_9_signal",
        "macd_hist": "macd_12_26_9_hist",
        "bb_upper": "bbands_20_2_upper",
        "bb_mid": "bbands_20_2_middle",
        "bb_lower": "bbands_20_2_lower",
        "stoch_k": "stoch_14_3_3_stochk",
        "stoch_d": "stoch_14_3_3_stochd",
        "adx_14": "adx_14",
        "cci_20": "cci_20",
        "mfi_14": "mfi_14",
        "obv": "obv",
        "ad": "ad",
        "willr_14": "willr_14",
        "roc_10": "roc_10",
        "wma_20": "wma_20",
        "stddev_20": "stdev_20",
        "trange": "true_range",
    }
    got = values_of(list(ours.values()), bars, sessions)
    for theirs, column in ours.items():
        scale = scale_of(column, bars) * 1e3
        assert_close(got[column], wanted[theirs].to_numpy(), scale, column)


# ---------------------------------------------------------------------------- plain arithmetic


def smoothed(values: Floats, seeds: int, weight: float) -> Floats:
    """Return an exponential average begun with a mean, as a loop."""
    out = np.full(len(values), np.nan)
    if len(values) >= seeds:
        out[seeds - 1] = values[:seeds].mean()
        for i in range(seeds, len(values)):
            out[i] = out[i - 1] + weight * (values[i] - out[i - 1])
    return out


def plain_default_set(close: Floats) -> dict[str, Floats]:
    """Return the default set from its formulas."""
    found = {}
    blank = np.full(1, np.nan)
    for n in (10, 20, 50, 200):
        windows = np.lib.stride_tricks.sliding_window_view(close, n)
        found[f"sma_{n}"] = np.concatenate([np.full(n - 1, np.nan), windows.mean(axis=1)])
    for n in (10, 20, 50):
        found[f"ema_{n}"] = smoothed(close, n, 2 / (n + 1))
    change = np.diff(close)
    for n in (9, 14):
        up = smoothed(np.maximum(change, 0), n, 1 / n)
        down = smoothed(np.maximum(-change, 0), n, 1 / n)
        found[f"rsi_{n}"] = np.concatenate([blank, 100 * up / (up + down)])
    fast = np.concatenate([np.full(14, np.nan), smoothed(close[14:], 12, 2 / 13)])
    line = fast - smoothed(close, 26, 2 / 27)
    signal = np.concatenate([np.full(25, np.nan), smoothed(line[25:], 9, 2 / 10)])
    line = np.where(np.isnan(signal), np.nan, line)
    found |= {"macd_12_26_9": line, "macd_12_26_9_signal": signal}
    found["macd_12_26_9_hist"] = line - signal
    windows = np.lib.stride_tricks.sliding_window_view(close, 20)
    reach = np.concatenate([np.full(19, np.nan), 2 * windows.std(axis=1)])
    middle = found["sma_20"]
    found["bbands_20_2_upper"], found["bbands_20_2_lower"] = middle + reach, middle - reach
    found["bbands_20_2_middle"] = middle
    return found


def test_the_default_set_is_what_its_formulas_say():
    close = walk(700, seed=4)
    timestamp, sessions = days(700)
    bars = bars_of(timestamp, close)
    got = values_of(None, bars, sessions)
    wanted = plain_default_set(close)
    assert set(got) == set(wanted)
    for column in got:
        assert_close(got[column], wanted[column], scale_of(column, bars), column)


def test_vwap_begins_with_each_session():
    timestamp, sessions = minutes(900)
    bars = bars_of(timestamp, walk(900))
    _, high, low, close, volume, *_ = bars.values
    frame = pd.DataFrame({"paid": (high + low + close) / 3 * volume, "volume": volume})
    sums = frame.groupby(sessions).cumsum()
    wanted = np.where(sums.volume > 0, sums.paid / sums.volume, (high + low + close) / 3)
    got = values_of("vwap", bars, sessions)["vwap"]
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


def test_vwap_of_a_session_without_volume_yet_is_the_typical_price():
    timestamp, sessions = minutes(400)
    bars = bars_of(timestamp, walk(400))
    bars.values[4, 388:392] = 0.0
    got = values_of("vwap", bars, sessions)["vwap"]
    np.testing.assert_allclose(got[390:392], bars.values[1:4, 390:392].mean(axis=0))


def test_flows_begin_with_the_session_for_minutes_and_with_the_series_for_days():
    close = walk(1000, seed=2)
    timestamp, sessions = minutes(1000)
    bars = bars_of(timestamp, close)
    whole = values_of(["obv", "ad"], bars, sessions)
    later = values_of(["obv", "ad"], cut(bars, 390, 1000), sessions[390:])
    for column in ("obv", "ad"):
        np.testing.assert_array_equal(whole[column][390:], later[column])
    assert whole["obv"][390] == bars.values[4, 390]
    timestamp, sessions = days(1000)
    bars = bars_of(timestamp, close)
    got = values_of("obv", bars, sessions)["obv"]
    signs = np.sign(np.diff(close, prepend=0.0))
    np.testing.assert_array_equal(got, np.cumsum(signs * bars.values[4]))


# ------------------------------------------------------------------------------ relative volume


def relative_volume(bars: Bars, sessions: Int64s, n: int, early: frozenset[int]) -> Floats:
    """Return volume against the same minute of the n sessions before, bar by bar."""
    at = {}
    clock = pd.DatetimeIndex(bars.timestamp.astype("datetime64[us]"), tz="UTC")
    minute = clock.tz_convert("America/New_York").strftime("%H:%M")
    for i, key in enumerate(zip(sessions.tolist(), minute, strict=True)):
        at[key] = bars.values[4, i]
    out = np.full(len(bars), np.nan)
    for i, (session, time) in enumerate(zip(sessions.tolist(), minute, strict=True)):
        before = [s for s in range(session - n, session) if not (s in early and time >= "13:00")]
        total = sum(at.get((s, time), 0.0) for s in before)
        if session - n >= sessions[0] and total:
            out[i] = bars.values[4, i] / (total / len(before))
    return out


@pytest.mark.parametrize("early", [frozenset(), frozenset({3})], ids=["full days", "a half-day"])
def test_relative_volume_is_against_the_same_minute_of_earlier_sessions(early):
    timestamp, sessions = minutes(390 * 8)
    bars = bars_of(timestamp, walk(len(timestamp)))
    kept = np.random.default_rng(0).random(len(timestamp)) > 0.1  # quiet minutes have no bar
    if early:
        kept &= ~((sessions == 3) & (np.arange(len(timestamp)) % 390 >= 210))
    bars, sessions = bars.take(kept), sessions[kept]
    (indicator,) = resolve("relative_volume_4")
    got = compute((indicator,), bars, sessions, early=early)[0]
    wanted = relative_volume(bars, sessions, 4, early)
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
    assert np.isnan(got[sessions < 4]).all()
    assert np.isfinite(got[sessions >= 4]).mean() > 0.9


def test_relative_volume_knows_the_exchanges_clock():
    """09:30 is 14:30 UTC on the Friday before the clocks change and 13:30 on the Monday after."""
    opens = pd.DatetimeIndex(["2024-03-08 09:30", "2024-03-11 09:30"], tz="America/New_York")
    timestamp = opens.tz_convert("UTC").as_unit("us").asi8
    bars = bars_of(timestamp, np.array([10.0, 11.0]))
    bars.values[4] = 50.0, 75.0
    got = compute(resolve("relative_volume_1"), bars, np.array([7, 8]))
    np.testing.assert_array_equal(got, [[np.nan, 1.5]])


def test_relative_volume_of_days_is_against_the_bars_before():
    timestamp, sessions = days(60)
    bars = bars_of(timestamp, walk(60))
    volume = pd.Series(bars.values[4])
    wanted = volume / volume.shift().rolling(5).mean()
    got = compute(resolve("relative_volume_5"), bars, sessions * 5)[0]  # weeks skip sessions
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


# ------------------------------------------------------------------------- flat and extreme data


def test_a_price_that_never_moves_gives_exact_values():
    timestamp, sessions = days(900)
    flat = np.full(900, 1000.01)
    got = values_of(COMPARED, bars_of(timestamp, flat), sessions)
    last = {column: row[-1] for column, row in got.items()}
    assert last["bbands_20_2_upper"] == pytest.approx(1000.01, rel=1e-14)
    zero = "rsi_14 rsi_9 stdev_20 atr_14 adx_14 adx_14_dmp cci_20 mfi_14 mom_10 true_range"
    for column in zero.split():
        assert last[column] == 0.0, column


def test_a_price_that_stops_moving_forgets_how_it_moved():
    """RSI and ADX are quotients of fading averages: 0 / 0 if nothing says when they end."""
    timestamp, sessions = days(2400)
    close = np.concatenate([walk(600, seed=1), np.full(900, 55.5), walk(900, seed=2, level=55)])
    bars = bars_of(timestamp, close)
    indicators = resolve(["rsi_14", "adx_14"])
    needed = history(indicators).bars
    whole = compute(indicators, bars, sessions)
    assert (whole[:, 600 + 440 : 1490] == 0).all()
    assert (whole[0, 640:900] > 0).all()
    for end in range(1000, 2400, 37):
        start = max(end - needed - 1, 0)
        part = compute(indicators, cut(bars, start, end), sessions[start:end])
        np.testing.assert_allclose(part[:, -1], whole[:, end - 1], rtol=1e-9, atol=1e-10)


def test_a_fall_by_a_million_leaves_no_rounding_behind():
    """What reverse splits make of penny stocks: a running sum would keep the old price's error."""
    close = np.concatenate([walk(300, level=5e6), walk(600, seed=3, level=2.0)])
    timestamp, sessions = days(900)
    bars = bars_of(timestamp, close)
    names = ["sma_200", "sma_10", "bbands_20_2", "stdev_20", "wma_20"]
    whole = values_of(names, bars, sessions)
    part = values_of(names, cut(bars, 600, 900), sessions[600:])
    for column in whole:
        np.testing.assert_allclose(part[column][200:], whole[column][800:], rtol=1e-12)


# ---------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("count", [0, 1, 2, 3, 15, 34])
def test_few_bars_give_rows_of_that_length(count):
    timestamp, sessions = days(count)
    bars = bars_of(timestamp, walk(count)) if count else Bars.empty()
    indicators = resolve([*COMPARED, "obv", "ad", "vwap", "relative_volume_3"])
    got = compute(indicators, bars, sessions)
    assert got.shape == (sum(len(i.columns) for i in indicators), count)
    assert got.dtype == np.float64


def test_the_first_values_come_after_the_lookback():
    timestamp, sessions = days(400)
    bars = bars_of(timestamp, walk(400))
    for indicator in resolve([*COMPARED, "obv", "ad", "vwap", "relative_volume_7"]):
        got = compute((indicator,), bars, sessions)
        assert not np.isnan(got[:, indicator.lookback :]).any(), indicator
        assert np.isnan(got[0, : indicator.lookback]).all(), indicator


def test_history_is_what_the_neediest_indicator_needs():
    assert history(resolve("sma_200")) == (199, 0)
    default = history(DEFAULT)
    assert 600 <= default.bars <= 1000
    assert default.sessions == 0
    assert history(resolve("vwap"), Timeframe.MIN_1) == (0, 1)
    assert history(resolve("relative_volume_20"), Timeframe.MIN_5) == (0, 20)
    assert history(resolve("relative_volume_20"), Timeframe.DAY_1) == (20, 0)
    assert history(resolve("obv"), Timeframe.MIN_1) == (0, 1)
    assert history(resolve("obv"), Timeframe.DAY_1).bars == UNBOUNDED
    assert history(()) == (0, 0)


def test_bars_in_the_middle_of_an_array_are_taken_as_they_are():
    timestamp, sessions = days(500)
    bars = bars_of(timestamp, walk(500))
    wide = Bars(timestamp[::1], np.asfortranarray(bars.values))
    np.testing.assert_array_equal(
        compute(DEFAULT, wide, sessions), compute(DEFAULT, bars, sessions)
    )


def test_missing_vwap_and_trade_counts_do_not_matter():
    timestamp, sessions = minutes(500)
    bars = bars_of(timestamp, walk(500))
    assert np.isnan(bars.values[5:]).all()
    assert not np.isnan(compute(resolve("vwap"), bars, sessions)).any()
