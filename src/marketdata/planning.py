"""Decides what must be asked of whom. Pure: states, capabilities, calendar and time come in,
spans to read and to fetch go out; nothing here knows Redis, PostgreSQL or a broker.

Planning works in trading time. Coverage extends over closed hours, and gaps are what of the asked
span lies outside coverage *and* inside trading hours; so a healthy series is one range, and spans
parted only by closed time are one request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from marketdata import resample
from marketdata.calendars import Hours, TradingCalendar
from marketdata.protocols import Capabilities, SeriesState
from marketdata.spans import Span, intersect, normalise, subtract
from marketdata.types import DAY, HOUR, MINUTE, SECOND, SeriesKey, Session, Timeframe

CORRECTION_DELAY: Final = 60 * SECOND
"""A minute bar may still be corrected this long after its end: brokers recompute it once for
prints reported late (Alpaca: about 30 s after the minute)."""
FINAL_DELAY: Final = HOUR
"""An intraday session is final this long after its extended close."""
DAILY_FINAL_DELAY: Final = 34 * HOUR
"""A daily bar is final this long after the midnight that labels it, at ten the next morning:
brokers rebuild it until then, after a half-day as after any other."""
RESETTLE_BARS: Final = 10
"""Most bars to read again with what follows them; more are left to a re-read of their own."""


def stored_hours(base: Timeframe) -> Hours:
    """Return the trading time that counts for a stored series: intraday always is stored with
    its extended hours, daily bars from midnight to the close."""
    return "extended" if base.intraday else "daily"


def frontier(calendar: TradingCalendar, base: Timeframe, caps: Capabilities, now_us: int) -> int:
    """Return the instant up to which bars of `base` are closed and settled: nothing at or after
    it may be stored or taken as covered."""
    if base.intraday:
        settled = now_us - caps.settle_delay
        if base is Timeframe.MIN_1:
            return settled - settled % MINUTE
        return min(settled, resample.closed_until(base, calendar, settled, "extended"))
    return _last_session_end(calendar, "daily", now_us - caps.daily_settle_delay)


def closed_labels(calendar: TradingCalendar, target: Timeframe, edge: int) -> int:
    """Return the label before which every bar of a derived timeframe is closed, for a base that
    is closed up to `edge`."""
    if not target.intraday:
        # Derived bars count a day from midnight to midnight, the base from midnight to the close.
        edge = calendar.session_span(calendar.session_at(edge), "daily").start + DAY
    return resample.closed_until(target, calendar, edge, "extended")


@dataclass(frozen=True, slots=True)
class Settling:
    """How settled what is fetched now will be: see `Commit`."""

    settled_until: int
    final_until: int


def settling(calendar: TradingCalendar, base: Timeframe, now_us: int) -> Settling:
    """Return up to where bars of `base` observed now are past the broker's corrections."""
    if not base.intraday:
        at = calendar.session_at(now_us - DAILY_FINAL_DELAY)
        final = calendar.session_span(at, "daily").end if at >= 0 else calendar.first
        return Settling(final, _following_start(calendar, "daily", final))
    settled = now_us - CORRECTION_DELAY
    final = _last_session_end(calendar, "extended", now_us - FINAL_DELAY)
    return Settling(settled - settled % base.step, _following_start(calendar, "extended", final))


def _following_start(calendar: TradingCalendar, hours: Hours, end: int) -> int:
    """Return where trading begins again after `end`: closed hours are as final as what they
    follow, so that the final part of a healthy series is one span."""
    return calendar.extend_over_closed(Span(end - 1, end), hours, calendar.horizon).end


def _last_session_end(calendar: TradingCalendar, hours: Hours, moment: int) -> int:
    at = calendar.session_at(moment)
    if at >= 0 and calendar.session_span(at, hours).end > moment:
        at -= 1
    return calendar.session_span(at, hours).end if at >= 0 else calendar.first


