"""Decides what one cycle of the aggregator reads. Pure: states, calendar and time in, fetches out.

Everything follows from what the store says it holds, nothing from "this tick": a cycle that came
late, twice or not at all leaves work that the next one finds. A series is read for three reasons::

    new          closed bars outside coverage, back to the newest block; older gaps are a backfill's
    corrections  bars stored before the provider's early corrections, once those are over
    final        the last sessions, once more when the provider has settled them; daily bars also
                 in the evening of their session

Series with the same reads share requests, and so do series whose reads nearly coincide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import batched
from typing import Final, NamedTuple

from marketdata import planning
from marketdata.calendars import TradingCalendar
from marketdata.planning import Fetch
from marketdata.protocols import Capabilities, SeriesState
from marketdata.spans import Span, intersect, normalise, subtract
from marketdata.types import SeriesKey, Timeframe

BLOCK_BARS: Final = 500
"""Regular bars that a series gets at once when it is new or was away for long."""
FINAL_SESSIONS: Final = 10
"""Sessions whose final values are still asked for, about what is not sealed yet; what a longer
outage left is for ``verify --correct``."""
MERGE_BARS: Final = 15
"""Bars by which a read may be widened to share a request, beside its own length once more: 500
series of 20 bars still fit one page."""
URGENT_BARS: Final = 60
"""Bars of a read that others may have to wait for; longer ones come after all of these."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What the calendar says of one stored timeframe at one moment; the same for every series."""

    base: Timeframe
    asked: Span
    """From the oldest bar wanted to the frontier."""
    settled_until: int
    """Bars before this are past the provider's early corrections."""
    finals: tuple[Span, ...]
    """The last sessions whose values are final, oldest first."""
    evening: Span | None = None
    """Of daily bars: the session to be read again this evening."""
    evening_from: int = 0
    """Answers before this moment were given before that evening."""

    @classmethod
    def at(
        cls,
        base: Timeframe,
        calendar: TradingCalendar,
        caps: Capabilities,
        now_us: int,
        bars: int = BLOCK_BARS,
    ) -> Moment:
        """Return the moment `now_us` (market time, microseconds UTC) for series of `base`, of
        which the newest `bars` regular bars are wanted."""
        edge = planning.frontier(calendar, base, caps, now_us)
        start = planning.limit_start(base, edge, bars, "regular", calendar)
        settling = planning.settling(calendar, base, now_us)
        hours = planning.stored_hours(base)
        last = calendar.session_at(settling.final_until - 1)
        if last >= 0 and calendar.session_span(last, hours).end > settling.final_until:
            last -= 1
        finals = [
            calendar.session_span(at, hours)
            for at in range(max(0, last - FINAL_SESSIONS + 1), last + 1)
        ]
        evening, evening_from = None, 0
        closed = calendar.session_at(edge - 1)
        if not base.intraday and closed > last:
            evening_from = calendar.session_span(closed, "extended").end + planning.FINAL_DELAY
            if evening_from <= now_us:
                evening = calendar.session_span(closed, "daily")
        return cls(
            base,
            Span(max(start, min(caps.earliest, edge)), edge),
            settling.settled_until,
            tuple(finals),
            evening,
            evening_from,
        )


class Read(NamedTuple):
    """One span of one series to read."""

    span: Span
    again: bool
    """Whether it is covered already, and read for the provider's corrections."""


class _View(NamedTuple):
    """The part of a series' state that decides its reads; most series share it."""

    coverage: tuple[Span, ...]
    unsettled: tuple[Span, ...]
    final: tuple[Span, ...]
    seen_in_the_evening: bool


def _view(moment: Moment, state: SeriesState) -> _View:
    start = moment.asked.start
    since = min([start, *(s.start for s in moment.finals)])
    return _View(
        _from(state.coverage, since),
        _from(state.unsettled, start),
        _from(state.final, since),
        moment.evening is None or (state.fetched_us or 0) >= moment.evening_from,
    )


def _from(spans: Sequence[Span], start: int) -> tuple[Span, ...]:
    if len(spans) == 1 and spans[0].end > start:
        only = spans[0]
        return (only,) if only.start >= start else (Span(start, only.end),)
    return tuple(Span(max(s.start, start), s.end) for s in spans if s.end > start)


def reads(moment: Moment, state: SeriesState, calendar: TradingCalendar) -> list[Read]:
    """Return what to read of one series now; empty where nothing is due."""
    return _reads(moment, _view(moment, state), calendar)


