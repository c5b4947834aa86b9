"""The vocabulary every layer shares: timeframes, series keys, bars in columns, intervals.

Instants are microseconds since 1970-01-01T00:00Z (int) inside the library and aware datetimes at
its edges. A bar is labelled by its open; ranges are half-open, ``[start, end)``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from functools import lru_cache
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marketdata.clock import from_micros
from marketdata.errors import InvalidSymbolError, InvalidTimeframeError
from marketdata.spans import Span

Int64s = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SECOND: Final = 1_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

COLUMNS: Final = ("open", "high", "low", "close", "volume", "vwap", "trade_count")
OPEN, HIGH, LOW, CLOSE, VOLUME, VWAP, TRADE_COUNT = range(7)

Session = Literal["regular", "extended"]
Adjustment = Literal["raw", "split", "dividend", "all"]


class Timeframe(StrEnum):
    """The length of a bar. ``Timeframe.parse`` accepts the usual aliases."""

    MIN_1 = "1min"
    MIN_5 = "5min"
    MIN_15 = "15min"
    MIN_30 = "30min"
    HOUR_1 = "1hour"
    HOUR_4 = "4hour"
    DAY_1 = "1day"
    WEEK_1 = "1week"
    MONTH_1 = "1month"

    @property
    def step(self) -> int:
        """Length in microseconds; for week and month that of a day, their grid."""
        return _STEPS.get(self, DAY)

    @property
    def intraday(self) -> bool:
        return self in _STEPS

    @classmethod
    def parse(cls, text: str) -> Timeframe:
        """Return the timeframe `text` names.

        Raises
        ------
        InvalidTimeframeError
            Unknown, or ambiguous (``1M``); a retry does not help.
        """
        if isinstance(text, Timeframe):
            return text
        if not isinstance(text, str):
            raise InvalidTimeframeError(
                f"a timeframe is a string, not {type(text).__name__}", cure=_TIMEFRAME_CURE
            )
        return _parse_timeframe(text)


_STEPS: Final[dict[Timeframe, int]] = {
    Timeframe.MIN_1: MINUTE,
    Timeframe.MIN_5: 5 * MINUTE,
    Timeframe.MIN_15: 15 * MINUTE,
    Timeframe.MIN_30: 30 * MINUTE,
    Timeframe.HOUR_1: HOUR,
    Timeframe.HOUR_4: 4 * HOUR,
}

_TIMEFRAME_CURE = "use one of: " + ", ".join(t.value for t in Timeframe)
_UNITS: Final = {
    "m": "min", "min": "min", "mins": "min", "t": "min", "minute": "min", "minutes": "min",
    "h": "hour", "hour": "hour", "hours": "hour", "hr": "hour",
    "d": "day", "day": "day", "days": "day", "daily": "day", "b": "day",
    "w": "week", "wk": "week", "week": "week", "weeks": "week",
    "mo": "month", "mon": "month", "month": "month", "months": "month",
}  # fmt: skip
_SAME_LENGTH: Final = {"60min": "1hour", "240min": "4hour", "7day": "1week", "5day": "1week"}
_WORDS: Final = {
    "minute": "1min", "hourly": "1hour", "hour": "1hour", "daily": "1day", "day": "1day",
    "weekly": "1week", "week": "1week", "monthly": "1month", "month": "1month",
}  # fmt: skip


@lru_cache(maxsize=256)
def _parse_timeframe(text: str) -> Timeframe:
    stripped = text.strip()
    if re.fullmatch(r"\d*M", stripped):
        count = stripped[:-1] or "1"
        raise InvalidTimeframeError(
            f"timeframe {text!r} is ambiguous", cure=f"write {count}min or {count}month"
        )
    lowered = stripped.lower().replace(" ", "").replace("_", "")
    name = _WORDS.get(lowered, lowered)
    match = re.fullmatch(r"(\d+)([a-z]+)", name)
    if match and match[2] in _UNITS:
        name = f"{int(match[1])}{_UNITS[match[2]]}"
        name = _SAME_LENGTH.get(name, name)
    try:
        return Timeframe(name)
    except ValueError:
        raise InvalidTimeframeError(f"unknown timeframe {text!r}", cure=_TIMEFRAME_CURE) from None


_SYMBOL: Final = re.compile(r"[A-Z][A-Z0-9]{0,9}(?:\.[A-Z0-9]{1,4}){0,2}")


@lru_cache(maxsize=65536)
def canonical_symbol(text: str) -> str:
    """Return the upper-case canonical symbol: ``brk-b``, ``BRK/B`` and ``BRK.B`` are ``BRK.B``.

    Raises
    ------
    InvalidSymbolError
        Not a US equity or ETF symbol; a retry does not help.
    """
    symbol = text.strip().upper().replace("-", ".").replace("/", ".")
    if _SYMBOL.fullmatch(symbol):
        return symbol
    words = [w for w in re.split(r"[\s,;]+", text.strip()) if w]
    if len(words) > 1 and all(_SYMBOL.fullmatch(w.upper()) for w in words):
        raise InvalidSymbolError(
            f"{text!r} is one string with {len(words)} symbols",
            cure=f"pass a list: {[w.upper() for w in words]!r}",
        )
    raise InvalidSymbolError(
        f"{text[:60]!r} is not a US equity or ETF symbol",
        cure="use the exchange's symbol, such as AAPL or BRK.B; indices, futures, currencies and "
        "foreign listings are not served",
    )


class SeriesKey(NamedTuple):
    """Everything that tells one stored series from another.

    `provider` is where the data comes from: ``alpaca``, ``yahoo``, ``sandbox``, or the host of a
    foreign URL. Bars never cross from one key to another.
    """

    provider: str
    feed: str
    symbol: str
    timeframe: Timeframe

    def with_timeframe(self, timeframe: Timeframe) -> SeriesKey:
        return SeriesKey(self.provider, self.feed, self.symbol, timeframe)

    def __str__(self) -> str:
        return f"{self.symbol} {self.timeframe} ({self.provider}/{self.feed})"


@dataclass(frozen=True, slots=True)
class Interval:
    """A half-open interval ``[start, end)`` of aware datetimes in UTC."""

    start: datetime
    end: datetime

    @classmethod
    def of(cls, span: Span) -> Interval:
        return cls(from_micros(span.start), from_micros(span.end))

    def __str__(self) -> str:
        return f"{self.start.isoformat()} .. {self.end.isoformat()}"


@dataclass(frozen=True, slots=True, eq=False)
class Bars:
    """Bars of one series in columns: the form in which they travel between the layers.

    Attributes
    ----------
    timestamp : ndarray of int64, shape (n,)
        Bar opens, microseconds UTC, strictly ascending once past the quality gates.
    values : ndarray of float64, shape (7, n), C-contiguous
        Rows in the order of `COLUMNS`; NaN where the source has no vwap or trade count.
    """

    timestamp: Int64s
    values: Floats

    def __len__(self) -> int:
        return len(self.timestamp)

    @classmethod
    def empty(cls) -> Bars:
        return cls(np.empty(0, np.int64), np.empty((len(COLUMNS), 0), np.float64))

    @classmethod
    def concat(cls, parts: Sequence[Bars]) -> Bars:
        """Join parts that follow each other in time."""
        filled = [p for p in parts if len(p)]
        if not filled:
            return cls.empty()
        if len(filled) == 1:
            return filled[0]
        return cls(
            np.concatenate([p.timestamp for p in filled]),
            np.concatenate([p.values for p in filled], axis=1),
        )

    def take(self, selected: Bools | Int64s) -> Bars:
        """Return the selected bars, copied."""
        return Bars(self.timestamp[selected], np.ascontiguousarray(self.values[:, selected]))

    def within(self, span: Span) -> Bars:
        """Return the bars labelled inside `span`, as views; the bars must be sorted."""
        low, high = np.searchsorted(self.timestamp, (span.start, span.end))
        if low == 0 and high == len(self.timestamp):
            return self
        return Bars(self.timestamp[low:high], self.values[:, low:high])

    def frozen(self) -> Bars:
        """Return a copy whose arrays cannot be written to, to be shared."""
        copy = Bars(self.timestamp.copy(), np.array(self.values, order="C"))
        copy.timestamp.flags.writeable = False
        copy.values.flags.writeable = False
        return copy

    def last(self, count: int) -> Bars:
        """Return the last `count` bars, as views."""
        if count >= len(self.timestamp):
            return self
        return Bars(self.timestamp[-count:], self.values[:, -count:]) if count else Bars.empty()


class Stage(IntEnum):
    """How settled an observation of a bar is; see `revision_of`."""

    CLOSED = 1
    REVISED = 2
    FINAL = 3


REVISION_STAGE: Final = 10_000_000_000_000


def revision_of[Stages: (int, Int64s)](stage: Stages, observed_us: int) -> Stages:
    """Return a bar's revision number: the stage, then the moment of observation in milliseconds.

    Stages order observations whatever their order of arrival (a stream's closed bar < its update
    < a REST answer after the session); within a stage the later observation wins.
    """
    return stage * REVISION_STAGE + observed_us // 1000


@dataclass(frozen=True, slots=True)
class Split:
    """A share split: `new` shares for `old` ones, effective from `ex_date`'s session on."""

    ex_date: int
    """ex-date as microseconds UTC of its exchange midnight: the label of that session's daily bar."""
    new: float
    old: float

    @property
    def ratio(self) -> float:
        """Shares after per share before: 4.0 for a 4:1 split, 0.1 for a 1:10 reverse split."""
        return self.new / self.old


def unique_symbols(symbols: Iterable[str]) -> list[str]:
    """Return canonical symbols, without repeats, in the order given."""
    return list(dict.fromkeys(canonical_symbol(s) for s in symbols))
