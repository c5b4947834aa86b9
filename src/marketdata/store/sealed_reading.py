"""Reading sealed bars: chunks out of a snapshot, decompressed while the next is on its way, decoded
and corrected afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from psycopg import sql

from marketdata.chunks import Chunk, decode_chunks
from marketdata.clock import from_micros
from marketdata.errors import StoreError
from marketdata.spans import Span
from marketdata.store import corrections
from marketdata.store.chunk_table import check_ends, naming
from marketdata.store.connection import Driver
from marketdata.store.observed import Observed, apply
from marketdata.store.series_table import inside
from marketdata.types import Bars, SeriesKey

_COPY: Final = sql.SQL(
    """COPY (
    SELECT r.n, c.span_start, c.span_end, c.data
    FROM unnest({numbers}::integer[], {providers}::text[], {feeds}::text[], {symbols}::text[],
                {timeframes}::text[], {starts}::timestamptz[], {ends}::timestamptz[])
         AS r (n, provider, feed, symbol, timeframe, starts, ends)
    JOIN bar_chunks AS c ON c.symbol = r.symbol AND c.timeframe = r.timeframe
        AND c.provider = r.provider AND c.feed = r.feed
        AND c.span_start < r.ends AND c.span_end > r.starts
) TO STDOUT (FORMAT binary)"""
)
# Of one series, which is what most reads are: planning the join above takes longer than its answer.
_COPY_OF_ONE: Final = sql.SQL(
    """COPY (
    SELECT {number}::integer, span_start, span_end, data FROM bar_chunks
    WHERE symbol = {symbol} AND timeframe = {timeframe} AND provider = {provider} AND feed = {feed}
        AND span_start < {end} AND span_end > {start}
) TO STDOUT (FORMAT binary)"""
)
_TYPES: Final = ["int4", "timestamptz", "timestamptz", "bytea"]
_SHARE: Final = 4_000_000
"""Least steps of series time in one statement: about four series over two years of minutes."""


type Received = Chunk | bytes
"""A chunk as it came; decompressed already, or not."""


class SealedSpans(NamedTuple):
    """The sealed part of one request."""

    number: int
    key: SeriesKey
    spans: list[Span]


class SealedShare(list[SealedSpans]):
    """Requests that one statement reads."""


def shares(wanted: Iterable[SealedSpans]) -> Iterator[SealedShare]:
    """Cut requests to shares that several connections can take."""
    share = SealedShare()
    load = 0
    for each in wanted:
        share.append(each)
        load += (each.spans[-1].end - each.spans[0].start) // each.key.timeframe.step
        if load >= _SHARE:
            yield share
            share, load = SealedShare(), 0
    if share:
        yield share


def copy_sealed(raw: Driver, share: SealedShare) -> Iterator[tuple[int, Span, bytes]]:
    """Yield request number, span and bytes of each chunk that reaches into the requests."""
    with raw.cursor() as cursor, cursor.copy(_statement(share)) as copy:
        copy.set_types(_TYPES)
        for number, start, end, data in copy.rows():
            yield number, Span(start, end), data


def _statement(share: SealedShare) -> sql.Composed:
    if len(share) == 1:
        ((number, key, spans),) = share
        return _COPY_OF_ONE.format(
            number=sql.Literal(number),
            symbol=sql.Literal(key.symbol),
            timeframe=sql.Literal(key.timeframe.value),
            provider=sql.Literal(key.provider),
            feed=sql.Literal(key.feed),
            start=sql.Literal(from_micros(spans[0].start)),
            end=sql.Literal(from_micros(spans[-1].end)),
        )
    return _COPY.format(
        numbers=sql.Literal([each.number for each in share]),
        providers=sql.Literal([each.key.provider for each in share]),
        feeds=sql.Literal([each.key.feed for each in share]),
        symbols=sql.Literal([each.key.symbol for each in share]),
        timeframes=sql.Literal([each.key.timeframe.value for each in share]),
        starts=sql.Literal([from_micros(each.spans[0].start) for each in share]),
        ends=sql.Literal([from_micros(each.spans[-1].end) for each in share]),
    )


def opened(data: bytes) -> Received:
    """Return a chunk ready to be decoded, or as it is where it is damaged: an error would have to
    break off the statement that brings the others, and `with_sealed` says whose chunk it is."""
    try:
        chunk = Chunk(data)
        chunk.open()
    except StoreError:
        return data
    return chunk


def read_corrections(raw: Driver, wanted: Sequence[SealedSpans]) -> dict[int, Observed]:
    """Return the pending corrections of each request, by its number."""
    spans = {place: each.spans for place, each in enumerate(wanted, start=1)}
    found = corrections.read(raw, [each.key for each in wanted], spans, pending=True)
    return {each.number: found.of_series(place) for place, each in enumerate(wanted, start=1)}


def with_sealed(
    key: SeriesKey,
    rows: Bars,
    chunks: Mapping[Span, Received],
    spans: Sequence[Span],
    corrected: Observed | None,
) -> Bars:
    """Return rows and sealed bars of one series together, ascending, in memory of their own.

    Parameters
    ----------
    chunks : mapping
        By its span each chunk that reaches into `spans`.
    spans : sequence of Span
        What is asked for and sealed.
    corrected : Observed or None
        The pending corrections inside `spans`.

    Raises
    ------
    StoreError
        A chunk is damaged; names the series and the days. A retry does not help.
    """
    corrections_found = corrected is not None and len(corrected) > 0
    plain = len(spans) == 1 and not corrections_found and _follow(rows, spans)
    bars = _decoded(key, chunks, spans, rows if plain else None)
    if plain:
        return bars
    if corrected is not None and corrections_found:
        revisions = np.zeros(len(bars), np.int64)
        number = int(corrected.number[0])
        bars = apply(corrected, Observed.of(number, bars, revisions)).live().bars()
    both = Bars.concat([bars, rows])
    if len(bars) and len(rows) and bars.timestamp[-1] > rows.timestamp[0]:
        both = both.take(np.argsort(both.timestamp))  # rows between sealed days
    check_order(key, both)
    return both


def check_order(key: SeriesKey, bars: Bars) -> None:
    """Raise `StoreError` unless the labels ascend. Those of one chunk always do."""
    if not (bars.timestamp[1:] > bars.timestamp[:-1]).all():
        raise StoreError(f"bars of {key} did not come back in order")


def _follow(rows: Bars, spans: Sequence[Span]) -> bool:
    return not len(rows) or int(rows.timestamp[0]) >= spans[-1].end


def _decoded(
    key: SeriesKey,
    chunks: Mapping[Span, Received],
    spans: Sequence[Span],
    then: Bars | None,
) -> Bars:
    """Return the bars of chunks inside a normal list of spans, and those that follow."""
    ordered = sorted(chunks)
    sound: list[Chunk] = []
    for span in ordered:
        with naming(key, span):
            found = chunks[span]
            chunk = found if isinstance(found, Chunk) else Chunk(found)
            check_ends(chunk.first, chunk.last, span)
            if sound and chunk.first <= sound[-1].last:
                raise StoreError("they overlap with what is stored of the days before")
        sound.append(chunk)
    whole = Span(spans[0].start, spans[-1].end)
    try:
        bars = decode_chunks(sound, whole, then)
    except StoreError:
        for span, chunk in zip(ordered, sound, strict=True):
            with naming(key, span):
                decode_chunks((chunk,))
        raise
    if len(spans) > 1:
        bars = bars.take(inside(bars.timestamp, spans))
    return bars