# ------------------------------------------------------------------------------------ segments


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the asked bars that one stored series answers."""

    base: Timeframe
    labels: Span
    """Which bars of the asked timeframe come from here."""
    asked: Span
    """The time of `base` bars needed for them, up to the frontier."""


@dataclass(frozen=True, slots=True)
class Segments:
    parts: list[Segment]
    too_old: list[Span]
    """Labels older than the broker reaches and not stored."""


def segments(
    target: Timeframe,
    labels: Span,
    caps: Capabilities,
    calendar: TradingCalendar,
    now_us: int,
    coverage: Callable[[Timeframe], Sequence[Span]],
) -> Segments:
    """Split the asked labels by the stored series that can answer them, best first.

    A whole exchange day comes from one base: from minutes where minutes are stored or can still
    be had, else from the broker's own coarser bars; never mixed inside one bar.
    """
    rest = [labels] if not labels.empty else []
    found: list[Segment] = []
    for option in caps.bases[target]:
        if not rest:
            break
        if option.max_age is None:
            reachable = [Span(min(labels.start, caps.earliest), labels.end)]
        else:
            oldest = _next_midnight(calendar, now_us - option.max_age)
            stored = [_whole_days(calendar, s) for s in coverage(option.base)]
            reachable = normalise([*stored, Span(oldest, max(oldest, labels.end))])
        found += [
            _segment(option.base, target, part, caps, calendar, now_us)
            for part in intersect(rest, reachable)
        ]
        rest = subtract(rest, reachable)
    return Segments(sorted(found, key=lambda s: s.labels), rest)


def _segment(
    base: Timeframe,
    target: Timeframe,
    labels: Span,
    caps: Capabilities,
    calendar: TradingCalendar,
    now_us: int,
) -> Segment:
    edge = frontier(calendar, base, caps, now_us)
    if base is target:
        needed = _whole_bars(labels, target, calendar)
    else:
        closed = closed_labels(calendar, target, edge)
        labels = Span(labels.start, max(labels.start, min(labels.end, closed)))
        needed = resample.base_span(labels, target, calendar)
    return Segment(base, labels, Span(needed.start, max(needed.start, min(needed.end, edge))))


def _whole_bars(labels: Span, timeframe: Timeframe, calendar: TradingCalendar) -> Span:
    """Return the time of the bars labelled in a span: a part of a bar can neither be asked for nor
    be missing."""
    start, end = labels
    first = resample.bar_span(start, timeframe, calendar)
    last = resample.bar_span(end, timeframe, calendar)
    if not first.empty and first.start < start:
        start = first.end
    if not last.empty and last.start < end:
        end = last.end
    return Span(start, max(start, end))


def _next_midnight(calendar: TradingCalendar, moment: int) -> int:
    midnight = calendar.midnight_of(calendar.today(moment))
    return (
        midnight
        if midnight >= moment
        else calendar.midnight_of(calendar.today(midnight + 26 * HOUR))
    )


def _whole_days(calendar: TradingCalendar, span: Span) -> Span:
    start = _next_midnight(calendar, span.start)
    return Span(start, max(start, calendar.midnight_of(calendar.today(span.end))))


# ---------------------------------------------------------------------------------------- gaps


def gaps(asked: Span, state: SeriesState, calendar: TradingCalendar, base: Timeframe) -> list[Span]:
    """Return what must be fetched: the asked trading time outside coverage.

    Bars right beside a gap that were stored before the broker's own corrections ride along in its
    request; they alone are no reason for one.
    """
    hours = stored_hours(base)
    found: list[Span] = []
    for hole in subtract([asked], state.coverage) if not asked.empty else []:
        trading = calendar.trading_spans(hole, hours)
        if not trading:
            continue
        gap = _resettled(Span(trading[0].start, trading[-1].end), state.unsettled, calendar, base)
        if found and not calendar.trading_spans(Span(found[-1].end, gap.start), hours):
            gap = Span(found.pop().start, gap.end)
        found.append(gap)
    return found


def _resettled(
    gap: Span, unsettled: Sequence[Span], calendar: TradingCalendar, base: Timeframe
) -> Span:
    """Widen a gap over the unsettled bars beside it in trading time, if they are few."""
    hours = stored_hours(base)
    start, end = gap

    def few(span: Span) -> bool:
        return expected_bars(span, base, calendar) <= RESETTLE_BARS

    for span in reversed(unsettled):
        if span.start < start:
            if calendar.trading_spans(Span(span.end, start), hours) or not few(
                Span(span.start, gap.start)
            ):
                break
            start = span.start
    for span in unsettled:
        if span.end > end:
            if calendar.trading_spans(Span(end, span.start), hours) or not few(
                Span(gap.end, span.end)
            ):
                break
            end = span.end
    if (start, end) == gap:
        return gap
    trading = calendar.trading_spans(Span(start, end), hours)
    return Span(trading[0].start, trading[-1].end)


def recordable(
    proven: Span, calendar: TradingCalendar, base: Timeframe, edge: int, settled_now: int
) -> Span:
    """Return the span to record as covered for a proven one: never past the frontier, then
    widened over the closed hours beside it, never past what is settled now."""
    clipped = Span(proven.start, min(proven.end, edge))
    if clipped.empty:
        return clipped
    return calendar.extend_over_closed(clipped, stored_hours(base), settled_now)


# ------------------------------------------------------------------------------------ requests


@dataclass(frozen=True, slots=True)
class Fetch:
    """One walk to make: the same gap of several series."""

    base: Timeframe
    span: Span
    keys: tuple[SeriesKey, ...]
    again: bool = False
    """Read what is covered already once more, for the provider's corrections."""
    sealed: bool = False
    """Whole final sessions: they may be stored as sealed chunks at once."""


