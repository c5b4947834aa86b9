"""Single flight across processes: a flight is a row per series, with a lease on PostgreSQL's clock."""

# Statements are composed of this module's constants only; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, text

from marketdata.clock import from_micros, to_micros
from marketdata.errors import MarketDataError, StoreUnavailableError, error_from_record
from marketdata.protocols import FlightOutcome, FlightTicket
from marketdata.spans import Span
from marketdata.store.connection import Database
from marketdata.store.wire import key_columns, key_of
from marketdata.types import SeriesKey

KEPT_SECONDS: Final = 60
"""How long an outcome is kept for those who wait."""

_KEYS: Final = """unnest(CAST(:provider AS text[]), CAST(:feed AS text[]), CAST(:symbol AS text[]),
    CAST(:timeframe AS text[])) AS k (provider, feed, symbol, timeframe)"""
_SAME: Final = """(f.provider, f.feed, f.symbol, f.timeframe)
    = (k.provider, k.feed, k.symbol, k.timeframe)"""

# Live flights are left out before the insert, so that those who come to wait take no row lock.
_BOARD: Final = text(f"""
INSERT INTO flights AS f (id, provider, feed, symbol, timeframe, span_start, span_end, lease_until)
SELECT :id, k.provider, k.feed, k.symbol, k.timeframe, :start, :end,
       clock_timestamp() + :lease * interval '1 second'
FROM {_KEYS}
WHERE NOT EXISTS (SELECT FROM flights AS f WHERE {_SAME}
                  AND f.finished_at IS NULL AND f.lease_until > clock_timestamp())
ORDER BY 2, 3, 4, 5
ON CONFLICT (provider, feed, symbol, timeframe) WHERE finished_at IS NULL
    DO UPDATE SET id = excluded.id, span_start = excluded.span_start,
                  span_end = excluded.span_end, lease_until = excluded.lease_until
    WHERE f.lease_until <= clock_timestamp()
""")
_IN_AIR: Final = text(f"""
SELECT f.provider, f.feed, f.symbol, f.timeframe, f.id
FROM {_KEYS} JOIN flights AS f ON {_SAME} WHERE f.finished_at IS NULL
""")
# By key and not by ctid: of a row that a renewal has just written anew, the new version is locked,
# and a statement's snapshot finds no new version by its place.
_RENEW: Final = text(f"""
WITH mine AS (
    SELECT provider, feed, symbol, timeframe FROM flights WHERE id = :id AND finished_at IS NULL
    ORDER BY provider, feed, symbol, timeframe FOR UPDATE)
UPDATE flights AS f SET lease_until = clock_timestamp() + :lease * interval '1 second'
FROM mine AS k WHERE f.id = :id AND f.finished_at IS NULL AND {_SAME}
""")
_LAND: Final = text(f"""
WITH mine AS (
    SELECT provider, feed, symbol, timeframe FROM flights WHERE id = :id AND finished_at IS NULL
    ORDER BY provider, feed, symbol, timeframe FOR UPDATE)
UPDATE flights AS f SET finished_at = clock_timestamp(), error = CAST(:error AS jsonb)
FROM mine AS k WHERE f.id = :id AND f.finished_at IS NULL AND {_SAME}
""")
_PURGE: Final = text("""
DELETE FROM flights WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM flights WHERE finished_at < clock_timestamp() - :kept * interval '1 second'
    LIMIT 1000 FOR UPDATE SKIP LOCKED))
""")
_OUTCOME: Final = text(f"""
SELECT k.provider, k.feed, k.symbol, k.timeframe, f.id IS NULL OR f.finished_at IS NULL AS lost,
       f.error, f.span_start, f.span_end
FROM unnest(CAST(:provider AS text[]), CAST(:feed AS text[]), CAST(:symbol AS text[]),
            CAST(:timeframe AS text[]), CAST(:ids AS text[]))
        AS k (provider, feed, symbol, timeframe, id)
LEFT JOIN flights AS f ON f.id = k.id AND {_SAME}
WHERE f.id IS NULL OR f.finished_at IS NOT NULL OR f.lease_until <= clock_timestamp()
""")
_ROUNDS: Final = 20


class PostgresFlights:
    """The flight log on PostgreSQL. Every method may raise `StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def board(self, keys: Sequence[SeriesKey], span: Span, lease: float) -> FlightTicket:
        """Claim each key that is not in flight, or whose lease ran out, for `lease` seconds."""
        ticket = FlightTicket(id=uuid.uuid4().hex, led=[], others={})
        waiting = list(dict.fromkeys(keys))
        for _ in range(_ROUNDS):
            if not waiting:
                return ticket
            claim = {
                **key_columns(waiting),
                "id": ticket.id,
                "start": from_micros(span.start),
                "end": from_micros(span.end),
                "lease": lease,
            }
            in_air = self._database.run(lambda c, claim=claim: _board(c, claim))  # type: ignore[misc]
            for key, flight in in_air.items():
                if flight == ticket.id:
                    ticket.led.append(key)
                else:
                    ticket.others[key] = flight
            # A flight that landed between the two statements left a key that is free again.
            waiting = [key for key in waiting if key not in in_air]
        raise StoreUnavailableError("flights landed faster than this process could board one")

    def renew(self, ticket: FlightTicket, lease: float) -> bool:
        """Extend the lease to `lease` seconds from now; False where any of it was taken over."""
        parameters = {"id": ticket.id, "lease": lease}
        renewed = self._database.run(lambda c: c.execute(_RENEW, parameters).rowcount)
        return renewed == len(ticket.led)

    def land(self, ticket: FlightTicket, error: MarketDataError | None) -> None:
        """End the flight and leave its outcome for those who wait. Idempotent."""
        record = None if error is None else json.dumps(error.to_record())
        self._database.run(lambda c: _land(c, ticket.id, record))

    def outcome(self, flights: Mapping[SeriesKey, str]) -> dict[SeriesKey, FlightOutcome]:
        """Return the outcomes of those flights that have ended; one nobody knows of is lost."""
        if not flights:
            return {}
        parameters = {**key_columns(list(flights)), "ids": list(flights.values())}
        rows = self._database.run(lambda c: c.execute(_OUTCOME, parameters).all())
        return {key_of(row[:4]): _outcome(*row[4:]) for row in rows}


def _board(connection: Connection, claim: dict[str, Any]) -> dict[SeriesKey, str]:
    connection.execute(_BOARD, claim)
    return {key_of(row[:4]): row[4] for row in connection.execute(_IN_AIR, claim)}


def _land(connection: Connection, flight: str, record: str | None) -> None:
    connection.execute(_LAND, {"id": flight, "error": record})
    connection.execute(_PURGE, {"kept": KEPT_SECONDS})


def _outcome(lost: bool, error: Any, start: Any, end: Any) -> FlightOutcome:
    if lost:
        return FlightOutcome(lost=True)
    span = Span(to_micros(start), to_micros(end))
    return FlightOutcome(error=None if error is None else error_from_record(error), span=span)
