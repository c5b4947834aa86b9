"""The table `bar_chunks` inside a writing transaction: chunks of series, encoded and decoded.

The caller holds the locks of the series concerned. A chunk may reach beyond what its series has
sealed, where retention has cut it: only the bars inside `series.sealed` count.
"""

# Statements are composed of this module's constants only; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, NamedTuple

from marketdata.chunks import decode_chunk, encode_chunk
from marketdata.clock import from_micros
from marketdata.errors import StoreError
from marketdata.spans import Span
from marketdata.store import arrays
from marketdata.store.connection import Driver
from marketdata.store.observed import Observed
from marketdata.store.rows import KEYS
from marketdata.types import SeriesKey

_OVERLAPPING: Final = f"""
SELECT k.n, c.span_start, c.span_end, c.data
FROM {KEYS} JOIN unnest(%(n)s::integer[], %(start)s::timestamptz[], %(end)s::timestamptz[])
    AS r (n, starts, ends) USING (n)
JOIN bar_chunks AS c ON c.symbol = k.symbol AND c.timeframe = k.timeframe
    AND c.provider = k.provider AND c.feed = k.feed
    AND c.span_start < r.ends AND c.span_end > r.starts
ORDER BY k.n, c.span_start
"""
_SPANS: Final = f"""
SELECT k.n, c.span_start, c.span_end
FROM {KEYS} JOIN bar_chunks AS c USING (symbol, timeframe, provider, feed)
ORDER BY k.n, c.span_start
"""
_DELETE: Final = f"""
DELETE FROM bar_chunks AS c
USING {KEYS} JOIN unnest(%(n)s::integer[], %(start)s::timestamptz[]) AS gone (n, start) USING (n)
WHERE c.symbol = k.symbol AND c.timeframe = k.timeframe AND c.provider = k.provider
  AND c.feed = k.feed AND c.span_start = gone.start
"""
_INSERT: Final = """
COPY bar_chunks (symbol, timeframe, provider, feed, span_start, span_end, first_bar, last_bar,
                 bar_count, revision, data) FROM STDIN (FORMAT binary)
"""
_TYPES: Final = ["text"] * 4 + ["timestamptz"] * 4 + ["int4", "int8", "bytea"]
_ENCODERS: Final = min(4, os.cpu_count() or 1)


class StoredChunk(NamedTuple):
    number: int
    span: Span
    data: bytes


class NewChunk(NamedTuple):
    """Bars of one series to be stored as a chunk; without bars there will be none."""

    number: int
    span: Span
    bars: Observed


def overlapping(
    raw: Driver, keys: Sequence[SeriesKey], spans: Mapping[int, Sequence[Span]]
) -> list[StoredChunk]:
    """Return the chunks that reach into the spans given for each series, in order of time."""
    pieces = [(number, span) for number, own in spans.items() for span in own]
    if not pieces:
        return []
    rows = raw.execute(
        _OVERLAPPING,
        {
            **arrays.key_arrays(keys),
            "n": arrays.ints([number for number, _ in pieces]),
            "start": arrays.instants([span.start for _, span in pieces]),
            "end": arrays.instants([span.end for _, span in pieces]),
        },
        binary=True,
    )
    found = {
        (number, start): StoredChunk(number, Span(start, end), data)
        for number, start, end, data in rows
    }
    return list(found.values())


def spans(raw: Driver, keys: Sequence[SeriesKey]) -> dict[int, list[Span]]:
    """Return the spans of all chunks of each series."""
    found: dict[int, list[Span]] = {}
    for number, start, end in raw.execute(_SPANS, arrays.key_arrays(keys), binary=True):
        found.setdefault(number, []).append(Span(start, end))
    return found


def decoded(key: SeriesKey, chunk: StoredChunk) -> Observed:
    """Return the bars of a chunk.

    Raises
    ------
    StoreError
        The stored bytes are damaged; names the series and the days. A retry does not help.
    """
    with naming(key, chunk.span):
        bars, revision = decode_chunk(chunk.data)
        check_ends(int(bars.timestamp[0]), int(bars.timestamp[-1]), chunk.span)
    return Observed.of(chunk.number, bars, revision)


@contextmanager
def naming(key: SeriesKey, span: Span) -> Iterator[None]:
    """Let an error about a chunk's bytes say whose chunk it is, and what to do."""
    try:
        yield
    except StoreError as error:
        first, after = (from_micros(edge).date() for edge in span)
        raise StoreError(
            f"the sealed bars of {key} from {first} to {after} are damaged: {error.message}",
            cure="restore table bar_chunks from a backup, or give them up and fetch them again: "
            f"marketdata db unseal {key.symbol} --timeframe {key.timeframe} --start {first} "
            f"--end {after} --discard, then marketdata backfill {key.symbol}",
            series=str(key),
        ) from error


def check_ends(first: int, last: int, span: Span) -> None:
    """Raise `StoreError` where a chunk's first and last bar are not of its span."""
    if not span.start <= first <= last < span.end:
        raise StoreError("these bytes hold other days")


def store(raw: Driver, keys: Sequence[SeriesKey], chunks: Iterable[NewChunk]) -> int:
    """Encode and insert chunks; return the bytes written."""
    filled = [chunk for chunk in chunks if len(chunk.bars)]
    if not filled:
        return 0
    if len(filled) > 1 and _ENCODERS > 1:
        with ThreadPoolExecutor(_ENCODERS, "marketdata-encode") as pool:
            blocks = list(pool.map(_encoded, filled))
    else:
        blocks = [_encoded(chunk) for chunk in filled]
    with raw.cursor() as cursor, cursor.copy(_INSERT) as copy:
        copy.set_types(_TYPES)
        for (number, span, bars), data in zip(filled, blocks, strict=True):
            key = keys[number - 1]
            ends = (*span, int(bars.timestamp[0]), int(bars.timestamp[-1]))
            copy.write_row(
                (
                    key.symbol,
                    key.timeframe.value,
                    key.provider,
                    key.feed,
                    *map(from_micros, ends),
                    len(bars),
                    int(bars.revision.max()),
                    data,
                )
            )
    return sum(map(len, blocks))


def _encoded(chunk: NewChunk) -> bytes:
    return encode_chunk(chunk.bars.bars(), chunk.bars.revision)


def delete(raw: Driver, keys: Sequence[SeriesKey], chunks: Sequence[tuple[int, Span]]) -> None:
    """Delete chunks, named by series and span."""
    if chunks:
        raw.execute(
            _DELETE,
            {
                **arrays.key_arrays(keys),
                "n": arrays.ints([number for number, _ in chunks]),
                "start": arrays.instants([span.start for _, span in chunks]),
            },
        )
