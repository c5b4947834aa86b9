"""What goes into a cache block, what a block answers, and how long it lives.

A block holds the newest bars the store has, back to the 500th regular one, so that the default
call hits all day. Freshness is decided by calendar and clock: times to live only bound memory and
damage. No I/O here but `NewestBlocks.put`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final
from zlib import crc32

from marketdata import planning
from marketdata.calendars import TradingCalendar
from marketdata.keeping import Stored
from marketdata.planning import Segment
from marketdata.protocols import (
    BarCache,
    BlockGrowth,
    CachedBlock,
    Capabilities,
    ReadRequest,
    SeriesState,
)
from marketdata.queries import BarsQuery, select
from marketdata.spans import Span, subtract
from marketdata.types import DAY, Bars, Int64s, SeriesKey, Timeframe

BLOCK_BARS: Final = 500
MOST_GROWTH: Final = 128
"""Bars that one growth of a block may bring; more are worth a block of their own."""
TAIL_BYTES: Final = 4096
"""Bytes that are added to a block before it is written anew, on average: 32 cycles of one bar. A
read pays for each, about a microsecond."""
_MOST_BACK: Final = 365 * DAY
_DAY_SECONDS: Final = 86_400.0


def newest_end(
    query: BarsQuery,
    base: Timeframe,
    caps: Capabilities,
    calendar: TradingCalendar,
    now_us: int,
) -> int:
    """Return the end of the labels the query can be given now: its own, or the closed bars'."""
    edge = planning.frontier(calendar, base, caps, now_us)
    if base is not query.timeframe:
        edge = planning.closed_labels(calendar, query.timeframe, edge)
    return min(query.window.end, edge)


def bars_in_block(
    query: BarsQuery, block: CachedBlock, end: int, calendar: TradingCalendar
) -> Bars | None:
    """Return the query's bars if the block holds all of them up to `end`, else None."""
    window = query.window
    hours = planning.stored_hours(query.timeframe)
    if end > block.covered.end and calendar.trading_spans(Span(block.covered.end, end), hours):
        return None
    start = block.covered.start if window.start is None else window.start
    whole = start >= block.covered.start or not calendar.trading_spans(
        Span(start, min(end, block.covered.start)), hours
    )
    if window.limit is None and not whole:
        return None
    bars = select(block.bars.within(Span(start, end)), query, calendar)
    if window.limit is None or len(bars) == window.limit:
        return bars
    return bars if whole and window.start is not None else None


class Selections:
    """What `bars_in_block` answered last for a series: a strategy asks the same thing again and
    again until the next bar. Answers are read-only and shared."""

    most: Final = 64

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[object, ...], tuple[CachedBlock, Bars | None]] = (
            OrderedDict()
        )

    def bars(
        self, query: BarsQuery, block: CachedBlock, end: int, calendar: TradingCalendar
    ) -> Bars | None:
        """Return `bars_in_block`, remembered while the block is the same object."""
        window = query.window
        if len(query.symbols) > 1:
            return bars_in_block(query, block, end, calendar)
        asked = (query.symbols, query.timeframe, query.session, window.start, end, window.limit)
        known = self._known.get(asked)
        if known is None or known[0] is not block:
            # Most are asked for once: only what is asked for again is worth a copy to keep.
            self._keep(asked, block, None)
            return bars_in_block(query, block, end, calendar)
        bars = known[1]
        if bars is None:
            bars = bars_in_block(query, block, end, calendar)
            if bars is not None:
                bars = bars.frozen()
                self._keep(asked, block, bars)
        return bars

    def _keep(self, asked: tuple[object, ...], block: CachedBlock, bars: Bars | None) -> None:
        self._known[asked] = (block, bars)
        if len(self._known) > self.most:
            self._known.popitem(last=False)


def block_span(
    query: BarsQuery, part: Segment, state: SeriesState, calendar: TradingCalendar
) -> Span:
    """Widen a read to a whole cache block, as far as coverage reaches back without a hole."""
    if part.base is not query.timeframe or part.asked.empty:
        return part.asked
    start = planning.limit_start(query.timeframe, part.asked.end, BLOCK_BARS, "regular", calendar)
    held = [s for s in state.coverage if s.start < part.asked.end]
    if not held or start >= part.asked.start:
        return part.asked
    # What was asked may lie in closed hours, with trading never fetched before it.
    if calendar.trading_spans(Span(held[-1].end, part.asked.end), planning.stored_hours(part.base)):
        return part.asked
    return Span(min(part.asked.start, max(start, held[-1].start)), part.asked.end)


