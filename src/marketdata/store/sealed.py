"""What is sealed, as one: chunks with their pending corrections, seen inside a writing transaction.

The caller holds the locks of the series concerned.
"""

# Statements are composed of this module's constants only; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from marketdata.clock import from_micros
from marketdata.spans import Span, intersect
from marketdata.store import chunk_table, corrections
from marketdata.store.chunk_table import NewChunk, StoredChunk
from marketdata.store.connection import Driver
from marketdata.store.observed import Observed, apply
from marketdata.store.rows import OF_ONE, fields_of
from marketdata.store.series_table import inside
from marketdata.tiling import pieces
from marketdata.types import REVISION_STAGE, SeriesKey, Stage

_LEAST_FINAL: Final = int(Stage.FINAL) * REVISION_STAGE
"""The revision of a bar that is final for having been seen again unchanged."""

_ENDS: Final = f"""
SELECT s.first_row, s.last_row, c.first, c.last
FROM (SELECT first_row, last_row FROM series WHERE {OF_ONE}) AS s,
     (SELECT min("timestamp") AS first, max("timestamp") AS last FROM bar_corrections
      WHERE {OF_ONE} AND pending AND NOT withdrawn) AS c
"""
_SET_ENDS: Final = f"UPDATE series SET first_bar = %(first)s, last_bar = %(last)s WHERE {OF_ONE}"


def view(raw: Driver, keys: Sequence[SeriesKey], spans: Mapping[int, Sequence[Span]]) -> Observed:
    """Return the sealed bars of series in the spans given for each, which are sealed, corrections
    and withdrawals included.

    Raises
    ------
    StoreError
        A chunk is damaged.
    """
    chunks = [
        clipped(chunk_table.decoded(keys[chunk.number - 1], chunk), spans[chunk.number])
        for chunk in chunk_table.overlapping(raw, keys, spans)
    ]
    return apply(corrections.read(raw, keys, spans), Observed.join(chunks).newest_of_each())


def clipped(bars: Observed, spans: Sequence[Span]) -> Observed:
    """Return the bars of one series inside a normal list of spans."""
    return bars.take(inside(bars.timestamp, spans))


def new_chunks(number: int, days: Sequence[Span], bars: Observed) -> list[NewChunk]:
    """Cut final bars of one series to chunks that tile these days."""
    final = replace(bars, revision=np.maximum(bars.revision, _LEAST_FINAL))
    return [NewChunk(number, span, final.within(span)) for span in pieces(days)]


def make_room(
    raw: Driver,
    keys: Sequence[SeriesKey],
    known: Mapping[int, Sequence[Span]],
    days: Mapping[int, Sequence[Span]],
) -> None:
    """Cut chunks that reach into `days`, which are not sealed, to what is (`known`): retention
    leaves such chunks until the whole of them is too old."""
    left = chunk_table.overlapping(raw, keys, days)
    if left:
        rewrite(raw, keys, left, known)


def rewrite(
    raw: Driver,
    keys: Sequence[SeriesKey],
    chunks: Iterable[StoredChunk],
    sealed: Mapping[int, Sequence[Span]],
) -> None:
    """Store again of each chunk what lies in the spans that are sealed."""
    chunks = list(chunks)
    made: list[NewChunk] = []
    for chunk in chunks:
        kept = intersect([chunk.span], sealed[chunk.number])
        if kept:
            bars = chunk_table.decoded(keys[chunk.number - 1], chunk)
            made += new_chunks(chunk.number, kept, bars)
    chunk_table.delete(raw, keys, [(chunk.number, chunk.span) for chunk in chunks])
    chunk_table.store(raw, keys, made)


def refresh_bounds(raw: Driver, key: SeriesKey, sealed: Sequence[Span]) -> None:
    """Look up the first and last bar of a series again, after bars went away."""
    fields = fields_of(key)
    row = raw.execute(_ENDS, fields, binary=True).fetchone()
    assert row is not None
    first_row, last_row, first_correction, last_correction = row
    chunks = chunk_table.spans(raw, [key]).get(1, [])
    firsts = [first_row, first_correction, _edge(raw, key, chunks, sealed, 0)]
    lasts = [last_row, last_correction, _edge(raw, key, chunks[::-1], sealed, -1)]
    first = min((t for t in firsts if t is not None), default=None)
    last = max((t for t in lasts if t is not None), default=None)
    ends = {
        "first": None if first is None else from_micros(first),
        "last": None if last is None else from_micros(last),
    }
    raw.execute(_SET_ENDS, {**fields, **ends})


def _edge(
    raw: Driver, key: SeriesKey, chunks: Sequence[Span], sealed: Sequence[Span], at: int
) -> int | None:
    """Return the first (0) or last (-1) bar in the first of `chunks` that has one left."""
    for span in chunks:
        spans = intersect([span], sealed)
        bars = view(raw, [key], {1: spans}).live() if spans else Observed.empty()
        if len(bars):
            return int(bars.timestamp[at])
    return None
