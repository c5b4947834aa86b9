"""The sealed chunk beside Arrow IPC and ArcticDB: bytes a bar, and speed against size.

Run: ``python -m benchmarks.bench_chunks``. The bars are two years of generated minutes, some of
fractional volume, all with six-digit vwaps; a month is a chunk, as a backfill writes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pyarrow as pa

from benchmarks.arctic_anchor import ArcticAbsentError, measure
from benchmarks.timing import Row, take_turns
from marketdata.calendars import EXCHANGE, calendar_for
from marketdata.chunks import Chunk, decode_chunks, encode_chunk
from marketdata.sandbox.generated import GeneratedMarket
from marketdata.spans import Span
from marketdata.types import COLUMNS, Bars, Int64s, Stage, revision_of

TWO_YEARS = Span(1_725_148_800_000_000, 1_788_220_800_000_000)  # 2024-09-01 to 2026-09-01
SYMBOLS = ("AAPL", "SPY", "S00007")
SIZES = (2_000, 10_000, 50_000, 200_000)
MOST_BYTES = 20.0
ARCTIC_BAR = 6.0
ENCODED_PER_SECOND = 1_000_000


@dataclass(frozen=True)
class Room:
    """One line of the report: bytes a bar."""

    what: str
    size: str
    bytes_per_bar: float
    bar: float | None = None

    @property
    def reached(self) -> bool:
        return self.bar is None or self.bytes_per_bar <= self.bar

    def __str__(self) -> str:
        verdict = "ok" if self.reached else "MISSED"
        held = "" if self.bar is None else f"(<= {self.bar:g} {verdict})"
        return f"{self.what:<44} {self.size:>14}  {self.bytes_per_bar:>10.2f} bytes a bar  {held}"


@lru_cache(maxsize=8)
def minutes(symbol: str, *, extended: bool = False) -> Bars:
    """Return two years of generated minutes, about 195,000 of regular hours."""
    bars = Bars.concat(list(GeneratedMarket().minutes(symbol, TWO_YEARS, "sip")))
    if extended:
        return bars
    calendar = calendar_for(EXCHANGE, TWO_YEARS.end)
    session = np.searchsorted(calendar.open, bars.timestamp, side="right") - 1
    return bars.take(bars.timestamp < calendar.close[session])


def by_month(bars: Bars) -> list[Bars]:
    months = bars.timestamp.astype("M8[us]").astype("M8[M]")
    edges = [0, *(np.flatnonzero(np.diff(months)) + 1).tolist(), len(bars)]
    return [
        Bars(bars.timestamp[low:high], bars.values[:, low:high]) for low, high in pairwise(edges)
    ]


def encoded(parts: list[Bars]) -> list[bytes]:
    return [encode_chunk(part, _revisions(part)) for part in parts]


def _revisions(bars: Bars) -> Int64s:
    return np.full(len(bars), revision_of(int(Stage.FINAL), TWO_YEARS.end), np.int64)


def rows() -> Iterator[Row | Room]:
    """Measure, and yield the lines of the report."""
    for symbol in SYMBOLS:
        yield from _room(symbol)
    yield from _columns(SYMBOLS[0])
    for size in SIZES:
        yield from _speed(size)


# ------------------------------------------------------------------------------------------- room


def _room(symbol: str) -> Iterator[Room]:
    for extended in (False, True):
        bars = minutes(symbol, extended=extended)
        parts = by_month(bars)
        hours = "extended" if extended else "regular"
        size = f"{len(bars):,} bars"
        ours = sum(map(len, encoded(parts)))
        yield Room(f"chunks, {symbol}, {hours} hours", size, ours / len(bars), MOST_BYTES)
        arrow = sum(map(len, map(_arrow, parts)))
        yield Room("  Arrow IPC, zstd", size, arrow / len(bars))


def _columns(symbol: str) -> Iterator[Room]:
    """Each column's share: what the chunks lose when the column is empty."""
    parts = by_month(minutes(symbol))
    count = sum(map(len, parts))
    full = sum(map(len, encoded(parts)))
    prices = 0
    for column, name in enumerate(COLUMNS):
        if column < 4:
            continue
        without = [Bars(part.timestamp, part.values.copy()) for part in parts]
        for part in without:
            part.values[column] = np.nan
        share = full - sum(map(len, encoded(without)))
        prices += share
        yield Room(f"  of these {name}", f"{count:,} bars", share / count)
    rest = full - prices
    yield Room("  of these prices, labels, revisions", f"{count:,} bars", rest / count)


def _arrow(bars: Bars) -> bytes:
    columns = [pa.array(bars.timestamp), *(pa.array(row) for row in bars.values)]
    batch = pa.record_batch(columns, names=["timestamp", *COLUMNS])
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


# ------------------------------------------------------------------------------------------ speed


def _speed(size: int) -> Iterator[Row | Room]:
    whole = minutes("AAPL", extended=True)
    bars = Bars(whole.timestamp[:size], np.ascontiguousarray(whole.values[:, :size]))
    parts = by_month(bars)
    blocks, arrows = encoded(parts), [_arrow(part) for part in parts]
    best = take_turns(
        {
            "encode": lambda: encoded(parts),
            "arrow encode": lambda: [_arrow(part) for part in parts],
            "decode": lambda: decode_chunks([Chunk(block) for block in blocks]),
            "arrow decode": lambda: [_from_arrow(block) for block in arrows],
        },
        rounds=9,
    )
    label = f"{size:,} bars"
    largest = size == SIZES[-1]
    asked = size / ENCODED_PER_SECOND * 1000
    yield Row("chunks encode", label, best["encode"], "1,000,000 bars/s", asked, 1.0, True)
    yield Row("chunks encode", label, best["encode"], "Arrow", best["arrow encode"], None, True)
    yield Row("chunks decode", label, best["decode"], "Arrow", best["arrow decode"], None, True)
    if not largest:
        return
    try:
        arctic = measure(bars)
    except ArcticAbsentError as absent:
        print(f"  ArcticDB is not here, no figure beside it: {absent}", flush=True)
        return
    yield Row("chunks decode", label, best["decode"], "ArcticDB", arctic.read_ms, ARCTIC_BAR, False)
    yield Row("chunks encode", label, best["encode"], "ArcticDB", arctic.write_ms, None, True)
    yield Room("  ArcticDB on its disk", label, arctic.bytes_per_bar)


def _from_arrow(block: bytes) -> Bars:
    batch = pa.ipc.open_stream(block).read_next_batch()
    values = np.stack([batch.column(name).to_numpy() for name in COLUMNS])
    return Bars(batch.column("timestamp").to_numpy(), values)


if __name__ == "__main__":
    for line in rows():
        print(f"  {line}", flush=True)