class NewestBlocks:
    """Collects the blocks that one read can leave in the cache."""

    def __init__(
        self, query: BarsQuery, caps: Capabilities, calendar: TradingCalendar, now_us: int
    ) -> None:
        self._query = query
        self._calendar = calendar
        self._base = caps.bases[query.timeframe][0].base
        edge = planning.frontier(calendar, self._base, caps, now_us)
        if query.ends_us is not None:
            edge = min(edge, query.ends_us)
        self._edge = edge
        self._closed = edge
        if self._base is not query.timeframe:
            self._closed = planning.closed_labels(calendar, query.timeframe, edge)
        self._ttl = time_to_live(query.timeframe, self._base, caps, calendar, now_us)
        self._blocks: dict[SeriesKey, CachedBlock] = {}

    def take(
        self, key: SeriesKey, part: Segment, state: SeriesState, bars: Bars, read: Span
    ) -> Bars:
        """Note the block that `bars`, all of the stored series inside `read`, make if they are
        the newest; return those asked for."""
        if part.base is self._base and not part.asked.empty and self._newest(part):
            self._blocks[key] = self._block(part, state, bars, read)
        return bars.within(part.labels)

    def _newest(self, part: Segment) -> bool:
        """Whether no closed bar follows this part."""
        if part.base is not self._query.timeframe:
            behind = Span(part.labels.end, self._closed)
        else:
            behind = Span(part.asked.end, self._edge)
        return not self._calendar.trading_spans(behind, planning.stored_hours(part.base))

    def _block(self, part: Segment, state: SeriesState, bars: Bars, read: Span) -> CachedBlock:
        timeframe = self._query.timeframe
        derived = part.base is not timeframe
        covered = part.labels if derived else part.asked
        start = covered.start
        if not derived:
            # Coverage may have grown since the read was planned: only what was read is known.
            span = block_span(self._query, part, state, self._calendar)
            start = max(span.start, read.start)
        start = _block_start(bars, start, timeframe, self._calendar)
        kept = bars.within(Span(start, covered.end))
        base = part.base if derived else None
        return CachedBlock(Span(start, covered.end), state.revision, kept, base, state.fetched_us)

    def put(self, cache: BarCache) -> None:
        if self._blocks:
            cache.put(self._blocks, dict.fromkeys(self._blocks, self._ttl))


def time_to_live(
    timeframe: Timeframe,
    base: Timeframe,
    caps: Capabilities,
    calendar: TradingCalendar,
    now_us: int,
) -> float:
    """Return the seconds until a minute (1min) or five (coarser) after the next bar is due."""
    grace = 60.0 if timeframe is Timeframe.MIN_1 else 300.0
    hours = planning.stored_hours(base)
    if not base.intraday:
        at = calendar.session_at(now_us - caps.daily_settle_delay)
        due = calendar.session_span(max(at, 0), "daily").end + caps.daily_settle_delay
        if due <= now_us:
            due = calendar.session_span(at + 1, "daily").end + caps.daily_settle_delay
    elif calendar.is_open(now_us, hours):
        due = now_us - now_us % timeframe.step + timeframe.step + caps.settle_delay
    else:
        due = calendar.next_open(now_us, hours) + timeframe.step + caps.settle_delay
    return min(_DAY_SECONDS, (due - now_us) / 1e6 + grace)


def kept_alive(
    timeframe: Timeframe,
    caps: Capabilities,
    calendar: TradingCalendar,
    now_us: int,
    next_look: float,
) -> float:
    """Return the seconds a block of a stored series should live that is looked after again in
    `next_look` seconds: until the bar after the next look is overdue."""
    due = time_to_live(timeframe, timeframe, caps, calendar, now_us)
    return min(_DAY_SECONDS, due + next_look)


def growth(steps: Sequence[Stored], bars: Bars) -> BlockGrowth | None:
    """Return what the commits of one walk add to the block of their series, or None where the
    block must be read anew.

    Parameters
    ----------
    steps : sequence of Stored
        Commits of one series, one after the other.
    bars : Bars
        Their bars, with or without those that changed nothing.
    """
    if len(bars) > MOST_GROWTH:
        return None
    for step in steps:
        withdrawn = step.commit.withdrawn
        if not step.alone or not step.newest or (withdrawn is not None and len(withdrawn)):
            return None
    first, last = steps[0], steps[-1]
    covered = Span(first.commit.covered.start, last.commit.covered.end)
    return BlockGrowth(first.previous, last.revision, covered, bars, last.commit.observed_us)


