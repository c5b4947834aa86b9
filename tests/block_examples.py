"""Blocks and bars to put into a codec or a cache."""

from __future__ import annotations

import numpy as np

from marketdata.protocols import BlockGrowth, CachedBlock
from marketdata.spans import Span
from marketdata.types import MINUTE, Bars, SeriesKey, Timeframe

EPOCH = 4_711
AAPL = SeriesKey("alpaca", "sip", "AAPL", Timeframe.MIN_1)
MSFT = SeriesKey("alpaca", "sip", "MSFT", Timeframe.MIN_1)
START = 1_710_000_000_000_000


def some_bars(count: int = 500, seed: int = 0) -> Bars:
    """Return minute bars with fractional volumes, some without vwap and trade count."""
    random = np.random.default_rng(seed)
    values = random.uniform(0.0001, 1e6, (7, count))
    values[5:, random.random(count) < 0.1] = np.nan
    return Bars(START + np.arange(count, dtype=np.int64) * MINUTE, values)


def some_block(
    count: int = 500, revision: int = 1, seed: int = 0, base: Timeframe | None = None
) -> CachedBlock:
    """Return a block that covers its bars and an hour before them."""
    covered = Span(START - 60 * MINUTE, START + count * MINUTE)
    return CachedBlock(covered, revision, some_bars(count, seed), base, covered.end + MINUTE)


def some_growth(
    block: CachedBlock, count: int = 1, seed: int = 1, previous: int | None = None, back: int = 0
) -> BlockGrowth:
    """Return a commit of `count` bars, the first of them `back` bars before the block's end."""
    start = block.covered.end - back * MINUTE
    bars = some_bars(count, seed)
    bars = Bars(bars.timestamp - START + start, bars.values)
    before = block.revision if previous is None else previous
    end = max(block.covered.end, start + count * MINUTE)
    return BlockGrowth(before, before + 1, Span(start, end), bars, end + MINUTE)


def grown(block: CachedBlock, *growths: BlockGrowth) -> CachedBlock:
    """Return what a block with these growths must be served as."""
    rows = dict(zip(block.bars.timestamp.tolist(), block.bars.values.T, strict=True))
    for growth in growths:
        rows |= dict(zip(growth.bars.timestamp.tolist(), growth.bars.values.T, strict=True))
    labels = sorted(rows)
    values = np.array([rows[label] for label in labels]).reshape(len(labels), 7).T.copy()
    last = growths[-1]
    return CachedBlock(
        Span(block.covered.start, last.covered.end),
        last.revision,
        Bars(np.array(labels, np.int64), values),
        block.base,
        last.fetched_us,
    )


def assert_same_block(left: CachedBlock, right: CachedBlock) -> None:
    """Compare bit for bit, NaN included."""
    assert (left.covered, left.revision) == (right.covered, right.revision)
    assert (left.base, left.fetched_us) == (right.base, right.fetched_us)
    assert left.bars.timestamp.tobytes() == right.bars.timestamp.tobytes()
    assert left.bars.values.shape == right.bars.values.shape
    assert left.bars.values.tobytes() == right.bars.values.tobytes()
