"""Cells as numbers, symbols and instants: what each spelling means, and what means nothing."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest

from marketdata.calendars import EXCHANGE, calendar_for
from marketdata.clock import to_micros
from marketdata.errors import NaiveTimestampError, RequestError
from marketdata.files.parsing import Times, instants, numbers, symbols
from marketdata.quality import NO_TIMESTAMP

NEW_YORK = ZoneInfo("America/New_York")
CALENDAR = calendar_for(EXCHANGE, to_micros(datetime.fromisoformat("2024-03-13T00:00Z")))


def moment(text: str) -> int:
    return to_micros(datetime.fromisoformat(text))


def read(cells: Any, how: Times | None = None) -> list[int]:
    column = cells if isinstance(cells, pa.Array) else pa.array(cells, pa.string())
    return instants(column, how or Times(), CALENDAR, "a.csv").tolist()


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pa.array(["1.5", None, "1e-3", "-2"]), [1.5, np.nan, 0.001, -2]),
        (
            pa.array(["0.1", " 0.2 ", "NA", "1,000", "", "1_0", "inf"]),
            [0.1, 0.2, *[np.nan] * 4, np.inf],
        ),
        (pa.array([1, None], pa.int64()), [1, np.nan]),
        (pa.array([0.1, None], pa.float64()), [0.1, np.nan]),
        (pa.array([Decimal("123456789.123456789")], pa.decimal128(20, 9)), [123456789.123456789]),
        (pa.array(["2.5", "2.5"]).dictionary_encode(), [2.5, 2.5]),
        (pa.array([True]), [np.nan]),
    ],
)
def test_numbers(column: Any, found: list[float]):
    np.testing.assert_array_equal(numbers(column), np.array(found, np.float64))


def test_symbols_are_places_in_a_list():
    places, names = symbols(pa.array(["B", "A", None, "B"]))
    assert [None if p < 0 else names[p] for p in places] == ["B", "A", None, "B"]
    places, names = symbols(pa.array(["B", None]).dictionary_encode())
    assert [None if p < 0 else names[p] for p in places] == ["B", None]


@pytest.mark.parametrize(
    "cell",
    [
        "2024-03-12T13:30:00Z",
        "2024-03-12 13:30:00+00",
        "2024-03-12T09:30:00-04:00",
        "2024-03-12T09:30-0400",
        "2024-03-12T13:30:00.000000Z",
        "2024-03-12T13:30:00.000000000Z",
    ],
)
def test_iso_instants(cell: str):
    assert read([cell]) == [moment("2024-03-12T13:30Z")]


def test_one_strange_cell_costs_its_own_row():
    cells = ["2024-03-12T13:30:00Z", "soon", None, "2024-03-12T09:31:00-04:00", "2024-03-12 13:32"]
    first = moment("2024-03-12T13:30Z")
    later = first + 60_000_000
    assert read(cells) == [first, NO_TIMESTAMP, NO_TIMESTAMP, later, NO_TIMESTAMP]
    stated = read(cells, Times(NEW_YORK))
    assert stated == [first, NO_TIMESTAMP, NO_TIMESTAMP, later, moment("2024-03-12T13:32-04:00")]


@pytest.mark.parametrize("cells", [["2024-03-12 09:30:00"], ["2024-03-12 09:30:00", "soon"]])
def test_times_without_a_zone_are_refused_until_it_is_stated(cells: list[str]):
    with pytest.raises(NaiveTimestampError, match="--tz"):
        read(cells)
    assert read(cells, Times(NEW_YORK))[0] == moment("2024-03-12T13:30Z")


def test_hours_that_a_zone_skips_or_repeats_are_no_times():
    skipped, repeated = "2024-03-10 02:30:00", "2024-11-03 01:30:00"
    assert read([skipped, repeated], Times(NEW_YORK)) == [NO_TIMESTAMP, NO_TIMESTAMP]


def test_counts_say_of_what():
    second = moment("2024-03-12T13:30Z") // 1_000_000
    for spelling, count in (
        ("epoch_s", second),
        ("epoch_ms", second * 1000),
        ("epoch_ns", second * 10**9),
    ):
        assert read(pa.array([count]), Times(spelling=spelling)) == [second * 1_000_000]
        assert read([str(count)], Times(spelling=spelling)) == [second * 1_000_000]
    assert read(pa.array([None, 1e300]), Times(spelling="epoch_s")) == [NO_TIMESTAMP] * 2
    with pytest.raises(RequestError, match="epoch_ms"):
        read(pa.array([second]))


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_arrow_timestamps(unit: str):
    stamp = datetime(2024, 3, 12, 9, 30)
    assert read(pa.array([stamp, None], pa.timestamp(unit)), Times(NEW_YORK)) == [
        moment("2024-03-12T13:30Z"),
        NO_TIMESTAMP,
    ]
    assert read(pa.array([stamp], pa.timestamp(unit, "UTC"))) == [moment("2024-03-12T09:30Z")]
    with pytest.raises(NaiveTimestampError):
        read(pa.array([stamp], pa.timestamp(unit)))


@pytest.mark.parametrize(
    ("column", "how"),
    [
        (pa.array([date(2024, 3, 12)]), Times(whole_days=True)),
        (pa.array(["2024-03-12"]), Times(whole_days=True)),
        (pa.array(["2024-03-12T00:00:00+09:00"]), Times(dates=True)),
        (pa.array([datetime(2024, 3, 12, 23)], pa.timestamp("us")), Times(dates=True)),
        (pa.array([moment("2024-03-12T00:30-04:00")]).cast(pa.timestamp("us", "America/New_York")), Times(dates=True)),
        (pa.array(["12.03.2024"]), Times(spelling="%d.%m.%Y", whole_days=True)),
        (pa.array(["2024-03-12"]), Times(NEW_YORK)),
        (pa.array([date(2024, 3, 12)]), Times(NEW_YORK)),
    ],
)  # fmt: skip
def test_dates_are_the_exchange_midnights(column: Any, how: Times):
    assert read(column, how) == [moment("2024-03-12T00:00-04:00")]


def test_dates_that_are_none():
    cells = ["2024-03-12", "2024-99-12", None]
    assert read(cells, Times(dates=True))[1:] == [NO_TIMESTAMP] * 2
    assert read(["12.03.2024", "x"], Times(spelling="%d.%m.%Y", dates=True))[1] == NO_TIMESTAMP
