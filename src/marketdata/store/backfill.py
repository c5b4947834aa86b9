"""What a backfill could not fetch, and when it may try again."""

# Statements are composed of this module's constants only; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, text

from marketdata.backfill_plan import Failure
from marketdata.clock import from_micros, to_micros
from marketdata.spans import Span
from marketdata.store.connection import Database
from marketdata.store.wire import key_columns, key_of
from marketdata.types import SeriesKey

_KEYS: Final = """unnest(CAST(:provider AS text[]), CAST(:feed AS text[]), CAST(:symbol AS text[]),
    CAST(:timeframe AS text[]))"""
_OF: Final = f"""(f.provider, f.feed, f.symbol, f.timeframe) IN (SELECT * FROM {_KEYS})"""

_ALL: Final = text(f"""
SELECT f.provider, f.feed, f.symbol, f.timeframe, lower(f.span) AS since, upper(f.span) AS until,
       f.error, f.attempts, f.last_failed_at, f.next_retry_at
FROM backfill_failures AS f
WHERE {_OF}
ORDER BY f.symbol, f.timeframe, f.span
""")
_OVERLAPPING: Final = text("""
DELETE FROM backfill_failures
WHERE (provider, feed, symbol, timeframe) = (:provider, :feed, :symbol, :timeframe)
  AND span && tstzrange(:start, :end)
RETURNING attempts, first_failed_at
""")
_FAILED: Final = text("""
INSERT INTO backfill_failures (provider, feed, symbol, timeframe, span, error, attempts,
                               first_failed_at, last_failed_at, next_retry_at)
VALUES (:provider, :feed, :symbol, :timeframe, tstzrange(:start, :end), :error, :attempts,
        :first, :now, :retry)
ON CONFLICT DO NOTHING
""")
_FETCHED: Final = text(f"""
DELETE FROM backfill_failures AS f WHERE {_OF} AND f.span && tstzrange(:start, :end)
""")
_RESET: Final = text(f"DELETE FROM backfill_failures AS f WHERE {_OF}")

_LONGEST_WORDS: Final = 500


class PostgresBackfillLog:
    """Failed gaps of stored series. Times are market time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def failures(self, keys: Sequence[SeriesKey]) -> list[Failure]:
        """Return what could not be fetched of these series, by symbol, timeframe and time."""
        columns = key_columns(keys)
        rows = self._database.run(lambda c: c.execute(_ALL, columns).all(), snapshot=True)
        return [
            Failure(
                key_of(row[:4]),
                Span(to_micros(row.since), to_micros(row.until)),
                row.error,
                row.attempts,
                to_micros(row.last_failed_at),
                to_micros(row.next_retry_at),
            )
            for row in rows
        ]

    def failed(
        self,
        key: SeriesKey,
        span: Span,
        error: str,
        now_us: int,
        next_retry: Callable[[int, int], int],
    ) -> Failure:
        """Record that `span` could not be fetched; what failed in it before counts as attempts.

        Parameters
        ----------
        next_retry : callable
            Takes the number of attempts and the market time; returns when to try again.
        """
        stretch = {**_columns(key), "start": from_micros(span.start), "end": from_micros(span.end)}
        now = from_micros(now_us)

        def work(connection: Connection) -> Failure:
            earlier = connection.execute(_OVERLAPPING, stretch).all()
            attempts = max((row.attempts for row in earlier), default=0) + 1
            failure = Failure(
                key, span, error[:_LONGEST_WORDS], attempts, now_us, next_retry(attempts, now_us)
            )
            row = {
                **stretch,
                "error": failure.error,
                "attempts": attempts,
                "first": min((row.first_failed_at for row in earlier), default=now),
                "now": now,
                "retry": from_micros(failure.retry_us),
            }
            connection.execute(_FAILED, row)
            return failure

        return self._database.run(work)

    def fetched(self, keys: Sequence[SeriesKey], span: Span) -> None:
        """Forget what failed in `span` of these series."""
        stretch = {"start": from_micros(span.start), "end": from_micros(span.end)}
        parameters = {**key_columns(keys), **stretch}
        self._database.run(lambda c: c.execute(_FETCHED, parameters))

    def reset(self, keys: Sequence[SeriesKey]) -> int:
        """Forget every failure of these series; return how many there were."""
        columns = key_columns(keys)
        return self._database.run(lambda c: c.execute(_RESET, columns).rowcount)


def _columns(key: SeriesKey) -> dict[str, Any]:
    return {
        "provider": key.provider,
        "feed": key.feed,
        "symbol": key.symbol,
        "timeframe": key.timeframe.value,
    }
