"""Whole sessions of minutes, final, and what moves them between rows and chunks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import psycopg

from marketdata.calendars import EXCHANGE, calendar_for
from marketdata.protocols import Commit
from marketdata.spans import Span
from marketdata.store import PostgresStore
from marketdata.store.retention import Retention
from marketdata.store.sealing import Moved, Sealer
from marketdata.types import DAY, MINUTE, Bars, Int64s, SeriesKey
from tests.store_examples import AAPL, some_bars

CALENDAR = calendar_for(EXCHANGE, 1_704_205_800_000_000)
OBSERVED_LATE = CALENDAR.midnight_of(date(2025, 6, 1))
STEP = 10 * MINUTE
"""Quiet minutes between the bars keep these tests quick."""


def midnight(text: str) -> int:
    """Midnight in New York of a date."""
    return CALENDAR.midnight_of(date.fromisoformat(text))


def sessions(first: str, last: str) -> Span:
    """The span from the extended open of one day to the open of the session after another."""
    return Span(midnight(first) + 4 * 60 * MINUTE, midnight(last) + 28 * 60 * MINUTE)


def session_bars(span: Span, seed: int = 0) -> Bars:
    """Bars in the extended hours of every session of `span`, the same for the same seed."""
    bars = some_bars(span, seed, STEP)
    return bars.take(CALENDAR.mask(bars.timestamp, "extended"))


def final_commit(
    span: Span,
    key: SeriesKey = AAPL,
    *,
    seed: int = 0,
    late: int = 0,
    bars: Bars | None = None,
    withdrawn: Int64s | None = None,
    sealed: bool = False,
) -> Commit:
    """A commit past the correction period; `late` microseconds later than others."""
    until = OBSERVED_LATE
    given = session_bars(span, seed) if bars is None else bars
    return Commit(key, given, span, until + late, until, until, withdrawn, sealed)


@dataclass
class SealedStore:
    """A store with its sealing, retention and a plain connection."""

    store: PostgresStore
    plain: psycopg.Connection

    def __post_init__(self) -> None:
        self.sealer = Sealer(self.store.database)
        self.retention = Retention(self.store.database)
        self.plain.execute("SET search_path = marketdata")

    def seal(self, before: str, key: SeriesKey = AAPL) -> list[Moved]:
        return list(self.sealer.seal(key, midnight(before)))

    def unseal(self, first: str, after: str, key: SeriesKey = AAPL) -> list[Moved]:
        return list(self.sealer.unseal(key, Span(midnight(first), midnight(after))))

    def rows(self, key: SeriesKey = AAPL) -> int:
        found = self.plain.execute(
            "SELECT count(*) FROM market_data_bars WHERE symbol = %s", (key.symbol,)
        ).fetchone()
        assert found is not None
        return int(found[0])

    def chunks(self, key: SeriesKey = AAPL) -> list[tuple[str, str]]:
        """The days of each chunk, as dates in New York: first, and the one after the last."""
        found = self.plain.execute(
            "SELECT (span_start AT TIME ZONE 'America/New_York')::date::text,"
            " (span_end AT TIME ZONE 'America/New_York')::date::text"
            " FROM bar_chunks WHERE symbol = %s ORDER BY 1",
            (key.symbol,),
        ).fetchall()
        return [(first, after) for first, after in found]

    def spoil(self, day: str, key: SeriesKey = AAPL) -> None:
        """Flip one bit in the middle of the chunk of a day."""
        spoilt = self.plain.execute(
            "UPDATE bar_chunks SET data = set_bit(data, octet_length(data) * 4,"
            " 1 - get_bit(data, octet_length(data) * 4))"
            " WHERE symbol = %s AND to_timestamp(%s / 1e6) BETWEEN span_start AND span_end",
            (key.symbol, midnight(day) + DAY // 2),
        ).rowcount
        assert spoilt == 1


def without(bars: Bars, labels: Int64s) -> Bars:
    return bars.take(~np.isin(bars.timestamp, labels))


def next_day(text: str) -> str:
    return (date.fromisoformat(text) + timedelta(1)).isoformat()