def fetches(missing: Mapping[SeriesKey, Sequence[Span]], caps: Capabilities) -> list[Fetch]:
    """Group series by equal gaps and cut the groups to what one request may name."""
    groups: dict[tuple[Timeframe, Span], list[SeriesKey]] = {}
    for key, spans in missing.items():
        for span in spans:
            groups.setdefault((key.timeframe, span), []).append(key)
    found: list[Fetch] = []
    for (base, span), keys in sorted(groups.items(), key=lambda g: (g[0][0], g[0][1])):
        keys.sort(key=lambda k: k.symbol)
        for at in range(0, len(keys), caps.batch_symbols):
            found.append(Fetch(base, span, tuple(keys[at : at + caps.batch_symbols])))
    return found


def expected_bars(span: Span, base: Timeframe, calendar: TradingCalendar) -> int:
    """Return how many bars of `base` a dense series has in `span`, extended hours included."""
    if not base.intraday:
        return len(calendar.trading_spans(span, "daily"))
    return calendar.trading_time(span, "extended") // base.step


# ------------------------------------------------------------------------------- walking back


def limit_start(
    target: Timeframe, end: int, bars: int, session: Session, calendar: TradingCalendar
) -> int:
    """Return where a window must start to hold `bars` bars before `end` of a dense series."""
    if target.intraday:
        hours: Hours = session
        start = calendar.back(end, bars, target.step, hours)
        # Bins begin anew at the open and at the close, where counted steps do not.
        return min(start, resample.bar_span(start, target, calendar).start)
    sessions = {Timeframe.WEEK_1: 5, Timeframe.MONTH_1: 23}.get(target, 1)
    extra = 0 if target is Timeframe.DAY_1 else sessions
    return calendar.back(end, bars * sessions + extra, DAY, "daily")


def wider_start(
    target: Timeframe,
    span: Span,
    found: int,
    wanted: int,
    session: Session,
    max_lookback: int,
    calendar: TradingCalendar,
) -> int:
    """Return the next start for a series that held too few bars in `span`, bounded by
    `max_lookback` microseconds before its end.

    The window grows in trading time by a power of four, and to a session at least: a sparse series
    costs a few requests and not hundreds, and series that are about as sparse share them.
    """
    growth = 4
    while found and found * growth < 1.5 * wanted:
        growth *= 4
    hours: Hours = session if target.intraday else "daily"
    step, least = (MINUTE, DAY // MINUTE) if target.intraday else (DAY, 5)
    if target.intraday:
        held = calendar.trading_time(span, hours) // step
    else:
        held = len(calendar.trading_spans(span, hours))
    start = calendar.back(span.end, max(held * growth, least), step, hours)
    return min(span.start, max(start, span.end - max_lookback))


def held(asked: Span, holes: Sequence[Span]) -> list[Span]:
    """Return what of `asked` lies outside `holes`."""
    return subtract([asked], normalise(holes))
