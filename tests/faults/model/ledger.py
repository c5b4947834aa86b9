"""The oracle: a dictionary of bars and of what is covered, by series, minute and session.

It follows from what the sandbox was asked and when, and from what the market said then; the stack's
own planning, coverage and revisions have no part in it. After each step the store is held against
it (`Ledger.settle`), and every answer (`Ledger.expected`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from marketdata import planning, resample
from marketdata.calendars import TradingCalendar
from marketdata.clock import from_micros
from marketdata.protocols import SeriesState
from marketdata.queries import BarsQuery, select
from marketdata.spans import Span
from marketdata.types import (
    CLOSE,
    COLUMNS,
    DAY,
    HIGH,
    HOUR,
    LOW,
    MINUTE,
    OPEN,
    SECOND,
    VOLUME,
    VWAP,
    Bars,
    Bools,
    Floats,
    Int64s,
    SeriesKey,
    Timeframe,
)
from tests.faults.model.market import ScriptedMarket

BEFORE: Final = 420 * DAY
AFTER: Final = 60 * DAY
SETTLE: Final = 3 * SECOND
DAILY_SETTLE: Final = 20 * MINUTE
FEW_WITHDRAWN: Final = 5
_PRICES: Final = (OPEN, HIGH, LOW, CLOSE, VWAP)


class Violation(AssertionError):  # noqa: N818
    """The stack did what it promises never to do."""


@dataclass(frozen=True)
class Answered:
    """One page of an answer that left the sandbox whole."""

    symbols: tuple[str, ...]
    feed: str
    timeframe: Timeframe
    proven: dict[str, Span]
    """What the page can prove of each symbol at most."""
    asked: int
    """Market time at which its walk began."""
    served: int
    """Market time at which it was answered."""


@dataclass
class Book:
    """One stored series as the dictionary has it; all arrays by slot, a minute or a session."""

    key: SeriesKey
    labels: Int64s
    """Of each slot."""
    trades: Bools
    """Whether the slot lies in trading time."""
    due: Int64s
    """When what is said of it is final."""
    values: Floats
    present: Bools
    covered: Bools
    observed: Int64s
    """Market time at which the slot was last asked for, with an answer that counted."""

    def slots(self, span: Span) -> slice:
        low, high = np.searchsorted(self.labels, (span.start, span.end))
        return slice(int(low), int(high))

    def lay(self, bars: Bars, of: slice) -> tuple[Bools, Floats]:
        """Return bars by slot, inside a range of slots; raise for one that has none."""
        present = np.zeros(of.stop - of.start, np.bool_)
        values = np.zeros((len(COLUMNS), of.stop - of.start))
        at = np.searchsorted(self.labels[of], bars.timestamp)
        if len(at) and (
            at.max() >= of.stop - of.start
            or not np.array_equal(self.labels[of][at], bars.timestamp)
        ):
            raise Violation(f"{self.key}: bars off the grid, or beyond the time of the test")
        present[at] = True
        values[:, at] = bars.values
        return present, values

    def reach(self, of: slice) -> Span:
        """Return a span of labels that holds just these slots, of which there are some."""
        return Span(int(self.labels[of.start]), int(self.labels[of.stop - 1]) + 1)

    def bars(self, of: slice) -> Bars:
        chosen = np.flatnonzero(self.present[of])
        return Bars(
            self.labels[of][chosen].copy(), np.ascontiguousarray(self.values[:, of][:, chosen])
        )


@dataclass
class Step:
    """What one step may have done to the store."""

    answered: list[Answered] = field(default_factory=list)
    certain: bool = True
    """Whether every answer must have counted: nothing failed, and nothing was in the way."""
    dropped_before: int | None = None
    """Intraday bars before this moment may be gone, with their coverage."""
    only_drops: bool = False
    """Whether nothing can have fetched again what was dropped."""
    now: int = 0


def spans_mask(labels: Int64s, spans: Sequence[Span]) -> Bools:
    """Return which labels lie in a normal list of spans."""
    if not spans:
        return np.zeros(len(labels), np.bool_)
    edges = np.array(spans, np.int64).ravel()
    return np.asarray(np.searchsorted(edges, labels, side="right") % 2 == 1, np.bool_)


class Ledger:
    """All series of one example.

    Parameters
    ----------
    market : ScriptedMarket
    start : int
        Market time at which the example begins, microseconds UTC.
    """

    def __init__(self, market: ScriptedMarket, start: int, provider: str) -> None:
        self.market = market
        self.provider = provider
        self.calendar: TradingCalendar = market.calendar
        midnight = self.calendar.midnight_of(self.calendar.today(start))
        self._minutes = np.arange(midnight - BEFORE, midnight + AFTER, MINUTE)
        self._trading = self.calendar.mask(self._minutes, "extended")
        session = self.calendar.session_index(self._minutes)
        self._minutes_due = self.calendar.extended_close[session] + HOUR
        self.books: dict[SeriesKey, Book] = {}

    def key(self, symbol: str, feed: str, timeframe: Timeframe) -> SeriesKey:
        return SeriesKey(self.provider, feed, symbol, timeframe)

    def book(self, key: SeriesKey) -> Book:
        found = self.books.get(key)
        if found is None:
            labels = self.calendar.midnight
            trades: Bools = np.ones(len(labels), np.bool_)
            due = labels + 34 * HOUR
            if key.timeframe.intraday:
                labels, trades, due = self._minutes, self._trading, self._minutes_due
            count = len(labels)
            found = self.books[key] = Book(
                key,
                labels,
                trades,
                due,
                np.zeros((len(COLUMNS), count)),
                np.zeros(count, np.bool_),
                np.zeros(count, np.bool_),
                np.zeros(count, np.int64),
            )
        return found

    def frontier(self, timeframe: Timeframe, now: int, delay: int = SETTLE) -> int:
        """Return the label before which every bar is closed and may be stored."""
        if timeframe.intraday:
            return (now - delay) // MINUTE * MINUTE
        closed = int(np.searchsorted(self.calendar.close, now - DAILY_SETTLE, side="right"))
        return int(self.calendar.midnight[closed])

    # ------------------------------------------------------------------------------- settling

    def touched(self, step: Step) -> list[SeriesKey]:
        found: dict[SeriesKey, None] = {}
        for page in step.answered:
            for symbol in page.proven:
                found[self.key(symbol, page.feed, page.timeframe)] = None
        return list(found)

    def settle(self, step: Step, key: SeriesKey, state: SeriesState, bars: Bars) -> None:
        """Hold what is stored of one series after a step against what may be, and take it over.

        Raises
        ------
        Violation
        """
        book = self.book(key)
        w = self._window(book, step, state, bars)
        labels, trades = book.labels[w], book.trades[w]
        present, values = book.lay(bars, w)
        covered = spans_mask(labels, state.coverage) & trades
        was_present, was_covered = book.present[w], book.covered[w]
        self._forbid(
            book, w, (present | covered) & (labels >= self.frontier(key.timeframe, step.now)),
            "stored or covered before it was closed",
        )  # fmt: skip
        self._forbid(book, w, present & ~covered, "bars outside coverage")
        dropped: Bools = np.zeros(len(labels), np.bool_)
        if step.dropped_before is not None and key.timeframe.intraday:
            dropped = labels < step.dropped_before
            if step.only_drops:
                self._forbid(book, w, covered & dropped, "kept beyond its time")
        self._forbid(book, w, was_covered & ~covered & ~dropped, "coverage lost")
        asked = np.zeros(len(labels), np.bool_)
        right, decided = asked.copy(), asked.copy()
        newest = np.zeros(len(labels), np.int64)
        for page in self._pages(step, key):
            of = self._proven(book, page)
            if of.stop <= of.start:
                continue
            here = slice(of.start - w.start, of.stop - w.start)
            said = self.market.at(page.served, key.symbol, key.feed, key.timeframe, book.reach(of))
            there, told = book.lay(said, of)
            same = _same(present[here], values[:, here], there, told)
            # Only a final answer takes out a bar that it lacks.
            kept = book.due[of] > page.asked
            same &= there | ~kept | ~(was_present[here] & was_covered[here])
            asked[here] = True
            right[here] |= same & ~decided[here]
            counts = ~decided[here] & (same | step.certain)
            newest[here] = np.maximum(newest[here], np.where(counts, page.asked, 0))
            if step.certain:
                # A later answer in the same millisecond is no later one.
                decided[here] |= there & (page.asked // 1000 > book.observed[of] // 1000)
        same = _same(present, values, was_present, book.values[:, w])
        right |= was_covered & ~decided & same
        self._forbid(book, w, covered & ~was_covered & ~asked, "covered and never answered")
        wrong = covered & ~right
        if wrong.any():
            raise Violation(self._difference(book, w, wrong, present, values, step))
        book.present[w], book.values[:, w], book.covered[w] = present, values, covered
        book.observed[w] = np.where(covered, np.maximum(book.observed[w], newest), 0)

    def _pages(self, step: Step, key: SeriesKey) -> list[Answered]:
        """Return the pages that tell of a series, the latest first."""
        mine = [
            page
            for page in step.answered
            if (page.feed, page.timeframe) == (key.feed, key.timeframe)
            and key.symbol in page.proven
        ]
        return sorted(mine, key=lambda p: (p.asked, p.served), reverse=True)

    def _proven(self, book: Book, page: Answered) -> slice:
        """Return the slots a page proves; they end where its walk counted bars as closed."""
        until = self.frontier(book.key.timeframe, page.asked)
        span = page.proven[book.key.symbol]
        return book.slots(Span(span.start, max(span.start, min(span.end, until))))

    def _window(self, book: Book, step: Step, state: SeriesState, bars: Bars) -> slice:
        """Return the slots that matter."""
        ends = [(of.start, of.stop) for of in (self._proven(book, p) for p in self._pages(step, book.key))]  # fmt: skip
        held = np.flatnonzero(book.covered)
        if len(held):
            ends.append((int(held[0]), int(held[-1]) + 1))
        last = int(book.labels[-1])
        spans = [s.clip(Span(int(book.labels[0]) - DAY, last)) for s in state.coverage]
        if len(bars):
            spans.append(Span(int(bars.timestamp[0]), int(bars.timestamp[-1]) + 1))
        for span in spans:
            # Coverage reaches over closed hours, for days from midnight to the close.
            of = book.slots(Span(span.start - DAY, span.end + DAY))
            ends.append((of.start, of.stop))
        if not ends:
            return slice(0, 0)
        return slice(min(a for a, _ in ends), max(b for _, b in ends))

    def _forbid(self, book: Book, of: slice, slots: Bools, what: str) -> None:
        if slots.any():
            raise Violation(f"{book.key}: {what}: {_shown(book.labels[of], slots)}")

    def _difference(
        self, book: Book, w: slice, wrong: Bools, present: Bools, values: Floats, step: Step
    ) -> str:
        key = book.key
        at = int(np.flatnonzero(wrong)[0])
        slot = w.start + at
        label = int(book.labels[slot])
        held = book.values[:, slot].tolist() if book.present[slot] else None
        stored = values[:, at].tolist() if present[at] else None
        one = Span(label, label + 1)
        said = {
            (p.asked, p.served): self.market.at(
                p.served, key.symbol, key.feed, key.timeframe, one
            ).values.T.tolist()
            for p in self._pages(step, key)
            if label in range(*p.proven[key.symbol])
        }
        return (
            f"{key}: stored wrongly: {_shown(book.labels[w], wrong)}; first is {stored}, "
            f"was {held} (covered {bool(book.covered[slot])}, observed {book.observed[slot]}), "
            f"the market said {said}; certain {step.certain}"
        )

    # -------------------------------------------------------------------------------- answers

    def expected(self, query: BarsQuery, symbol: str, now: int) -> Bars:
        """Return the bars that answer `query`, from the dictionary alone.

        Raises
        ------
        Violation
            The answer would need what is not covered.
        """
        timeframe, window = query.timeframe, query.window
        base = Timeframe.MIN_1 if timeframe.intraday else Timeframe.DAY_1
        book = self.book(self.key(symbol, query.feed, base))
        edge = self.frontier(base, now)
        until = min(window.end, edge)
        if base is not timeframe:
            moment = edge
            if not timeframe.intraday:
                moment = int(self.calendar.midnight[self.calendar.session_at(edge - 1)]) + DAY
            until = min(
                window.end, resample.closed_until(timeframe, self.calendar, moment, "extended")
            )
        start = window.start
        if start is None:
            start = self._start_of_last(book, query, until)
        labels = Span(start, max(start, until))
        needed = labels
        if base is not timeframe:
            needed = resample.base_span(labels, timeframe, self.calendar)
            needed = Span(needed.start, max(needed.start, min(needed.end, edge)))
        of = book.slots(needed)
        if window.limit is None:
            self._forbid(book, of, self._holes(book, of), "an answer without coverage")
        bars = book.bars(of)
        if base is not timeframe:
            bars = resample.resample(bars, base, timeframe, self.calendar, query.session)
        found = select(bars.within(labels), query, self.calendar)
        if window.limit is not None:
            if window.start is None and len(found) < window.limit:
                raise Violation(f"{book.key}: an answer without coverage: {len(found)} bars known")
            first = int(found.timestamp[0]) if len(found) == window.limit else needed.start
            of = book.slots(Span(max(first, needed.start), needed.end))
            self._forbid(book, of, self._holes(book, of), "an answer without coverage")
        return found

    def _holes(self, book: Book, of: slice) -> Bools:
        return np.asarray(book.trades[of] & ~book.covered[of], np.bool_)

    def _start_of_last(self, book: Book, query: BarsQuery, until: int) -> int:
        """Return a start that has at least the bars that a limit asks for, going by coverage: back
        to where it has a hole at most."""
        of = book.slots(Span(0, until))
        holes = np.flatnonzero(book.trades[of] & ~book.covered[of])
        first = int(holes[-1]) + 1 if len(holes) else 0
        if first >= of.stop:
            return until
        start = int(book.labels[first])
        if query.timeframe is not Timeframe.MIN_1 and query.timeframe is not Timeframe.DAY_1:
            # Only whole bins count.
            whole = resample.bar_span(start, query.timeframe, self.calendar)
            if whole.start < start:
                start = whole.end
        return start

    def covers(self, symbols: Iterable[str], feed: str, timeframe: Timeframe, span: Span) -> bool:
        """Whether everything that trades in a span is covered."""
        for symbol in symbols:
            book = self.book(self.key(symbol, feed, timeframe))
            of = book.slots(span)
            if (book.trades[of] & ~book.covered[of]).any():
                return False
        return True

    def needless(self, page_span: Span, key: SeriesKey) -> int:
        """Return how many covered slots of trading time a request asks for again; -1 where it
        asks for nothing else."""
        book = self.book(key)
        of = book.slots(page_span)
        again = int((book.trades[of] & book.covered[of]).sum())
        fresh = int((book.trades[of] & ~book.covered[of]).sum())
        return again if fresh else -1

    # ------------------------------------------------------------------------------ freshness

    def check_cycle(self, keys: Iterable[SeriesKey], now: int, bars: int = 500) -> None:
        """What a cycle without failures leaves: the newest bars of all there, corrections read once
        they are due, the last sessions read when final, and what is gone by then gone."""
        for key in keys:
            book = self.book(key)
            edge = self.frontier(key.timeframe, now)
            start = planning.limit_start(key.timeframe, edge, bars, "regular", self.calendar)
            of = book.slots(Span(start, edge))
            self._forbid(book, of, self._holes(book, of), "a cycle left out")
            if key.timeframe.intraday:
                self._check_seen(book, of, book.labels[of] + 2 * MINUTE, now)
            else:
                closed = int(np.searchsorted(book.labels, edge)) - 1
                evening = self.calendar.extended_close[closed : closed + 1] + HOUR
                # Anything else of the series that was fetched this evening stands for it: then the
                # last day is read again when it is final.
                if book.observed.max() < evening[0]:
                    self._check_seen(book, slice(closed, closed + 1), evening, now)
            self._check_final(book, now)

    def _check_seen(self, book: Book, of: slice, due: Int64s, now: int) -> None:
        late = book.trades[of] & book.covered[of] & (book.observed[of] < due) & (due < now)
        self._forbid(book, of, late, "corrections not read")

    def _check_final(self, book: Book, now: int) -> None:
        key, calendar = book.key, self.calendar
        final = calendar.midnight + 34 * HOUR
        if key.timeframe.intraday:
            final = calendar.extended_close + HOUR
        last = int(np.searchsorted(final, now, side="right"))
        for session in range(max(0, last - 10), last):
            of = slice(session, session + 1)
            if key.timeframe.intraday:
                of = book.slots(calendar.session_span(session, "extended"))
            self._check_seen(book, of, book.due[of], now)
            covered = book.covered[of]
            moment = int(book.observed[of][covered].min()) if covered.any() else 0
            if not moment:
                continue
            said, _ = book.lay(
                self.market.at(moment, key.symbol, key.feed, key.timeframe, book.reach(of)), of
            )
            stale = covered & book.present[of] & ~said
            if stale.sum() <= FEW_WITHDRAWN:
                self._forbid(book, of, stale, "withdrawn and still stored")


def split_adjusted(bars: Bars, splits: Sequence[tuple[int, float]]) -> Bars:
    """Return bars divided for splits, given as ex-date (exchange midnight) and shares for one."""
    values = bars.values.copy()
    for ex_date, ratio in splits:
        before = bars.timestamp < ex_date
        for column in _PRICES:
            values[column, before] /= ratio
        values[VOLUME, before] *= ratio
    return Bars(bars.timestamp, values)


def _same(one: Bools, values: Floats, other: Bools, others: Floats) -> Bools:
    """Return where two stretches of slots agree."""
    alike = (values == others) | (np.isnan(values) & np.isnan(others))
    return np.asarray((one == other) & (~one | alike.all(axis=0)), np.bool_)


def _shown(labels: Int64s, slots: Bools) -> str:
    found = labels[slots]
    first, last = (from_micros(int(t)).isoformat() for t in (found[0], found[-1]))
    return f"{first} .. {last} ({len(found)} slots)"
