"""Indicator values on PostgreSQL: the newest of each series, and the history of some timeframes.

A record is one row of fixed length in a binary COPY: the series by its number, the values as one
array. Ten thousand series of fifteen values are one statement and ten thousand rows, where a row a
value would be 150,000. The view ``market_data_indicators`` shows them a row a value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, LiteralString, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, text

from marketdata.clock import from_micros
from marketdata.corporate_actions import SHARE_CHANGES
from marketdata.indicator_values import History, Newest
from marketdata.store.connection import Database, Driver, driver
from marketdata.store.wire import COPY_HEADER, COPY_TRAILER, POSTGRES_EPOCH, key_columns
from marketdata.types import Floats, Int64s, SeriesKey, Timeframe

_FLOAT8: Final = 701
"""PostgreSQL's number of the type double precision."""
_LATEST, _HISTORY = 1, 2
_ROWS_PER_CHUNK: Final = 65_536

# Kept by the connection and emptied by each COMMIT, as for bars.
_STAGE_TABLE: Final = """
CREATE TEMPORARY TABLE IF NOT EXISTS incoming_indicators (
    series integer, place smallint, "timestamp" timestamptz, indicator_values double precision[],
    revision bigint, actions_as_of timestamptz, action_version bigint
) ON COMMIT DELETE ROWS
"""
_STAGE_COPY: Final = "COPY pg_temp.incoming_indicators FROM STDIN (FORMAT binary)"

_NO_OLDER: Final = """excluded.revision >= t.revision
    AND excluded.actions_as_of >= t.actions_as_of"""
_LATEST_UPSERT: Final = f"""
INSERT INTO indicator_latest AS t (series, set_number, "timestamp", indicator_values, revision,
                                   actions_as_of, action_version)
SELECT series, %(set)s, "timestamp", indicator_values, revision, actions_as_of, action_version
FROM pg_temp.incoming_indicators WHERE place & {_LATEST} > 0
ORDER BY series
ON CONFLICT (series) DO UPDATE
    SET set_number = excluded.set_number, "timestamp" = excluded."timestamp",
        indicator_values = excluded.indicator_values, revision = excluded.revision,
        actions_as_of = excluded.actions_as_of, action_version = excluded.action_version
    WHERE {_NO_OLDER}
"""  # noqa: S608  # composed of this module's constants only
_HISTORY_UPSERT: Final = f"""
INSERT INTO indicator_history AS t (series, "timestamp", set_number, indicator_values, revision,
                                    actions_as_of, action_version)
SELECT series, "timestamp", %(set)s, indicator_values, revision, actions_as_of, action_version
FROM pg_temp.incoming_indicators WHERE place & {_HISTORY} > 0
ORDER BY series, "timestamp"
ON CONFLICT (series, "timestamp") DO UPDATE
    SET set_number = excluded.set_number, indicator_values = excluded.indicator_values,
        revision = excluded.revision, actions_as_of = excluded.actions_as_of,
        action_version = excluded.action_version
    WHERE {_NO_OLDER}
"""  # noqa: S608
# A bar that was withdrawn has no value either.
_HISTORY_DELETE: Final = f"""
DELETE FROM indicator_history AS h
USING unnest(%(series)s::integer[], %(since)s::timestamptz[], %(revisions)s::bigint[],
             %(actions)s::timestamptz[]) AS r (series, since, revision, actions_as_of)
WHERE h.series = r.series AND h."timestamp" >= r.since
  AND h.revision <= r.revision AND h.actions_as_of <= r.actions_as_of
  AND NOT EXISTS (SELECT FROM pg_temp.incoming_indicators AS i
                  WHERE i.series = h.series AND i."timestamp" = h."timestamp"
                    AND i.place & {_HISTORY} > 0)
"""  # noqa: S608

_KEYS: Final = """unnest(CAST(:provider AS text[]), CAST(:feed AS text[]), CAST(:symbol AS text[]),
    CAST(:timeframe AS text[])) WITH ORDINALITY AS k (provider, feed, symbol, timeframe, n)"""
