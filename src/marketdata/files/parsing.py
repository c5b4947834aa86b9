"""Cells of a table as symbols, instants and float64: exactly what is written, or nothing. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from marketdata.calendars import TradingCalendar
from marketdata.errors import NaiveTimestampError, RequestError
from marketdata.files.reading import Table
from marketdata.quality import NO_TIMESTAMP
from marketdata.types import COLUMNS, Floats, Int64s

EPOCHS: Final = {"epoch_s": 1_000_000.0, "epoch_ms": 1_000.0, "epoch_us": 1.0, "epoch_ns": 0.001}
"""Microseconds in one unit of a count since 1970-01-01T00:00Z."""
_DATE_LENGTH: Final = len("2024-01-31")


@dataclass(frozen=True, slots=True)
class Times:
    """How a column's times are to be read.

    Attributes
    ----------
    zone : ZoneInfo, optional
        Of times written without one.
    spelling : str, optional
        A format of `datetime.strptime`, or one of `EPOCHS`; None is ISO 8601.
    dates : bool
        Whether only the date counts, as the session's: the instant is its exchange midnight.
    whole_days : bool
        Whether a date without a time is such a session's date; else it is midnight of `zone`.
    """

    zone: ZoneInfo | None = None
    spelling: str | None = None
    dates: bool = False
    whole_days: bool = False


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch of rows as they stand in the source."""

    symbols: Sequence[str | None]
    symbol: Int64s
    """For each row the position of its symbol in `symbols`, -1 for none."""
    timestamp: Int64s
    """Microseconds UTC, `quality.NO_TIMESTAMP` where none could be read."""
    values: Floats
    """Shape (7, n); NaN where there is no number."""
    source: str = ""
    first_row: int = 1
    """Number of the batch's first row in its source, the line of names left out."""

    def __len__(self) -> int:
        return len(self.timestamp)


def parsed(table: Table, how: Times, calendar: TradingCalendar) -> Iterator[Rows]:
    """Yield the rows of a table, as numbers.

    Raises
    ------
    NaiveTimestampError, RequestError
        As `instants`.
    """
    first = 1
    for columns in table.batches:
        count = len(columns["timestamp"])
        if not count:
            continue
        place, names = symbols(columns["symbol"])
        values = np.full((len(COLUMNS), count), np.nan)
        for row, column in enumerate(COLUMNS):
            if column in columns:
                values[row] = numbers(columns[column])
        times = instants(columns["timestamp"], how, calendar, table.name)
        yield Rows(names, place, times, values, table.name, first)
        first += count


# ----------------------------------------------------------------------------------- numbers


def numbers(column: Any) -> Floats:
    """Return a column as float64: the nearest to each decimal; NaN where there is no number."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.string())  # exact, as the direct way is not
    if pa.types.is_large_string(column.type):
        column = column.cast(pa.string())
    if pa.types.is_string(column.type):
        try:
            column = pc.cast(column, pa.float64())
        except pa.ArrowInvalid:
            return np.array([_number(cell) for cell in column.to_pylist()], np.float64)
    elif not pa.types.is_floating(column.type):
        if not pa.types.is_integer(column.type):
            return np.full(len(column), np.nan)
        column = pc.cast(column, pa.float64(), safe=False)
    found = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
    return np.asarray(found, np.float64)


def _number(cell: str | None) -> float:
    try:
        return float(cell) if cell and "_" not in cell else np.nan
    except ValueError:
        return np.nan


# ----------------------------------------------------------------------------------- symbols


def symbols(column: Any) -> tuple[Int64s, list[str]]:
    """Return for each row the position of its symbol in the list, -1 where it has none."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = pc.cast(column, pa.string()).dictionary_encode()
    places = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    return places.astype(np.int64), encoded.dictionary.to_pylist()


# ------------------------------------------------------------------------------------- times


