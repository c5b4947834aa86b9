"""Any frame of bars as a market; dirt is refused or named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from algorithms import Algorithm, AlgorithmError, Context, backtest
from algorithms.frames import market_of
from tests.scripted_runs import FLAT, days, minutes


class Buy(Algorithm):
    def on_bar(self, ctx: Context) -> None:
        ctx.order(1)


def test_titles_and_missing_volume_are_taken() -> None:
    frame = days([FLAT] * 3).rename(columns=str.title).drop(columns="Volume")
    series = market_of(frame, ["X"], "1day").of("X", "1day")
    assert series.size == 3
    assert series.raw[4].tolist() == [0, 0, 0]


def test_a_naive_index_of_dates_is_sessions() -> None:
    naive = market_of(days([FLAT] * 3), ["X"], "1day").of("X", "1day")
    aware = days([FLAT] * 3).tz_localize("America/New_York")
    np.testing.assert_array_equal(
        naive.closes, market_of(aware, ["X"], "1day").of("X", "1day").closes
    )


def test_rows_without_prices_are_left_out_and_named() -> None:
    frame = days([FLAT] * 4)
    frame.iloc[1, 0] = np.nan
    frame.iloc[2, 3] = np.inf
    frame.iloc[3, 4] = np.nan
    frame.iloc[0, 2] = -1.0
    market = market_of(frame, ["X"], "1day")
    assert market.of("X", "1day").size == 1
    assert market.of("X", "1day").raw[4, -1] == 0
    assert market.origin.warnings == ("X: 3 bars without prices were left out",)


def test_bars_that_contradict_themselves_are_named() -> None:
    market = market_of(days([FLAT, (100, 99, 90, 95), (80, 100, 90, 95)]), ["X"], "1day")
    assert market.of("X", "1day").size == 3
    assert market.origin.warnings == ("X: 2 bars open or close outside of their low and high",)


def test_bars_from_before_any_calendar_close_at_the_end_of_their_day() -> None:
    series = market_of(days([FLAT] * 2, "1962-01-03"), ["X"], "1day")
    assert series.of("X", "1day").size == 2


def test_several_symbols_in_one_frame_or_in_a_mapping() -> None:
    frames = {"X": days([FLAT] * 3), "Y": days([FLAT] * 2)}
    both = pd.concat(frames, names=["symbol", "timestamp"])
    for given in (frames, both):
        market = market_of(given, ["Y", "X"], "1day")
        assert [market.of(s, "1day").size for s in "XY"] == [3, 2]


@pytest.mark.parametrize("shape", ["mapping", "frame"])
def test_the_symbols_of_the_data_are_watched_where_the_strategy_names_none(shape: str) -> None:
    frames = {"X": days([FLAT] * 3), "Y": days([FLAT] * 3)}
    data: Any = frames if shape == "mapping" else pd.concat(frames, names=["symbol", "timestamp"])
    assert backtest(Buy, data, progress=False).run.symbols == ("X", "Y")


def test_the_frame_is_not_changed_nor_kept() -> None:
    frame = days([FLAT] * 3)
    before = frame.copy()
    market = market_of(frame, ["X"], "1day")
    frame.iloc[:, :] = 7.0
    assert market.of("X", "1day").raw[0].tolist() == [100, 100, 100]
    assert before["open"].tolist() == [100, 100, 100]


def dirty(kind: str) -> Any:
    frame = days([FLAT] * 3)
    if kind == "no close":
        return frame.drop(columns="close")
    if kind == "repeated":
        return frame.iloc[[0, 1, 1]]
    if kind == "descending":
        return frame.iloc[::-1]
    if kind == "no zone":
        return minutes([FLAT] * 3).tz_localize(None)
    if kind == "no times":
        return frame.reset_index(drop=True)
    if kind == "another symbol":
        return {"Z": frame}
    if kind == "words":
        return frame.astype({"open": object}).assign(open="dear")
    if kind == "two opens":
        return frame.assign(Open=1.0)
    return frame.iloc[:0]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("no close", "no column 'close'"),
        ("repeated", "do not ascend, or repeat"),
        ("descending", "do not ascend, or repeat"),
        ("no zone", "no time zone"),
        ("no times", "RangeIndex"),
        ("another symbol", "no bars of X"),
        ("empty", "no bars"),
        ("words", "is no number"),
        ("two opens", "two columns"),
    ],
)
def test_dirt_is_refused_with_a_cure(kind: str, says: str) -> None:
    with pytest.raises(AlgorithmError) as caught:
        market_of(dirty(kind), ["X"], "1day")
    assert says in str(caught.value)
    assert caught.value.cure


def test_a_fingerprint_is_of_the_bars_and_nothing_else() -> None:
    one = market_of(days([FLAT] * 3), ["X"], "1day").origin.fingerprint
    same = market_of(days([FLAT] * 3).assign(extra=3), ["X"], "1day").origin.fingerprint
    other = market_of(days([FLAT, FLAT, (100, 101, 100, 100)]), ["X"], "1day").origin.fingerprint
    assert one == same != other