def _reads(moment: Moment, view: _View, calendar: TradingCalendar) -> list[Read]:
    hours = planning.stored_hours(moment.base)
    state = SeriesState(coverage=list(view.coverage), unsettled=list(view.unsettled))
    found = [
        Read(gap, again=False) for gap in planning.gaps(moment.asked, state, calendar, moment.base)
    ]

    def again(stale: Sequence[Span]) -> None:
        """Add what of `stale` is covered and not read anyway."""
        known = intersect(view.coverage, normalise(stale))
        for part in subtract(known, normalise(r.span for r in found)):
            trading = calendar.trading_spans(part, hours)
            if trading:
                found.append(Read(Span(trading[0].start, trading[-1].end), again=True))

    for session in moment.finals:
        again(subtract([session], view.final))
    if moment.evening is not None and not view.seen_in_the_evening:
        again([moment.evening])
    if moment.base.intraday:
        again(intersect(view.unsettled, [Span(moment.asked.start, moment.settled_until)]))
    return found


@dataclass(frozen=True, slots=True)
class Work:
    """The fetches of one cycle."""

    urgent: tuple[Fetch, ...]
    """Few bars each: the newest ones, and their corrections."""
    later: tuple[Fetch, ...]
    """Blocks of new series and whole sessions, shortest first."""

    def __len__(self) -> int:
        return len(self.urgent) + len(self.later)


def work(
    states: Mapping[SeriesKey, SeriesState],
    calendar: TradingCalendar,
    caps: Capabilities,
    now_us: int,
    bars: int = BLOCK_BARS,
) -> Work:
    """Return what to fetch for all series together.

    Parameters
    ----------
    states : mapping
        Every wanted stored series, of one provider and feed, with its state; the first ones are
        asked for first.
    now_us : int
        Market time, microseconds UTC.
    bars : int
        Newest regular bars that every series should have.
    """
    by_base: dict[Timeframe, dict[SeriesKey, SeriesState]] = {}
    for key, state in states.items():
        by_base.setdefault(key.timeframe, {})[key] = state
    urgent: list[Fetch] = []
    later: list[tuple[int, Fetch]] = []
    for base in sorted(by_base):
        moment = Moment.at(base, calendar, caps, now_us, bars)
        for batch in _packed(_groups(moment, by_base[base], calendar), moment, caps, calendar):
            if batch.bars <= URGENT_BARS and base.intraday:
                urgent.append(batch.fetch)
            else:
                later.append((batch.bars, batch.fetch))
    later.sort(key=lambda each: each[0])
    return Work(tuple(urgent), tuple(fetch for _, fetch in later))


def _groups(
    moment: Moment, states: Mapping[SeriesKey, SeriesState], calendar: TradingCalendar
) -> dict[Read, list[SeriesKey]]:
    """Return the series by what is to be read of them; planned once for all that look alike."""
    alike: dict[_View, list[SeriesKey]] = {}
    for key, state in states.items():
        alike.setdefault(_view(moment, state), []).append(key)
    groups: dict[Read, list[SeriesKey]] = {}
    for view, keys in alike.items():
        for read in _reads(moment, view, calendar):
            groups.setdefault(read, []).extend(keys)
    return groups


class _Batch(NamedTuple):
    bars: int
    fetch: Fetch


class _Group(NamedTuple):
    bars: int
    read: Read
    keys: Sequence[SeriesKey]


def _packed(
    groups: Mapping[Read, Sequence[SeriesKey]],
    moment: Moment,
    caps: Capabilities,
    calendar: TradingCalendar,
) -> Iterator[_Batch]:
    """Yield batches of what one request may name, each over one span.

    Groups whose spans nearly coincide fill each other's last batch: of many distinct spans each
    widens one batch at most.
    """

    def bars(span: Span) -> int:
        return planning.expected_bars(span, moment.base, calendar)

    ordered = [
        _Group(bars(read.span), read, keys)
        for read, keys in sorted(groups.items(), key=lambda g: (-g[0].span.end, -g[0].span.start))
    ]
    rows: list[tuple[_Group, SeriesKey]] = []
    hull = Span(0, 0)
    least = 0
    for group in ordered:
        joined = Span(min(hull.start, group.read.span.start), max(hull.end, group.read.span.end))
        if rows and bars(joined) > 2 * min(least, group.bars) + MERGE_BARS:
            yield from _batches(rows, moment.base, caps, bars)
            rows = []
        if not rows:
            joined, least = group.read.span, group.bars
        hull, least = joined, min(least, group.bars)
        rows += [(group, key) for key in group.keys]
    yield from _batches(rows, moment.base, caps, bars)


def _batches(
    rows: Iterable[tuple[_Group, SeriesKey]],
    base: Timeframe,
    caps: Capabilities,
    bars: Callable[[Span], int],
) -> Iterator[_Batch]:
    for part in batched(rows, caps.batch_symbols):
        groups = {id(group): group.read for group, _ in part}.values()
        span = Span(min(r.span.start for r in groups), max(r.span.end for r in groups))
        keys = tuple(dict.fromkeys(key for _, key in part))
        yield _Batch(bars(span), Fetch(base, span, keys, again=any(r.again for r in groups)))