_NEW_SET: Final = text("""
INSERT INTO indicator_sets (names, digest) VALUES (CAST(:names AS text[]), :digest)
ON CONFLICT DO NOTHING
""")
_SET: Final = text("SELECT number FROM indicator_sets WHERE digest = :digest")
_NEW_SERIES: Final = text(f"""
INSERT INTO indicator_series (provider, feed, symbol, timeframe, adjustment)
SELECT k.provider, k.feed, k.symbol, k.timeframe, :adjustment FROM {_KEYS}
ORDER BY k.symbol, k.timeframe, k.provider, k.feed
ON CONFLICT DO NOTHING
""")  # noqa: S608
_SERIES: Final = text(f"""
SELECT k.n, s.number
FROM {_KEYS} JOIN indicator_series AS s USING (provider, feed, symbol, timeframe)
WHERE s.adjustment = :adjustment
""")  # noqa: S608
# One row of packed columns: a message and a Python object for each of ten thousand rows would cost
# more than the query.
_HEADS: Final = """
SELECT string_agg(int8send(k.n), ''), string_agg(int8send(s.revision), ''),
       string_agg(timestamptz_send(upper(s.coverage)), '')
FROM unnest(%(provider)s::text[], %(feed)s::text[], %(symbol)s::text[], %(timeframe)s::text[])
         WITH ORDINALITY AS k (provider, feed, symbol, timeframe, n)
JOIN series AS s USING (provider, feed, symbol, timeframe)
WHERE NOT isempty(s.coverage)
"""
_BEHIND: Final = text("""
SELECT k.n
FROM unnest(CAST(:provider AS text[]), CAST(:feed AS text[]), CAST(:symbol AS text[]),
            CAST(:timeframe AS text[]), CAST(:base AS text[]))
         WITH ORDINALITY AS k (provider, feed, symbol, timeframe, base, n)
JOIN series AS s ON (s.provider, s.feed, s.symbol, s.timeframe)
                  = (k.provider, k.feed, k.symbol, k.base)
LEFT JOIN indicator_series AS i ON (i.provider, i.feed, i.symbol, i.timeframe, i.adjustment)
                                 = (k.provider, k.feed, k.symbol, k.timeframe, :adjustment)
LEFT JOIN indicator_latest AS l ON l.series = i.number AND l.set_number = :set_number
WHERE NOT isempty(s.coverage) AND (l.series IS NULL OR l.revision < s.revision)
ORDER BY k.n
""")
# A share change that was recorded, corrected or withdrawn, or has come into effect, since the
# values were computed.
_OUTDATED: Final = text("""
SELECT DISTINCT i.provider, i.feed, i.symbol, i.timeframe
FROM corporate_actions AS a
JOIN indicator_series AS i USING (provider, symbol)
JOIN indicator_latest AS l ON l.series = i.number
WHERE a.provider = :provider AND a.type = ANY (:kinds) AND a.ex_date <= :now
  AND (a.fetched_at > l.actions_as_of OR a.ex_date > l.actions_as_of)
  AND i.adjustment = :adjustment AND l.set_number = :set_number
""")
_ASKED: Final = """
SELECT string_agg(int8send(k.n), ''), string_agg(timestamptz_send(lower(c.asked)), ''),
       string_agg(timestamptz_send(c.checked_at), '')
FROM unnest(%(symbols)s::text[]) WITH ORDINALITY AS k (symbol, n)
JOIN action_checks AS c USING (symbol)
WHERE c.provider = %(provider)s
"""
_KEPT: Final = text(f"""
SELECT k.n, h.set_number, h.action_version
FROM {_KEYS}
JOIN indicator_series AS s USING (provider, feed, symbol, timeframe)
CROSS JOIN LATERAL (
    SELECT set_number, action_version FROM indicator_history
    WHERE series = s.number ORDER BY "timestamp" LIMIT 1) AS h
WHERE s.adjustment = :adjustment
""")  # noqa: S608


class _Columns(NamedTuple):
    """Rows to stage, one array a column."""

    series: NDArray[np.int32]
    place: NDArray[np.int16]
    timestamp: Int64s
    values: Floats
    revision: Int64s
    actions_us: Int64s
    action_version: Int64s


