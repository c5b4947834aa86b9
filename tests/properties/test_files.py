"""For any bars: out to a file and in again, bit for bit."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from marketdata.calendars import EXCHANGE, calendar_for
from marketdata.files import Shape, open_table, stream_csv, write_bars
from marketdata.files.parsing import Times, parsed
from marketdata.files.reading import csv_table
from marketdata.types import MINUTE, Bars

CALENDAR = calendar_for(EXCHANGE, 1_710_000_000_000_000)
# One NaN is as good as another: what is not there has no bits.
numbers = st.floats(width=64, allow_nan=False) | st.just(np.nan)


@st.composite
def bars(draw: st.DrawFn) -> Bars:
    count = draw(st.integers(1, 12))
    minutes = draw(st.sets(st.integers(0, 2**20), min_size=count, max_size=count))
    timestamp = 1_600_000_020_000_000 + np.array(sorted(minutes), np.int64) * MINUTE
    return Bars(timestamp, draw(npst.arrays(np.float64, (7, count), elements=numbers)))


def assert_same(table: object, left: Bars) -> None:
    (rows,) = parsed(table, Times(), CALENDAR)  # type: ignore[arg-type]
    assert [rows.symbols[p] for p in rows.symbol] == ["NA"] * len(left)
    np.testing.assert_array_equal(rows.timestamp, left.timestamp)
    np.testing.assert_array_equal(rows.values.view(np.int64), left.values.view(np.int64))


@settings(max_examples=150, deadline=None)
@given(bars())
def test_csv(found: Bars):
    stream = io.BytesIO()
    stream_csv(stream).write("NA", found)
    stream.seek(0)
    assert_same(csv_table("a.csv", stream, Shape()), found)


@settings(max_examples=50, deadline=None)
@given(bars())
def test_parquet(tmp_path_factory: pytest.TempPathFactory, found: Bars):
    path = tmp_path_factory.mktemp("bars") / "a.parquet"
    with write_bars(path, "parquet", {}) as file:
        file.write("NA", found)
    with open_table(path, Shape()) as table:
        assert_same(table, found)
