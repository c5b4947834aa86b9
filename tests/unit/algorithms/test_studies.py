"""Values of indicators: the same to the last bit, however much was loaded and in whichever steps."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pytest

from algorithms import Algorithm
from algorithms.hours import close_times, hours_between
from algorithms.lines import Floats, Int64s
from algorithms.series import BarArrays, Series
from algorithms.studies import ALL, Study, StudyBook, blocks, reach, studies_of
from tests.scripted_runs import instant

NAMES = (
    "sma_10", "ema_20", "rsi_14", "macd_12_26_9", "bbands_20_2", "atr_14", "stoch_14_3_3",
    "adx_14", "vwap", "relative_volume_5", "obv", "kama_10", "zscore_30",
)  # fmt: skip


HOURS = hours_between(instant("2015-01-02"), instant("2024-06-28"))


def labels_of(timeframe: str, first: str, last: str) -> Int64s:
    """Return the bar opens of every regular session between two days."""
    inside = (HOURS.midnight >= instant(first)) & (HOURS.midnight <= instant(last))
    if timeframe == "1day":
        return HOURS.midnight[inside]
    step = int(pd.Timedelta(timeframe).value // 1000)
    spans = zip(HOURS.open[inside], HOURS.close[inside], strict=True)
    return np.concatenate([np.arange(start, end, step, dtype=np.int64) for start, end in spans])


def prices(size: int) -> Floats:
    """Return a walk in cents, as prices are."""
    random = np.random.default_rng(20)
    close = np.round(40 + np.cumsum(random.normal(0, 0.03, size)), 2)
    open_ = np.round(close + random.normal(0, 0.02, size), 2)
    high = np.maximum(open_, close) + np.round(random.random(size) * 0.05, 2)
    low = np.minimum(open_, close) - np.round(random.random(size) * 0.05, 2)
    return np.array([open_, high, low, close, random.integers(1, 10_000, size).astype(float)])


def series(timeframe: str, labels: Int64s, columns: Floats) -> Series:
    closes = close_times(labels, timeframe, HOURS, "regular")
    return Series("X", timeframe, labels.copy(), closes, columns.copy())


def trailing(bars: BarArrays) -> Floats:
    """Return what rounds otherwise with every other beginning."""
    return np.asarray(pd.Series(np.cumsum(bars.close)).diff(7), np.float64)


def studies(timeframe: str) -> list[Study]:
    class Watches(Algorithm):
        indicators: Any = {**{name: name for name in NAMES}, "own": (trailing, 7)}

    return list(studies_of(Watches(symbols=["X"], timeframe=timeframe)))


WINDOWS = {
    "5min": ("2024-01-02", "2024-04-19", "2024-04-17"),
    "1hour": ("2023-06-01", "2024-04-19", "2024-04-16"),
    "1day": ("2015-02-02", "2024-03-15", "2024-02-20"),
}


@pytest.mark.parametrize("timeframe", WINDOWS)
def test_values_are_the_same_with_just_enough_history_and_bar_by_bar(timeframe: str) -> None:
    first, last, begins = WINDOWS[timeframe]
    labels = labels_of(timeframe, first, last)
    columns = prices(len(labels))
    at = int(labels.searchsorted(instant(begins)))
    everything = series(timeframe, labels, columns)
    compared = 0
    for study in studies(timeframe):
        before = reach(study, "regular")
        if before >= ALL:
            continue
        assert before < at, "there is more than enough in this test"
        wanted = StudyBook(HOURS).values(study, everything, 0)
        low = at - before
        fewer = series(timeframe, labels[low:at], columns[:, low:at])
        book = StudyBook(HOURS)
        book.values(study, fewer, 0)
        for stop in (*range(at + 1, at + 9), len(labels)):
            start = low + fewer.size
            added = labels[start:stop]
            closes = close_times(added, timeframe, HOURS, "regular")
            fewer.append(added, closes, columns[:, start:stop])
            found = book.values(study, fewer, 0)
        for one, other in zip(wanted, found, strict=True):
            whole, part = one[at : len(labels)], other[at - low : fewer.size]
            assert not np.isnan(whole).any(), study.aliases
            assert whole.tobytes() == part.tobytes(), study.aliases
            compared += 1
    assert compared >= len(NAMES)


def test_what_counts_from_the_first_bar_of_a_daily_series_has_no_reach() -> None:
    by_name = {study.aliases[0]: study for study in studies("1day")}
    assert reach(by_name["obv"], "regular") == ALL
    assert reach(by_name["sma_10"], "regular") < 300


def test_bars_given_whole_are_computed_from_their_first_one() -> None:
    labels = labels_of("5min", "2024-01-02", "2024-03-01")
    given = series("5min", labels, prices(len(labels)))
    own = next(study for study in studies("5min") if study.aliases == ("own",))
    (values,) = StudyBook(HOURS, whole=True).values(own, given, 0)
    wanted = trailing(given.arrays(0, 0, given.size))
    assert values.tobytes() == wanted.tobytes()
    (by_block,) = StudyBook(HOURS).values(own, given, 0)
    assert values.tobytes() != by_block.tobytes(), "these values do depend on the beginning"
    np.testing.assert_allclose(by_block, values, rtol=1e-9)


def test_blocks_are_weeks_within_the_day_and_years_beyond() -> None:
    minutes = labels_of("5min", "2024-03-05", "2024-03-20")
    found = blocks(minutes, "5min")
    assert [(str(day(minutes[a])), str(day(minutes[b - 1]))) for a, b in found] == [
        ("2024-03-05", "2024-03-08"),
        ("2024-03-11", "2024-03-15"),
        ("2024-03-18", "2024-03-20"),
    ]
    assert blocks(minutes, "5min", len(minutes) - 1) == found[-1:]
    assert blocks(minutes, "5min", len(minutes)) == []
    days = labels_of("1day", "2021-06-01", "2023-06-01")
    assert [(day(days[a]).year, day(days[b - 1]).year) for a, b in blocks(days, "1day")] == [
        (2021, 2021),
        (2022, 2022),
        (2023, 2023),
    ]


def test_blocks_without_bars_are_left_out() -> None:
    labels = np.array([instant("2024-01-03T10:00"), instant("2024-03-05T10:00")])
    assert blocks(labels, "1min") == [(0, 1), (1, 2)]
    assert blocks(labels, "1week") == [(0, 2)]
    assert blocks(labels[:0], "1min") == []


def day(label: np.int64) -> date:
    return pd.Timestamp(int(label), unit="us", tz="UTC").tz_convert("America/New_York").date()