class PostgresIndicators:
    """Indicator values of one adjustment in PostgreSQL. Every method may raise `StoreError`.

    Parameters
    ----------
    database : Database
    columns : sequence of str
        Names of the values, in the order of every record.
    adjustment : str
        Of the bars they are computed on.
    """

    def __init__(
        self, database: Database, columns: Sequence[str], adjustment: str = "split"
    ) -> None:
        self._database = database
        self._names = list(columns)
        self._adjustment = adjustment
        self._set: int | None = None
        self._numbers: dict[SeriesKey, int] = {}

    def save(
        self,
        newest: Newest,
        history: Sequence[History] = (),
        kept: Collection[Timeframe] = (),
    ) -> int:
        """Store records in one transaction; return how many were not older than what is stored.

        Parameters
        ----------
        newest : Newest
            Replaces the newest values of these series, unless those were computed from a later
            revision of the bars, or a later knowledge of corporate actions.
        history : sequence of History
            Values to keep beside them.
        kept : collection of Timeframe
            Timeframes of `newest` whose records are kept in the history as well.
        """
        if not len(newest) and not history:
            return 0
        keys = [*newest.keys, *(h.key for h in history)]
        set_number = self._set_number()
        numbers = self._series_numbers(keys)
        staged = _columns(newest, history, kept, numbers)
        replaced = [
            (number, h)
            for number, h in zip(numbers[len(newest) :].tolist(), history, strict=True)
            if h.replaces and len(h.timestamp)
        ]
        return self._database.run(lambda c: _store(driver(c), set_number, staged, replaced))

    def heads(self, keys: Sequence[SeriesKey]) -> tuple[Int64s, Int64s]:
        """Return the revision of each stored series of bars, and the end of what it covers
        (microseconds UTC); zeros where nothing is stored."""
        found = np.zeros((2, len(keys)), np.int64)
        if keys:
            places, revision, covered = self._packed(_HEADS, key_columns(keys))
            found[:, places - 1] = revision, covered + POSTGRES_EPOCH
        return found[0], found[1]

    def behind(self, keys: Sequence[SeriesKey], bases: Sequence[SeriesKey]) -> list[int]:
        """Return the positions of the series whose newest values are not stored, or rest on an
        older revision than that of the stored series they come from."""
        if not keys:
            return []
        parameters = {
            **key_columns(keys),
            "base": [base.timeframe.value for base in bases],
            "adjustment": self._adjustment,
            "set_number": self._set_number(),
        }
        rows = self._database.run(lambda c: c.execute(_BEHIND, parameters).all(), snapshot=True)
        return [n - 1 for (n,) in rows]

    def outdated(self, provider: str, now_us: int) -> list[SeriesKey]:
        """Return the series whose newest values may rest on other share changes than are known and
        in effect at `now_us`."""
        parameters = {
            "provider": provider,
            "kinds": sorted(SHARE_CHANGES),
            "now": from_micros(now_us),
            "adjustment": self._adjustment,
            "set_number": self._set_number(),
        }
        rows = self._database.run(lambda c: c.execute(_OUTDATED, parameters).all(), snapshot=True)
        return [SeriesKey(told, feed, symbol, Timeframe(t)) for told, feed, symbol, t in rows]

    def asked(self, provider: str, symbols: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return, for symbols ever asked about corporate actions, the first ex-date asked for and the
        market time of asking; what `ActionStore.checked` says, for ten thousand symbols a minute."""
        parameters = {"provider": provider, "symbols": list(symbols)}
        places, starts, times = self._packed(_ASKED, parameters)
        starts, times = starts + POSTGRES_EPOCH, times + POSTGRES_EPOCH
        rows = zip(places.tolist(), starts.tolist(), times.tolist(), strict=True)
        return {symbols[n - 1]: (start, at) for n, start, at in rows}

    def _packed(self, statement: LiteralString, parameters: dict[str, Any]) -> list[Int64s]:
        """Return the columns of a statement that packs each into one value."""
        row = self._database.run(
            lambda c: driver(c).execute(statement, parameters, binary=True).fetchone(),
            snapshot=True,
        )
        assert row is not None
        return [np.frombuffer(column or b"", ">i8").astype(np.int64) for column in row]

    def kept_versions(self, keys: Sequence[SeriesKey]) -> dict[SeriesKey, int]:
        """Return the action version of each series with a history of these indicators."""
        if not keys:
            return {}
        set_number = self._set_number()
        parameters = {**key_columns(keys), "adjustment": self._adjustment}
        rows = self._database.run(lambda c: c.execute(_KEPT, parameters).all(), snapshot=True)
        return {keys[n - 1]: version for n, of, version in rows if of == set_number}

    # ------------------------------------------------------------------------------ numbers

    def _set_number(self) -> int:
        if self._set is None:
            digest = blake2b("\n".join(self._names).encode(), digest_size=16).hexdigest()

            def work(connection: Connection) -> int:
                connection.execute(_NEW_SET, {"names": self._names, "digest": digest})
                return int(connection.execute(_SET, {"digest": digest}).scalar_one())

            self._set = self._database.run(work)
        return self._set

    def _series_numbers(self, keys: Sequence[SeriesKey]) -> NDArray[np.int32]:
        known = self._numbers
        new = [key for key in dict.fromkeys(keys) if key not in known]
        if new:
            parameters = {**key_columns(new), "adjustment": self._adjustment}

            def work(connection: Connection) -> Mapping[SeriesKey, int]:
                connection.execute(_NEW_SERIES, parameters)
                rows = connection.execute(_SERIES, parameters).all()
                return {new[n - 1]: number for n, number in rows}

            known.update(self._database.run(work))
        return np.array([known[key] for key in keys], np.int32)


def _columns(
    newest: Newest,
    history: Sequence[History],
    kept: Collection[Timeframe],
    numbers: NDArray[np.int32],
) -> _Columns:
    """Return every row to stage: the newest records, then each history."""
    count = len(newest)
    place = np.full(count, _LATEST, np.int16)
    if kept:
        place[[key.timeframe in kept for key in newest.keys]] |= _HISTORY
    lengths = [len(h.timestamp) for h in history]
    later = sum(lengths)

    def joined(first: Int64s, rest: Sequence[int]) -> Int64s:
        return np.concatenate([first, np.repeat(np.array(rest, np.int64), lengths)])

    return _Columns(
        np.concatenate([numbers[:count], np.repeat(numbers[count:], lengths)]),
        np.concatenate([place, np.full(later, _HISTORY, np.int16)]),
        np.concatenate([newest.timestamp, *(h.timestamp for h in history)]),
        np.concatenate([newest.values, *(h.values for h in history)]),
        joined(newest.revision, [h.revision for h in history]),
        joined(newest.actions_us, [h.actions_us for h in history]),
        joined(newest.action_version, [h.action_version for h in history]),
    )


def _store(
    raw: Driver, set_number: int, rows: _Columns, replaced: Sequence[tuple[int, History]]
) -> int:
    raw.execute(_STAGE_TABLE)
    with raw.cursor() as cursor, cursor.copy(_STAGE_COPY) as copy:
        for chunk in _copy_stream(rows):
            copy.write(chunk)
    written = raw.execute(_LATEST_UPSERT, {"set": set_number}).rowcount
    if (rows.place & _HISTORY).any():
        if replaced:
            raw.execute(_HISTORY_DELETE, _replaced(replaced))
        raw.execute(_HISTORY_UPSERT, {"set": set_number})
    return written


def _replaced(replaced: Sequence[tuple[int, History]]) -> dict[str, Any]:
    return {
        "series": [number for number, _ in replaced],
        "since": [from_micros(int(h.timestamp[0])) for _, h in replaced],
        "revisions": [h.revision for _, h in replaced],
        "actions": [from_micros(h.actions_us) for _, h in replaced],
    }


def _row_type(width: int) -> np.dtype[np.void]:
    """Return one row of the binary COPY, each field behind its length; an array field holds its
    dimensions (1), flags (0), element type, length and lower bound, then each element behind its
    own length. Source: PostgreSQL, ``array_send``."""
    element = np.dtype([("length", ">i4"), ("value", ">f8")])
    array = np.dtype(
        [
            ("dimensions", ">i4"),
            ("flags", ">i4"),
            ("type", ">i4"),
            ("count", ">i4"),
            ("lower", ">i4"),
            ("elements", element, (width,)),
        ]
    )
    fields: list[tuple[str, Any]] = [
        ("series", ">i4"),
        ("place", ">i2"),
        ("timestamp", ">i8"),
        ("array", array),
        ("revision", ">i8"),
        ("actions", ">i8"),
        ("version", ">i8"),
    ]
    parts: list[tuple[str, Any]] = [("fields", ">i2")]
    for name, kind in fields:
        parts += [(f"{name}:length", ">i4"), (name, kind)]
    return np.dtype(parts)


def _copy_stream(columns: _Columns) -> Iterator[bytes]:
    kind = _row_type(columns.values.shape[1])
    names = ("series", "place", "timestamp", "array", "revision", "actions", "version")
    yield COPY_HEADER
    for start in range(0, len(columns.series), _ROWS_PER_CHUNK):
        part = slice(start, start + _ROWS_PER_CHUNK)
        rows = np.empty(len(columns.series[part]), kind)
        rows["fields"] = len(names)
        for name in names:
            rows[f"{name}:length"] = kind[name].itemsize
        rows["series"] = columns.series[part]
        rows["place"] = columns.place[part]
        rows["timestamp"] = columns.timestamp[part] - POSTGRES_EPOCH
        array = rows["array"]
        array["dimensions"], array["flags"], array["lower"] = 1, 0, 1
        array["type"], array["count"] = _FLOAT8, columns.values.shape[1]
        array["elements"]["length"] = 8
        array["elements"]["value"] = columns.values[part]
        rows["revision"] = columns.revision[part]
        rows["actions"] = columns.actions_us[part] - POSTGRES_EPOCH
        rows["version"] = columns.action_version[part]
        yield rows.tobytes()
    yield COPY_TRAILER