def needs_rewriting(key: SeriesKey, grown: int) -> bool:
    """Whether a block whose tail has `grown` to so many bytes should be written anew.

    Each series has a limit of its own, so that those that began together do not end together.
    """
    return grown > TAIL_BYTES // 2 + crc32(key.symbol.encode()) % TAIL_BYTES


def trimmed(block: CachedBlock, calendar: TradingCalendar, timeframe: Timeframe) -> CachedBlock:
    """Return `block` without what lies before its 500th regular bar from the end."""
    start = _block_start(block.bars, block.covered.start, timeframe, calendar)
    bars = block.bars.within(Span(start, block.covered.end))
    return replace(block, covered=Span(start, block.covered.end), bars=bars)


def _block_start(bars: Bars, start: int, timeframe: Timeframe, calendar: TradingCalendar) -> int:
    regular = _regular(bars, timeframe, calendar)
    return max(start, int(regular[-BLOCK_BARS])) if len(regular) > BLOCK_BARS else start


class BlocksFromStore:
    """Makes the newest blocks of stored series from what the store has, without asking a broker.

    A series with few bars is read again over a longer span, a bounded number of times, until there
    are 500 regular ones or no more are stored.

    Attributes
    ----------
    made : dict
        The blocks, by series; those are left out whose newest closed bars are missing.
    """

    _ROUNDS: Final = 4

    def __init__(self, caps: Capabilities, calendar: TradingCalendar, now_us: int) -> None:
        self.made: dict[SeriesKey, CachedBlock] = {}
        self._caps = caps
        self._calendar = calendar
        self._now_us = now_us
        self._spans: dict[SeriesKey, Span] = {}
        self._rounds = 0

    def ask(self, states: Mapping[SeriesKey, SeriesState]) -> list[ReadRequest]:
        """Return what to read first."""
        for key, state in states.items():
            span = self._first_span(key, state)
            if span is not None:
                self._spans[key] = span
        return [ReadRequest(key, span) for key, span in self._spans.items()]

    def _first_span(self, key: SeriesKey, state: SeriesState) -> Span | None:
        base, calendar = key.timeframe, self._calendar
        edge = planning.frontier(calendar, base, self._caps, self._now_us)
        held = [s for s in state.coverage if s.start < edge]
        hours = planning.stored_hours(base)
        if not held or calendar.trading_spans(Span(held[-1].end, edge), hours):
            return None
        start = planning.limit_start(base, edge, BLOCK_BARS, "regular", calendar)
        return Span(max(start, held[-1].start), edge)

    def take(self, found: Mapping[SeriesKey, tuple[SeriesState, Bars]]) -> list[ReadRequest]:
        """Make blocks of what was read; return what to read again, over a longer span."""
        self._rounds += 1
        again: list[ReadRequest] = []
        for key, (state, bars) in found.items():
            span = self._spans[key]
            hours = planning.stored_hours(key.timeframe)
            left = subtract([span], state.coverage)
            if any(self._calendar.trading_spans(hole, hours) for hole in left):
                continue  # dropped since we asked what there is
            block = CachedBlock(span, state.revision, bars, None, state.fetched_us)
            self.made[key] = trimmed(block, self._calendar, key.timeframe)
            start = self._longer(key, state, bars)
            if start < span.start and self._rounds < self._ROUNDS:
                self._spans[key] = Span(start, span.end)
                again.append(ReadRequest(key, self._spans[key]))
        return again

    def _longer(self, key: SeriesKey, state: SeriesState, bars: Bars) -> int:
        span = self._spans[key]
        regular = _regular(bars, key.timeframe, self._calendar)
        if len(regular) >= BLOCK_BARS:
            return span.start
        start = planning.wider_start(
            key.timeframe, span, len(regular), BLOCK_BARS, "regular", _MOST_BACK, self._calendar
        )
        covered = [s.start for s in state.coverage if s.start < span.end]
        return max(start, covered[-1]) if covered else span.start


def _regular(bars: Bars, timeframe: Timeframe, calendar: TradingCalendar) -> Int64s:
    labels = bars.timestamp
    return labels[calendar.mask(labels, "regular")] if timeframe.intraday else labels
