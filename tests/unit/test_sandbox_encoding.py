"""Bars as JSON text: every float64 comes back bit for bit."""

import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from marketdata.sandbox.encoding import encode_bars
from marketdata.types import MINUTE, OPEN, VOLUME, Bars

KEYS = ("o", "h", "l", "c", "v", "vw", "n")


def decode(text: bytes) -> tuple[list[str], NDArray[Any]]:
    rows = json.loads(b"[" + text + b"]")
    values = [[np.nan if r[k] is None else r[k] for r in rows] for k in KEYS]
    return [r["t"] for r in rows], np.array(values, np.float64)


def bars_of(values: NDArray[Any], start: int = 1_709_649_000_000_000) -> Bars:
    count = values.shape[1]
    return Bars(start + np.arange(count, dtype=np.int64) * MINUTE, values)


@given(arrays.arrays(np.float64, (7, 9), elements=st.floats(allow_infinity=False, width=64)))
def test_any_number_round_trips(values):
    _, got = decode(encode_bars([bars_of(values)])[0])
    # -0.0 is a number too: compare the bits, but any NaN is as good as another.
    assert np.array_equal(np.isnan(got), np.isnan(values))
    filled = ~np.isnan(values)
    assert got[filled].tobytes() == values[filled].tobytes()


@given(
    arrays.arrays(np.int64, (7, 9), elements=st.integers(0, 10**12)),
    st.sampled_from([1, 100, 10**4, 10**6]),
)
def test_decimals_round_trip(numbers, scale):
    values = numbers / scale
    text = encode_bars([bars_of(values)])[0]
    assert decode(text)[1].tobytes() == values.tobytes()
    assert b"e" not in text.replace(b'"', b"")


def test_numbers_are_written_as_short_as_they_are():
    values = np.array([[171.25, 0.0, 171.0, 100.5]] * 7)
    text = encode_bars([bars_of(values)])[0].decode()
    assert [part.split(",")[0] for part in text.split('"o":')[1:]] == [
        "171.25",
        "0",
        "171",
        "100.5",
    ]


def test_times_are_rfc_3339_across_days():
    bars = bars_of(np.ones((7, 3)), start=1_709_683_140_000_000)
    assert decode(encode_bars([bars])[0])[0] == [
        "2024-03-05T23:59:00Z",
        "2024-03-06T00:00:00Z",
        "2024-03-06T00:01:00Z",
    ]


def test_parts_stay_apart():
    values = np.arange(28, dtype=np.float64).reshape(7, 4)
    parts = [bars_of(values[:, :0]), bars_of(values[:, :3]), bars_of(values[:, 3:])]
    empty, first, second = encode_bars(parts)
    assert empty == b""
    assert decode(first)[1].tolist() == values[:, :3].tolist()
    assert decode(second)[1].tolist() == values[:, 3:].tolist()


def test_missing_figures_are_null():
    values = np.ones((7, 2))
    values[OPEN, 1] = np.nan
    values[VOLUME] = np.nan
    rows = json.loads(b"[" + encode_bars([bars_of(values)])[0] + b"]")
    assert [r["o"] for r in rows] == [1, None]
    assert [r["v"] for r in rows] == [None, None]