def instants(column: Any, how: Times, calendar: TradingCalendar, name: str) -> Int64s:
    """Return a column as microseconds UTC, `quality.NO_TIMESTAMP` where a cell is no time.

    Raises
    ------
    NaiveTimestampError
        The times have no zone and none was stated.
    RequestError
        They are numbers, and nobody said of what.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _counted(numbers(column), how, name)
    if pa.types.is_date(kind):
        return _of_dates(column, how, calendar, name)
    if pa.types.is_timestamp(kind):
        return _of_timestamps(column, how, calendar, name)
    return _of_text(pc.cast(column, pa.string()), how, calendar, name)


def _of_text(column: Any, how: Times, calendar: TradingCalendar, name: str) -> Int64s:
    if how.spelling in EPOCHS:
        return _counted(numbers(column), how, name)
    if how.spelling is not None:
        return _spelled(column, how, calendar, name)
    lengths = pc.min_max(pc.utf8_length(column)).as_py()
    only_dates = lengths["min"] == lengths["max"] == _DATE_LENGTH
    if how.dates or (how.whole_days and only_dates):
        days = pc.utf8_slice_codeunits(column, 0, _DATE_LENGTH)
        return _at_midnight(_cast(days, pa.date32()), calendar)
    return _iso(column, how, name)


def _of_dates(column: Any, how: Times, calendar: TradingCalendar, name: str) -> Int64s:
    if how.dates or how.whole_days:
        return _at_midnight(pc.cast(column, pa.date32()), calendar)
    return _localised(_micros(pc.cast(column, pa.timestamp("us"))), how, name)


def _of_timestamps(column: Any, how: Times, calendar: TradingCalendar, name: str) -> Int64s:
    zone = column.type.tz
    if how.dates:
        local = pc.local_timestamp(column) if zone else column
        return _at_midnight(pc.cast(local, pa.date32(), safe=False), calendar)
    found = _micros(pc.cast(column, pa.timestamp("us", zone), safe=False))
    return found if zone else _localised(found, how, name)


def _iso(column: Any, how: Times, name: str) -> Int64s:
    try:
        return _micros(pc.cast(column, pa.timestamp("us", "UTC")))
    except pa.ArrowInvalid:
        pass
    try:
        naive = pc.cast(column, pa.timestamp("us"))
    except pa.ArrowInvalid:
        return _one_by_one(column, how, name, datetime.fromisoformat)
    return _localised(_micros(naive), how, name)


def _spelled(column: Any, how: Times, calendar: TradingCalendar, name: str) -> Int64s:
    spelling = how.spelling or ""

    def read(cell: str) -> datetime:
        return datetime.strptime(cell, spelling)  # noqa: DTZ007  # the zone is looked at next

    if how.dates or (how.whole_days and not any(f"%{c}" in spelling for c in "HIMSTXcs")):
        days = [_quiet(read, cell) for cell in column.to_pylist()]
        dates = pa.array([None if d is None else d.date() for d in days], pa.date32())
        return _at_midnight(dates, calendar)
    if "%z" not in spelling:
        texts = pd.Series(column.to_pylist(), dtype=object)
        naive = pd.to_datetime(texts, format=spelling, errors="coerce").astype("datetime64[us]")
        return _localised(naive.to_numpy().astype(np.int64), how, name)
    return _one_by_one(column, how, name, read)


def _one_by_one(column: Any, how: Times, name: str, read: Callable[[str], datetime]) -> Int64s:
    """Read cells that are not all alike: one that cannot be read costs its own row."""
    found = [_quiet(read, cell) for cell in column.to_pylist()]
    if how.zone is None and any(f is not None for f in found):
        if all(f is None or f.tzinfo is None for f in found):
            raise _without_zone(name)
        found = [None if f is None or f.tzinfo is None else f for f in found]
    stamps = [
        NO_TIMESTAMP
        if f is None
        else round((f if f.tzinfo else f.replace(tzinfo=how.zone)).timestamp() * 1e6)
        for f in found
    ]
    return np.array(stamps, np.int64)


def _quiet(read: Callable[[str], datetime], cell: str | None) -> datetime | None:
    try:
        return None if cell is None else read(cell.strip())
    except (ValueError, OverflowError):
        return None


def _counted(counts: Floats, how: Times, name: str) -> Int64s:
    if how.spelling not in EPOCHS:
        raise RequestError(
            f"the times of {name} are numbers", cure=f"say of what: {', '.join(EPOCHS)}"
        )
    with np.errstate(all="ignore"):
        micros = np.rint(counts * EPOCHS[how.spelling])
        inside = np.abs(micros) < 2.0**62
    return np.where(inside, np.where(inside, micros, 0).astype(np.int64), NO_TIMESTAMP)


def _localised(naive: Int64s, how: Times, name: str) -> Int64s:
    """Return wall-clock microseconds as instants; an hour that a zone skips or repeats is none."""
    if how.zone is None:
        if (naive == NO_TIMESTAMP).all():
            return naive
        raise _without_zone(name)
    index = pd.DatetimeIndex(naive.view("M8[us]"))
    found = index.tz_localize(how.zone, ambiguous="NaT", nonexistent="NaT")
    return np.asarray(found.asi8, np.int64)


def _at_midnight(days: Any, calendar: TradingCalendar) -> Int64s:
    """Return the exchange midnights of dates."""
    counts = pc.cast(days, pa.int32())
    known = pc.is_valid(counts).to_numpy(zero_copy_only=False)
    numbered = pc.fill_null(counts, 0).to_numpy(zero_copy_only=False)
    unique, place = np.unique(numbered, return_inverse=True)
    midnights = np.array([_midnight(int(day), calendar) for day in unique], np.int64)
    return np.where(known, midnights[place], NO_TIMESTAMP)


def _midnight(day: int, calendar: TradingCalendar) -> int:
    try:
        return calendar.midnight_of(date.fromordinal(day + date(1970, 1, 1).toordinal()))
    except (ValueError, OverflowError):
        return NO_TIMESTAMP


def _cast(column: Any, kind: Any) -> Any:
    """Cast a column of text, cell by cell where one of them does not fit."""
    try:
        return pc.cast(column, kind)
    except pa.ArrowInvalid:
        read = [_quiet(datetime.fromisoformat, cell) for cell in column.to_pylist()]
        return pa.array([None if d is None else d.date() for d in read], kind)


def _micros(column: Any) -> Int64s:
    found = pc.fill_null(pc.cast(column, pa.int64()), NO_TIMESTAMP)
    return np.array(found.to_numpy(zero_copy_only=False), np.int64)


def _without_zone(name: str) -> NaiveTimestampError:
    return NaiveTimestampError(
        f"the times of {name} have no time zone",
        cure="state it: --tz America/New_York, or the zone they were written in",
    )
